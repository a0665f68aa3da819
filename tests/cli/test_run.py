# SPDX-License-Identifier: Apache-2.0
"""`pmuctl run` up to the exec: what is refused and how, what the supervisor is ordered."""

import errno
import io
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import pytest

from pmuctl.cli.command_line import RUN_VALUES, select_own_words
from pmuctl.cli.main import main
from pmuctl.control.protocol.messages import VM_NAME
from pmuctl.errors import (
    DeniedError,
    NotFoundError,
    PmuctlError,
    RefusedError,
    UnsupportedError,
)
from pmuctl.host.kvm.access import Kvm, KvmAccess
from pmuctl.launch.ioctls import steps
from pmuctl.launch.serve.vmm_backend import SupervisedBackend
from pmuctl.launch.spec import LaunchSpec
from pmuctl.manage.start.exec import Executor, find_program, make_exec_error, read_own_environ
from pmuctl.manage.start.prepare import default_name
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.event import EventSet
from pmuctl.model.event_filter import Action, EventFilter
from pmuctl.model.kvm_caps import ATTR_NAMES, DefaultPmu, KvmCaps
from pmuctl.model.pmu import Pmu
from pmuctl.uapi.kvm_arm64 import KVM_ARM_VCPU_PMU_V3_FILTER, KVM_ARM_VCPU_PMU_V3_SET_PMU
from pmuctl.value import replace
from tests.cli.conftest import Machine, Ran
from tests.command_tree import leaf
from tests.fakes.vmm import FakeThreads, FakeVm
from tests.man_pages import ROOT, examples

A53, A72 = "armv8_cortex_a53", "armv8_cortex_a72"
ONLY = "default deny allow cpu_cycles"
PMU = ("--pmu", A72)


class Became(BaseException):
    """This process would be another program now."""


@dataclass
class FakeStarter(Executor):
    """Remembers what would have been executed; `obstacles` are raised first, one a try."""

    obstacles: list[Exception] = field(default_factory=list)
    how: str = ""
    orders: LaunchSpec | None = None
    executable: str = ""
    argv: tuple[str, ...] = ()
    environ: Mapping[bytes, bytes] = field(default_factory=dict)

    def _become(
        self, how: str, executable: str, argv: Sequence[str], environ: Mapping[bytes, bytes]
    ) -> NoReturn:
        if self.obstacles:
            raise self.obstacles.pop(0)
        self.how, self.executable, self.argv = how, executable, tuple(argv)
        self.environ = environ
        raise Became

    def launch(
        self,
        orders: LaunchSpec,
        executable: str,
        argv: Sequence[str],
        environ: Mapping[bytes, bytes],
    ) -> NoReturn:
        self.orders = orders
        self._become("launch", executable, argv, environ)

    def execute(
        self, executable: str, argv: Sequence[str], environ: Mapping[bytes, bytes]
    ) -> NoReturn:
        self._become("execute", executable, argv, environ)


PROBED = KvmCaps(
    has_vpmu=True,
    attributes=frozenset(ATTR_NAMES),
    counters={10: 6, 11: 6},
    event_bits=16,
    event_bits_of={10: 10},
    cpus={10: CpuSet.parse("0-1"), 11: CpuSet.parse("2-3")},
)


class Terminal(io.StringIO):
    """Standard error on a terminal."""

    def isatty(self) -> bool:
        return True


@dataclass
class Host:
    """The captured machine with a KVM that answers as `probed` says, and a VMM called vmm."""

    machine: Machine
    directory: Path
    probed: KvmCaps | OSError = PROBED
    kvm: KvmAccess = KvmAccess.USABLE
    mask: str = "0-3"
    environ: dict[str, str] = field(default_factory=dict)
    starter: FakeStarter = field(default_factory=FakeStarter)

    def _probe(self, pmus: Sequence[Pmu]) -> KvmCaps:
        if isinstance(self.probed, OSError):
            raise self.probed
        return self.probed

    def run(self, *words: str, is_terminal: bool = False) -> Ran:
        """One command line; its status is -1 where the process has become another program."""
        stdout, stderr = io.StringIO(), Terminal() if is_terminal else io.StringIO()
        env = self.machine.env(
            stdout,
            stderr,
            environ={"PATH": str(self.directory), **self.environ},
            kvm=Kvm(access=lambda: self.kvm, group=lambda: "virt", probe=self._probe),
            threads=FakeThreads({os.getpid(): CpuSet.parse(self.mask)}),
        )
        try:
            status = main(("run", *words), replace(env, executor=self.starter))
        except Became:
            status = -1
        return Ran(int(status), stdout.getvalue(), stderr.getvalue())

    def launched(self, *words: str) -> LaunchSpec:
        """The orders of a command line that starts its VMM with a supervisor."""
        ran = self.run(*words)
        assert (ran.status, self.starter.how, ran.stdout) == (-1, "launch", ""), ran
        assert self.starter.orders is not None
        return self.starter.orders


