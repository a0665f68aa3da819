# SPDX-License-Identifier: Apache-2.0
"""VMMs under `pmuctl run` in the lab, and what the kernel and pmuctl tell of them."""

import itertools
import json
import re
import signal
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from tests.lab.channel import PATIENCE
from tests.lab.errors import Result
from tests.lab.job import Job
from tests.lab.machine import Lab
from tests.lab.tracing import KVM_RUN, TRACING
from tests.lab.vms import pmuctl
from tests.lab.waiting import until
from tests.lab.workloads.bare import START, parse_reports

A53, A72 = "armv8_cortex_a53", "armv8_cortex_a72"
PMUS = (A53, A72)
CPUS = {A53: frozenset({0, 1}), A72: frozenset({2, 3})}
LISTED = {A53: "0-1", A72: "2-3"}
ALL_CPUS = "0-3"

ONLY_CYCLES = "default deny allow cpu_cycles"
NO_CYCLES = "default allow deny cpu_cycles"
CYCLES_BIT = 1 << 0x11

RUNTIME_DIR = "/run/pmuctl"
RESIDENT_MAX = 16 * 1024
"""Kilobytes of memory a supervisor may keep."""
# The command lines of supervisors, and of VMMs as well.
_SUPERVISOR = "launch/__main__"
_OURS = f"{_SUPERVISOR}|qemu-system|lab.standins"

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Thread:
    """A thread as /proc has it; `state` is a letter, `cpus` a list such as "0-3"."""

    tid: int
    name: str
    state: str
    tracer: int
    cpus: str


class Run:
    """A VMM that `pmuctl run` starts, from before its start on."""

    def __init__(self, lab: Lab, name: str, job: Job) -> None:
        self.lab = lab
        self.name = name
        self.job = job

    @property
    def pid(self) -> int:
        """The process: first pmuctl's, then the VMM's."""
        return self.job.pid

    def vm(self, *words: str) -> Result:
        """`pmuctl vm VERB NAME …`: the first word is the verb."""
        return pmuctl(self.lab, "vm", words[0], self.name, *words[1:])

    def done(self, *words: str) -> str:
        """The same, which must succeed; its standard output."""
        ran = self.vm(*words)
        assert ran.status == 0, (ran, self.job.output())
        return ran.stdout

    def wait_open(self) -> None:
        """Until it is held."""
        self.wait("open")

    def wait(self, state: str) -> None:
        """Until `vm wait` says that it is there."""
        self.done("wait", "--for", state, "--timeout", f"{PATIENCE / 2:g}")

    def show(self) -> dict[str, Any]:
        """What `vm show` tells."""
        shown: dict[str, Any] = json.loads(self.done("show", "-J"))["vm"]
        return shown

    def record(self) -> dict[str, Any]:
        """The record that the supervisor keeps."""
        text = self.lab.read_file(f"{RUNTIME_DIR}/{self.name}.sock.json")
        record: dict[str, Any] = json.loads(text)
        return record

    def wait_reports(self, count: int = 2) -> list[dict[str, int]]:
        """Until a bare-metal guest has told so many lines; all it has told."""
        line = r"^GUEST .*\n(?:(?!GUEST ).*\n)*"
        self.job.wait_for(rf"(?:{line}){{{count}}}")
        return parse_reports(self.job.output())

    def end(self) -> Result:
        """Until the VMM has ended by itself."""
        return self.job.wait()

    def threads(self) -> list[Thread]:
        """All of the process."""
        return threads_of(self.lab, self.pid)

    def wait_given_back(self) -> None:
        """Until the main thread has its mask back: then all that is no vCPU's has.

        It has it before it is narrowed as well, so first until every vCPU was seen to run, which
        is when the supervisor counts its stops.
        """

        def has_mask() -> bool:
            with suppress(FileNotFoundError):
                return self.record()["stops"] is not None and any(
                    t.tid == self.pid and t.cpus == ALL_CPUS for t in self.threads()
                )
            return False

        until(has_mask, "the main thread has its mask back")

    def wait_applied(self, times: int) -> list[dict[str, Any]]:
        """Until the record, which is written a moment later, has so many changes; those."""

        def applied() -> list[dict[str, Any]]:
            with suppress(FileNotFoundError):
                found: list[dict[str, Any]] = self.record()["applied"]
                return found if len(found) == times else []
            return []

        return until(applied, f"{times} changes are recorded")

    def wait_stopped(self) -> None:
        """Until all its threads are: those that are traced, too."""

        def states() -> set[str]:
            return {thread.state for thread in self.threads()}

        until(lambda: not states() & {*"DRS"}, "all are stopped")

    def wait_held(self) -> None:
        """Until its main thread is held, and others are not."""

        def held() -> bool:
            threads = self.threads()
            others = {thread.state for thread in threads if thread.tid != self.pid}
            main = {thread.state for thread in threads if thread.tid == self.pid}
            return main == {"t"} and bool(others & {*"RS"})

        until(held, "its main thread is held, and others are not")

    def kill_supervisor(self) -> None:
        """End it as nothing should."""
        supervisor = int(self.record()["supervisor"])
        self.lab.kill(supervisor, signal.SIGKILL)
        self.lab.wait_gone(supervisor)
        until(lambda: not self.lab.exists(f"/proc/{supervisor}"), "it is no zombie either")


