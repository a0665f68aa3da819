# SPDX-License-Identifier: Apache-2.0
"""The key `affinity` of `vm set`: applied at once if it stands alone, and recorded."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

from pmuctl.control.runtime.affinity_record import write_affinity_record, write_unmanaged
from pmuctl.errors import PmuctlError, RefusedError, command
from pmuctl.host.host import Host
from pmuctl.host.signals import defer_signals
from pmuctl.manage.affinity.assess import read_vm_affinity_record
from pmuctl.manage.affinity.host_state import HostState
from pmuctl.manage.affinity.set_and_align import align_vm, set_affinity
from pmuctl.manage.resolve import AUTO, NONE
from pmuctl.manage.settings.result import AFFINITY, KeyResult, SettingsResult
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.effective_pmu import Consequence
from pmuctl.model.vm import Vm


def change_affinity(vm: Vm, text: str, host_state: HostState, *, dry_run: bool) -> SettingsResult:
    """Apply a request for the affinity alone: at once, whatever the state of the window.

    `auto` is `align_vm`, `none` leaves the masks alone from now on, all else is `set_affinity`.
    Raise what these raise, and RefusedError if `none` cannot be recorded.
    """
    if text == NONE:
        return _leave_alone(vm, host_state, dry_run=dry_run)
    change = align_vm if text == AUTO else partial(set_affinity, text=text)
    result = change(vm, host_state=host_state, dry_run=dry_run)
    outcomes = {thread.outcome for thread in result.results} - {"unchanged"}
    return SettingsResult(
        vm=vm.name,
        changes=(
            _make_key_result(
                vm,
                outcomes.pop() if outcomes else "unchanged",
                "; ".join(dict.fromkeys(f"within {thread.wanted}" for thread in result.results)),
            ),
        ),
        steps=result.steps,
        warnings=result.warnings,
    )


def _make_key_result(vm: Vm, outcome: str, value: str) -> KeyResult:
    """Return the result of the key `affinity`."""
    return KeyResult(vm=vm.name, key=AFFINITY, outcome=outcome, value=value)


def _leave_alone(vm: Vm, host_state: HostState, *, dry_run: bool) -> SettingsResult:
    """Leave the masks of vCPU threads alone from now on; raise what `record_unmanaged` does."""
    is_new = not read_vm_affinity_record(vm, host_state).is_left_alone
    if is_new and not dry_run:
        with defer_signals():
            record_unmanaged(vm, host_state.host)
            host_state.host.changes.add(vm.name, ["affinity none recorded"])
    outcome = "unchanged" if not is_new else "planned" if dry_run else "set"
    changes = (_make_key_result(vm, outcome, "left alone"),)
    return SettingsResult(vm=vm.name, changes=changes, steps=())


def record_affinity(vm: Vm, host: Host) -> None:
    """Record the masks of a VM's vCPU threads, which were set together with its PMU.

    Raise RefusedError if they cannot be recorded.
    """
    masks: dict[int, CpuSet] = {}
    for vcpu in vm.vcpus or ():
        with suppress(OSError):
            if vcpu.tid is not None:
                masks[vcpu.tid] = host.threads.get(vcpu.tid)
    if vm.id is not None:
        with _name_vm_in_errors(vm):
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

    `affinity align --all` and `monitor --repair` then pass them over. Raise RefusedError if that
    cannot be recorded.
    """
    if vm.id is not None:
        tids = {vcpu.tid for vcpu in vm.vcpus or () if vcpu.tid is not None}
        with _name_vm_in_errors(vm):
            write_unmanaged(
                host.environ,
                host.uid,
                vm.id,
                tids,
                host.procs,
                owner=vm.owner,
            )


@contextmanager
def _name_vm_in_errors(vm: Vm) -> Iterator[None]:
    """Make the VM the subject of errors raised inside."""
    try:
        yield
    except PmuctlError as error:
        error.subject = vm.name
        raise


def make_unkept_warning(vm: Vm) -> RefusedError:
    """Return the warning that vCPU threads are not kept on the CPUs of the PMU that was set."""
    return RefusedError(
        "its vCPU threads are not kept on the CPUs of its PMU (affinity none)",
        subject=vm.name,
        why=Consequence.FAIL_ENTRY.explain(),
        fix=f"keep them there by other means; {command('affinity', 'check', vm.address)}",
    )