@pytest.fixture
def host(machine: Machine, tmp_path: Path) -> Host:
    """Two PMUs, and files in PATH: vmm can be executed, plain cannot, folder is a directory."""
    machine.proc.mkdir(exist_ok=True)
    (machine.proc / "self").symlink_to(str(os.getpid()))
    directory = tmp_path / "bin"
    (directory / "folder").mkdir(parents=True)
    for name, mode in (("vmm", 0o755), ("plain", 0o644)):
        (directory / name).write_text("#!/bin/sh\n")
        (directory / name).chmod(mode)
    return Host(machine, directory)


# what the supervisor is ordered


@pytest.mark.parametrize("seen", ["1", None])
@pytest.mark.parametrize(
    "words", [PMU, (*PMU, "--best-effort"), ("--hold",), (*PMU, "--affinity", "none")]
)
def test_nothing_is_started_where_proc_is_of_another_pid_namespace(
    host: Host, seen: str | None, words: tuple[str, ...]
) -> None:
    """Its supervisor could not follow any thread."""
    own = host.machine.proc / "self"
    own.unlink()
    if seen is not None:
        own.symlink_to(seen)
    ran = host.run(*words, "--", "vmm")
    assert (ran.status, ran.stdout, host.starter.how) == (9, "", ""), ran
    assert ran.stderr.startswith("error: /proc is not that of this pid namespace\n")


def test_the_orders_are_what_was_asked_for(host: Host, tmp_path: Path) -> None:
    orders = host.launched(
        "--name", "web1", *PMU, "--filter", ONLY, "--hold", "--timeout", "30", "--", "vmm", "-x"
    )
    assert orders == LaunchSpec(
        name="web1",
        socket=tmp_path / "run/web1.sock",
        command=("vmm", "-x"),
        pmu=(11, A72),
        filter=EventFilter(Action.DENY, EventSet.of_ranges([(0x11, 1)])),
        affinity=CpuSet.parse("2-3"),
        attributes=frozenset(ATTR_NAMES),
        event_bits=16,
        event_bits_of={10: 10},
        hold=True,
        timeout=30,
    )
    assert LaunchSpec.decode(orders.encode()) == orders
    assert host.starter.executable == f"{host.directory}/vmm"


@pytest.mark.parametrize(
    ("words", "pmu", "cpus"),
    [
        (("--pmu", "*a53"), A53, "0-1"),
        (("--pmu", "cpus/2"), A72, "2-3"),
        ((*PMU, "--affinity", "auto"), A72, "2-3"),
        ((*PMU, "--affinity", "none"), A72, None),
        ((*PMU, "--affinity", "3"), A72, "3"),
        ((*PMU, "--affinity", f"pmu/{A72},^2"), A72, "3"),
        (("--hold",), None, None),
        (("--affinity", "2"), None, "2"),
        (("--hold", "--affinity", "auto"), None, None),
        (("--hold", "--affinity", "0,3"), None, "0,3"),
        (("--hold", *PMU), A72, "2-3"),
    ],
)
def test_a_pmu_comes_with_its_cpus(
    host: Host, words: tuple[str, ...], pmu: str | None, cpus: str | None
) -> None:
    orders = host.launched(*words, "--", "vmm")
    assert (orders.pmu and orders.pmu[1]) == pmu
    assert orders.affinity == (None if cpus is None else CpuSet.parse(cpus))


AT_INIT = replace(PROBED, default=DefaultPmu.AT_VCPU_INIT)
PLACES = {(10, A53): CpuSet.parse("0-1"), (11, A72): CpuSet.parse("2-3")}