@contextmanager
def running(
    lab: Lab,
    *options: str,
    vmm: Sequence[str],
    name: str | None = None,
    stdin: bytes | None = b"",
    preloaded: bool = False,
) -> Iterator[Run]:
    """A VMM under `pmuctl run`; at the end it is killed, and nothing of it stays.

    Where `pmuctl run` is not what is tested, it may be `preloaded`.
    """
    name = name or f"run{next(_numbers)}"
    command = ["pmuctl", "run", "--name", name, *options, "--", *vmm]
    job = lab.start(command, stdin=stdin, preloaded=preloaded)
    try:
        with lab.journal.on_failure(f"before {name} was ended"):
            yield Run(lab, name, job)
    finally:
        if job.status is None:
            job.kill(9)
            job.wait()


def resident(lab: Lab, pid: int) -> int:
    """The kilobytes of memory a process has; VmRSS may lag by hundreds of them before 6.2."""
    text = lab.read_file(f"/proc/{pid}/smaps_rollup").decode()
    return int(re.findall(r"^Rss: +(\d+) kB$", text, re.M)[0])


def to_the_end(
    lab: Lab,
    *options: str,
    vmm: Sequence[str],
    name: str | None = None,
    preloaded: bool = False,
) -> Result:
    """A VMM under `pmuctl run` that ends by itself."""
    with running(lab, *options, vmm=vmm, name=name, preloaded=preloaded) as run:
        return run.end()


def threads_of(lab: Lab, pid: int) -> list[Thread]:
    """All threads of a process."""
    files = lab.read_files(f"/proc/{pid}/task/*/status")
    its = [dict(re.findall(r"^(\w+):\t(.*)$", text, re.M)) for text in files.values() if text]
    return [
        Thread(
            tid=int(one["Pid"]),
            name=one["Name"],
            state=one["State"][0],
            tracer=int(one["TracerPid"]),
            cpus=one["Cpus_allowed_list"],
        )
        for one in its
    ]


def shell(lab: Lab, script: str) -> str:
    """What a shell's script says; it must succeed."""
    return lab.run(["sh", "-e", "-c", script], check=True).stdout


def wait_nothing_left(lab: Lab, *names: str) -> None:
    """Until no supervisor and no VMM is there, and of these VMs no socket and no record."""
    wait_none(lab, _OURS)

    def left() -> list[str]:
        return [path for name in names for path in lab.read_files(f"{RUNTIME_DIR}/{name}.*")]

    until(lambda: not left(), f"no file is left of {', '.join(names)}")


def wait_unsupervised(lab: Lab) -> None:
    """Until every supervisor has left."""
    wait_none(lab, _SUPERVISOR)


def wait_none(lab: Lab, words: str) -> None:
    """Until no process has these words, a regular expression, in its command line."""
    for pid in lab.find_processes(words):
        lab.wait_gone(pid)
    until(lambda: not lab.find_processes(words), f"there is no {words}")


def cpus_of_runs(lab: Lab) -> dict[int, list[int]]:
    """By thread, the CPUs on which it called KVM_RUN, in order, in the one trace there is."""
    found: dict[int, list[int]] = {}
    text = shell(lab, f"cat {TRACING}/instances/*/trace")
    pattern = rf"^.*-(\d+)\s+\[(\d+)\] .*sys_ioctl\(.*cmd: (?:0x)?{KVM_RUN:x}\b"
    for tid, cpu in re.findall(pattern, text, re.MULTILINE):
        found.setdefault(int(tid), []).append(int(cpu))
    return found


def check_counting(reports: Sequence[dict[str, int]], *, times: int = 1) -> None:
    """Two vCPUs count cycles, which is all that they may."""
    assert [its["cpu"] for its in reports] == [0, 1] * times
    for its in reports:
        assert its["cycles"] > 0
        assert its["event_0x11"] > START
        assert (its["pmceid0"], its["pmceid1"]) == (CYCLES_BIT, 0)


def check_placed(threads: Iterable[Thread], vcpus: Collection[int], pmu: str) -> None:
    """The vCPU threads are kept on the PMU's CPUs, no other is, and nobody is traced."""
    its = list(threads)
    assert {thread.tid for thread in its} > set(vcpus)
    for thread in its:
        assert thread.cpus == (LISTED[pmu] if thread.tid in vcpus else ALL_CPUS), its
        assert thread.tracer == 0, its


@contextmanager
def started(lab: Lab, *argv: str, said: str, user: str | None = None) -> Iterator[Job]:
    """A VMM that has said so."""
    job = lab.start(argv, user=user)
    try:
        job.wait_for(said)
        yield job
    finally:
        if job.status is None:
            job.kill(9)
            job.wait()


def by_name(lab: Lab, pid: int, form: str) -> dict[int, int]:
    """By vCPU, its thread as it is named."""
    its = {thread.name: thread.tid for thread in threads_of(lab, pid)}
    return {vcpu: its[form.format(vcpu)] for vcpu in range(2)}
