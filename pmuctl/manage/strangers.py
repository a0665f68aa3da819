# SPDX-License-Identifier: Apache-2.0
"""Control sockets in other users' directories behind which there is no VM: anybody makes those."""

from pmuctl.errors import PmuctlError
from pmuctl.manage.reach import Reach
from pmuctl.model.vm import Vm, VmState


def is_hollow(vm: Vm, reach: Reach) -> bool:
    """Whether it is no more than another user's socket that does not answer as it should.

    Behind it no process is known, by its peer or its record, that has a KVM VM open. One in
    root's or the caller's own directory, or that was named, is none: nobody else can make that.
    """
    if vm.is_own or reach.socket is not None or vm.untold is None:
        return False
    if vm.state not in (VmState.DEAD, VmState.SILENT):
        return False
    return vm.process is None or reach.procs.holds_kvm(vm.process.pid) is False


def failure_of(vm: Vm, reach: Reach) -> PmuctlError | None:
    """Why a VM fails where all VMs are meant: it cannot be asked, nor does its process tell its
    vCPUs.

    That of one that has ended, or that is hollow, is none: its user would decide on the exit
    status of root's command.
    """
    is_none = vm.state is VmState.DEAD or is_hollow(vm, reach)
    return None if is_none else vm.untold
