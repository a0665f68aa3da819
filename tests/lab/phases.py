# SPDX-License-Identifier: Apache-2.0
"""VMMs under `pmuctl run`, caught in a phase of their start: how the tests stop them there."""

import json
import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from tests.lab.errors import Result
from tests.lab.machine import Lab
from tests.lab.vmms import lines, runs, standin
from tests.lab.vms import pmuctl
from tests.lab.waiting import until
from tests.lab.workloads.bare import parse_reports

A53, A72 = "armv8_cortex_a53", "armv8_cortex_a72"
RUNTIME_DIR = "/run/pmuctl"
USERS_RUNTIME_DIR = "/run/user/1000"
"""Of the lab's user `admin`, whose processes these tests start if not root's."""
CPUS = {2, 3}
"""Those of that PMU."""
CYCLES = "default deny allow 0x11"
CYCLES_ONLY = 1 << 0x11
"""PMCEID0 of a guest that may count 0x11 only, of the events it has a bit for."""
MANY_RANGES = 100
"""Calls of a filter that takes a while to put in: a second or two in the lab."""
KVM_SET_DEVICE_ATTR = "0x4018aee1"
INJECTING_POLL = 0.005
"""Seconds: it is not for long."""

# A shell with job control: its job is a process group of its own, with a parent in the same
# session. A group without that is orphaned, and the kernel does not let SIGTSTP stop it.
JOB_CONTROL = """
import os, signal, sys
pid = os.fork()
if not pid:
    os.setpgid(0, 0)
    os.execvp(sys.argv[1], sys.argv[1:])
while True:
    _, status = os.waitpid(pid, os.WUNTRACED | os.WCONTINUED)
    if os.WIFSTOPPED(status):
        print("job: stopped by", os.WSTOPSIG(status), flush=True)
    elif os.WIFCONTINUED(status):
        print("job: continued", flush=True)
    else:
        break
if os.WIFSIGNALED(status):
    os.kill(os.getpid(), os.WTERMSIG(status))
os._exit(os.WEXITSTATUS(status))
"""


def many_ranges(count: int = MANY_RANGES) -> str:
    """A filter that takes so many calls, and lets a guest count no more than CYCLES does."""
    return f"{CYCLES}," + ",".join(hex(0x400 + 2 * number) for number in range(count - 1))


class Supervised:
    """A VMM that `pmuctl run` was asked to start, from outside."""

    def __init__(
        self,
        lab: Lab,
        name: str,
        words: Sequence[str],
        *,
        job_control: bool,
        user: str | None,
        preloaded: bool,
    ) -> None:
        self.lab = lab
        self.name = name
        self._folder = f"{USERS_RUNTIME_DIR}/pmuctl" if user else RUNTIME_DIR
        command = ["pmuctl", "run", "--name", name, *words]
        if job_control:
            command = ["python3", "-S", "-c", JOB_CONTROL, *command]
        env = {"XDG_RUNTIME_DIR": USERS_RUNTIME_DIR} if user else None
        self.job = lab.start(command, stdin=None, user=user, env=env, preloaded=preloaded)
        self.pid = self.job.pid
        self.supervisor = 0
        self._heard: dict[str, int] = {}

    def started(self) -> None:
        """Wait until the stand-in says that it runs; learn who it and its supervisor are."""
        self.pid = int(self.hear('"event": "started", "pid": ([0-9]+)'))
        self.meet()

    def meet(self) -> None:
        """Learn who the supervisor is."""
        until(self.record, f"a record of process {self.pid}")
        self.supervisor = int(self.record()["supervisor"])

    def hear(self, regex: str) -> str:
        """Wait until it says this; the (first) group of it."""
        match = self.job.wait_for(regex)
        return match[1] if match.re.groups else match[0]

    def hear_next(self, text: str) -> None:
        """Wait until it says this once more than when that was asked for last."""
        self._heard[text] = self._heard.get(text, 0) + 1
        self.job.wait_for(rf"(?s)({text}.*){{{self._heard[text]}}}")

    def go_on(self) -> None:
        """Let a stand-in go on from where it waits."""
        self.job.send(b"\n")

    def signal(self, number: signal.Signals, pid: int | None = None) -> None:
        """Signal the VMM, or another process."""
        its = self.pid if pid is None else pid
        self.lab.kill(its, number)

    def record(self) -> dict[str, Any]:
        """What its supervisor has left for others; empty if that is not of this process."""
        with suppress(FileNotFoundError):
            its: dict[str, Any] = json.loads(self.lab.read_file(self.path("sock.json")))
            return its if its["pid"] == self.pid else {}
        return {}

    def path(self, suffix: str) -> str:
        """Its file in the runtime directory."""
        return f"{self._folder}/{self.name}.{suffix}"

    def tracer(self) -> int:
        """Who traces its main thread, 0 for nobody."""
        text = self.lab.read_file(f"/proc/{self.pid}/status").decode()
        return int(text.partition("TracerPid:\t")[2].partition("\n")[0])

    def is_injecting(self) -> bool:
        """Whether it is seen in a call for an attribute: before its own first one, not its own."""
        return KVM_SET_DEVICE_ATTR in self.lab.read_file(f"/proc/{self.pid}/syscall").decode()

    def is_held(self) -> bool:
        """Whether its supervisor has applied what it was given, which it does once it holds it."""
        return bool(self.record().get("applied")) and self.tracer() == self.supervisor

    def state(self) -> str:
        """Its main thread's: "T" stopped, "t" stopped by its tracer, "S" asleep, …"""
        text = self.lab.read_file(f"/proc/{self.pid}/stat").decode()
        return text.rpartition(")")[2].split()[0]

    def pmuctl(self, verb: str, *words: str) -> Result:
        """`pmuctl vm VERB NAME`."""
        return pmuctl(self.lab, "vm", verb, self.name, *words)

    def end(self) -> int:
        """Its exit status, waited for."""
        return self.job.wait().status

    def supervisor_leaves(self) -> None:
        """Wait for that."""
        self.lab.wait_gone(self.supervisor)
        until(lambda: not self.lab.exists(f"/proc/{self.supervisor}"), "it is no zombie either")

    def leftovers(self) -> set[str]:
        """What is left of it: "process", "socket", "record"."""
        its = {"socket": self.path("sock"), "record": self.path("sock.json")}
        found = {what for what, path in its.items() if self.lab.exists(path)}
        return found | ({"process"} if processes_of(self.lab, self.name) else set())

    def check_settings(self, reports: int = 2, *, is_let_go: bool = True) -> None:
        """Its guest had the PMU and the filter, in each of these rounds of a vCPU."""
        its = runs(self.job.output())
        assert len(its) == reports, its
        for report in its:
            assert report["exit"] == "KVM_EXIT_MMIO", report
            assert set(report["mask"]) == CPUS, report
            assert report["cycles"] > 0, report
            assert int(report["pmceid0"], 16) == CYCLES_ONLY, report
        (status,) = (each for each in lines(self.job.output()) if each.get("event") == "status")
        assert (status["Seccomp"], status["TracerPid"] == 0 or not is_let_go) == (2, True), status


