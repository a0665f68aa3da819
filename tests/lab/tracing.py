# SPDX-License-Identifier: Apache-2.0
"""What VMMs in the lab ask of KVM and how KVM_RUN comes back, seen by the kernel's tracepoints."""

import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.lab.machine import Lab

TRACING = "/sys/kernel/tracing"
KVM_RUN = 0xAE80
KVM_SET_DEVICE_ATTR = 0x4018AEE1
BUFFER_KIB = 4096

_numbers = itertools.count(1)
_LINE = re.compile(r"^\s*(.+)-(\d+)\s+\[\d+\]\s+\S+\s+([\d.]+): (\w+)(?:: |\()(.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event: when (seconds of the lab's monotonic clock), in which thread, and its text."""

    time: float
    comm: str
    tid: int
    name: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """When a VMM did what, in seconds from its exec; None for what it has not done."""

    first_pmu_attr: float | None
    first_run: float | None


class Trace:
    """A trace of its own in the lab; made by `trace`. It keeps the earliest events."""

    def __init__(self, lab: Lab, folder: str) -> None:
        self._lab = lab
        self._folder = folder

    def events(self) -> list[Event]:
        """All so far, in order."""
        text = self._lab.read_file(f"{self._folder}/trace").decode(errors="replace")
        return [
            Event(comm=comm, tid=int(tid), time=float(time), name=name, text=rest)
            for comm, tid, time, name, rest in _LINE.findall(text)
        ]

    def lost(self) -> int:
        """How many events there was no room for."""
        listing = f"cat {self._folder}/per_cpu/cpu*/stats"
        stats = self._lab.run(["sh", "-c", listing], check=True).stdout
        return sum(map(int, re.findall(r"^dropped events: (\d+)", stats, re.MULTILINE)))

    def exits(self, reason: str = "KVM_EXIT_FAIL_ENTRY", *, pid: int | None = None) -> list[Event]:
        """The returns of KVM_RUN for this reason; of a process and those it made, or of all."""
        mine = self.threads(pid) if pid is not None else None
        return [
            event
            for event in self.events()
            if event.name == "kvm_userspace_exit"
            and event.text.startswith(f"reason {reason} ")
            and (mine is None or event.tid in mine)
        ]

    def threads(self, pid: int) -> set[int]:
        """The threads of a process that this trace saw start, and of all its descendants."""
        mine = {pid}
        for event in self.events():
            if event.name == "sched_process_fork" and event.tid in mine:
                mine.add(int(event.text.rpartition("child_pid=")[2]))
        return mine

    def start_of(self, pid: int) -> Start:
        """The times of a VMM from its last exec, its descendants' calls counted as its own."""
        events = self.events()
        mine = self.threads(pid)
        begun = [e.time for e in events if e.name == "sched_process_exec" and e.tid == pid]
        if not begun:
            raise ValueError(f"the trace has no exec of process {pid}")

        def first(command: int) -> float | None:
            word = re.compile(rf"cmd: (?:0x)?{command:x}\b")
            times = (
                e.time - begun[-1]
                for e in events
                if e.name == "sys_ioctl" and e.tid in mine and word.search(e.text)
            )
            return next(times, None)

        return Start(first_pmu_attr=first(KVM_SET_DEVICE_ATTR), first_run=first(KVM_RUN))


@contextmanager
def trace(lab: Lab, *, exits: str = "reason==9", starts: bool = True) -> Iterator[Trace]:
    """Trace for as long as the block runs.

    `exits` filters kvm_userspace_exit (9 is KVM_EXIT_FAIL_ENTRY; "" takes all), `starts` adds the
    calls that Trace.start_of() needs. Forks and execs are always there.
    """
    folder = f"{TRACING}/instances/lab{next(_numbers)}"
    filters = {"kvm/kvm_userspace_exit": exits, "sched/sched_process_fork": ""}
    filters["sched/sched_process_exec"] = ""
    if starts:
        commands = f"cmd=={KVM_RUN:#x}||cmd=={KVM_SET_DEVICE_ATTR:#x}"
        filters["syscalls/sys_enter_ioctl"] = commands
    script = [
        f"[ -d {TRACING}/instances ] || mount -t tracefs tracefs {TRACING}",
        f"mkdir {folder} && cd {folder}",
        f"echo mono >trace_clock; echo 0 >options/overwrite; echo {BUFFER_KIB} >buffer_size_kb",
    ]
    for event, filter_ in filters.items():
        if filter_:
            script.append(f"echo '{filter_}' >events/{event}/filter")
        script.append(f"echo 1 >events/{event}/enable")
    lab.run(["sh", "-e", "-c", "\n".join(script)], check=True)
    try:
        yield Trace(lab, folder)
    finally:
        if lab.alive:
            ending = f"cd {folder} && echo 0 >tracing_on && echo 0 >events/enable"
            lab.run(["sh", "-c", f"{ending}; cd /; rmdir {folder}"])
