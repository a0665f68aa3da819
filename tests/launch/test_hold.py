# SPDX-License-Identifier: Apache-2.0
"""A VMM held at its first call for an attribute: released, asked to end, stopped, forgotten."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import Mock

import pytest

from pmuctl.host.procfs import Procfs
from pmuctl.launch.held_thread import HeldThread
from pmuctl.launch.hold import VmHold
from pmuctl.launch.spec import LaunchSpec
from pmuctl.launch.trace.arch import native_arch
from pmuctl.launch.trace.tracee import Tracee
from tests.launch.conftest import Start
from tests.launch.native import Gated, has_a_turn, starved, vmm, wait_for

HELD = vmm("--vcpus", "2", "--attribute", "--run", "--idle", "1")
DEAF = vmm("--vcpus", "2", "--attribute", "--run", "--deaf-threads")
"""Its main thread, which is the one held, takes all signals: no other one could be quicker."""
HOLD = {"hold": True}
INT = signal.SIGINT


def release(its: Gated) -> None:
    """What pmuctl vm release does."""
    its.orders.socket.with_suffix(".release").touch()


def states(its: Gated) -> set[str]:
    """What its threads do, in the letters of proc_pid_stat(5)."""
    stats = Path(f"/proc/{its.pid}/task").glob("*/stat")
    return {stat.read_text().rpartition(")")[2].split()[0] for stat in stats}


def test_released_it_makes_its_call_and_goes_on(kvm: Start) -> None:
    its = kvm(*HELD, orders=HOLD)
    its.event("held")
    assert len(its.events("applied")) == 1
    release(its)
    assert "attribute" in its.hear("attribute")
    assert [ran["result"] for ran in its.all_said("ran")] == [0, 0]
    assert its.status() == 0
    its.is_left_alone()
    assert len(its.events("applied")) == 1
    assert its.events("failed") == []


@pytest.mark.parametrize(
    "words", [("--churn", "4"), ("--signals", "restart", "--storm")], ids=["threads", "signals"]
)
def test_what_comes_without_end_does_not_keep_it(kvm: Start, words: tuple[str, ...]) -> None:
    """Threads that make others, and a signal every 3 ms."""
    its = kvm(*HELD, *words, orders=HOLD)
    its.event("held")
    release(its)
    assert [ran["result"] for ran in its.all_said("ran")] == [0, 0]
    assert its.status() == 0
    its.is_left_alone()
    assert its.events("failed") == []


def test_the_call_has_the_result_it_has_without_a_hold(kvm: Start) -> None:
    its = kvm(*HELD)
    without = its.hear("attribute")["attribute"]
    held = kvm(*HELD, orders=HOLD)
    held.event("held")
    release(held)
    assert held.hear("attribute")["attribute"] == without


@pytest.mark.parametrize("its_signal", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_signal_that_ends_a_vmm_ends_a_held_one(kvm: Start, its_signal: int) -> None:
    its = kvm(*HELD, orders=HOLD)
    its.event("held")
    its.process.send_signal(its_signal)
    assert its.status() == -its_signal
    its.is_left_alone()
    assert its.events("failed") == []


def test_one_that_it_would_catch_ends_it_as_well(kvm: Start) -> None:
    its = kvm(*HELD, orders=HOLD)  # Python catches SIGINT
    its.event("held")
    its.process.send_signal(signal.SIGINT)
    assert its.status() == 128 + signal.SIGINT
    its.is_left_alone()


def test_one_that_comes_in_the_midst_of_a_look_does(kvm: Start) -> None:
    """Let out for it, Python would only note it: its handler runs after the call it is held at."""
    its = kvm(*DEAF, prefix="interrupted", orders=HOLD)
    its.event("held")
    assert its.status() == 128 + signal.SIGINT
    its.is_left_alone()
    assert its.events("failed") == []


def start_two(kvm: Start, room: Path, *words: str) -> Gated:
    """A script with two VMMs: one pauses with its windows open until the other is held."""
    first = " ".join(vmm("--vcpus", "1", "--run", "--pause", "windows", *words))
    second = " ".join(vmm("--vcpus", "1", "--attribute", "--run"))
    go = room / "go"
    script = (
        f"exec 3<&0; {first} <&3 & P=$!; until [ -e {go} ]; do sleep 0.01; done; "
        f"{second} </dev/null >/dev/null; wait $P; exit $?"
    )
    its = kvm("sh", "-c", script, orders=HOLD)
    its.hear("at", "windows")
    go.touch()
    its.event("held")
    its.go_on()
    return its


def test_a_vm_of_another_process_that_came_first_gets_the_settings_as_well(
    kvm: Start, room: Path
) -> None:
    """Only one VM is held; the other goes on from its own first call for an attribute."""
    its = start_two(kvm, room, "--attribute")
    assert its.hear("ran")["result"] == 0
    assert len(its.events("applied")) == 2
    release(its)
    assert its.status() == 0
    its.is_left_alone()
    assert its.events("failed") == []


def test_it_is_ended_if_it_runs_without_such_a_call(kvm: Start, room: Path) -> None:
    its = start_two(kvm, room)
    message = wait_for(lambda: its.events("refused"), "it is refused")[0]["message"]
    assert message == "its VMM ran a vCPU before it could be held"
    release(its)
    assert its.all_said("ran") == []
    assert its.status() == 125
    its.is_left_alone()
    assert its.events("failed") == []


class Scripted(Tracee):
    """A thread that goes where it is sent."""

    def __init__(self, tgid: int = 1) -> None:
        super().__init__(1, tgid, native_arch())

    def skip_call(self) -> list[int]:
        return []

    def set_registers(self, registers: list[int]) -> None:
        pass

    def resume(self, signum: int = 0) -> None:
        pass


class Catching(Procfs):
    """A process with a vCPU, descriptor 3, that catches SIGINT and ignores SIGTERM."""

    def signals(self, pid: int, tid: int) -> dict[str, frozenset[int]]:
        none = dict.fromkeys(("SigPnd", "ShdPnd", "SigBlk"), frozenset[int]())
        return none | {"SigCgt": frozenset({INT}), "SigIgn": frozenset({signal.SIGTERM})}

    def vcpu_fds(self, pid: int, tid: int | None = None) -> dict[int, int]:
        return {3: 0}


def test_one_that_comes_while_it_is_out_ends_it_once_it_is_back() -> None:
    thread, other, stranger = Scripted(), Scripted(), Scripted(tgid=2)
    hold = HeldThread(thread, {3: 0}, Catching(), timeout=None)
    hold.resume_for_signal()
    for its, its_signal in ((thread, signal.SIGALRM), (thread, signal.SIGTERM), (stranger, INT)):
        assert hold.filter_signal(its, its_signal) == its_signal
        assert hold.ending_signal is None
    assert hold.filter_signal(other, INT) == INT
    assert hold.ending_signal == INT
    hold.park()
    assert hold.filter_signal(other, INT) == 0


@pytest.mark.parametrize(
    ("given", "followed", "ending"),
    [
        ([(1, signal.SIGALRM)], {1}, None),
        ([(1, INT)], {1}, INT),
        ([(1, signal.SIGTERM)], {1}, None),  # ignored
        ([(2, INT)], {1, 2}, None),
        ([(1, INT)], set(), None),  # let go between, and followed anew
    ],
)
def test_one_that_was_caught_on_the_way_to_the_hold_does(
    given: Sequence[tuple[int, int]], followed: set[int], ending: int | None
) -> None:
    """Its handler may have set a flag that is read after all vCPUs are made."""
    thread, told = Scripted(), Mock()
    told.procs, told.tracer = Catching(), told
    told.apply.return_value = []
    told.followed_processes.return_value = followed
    orders = LaunchSpec(name="x", socket=Path("/x"), command=("x",), hold=True)
    its = VmHold(orders, [], told, told, told, told)
    its.vcpu_tracker = told
    for tgid, its_signal in given:
        assert its.on_signal(Scripted(tgid=tgid), its_signal) == its_signal
    its.poll()
    its.on_attribute_call(thread, 3, 3)
    assert its.held is not None
    assert its.held.ending_signal == ending


def test_a_signal_that_is_caught_is_taken_while_it_is_held(kvm: Start) -> None:
    its = kvm(*HELD, "--signals", "restart", orders=HOLD)
    its.event("held")
    its.process.send_signal(signal.SIGALRM)
    wait_for(
        lambda: signal.SIGALRM not in Procfs().signals(its.pid, its.pid)["ShdPnd"], "it is taken"
    )
    release(its)
    assert [ran["result"] for ran in its.all_said("ran")] == [0, 0]
    assert its.status() == 0
    its.is_left_alone()
    assert its.events("failed") == []


def test_job_control_stops_a_held_vmm(kvm: Start) -> None:
    its = kvm(*HELD, orders=HOLD)
    its.event("held")
    its.process.send_signal(signal.SIGSTOP)
    _, status = os.waitpid(its.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    its.process.send_signal(signal.SIGCONT)
    release(its)
    assert [ran["result"] for ran in its.all_said("ran")] == [0, 0]
    assert its.status() == 0
    its.is_left_alone()


def test_released_while_it_is_stopped_it_goes_on_when_continued(kvm: Start) -> None:
    its = kvm(*HELD, orders=HOLD)
    its.event("held")
    its.process.send_signal(signal.SIGSTOP)
    os.waitpid(its.pid, os.WUNTRACED)
    release(its)
    wait_for(lambda: states(its) <= {"T", "t"}, "all of it has stopped")
    its.process.send_signal(signal.SIGCONT)
    assert [ran["result"] for ran in its.all_said("ran")] == [0, 0]
    assert its.status() == 0


def test_it_waits_until_a_shortage_has_passed(kvm: Start) -> None:
    its = kvm(*HELD, orders=HOLD)
    its.event("held")
    with starved(its.supervisor):
        has_a_turn(its.supervisor)  # one that had begun before may go to its end
        release(its)
        has_a_turn(its.supervisor)
        assert its.process.poll() is None
    assert [ran["result"] for ran in its.all_said("ran")] == [0, 0]
    assert its.status() == 0
    its.is_left_alone()


@pytest.mark.parametrize(("its_signal", "status"), [(signal.SIGTERM, -signal.SIGTERM), (INT, 130)])
def test_a_signal_ends_it_though_it_cannot_be_told_whether_it_is_caught(
    kvm: Start, its_signal: int, status: int
) -> None:
    its = kvm(*HELD, orders=HOLD)
    its.event("held")
    has_a_turn(its.supervisor)
    with starved(its.supervisor):
        its.process.send_signal(its_signal)
        assert its.status() == status
        its.is_left_alone()
    assert its.events("failed") == []


def test_a_thread_whose_process_cannot_be_told_ends_it(kvm: Start) -> None:
    """One more of a VMM all threads of which are followed, on the way to the hold."""
    its = kvm(*vmm("--threads", "--churn", "1", "--pause", "made"), orders=HOLD)
    its.hear("at", "made")
    with starved(its.supervisor):
        assert its.status() == 125
        its.is_left_alone()
    [refused] = its.events("refused")
    assert refused["message"] == "the VMM cannot be followed"
    assert refused["why"].startswith("its supervisor runs short: /proc/")
    assert its.events("failed") == its.events("held") == []


def test_a_vmm_that_runs_a_vcpu_before_it_was_held_is_ended(kvm: Start) -> None:
    its = kvm(*vmm("--run"), orders=HOLD)
    assert its.status() == 125
    assert its.all_said("ran") == []
    assert its.complaint().startswith(
        f"error: {its.name}: its VMM ran a vCPU before it could be held\n"
    )
    its.is_left_alone()
    assert its.events("held") == its.events("failed") == []


def test_a_vmm_that_runs_a_vcpu_before_it_was_held_starts_at_best_effort(kvm: Start) -> None:
    its = kvm(*vmm("--run", "--vcpus", "2"), orders=HOLD | {"best_effort": True})
    assert [ran["result"] for ran in its.all_said("ran")] == [0, 0]
    assert its.status() == 0
    assert its.complaint().count("warning: ") == 1
    its.is_left_alone()


def test_nobody_releases_it_in_time(kvm: Start) -> None:
    its = kvm(*HELD, orders=HOLD | {"timeout": 0.1})
    assert its.status() == 125
    assert its.complaint() == (
        f"error: {its.name}: nobody released it\n"
        "  why: it was held for 0.1 s (--timeout)\n"
        "  now: the VM was not started\n"
        "  fix: pmuctl vm set and pmuctl vm release while it is held\n"
    )
    its.is_left_alone()


def test_a_held_vmm_ends_with_its_supervisor(kvm: Start) -> None:
    its = kvm(*HELD, orders=HOLD)
    its.event("held")
    os.kill(its.supervisor, signal.SIGKILL)
    assert its.status() == -signal.SIGKILL


def test_what_was_ordered_and_cannot_be_set_ends_it(kvm: Start) -> None:
    its = kvm(*HELD, prefix="wrong", orders=HOLD)
    assert its.status() == 125
    assert "KVM_SET_PMU_EVENT_FILTER was refused" in its.complaint()
    assert its.all_said("ran") == []
    its.is_left_alone()
