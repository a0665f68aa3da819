# SPDX-License-Identifier: Apache-2.0
"""Waiting until a VM is in a state."""

import time
from collections.abc import Callable
from enum import StrEnum

from pmuctl.errors import DeniedError, NotFoundError, NoVmError, UnreachableError, command
from pmuctl.manage.inventory.inventory import Inventory
from pmuctl.manage.inventory.lookup import lookup_vm
from pmuctl.manage.inventory.session import Session
from pmuctl.manage.inventory.start_records import RefusedStartError
from pmuctl.model.alignment import VmAlignment
from pmuctl.model.vm import Vm, VmState, Window
from pmuctl.model.vm_ref import ByPid, ProcessId, VmRef
from pmuctl.value import replace

POLL_SECONDS = 0.2
ANSWER_SECONDS = 1.0
"""A VM is given so long to answer even where less is left: it is always asked once."""
ABSENT = "there is no such VM"
NEVER_ALIGNED = "it has no PMU, and a VM without one is never aligned"


class Awaited(StrEnum):
    """What can be waited for."""

    OPEN = "open"
    SEALED = "sealed"
    RUNNING = "running"
    STOPPED = "stopped"
    ALIGNED = "aligned"


def wait_for(
    session: Session,
    ref: VmRef,
    awaited: Awaited,
    *,
    timeout: float | None,
    assess: Callable[[Vm], VmAlignment],
) -> str | None:
    """Ask until the VM is as awaited, None, or `timeout` seconds have passed: what was seen last.

    That has what keeps it from being aligned, as `assess` judges it, where that is awaited.

    A VM that is not there yet, or does not answer, is asked again; raises what `open_vm` raises
    for all else, and DeniedError where one that is not seen need not have stopped. A silent one
    takes no longer than the time that is left, or ANSWER_SECONDS.
    """
    told = ""
    last: ProcessId | None = None
    until = None if timeout is None else time.monotonic() + timeout
    while True:
        if until is not None:
            left = max(until - time.monotonic(), ANSWER_SECONDS)
            session = replace(session, deadline=min(session.deadline, left))
        begin = time.monotonic()
        inventory = Inventory(session)
        vm, seen = _ask(inventory, ref)
        last = vm.process if vm is not None else last
        if seen == ABSENT and awaited is Awaited.STOPPED:
            _check_sight(inventory, ref, last)
        if vm is not None and awaited is Awaited.ALIGNED:
            alignment = assess(vm)
            if alignment.alignment.aligned:
                return None
            # of one without a window it is not known yet
            if means := alignment.explanation or (vm.window and NEVER_ALIGNED):
                seen = f"{seen}; {means}"
        elif _holds(vm, awaited):
            return None
        if seen != told:
            session.trace(f"{ref}: {seen}")
            told = seen
        # on a host of very many processes looking takes time: no more than half of it all
        pause = max(POLL_SECONDS, time.monotonic() - begin)
        if until is not None:
            left = until - time.monotonic()
            if left <= 0:
                return seen
            pause = min(pause, left)
        time.sleep(pause)


def _ask(inventory: Inventory, ref: VmRef) -> tuple[Vm | None, str]:
    """The VM, None where it is not there or its VMM has ended, and how it is in words.

    A silent one is neither.
    """
    try:
        vm = lookup_vm(inventory, ref)
        return vm, f"{vm.state}, window {vm.window or '?'}"
    except RefusedStartError as error:
        return None, error.why or error.message
    except NotFoundError:
        return None, ABSENT
    except (UnreachableError, NoVmError) as error:
        if error.errno == "ECONNREFUSED":
            return None, "its VMM has ended"
        silent = Vm(name=str(ref), socket="", state=VmState.SILENT)
        return silent, error.why or error.message


def _check_sight(inventory: Inventory, ref: VmRef, last: ProcessId | None) -> None:
    """Raise DeniedError where a VM that is not seen may go on, in a process nobody could look at.

    `last` is the process it was seen in before: where that has ended, so has the VM.
    """
    procs, seen = inventory.session.host.procs, inventory.seen
    if last is not None and not procs.is_there(last):
        return
    # from root nothing is hidden but what is outside of its own pid namespace
    is_hidden = seen.is_partial and inventory.session.host.uid != 0
    if not isinstance(ref, ByPid):
        why = "processes may not be read by this user, and it may be in one of them"
        may_go_on = is_hidden or seen.unreadable > 0
    elif procs.start_time(ref.pid) is not None:
        why = f"process {ref.pid} is there, and may not be read by this user"
        may_go_on = procs.holds_kvm(ref.pid) is None
    else:
        why = f"other users' processes are hidden here, and {ref.pid} may be one of them"
        may_go_on = is_hidden
    if may_go_on:
        raise DeniedError(
            "it cannot be told whether it has stopped",
            subject=str(ref),
            why=why,
            fix=f"sudo {command('vm', 'wait', ref, '--for', Awaited.STOPPED)}",
        )


def _holds(vm: Vm | None, awaited: Awaited) -> bool:
    if vm is None:
        return awaited is Awaited.STOPPED
    match awaited:
        case Awaited.OPEN:
            return vm.window is Window.OPEN
        case Awaited.SEALED:
            return vm.window is Window.SEALED
        case Awaited.RUNNING:
            return vm.state is VmState.RUNNING
        case _:
            return False
