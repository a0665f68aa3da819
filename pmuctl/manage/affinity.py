# SPDX-License-Identifier: Apache-2.0
"""Affinity of a VM's vCPU threads: choosing it, bringing it back onto the PMU, checking it."""

from contextlib import suppress
from functools import partial

from pmuctl.control.placings import forget_placings, write_placings
from pmuctl.errors import (
    NOTHING_CHANGED,
    PinnedError,
    PmuctlError,
    RefusedError,
    command,
)
from pmuctl.manage.blocker import find_blocker
from pmuctl.manage.choice import AUTO, NONE, cpus_words, pins, present_cpus
from pmuctl.manage.held import recorded_masks
from pmuctl.manage.placing import (
    Crew,
    Placed,
    blocked,
    check_inside,
    current_masks,
    place_threads,
)
from pmuctl.manage.settings import AFFINITY, Change, Done
from pmuctl.manage.site import Site
from pmuctl.model.align import aligned_mask
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.judge import Chosen, Consequence, Verdict, judge_mask
from pmuctl.model.plan import Place, no_vpmu
from pmuctl.model.truth import chosen_pmu
from pmuctl.model.vm import Vm, Window


def set_affinity(
    vm: Vm, text: str, host: Site, *, vcpus: CpuSet | None = None, dry_run: bool
) -> list[Placed]:
    """Put the threads of these vCPUs, by default all, on the CPUs that the text names.

    Raises UsageError and RefusedError for CPUs that will not do, and what `place_threads` does.
    """
    try:
        cpus = choose_cpus(text, vm, host)
    except RefusedError as error:
        error.fix = f"{error.fix} --vcpu {vcpus}" if vcpus else error.fix
        raise
    crew = Crew.of(vm, host, only=vcpus)
    placed = place_threads(crew, dict.fromkeys(crew.tids, cpus), host, dry_run=dry_run)
    if not dry_run:
        record = {its.tid: its.wanted for its in placed}
        write_placings(host.environ, host.uid, crew.process, record, host.procs)
    return placed


def choose_cpus(text: str, vm: Vm, host: Site) -> CpuSet:
    """The CPUs that a text names, which have to be of the VM's PMU where one was set."""
    cpus = present_cpus(text, host.pmus, host.sysfs, subject=vm.name)
    chosen = chosen_pmu(vm, host.ground)
    if chosen.is_explicit and chosen.only is not None and chosen.only_cpus is not None:
        check_inside(cpus, chosen.only_cpus, vm, chosen.only)
    elif chosen.is_explicit and judge_mask(cpus, chosen, None).verdict is Verdict.LEAVES:
        raise RefusedError(
            f"{cpus_words(cpus)} not of one PMU",
            subject=vm.name,
            why=f"its VMM has chosen {chosen}; " + Consequence.FAIL_ENTRY.words(),
            now=NOTHING_CHANGED,
            fix=pins(vm.address, chosen.cpus.values()),
        )
    return cpus


def align_vm(vm: Vm, host: Site, *, dry_run: bool) -> list[Placed]:
    """Bring the vCPU threads of a VM back onto the CPUs of its PMU, by the rule of `aligned_mask`.

    Raises UnsupportedError without a vPMU, RefusedError where it is not known which PMU it has,
    PinnedError for a pin that is not pmuctl's, and what `place_threads` does.
    """
    chosen = chosen_pmu(vm, host.ground)
    cpus = chosen.only_cpus
    if cpus is None:
        raise _no_pmu(vm, chosen)
    crew = Crew.of(vm, host)
    recorded = recorded_masks(vm, host)
    wanted: dict[int, CpuSet] = {}
    pinned: dict[int, CpuSet] = {}
    for vcpu, now in current_masks(crew, host).items():
        mask = aligned_mask(now, cpus, recorded.get(vcpu))
        if mask is None:
            pinned[vcpu] = now
        else:
            wanted[vcpu] = mask
    for vcpu, now in pinned.items():
        # that there is no CPU for it is worth more than whose pin it is
        if blocker := find_blocker(crew.pid, crew.tids[vcpu], cpus, host):
            raise blocked(vm, Place(vcpu, crew.tids[vcpu], cpus, now), blocker)
    if pinned:
        raise _pinned(vm, chosen, pinned)
    placed = place_threads(crew, wanted, host, dry_run=dry_run)
    if not dry_run:
        record = {its.tid: its.wanted for its in placed if its.outcome == "set"}
        write_placings(host.environ, host.uid, crew.process, record, host.procs)
    return placed