@pytest.mark.parametrize(
    ("probed", "words", "places"),
    [
        (AT_INIT, ("--affinity", "2"), PLACES),
        (AT_INIT, ("--hold",), PLACES),
        (replace(AT_INIT, counters={11: 6}), ("--hold",), {(11, A72): PLACES[11, A72]}),
        (AT_INIT, PMU, {}),
        (replace(PROBED, default=DefaultPmu.AT_ATTRIBUTE), ("--hold",), {}),
        (replace(PROBED, default=DefaultPmu.ONE, default_pmu=10), ("--hold",), {}),
        (PROBED, ("--hold",), {}),
    ],
)
def test_which_pmu_kvm_chooses_can_be_seen_where_it_takes_that_of_the_cpu(
    host: Host, probed: KvmCaps, words: tuple[str, ...], places: Mapping[tuple[int, str], CpuSet]
) -> None:
    host.probed = probed
    assert host.launched(*words, "--", "vmm").defaults == places


def test_event_numbers_are_held_to_the_space_of_the_pmu(host: Host) -> None:
    wide = "default deny allow 0x4000"
    spec = host.launched(*PMU, "--filter", wide, "--", "vmm")
    assert [step.attribute for step in steps(spec)] == ["SET_PMU", "FILTER"]
    for effort in ((), ("--best-effort",)):
        ran = host.run(*effort, "--pmu", A53, "--filter", wide, "--", "vmm")
        assert ran.status == 2
        assert "10 bits" in ran.stderr


def test_a_held_vm_takes_a_filter_of_each_pmus_own_width(host: Host) -> None:
    spec = host.launched("--hold", "--", "vmm")
    backend = SupervisedBackend(spec, pid=1, wake=lambda: None)
    assert [backend.event_bits(pmu) for pmu in (10, 11, None)] == [10, 16, None]
    host.probed = replace(PROBED, event_bits_of={})
    spec = host.launched("--hold", "--", "vmm")
    assert SupervisedBackend(spec, pid=1, wake=lambda: None).event_bits(None) == 16


def test_a_filter_alone_is_for_the_only_pmu_of_the_host(
    host: Host, dump: Callable[[str], Path]
) -> None:
    ran = host.run("--filter", ONLY, "--", "vmm")
    assert ran.status == 2
    assert f"{A53}, {A72}" in ran.stderr
    host.machine.root = dump("one-pmu")
    (only,) = json.loads(host.machine.run("pmu", "list", "-J").stdout)["pmus"]
    host.probed = replace(PROBED, counters={only["type"]: 6})
    host.mask = str(CpuSet.of(only["cpus"]))
    assert host.launched("--filter", ONLY, "--", "vmm").pmu == (only["type"], only["name"])


def test_the_lowest_mask_that_still_can_do_it_is_enough(host: Host) -> None:
    host.mask = "1-2"
    assert host.launched(*PMU, "vmm").affinity == CpuSet.parse("2-3")


# the VMM's words and environment


@pytest.mark.parametrize(
    "words",
    [
        ("vmm", "-m", "1", "--help", "-J", "-o", "x"),
        ("vmm", "--", "-x", "--", "--pmu", "y"),
        ("vmm", "", " ", "a b", "*", "\udcff", "--dry-run", "-vv", "--format=json"),
        ("vmm",),
    ],
)
@pytest.mark.parametrize("separator", [(), ("--",)])
def test_the_vmm_gets_its_words_as_they_are(
    host: Host, separator: tuple[str, ...], words: tuple[str, ...]
) -> None:
    orders = host.launched(*PMU, *separator, *words)
    assert host.starter.argv == orders.command == words
    assert host.starter.environ == read_own_environ()


@pytest.mark.parametrize("separator", [(), ("--",)])
def test_the_words_of_the_vmm_are_no_options_of_pmuctl(
    host: Host, separator: tuple[str, ...]
) -> None:
    host.starter.obstacles = [ZeroDivisionError("boom")]
    ran = host.run(*PMU, *separator, "vmm", "-J", "-vv", "--format", "json")
    assert ran.status == 70
    assert ran.stderr.startswith("error: a bug in pmuctl: ZeroDivisionError: boom\n")
    assert "Traceback" not in ran.stderr
    missing = host.run("-J", *PMU, *separator, "none", "--no-json")
    assert json.loads(missing.stderr)["error"]["code"] == "no_command"


