# SPDX-License-Identifier: Apache-2.0
"""Aligning several VMs: those that were named, or all there are."""

from collections.abc import Sequence
from functools import partial

from pmuctl.errors import NOTHING_CHANGED, GoneError, PmuctlError, Stopped, UnknownThreadsError
from pmuctl.manage.affinity.assess import read_vm_affinity_record
from pmuctl.manage.affinity.host_state import HostState
from pmuctl.manage.affinity.pin import VmAffinityResult, stopped_after
from pmuctl.manage.affinity.set_and_align import align_vm
from pmuctl.manage.batch import BatchResult, run_each
from pmuctl.manage.inventory.inventory import Inventory
from pmuctl.manage.inventory.lookup import lookup_vm
from pmuctl.manage.inventory.session import Session
from pmuctl.manage.inventory.unbacked_sockets import failure_of
from pmuctl.model.effective_pmu import effective_pmu
from pmuctl.model.vm import Vm
from pmuctl.model.vm_ref import VmRef
from pmuctl.value import replace, value


@value
class Aligned:
    """What came of each VM, why others were left alone, and what is to be warned of."""

    vms: BatchResult[VmAffinityResult]
    left: Sequence[str] = ()
    warnings: Sequence[PmuctlError] = ()


def align_all(
    vms: Sequence[Vm], session: Session, host_state: HostState, *, dry_run: bool
) -> Aligned:
    """Align every VM whose PMU is known, whatever becomes of another one.

    One that cannot be asked, and whose process does not tell its vCPUs either, has failed, if
    `failure_of` says so. Those that are to be left alone are, one that has ended is no failure,
    and neither is one whose threads nobody knows: some VM always starts or ends.
    """
    left: list[str] = []
    warnings: list[PmuctlError] = []
    real: list[PmuctlError] = []
    targets: list[Vm] = []
    for vm in vms:
        chosen = effective_pmu(vm, host_state.host_pmus)
        if vm.query_error is not None:
            failure = failure_of(vm, session)
            (warnings if failure is None else real).append(vm.query_error)
        elif not vm.vcpus:
            continue
        elif (
            chosen.only_cpus is not None and read_vm_affinity_record(vm, host_state).is_left_alone
        ):
            left.append(f"{vm.name}: left alone, as affinity none says")
        elif chosen.only_cpus is not None:
            targets.append(vm)
        elif chosen.names:
            left.append(f"{vm.name}: left alone, for it is not known which PMU it has")

    done = _align(targets, host_state, keep_going=True, dry_run=dry_run)
    for error in done.failed:
        if isinstance(error, GoneError | UnknownThreadsError):
            left.append(f"{error.subject}: left alone, {error.message}")
        else:
            real.append(error)
    its = replace(done, failed=tuple(real))
    return Aligned(its, left, [*warnings, *_warnings(its)])


def align_named(
    refs: Sequence[VmRef],
    inventory: Inventory,
    host_state: HostState,
    *,
    keep_going: bool,
    dry_run: bool,
) -> Aligned:
    """Align the VMs that are named, one after the other.

    Without `keep_going` none is touched where one of them is not found; raises what `lookup_vm`
    raises. What fails later is told with what was done before it.
    """
    found = run_each(refs, partial(lookup_vm, inventory, strictly=True), keep_going=keep_going)
    found.raise_first()
    done = _align(found.done, host_state, keep_going=keep_going, dry_run=dry_run)
    its = replace(done, failed=found.failed + done.failed)
    return Aligned(its, warnings=_warnings(its))


def _align(
    vms: Sequence[Vm], host_state: HostState, *, keep_going: bool, dry_run: bool
) -> BatchResult[VmAffinityResult]:
    done: list[VmAffinityResult] = []

    def align(vm: Vm) -> VmAffinityResult:
        try:
            done.append(align_vm(vm, host_state, dry_run=dry_run))
        except PmuctlError as error:
            before = [its.vm.name for its in done if its.steps and not dry_run]
            if before and error.now == NOTHING_CHANGED:
                error.now = f"{NOTHING_CHANGED} of it; aligned before: {', '.join(before)}"
            raise
        except Stopped as stop:
            _tell_of(stop, done if not dry_run else ())
            raise
        return done[-1]

    return run_each(vms, align, keep_going=keep_going)


def _tell_of(stop: Stopped, done: Sequence[VmAffinityResult]) -> None:
    """Add to what a signal leaves what was done before it."""
    before = stopped_after(done)
    if stop.lost is None or before is None:
        stop.lost = stop.lost or before
    else:
        stop.lost.now = "; ".join(filter(None, (before.now, stop.lost.now)))


def _warnings(done: BatchResult[VmAffinityResult]) -> list[PmuctlError]:
    return [problem for its in done.done for problem in its.warnings]
