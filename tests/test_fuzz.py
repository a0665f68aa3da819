# SPDX-License-Identifier: Apache-2.0
"""Over 100,000 odd inputs a run: each gives a value or a clear error, and nothing else.

Every input is made from a number, which a failure names: FUZZ_SEED=N tests/run tests/test_fuzz.py
begins with that one. FUZZ_TIMES=20 makes as many times more, from the same beginning.
"""

import io
import json
import os
import random
import string
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from pmuctl.cli.context import Context
from pmuctl.cli.main import main
from pmuctl.cli.settings_parser import parse_settings
from pmuctl.control.protocol.messages import COMMANDS, EVENTS
from pmuctl.control.protocol.qmp_codec import MESSAGE_MAX, Decoder, WireError, encode, error_from
from pmuctl.control.server.server import Server
from pmuctl.errors import ExitStatus, NotFoundError, PmuctlError, UsageError
from pmuctl.host.cpus import scan_present
from pmuctl.host.cpuset_cgroup import Cpusets
from pmuctl.host.host import Host
from pmuctl.host.pmus import parse_event, scan_other, scan_pmus
from pmuctl.host.procfs import Procfs
from pmuctl.host.runtime_dirs import PATH_REPLIES
from pmuctl.host.snapshot_files import scan_captured, write_capture
from pmuctl.host.sysfs import Sysfs, parse_number
from pmuctl.manage.inventory.session import Session
from pmuctl.manage.resolve import SettingsRequest
from pmuctl.manage.snapshot import scan_snapshot
from pmuctl.model.cpuset import CPU_LIMIT, CpuSet
from pmuctl.model.event import format_events, parse_events
from pmuctl.model.pmu import OtherPmu, Pmu
from pmuctl.model.pmu_selector import match_pmus, select_pmu
from pmuctl.model.vmm.identity import identify
from pmuctl.render.streams import guarded
from pmuctl.render.text import printable
from pmuctl.schema import SchemaError
from tests.fakes.vmm import FakeVm, fake_proc, fake_vmm

FIRST = int(os.environ.get("FUZZ_SEED", "1"))
TIMES = int(os.environ.get("FUZZ_TIMES", "1"))

ODD = (
    "",
    " ",
    "\0",
    "\n",
    "\t",
    "\x1b[2J",
    "\x1b]0;owned\x07",
    "\x9b31m",
    "\u202e",
    "\udcff",
    "٣",
    "漢字",
    "🦀",
    "[red]",
    "%s",
    "{}",
    "{0.__class__}",
    "../../..",
    "~",
    "-",
    "--",
    "a=b",
    "0x",
    "0x" + "f" * 40,
    "9" * 400,
    "1e9",
    "nan",
    "-1",
    "65536",
    "a" * 5000,
)
"""Pieces that have broken one program or another."""


def odd_text(rng: random.Random, words: Sequence[str], separators: str = ",-") -> str:
    """A text made of words that mean something and of pieces that do not, then bent."""
    pieces = [
        rng.choice(ODD) if rng.random() < 0.15 else rng.choice(words)
        for _ in range(rng.randrange(6))
    ]
    text = rng.choice(separators).join(pieces)
    while text and rng.random() < 0.3:
        at = rng.randrange(len(text) + 1)
        new = rng.choice((chr(rng.randrange(256)), rng.choice(string.printable), "", ",", "-"))
        text = text[:at] + new + text[at + rng.randrange(2) :]
    return text