def test_the_options_with_values_are_known_before_they_are_parsed() -> None:
    options = [its for its in leaf(("run",)).params if its.param_type_name == "option"]
    taking = [name for its in options if not (its.is_flag or its.count) for name in its.opts]
    assert sorted(taking) == sorted(RUN_VALUES)
    assert select_own_words(["run", "--pmu", "x", "--hold", "vmm", "-J"]) == [
        *("run", "--pmu", "x", "--hold")
    ]
    assert select_own_words(["pmu", "list", "x", "-J", "--", "-v"]) == ["pmu", "list", "x", "-J"]


SPAWNED = """
import io, os, sys
from pmuctl.value import replace
from pathlib import Path
from pmuctl.cli.context import live_context
from pmuctl.cli.main import main
from pmuctl.host.host import Host
from pmuctl.host.kvm.access import Kvm
from pmuctl.host.kvm.access import KvmAccess
from pmuctl.host.sysfs import Sysfs
env = replace(
    live_context(sys.stdout, sys.stderr),
    host=Host(
        environ=os.environ,
        uid=os.geteuid(),
        sysfs=Sysfs(Path(sys.argv[1])),
        kvm=Kvm(access=lambda: KvmAccess.MISSING),
    ),
)
sys.exit(main(["run", *sys.argv[2:]], env))
"""


def become(
    root: Path, *words: str, env: Mapping[bytes, bytes]
) -> "subprocess.CompletedProcess[bytes]":
    """A true exec in a process of its own, on a host without KVM."""
    return subprocess.run(
        [sys.executable, "-P", "-c", SPAWNED, str(root), "--best-effort", *PMU, *words],
        env=env,
        capture_output=True,
        check=False,
    )


def test_the_vmm_gets_the_environment_that_pmuctl_got(machine: Machine, tmp_path: Path) -> None:
    environ = {
        b"PATH": os.environb[b"PATH"],
        b"PYTHONPATH": str(ROOT).encode(),
        b"PMUCTL_RUNTIME_DIR": str(tmp_path).encode(),
        b"LANG": b"C",
        b"ODD": b"\xff\xfe = \n",
        b"EMPTY": b"",
    }
    ran = become(machine.root, "--", "cat", "/proc/self/environ", env=environ)
    assert ran.returncode == 0
    given = b"".join(name + b"=" + value + b"\0" for name, value in environ.items())
    assert ran.stdout == given
    assert b"LC_CTYPE" not in given
    assert b"warning: this host has no KVM" in ran.stderr


def test_the_vmm_takes_the_place_of_pmuctl(machine: Machine, tmp_path: Path) -> None:
    environ = {**os.environb, b"PMUCTL_RUNTIME_DIR": str(tmp_path).encode()}
    environ[b"PYTHONPATH"] = str(ROOT).encode()
    script = "grep SigIgn /proc/self/status; echo $0 $1; kill -KILL $$"
    ran = become(machine.root, "-q", "sh", "-c", script, "a", "--help", env=environ)
    assert (ran.returncode, ran.stderr) == (-signal.SIGKILL, b"")
    ignored, words = ran.stdout.splitlines()
    assert words == b"a --help"
    mask = int(ignored.split()[1], 16)
    assert not mask & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1)
    bare = tmp_path / "bare"
    bare.write_text("true\n")
    bare.chmod(0o755)
    ran = become(machine.root, "-q", str(bare), env=environ)
    assert ran.returncode == 126
    assert b"begins with #!" in ran.stderr


def test_an_environment_that_cannot_be_read_is_that_of_python(tmp_path: Path) -> None:
    assert read_own_environ(str(tmp_path / "none")) == dict(os.environb)
    (tmp_path / "odd").write_bytes(b"A=1\0A=2\0nothing\0=x\0B==\0")
    assert read_own_environ(str(tmp_path / "odd")) == {b"A": b"1", b"B": b"="}


# what is refused


