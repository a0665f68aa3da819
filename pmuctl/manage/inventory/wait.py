# SPDX-License-Identifier: Apache-2.0
"""Wait until a VM is in a given state."""

import time
from collections.abc import Callable
from enum import StrEnum

from pmuctl.errors import DeniedError, NotFoundError, NoVmError, UnreachableError, command
from pmuctl.manage.inventory.inventory import Inventory
from pmuctl.manage.inventory.lookup import lookup_vm
from pmuctl.manage.inventory.processes import make_unscanned_error
from pmuctl.manage.inventory.session import Session
from pmuctl.manage.inventory.start_records import RefusedStartError
from pmuctl.model.alignment import VmAlignment
from pmuctl.model.vm import Vm, VmState, Window
from pmuctl.model.vm_ref import ByPid, ProcessId, VmRef
from pmuctl.value import replace

POLL_SECONDS = 0.2
ANSWER_SECONDS = 1.0
"""A VM has at least so long to answer, even if less is left: it is always queried once."""
ABSENT = "there is no such VM"
NEVER_ALIGNED = "it has no PMU, and a VM without one is never aligned"


class Awaited(StrEnum):
    """A state that can be waited for."""

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
    """Query a VM until it is in the awaited state; return None then.

    After `timeout` seconds (None: never), return a description of its last state. If ALIGNED is
    awaited, that includes what `assess` explains of its alignment.

    A VM that does not exist yet, or does not answer, is queried again; a silent one takes no
    longer than the time that is left, or ANSWER_SECONDS. Raise what `lookup_vm` raises otherwise,
    and DeniedError if STOPPED is awaited of a VM that may go on where this user cannot look,
    UnreachableError where there was no time to look.
    """
    traced = ""
    last: ProcessId | None = None
    until = None if timeout is None else time.monotonic() + timeout
    while True:
        if until is not None:
            left = max(until - time.monotonic(), ANSWER_SECONDS)
            session = replace(session, deadline=min(session.deadline, left))
        begin = time.monotonic()
        inventory = Inventory(session)
        vm, description = _query_vm(inventory, ref)
        last = vm.process if vm is not None else last
        if description == ABSENT and awaited is Awaited.STOPPED:
            _refuse_hidden(inventory, ref, last)
        if vm is not None and awaited is Awaited.ALIGNED:
            alignment = assess(vm)
            if alignment.aligned:
                return None
            # as long as its window is unknown, it may still get a PMU
            if explanation := alignment.explanation or (vm.window and NEVER_ALIGNED):
                description = f"{description}; {explanation}"
        elif _is_reached(vm, awaited):
            return None
        if description != traced and session.trace is not None:
            session.trace(f"{ref}: {description}")
            traced = description
        # a scan of very many processes takes time: it is to take no more than half of all time
        pause = max(POLL_SECONDS, time.monotonic() - begin)
        if until is not None:
            left = until - time.monotonic()
            if left <= 0:
                return description
            pause = min(pause, left)
        time.sleep(pause)


def _query_vm(inventory: Inventory, ref: VmRef) -> tuple[Vm | None, str]:
    """Return the VM and a description of its state; no VM if there is none or its VMM has ended.

    A VM that does not answer is returned as silent.
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


def _refuse_hidden(inventory: Inventory, ref: VmRef, last: ProcessId | None) -> None:
    """Raise DeniedError if a VM that is not found may go on in a process this user cannot read.

    Raise UnreachableError if it may go on in one that there was no time to look at.
    `last` is the process it was found in before: if that has ended, so has the VM.
    """
    procs, scan = inventory.session.host.procs, inventory.process_scan
    if last is not None and not procs.is_there(last):
        return
    # only processes outside of its own pid namespace are hidden from root
    if scan.unscanned and not isinstance(ref, ByPid):
        raise make_unscanned_error(scan.unscanned)
    is_hidden = scan.is_partial and inventory.session.host.uid != 0
    if not isinstance(ref, ByPid):
        why = "processes may not be read by this user, and it may be in one of them"
        may_go_on = is_hidden or scan.unreadable > 0
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


def _is_reached(vm: Vm | None, awaited: Awaited) -> bool:
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
