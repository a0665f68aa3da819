# SPDX-License-Identifier: Apache-2.0
"""The VMs of a host: those with a control socket, and those found by their processes."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from pmuctl.control.runtime.sockets import ControlSocket, SocketScan
from pmuctl.manage.inventory.poller import ask_all
from pmuctl.manage.inventory.processes import (
    ProcessScan,
    VmProcess,
    scan_processes,
    vms_of_processes,
)
from pmuctl.manage.inventory.query import is_gone, try_read
from pmuctl.manage.inventory.session import Session
from pmuctl.model.vm import Vm, VmVcpu
from pmuctl.value import field, replace, value


@value(kw_only=True)
class VmList:
    """VMs, and how many processes were `unreadable`, of which it is not known if they have VMs.

    `is_partial` is True if other users' processes are hidden altogether. `left_out` is how many
    control sockets of other users are too many to be queried, `scratch` how many VMs of pmuctl's
    own probes are left out, and `unbacked` how many VMs were hidden, by user (`hide_unbacked`).
    `unscanned` is as in ProcessScan, `unsearched` as in SocketScan.
    """

    vms: list[Vm]
    unreadable: int = 0
    is_partial: bool = False
    left_out: int = 0
    scratch: int = 0
    unbacked: Mapping[int, int] = field(default_factory=dict)
    unscanned: Mapping[int | None, int] = field(default_factory=dict)
    unsearched: Sequence[Path] = ()

    @property
    def may_lack_vms(self) -> bool:
        """Whether there may be VMs that were not seen, scratch and unbacked ones apart."""
        return self.is_partial or any(
            (self.unreadable, self.unscanned, self.left_out, self.unsearched)
        )


Ask = Callable[[Session, Sequence[ControlSocket]], Sequence[Vm]]
"""A function that queries control sockets and returns their VMs in the same order."""


class Inventory:
    """The VMs of a host for one command: processes are scanned once, each VM is queried once.

    Nothing is read before it is needed: a named VM does not wait for others that are silent. If
    the session names a socket, the inventory has only the VM there. `ask` queries all sockets
    together, in one deadline.
    """

    def __init__(self, session: Session, ask: Ask = ask_all) -> None:
        self.session = session
        self._ask_all = ask
        self._asked: dict[tuple[ControlSocket, bool], Vm] = {}
        self._named: list[int] = []

    @cached_property
    def socket_scan(self) -> SocketScan:
        """The control sockets to query, and how many are left out."""
        return self.session.find_sockets()

    @property
    def sockets(self) -> Sequence[ControlSocket]:
        """The control sockets that are not left out."""
        return self.socket_scan.sockets

    @cached_property
    def process_scan(self) -> ProcessScan:
        """The processes that have VMs."""
        if self.session.socket is not None:
            return ProcessScan()
        return scan_processes(self.session, named=self._named)

    def name_process(self, pid: int | None) -> None:
        """Have this process looked at before all others, if none was looked at so far."""
        if pid is not None:
            self._named.append(pid)

    @property
    def vms(self) -> list[Vm]:
        """Every VM but scratch VMs, each with its `problem` if it cannot be queried."""
        return [vm for vm in self._all_vms if not vm.is_scratch]

    @property
    def scratch(self) -> int:
        """How many scratch VMs are left out."""
        return sum(vm.is_scratch for vm in self._all_vms)

    @cached_property
    def _all_vms(self) -> list[Vm]:
        todo = [socket for socket in self.sockets if (socket, False) not in self._asked]
        for socket, vm in zip(todo, self._ask_all(self.session, todo), strict=True):
            self._asked[socket, False] = vm
        managed = [self._asked[socket, False] for socket in self.sockets]
        managed = [vm for vm in managed if not is_gone(vm)]
        return merge(managed, self.process_scan.processes, self.session)

    def ask(self, socket: ControlSocket, *, strictly: bool = False) -> Vm:
        """Return the VM of a control socket, with its `problem` if it cannot be queried.

        `strictly` is as in ask_vm.
        """
        key = (socket, strictly)
        if key not in self._asked:
            self._asked[key] = try_read(self.session, socket, strictly=strictly)
        return self.complete(self._asked[key])

    def complete(self, vm: Vm) -> Vm:
        """Return the VM of a control socket, completed with what its process shows of it."""
        self.name_process(vm.pid)
        processes = [
            process
            for process in self.process_scan.processes
            if process.kvm_process.process == vm.process
        ]
        merged = merge([vm], processes, self.session)
        return next(found for found in merged if found.socket == vm.socket)


def merge(managed: Sequence[Vm], processes: Sequence[VmProcess], session: Session) -> list[Vm]:
    """Return every VM once: a VM with a control socket is the one that its process has.

    If the process has several VMs, it is the one whose vCPUs have the same threads.
    """
    by_process = {process.kvm_process.process: process for process in processes}
    managed = [
        _add_identity(vm, by_process.get(vm.process) if vm.process else None) for vm in managed
    ]
    complete = {
        vm.process
        for vm in managed
        if vm.id and vm.id.fd is not None and not _has_unknown_threads(vm)
    }
    incomplete = [process for process in processes if process.kvm_process.process not in complete]
    found = vms_of_processes(incomplete, session)
    merged: list[Vm] = []
    for vm in managed:
        same = _find_counterpart(vm, [other for other in found if other.process == vm.process])
        merged.append(_add_threads(vm, same) if same else vm)
    known = [vm.id for vm in merged if vm.id and vm.id.fd is not None]
    merged += [vm for vm in found if vm.id not in known]
    return sorted(merged, key=_make_sort_key)


def _add_identity(vm: Vm, process: VmProcess | None) -> Vm:
    """Return a VM with a control socket, with what its process says it is."""
    if process is None or vm.id is None:
        return vm
    files = process.kvm_process.files
    fd = files[0] if len(files) == 1 else None
    return replace(vm, id=replace(vm.id, fd=fd), identity=process.identity)


def _has_unknown_threads(vm: Vm) -> bool:
    """Return True if a VM's process can show vCPU threads that its socket did not."""
    return vm.vcpus is None or any(vcpu.tid is None for vcpu in vm.vcpus)