USAGE = [
    (("--hold",), "Missing argument 'VMM"),
    (("--hold", "--"), "Missing argument 'VMM"),
    (("vmm",), "--pmu, --filter, --affinity CPUSET or --hold"),
    (("--best-effort", "vmm"), "nothing to set"),
    (("--affinity", "auto", "vmm"), "nothing to set"),
    (("--affinity", "none", "vmm"), "nothing to set"),
    ((*PMU, "--timeout", "3", "vmm"), "--timeout without --hold"),
    (("--hold", "--timeout", "-1", "vmm"), "must be 0-86400 seconds"),
    (("--hold", "--timeout", "x", "vmm"), "not a valid float"),
    (("--hold", "--affinity", "none", "vmm"), "--affinity none with --hold"),
    ((*PMU, "--name", "a/b", "vmm"), "not a name for a VM"),
    ((*PMU, "--name", "", "vmm"), "not a name for a VM"),
    ((*PMU, "--filter", "", "vmm"), "the rules are missing"),
    ((*PMU, "--filter", "allow x", "vmm"), "a filter starts with its default"),
    ((*PMU, "--filter", f"{ONLY} counters 2", "vmm"), "counters: expected allow or deny"),
    ((*PMU, "--filter", "default deny allow 17", "vmm"), "an event code needs 0x"),
    ((*PMU, "--filter", "default deny allow 0x10000", "vmm"), "past the event space"),
    (("--pmu", "*", "vmm"), "stands for 2 PMUs"),
    (("--filter", ONLY, "vmm"), "a PMU must be named, too"),
    ((*PMU, "--affinity", "x", "vmm"), "not a list of CPUs"),
    ((*PMU, "--affinity", "", "vmm"), "not a list of CPUs"),
    ((*PMU, "--affinity", "1-2", "vmm"), f"CPU 1 is not of {A72}"),
    ((*PMU, "--affinity", "all", "vmm"), f"CPUs 0-1 are not of {A72}"),
    ((*PMU, "--affinity", "2,^2", "vmm"), "no CPU is left"),
    (("--nonsense", "vmm"), "No such option: --nonsense"),
]

REFUSED = [
    (("--pmu", "armv8_nonsense", "vmm"), 4, "no such PMU"),
    (("--pmu", "software", "vmm"), 4, "not a CPU PMU"),
    ((*PMU, "--filter", "default deny allow no_such", "vmm"), 4, "no such event"),
    ((*PMU, "--affinity", "pmu/none", "vmm"), 4, "no such PMU"),
    (("--hold", "--affinity", "3-4", "vmm"), 4, "there is no CPU 4"),
    ((*PMU, "--affinity", "1,7-9", "vmm"), 4, "there is no CPU 7-9"),
    ((*PMU, "none"), 127, "no directory of PATH has it"),
    ((*PMU, ""), 127, "no such command"),
    ((*PMU, "/none/vmm"), 127, "there is no such file"),
    ((*PMU, "plain"), 126, "may not be executed"),
    ((*PMU, "folder"), 126, "is a directory"),
    ((*PMU, "/etc/passwd/vmm"), 126, "Not a directory"),
]


@pytest.mark.parametrize("effort", [(), ("--best-effort",)])
@pytest.mark.parametrize(
    ("words", "status", "told"), [*((words, 2, told) for words, told in USAGE), *REFUSED]
)
def test_what_cannot_be_meant_is_refused_also_with_the_best_effort(
    host: Host, words: tuple[str, ...], status: int, told: str, effort: tuple[str, ...]
) -> None:
    ran = host.run(*effort, *words)
    assert (ran.status, ran.stdout, host.starter.how) == (status, "", "")
    assert told in ran.stderr
    lines = ran.stderr.splitlines()
    assert [line.split(":")[0].strip() for line in lines] == sorted(
        {line.split(":")[0].strip() for line in lines}, key=["error", "why", "now", "fix"].index
    )
    assert lines[-1].startswith(("  fix: ", "  why: ")) or "must be" in lines[0]


def no_kvm(host: Host) -> None:
    host.kvm = KvmAccess.MISSING


def kvm_denied(host: Host) -> None:
    host.kvm = KvmAccess.DENIED


def no_vpmu(host: Host) -> None:
    host.probed = KvmCaps(has_vpmu=False)


def unknown_vpmu(host: Host) -> None:
    host.probed = KvmCaps(has_vpmu=None)


def no_set_pmu(host: Host) -> None:
    host.probed = replace(PROBED, attributes=PROBED.attributes - {KVM_ARM_VCPU_PMU_V3_SET_PMU})


def no_filter(host: Host) -> None:
    host.probed = replace(PROBED, attributes=PROBED.attributes - {KVM_ARM_VCPU_PMU_V3_FILTER})


