# SPDX-License-Identifier: Apache-2.0
"""Control sockets in other users' directories with no VM behind them, which anybody can make."""

from collections import Counter

from pmuctl.errors import PmuctlError
from pmuctl.manage.inventory.inventory import VmList
from pmuctl.manage.inventory.session import Session
from pmuctl.model.vm import Vm, VmState
from pmuctl.value import replace

FEW = 4
"""Up to so many of one user are listed as all VMs are: crashed VMMs leave some behind."""


def is_unbacked(vm: Vm, session: Session) -> bool:
    """Return True for a socket in another user's directory that cannot be queried and that no
    process with a KVM VM stands behind, in whatever state it is (orphaned, too).

    A process is known by the socket's peer or its record. A socket that was named, or that is in
    root's or the caller's own directory, is never unbacked: nobody else can make that.
    """
    if vm.is_own or session.socket is not None or vm.query_error is None:
        return False
    if vm.process is None:
        # nothing is known of one that an ordinary user may not connect to; root may
        return vm.state is not VmState.DENIED or session.user == 0
    return session.host.procs.holds_kvm(vm.process.pid) is False


def failure_of(vm: Vm, session: Session) -> PmuctlError | None:
    """Return why a VM fails in a command on all VMs: it cannot be queried, and its process does
    not show its vCPUs.

    Return None for a VM that has ended or is unbacked: its user would decide on the exit status
    of root's command.
    """
    is_ignored = vm.state is VmState.DEAD or is_unbacked(vm, session)
    return None if is_ignored else vm.query_error


def hide_unbacked(vm_list: VmList, session: Session) -> VmList:
    """Return the list without unbacked VMs of users who have more than FEW; they are counted."""
    judged = [(vm, is_unbacked(vm, session)) for vm in vm_list.vms]
    counts = Counter(vm.owner for vm, unbacked in judged if unbacked)
    hidden = {uid: count for uid, count in counts.items() if uid is not None and count > FEW}
    kept = [vm for vm, unbacked in judged if not (unbacked and vm.owner in hidden)]
    return replace(vm_list, vms=kept, unbacked=hidden)