def change_affinity(vm: Vm, text: str, host: Site, *, dry_run: bool) -> Done:
    """What `vm set` does where only the affinity is asked for: at once, whatever the window.

    `auto` is `align_vm`, `none` leaves the masks alone from now on, all else is `set_affinity`.
    """
    placed: list[Placed] = []
    value = "left alone"
    if text == NONE:
        if not dry_run:
            forget(vm, host)
    else:
        change = align_vm if text == AUTO else partial(set_affinity, text=text)
        placed = change(vm, host=host, dry_run=dry_run)
        value = "; ".join(dict.fromkeys(f"within {its.wanted}" for its in placed))
    outcomes = {its.outcome for its in placed} - {"unchanged"}
    return Done(
        vm=vm.name,
        changes=(
            Change(
                vm=vm.name,
                key=AFFINITY,
                outcome=outcomes.pop() if outcomes else "unchanged",
                value=value,
            ),
        ),
        steps=tuple(its.words() for its in placed if its.outcome != "unchanged"),
    )


def remember(vm: Vm, host: Site) -> None:
    """Record where a VM's vCPU threads are, having been put there with its PMU."""
    masks: dict[int, CpuSet] = {}
    for vcpu in vm.vcpus or ():
        with suppress(OSError):
            if vcpu.tid is not None:
                masks[vcpu.tid] = host.threads.affinity(vcpu.tid)
    if vm.process is not None:
        write_placings(host.environ, host.uid, vm.process, masks, host.procs)


def forget(vm: Vm, host: Site) -> None:
    """Drop what was recorded: the masks of a VM's vCPU threads are the admin's from now on."""
    if vm.process is not None:
        tids = {its.tid for its in vm.vcpus or () if its.tid is not None}
        forget_placings(host.environ, host.uid, vm.process, tids)


def unkept(vm: Vm) -> RefusedError:
    """The warning of a VM whose vCPU threads are not kept on the CPUs of a PMU that was set."""
    return RefusedError(
        "its vCPU threads are not kept on the CPUs of its PMU (affinity none)",
        subject=vm.name,
        why=Consequence.FAIL_ENTRY.words(),
        fix=f"keep them there by other means; {command('affinity', 'check', vm.address)}",
    )


def _no_pmu(vm: Vm, chosen: Chosen) -> PmuctlError:
    error: PmuctlError
    if vm.problem is not None and not vm.vcpus:
        return vm.problem
    if vm.window is Window.NONE:
        error = no_vpmu()
    elif not chosen.cpus:
        error = RefusedError(
            "it has no PMU yet that its vCPUs could be aligned to",
            why="its window is open, and none was chosen",
            fix=command("vm", "set", vm.address, "pmu", "PMU"),
        )
    elif chosen.only is not None:
        error = RefusedError(f"the CPUs of {chosen.only} cannot be read", fix="pmuctl pmu list")
    else:
        who = "its VMM" if chosen.is_explicit else "KVM"
        error = RefusedError(
            "which PMU it has is not known",
            why=f"{who} chose {chosen} by itself, and does not tell which",
            fix=f"{pins(vm.address, chosen.cpus.values()) or 'pmuctl pmu list'}, "
            "whichever it counts with; or start it anew with pmuctl run --pmu PMU",
        )
    error.subject, error.now = vm.name, NOTHING_CHANGED
    return error


def _pinned(vm: Vm, chosen: Chosen, pinned: dict[int, CpuSet]) -> PinnedError:
    vcpus = CpuSet.of(pinned)
    masks = ", ".join(dict.fromkeys(str(its) or "offline CPUs" for its in pinned.values()))
    only = () if len(pinned) == len(vm.vcpus or ()) else ("--vcpu", vcpus)
    return PinnedError(
        f"vCPU {vcpus} may not run on any CPU of {chosen.only}",
        subject=vm.name,
        why=f"pinned to {masks}, that PMU's CPUs are {chosen.only_cpus}; "
        "pmuctl did not make this pin, and a pin is never widened",
        now=NOTHING_CHANGED,
        fix=command("affinity", "set", vm.address, chosen.only_cpus or "", *only),
    )