def pmu_unknown_to_kvm(host: Host) -> None:
    host.probed = replace(PROBED, counters={10: 6})


def kvm_fails(host: Host) -> None:
    host.probed = OSError(errno.EIO, os.strerror(errno.EIO))


def pinned(host: Host) -> None:
    host.mask = "0-1"


def offline(host: Host) -> None:
    (host.machine.root / "sys/devices/system/cpu/online").write_text("0-1\n")


def launch_denied(host: Host) -> None:
    host.starter.obstacles = [DeniedError("ptrace is not permitted", why="Yama's value is 2")]


def launch_unsupported(host: Host) -> None:
    host.starter.obstacles = [UnsupportedError("no user notification")]


def socket_taken(host: Host) -> None:
    host.starter.obstacles = [RefusedError("the name is taken")]


OBSTACLES: list[tuple[Callable[[Host], None], int, str]] = [
    (no_kvm, 7, "this host has no KVM"),
    (kvm_denied, 6, "give USER access: usermod -aG virt USER"),
    (no_vpmu, 7, "guests can have no PMU here"),
    (unknown_vpmu, 7, "guests can have no PMU here"),
    (no_set_pmu, 7, "no SET_PMU"),
    (no_filter, 7, "no FILTER"),
    (pmu_unknown_to_kvm, 4, "KVM knows no PMU"),
    (kvm_fails, 9, "KVM could not be asked"),
    (pinned, 9, "taskset -c 2-3 pmuctl run"),
    (offline, 9, f"no CPU of {A72} is online"),
    (launch_denied, 6, "Yama's value is 2"),
    (launch_unsupported, 7, "no user notification"),
    (socket_taken, 9, "the name is taken"),
]


@pytest.mark.parametrize(("obstacle", "status", "told"), OBSTACLES)
def test_an_obstacle_is_refused_and_a_warning_with_the_best_effort(
    host: Host, obstacle: Callable[[Host], None], status: int, told: str
) -> None:
    obstacle(host)
    ran = host.run(*PMU, "--filter", ONLY, "--", "vmm", "-x")
    assert (ran.status, ran.stdout, host.starter.how) == (status, "", "")
    assert ran.stderr.startswith("error: ")
    assert told in ran.stderr

    obstacle(host)
    ran = host.run("--best-effort", *PMU, "--filter", ONLY, "--", "vmm", "-x")
    assert (ran.status, host.starter.how) == (-1, "execute")
    assert (host.starter.executable, host.starter.argv) == (f"{host.directory}/vmm", ("vmm", "-x"))
    assert ran.stderr.startswith("warning: ")
    assert told in ran.stderr
    assert "now: the VMM is started without its settings" in ran.stderr


def test_a_hold_alone_wants_a_vpmu_but_no_filter(host: Host) -> None:
    no_filter(host)
    assert host.run(*PMU, "vmm").status == 7  # it could not be locked
    assert host.launched("--hold", "vmm").pmu is None
    no_set_pmu(host)
    assert host.run("--hold", "vmm").status == 7


@pytest.mark.parametrize(
    ("number", "status"),
    [(errno.ENOENT, 127), (errno.EACCES, 126), (errno.ENOEXEC, 126), (errno.E2BIG, 126)],
)
def test_an_exec_that_fails_late_has_the_exit_status_of_env(
    host: Host, number: int, status: int
) -> None:
    for words in ((), ("--best-effort",)):
        host.starter.obstacles = [OSError(number, os.strerror(number))]
        ran = host.run(*words, *PMU, "vmm")
        assert (ran.status, host.starter.how) == (status, "")
        assert "vmm: " in ran.stderr


@pytest.mark.parametrize(
    ("options", "settings"), [((), "pmu PMU filter"), (PMU, "filter")], ids=["none", "pmu"]
)
def test_a_hold_on_a_terminal_prints_the_lines_to_type(
    host: Host, options: tuple[str, ...], settings: str
) -> None:
    ran = host.run("--hold", "--name", "web1", *options, "vmm", is_terminal=True)
    assert (ran.status, ran.stdout) == (-1, "")
    assert ran.stderr.splitlines() == [
        "web1 will be held; in another terminal:",
        "  pmuctl vm wait web1 --for open",
        f"  pmuctl vm set web1 {settings} default deny allow EVENTS",
        "  pmuctl vm release web1",
    ]
    assert host.run("--hold", "vmm").stderr == ""
    assert host.run("--hold", "-q", "vmm", is_terminal=True).stderr == ""