@contextmanager
def told(seed: int, what: object) -> Iterator[None]:
    """Whatever goes wrong inside names the input."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"FUZZ_SEED={seed}, the input is {what!r:.2000}")
        raise


def seeds(count: int) -> Iterator[tuple[int, random.Random]]:
    for seed in range(FIRST, FIRST + count * TIMES):
        yield seed, random.Random(seed)


def check_error(error: PmuctlError) -> None:
    """What a user is told is text that can be printed, and says something."""
    assert error.message
    for text in (error.message, error.why, error.now, error.fix):
        assert text is None or printable(text).isprintable()


NUMBERS = "0 1 3 7 0-3 4-7 0-255 65535 65536 3-1 007 12345".split()


def test_cpu_lists() -> None:
    for seed, rng in seeds(20_000):
        text = odd_text(rng, NUMBERS)
        if rng.random() < 0.005:  # costs as much as a hundred others
            text += ",0-65535"
        with told(seed, text):
            try:
                cpus = CpuSet.parse(text)
            except ValueError:
                continue
            assert CpuSet.parse(str(cpus)) == cpus
            assert all(0 <= cpu < CPU_LIMIT for cpu in cpus)


EVENTS_OF_PMU = {"cpu_cycles": 0x11, "inst_retired": 0x8, "l1d_cache": 0x4, "odd[name": 0x4000}
EVENT_WORDS = [
    *EVENTS_OF_PMU,
    *"cpu_* * [!a]* [ ? 0x11 0X8 0x10-0x1f 17 0x0-0xffff 0xffff 0x10000 0x3ff 0x400".split(),
    *"@cache cpu_cycle _".split(),
]


def test_event_lists() -> None:
    for seed, rng in seeds(20_000):
        text = odd_text(rng, EVENT_WORDS)
        bits = rng.choice((10, 16))
        with told(seed, text):
            try:
                events = parse_events(text, EVENTS_OF_PMU, bits=bits)
            except (UsageError, NotFoundError) as error:
                check_error(error)
                continue
            if events.mask >> (1 << bits) == 0 and events:
                again = format_events(events, EVENTS_OF_PMU)
                assert parse_events(again, EVENTS_OF_PMU, bits=bits) == events


SETTING_WORDS = [
    *"pmu counters filter default allow deny none affinity 4 31 32 armv8_cortex_a72".split(),
    *"cpu_cycles,0x8 basic -J".split(),
]


def test_words_of_vm_set() -> None:
    for seed, rng in seeds(20_000):
        words = [
            rng.choice(SETTING_WORDS) if rng.random() < 0.9 else odd_text(rng, SETTING_WORDS)
            for _ in range(rng.randrange(9))
        ]
        with told(seed, words):
            try:
                request = parse_settings(words)
            except UsageError as error:
                check_error(error)
                continue
            assert request != SettingsRequest()


PMUS = [
    Pmu(
        name=name,
        path=f"/sys/{name}",
        type=number,
        cpus=cpus,
        online=cpus,
        cores=(),
        events=EVENTS_OF_PMU,
        formats={},
        caps={},
    )
    for name, number, cpus in (
        ("armv8_cortex_a53", 10, CpuSet.parse("0-1")),
        ("armv8_cortex_a72", 11, CpuSet.parse("2-3")),
        ("odd[name", None, None),
    )
]
PMU_WORDS = [
    *(pmu.name for pmu in PMUS),
    *"armv8_* *a72 core/ core/cortex-a72 core/x cpus/0-1 cpus/ cpus/2 cpus/9 software".split(),
    *"[ ? / armv8_cortex".split(),
]


def test_names_of_pmus() -> None:
    others = [OtherPmu(name="software", type=1, cpumask=None)]
    for seed, rng in seeds(15_000):
        text = odd_text(rng, PMU_WORDS, separators=",/ *")
        with told(seed, text):
            try:
                match_pmus(text, PMUS)
                assert select_pmu(text, PMUS, others) in PMUS
            except (UsageError, NotFoundError) as error:
                check_error(error)


ATTRIBUTE_WORDS = [
    *NUMBERS,
    *"event=0x0011 config=0x11 long=1 event = 0x11 10 2147483648 event=-1 -0 00".split(),
    *("0x00000000414fd0b1", "config:0-15", "1\n"),
]


def test_texts_of_attributes() -> None:
    for seed, rng in seeds(15_000):
        text = odd_text(rng, ATTRIBUTE_WORDS, separators=",-= \n")
        with told(seed, text):
            number, event = parse_number(text), parse_event(text)
            assert number is None or -(1 << 64) < number < 1 << 64
            assert event is None or 0 <= event < 1 << 16


DEVICE = "sys/devices/platform/pmu-0/armv8"
LINK = "sys/bus/event_source/devices/armv8"
CPU = "sys/devices/system/cpu"
FILES = (
    *(f"{DEVICE}/{name}" for name in ("type", "cpus", "cpumask")),
    *(f"{DEVICE}/{folder}/a" for folder in ("events", "format", "caps")),
    *(f"{CPU}/{name}" for name in ("online", "present", "cpu0/online", "cpu0/cpu_capacity")),
    *(f"{CPU}/cpu{cpu}/regs/identification/midr_el1" for cpu in (0, 3)),
    "proc/sys/kernel/osrelease",
)


def grow_tree(root: Path, rng: random.Random) -> None:
    """A tree of a machine with one PMU, in which some files are bent, missing or of another kind.

    The directories are there already, and all files are those of the tree before.
    """
    for file in FILES:
        if rng.random() < 0.4:
            continue
        path = root / file
        with suppress(OSError):
            path.unlink()
        kind = rng.random()
        if kind < 0.05:
            path.symlink_to(rng.choice(("/", "..", "a", "/etc/passwd", "x" * 200, f"/{DEVICE}")))
        elif kind < 0.08:
            os.mkfifo(path)
        elif kind < 0.2:
            path.write_bytes(rng.randbytes(rng.randrange(40)))
        elif kind < 0.95:
            text = odd_text(rng, ATTRIBUTE_WORDS, separators=",-= \n")
            path.write_bytes(text.encode(errors="surrogateescape"))


def test_trees(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for file in FILES:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / LINK).parent.mkdir(parents=True)
    (root / LINK).symlink_to(f"/{DEVICE}")
    sysfs = Sysfs(root)
    for seed, rng in seeds(1_200):
        with told(seed, "a tree"):
            grow_tree(root, rng)
            for pmu in scan_pmus(sysfs):
                assert pmu.type is None or pmu.type >= 0
                assert all(0 <= code < 1 << 16 for code in pmu.events.values())
                assert all(its.isprintable() for its in (*pmu.formats.values(), *pmu.caps))
            scan_other(sysfs)
            scan_present(sysfs)
            for its in scan_captured(sysfs):
                assert not its.path.startswith("/")
            if seed % 50 == 0:
                with suppress(OSError):
                    write_capture(scan_captured(sysfs), tmp_path / f"out{seed}")


GROUPS = [
    *"0 1 3 : :: cpuset cpuset,memory name=systemd / /vm /vm/t /.. /../x /. // (deleted)".split(),
    "0::/vm\n",
    "0::/vm/t\n",
    "3:cpuset:/vm\n",
]
MOUNTS = [
    *"30 23 0:26 / /vm /sys/fs/cgroup rw shared:9 - cgroup2 cgroup cpuset noprefix ext4".split(),
    *(r"\040", r"\134", r"\777", "rw,cpuset"),
    "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
    "31 23 0:27 / /sys/fs/cgroup rw shared:9 - cgroup none rw,cpuset\n",
    "31 23 0:27 /vm /sys/fs/cgroup rw - cgroup2 none rw\n",
]
CPUSET_FILES = [
    f"{group}{name}"
    for group in ("", "vm/", "vm/t/")
    for name in (
        *("cpuset.cpus", "cpuset.cpus.effective", "cpuset.effective_cpus"),
        *("cpus", "effective_cpus"),
    )
]


def test_cpusets(tmp_path: Path) -> None:
    cgroup, group, mounts = (
        tmp_path / name
        for name in ("sys/fs/cgroup", "proc/1/task/2/cgroup", "proc/self/mountinfo")
    )
    for path in (cgroup / "vm/t/x", group, mounts):
        path.parent.mkdir(parents=True)
    found = 0
    for seed, rng in seeds(1_500):
        with told(seed, "a cgroup tree"):
            for file, words in ((group, GROUPS), (mounts, MOUNTS)):
                text = rng.choice(words[-3:]) if rng.random() < 0.7 else ""
                text += odd_text(rng, words, separators=" :\n/")
                file.write_bytes(text.encode(errors="surrogateescape"))
            for name in rng.sample(CPUSET_FILES, 4):
                grow_file(cgroup / name, rng)
            if its := Cpusets(Sysfs(tmp_path)).read(1, 2):
                found += 1
                assert its.version in (1, 2)
                assert its.path.startswith("/")
                assert printable(its.path).isprintable()
    assert found > 100


def grow_file(path: Path, rng: random.Random) -> None:
    """A list of CPUs, or what is none."""
    with suppress(OSError):
        path.unlink()
    kind = rng.random()
    if kind < 0.05:
        path.symlink_to(rng.choice(("/", "..", "/etc/passwd", "cpus", "/sys/fs/cgroup/vm")))
    elif kind < 0.1:
        os.mkfifo(path)
    elif kind < 0.8:
        path.write_text(rng.choice(("0-3\n", "0-1\n", "2\n", "\n")))
    else:
        path.write_bytes(odd_text(rng, NUMBERS).encode(errors="surrogateescape"))


PROC_WORDS = [
    *"0 1 7 5120 5121 -1 S T Z (x) ) ( 0-3 2-3 0,2 29 0x14 0xae80 running".split(),
    *"Uid:\t0\t0\t0\t0 Cpus_allowed_list:\t0-3 PPid:\t1 Name:\tx Tgid:\t5120".split(" "),
    *("qemu-system-aarch64\0-name\0a", "lkvm\0run\0--pmu", "CPU 0/KVM", "vcpu1", "kvm-vcpu-2"),
    *("-qmp\0unix:q,server=on", "-cpu\0host,pmu=off", "-name\0guest=a,,b,x=", "firecracker"),
    *(
        "-name\0a,process=x",
        "-smbios\0type=1,uuid=",
        "microvm@x",
        ".muvm-wrapped",
        "krunvm\0start",
    ),
]
PROC_LINKS = (
    *(
        "anon_inode:kvm-vm",
        "anon_inode:kvm-vcpu",
        "anon_inode:kvm-vcpu:0",
        "anon_inode:kvm-vcpu:1",
        "/dev/null",
        "/",
    ),
    *("anon_inode:kvm-vcpu:" + "9" * 30, "anon_inode:kvm-vcpu-stats:0", "socket:[1]", ".."),
)
PROC_FILES = (
    *(f"5120/{name}" for name in ("status", "stat", "cmdline", "comm", "cgroup")),
    *(f"5120/task/{tid}/{name}" for tid in (5120, 5121) for name in ("stat", "status", "comm")),
    *("5120/task/5121/syscall", "5120/task/x/comm", "pmuctl-unreadable", "1/stat"),
    *("5120/task/5121/cgroup", "self/mountinfo", "../run/pmuctl/kvm-probe.json"),
    *("../sys/kernel/debug/kvm/5120-9/vcpu0/pid", "../sys/kernel/debug/kvm/5120-8/vcpu1/pid"),
)


def grow_processes(proc: Path, rng: random.Random, *, is_live: bool) -> None:
    """A /proc of a VMM and others, in which whatever can be bent may be so.

    A live one has no FIFOs, at which a reader would wait.
    """
    for folder in ("5120/fd", "1/fd"):
        for old in (proc / folder).iterdir():
            old.unlink()
        for _ in range(rng.randrange(6)):
            name = rng.choice(("9", "8", "20", "21", "x", "-1", "٣", "9" * 200, "1_0"))
            with suppress(FileExistsError):
                (proc / folder / name).symlink_to(rng.choice(PROC_LINKS))
    if rng.random() < 0.7:
        with suppress(FileExistsError):
            (proc / "5120/fd/9").symlink_to(PROC_LINKS[0])
    good = f"5120 (a) b) S {'0 ' * 18}7 {'0 ' * 16}1 0 0 0 7 0\n"
    for file in PROC_FILES:
        path = proc / file
        with suppress(FileNotFoundError):
            path.unlink()
        kind = rng.random()
        if kind < 0.1:
            continue
        if kind < 0.15:
            path.symlink_to(rng.choice(("/", "..", "/etc/passwd", "stat", "x" * 200)))
        elif kind < 0.18 and not is_live:
            os.mkfifo(path)
        elif kind < 0.3:
            path.write_bytes(rng.randbytes(rng.randrange(60)))
        elif kind < 0.9 and file.endswith("stat"):
            path.write_text(good)
        else:
            text = odd_text(rng, PROC_WORDS, separators=" \n\0\t")
            path.write_bytes(text.encode(errors="surrogateescape"))


def test_processes(tmp_path: Path, dump: Callable[[str], Path]) -> None:
    root = dump("two-pmus-6.12")
    for file in PROC_FILES:
        (root / "proc" / "x").mkdir(parents=True, exist_ok=True)
        (root / "proc" / file).parent.mkdir(parents=True, exist_ok=True)
    for pid in ("5120", "1"):
        (root / "proc" / pid / "fd").mkdir()
    seen = 0
    for seed, rng in seeds(600):
        is_live = seed % 3 == 0
        grow_processes(root / "proc", rng, is_live=is_live)
        verb = rng.choice(("list", "vcpus", "show a", "show pid/5120", "list -O", "list -J -O"))
        out, err = io.StringIO(), io.StringIO()
        env = Context(
            stdout=guarded(out),
            stderr=err,
            host=Host(
                environ={"PMUCTL_RUNTIME_DIR": str(tmp_path / "none")},
                uid=0,
                procs=Procfs(root / "proc"),
                sysfs=Sysfs(root),
            ),
        )
        with told(seed, verb):
            place = () if is_live else ("--sysroot", str(root))
            status = main(["vm", *verb.split(), *place], env)
            assert status in (0, 2, 4), err.getvalue()
            seen += "5120" in out.getvalue()
            assert "\x1b" not in out.getvalue() + err.getvalue()
            if seed % 50 == 0 and not is_live:
                host = Host(environ={}, uid=0).captured(root)
                session = Session(host=host, deadline=1)
                write_capture(scan_snapshot(session), tmp_path / f"proc{seed}")
    assert seen > 50


def test_command_lines_of_vmms() -> None:
    for seed, rng in seeds(10_000):
        words = odd_text(rng, PROC_WORDS, separators="\0").split("\0")
        with told(seed, words):
            its = identify(words, odd_text(rng, PROC_WORDS))
            assert its.name is None or (its.name and "/" not in its.name)
            assert all(path and "\0" not in path for path in its.monitors)


VCPU: Mapping[str, object] = {"index": 0, "tid": 1001, "initialised": False, "has-run": False}
ANSWER: Mapping[str, object] = {
    "name": "web1",
    "uuid": None,
    "vmm": "fake",
    "pid": 4121,
    "window": "open",
    "waiting": True,
    "since": None,
    "by": None,
    "attributes": ["SET_PMU", "FILTER"],
    "event-bits": 16,
    "pmu": {"name": "armv8_cortex_a72", "type": 11, "origin": "applied"},
    "counters": {"value": 4, "origin": "applied"},
    "filter": {"default": "deny", "except": [[17, 1]], "origin": "applied"},
    "vcpus": [VCPU],
}
APPLY: Mapping[str, object] = {
    "type": 11,
    "name": "armv8_cortex_a72",
    "counters": 4,
    "filter": {"default": "deny", "except": [[17, 1]]},
    "cpus": [2, 3],
    "dry-run": True,
}
MESSAGES: Sequence[dict[str, object]] = [
    {"QMP": {"version": {}, "capabilities": []}},
    {"execute": "qmp_capabilities", "id": 1},
    {"execute": "query-pmu", "arguments": {}, "id": "pmuctl-1"},
    {"execute": "pmu-apply", "arguments": dict(APPLY)},
    {"return": dict(ANSWER), "id": "pmuctl-1"},
    {"error": {"class": "Sealed", "desc": "too late", "data": {"errno": "EBUSY", "applied": []}}},
    {"event": "PMU_WINDOW", "data": {"window": "sealed", "by": None}, "timestamp": {"seconds": 1}},
    {"a": ["\\", '"', "{", "}", "\u20ac", 1.5, None, True, {}, []]},
]
SPLINTERS = [
    *rb'{ } [ ] " \ \u \ud800 : , NaN 1e999 -0 null'.split(),
    *(b"\0", b"\xff", b"\xef\xbb\xbf", b"\r\n", b"9" * 5000, b"[" * 40),
]


def bent(rng: random.Random) -> bytes:
    """The bytes of a few messages, with splinters in them and pieces missing."""
    data = bytearray(b"".join(encode(rng.choice(MESSAGES)) for _ in range(rng.randrange(1, 4))))
    if rng.random() < 0.1:
        data = bytearray(rng.randbytes(rng.randrange(100)))
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(data) + 1)
        data[at : at + rng.randrange(3)] = rng.choice(SPLINTERS)
    return bytes(data)


def test_bytes_of_the_wire() -> None:
    whole = 0
    for seed, rng in seeds(15_000):
        data = bent(rng)
        with told(seed, data):
            decoder = Decoder()
            rest = data
            try:
                while rest:
                    size = rng.randrange(1, len(rest) + 1)
                    decoder.feed(rest[:size])
                    rest = rest[size:]
                    while (message := decoder.next()) is not None:
                        assert isinstance(message, dict)
                        assert Decoder.next(fed(encode(message))) == message
                        whole += 1
                        if isinstance(problem := message.get("error"), dict):
                            check_error(error_from(problem, subject="web1"))
            except WireError:
                continue
    assert whole > 10_000


def fed(data: bytes) -> Decoder:
    decoder = Decoder()
    decoder.feed(data)
    return decoder


VALUES: Sequence[object] = (
    *(None, True, False, 0, 1, -1, 11, 31, 32, 1 << 16, 1 << 63, 1 << 70, 1.5),
    *("", "open", "web1", "a/b", "x" * 5000, "\x1b", "\ud800", "deny"),
    *([], {}, [0], [[17, 1]], [[0, 0]], [[17, 1, 2]], {"a": 1}, ["x"] * 5000),
)


def mutated(value: object, rng: random.Random) -> object:
    """The value with one thing in it changed, added or left out."""
    if isinstance(value, Mapping) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        its = dict(value)
        what = rng.random()
        if what < 0.1:
            del its[key]
        elif what < 0.15:
            its[rng.choice(("x", "", "\x1b", "type ", "\ud800"))] = rng.choice(VALUES)
        else:
            its[key] = mutated(its[key], rng)
        return its
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        return [*value[:at], mutated(value[at], rng), *value[at + 1 :]]
    return rng.choice(VALUES)


TOLD: Sequence[Mapping[str, object]] = [
    {
        **{"format": 1, "name": "web1", "path": "/run/pmuctl/web1.sock", "owner": None},
        **its,
    }
    for start in [
        {
            **{"format": 1, "name": "web1", "pid": 5120, "start": 100, "supervisor": 9},
            **{"command": ["lkvm", "run"], "began": 1, "pmu": {"type": 11, "name": "a72"}},
            **{"filter": {"default": "deny", "except": [[17, 1]]}, "cpus": "2-3"},
            **{"applied": [{"when": 1, "by": "x", "steps": ["y"]}], "stops": 1},
            "problem": {"message": "a", "why": "b", "fix": "c", "status": 9},
        }
    ]
    for its in (
        {
            "vmm": {"pid": 5120, "uid": 0, "start": 100, "has-vm": True, "supervised": True},
            "answer": {**ANSWER, "vcpus": [{**VCPU, "tid": 5121}, {**VCPU, "index": 1}]},
            "record": start,
        },
        {"uid": 0, "record": start},
        {
            "untold": {
                **{"state": "dead", "status": 3, "message": "a", "why": "b", "errno": None},
                **{"process": {"pid": 5120, "start": 100}, "owner": 7},
            }
        },
    )
]
"""What a capture has of a control socket that answered, of one with an orphan, and of another."""


def test_what_sockets_told_in_a_capture(dump: Callable[[str], Path]) -> None:
    root = dump("two-pmus-6.12")
    fake_vmm(root / "proc", 5120, ("lkvm", "run"))
    folder = root / PATH_REPLIES
    folder.mkdir(parents=True)
    statuses: Counter[int] = Counter()
    for seed, rng in seeds(1_500):
        document: object = rng.choice(TOLD)
        for _ in range(rng.randrange(3)):
            document = mutated(document, rng)
        data = bytearray(json.dumps(document).encode())
        if rng.random() < 0.1:
            at = rng.randrange(len(data))
            data[at : at + rng.randrange(3)] = rng.choice(SPLINTERS)
        (folder / "0.json").write_bytes(data)
        words = rng.choice(("vm list", "vm list -J -O", "vm vcpus", "vm show web1", "doctor"))
        out, err = io.StringIO(), io.StringIO()
        env = Context(stdout=guarded(out), stderr=err, host=Host(environ={}, uid=0))
        with told(seed, bytes(data)):
            status = main([*words.split(), "--sysroot", str(root)], env)
            assert status in (0, 1, 3, 9), err.getvalue()
            assert not {"\x1b", "\udcff"} & set(out.getvalue() + err.getvalue())
            statuses[status] += 1
    assert min(statuses[0], statuses[9]) > 100


def test_members_of_messages() -> None:
    good = {"query-pmu": ANSWER, "pmu-apply": APPLY}
    COMMANDS["query-pmu"].result.check(dict(ANSWER), "return")
    COMMANDS["pmu-apply"].arguments.check(dict(APPLY), "arguments")
    for seed, rng in seeds(15_000):
        value: object = dict(good[rng.choice(list(good))])
        for _ in range(rng.randrange(1, 4)):
            value = mutated(value, rng)
        command = COMMANDS[rng.choice(list(COMMANDS))]
        kinds = (command.arguments, command.result, EVENTS[rng.choice(list(EVENTS))])
        with told(seed, value):
            for kind in kinds:
                with suppress(SchemaError):
                    kind.check(value, "message")


COMMAND_WORDS = [
    *"host info capabilities snapshot pmu list show cpus vm set release wait vcpus".split(),
    *"affinity align check".split(),
    *"web1 uuid/1 pid/1 pid/x no/way".split(),
]
OPTION_WORDS = [
    *"-J -O -n -q -v -vv -Jq -z -h -o name +all --format csv json --format=tsv --json=1".split(),
    *"--color always --no-truncate --sysroot root -- --socket run/x.sock --deadline 1 nan".split(),
    *"-k --vcpu 0 --all --dry-run --for open --version --help --timeout 0 --zzz".split(),
]
LEAVES = [
    *("host info", "host capabilities", "host snapshot out", "pmu list", "pmu show", "pmu cpus"),
    *("vm list", "vm show", "vm vcpus", "vm set", "vm release", "vm wait web1 --for open"),
    *("vm show web1", "vm set web1", "vm set web1 pmu armv8_cortex_a72", "vm set web1 filter"),
    *("affinity check", "affinity align", "affinity align --all", "affinity set web1"),
    *("affinity set web1 2-3", "affinity check web1 -k", "vm set web1 affinity"),
    *("vm release web1", "vm set web1 pmu armv8_cortex_a72 filter default deny"),
    *("vm set web1 pmu armv8_cortex_a53 counters 2 filter default deny allow", "vm release web1"),
]
ALL_WORDS = [*COMMAND_WORDS, *OPTION_WORDS, *SETTING_WORDS, *PMU_WORDS[:8], *NUMBERS[:8]]
HARMLESS = [word for word in ODD if not word.startswith((".", "~")) and "\0" not in word]
"""What may stand in an argument, which has no zero byte, and names no place far from here."""


def command_line(rng: random.Random) -> list[str]:
    """A command of the tree, or none, and words after it; it writes below the directory only."""
    words = rng.choice(LEAVES).split() if rng.random() < 0.8 else []
    for _ in range(rng.randrange(7)):
        odd = rng.random() < 0.2
        words.append(rng.choice(HARMLESS) if odd else rng.choice(ALL_WORDS))
    if "wait" in words and "--timeout" not in words:
        words.insert(words.index("wait") + 1, "--timeout=0")
    return [word.replace("/proc", "") for word in words]


def spoken(text: str) -> Iterator[dict[str, object]]:
    """The errors on stderr, as JSON."""
    for line in text.splitlines():
        if line.startswith("{"):
            yield json.loads(line)


def test_command_lines(
    tmp_path: Path, dump: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as server:
        monkeypatch.chdir(tmp_path)
        run_command_lines(Sysfs(dump("two-pmus-6.12")), tmp_path, server)


def run_command_lines(live: Sysfs, tmp_path: Path, server: ExitStack) -> None:
    (tmp_path / "root").symlink_to(live.root)
    proc = fake_proc(tmp_path / "proc", os.getpid(), tids=[1001, 1002])
    statuses = set()
    vm = FakeVm()
    for seed, rng in seeds(2_500):
        if seed % 50 == 0 or seed == FIRST:  # a VM whose window is open again
            server.close()
            vm = FakeVm()
            path = Path("run/web1.sock")
            server.enter_context(Server(vm, path, sysfs=live, threads=vm.threads))
        argv = command_line(rng)
        out, err = io.StringIO(), io.StringIO()
        env = Context(
            stdout=guarded(out),
            stderr=err,
            host=Host(
                environ={"PMUCTL_RUNTIME_DIR": "run"},
                uid=os.geteuid(),
                procs=Procfs(proc),
                sysfs=live,
                threads=vm.threads,
            ),
        )
        with told(seed, argv):
            status = main(argv, env)
            statuses.add(status)
            assert status in set(ExitStatus) - {ExitStatus.BUG}
            bold = "always" in argv  # asked for by name
            text = out.getvalue().replace("\x1b[1m", "").replace("\x1b[0m", "")
            assert "\x1b" not in (text if bold else out.getvalue()) + err.getvalue()
            assert "\x9b" not in out.getvalue() + err.getvalue()
            assert "Traceback" not in err.getvalue()
            if status > ExitStatus.NO:
                assert err.getvalue()
            for problem in spoken(err.getvalue()):
                assert list(problem) in (["error"], ["warning"])
    assert statuses >= {0, 1, 2, 4, 5}


def test_long_streams_are_bounded() -> None:
    """What can be sent without an end is refused at the limit, and quickly."""
    for begin, more in ((b"{", b" "), (b'{"a":"', b"\\\\"), (b'{"a":1', b","), (b"{}", b"x")):
        with pytest.raises(WireError):
            feed_on(fed(begin), more * 2048)


def feed_on(decoder: Decoder, more: bytes) -> None:
    for _ in range(MESSAGE_MAX // len(more) + 2):
        while decoder.next() is not None:
            pass
        decoder.feed(more)
