# SPDX-License-Identifier: Apache-2.0
"""What stands in the way of `pmuctl run`: named, with its exit status, and nothing is left."""

import json
import re
import signal
from collections.abc import Iterator, Sequence

import pytest

from pmuctl.uapi.kvm_arm64 import KVM_ARM_VCPU_PMU_V3_FILTER, KVM_ARM_VCPU_PMU_V3_SET_PMU
from tests.lab.conftest import GetLab
from tests.lab.hosts import KERNELS
from tests.lab.machine import Lab, boot
from tests.lab.phases import (
    A53,
    A72,
    CPUS,
    CYCLES,
    CYCLES_ONLY,
    USERS_RUNTIME_DIR,
    check_console,
    check_left,
    check_refused,
    crosvm,
    give_runtime_dir,
    processes_of,
    run,
    supervised,
)
from tests.lab.vmms import lines, put_bare_metal, qemu, runs, standin
from tests.lab.vms import pmuctl
from tests.lab.waiting import until
from tests.lab.workloads.bare import End, parse_reports

pytestmark = pytest.mark.one_kernel

CACHE = "/run/pmuctl/kvm-probe.json"
USER = "admin"
USERS_ENV = {"XDG_RUNTIME_DIR": USERS_RUNTIME_DIR}


@pytest.mark.parametrize(
    ("pmu", "status", "words"),
    [
        ("armv8_cortex_a73", 4, ("no such PMU", A72)),
        ("software", 4, ("not a CPU PMU",)),
    ],
)
def test_a_pmu_that_is_none(
    lab_newest: Lab, pmu: str, status: int, words: tuple[str, ...]
) -> None:
    """Before anything is started."""
    check_refused(lab_newest, run(lab_newest, "--pmu", pmu), status, *words)