def test_cpus_of_two_pmus_without_a_pmu_are_warned_of(host: Host) -> None:
    ran = host.run("--affinity", "1-2", "vmm")
    assert ran.status == -1
    assert ran.stderr.splitlines() == [
        "warning: --affinity 1-2: these CPUs are of 2 PMUs",
        f"  why: KVM gives the VM one of {A53}, {A72}, and its counters stop silently on the CPUs "
        "of the others",
        f"  fix: --pmu {A53}, or --affinity with CPUs of one PMU",
    ]
    for options in (("--affinity", "2-3"), (*PMU, "--affinity", "2-3"), ("--hold",)):
        assert host.run(*options, "vmm").stderr == ""


def test_affinity_none_is_warned_of_once(host: Host) -> None:
    host.mask = "0-1"  # masks are left alone, so none is in the way
    ran = host.run(*PMU, "--affinity", "none", "vmm")
    assert ran.status == -1
    assert ran.stderr.count("warning: ") == 1
    assert "fails to enter the guest" in ran.stderr
    assert host.run(*PMU, "--affinity", "none", "-q", "vmm").stderr == ""


# what is told


LINES = [
    "seccomp(SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER)  "
    "ioctl KVM_CREATE_VCPU alone is notified",
    "execve({bin}/vmm, vmm -m '1 G')",
    "sched_setaffinity(each thread, 2-3)  vCPU threads for good, others until the vCPUs run",
    f"KVM_SET_DEVICE_ATTR(vcpu 0, KVM_ARM_VCPU_PMU_V3_SET_PMU, 11)  {A72}",
]
LOCK = (
    "KVM_SET_DEVICE_ATTR(vcpu 0, KVM_ARM_VCPU_PMU_V3_FILTER, {{0x0000, 0, DENY}})"
    "  no event: the default becomes allow, locks the PMU"
)


@pytest.mark.parametrize(
    ("words", "more"),
    [
        ((), [LOCK]),
        (("--filter", "default allow"), [LOCK]),
        (
            ("--filter", ONLY),
            ["KVM_SET_DEVICE_ATTR(vcpu 0, KVM_ARM_VCPU_PMU_V3_FILTER, {{0x0011, 1, ALLOW}})"],
        ),
        (
            ("--hold", "--timeout", "9"),
            [LOCK, "hold  until pmu-release at {run}/web1.sock, ends it after 9 s"],
        ),
    ],
)
def test_a_dry_run_tells_the_steps_and_starts_nothing(
    host: Host, words: tuple[str, ...], more: list[str]
) -> None:
    command = ("--name", "web1", *PMU, *words, "--", "vmm", "-m", "1 G")
    places = {"bin": host.directory, "run": host.machine.runtime}
    steps = [line.format(**places) for line in (*LINES, *more)]
    ran = host.run("--dry-run", *command)
    assert (ran.status, ran.stderr, host.starter.how) == (0, "", "")
    assert ran.lines == [f"web1: {step}" for step in steps]
    assert json.loads(host.run("--dry-run", "-J", *command).stdout)["steps"] == steps
    assert host.run("--dry-run", "-q", *command).stdout == ""
    assert not host.machine.runtime.exists()

    ran = host.run("-v", *command)
    assert (ran.status, ran.stdout) == (-1, "")
    assert ran.stderr.splitlines() == [f"web1: {step}" for step in steps]


def test_the_example_of_the_manual_page_is_what_is_printed(host: Host) -> None:
    ((words, out),) = examples(ROOT / "man/pmuctl-run.1")
    (host.directory / "lkvm").symlink_to("vmm")
    ran = host.run(*shlex.split(words)[1:])
    told = [line.replace(str(host.directory), "/usr/bin") for line in ran.lines]
    assert (ran.status, told) == (0, out)


