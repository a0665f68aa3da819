# SPDX-License-Identifier: Apache-2.0
"""VMM or supervisor killed, stopped or signalled in every phase of a start by `pmuctl run`.

The phases: "before" the gate; "attached", from the gate to the window; "injecting", between two
of the calls put in; "held" (--hold); "after", running and let go. All VMMs of a lab have one
name: what one has left behind must not be in the next one's way.

The phases begin with the VMM's: pmuctl's own start is an admin's in the first one and with job
control, and one with all imports done (tests/lab/guest/forkserver.py) in the others.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lab.machine import Lab
from tests.lab.phases import (
    CYCLES,
    CYCLES_ONLY,
    INJECTING_POLL,
    Supervised,
    crosvm,
    many_ranges,
    supervised,
)
from tests.lab.vmms import calls, lines, put_bare_metal, qemu, runs
from tests.lab.waiting import until
from tests.lab.workloads.bare import End, parse_reports

PHASES = ("before", "attached", "injecting", "held", "after")
WAIT_AT = {"before": "start", "attached": "init", "after": "round"}
KILLED = -signal.SIGKILL
REFUSED = 1
"""The stand-in's own status where KVM does not make its vCPU."""
VMS = 2
STAYS = {"socket", "record"}
"""Of a VM whose supervisor was killed: nobody is there to remove them."""


@contextmanager
def vmm_in(lab: Lab, phase: str) -> Iterator[Supervised]:
    """A stand-in in this phase: it stays there, but for "injecting", which takes a second."""
    options = ["--rounds", "2"]
    if phase in WAIT_AT:
        options += ["--wait-at", WAIT_AT[phase]]
    if phase == "injecting":
        options += ["--vcpus", "1"]
    with supervised(
        lab,
        crosvm(*options),
        *(("--hold",) if phase == "held" else ()),
        filter_=many_ranges() if phase == "injecting" else CYCLES,
        preloaded=phase != "before",
    ) as its:
        its.started()
        reach(its, phase)
        yield its


def reach(its: Supervised, phase: str) -> None:
    """Wait until it is in this phase."""
    if phase in WAIT_AT:
        its.hear(f'"event": "waits", "at": "{WAIT_AT[phase]}"')
    match phase:
        case "before":
            assert its.tracer() == 0
        case "attached":
            assert its.tracer() == its.supervisor
        case "injecting":
            until(its.is_injecting, "a call is put into it", poll=INJECTING_POLL)
        case "held":
            until(its.is_held, "it is held")
        case "after":
            until(lambda: not its.tracer(), "it is let go")


def release(its: Supervised) -> None:
    """Let it go on from the hold."""
    ran = its.pmuctl("release")
    assert ran.status == 0, ran


def check_gone(its: Supervised, *, is_made: bool = True) -> None:
    """Nothing is left of it, but the record that it made no VM for its settings."""
    its.supervisor_leaves()
    assert its.leftovers() == (set() if is_made else {"record"})


def check_end(its: Supervised, reports: int = 2) -> None:
    """It goes to its end as if nothing had been."""
    assert its.end() == 0, its.job.output()
    its.check_settings(reports)
    check_gone(its)


@pytest.mark.parametrize("phase", PHASES)
def test_the_vmm_is_killed(lab: Lab, phase: str) -> None:
    """The supervisor leaves with it, and takes everything along."""
    with vmm_in(lab, phase) as its:
        its.signal(signal.SIGKILL)
        assert its.end() == KILLED
        check_gone(its, is_made=phase != "before")


