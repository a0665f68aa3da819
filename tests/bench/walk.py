# SPDX-License-Identifier: Apache-2.0
"""How often what a command does climbs back up through the house.

Each walk is one command, whose calls are followed (sys.setprofile). Rooms are the folders of
`pmuctl/`. A room is entered by a call from another one; a climb is a call from a room into one
above the room that was entered last. What repeats (the next VM, the next file) counts once.
`model/` and `uapi/` are values and rules, at home in every room: to make one is no way down, and
to come back from it no climb.

    python3 … walk.py NAME FD

is how the supervisor of the last walk is started in place of pmuctl's own.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = f"{ROOT}/pmuctl/"
CLIMBS_MAX = 3

ROOMS = ("cli", "render", "manage", "launch", "conformance", "control", "host")
"""From the top, without the values: see tests/test_layers.py."""

Step = tuple[str, str, str]
"""The room entered before, the room that is entered, and the call that enters it."""


class Walk:
    """The steps from room to room of what is called while it is followed."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._last: str | None = None

    def __enter__(self) -> "Walk":
        sys.setprofile(self._follow)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _follow(self, frame: FrameType, event: str, _: object) -> None:
        if event != "call" or (room := _find_room(frame)) is None:
            return
        caller = frame.f_back
        while caller is not None and _find_room(caller) is None:
            caller = caller.f_back
        if caller is None or _find_room(caller) == room:
            return
        call = f"{caller.f_code.co_name}() calls {frame.f_code.co_name}()"
        if self._last not in (None, room):
            self.steps.append((str(self._last), room, call))
        self._last = room


def _find_room(frame: FrameType) -> str | None:
    code = frame.f_code
    if not code.co_filename.startswith(PACKAGE) or code.co_name == "<module>":
        return None
    room = code.co_filename[len(PACKAGE) :].partition("/")[0]
    return room if room in ROOMS else None


def drop_repeated(steps: Sequence[Step]) -> list[Step]:
    """Return each step from one room to another once, with the call that was the first."""
    first: dict[tuple[str, str], str] = {}
    for last, room, call in steps:
        first.setdefault((last, room), call)
    return [(last, room, call) for (last, room), call in first.items()]


def is_climb(step: Step) -> bool:
    """Return whether a step leads up."""
    last, room, _ = step
    return ROOMS.index(room) < ROOMS.index(last)