def test_a_dry_run_is_refused_a_name_that_is_taken(host: Host) -> None:
    host.machine.start(FakeVm("web1"))
    ran = host.run("--dry-run", *PMU, "--name", "web1", "vmm")
    path = host.machine.runtime / "web1.sock"
    assert (ran.status, ran.stdout) == (9, "")
    assert ran.stderr == f"error: {path} is taken\n  why: a server listens there\n"
    assert host.run("--dry-run", *PMU, "--name", "web2", "vmm").status == 0
    assert not (host.machine.runtime / "web2.sock").exists()


@pytest.mark.parametrize("options", [(), ("--best-effort",), ("--dry-run",)])
def test_a_client_of_a_service_is_refused_with_what_to_do(
    host: Host, options: tuple[str, ...]
) -> None:
    ran = host.run(*PMU, *options, "--", "/usr/bin/virsh", "start", "web1")
    assert host.run("--", "/usr/bin/virsh", "start", "web1") == ran
    assert (ran.status, ran.stdout, host.starter.how) == (2, "", "")
    assert ran.stderr.splitlines() == [
        "error: /usr/bin/virsh is not a VMM: libvirt's daemon starts the VM",
        "  why: the settings reach only VMs of the command itself and of its descendants",
        "  fix: give QEMU's own command line; "
        "virsh domxml-to-native qemu-argv --domain VM prints it",
    ]


def test_a_dry_run_is_refused_what_the_start_is_refused(host: Host) -> None:
    assert host.run("--dry-run", *PMU, "none").status == 127
    no_vpmu(host)
    assert host.run("--dry-run", *PMU, "vmm").status == 7
    ran = host.run("--dry-run", "--best-effort", "--name", "web1", *PMU, "vmm")
    assert (ran.status, ran.lines) == (0, [f"web1: execve({host.directory}/vmm, vmm)"])
    assert "warning: guests can have no PMU here" in ran.stderr


def test_a_hold_alone_sets_nothing_beforehand(host: Host) -> None:
    ran = host.run("--dry-run", "--name", "web1", "--hold", "vmm")
    assert [line.split("(")[0].split("  ")[0] for line in ran.lines] == [
        *("web1: seccomp", "web1: execve", "web1: hold"),
    ]


# parts


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("/usr/bin/qemu-system-aarch64", "qemu-system-aarch64-7"),
        ("lkvm", "lkvm-7"),
        ("./.hidden vmm", "hidden_vmm-7"),
        ("é\udcff", "vm-7"),
        ("x" * 100, "x" * 62 + "-7"),
    ],
)
def test_a_vm_without_a_name_is_called_after_its_vmm(command: str, name: str) -> None:
    assert default_name(command, 7) == name
    assert VM_NAME.fullmatch(name)


def test_the_network_of_kvmtool_is_not_the_name_of_its_vm(host: Host) -> None:
    (host.directory / "lkvm").symlink_to("vmm")
    ran = host.run("--dry-run", "--hold", "--", "lkvm", "run", "-n", "mode=none")
    assert (ran.status, {line.partition(":")[0] for line in ran.lines}) == (
        *(0, {f"lkvm-{os.getpid()}"}),
    )


def test_path_is_searched_as_execvp_does(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    its, other = str(host.directory), tmp_path / "other"
    other.mkdir()
    (other / "plain").symlink_to(host.directory / "vmm")
    found: dict[tuple[str, str], str] = {
        ("vmm", its): f"{its}/vmm",
        ("vmm", f"/none:/etc/passwd:{its}"): f"{its}/vmm",
        ("plain", f"{its}:{other}"): f"{other}/plain",
        ("folder/../vmm", "/none"): "folder/../vmm",
        ("vmm", ""): "./vmm",
        ("vmm", "/none:"): "./vmm",
    }
    monkeypatch.chdir(host.directory)
    for (command, path), program in found.items():
        assert find_program(command, {"PATH": path}) == program, (command, path)
    assert find_program("sh", {}).endswith("bin/sh")
    for command, path, status in (
        ("plain", f"{its}:/none", 126),
        ("none", f"{its}:/none", 127),
        ("x" * 300, its, 126),
    ):
        with pytest.raises(PmuctlError) as raised:
            find_program(command, {"PATH": path})
        assert raised.value.status == status
    (tmp_path / "script").write_text("#!/none/interpreter\n")
    told = make_exec_error("script", str(tmp_path / "script"), errno.ENOENT)
    assert (told.status, told.why is not None and "interpreter" in told.why) == (127, True)
    assert not isinstance(told, NotFoundError)