def processes_of(lab: Lab, name: str) -> list[int]:
    """The processes with this word in their command line: the launcher, the supervisor."""
    return lab.find_processes(rf"\x00{re.escape(name)}\x00")


@contextmanager
def supervised(
    lab: Lab,
    command: Sequence[str],
    *options: str,
    name: str = "phase",
    filter_: str = CYCLES,
    job_control: bool = False,
    user: str | None = None,
    preloaded: bool = False,
) -> Iterator[Supervised]:
    """A VMM under `pmuctl run`, ended with its supervisor at the end of the block.

    Where what happens after the VMM's start is what is tested, pmuctl may be `preloaded`.
    """
    words = ["--pmu", A72, "--filter", filter_, *options, "--", *command]
    its = Supervised(lab, name, words, job_control=job_control, user=user, preloaded=preloaded)
    try:
        with lab.journal.on_failure(f"before {name} was ended"):
            yield its
    finally:
        for pid in {its.pid, its.supervisor, *processes_of(lab, name)} - {0}:
            with suppress(ProcessLookupError):
                lab.kill(pid, signal.SIGKILL)
        if its.job.status is None:
            its.job.kill(signal.SIGKILL)
            its.job.wait()


def crosvm(*options: str) -> list[str]:
    """The stand-in of the table: all its calls are made by the main thread."""
    return standin("crosvm", *options)


def run(
    lab: Lab,
    *options: str,
    vmm: Sequence[str] = ("touch", "/tmp/obstacle.started"),
    before: Sequence[str] = (),
    user: str | None = None,
    told: str = "",
) -> Result:
    """`pmuctl run` of a VM "obstacle", to its end, and until the supervisor has told this.

    What ends a VMM by SIGKILL is told once that is dead.
    """
    command = [*before, "pmuctl", "run", "--name", "obstacle", *options, "--", *vmm]
    env = {"XDG_RUNTIME_DIR": USERS_RUNTIME_DIR} if user else None
    job = lab.start(command, user=user, env=env)
    job.wait()
    until(lambda: told in job.output(), f"{told} is told")
    return job.result()


def give_runtime_dir(lab: Lab) -> None:
    """Make the one of `admin`, as a login does."""
    script = f"mkdir -p -m 700 {USERS_RUNTIME_DIR} && chown 1000:1000 {USERS_RUNTIME_DIR}"
    lab.run(["sh", "-c", script], check=True)


def check_refused(lab: Lab, ran: Result, status: int, *words: str, record: bool = False) -> None:
    """The error has these words, and nothing was started or left but perhaps a record."""
    assert (ran.status, ran.stdout) == (status, ""), ran
    assert ran.stderr.startswith("error: "), ran
    for word in (*words, "\n  why: ", "\n  fix: "):
        assert word in ran.stderr, ran
    assert "Traceback" not in ran.stderr
    assert not lab.exists("/tmp/obstacle.started")
    check_left(lab, record=record)


def check_left(lab: Lab, *, record: bool = False) -> None:
    """Nothing is left of a VM "obstacle" but perhaps a record, which this removes."""
    for pid in processes_of(lab, "obstacle"):
        lab.wait_gone(pid)
    until(lambda: not processes_of(lab, "obstacle"), "its supervisor leaves")
    stems = [f"{folder}/obstacle" for folder in (RUNTIME_DIR, f"{USERS_RUNTIME_DIR}/pmuctl")]
    assert not any(lab.exists(f"{stem}.sock") for stem in stems)
    assert any(lab.exists(f"{stem}.sock.json") for stem in stems) is record
    lab.run(["rm", "-f", *(f"{stem}.sock.json" for stem in stems)])


def check_console(console: str) -> None:
    """Both vCPUs of a bare-metal guest have told of the PMU and the filter, again and again."""
    told = parse_reports(console)
    assert [report["cpu"] for report in told[:2]] == [0, 1]
    for report in told:
        assert (report["pmceid0"], report["cycles"] > 0) == (CYCLES_ONLY, True), report