@pytest.fixture
def without(lab_newest: Lab, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A lab that is believed to have a kernel without an attribute."""
    pmuctl(lab_newest, "host", "info", check=True)
    kept = lab_newest.read_file(CACHE)
    its = json.loads(kept)
    its["probed"]["attributes"].remove(request.param)
    lab_newest.write_file(CACHE, json.dumps(its).encode())
    yield lab_newest
    lab_newest.write_file(CACHE, kept)


@pytest.mark.parametrize(
    ("without", "name"),
    [(KVM_ARM_VCPU_PMU_V3_SET_PMU, "SET_PMU"), (KVM_ARM_VCPU_PMU_V3_FILTER, "FILTER")],
    indirect=["without"],
)
def test_a_kernel_without_the_attribute(without: Lab, name: str) -> None:
    """Refused; or started without settings, at best effort."""
    ran = run(without, "--pmu", A72)
    check_refused(without, ran, 7, f"this kernel's KVM has no {name}", "ENXIO", "Linux 5.18")
    ran = run(without, "--pmu", A72, "--best-effort", vmm=["echo", "started"])
    assert (ran.status, ran.stdout) == (0, "started\n")
    assert ran.stderr.startswith(f"warning: this kernel's KVM has no {name}")
    assert "now: the VMM is started without its settings (--best-effort)" in ran.stderr
    check_left(without)


def test_a_host_without_a_pmu(get_lab: GetLab) -> None:
    """There is no VM to hold for one."""
    lab = get_lab("newest", "none")
    check_refused(lab, run(lab, "--hold"), 7, "guests can have no PMU here", "KVM_CAP_ARM_PMU_V3")


@pytest.mark.parametrize(
    ("command", "status", "why"),
    [
        (["no-such-vmm"], 127, "no directory of PATH has it"),
        (["/no/such/vmm"], 127, "there is no such file"),
        (["/etc/passwd"], 126, "/etc/passwd may not be executed by this user"),
        (["/usr/bin"], 126, "/usr/bin is a directory"),
    ],
)
def test_a_vmm_that_cannot_be_executed(
    lab_newest: Lab, command: list[str], status: int, why: str
) -> None:
    """As env(1) tells it."""
    check_refused(lab_newest, run(lab_newest, "--pmu", A72, vmm=command), status, why)


def test_a_vmm_that_makes_no_vm(lab_newest: Lab) -> None:
    """It has its own exit status, and what reached no VM is told by it, by vm show and doctor."""
    ran = run(lab_newest, "--pmu", A72, vmm=["sh", "-c", "echo out; echo err >&2; exit 42"])
    assert (ran.status, ran.stdout, ran.stderr[:4]) == (42, "out\n", "err\n")
    until(lambda: not processes_of(lab_newest, "obstacle"), "its supervisor leaves")
    assert "no KVM VM was made: it ended" in pmuctl(lab_newest, "vm", "show", "obstacle").stderr
    found = pmuctl(lab_newest, "doctor", "-n", "--format", "tsv", "-o", "id,subject,result")
    assert "vm.made\tobstacle\tWARN\n" in found.stdout
    check_left(lab_newest, record=True)


@pytest.mark.parametrize("qemu_lab", ["newest"], indirect=True)
def test_qemu_without_kvm_is_told_while_it_goes_on(qemu_lab: Lab) -> None:
    command = ["qemu-system-aarch64", "-M", "none", "-accel", "tcg", "-display", "none"]
    with supervised(qemu_lab, [*command, "-monitor", "none"]) as its:
        its.hear("warning: phase: no KVM VM was made so far\n")
        told = its.job.output()
        assert "why: it has gone on for 30 s without one" in told
        assert "fix: give QEMU -accel kvm" in told
        shown = json.loads(its.pmuctl("show", "-J").stdout)["vm"]
        assert shown["state"] == "starting"
        assert shown["problem"].startswith("no KVM VM was made so far: ")


def without_pmu(lab: Lab) -> list[str]:
    """QEMU that makes VMs without one."""
    command = qemu("7.2", *put_bare_metal(lab))
    command[command.index("host")] = "host,pmu=off"
    return command


@pytest.mark.parametrize("qemu_lab", ["newest"], indirect=True)
def test_a_vm_without_a_pmu(qemu_lab: Lab) -> None:
    """Its VMM is ended, and the record tells why; at best effort it runs."""
    ran = run(qemu_lab, "--pmu", A72, vmm=without_pmu(qemu_lab))
    assert (ran.status, ran.stdout) == (125, "")
    assert "makes vCPUs without a vPMU" in ran.stderr
    assert "  now: the VM was not started\n  fix: " in ran.stderr
    assert "-cpu host,pmu=on" in ran.stderr
    shown = pmuctl(qemu_lab, "vm", "show", "obstacle")
    assert shown.status == 4
    assert ": its VMM makes vCPUs without a vPMU" in shown.stderr
    check_left(qemu_lab, record=True)

    ran = run(qemu_lab, "--pmu", A72, "--best-effort", vmm=without_pmu(qemu_lab))
    assert ran.status == 0, ran
    assert ran.stderr.startswith("warning: obstacle: its VMM makes vCPUs without a vPMU\n")
    assert "now: the VM starts without it" in ran.stderr
    assert {report["pmuver"] for report in parse_reports(ran.stdout)} == {0}
    check_left(qemu_lab)


@pytest.mark.parametrize("qemu_lab", ["newest"], indirect=True)
def test_qemu_in_its_sandbox(qemu_lab: Lab) -> None:
    """It has a seccomp filter of its own, which is in nobody's way."""
    sandbox = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
    command = qemu("7.2", *put_bare_metal(qemu_lab), "-sandbox", sandbox)
    ran = run(qemu_lab, "--pmu", A72, "--filter", CYCLES, vmm=command)
    assert ran.status == 0, ran
    check_console(ran.stdout)
    check_left(qemu_lab)


@pytest.mark.parametrize("qemu_lab", ["newest"], indirect=True)
def test_qemu_as_a_daemon(qemu_lab: Lab) -> None:
    """The first process ends as without pmuctl, and nobody keeps its output open."""
    files = {what: f"/tmp/daemon.{what}" for what in ("console", "pid")}
    command = qemu("7.2", *put_bare_metal(qemu_lab, End.REPEAT), "-pidfile", files["pid"])
    command[command.index("-serial") + 1] = f"file:{files['console']}"
    vmm = ["sh", "-c", '("$@"; echo status $?) 2>&1 | cat', "sh"]
    whole = [*vmm, "pmuctl", "run", "--name", "obstacle", "--pmu", A72, "--filter", CYCLES, "--"]
    ran = qemu_lab.run([*whole, *command, "-daemonize"])
    assert ran.stdout == "status 0\n"

    def console() -> str:
        return qemu_lab.read_file(files["console"]).decode()

    until(lambda: len(parse_reports(console())) > 2, "the guest tells its lines")
    check_console(console())
    pid = int(qemu_lab.read_file(files["pid"]))
    shown = json.loads(pmuctl(qemu_lab, "vm", "show", "obstacle", "-J").stdout)
    assert shown["vm"]["pid"] == pid
    qemu_lab.kill(pid, signal.SIGTERM)
    check_left(qemu_lab)


def test_a_vmm_that_insists_on_another_pmu(lab_newest: Lab) -> None:
    """KVM refuses it, and it says so in its own words and with its own status."""
    other = lab_newest.read_file(f"/sys/bus/event_source/devices/{A53}/type").decode().strip()
    ran = run(lab_newest, "--pmu", A72, vmm=standin("kvmtool", "--pmu-type", other))
    assert ran.status == 1
    assert ran.stderr == "PMU KVM_SET_DEVICE_ATTR: Device or resource busy\n"
    assert runs(ran.stdout) == []
    check_left(lab_newest)


def test_a_second_gate(lab_newest: Lab) -> None:
    """One pmuctl run inside another: a process has one listener, and the outer one has no VM."""
    inner = ["pmuctl", "run", "--pmu", A72, "--", "touch", "/tmp/obstacle.started"]
    ran = run(lab_newest, "--pmu", A72, vmm=inner)
    check_refused(lab_newest, ran, 9, "EBUSY", "pmuctl run inside pmuctl run", record=True)


# of one call only: to stop at each makes a start take a minute here
STRACE = ["strace", "-f", "--seccomp-bpf", "-e", "trace=execve", "-o", "/dev/null"]


def test_a_launcher_that_is_traced(lab_newest: Lab) -> None:
    """Nobody else can trace it: who does is named, before anything is started."""
    ran = run(lab_newest, "--pmu", A72, before=STRACE)
    check_refused(lab_newest, ran, 6, "the VMM may not be traced", "traces it already", "strace")


def test_a_vmm_that_is_traced(lab_newest: Lab) -> None:
    """The same, found when it makes its VM: it is ended."""
    vmm = [*STRACE, *crosvm()]
    ran = run(lab_newest, "--pmu", A72, vmm=vmm)
    assert ran.status == -9, ran
    assert "traces it already (EPERM)\n  now: the VMM was ended\n  fix: start it" in ran.stderr
    assert runs(ran.stdout) == []
    check_left(lab_newest, record=True)


def test_a_name_in_use(lab_newest: Lab) -> None:
    """The first one's VM is not touched."""
    with supervised(lab_newest, crosvm("--wait-at", "start"), name="obstacle") as first:
        first.started()
        ran = run(lab_newest, "--pmu", A72)
        assert ran.status == 9, ran
        assert "obstacle" in ran.stderr
        assert "\n  why: " in ran.stderr
        assert first.leftovers() == {"process", "socket", "record"}
        first.go_on()
        assert first.end() == 0
        first.check_settings()
        first.supervisor_leaves()


def test_a_filter_without_effect(lab_newest: Lab) -> None:
    """The guest has all events, on that PMU."""
    ran = run(lab_newest, "--pmu", A72, "--filter", "default allow", vmm=crosvm())
    assert ran.status == 0, ran
    reports = runs(ran.stdout)
    assert [int(report["pmceid0"], 16) & CYCLES_ONLY for report in reports] == [CYCLES_ONLY] * 2
    assert all(report["cycles"] > 0 for report in reports)
    check_left(lab_newest)


def set_yama(lab: Lab, scope: str) -> None:
    """Set kernel.yama.ptrace_scope."""
    lab.run(["sysctl", "-w", f"kernel.yama.ptrace_scope={scope}"], check=True)


@pytest.fixture
def yama(request: pytest.FixtureRequest, get_lab: GetLab) -> Iterator[Lab]:
    """A lab with this kernel and this kernel.yama.ptrace_scope."""
    kernel, scope = request.param
    lab = get_lab(kernel, "two")
    give_runtime_dir(lab)
    set_yama(lab, scope)
    yield lab
    set_yama(lab, "0")


def yamas(scopes: str, kernels: Sequence[str] = KERNELS) -> pytest.MarkDecorator:
    """Run a test on these kernels, with each of these scopes."""
    pairs = [(kernel, scope) for kernel in kernels for scope in scopes]
    return pytest.mark.parametrize("yama", pairs, indirect=True, ids="-".join)


@yamas("01")
def test_a_user_and_its_daemon(yama: Lab) -> None:
    """Without privileges: all works, and NoNewPrivs stays."""
    command = crosvm("--rounds", "2", "--wait-at", "round")
    with supervised(yama, command, name="obstacle", user=USER) as its:
        its.started()
        its.hear('"event": "waits"')
        listed = pmuctl(yama, "vm", "list", "-J", user=USER, env=USERS_ENV)
        (vm,) = [vm for vm in json.loads(listed.stdout)["vms"] if vm["name"] == "obstacle"]
        assert (vm["pid"], vm["pmu"]) == (its.pid, A72)
        its.go_on()
        assert its.end() == 0
        its.check_settings(reports=4)
        status = [line for line in lines(its.job.output()) if line.get("event") == "status"]
        assert status[0]["NoNewPrivs"] == 1
        check_left(yama)  # in the block, which kills whoever has not left at its end
    with supervised(yama, crosvm("--fork"), name="obstacle", user=USER) as its:
        assert its.end() == 0
        until(lambda: '"event": "status"' in its.job.output(), "the daemon ends")
        # with Yama 1 it is let go once its vCPUs were seen to run, and these did not for long
        its.check_settings(is_let_go=False)
        check_left(yama)


@yamas("01", ["newest"])
def test_a_vmm_that_makes_itself_untraceable(yama: Lab) -> None:
    """A user's is ended when it makes its VM; root's is no obstacle."""
    why = "PR_SET_DUMPABLE 0"
    ran = run(yama, "--pmu", A72, vmm=crosvm("--nodump"), user=USER, told=why)
    assert ran.status in (-9, 125), ran
    assert why in ran.stderr
    assert re.search("\n  now: the VM(M was ended| was not started)\n  fix: ", ran.stderr)
    assert runs(ran.stdout) == []
    check_left(yama, record=True)
    ran = run(yama, "--pmu", A72, vmm=crosvm("--nodump"))
    assert (ran.status, len(runs(ran.stdout))) == (0, 2)
    check_left(yama)


@yamas("2", ["newest"])
def test_only_administrators_may_trace(yama: Lab) -> None:
    """A user is refused, or gets its VM without settings; root is not."""
    ran = run(yama, "--pmu", A72, user=USER)
    check_refused(yama, ran, 6, "the VMM may not be traced", "kernel.yama.ptrace_scope is 2")
    ran = run(yama, "--pmu", A72, "--best-effort", vmm=["echo", "started"], user=USER)
    assert (ran.status, ran.stdout) == (0, "started\n")
    assert "warning: the VMM may not be traced" in ran.stderr
    ran = run(yama, "--pmu", A72, vmm=crosvm())
    assert (ran.status, [report["cpu"] in CPUS for report in runs(ran.stdout)]) == (0, [True] * 2)
    check_left(yama)


def test_nobody_may_trace() -> None:
    """Not root either: in a lab of its own, for that lasts until the next boot."""
    with boot("newest", "two") as lab:
        set_yama(lab, "3")
        ran = run(lab, "--pmu", A72)
        check_refused(lab, ran, 6, "Yama forbids all tracing until the next boot", "is 3")
