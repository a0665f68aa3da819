# SPDX-License-Identifier: Apache-2.0
"""The VMs of a host: those with a control socket, and those found by their processes."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

from pmuctl.control.runtime.sockets import ControlSocket, SocketScan
from pmuctl.manage.inventory.poller import ask_all
from pmuctl.manage.inventory.processes import (
    ProcessScan,
    VmProcess,
    scan_processes,
    vms_of_processes,
)
from pmuctl.manage.inventory.query import try_read
from pmuctl.manage.inventory.session import Session
from pmuctl.model.vm import Vm, VmVcpu
from pmuctl.value import field, replace, value


@value(kw_only=True)
class VmList:
    """VMs, and how many processes could not be looked at: whether those have VMs is not known.

    `is_partial` tells that other users' processes are hidden altogether, `left_out` how many
    control sockets of other users are too many to be asked; `scratch` are the VMs of pmuctl's own
    probes, which are left out. `hollow` is how many were sifted out, by user (see `sift`).
    """

    vms: list[Vm]
    unreadable: int = 0
    is_partial: bool = False
    left_out: int = 0
    scratch: int = 0
    unbacked: Mapping[int, int] = field(default_factory=dict)


Ask = Callable[[Session, Sequence[ControlSocket]], Sequence[Vm]]
"""Asks control sockets, in an order that is kept."""


class Inventory:
    """What is on a host, for one command: processes are looked at once, and each VM is asked once.

    Nothing is done before somebody wants to know it: a VM that is named is not kept waiting for
    others that are silent. Where a socket was named, there is nothing but the VM there. All
    sockets are asked by `ask`, in one deadline.
    """

    def __init__(self, session: Session, ask: Ask = ask_all) -> None:
        self.session = session
        self._ask_all = ask
        self._asked: dict[tuple[ControlSocket, bool], Vm] = {}

    @cached_property
    def sockets(self) -> SocketScan:
        """The control sockets, and how many are left out."""
        return self.session.scan_sockets()

    @property
    def entries(self) -> Sequence[ControlSocket]:
        """Those that are not left out."""
        return self.sockets.entries

    @cached_property
    def seen(self) -> ProcessScan:
        """The processes that have VMs."""
        return (
            ProcessScan() if self.session.socket is not None else scan_processes(self.session.host)
        )

    @property
    def vms(self) -> list[Vm]:
        """Every VM but scratch VMs, each with its problem if it has one."""
        return [vm for vm in self._all if not vm.is_scratch]

    @property
    def scratch(self) -> int:
        """How many are left out."""
        return sum(vm.is_scratch for vm in self._all)

    @cached_property
    def _all(self) -> list[Vm]:
        todo = [entry for entry in self.entries if (entry, False) not in self._asked]
        for entry, vm in zip(todo, self._ask_all(self.session, todo), strict=True):
            self._asked[entry, False] = vm
        managed = [self._asked[entry, False] for entry in self.entries]
        return merge(managed, self.seen.processes, self.session)

    def ask(self, entry: ControlSocket, *, strictly: bool = False) -> Vm:
        """The VM of a control socket, with its problem if it has one; `strictly` as ask_vm."""
        return self.whole(self._ask(entry, strictly=strictly))

    def whole(self, vm: Vm) -> Vm:
        """The VM of a control socket, with what its process tells of it."""
        processes = [its for its in self.seen.processes if its.holder.process == vm.process]
        found = merge([vm], processes, self.session)
        return next(its for its in found if its.socket == vm.socket)

    def _ask(self, entry: ControlSocket, *, strictly: bool = False) -> Vm:
        key = (entry, strictly)
        if key not in self._asked:
            self._asked[key] = try_read(self.session, entry, strictly=strictly)
        return self._asked[key]


def merge(managed: Sequence[Vm], processes: Sequence[VmProcess], session: Session) -> list[Vm]:
    """Every VM once: one with a control socket is the one that its process has.

    Where a process has several, it is the one whose vCPUs have the same threads.
    """
    by_process = {its.holder.process: its for its in processes}
    managed = [
        _identified(vm, by_process.get(vm.process) if vm.process else None) for vm in managed
    ]
    whole = {vm.process for vm in managed if vm.id and vm.id.fd is not None and not _lacks(vm)}
    found = vms_of_processes(
        [its for its in processes if its.holder.process not in whole], session
    )
    merged: list[Vm] = []
    for vm in managed:
        its = _counterpart(vm, [its for its in found if its.process == vm.process])
        merged.append(_filled(vm, its) if its else vm)
    known = [vm.id for vm in merged if vm.id and vm.id.fd is not None]
    merged += [vm for vm in found if vm.id not in known]
    return sorted(merged, key=_order)


def _identified(vm: Vm, process: VmProcess | None) -> Vm:
    """A VM with a control socket, and what its process says it is."""
    if process is None or vm.id is None:
        return vm
    files = process.holder.files
    fd = files[0] if len(files) == 1 else None
    return replace(vm, id=replace(vm.id, fd=fd), identity=process.identity)


def _lacks(vm: Vm) -> bool:
    """Whether its process can tell more of a VM than its socket has."""
    return vm.vcpus is None or any(its.tid is None for its in vm.vcpus)


def _counterpart(vm: Vm, found: Sequence[Vm]) -> Vm | None:
    """The VM of its process that a VM with a control socket is; None where that is not known."""
    if len(found) == 1:
        return found[0]
    tids = _tids(vm)
    return next((its for its in found if tids & _tids(its)), None)


def _tids(vm: Vm) -> set[int]:
    return {its.tid for its in vm.vcpus or () if its.tid is not None}


def _filled(vm: Vm, found: Vm) -> Vm:
    """A VM with a control socket, and what only its process tells: threads of its vCPUs."""
    if vm.vcpus is None:
        return replace(vm, id=found.id, vcpus=found.vcpus or None)
    its = {vcpu.index: vcpu for vcpu in found.vcpus or ()}
    vcpus = tuple(_with_thread(vcpu, its.get(vcpu.index)) for vcpu in vm.vcpus)
    return replace(vm, id=found.id, vcpus=vcpus)


def _with_thread(vcpu: VmVcpu, found: VmVcpu | None) -> VmVcpu:
    if vcpu.tid is not None or found is None:
        return vcpu
    return replace(vcpu, tid=found.tid, evidence=found.evidence)


def _order(vm: Vm) -> tuple[bool, str, int]:
    """By name; those that have none behind the others, by process."""
    has_none = vm.socket is None and vm.name.startswith("pid/")
    return has_none, "" if has_none else vm.name, vm.pid or 0