def walk_commands() -> Iterator[tuple[str, list[Step]]]:
    """Yield the walks of commands on a host with two PMUs and three VMs."""
    import io
    import os
    import tempfile
    from contextlib import ExitStack
    from importlib import import_module
    from pkgutil import walk_packages

    import pmuctl
    from pmuctl.cli.context import Context
    from pmuctl.cli.main import main as run_command
    from pmuctl.control.server.server import Server
    from pmuctl.host.host import Host
    from pmuctl.host.kvm.access import Kvm, KvmAccess
    from pmuctl.host.procfs import Procfs
    from pmuctl.host.sysfs import Sysfs
    from pmuctl.model.cpuset import CpuSet
    from pmuctl.model.kvm_caps import ATTR_NAMES, KvmCaps
    from pmuctl.render.streams import guarded
    from tests.conftest import DUMPS, unpack
    from tests.fakes.vmm import FakeThreads, FakeVm, fake_proc

    # what is done once, when a module is imported, is no part of the way
    for module in walk_packages(pmuctl.__path__, "pmuctl."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    caps = KvmCaps(
        has_vpmu=True, attributes=frozenset(ATTR_NAMES), counters={10: 6, 11: 6}, event_bits=16
    )
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        unpack(DUMPS / "two-pmus-6.12.txt", root / "host")
        vms = [FakeVm(name) for name in ("web1", "web2", "db1")]
        proc = fake_proc(root / "proc", os.getpid(), tids=[1001, 1002])
        (proc / "self").symlink_to(str(os.getpid()))  # what run starts is followed by its id there
        host = Host(
            environ={"PMUCTL_RUNTIME_DIR": str(root / "run"), "PATH": os.environ["PATH"]},
            uid=os.geteuid(),
            sysfs=Sysfs(root / "host"),
            procs=Procfs(proc),
            threads=FakeThreads(vms[0].threads.masks | {os.getpid(): CpuSet.parse("0-3")}),
            kvm=Kvm(access=lambda: KvmAccess.USABLE, probe=lambda _: caps),
        )
        (root / "run").mkdir()
        for vm in vms:
            path = root / "run" / f"{vm.name}.sock"
            stack.enter_context(Server(vm, path, sysfs=host.sysfs, threads=vm.threads))
        settings = ("filter", "default", "deny", "allow", "cpu_cycles")
        for words in (
            ("pmu", "list"),
            ("vm", "list"),
            ("vm", "show", "web1"),
            ("vm", "set", "web1", "pmu", "*a72", *settings),
            (
                "run",
                "--dry-run",
                "--pmu",
                "*a72",
                "--filter",
                " ".join(settings[1:]),
                "--",
                "true",
            ),
        ):
            stderr = io.StringIO()
            context = Context(stdout=guarded(io.StringIO()), stderr=stderr, host=host)
            with Walk() as walk:
                status = run_command(words, context)
            assert status == 0, stderr.getvalue()
            yield " ".join(words[:3] if words[1] != "--dry-run" else words[:2]), walk.steps


def walk_supervisor() -> Iterator[tuple[str, list[Step]]]:
    """Yield the walk of a supervisor, from its start to the end of its VMM, on this machine."""
    import subprocess
    import tempfile

    from tests.bench.native import can_be_native

    if why := can_be_native():
        print(f"no walk of a supervisor: {why}", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory(prefix="pmuctl-walk-") as folder:
        supervisor = Path(folder) / "supervisor.py"
        supervisor.symlink_to(__file__)
        vmm = [sys.executable, "-P", str(ROOT / "tests/launch/vmm.py"), "--vcpus", "2", "--run"]
        orders = {"name": "walk", "socket": f"{folder}/walk.sock", "command": vmm}
        code = (
            "import os, sys, json; sys.path.insert(0, sys.argv[1])\n"
            "from pathlib import Path\n"
            "from pmuctl.launch.launcher import launch\n"
            "from pmuctl.launch.spec import LaunchSpec\n"
            "spec = json.loads(sys.argv[2])\n"
            "command = tuple(spec['command'])\n"
            "spec = LaunchSpec(name='walk', socket=Path(spec['socket']), command=command)\n"
            "launch(spec, command[0], command, os.environb, supervisor=Path(sys.argv[3]))\n"
        )
        words = [sys.executable, "-P", "-c", code, str(ROOT), json.dumps(orders), str(supervisor)]
        subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
        steps = supervisor.with_name("steps.json")
        _wait_for(steps)
        yield "the supervisor of run", [(a, b, c) for a, b, c in json.loads(steps.read_text())]


def _wait_for(path: Path, seconds: float = 10.0) -> None:
    import time

    until = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < until, f"no {path} after {seconds:g} s"
        time.sleep(0.05)


def be_supervisor(fd: int) -> None:
    """Be the supervisor, as pmuctl's own is, and leave its steps beside the file that was run."""
    sys.path.insert(0, str(ROOT))
    from pmuctl.launch.__main__ import main as supervise

    walk = Walk()
    try:
        with walk:
            supervise(fd)
    finally:
        steps = Path(sys.argv[0]).with_name("steps.json")
        new = steps.with_suffix(".new")
        new.write_text(json.dumps(drop_repeated(walk.steps)))
        new.rename(steps)


def main(argv: Sequence[str]) -> int:
    """Print a table of the walks, with --climbs each climb; return 1 if one has too many."""
    missed = 0
    for walks in (walk_commands(), walk_supervisor()):
        for name, steps in walks:
            steps = drop_repeated(steps)
            climbs = [step for step in steps if is_climb(step)]
            verdict = ": missed" if len(climbs) > CLIMBS_MAX else ""
            missed += len(climbs) > CLIMBS_MAX
            counts = f"{len(steps):2} steps  {len(climbs)} climbs"
            print(f"{name:24}  {counts}  goal {CLIMBS_MAX}{verdict}")
            for last, room, call in climbs if "--climbs" in argv else ():
                print(f"    {last} -> {room}: {call}")
    return 1 if missed else 0


if __name__ == "__main__":
    if Path(sys.argv[0]).is_symlink():
        be_supervisor(int(sys.argv[2]))
    else:
        sys.exit(main(sys.argv[1:]))
