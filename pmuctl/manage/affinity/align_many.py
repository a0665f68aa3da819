# SPDX-License-Identifier: Apache-2.0
"""Alignment of several VMs: those that were named, or all of the host."""

from collections.abc import Sequence
from functools import partial

from pmuctl.errors import NOTHING_CHANGED, GoneError, PmuctlError, UnknownThreadsError
from pmuctl.manage.affinity.assess import read_vm_affinity_record
from pmuctl.manage.affinity.host_state import HostState
from pmuctl.manage.affinity.pin import VmAffinityResult
from pmuctl.manage.affinity.set_and_align import align_vm
from pmuctl.manage.affinity.vcpu_threads import no_threads
from pmuctl.manage.batch import BatchResult, run_each
from pmuctl.manage.inventory.inventory import Inventory
from pmuctl.manage.inventory.lookup import expand_globs, lookup_vm
from pmuctl.manage.inventory.session import Session
from pmuctl.manage.inventory.unbacked_sockets import failure_of
from pmuctl.model.effective_pmu import effective_pmu
from pmuctl.model.vm import Vm
from pmuctl.model.vm_ref import VmRef
from pmuctl.value import replace, value


@value
class AlignResult:
    """The result of each VM, why others were left alone, and warnings."""

    vms: BatchResult[VmAffinityResult]
    left_alone: Sequence[str] = ()
    warnings: Sequence[PmuctlError] = ()


def align_all(
    vms: Sequence[Vm], session: Session, host_state: HostState, *, dry_run: bool
) -> AlignResult:
    """Align every VM whose PMU is known, even if another one fails.

    A VM that cannot be queried, and whose process does not show its vCPUs either, has failed if
    `failure_of` says so. VMs that are to be left alone are skipped. A VM that has ended, or whose
    threads are not known, is no failure: some VM always starts or ends.
    """
    left_alone: list[str] = []
    warnings: list[PmuctlError] = []
    failed: list[PmuctlError] = []
    targets: list[Vm] = []
    for vm in vms:
        pmu = effective_pmu(vm, host_state.host_pmus)
        if vm.query_error is not None:
            failure = failure_of(vm, session)
            (warnings if failure is None else failed).append(vm.query_error)
        elif vm.vcpus is None and pmu.names:
            left_alone.append(f"{vm.name}: left alone, {no_threads(vm).message}")
        elif not vm.vcpus:
            continue
        elif pmu.only_cpus is not None and read_vm_affinity_record(vm, host_state).is_left_alone:
            left_alone.append(f"{vm.name}: left alone, as affinity none says")
        elif pmu.only_cpus is not None:
            targets.append(vm)
        elif pmu.names:
            left_alone.append(f"{vm.name}: left alone, for it is not known which PMU it has")

    aligned = _align_each(targets, host_state, keep_going=True, dry_run=dry_run)
    for error in aligned.failed:
        if isinstance(error, GoneError | UnknownThreadsError):
            left_alone.append(f"{error.subject}: left alone, {error.message}")
        else:
            failed.append(error)
    batch = replace(aligned, failed=tuple(failed))
    return AlignResult(batch, left_alone, [*warnings, *_collect_warnings(batch)])


def align_named(
    refs: Sequence[VmRef],
    inventory: Inventory,
    host_state: HostState,
    *,
    keep_going: bool,
    dry_run: bool,
) -> AlignResult:
    """Align the VMs that are named, one after the other; a glob names those of `expand_globs`.

    Without `keep_going`, no VM is changed if one of them is not found; raise what `expand_globs`
    and `lookup_vm` raise. A later failure says what was done before it.
    """
    refs = expand_globs(inventory, refs)
    found = run_each(refs, partial(lookup_vm, inventory, strictly=True), keep_going=keep_going)
    found.raise_first()
    aligned = _align_each(found.done, host_state, keep_going=keep_going, dry_run=dry_run)
    batch = replace(aligned, failed=found.failed + aligned.failed)
    return AlignResult(batch, warnings=_collect_warnings(batch))


def _align_each(
    vms: Sequence[Vm], host_state: HostState, *, keep_going: bool, dry_run: bool
) -> BatchResult[VmAffinityResult]:
    done: list[VmAffinityResult] = []

    def align(vm: Vm) -> VmAffinityResult:
        try:
            done.append(align_vm(vm, host_state, dry_run=dry_run))
        except PmuctlError as error:
            before = [result.vm.name for result in done if result.steps and not dry_run]
            if before and error.now == NOTHING_CHANGED:
                error.now = f"{NOTHING_CHANGED} of it; aligned before: {', '.join(before)}"
            raise
        return done[-1]

    return run_each(vms, align, keep_going=keep_going)


def _collect_warnings(batch: BatchResult[VmAffinityResult]) -> list[PmuctlError]:
    return [warning for result in batch.done for warning in result.warnings]
