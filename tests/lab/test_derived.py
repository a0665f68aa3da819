# SPDX-License-Identifier: Apache-2.0
"""A PMU that KVM chose by itself: what pmuctl calls derived is what the guest counts with."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from tests.lab.conftest import GetLab
from tests.lab.machine import Lab
from tests.lab.runs import A53, A72, ALL_CPUS, LISTED, PMUS, Run, running, shell
from tests.lab.vmms import put_bare_metal, qemu
from tests.lab.vms import pmuctl, reference_vm
from tests.lab.workloads.bare import End

OLDEST = "6.1"
EITHER = f"{A53} or {A72}?"
LAYERS = ("qemu-7.2",)


@pytest.fixture
def probed_lab(kernel: str, get_lab: GetLab) -> Lab:
    """A host with two PMUs, of which it is known how its KVM chooses."""
    lab = get_lab(kernel, "two", LAYERS)
    assert pmuctl(lab, "host", "capabilities").status == 0
    return lab


@pytest.fixture
def newest(get_lab: GetLab) -> Lab:
    """The one with the newest kernel."""
    return get_lab("newest", "two", LAYERS)


@contextmanager
def plain(lab: Lab, vmm: Sequence[str]) -> Iterator[Run]:
    """A VMM that pmuctl has nothing to do with."""
    job = lab.start(vmm, stdin=b"")
    try:
        yield Run(lab, f"pid/{job.pid}", job)
    finally:
        if job.status is None:
            job.kill(9)
            job.wait()


def counting(lab: Lab) -> list[str]:
    """QEMU with a guest that counts again and again."""
    return qemu("7.2", *put_bare_metal(lab, End.REPEAT))


@contextmanager
def started(lab: Lab, *options: str) -> Iterator[Run]:
    """That guest, under `pmuctl run` if it has options."""
    vmm = counting(lab)
    with running(lab, *options, vmm=vmm, preloaded=True) if options else plain(lab, vmm) as run:
        run.wait_reports()
        yield run


def told(run: Run) -> tuple[Any, Any, Any]:
    """The PMU, its origin and the candidates, as JSON has them; tables say the same."""
    its = run.show()
    shown: tuple[Any, Any, Any] = its["pmu"], its["pmu_origin"], its["candidates"]
    lines = dict(line.split(None, 1) for line in run.done("show").splitlines() if " " in line)
    listed = pmuctl(run.lab, "vm", "list", run.name, "-o", "PMU,PMU-ORIGIN", "-n")
    name, origin = shown[0] or EITHER, shown[1] or "?"
    assert (lines["PMU"].strip(), lines["PMU-ORIGIN"].strip()) == (name, origin)
    assert listed.stdout.split() == [*name.split(), origin]
    return shown


def counts_on(run: Run, cpus: str) -> bool:
    """Whether the guest's cycle counter counts while all of the VMM is kept on these CPUs."""
    shell(run.lab, f"taskset -apc {cpus} {run.pid}")
    # the next report may have begun before
    last = run.wait_reports(len(run.wait_reports()) + 2)[-1]
    assert last["cpu"] == 0
    return last["cycles"] > 0


def check_counts(run: Run, pmu: str) -> None:
    """The guest counts on the CPUs of this PMU, and on no other's."""
    assert {its: counts_on(run, LISTED[its]) for its in PMUS} == {its: its == pmu for its in PMUS}


@pytest.mark.parametrize("cpus", [None, *LISTED.values()])
def test_what_is_derived_is_what_the_guest_counts_with(
    probed_lab: Lab, kernel: str, cpus: str | None
) -> None:
    """Before v6.4 KVM gives all the same, since v6.7 that of the CPUs it was made on."""
    with started(probed_lab, *(() if cpus is None else ("--affinity", cpus))) as run:
        pmu, origin, candidates = told(run)
        if kernel == OLDEST:
            assert origin == "derived"
        elif cpus is None:
            assert (pmu, origin, candidates) == (None, None, list(PMUS))
            return
        else:
            assert (LISTED[pmu], origin) == (cpus, "derived")
        assert candidates == []
        check_counts(run, pmu)


def test_on_the_oldest_kernel_it_is_always_the_same(get_lab: GetLab) -> None:
    """Wherever the VM was made."""
    lab = get_lab(OLDEST, "two", LAYERS)
    assert pmuctl(lab, "host", "capabilities").status == 0
    found = []
    for cpus in LISTED.values():
        with plain(lab, ["taskset", "-c", cpus, *counting(lab)]) as run:
            run.wait_reports()
            found.append(told(run))
    assert found[0] == found[1]
    assert found[0][1] == "derived"


def test_what_could_be_either_is_not_derived(newest: Lab) -> None:
    """On CPUs of both."""
    with started(newest, "--affinity", "1-2") as run:
        assert told(run) == (None, None, list(PMUS))


def test_a_hold_without_a_pmu_ends_in_kvms_choice(newest: Lab) -> None:
    """Which can still be changed until then, so it is none before."""
    pmu = A72
    options = ("--hold", "--affinity", LISTED[pmu])
    with running(newest, *options, vmm=counting(newest), preloaded=True) as run:
        run.wait_open()
        assert run.show()["pmu"] is None
        refused = run.vm("set", "filter", "default", "deny")
        assert (refused.status, refused.stdout) == (2, ""), refused
        assert "a PMU must be named" in refused.stderr
        run.done("release")
        run.wait_reports()
        assert told(run) == (pmu, "derived", [])
        refused = run.vm("set", "pmu", pmu)
        assert (refused.status, refused.stdout) == (5, ""), refused
        assert run.record()["pmu"] is None
        check_counts(run, pmu)


def test_it_is_still_known_without_its_supervisor(newest: Lab) -> None:
    """Nobody else has seen the VM being made: it is in the record."""
    with started(newest, "--affinity", LISTED[A53]) as run:
        assert told(run) == (A53, "derived", [])
        run.kill_supervisor()
        its = run.show()
        assert its["state"] == "orphaned"
        assert (its["pmu"], its["pmu_origin"], its["candidates"]) == (A53, "derived", [])
        check_counts(run, A53)


def test_on_a_host_with_one_pmu_it_is_that(get_lab: GetLab) -> None:
    """Without anything that pmuctl does."""
    lab = get_lab("newest", "one", LAYERS)
    with started(lab) as run:
        pmu, origin, candidates = told(run)
        assert (origin, candidates) == ("derived", [])
        assert pmu in pmuctl(lab, "pmu", "list", "-n", "-o", "NAME").stdout.split()
        assert [counts_on(run, cpus) for cpus in LISTED.values()] == [True, True]


@pytest.mark.parametrize("made_on", [*LISTED.values(), ALL_CPUS])
def test_a_vmm_that_knows_says_it_itself(newest: Lab, made_on: str) -> None:
    """By its own control socket, once it goes on without a PMU that was set."""
    options = ("--create-cpus", made_on, "--run-cpus", LISTED[A72], "--forever")
    with reference_vm(newest, *options) as vm:
        run = Run(newest, vm.name, vm.job)
        assert run.show()["pmu"] is None
        assert vm.pmuctl("release").status == 0
        vm.job.wait_for('"cycles"')
        pmu, origin, candidates = told(run)
        if made_on == ALL_CPUS:
            assert (pmu, origin, candidates) == (None, None, list(PMUS))
            return
        assert (LISTED[pmu], origin, candidates) == (made_on, "derived", [])
        assert [its["cycles"] > 0 for its in vm.lines()] == [pmu == A72] * len(vm.lines())
