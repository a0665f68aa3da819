# SPDX-License-Identifier: Apache-2.0
"""Control sockets in other users' directories behind which there is no VM: anybody makes those."""

from collections import Counter

from pmuctl.errors import PmuctlError
from pmuctl.manage.inventory.inventory import VmList
from pmuctl.manage.inventory.session import Session
from pmuctl.model.vm import Vm, VmState
from pmuctl.value import replace

FEW = 4
"""So many of one user are listed as all others are: VMMs that have crashed leave some behind."""


def is_unbacked(vm: Vm, session: Session) -> bool:
    """Whether it is no more than another user's socket that tells of no VM, whatever it says: that
    this is private, or an orphan's, too.

    Behind it no process is known, by its peer or its record, that has a KVM VM open. One in
    root's or the caller's own directory, or that was named, is none: nobody else can make that.
    """
    if vm.is_own or session.socket is not None or vm.query_error is None:
        return False
    if vm.process is None:
        # of one that an ordinary user may not connect to nothing is known; root may
        return vm.state is not VmState.DENIED or session.user == 0
    return session.host.procs.holds_kvm(vm.process.pid) is False


def failure_of(vm: Vm, session: Session) -> PmuctlError | None:
    """Why a VM fails where all VMs are meant: it cannot be asked, nor does its process tell its
    vCPUs.

    That of one that has ended, or that is hollow, is none: its user would decide on the exit
    status of root's command.
    """
    is_none = vm.state is VmState.DEAD or is_unbacked(vm, session)
    return None if is_none else vm.query_error


def hide_unbacked(seen: VmList, session: Session) -> VmList:
    """The same without hollow VMs of users who have more than FEW, which are counted instead."""
    judged = [(vm, is_unbacked(vm, session)) for vm in seen.vms]
    counts = Counter(vm.owner for vm, hollow in judged if hollow)
    heaps = {uid: count for uid, count in counts.items() if uid is not None and count > FEW}
    kept = [vm for vm, hollow in judged if not (hollow and vm.owner in heaps)]
    return replace(seen, vms=kept, unbacked=heaps)
