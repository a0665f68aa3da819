# SPDX-License-Identifier: Apache-2.0
"""TAB completion: the scripts are in step with the commands, and live shells offer what is right.

Live shells see the /sys of a captured machine, in a mount namespace of their own.
"""

import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from pmuctl.cli.help_page import COLUMNS
from pmuctl.cli.tab.command_tree import Node, read_tree
from pmuctl.cli.tab.scripts import Shell, write_script
from pmuctl.control.protocol.messages import VM_NAME
from pmuctl.control.server.server import Server
from pmuctl.host.pmus import scan_pmus
from pmuctl.host.sysfs import Sysfs
from pmuctl.model.pmu_selector import match_pmus, select_pmu
from tests.fakes.vmm import FakeVm, fake_vmm
from tests.shells import COMPLETIONS, LiveShell
from tests.skips import only_root, skip

ROOT = Path(__file__).parents[1]
PMUCTL = [sys.executable, "-P", "-c", "from pmuctl.cli.entry import run; run()"]
A53, A72 = "armv8_cortex_a53", "armv8_cortex_a72"
ONLY = f"pmuctl vm set web1 pmu {A72} filter default deny allow"
CPUS = ["2", "2-3", "3", "auto", "none", f"pmu/{A72}"]
EVENTS = ["cpu_cycles", "stall", "stall_backend", "stall_frontend"]

FREE = {"SEC", "LIST", "FILTER", "NAME"}
"""Values of which nothing can be offered."""

HOSTILE = (
    "a b",
    "q'x",
    'q"x',
    "$(touch pwned)",
    "`touch pwned`",
    "a;touch pwned",
    "nl\ntouch pwned",
    "\x1b[31mred",
    "-o",
    "--help",
    "a\\b",
    "*",
    "~",
    "a:b",
    "[a]",
    "é",
    "x" * 65,
)


# the scripts


@pytest.mark.parametrize("shell", Shell)
def test_the_scripts_are_in_step_with_the_commands(shell: Shell) -> None:
    kept = (COMPLETIONS / shell.file).read_text(encoding="utf-8")
    wanted = write_script(shell, read_tree())
    assert kept == wanted, f"run: pmuctl completion {shell} >completions/{shell.file}"