@pytest.mark.parametrize("phase", PHASES)
def test_the_supervisor_is_killed(lab: Lab, phase: str) -> None:
    """No VM is there with half of its settings: it was not made, is gone, or has them all."""
    status = {"before": REFUSED, "after": 0}.get(phase, KILLED)
    with vmm_in(lab, phase) as its:
        its.signal(signal.SIGKILL, its.supervisor)
        its.supervisor_leaves()
        if status != KILLED:
            its.go_on()
        assert its.end() == status, its.job.output()
        if phase == "before":
            assert calls(its.job.output())[-1] == ("KVM_CREATE_VCPU", "ENOSYS")
        if phase == "after":
            its.check_settings(reports=4)
        assert its.leftovers() == STAYS


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("its_signal", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_ends(lab: Lab, phase: str, its_signal: signal.Signals) -> None:
    """It ends the VMM as without pmuctl; on the way to the window, once that is passed."""
    with vmm_in(lab, phase) as its:
        its.signal(its_signal)
        if phase == "attached":
            its.go_on()
        assert its.end() == -its_signal
        assert ('"event": "run"' in its.job.output()) is (phase == "after")
        check_gone(its, is_made=phase != "before")


def freeze(its: Supervised, number: signal.Signals) -> None:
    """Stop it, see that it is, and that its parent was told so; let it go on."""
    its.signal(number)
    thaw(its, number)


def thaw(its: Supervised, number: signal.Signals) -> None:
    """Once it has stopped."""
    its.hear_next(f"job: stopped by {number.value}\n")
    until(lambda: its.state() in "Tt", "it is stopped")
    its.signal(signal.SIGCONT)
    its.hear_next("job: continued\n")


def test_stopped_and_continued_on_the_way(lab: Lab) -> None:
    """In one phase after the other; it has its settings in the end.

    While calls are put into it, its parent is told of the stop, but these calls are all made.
    """
    points = [word for point in WAIT_AT.values() for word in ("--wait-at", point)]
    command = crosvm("--vcpus", "1", "--rounds", "2", *points)
    with supervised(lab, command, filter_=many_ranges(), job_control=True) as its:
        its.started()
        for phase in ("before", "attached", "injecting", "after"):
            reach(its, phase)
            if phase == "injecting":
                its.signal(signal.SIGSTOP)
                its.hear_next(f"job: stopped by {signal.SIGSTOP.value}\n")
                until(lambda: its.state() == "T" and not its.tracer(), "it stops, and is let go")
                its.signal(signal.SIGCONT)
                its.hear_next("job: continued\n")
                continue
            freeze(its, signal.SIGSTOP)
            if phase != "attached":
                freeze(its, signal.SIGTSTP)
            its.go_on()
        check_end(its)


def test_stopped_and_continued_while_held(lab: Lab) -> None:
    """It is held after that as before.

    SIGTSTP is blocked on the way to the window, as all signals are, and stops it right after.
    """
    with supervised(lab, crosvm("--wait-at", "init"), "--hold", job_control=True) as its:
        its.started()
        reach(its, "attached")
        its.signal(signal.SIGTSTP)
        its.go_on()
        thaw(its, signal.SIGTSTP)
        for number in (signal.SIGSTOP, signal.SIGTSTP):
            until(its.is_held, "it is held")
            freeze(its, number)
        assert its.tracer() == its.supervisor
        release(its)
        check_end(its)


def seconds_to_run(output: str) -> list[float]:
    """Of each VM, the time to its first run: from the VMM's start, or from the last VM's last."""
    times = {vm: [run["time"] for run in runs(output) if run["vm"] == vm] for vm in range(VMS)}
    (started,) = [line["time"] for line in lines(output) if line.get("event") == "started"]
    before = [started, *(of_vm[-1] for of_vm in times.values())]
    return [of_vm[0] - since for since, of_vm in zip(before, times.values(), strict=False)]


def test_signals_all_the_time_do_not_starve_it(lab: Lab) -> None:
    """A VM comes as fast to its first run as without them: the first one, and the next.

    The shortest times are compared: what else this machine does lengthens any of them.
    """
    took: dict[tuple[str, ...], list[list[float]]] = {(): [], ("--signal-ms", "3"): []}
    for options in [*took] * 2:
        with supervised(lab, crosvm("--vms", str(VMS), *options), preloaded=True) as its:
            its.started()
            check_end(its, reports=2 * VMS)
            took[options].append(seconds_to_run(its.job.output()))
    for number in range(VMS):
        without, signalled = (min(each[number] for each in all_) for all_ in took.values())
        assert signalled < 3 * without + 1, took


def test_signals_all_the_time_while_held(lab: Lab) -> None:
    """They are delivered, and it is held all the same, and released.

    On the way from its window to the hold a signal makes three stops, some milliseconds in the
    lab: at every 3 ms it would get no further there. tests/launch holds one at 3 ms.
    """
    with supervised(lab, crosvm("--signal-ms", "20"), "--hold", preloaded=True) as its:
        its.started()
        reach(its, "held")
        assert '"event": "run"' not in its.job.output()
        release(its)
        check_end(its)


def test_a_vm_is_reset_after_its_supervisor_was_killed(qemu_lab: Lab) -> None:
    """Nothing of a reset goes through the gate; the VM is shown as orphaned."""
    console = "/tmp/phases.console"
    command = qemu("7.2", *put_bare_metal(qemu_lab, End.REPEAT))
    command[command.index("-serial") + 1] = f"file:{console}"
    command[command.index("-monitor") + 1] = "stdio"

    def reports(cpu: int) -> list[dict[str, int]]:
        told = parse_reports(qemu_lab.read_file(console).decode())
        return [report for report in told if report["cpu"] == cpu]

    with supervised(qemu_lab, command, preloaded=True) as its:
        its.hear("QEMU 7.2")
        its.meet()
        until(lambda: reports(1), "vCPU 1 tells its line")
        until(lambda: not its.tracer(), "it is let go")
        its.signal(signal.SIGKILL, its.supervisor)
        its.supervisor_leaves()
        assert '"orphaned"' in its.pmuctl("show", "-J").stdout
        its.job.send(b"system_reset\n")
        until(lambda: len(reports(1)) == 2, "vCPU 1 tells its line again")
        its.job.send(b"quit\n")
        assert its.end() == 0
        for report in reports(0) + reports(1):
            assert (report["pmceid0"], report["cycles"] > 0) == (CYCLES_ONLY, True), report
        assert its.leftovers() == STAYS