def _find_counterpart(vm: Vm, found: Sequence[Vm]) -> Vm | None:
    """Return the VM, of those of its process, that a managed VM is; None if it is not known."""
    if len(found) == 1:
        return found[0]
    tids = _get_tids(vm)
    return next((other for other in found if tids & _get_tids(other)), None)


def _get_tids(vm: Vm) -> set[int]:
    return {vcpu.tid for vcpu in vm.vcpus or () if vcpu.tid is not None}


def _add_threads(vm: Vm, found: Vm) -> Vm:
    """Return a VM with a control socket, with the vCPU threads that only its process shows."""
    if vm.vcpus is None:
        return replace(vm, id=found.id, vcpus=found.vcpus or None)
    by_index = {vcpu.index: vcpu for vcpu in found.vcpus or ()}
    vcpus = tuple(_add_thread(vcpu, by_index.get(vcpu.index)) for vcpu in vm.vcpus)
    return replace(vm, id=found.id, vcpus=vcpus)


def _add_thread(vcpu: VmVcpu, found: VmVcpu | None) -> VmVcpu:
    if vcpu.tid is not None or vcpu.is_dead or found is None:
        return vcpu
    return replace(vcpu, tid=found.tid, evidence=found.evidence)


def _make_sort_key(vm: Vm) -> tuple[bool, str, int]:
    """Return a key that sorts by name, and VMs without a name last, by process."""
    is_unnamed = vm.socket is None and vm.name.startswith("pid/")
    return is_unnamed, "" if is_unnamed else vm.name, vm.pid or 0
