# SPDX-License-Identifier: Apache-2.0
"""The key `affinity` of `vm set`: done at once where it stands alone, and recorded."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

from pmuctl.control.runtime.affinity_record import write_affinity_record, write_unmanaged
from pmuctl.errors import (
    PmuctlError,
    RefusedError,
    command,
)
from pmuctl.host.host import Host
from pmuctl.manage.affinity.assess import read_vm_affinity_record
from pmuctl.manage.affinity.host_state import HostState
from pmuctl.manage.affinity.set_and_align import align_vm, set_affinity
from pmuctl.manage.resolve import AUTO, NONE
from pmuctl.manage.settings.result import AFFINITY, KeyResult, SettingsResult
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.effective_pmu import Consequence
from pmuctl.model.vm import Vm


def change_affinity(vm: Vm, text: str, host_state: HostState, *, dry_run: bool) -> SettingsResult:
    """What `vm set` does where only the affinity is asked for: at once, whatever the window.

    `auto` is `align_vm`, `none` leaves the masks alone from now on, all else is `set_affinity`.
    """
    if text == NONE:
        return _leave_alone(vm, host_state, dry_run=dry_run)
    change = align_vm if text == AUTO else partial(set_affinity, text=text)
    its = change(vm, host_state=host_state, dry_run=dry_run)
    outcomes = {one.outcome for one in its.placed} - {"unchanged"}
    return SettingsResult(
        vm=vm.name,
        changes=(
            _changed(
                vm,
                outcomes.pop() if outcomes else "unchanged",
                "; ".join(dict.fromkeys(f"within {one.wanted}" for one in its.placed)),
            ),
        ),
        steps=its.steps,
        warnings=its.warnings,
    )


def _changed(vm: Vm, outcome: str, value: str) -> KeyResult:
    return KeyResult(vm=vm.name, key=AFFINITY, outcome=outcome, value=value)


def _leave_alone(vm: Vm, host_state: HostState, *, dry_run: bool) -> SettingsResult:
    is_new = not read_vm_affinity_record(vm, host_state).is_left_alone
    if is_new and not dry_run:
        record_unmanaged(vm, host_state.host)
    outcome = "unchanged" if not is_new else "planned" if dry_run else "set"
    return SettingsResult(vm=vm.name, changes=(_changed(vm, outcome, "left alone"),), steps=())


def record_affinity(vm: Vm, host: Host) -> None:
    """Record where a VM's vCPU threads are, having been put there with its PMU.

    Raises RefusedError where that cannot be.
    """
    masks: dict[int, CpuSet] = {}
    for vcpu in vm.vcpus or ():
        with suppress(OSError):
            if vcpu.tid is not None:
                masks[vcpu.tid] = host.threads.get(vcpu.tid)
    if vm.id is not None:
        with _about(vm):
            write_affinity_record(
                host.environ,
                host.uid,
                vm.id,
                masks,
                host.procs,
                owner=vm.owner,
            )


def record_unmanaged(vm: Vm, host: Host) -> None:
    """Record that the masks of a VM's vCPU threads are the admin's from now on.

    They are neither aligned with all others nor repaired. Raises RefusedError where that cannot
    be.
    """
    if vm.id is not None:
        tids = {its.tid for its in vm.vcpus or () if its.tid is not None}
        with _about(vm):
            write_unmanaged(
                host.environ,
                host.uid,
                vm.id,
                tids,
                host.procs,
                owner=vm.owner,
            )


@contextmanager
def _about(vm: Vm) -> Iterator[None]:
    try:
        yield
    except PmuctlError as error:
        error.subject = vm.name
        raise


def make_unkept_warning(vm: Vm) -> RefusedError:
    """The warning of a VM whose vCPU threads are not kept on the CPUs of a PMU that was set."""
    return RefusedError(
        "its vCPU threads are not kept on the CPUs of its PMU (affinity none)",
        subject=vm.name,
        why=Consequence.FAIL_ENTRY.words(),
        fix=f"keep them there by other means; {command('affinity', 'check', vm.address)}",
    )