@pytest.mark.parametrize("shell", Shell)
def test_the_shell_can_parse_its_script(shell: Shell) -> None:
    if shutil.which(shell) is None:
        skip(f"{shell} is missing: its script is not tested", runs=f"with the package {shell}")
    command = [shell, "-n", str(COMPLETIONS / shell.file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def leaves() -> list[Node]:
    return [node for node in read_tree().walk() if not node.nodes]


def test_every_value_has_a_completer() -> None:
    values = [(node.path, value) for node in leaves() for value in node.operands]
    values += [(node.path, its.value) for node in leaves() for its in node.options if its.value]
    bare = [(path, its.metavar) for path, its in values if not (its.kind or its.words)]
    assert [(path, metavar) for path, metavar in bare if metavar not in FREE] == []


def test_every_table_offers_its_columns() -> None:
    tables = {" ".join(node.path): node for node in leaves() if "-o" in str(node.options)}
    assert set(tables) == set(COLUMNS)
    for path, columns in COLUMNS.items():
        name = columns.partition(".")[2]
        source = (ROOT / f"pmuctl/cli/{path.split()[0]}.py").read_text(encoding="utf-8")
        assert re.search(rf"\b{name}\b", source), path
        assert tables[path].columns


def test_the_wheel_installs_the_scripts_and_prints_them(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "wheel")
    [share] = (tmp_path / "wheel").glob("*.data/data/share")
    places = {
        Shell.BASH: "bash-completion/completions/pmuctl",
        Shell.ZSH: "zsh/site-functions/_pmuctl",
        Shell.FISH: "fish/vendor_completions.d/pmuctl.fish",
    }
    for shell, place in places.items():
        script = (COMPLETIONS / shell.file).read_text(encoding="utf-8")
        assert (share / place).read_text(encoding="utf-8") == script
        code = "import sys; sys.path.insert(0, sys.argv.pop(1)); "
        command = [*PMUCTL[:-1], code + PMUCTL[-1], str(tmp_path / "wheel"), "completion", shell]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert (done.stdout, done.stderr) == (script, "")


# live shells


@dataclass
class Host:
    """A captured machine that shells see as theirs, with sockets in a runtime directory."""

    root: Path
    wrapper: list[str]
    runtime: Path
    home: Path
    environ: dict[str, str]
    stack: ExitStack

    def listen(self, name: str) -> socket.socket:
        """A control socket that nobody answers at."""
        listener = self.stack.enter_context(socket.socket(socket.AF_UNIX))
        where = os.open(self.runtime, os.O_PATH)
        try:
            listener.bind(f"/proc/self/fd/{where}/{name}.sock")
        finally:
            os.close(where)
        listener.listen()
        return listener

    def complete(self, *words: str) -> list[str]:
        """What `pmuctl __complete` answers on this machine."""
        done = subprocess.run(
            [*self.wrapper, *PMUCTL, "__complete", *words],
            env=os.environ | self.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
        assert done.stderr == ""
        return done.stdout.splitlines()


@pytest.fixture
def host(tmp_path: Path, dump: Callable[[str], Path]) -> Iterator[Host]:
    """Two PMUs, the VMs web1, web2 and build, and a file and a directory in the home."""
    root = dump("two-pmus-6.12")
    wrapper = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    wrapper += ["sh", "-c", 'mount --bind "$0" /sys && exec "$@"', str(root / "sys")]
    tried = subprocess.run([*wrapper, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        skip(
            f"no mount namespace, so no PMU to complete: {tried.stderr.strip()}",
            runs="as root, or where users may unshare(1) --mount",
        )
    for name in ("run", "home/adir", "bin"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "home/afile").touch()
    program = tmp_path / "bin/pmuctl"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -P -c "{PMUCTL[-1]}" "$@"\n')
    program.chmod(0o755)
    environ = {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PMUCTL_RUNTIME_DIR": str(tmp_path / "run"),
    }
    with ExitStack() as stack:
        its = Host(root, wrapper, tmp_path / "run", tmp_path / "home", environ, stack)
        for name in ("web1", "web2", "build"):
            its.listen(name)
        yield its


@pytest.fixture(params=list(Shell))
def shell(request: pytest.FixtureRequest, host: Host) -> LiveShell:
    """Each of the shells, on that host."""
    return start(host, request.param)


def start(host: Host, name: str) -> LiveShell:
    if shutil.which(name) is None:
        skip(f"{name} is missing: its TAB is not tested", runs=f"with the package {name}")
    shell = LiveShell(name, host.home, host.environ, host.wrapper)
    host.stack.callback(shell.close)
    return shell


def test_tab_completes_the_line(shell: LiveShell) -> None:
    typed = {
        "pmuctl v": "pmuctl vm ",
        "pmuctl vm rel": "pmuctl vm release ",
        "pmuctl vm release b": "pmuctl vm release build ",
        f"pmuctl pmu show {A53}": f"pmuctl pmu show {A53} ",
        "pmuctl pmu show ar": "pmuctl pmu show armv8_cortex_a",
        "pmuctl vm list --format=jsonl": "pmuctl vm list --format=jsonl ",
        "pmuctl vm list --dead": "pmuctl vm list --deadline",
        "pmuctl vm set web1 fil": "pmuctl vm set web1 filter ",
        "pmuctl pmu list --sysroot ad": "pmuctl pmu list --sysroot adir/",
        "pmuctl vm list --socket=af": "pmuctl vm list --socket=afile",
        "pmuctl pmu show 'armv8_cortex_a5": f"pmuctl pmu show '{A53}'",
    }
    done = {text: shell.type(text).rstrip(" =") for text in typed}
    assert done == {text: line.rstrip() for text, line in typed.items()}
    middle = "pmuctl vm release b --quiet"
    assert (
        shell.type(middle, "\x1b[D" * 8 + "\t").split() == middle.replace("b ", "build ").split()
    )


def test_what_is_offered(shell: LiveShell) -> None:
    offered: dict[str, list[str]] = {
        "pmuctl ": sorted(node.path[0] for node in read_tree().nodes),
        "pmuctl vm ": ["list", "release", "set", "show", "vcpus", "wait"],
        "pmuctl pmu show ": [A53, A72],
        "pmuctl pmu show -o NAME ": [A53, A72],
        "pmuctl vm show ": ["build", "web1", "web2"],
        "pmuctl vm list web1 ": ["build", "web2"],
        "pmuctl vm list -- w": ["web1", "web2"],
        "pmuctl vm wait --for ": ["aligned", "open", "running", "sealed", "stopped"],
        "pmuctl vm list --color=a": ["--color=always", "--color=auto"],
        "pmuctl host capabilities IRQ S": ["SET_NR_COUNTERS", "SET_PMU"],
        "pmuctl completion ": ["bash", "fish", "zsh"],
        "pmuctl run --pmu ": [A53, A72],
        "pmuctl run --hold --affinity ": [
            *("0", "0-1", "1", "2", "2-3", "3", "auto", "none", f"pmu/{A53}", f"pmu/{A72}"),
        ],
        "pmuctl run --affinity=2": ["--affinity=2", "--affinity=2-3"],
        "pmuctl monitor --event vcpu-": ["vcpu-left", "vcpu-returned"],
        "pmuctl monitor w": ["web1", "web2"],
        "pmuctl doctor --symptom n": ["no-cpuset-controller", "no-pmu-interrupt", "no-vpmu"],
        "pmuctl affinity ": ["align", "check", "set"],
        "pmuctl affinity set web1 2": ["2", "2-3"],
        "pmuctl affinity set web1 2,p": [f"2,pmu/{A53}", f"2,pmu/{A72}"],
        "pmuctl pmu cpus p": [f"pmu/{A53}", f"pmu/{A72}"],
        "pmuctl pmu cpus 0": ["0", "0-1"],
        f"pmuctl vm set web1 pmu {A72} affinity ": CPUS,
        "pmuctl vm set web1 ": ["affinity", "counters", "filter", "pmu"],
        "pmuctl vm set web1 pmu ": [A53, A72],
        f"pmuctl vm set web1 pmu {A53} ": ["affinity", "counters", "filter"],
        "pmuctl vm set web1 filter ": ["default"],
        "pmuctl vm set web1 filter default ": ["allow", "deny"],
        f"{ONLY} cpu_cycles ": ["allow", "deny"],
        f"{ONLY} ": EVENTS,
        f"{ONLY} cpu_cycles,stall_": ["cpu_cycles,stall_backend", "cpu_cycles,stall_frontend"],
        "pmuctl pmu list -o NAME,C": ["NAME,CAPS", "NAME,CORE", "NAME,COUNTERS", "NAME,CPUS"],
        "pmuctl pmu list -o +P": ["+PATH"],
        "pmuctl pmu list -o na": ["NAME"],
        "pmuctl pmu list --output=NAME,ON": ["--output=NAME,ONLINE"],
        "pmuctl pmu list -oON": ["-oONLINE"],
    }
    assert {text: shell.offers(text) for text in offered} == offered


def give_cores(host: Host) -> None:
    """Make CPUs 0-1 Cortex-A53, and 2-3 of a core model that has no name."""
    for cpu, midr in enumerate((0x410FD034, 0x410FD034, 0x480FD420, 0x480FD420)):
        path = f"sys/devices/system/cpu/cpu{cpu}/regs/identification/midr_el1"
        (host.root / path).write_text(f"0x{midr:016x}\n")


def test_what_core_takes_is_offered(host: Host, shell: LiveShell) -> None:
    give_cores(host)
    offered: dict[str, list[str]] = {
        "pmuctl pmu show co": ["core/"],
        "pmuctl pmu show core/": ["core/0x48:0xd42", "core/a53", "core/cortex-a53"],
        "pmuctl pmu list core/c": ["core/cortex-a53"],
        "pmuctl pmu list core/0x48:0": ["core/0x48:0xd42"],
        "pmuctl run --pmu core/a": ["core/a53"],
        "pmuctl run --pmu=core/a": ["--pmu=core/a53"],
        "pmuctl vm set web1 pmu core/a": ["core/a53"],
        f"pmuctl pmu show --sysroot {host.root} core/a": ["core/a53"],
        "pmuctl pmu show --sysroot /none core/": [],
    }
    assert {text: shell.offers(text) for text in offered} == offered
    assert shell.type("pmuctl pmu show core/C").rstrip() == "pmuctl pmu show core/cortex-a53"


def make_tree(host: Host) -> Path:
    """Make the tree of another host, with the same PMUs but CPUs 0-1 and 4-5, and two VMs."""
    tree = host.home / "tree"
    shutil.copytree(host.root / "sys", tree / "sys", symlinks=True)
    (tree / f"sys/bus/event_source/devices/{A72}/cpus").write_text("4-5\n")
    for pid, name in ((6000, "far1"), (6001, "far2"), (6002, "$(touch pwned)")):
        argv = ["qemu-system-aarch64", "-name", name, "-uuid", str(uuid.UUID(int=pid))]
        fake_vmm(tree / "proc", pid, argv)
    return tree


def test_with_sysroot_the_vms_and_cpus_of_that_host_are_offered(
    host: Host, shell: LiveShell
) -> None:
    given = f"--sysroot {make_tree(host)}"
    uuids = [f"uuid/{uuid.UUID(int=pid)}" for pid in (6000, 6001, 6002)]
    offered: dict[str, list[str]] = {
        f"pmuctl vm show {given} ": ["far1", "far2"],
        f"pmuctl vm list {given} far1 f": ["far2"],
        f"pmuctl vm show {given} pid/": ["pid/6000", "pid/6001", "pid/6002"],
        f"pmuctl vm show {given} u": uuids,
        f"pmuctl pmu cpus {given} p": [f"pmu/{A53}", f"pmu/{A72}"],
        f"pmuctl pmu cpus {given} 4": ["4", "4-5"],
        f"pmuctl pmu show {given} cp": ["cpus/"],
        f"pmuctl pmu show {given} cpus/4": ["cpus/4", "cpus/4-5"],
        "pmuctl vm show --sysroot /none ": [],
    }
    assert {text: shell.offers(text) for text in offered} == offered


def test_an_option_is_offered_once(shell: LiveShell) -> None:
    first = set(shell.offers("pmuctl pmu list -"))
    assert {"-J", "--json", "-o", "--output", "-v", "--sysroot"} <= first
    assert not {"--socket", "--dry-run", "--version"} & first
    rest = set(shell.offers("pmuctl pmu list -J --output NAME --color=auto -v -"))
    assert first - rest == {"-J", "--json", "-o", "--output", "--color"}
    assert "-n" not in shell.offers("pmuctl pmu list -nq -")


def test_a_vmm_is_completed_as_if_it_stood_alone(host: Host, shell: LiveShell) -> None:
    vmm = Path(host.environ["PATH"].partition(":")[0]) / "vmm-of-this-test"
    vmm.write_text("#!/bin/sh\n")
    vmm.chmod(0o755)
    if shell.name == "bash":
        shell.run(
            "[ ! -e /usr/share/bash-completion/bash_completion ] || "
            "source /usr/share/bash-completion/bash_completion"
        )
    if shell.name == "zsh":
        shell.run("rehash")
    typed = {
        "pmuctl run -- vmm-of-th": "pmuctl run -- vmm-of-this-test ",
        "pmuctl run --hold vmm-of-th": "pmuctl run --hold vmm-of-this-test ",
        "pmuctl run --pmu x -- vmm-of-this-test --dry-r": None,
        "pmuctl run vmm-of-this-test --dry-r": None,
        "pmuctl run -- vmm-of-this-test -x af": "pmuctl run -- vmm-of-this-test -x afile ",
        "pmuctl run --dry-r": "pmuctl run --dry-run ",
    }
    done = {text: shell.type(text) for text in typed}
    assert done == {text: line or text for text, line in typed.items()}
    if shell.name != "bash" or Path("/usr/share/bash-completion/bash_completion").exists():
        nested = shell.type("pmuctl run --affinity=none -- pmuctl pmu sh")
        assert nested == "pmuctl run --affinity=none -- pmuctl pmu show "


def test_files_are_offered_only_where_a_path_is_wanted(shell: LiveShell) -> None:
    for text in (
        "pmuctl a",
        "pmuctl nonsense a",
        "pmuctl pmu show a",
        "pmuctl vm show web1 a",
        "pmuctl vm list --format a",
        "pmuctl vm list --deadline a",
        "pmuctl vm list -o a",
        "pmuctl vm set web1 counters a",
        "pmuctl vm set web1 filter default deny allow a",
        "pmuctl vm show x:a",
    ):
        assert not {"afile", "adir", "adir/", "armv8"} & set(shell.offers(text)) - {"armv8"}, text
        assert "file" not in shell.type(text), text
    assert {"adir", "adir/"} & set(shell.offers("pmuctl host snapshot ad"))
    assert shell.offers("pmuctl vm list --socket afi") == ["afile"]
    if shell.name == "bash":
        assert shell.type("pmuctl pmu list >af") == "pmuctl pmu list >afile "


def test_hostile_names_are_neither_offered_nor_carried_out(host: Host, shell: LiveShell) -> None:
    tree = host.home / "tree"
    devices = tree / "sys/bus/event_source/devices"
    for name in (*HOSTILE, "armv8_good", "armv8_odd", "armv8_fifo"):
        (devices / name / "events").mkdir(parents=True)
        (devices / name / "cpus").write_text("0-3\n")
        host.listen(name)
    (devices / "armv8_odd/cpus").write_text("\x1b]0;$(touch pwned)\x07\n")
    (devices / "armv8_fifo/cpus").unlink()
    os.mkfifo(devices / "armv8_fifo/cpus")
    (host.runtime / "plain.sock").touch()
    (host.runtime / "link.sock").symlink_to("web1.sock")

    pmus = shell.offers(f"pmuctl pmu show --sysroot {tree} ")
    assert pmus == ["armv8_good", "armv8_odd"]
    vms = shell.offers("pmuctl vm show ")
    assert vms == ["armv8_fifo", "armv8_good", "armv8_odd", "build", "web1", "web2"]
    assert all(VM_NAME.fullmatch(name) for name in vms)
    # zsh's TAB may itself carry out what is typed (expand-or-complete): here it only completes
    for text in ("$(touch pwned)", "`touch pwned`", "'$(touch pwned)", "a$(touch pwned),"):
        shell.type(f"pmuctl vm set {text}")
        shell.type(f"{ONLY} {text}")
        shell.type(f"pmuctl vm set {text} filter default deny allow cpu")
        shell.type(f"pmuctl pmu show --sysroot={text} a")
    assert list(host.home.rglob("pwned")) == []


def test_where_nothing_is_nothing_is_said(tmp_path: Path, host: Host, shell: LiveShell) -> None:
    host.environ |= {"PATH": os.environ["PATH"].replace(str(ROOT), ""), "PYTHONPATH": ""}
    host.environ["PMUCTL_RUNTIME_DIR"] = str(tmp_path / "none")
    bare = start(host, shell.name)
    if bare.name == "bash":
        bare.run("set -u; shopt -s failglob")
    for text in ("pmuctl vm show ", "pmuctl pmu show --sysroot /none ", "pmuctl vm set -- "):
        assert bare.offers(text) == []
    text = "pmuctl vm set web1 filter default deny allow "
    bare.type(text)
    screen = bare.run("true")
    assert not re.search("error|not found|no match|No such|unbound|Traceback", screen), screen


@pytest.mark.parametrize("name", [Shell.ZSH, Shell.FISH])
def test_candidates_are_described(host: Host, name: str) -> None:
    shell = start(host, name)
    for text, what in {
        "pmuctl pmu show ": "CPUs 0-1",
        "pmuctl ": "List and show the CPU PMUs of this host",
        "pmuctl vm set web1 ": "the number of event counters",
        "pmuctl pmu list --": "Print one JSON object",
        "pmuctl pmu list -o ": "its perf type",
        f"{ONLY} ": "event=0x0011",
    }.items():
        shell.shows(text, what)


def test_a_tab_starts_no_process(tmp_path: Path, host: Host) -> None:
    if shutil.which("strace") is None:
        skip("strace is missing: nobody counts processes", runs="with the package strace")
    log = tmp_path / "strace"
    trace = ["strace", "-f", "-qq", "-e", "trace=clone,clone3,fork,vfork,execve", "-o", str(log)]
    host.wrapper = [*trace, *host.wrapper]
    shell = start(host, Shell.BASH)

    def started(text: str, keys: str) -> int:
        before = len(log.read_text().splitlines())
        shell.type(text, keys)
        shell.run(":")
        return len(log.read_text().splitlines()) - before

    usual = started("pmuctl pmu show ", "")
    assert started(f"{ONLY} ", "\t") > usual  # a count that cannot rise would be no count
    for text in ("pmuctl ", "pmuctl pmu show ", "pmuctl vm set ", "pmuctl vm set web1 ", "-o "):
        text = text.replace("-o", "pmuctl vm list -o")
        assert started(text, "\t\t") == usual, text


def test_a_tab_takes_less_than_5_ms(host: Host) -> None:
    shell = start(host, Shell.BASH)
    for words in ("vm set ", "pmu show ", "vm set web1 counters 4 ", "pmu list --color=auto -"):
        array = " ".join(repr(word) for word in re.split("(=)| ", f"pmuctl {words}") if word)
        last = "" if words.endswith("-") else "''"
        shell.run(
            f"COMP_LINE='pmuctl {words}' COMP_POINT=${{#COMP_LINE}} COMP_WORDS=({array} {last})"
        )
        shell.run("COMP_CWORD=$((${#COMP_WORDS[@]} - 1))")
        loop = "for ((n = 0; n < 5; n++)); do _pmuctl; done"
        took = []
        for _ in range(5):
            shell.run(f"t=$EPOCHREALTIME; {loop}; t=$(( ${{EPOCHREALTIME/./}} - ${{t/./}} ))")
            took.append(int(re.findall(r"<(\d+)>", shell.run('echo "<$t>"'))[-1]) / 5000)
        assert "<0>" not in shell.run('echo "<${#COMPREPLY[@]}>"')
        assert min(took) < 5, words


# pmuctl __complete


def test_events_are_those_of_the_pmu_that_is_set(host: Host) -> None:
    for pmu in (A53, "*a53", "cpus/0-1"):
        lines = host.complete("events", "--socket=", "web1", "pmu", pmu, "filter", "default")
        assert [line.split("\t")[0] for line in lines] == EVENTS, pmu
    assert lines[0] == "cpu_cycles\tevent=0x0011"
    assert host.complete("events", "--socket=", "web1", "pmu", "none", "filter") == []


def test_events_are_those_of_the_pmu_that_the_vm_has(
    host: Host, dump: Callable[..., Path]
) -> None:
    events = host.root / f"sys/bus/event_source/devices/{A72}/events"
    (events / "only_here").write_text("event=0x00ff\n")
    vm = FakeVm("asked")
    host.stack.enter_context(
        Server(vm, host.runtime / "asked.sock", sysfs=Sysfs(host.root), threads=vm.threads)
    )

    def names(*words: str) -> list[str]:
        return [line.split("\t")[0] for line in host.complete("events", *words)]

    assert "only_here" in names("--socket=", "asked", "filter", "default", "deny", "allow")
    set_pmu(host, "asked", A53)
    assert names("--socket=", "asked", "filter", "default", "deny", "allow") == EVENTS
    assert names(f"--socket={host.runtime}/asked.sock", "x", "filter", "default") == EVENTS
    assert "only_here" in names("--socket=", "asked", "pmu", A72, "filter", "default")


def test_cpus_are_those_of_the_pmu_that_the_vm_has(host: Host) -> None:
    vm = FakeVm("asked")
    host.stack.enter_context(
        Server(vm, host.runtime / "asked.sock", sysfs=Sysfs(host.root), threads=vm.threads)
    )
    every = [f"pmu/{A53}\tCPUs 0-1", f"0-1\t{A53}", f"0\t{A53}", f"1\t{A53}"]
    assert host.complete("cpus", "--socket=", "asked")[:4] == every
    assert len(host.complete("cpus", "--socket=")) == 8
    set_pmu(host, "asked", A53)
    assert host.complete("cpus", "--socket=", "asked") == every
    assert host.complete("cpus", "--socket=", "asked", "pmu", A72, "affinity")[:2] == [
        "auto\tthe CPUs of its PMU",
        "none\tdo not change",
    ]


def set_pmu(host: Host, vm: str, pmu: str) -> None:
    """Through its control socket, with the type that this PMU has in the dump."""
    requests: list[dict[str, object]] = [
        {"execute": "qmp_capabilities"},
        {"execute": "pmu-apply", "arguments": {"type": 10, "name": pmu}, "id": 1},
    ]
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(20)
        peer.connect(str(host.runtime / f"{vm}.sock"))
        peer.sendall("\n".join(map(json.dumps, requests)).encode() + b"\n")
        answer = b""
        while b'"id"' not in answer:
            answer += peer.recv(1 << 16)
        assert b'"return"' in answer.splitlines()[-1], answer


@pytest.mark.parametrize("said", [None, b"x" * 70000, b"[" * 70000 + b"\n", b'{"id":1}\n', b""])
def test_a_vm_that_does_not_answer_costs_no_more_than_100_ms(
    host: Host, said: bytes | None
) -> None:
    words = ("events", "--socket=", "silent", "filter", "default", "deny", "allow")
    alone = min(timed(host, *words)[0] for _ in range(3))
    listener = host.listen("silent")
    waited = []
    for _ in range(3):
        its = timed(host, *words) if said is None else answered(host, listener, said, words)
        waited.append(its[0])
        assert [line.split("\t")[0] for line in its[1]] == EVENTS
    # the least of both: a busy machine only ever adds
    assert min(waited) < alone + 0.1 + 0.4, "0.4 s are for a busy machine"


def timed(host: Host, *words: str) -> tuple[float, list[str]]:
    start = time.monotonic()
    lines = host.complete(*words)
    return time.monotonic() - start, lines


def answered(
    host: Host, listener: socket.socket, said: bytes, words: tuple[str, ...]
) -> tuple[float, list[str]]:
    """The same with a peer that says this, and closes."""

    def answer() -> None:
        peer, _ = listener.accept()
        with peer:
            try:
                peer.sendall(said)
            except OSError:
                pass

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        return timed(host, *words)
    finally:
        thread.join()


def test_a_core_model_of_two_pmus_is_offered_too(host: Host) -> None:
    (line,) = host.complete("pmus", "--sysroot=", "core")
    core, what = line.split("\t")
    assert what == "PMUs"
    assert {pmu.name for pmu in match_pmus(core, scan_pmus(Sysfs(host.root)))} == {A53, A72}


def test_cores_are_those_that_select_pmus(host: Host) -> None:
    give_cores(host)
    assert host.complete("pmus", "--sysroot=", "core") == [
        f"core/cortex-a53\t{A53}",
        f"core/a53\t{A53}",
        f"core/0x48:0xd42\t{A72}",
    ]
    taken = [
        line.split("\t")[0] for line in host.complete("pmus", f"--sysroot={host.root}", "core")
    ]
    pmus = scan_pmus(Sysfs(host.root))
    assert {select_pmu(text, pmus).name for text in taken} == {A53, A72}


@pytest.mark.parametrize("words", [(), ("events",), ("nonsense", "x"), ("events", "x"), ("cpus",)])
def test_errors_are_silent(host: Host, words: tuple[str, ...]) -> None:
    assert host.complete(*words) == []


@only_root("only root looks in other users' directories")
def test_nothing_is_sent_to_another_users_process_in_a_users_directory(
    host: Host, tmp_path: Path
) -> None:
    runtime = tmp_path / "users/4242/pmuctl"
    runtime.mkdir(parents=True)
    wrapper = [*host.wrapper[:2], "sh", "-c", 'mount --bind "$0" /run/user && exec "$@"']
    host.wrapper[:0] = [*wrapper, str(tmp_path / "users")]
    del host.environ["PMUCTL_RUNTIME_DIR"]
    host.runtime = runtime
    listener = host.listen("web7")
    for path in (runtime, runtime / "web7.sock"):
        os.chown(path, 4242, 4242)
    assert len(host.complete("events", "--socket=", "web7", "filter", "default")) > 0
    listener.settimeout(0)
    client, _ = listener.accept()
    with client:
        assert client.recv(1) == b""


def test_it_imports_next_to_nothing(host: Host) -> None:
    words = ["__complete", "events", "--socket=", "web1", "pmu", A72, "filter", "default"]
    traced = [*host.wrapper, sys.executable, "-X", "importtime", *PMUCTL[1:], *words]
    done = subprocess.run(traced, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == len(EVENTS)
    found = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "pmuctl.cli.tab.candidates" in found
    assert not {"typer", "typing", "re", "enum", "json", "dataclasses", "pathlib"} & found


def cpu_seconds() -> float:
    """What processes that have ended took of a CPU: others that run beside them do not count."""
    its = resource.getrusage(resource.RUSAGE_CHILDREN)
    return its.ru_utime + its.ru_stime


def test_it_is_about_as_fast_as_python_itself() -> None:
    words = ["__complete", "events", "--socket=", "web1", "filter", "default", "deny", "allow"]
    commands = {"bare": [sys.executable, "-P", "-c", "pass"], "complete": [*PMUCTL, *words]}
    took: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(15):
        for name, command in commands.items():
            before = cpu_seconds()
            subprocess.run(command, check=True, capture_output=True)
            took[name].append(cpu_seconds() - before)
    assert min(took["complete"]) < 1.8 * min(took["bare"])
