# SPDX-License-Identifier: Apache-2.0
"""The vCPU threads of one VM, and the errors for those that are not known, dead or gone."""

from collections.abc import Mapping

from pmuctl.errors import (
    NOTHING_CHANGED,
    GoneError,
    NotFoundError,
    UnknownThreadsError,
    command,
)
from pmuctl.manage.affinity.host_state import HostState
from pmuctl.model.alignment import format_vcpus
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.vm import Vm, VmState
from pmuctl.model.vm_ref import ProcessId
from pmuctl.model.vmm.identity import VmmKind
from pmuctl.value import value


@value
class VcpuThreads:
    """The vCPU threads of a VM as they were found: `tids` by vCPU number, `starts` by thread id.

    The kernel reuses the id of a thread that has ended; the start time tells them apart.
    """

    vm: Vm
    process: ProcessId
    tids: Mapping[int, int]
    starts: Mapping[int, int | None]

    @property
    def pid(self) -> int:
        """The id of their process."""
        return self.process.pid

    @classmethod
    def of(cls, vm: Vm, host_state: HostState, *, only: CpuSet | None = None) -> "VcpuThreads":
        """Return the threads of the vCPUs `only`, by default of all.

        Raise NotFoundError for a vCPU that does not exist, the VM's `problem` if it could not be
        queried, and UnknownThreadsError if a thread is not known.
        """
        if vm.process is None or not vm.vcpus:
            raise vm.problem or no_threads(vm)
        indices = [vcpu.index for vcpu in vm.vcpus]
        if only is not None and (absent := only - CpuSet.of(indices)):
            raise NotFoundError(
                f"there is no vCPU {absent}",
                subject=vm.name,
                why=f"its vCPUs are {CpuSet.of(indices)}",
                fix=command("vm", "vcpus", vm.address),
            )
        if dead := [n for n in vm.dead_vcpus if only is None or n in only]:
            if only is not None or len(dead) == len(indices):
                raise make_dead_error(vm, CpuSet.of(dead))
        tids = {
            vcpu.index: vcpu.tid
            for vcpu in vm.vcpus
            if not vcpu.is_dead and (only is None or vcpu.index in only)
        }
        known = {index: tid for index, tid in tids.items() if tid is not None}
        if len(known) < len(tids):
            raise no_threads(vm, CpuSet.of(tids.keys() - known.keys()))
        starts = {tid: host_state.host.procs.start_time(tid) for tid in known.values()}
        return cls(vm, vm.process, known, starts)

    def check(self, host_state: HostState, vcpu: int) -> None:
        """Raise GoneError unless the thread of a vCPU is still the one that was found."""
        tid = self.tids[vcpu]
        procs = host_state.host.procs
        is_there = tid in procs.threads(self.pid) and procs.start_time(tid) == self.starts[tid]
        # the process is checked last: then the thread that was seen above is one of its own
        if not is_there or not procs.is_there(self.process):
            raise make_gone_error(self.vm, vcpu, tid)


def unknown_threads(vm: Vm) -> CpuSet:
    """Return the vCPUs of a VM whose thread is not known; those of dead vCPUs are."""
    vcpus = vm.vcpus or ()
    return CpuSet.of(vcpu.index for vcpu in vcpus if vcpu.tid is None and not vcpu.is_dead)


def has_unknown_threads(vm: Vm) -> bool:
    """Return whether the thread of some vCPU is not known, or which vCPUs it has at all.

    Return False for a VM that could not be queried.
    """
    return bool(unknown_threads(vm)) or (vm.vcpus is None and vm.query_error is None)


def make_dead_error(vm: Vm, vcpus: CpuSet) -> GoneError:
    """Return the error for vCPUs that have run and whose threads have ended."""
    return GoneError(
        f"vCPU {vcpus} is dead",
        subject=vm.name,
        why="it has run, and its thread has ended",
        now="the VM goes on without it",
        fix=f"end {vm.name} and start it anew; pmuctl monitor --repair keeps vCPUs on their PMU",
    )


def no_threads(vm: Vm, vcpus: CpuSet | None = None) -> UnknownThreadsError:
    """Return the error for a VM whose vCPU threads, or those of these vCPUs, are not known."""
    unknown = [vcpu for vcpu in vm.vcpus or () if vcpus is None or vcpu.index in vcpus]
    if vm.state in (VmState.STARTING, VmState.WAITING):
        why = "its VMM does not tell, and no vCPU has run yet"
        fix = command("vm", "wait", vm.address, "--for", "running")
        if vm.state is VmState.WAITING:  # it runs only once it is released
            fix = command("vm", "release", vm.address)
    elif unknown and all(vcpu.has_run is False for vcpu in unknown):
        why = "its VMM does not tell, and such a vCPU has not run yet"
        fix = command("vm", "vcpus", vm.address)
    else:
        why = "it has run, but neither its VMM nor KVM nor the names of its threads tell"
        fix = "start the VM with pmuctl run"
        if vm.identity.kind is VmmKind.QEMU:
            fix = f"start QEMU with -name NAME,debug-threads=on, or {fix}"
    return UnknownThreadsError(
        f"which threads run {format_vcpus(vcpus) if vcpus else 'its vCPUs'} is not known",
        subject=vm.name,
        why=why,
        now=NOTHING_CHANGED,
        fix=fix,
    )


def make_gone_error(vm: Vm, vcpu: int, tid: int) -> GoneError:
    """Return the error for a vCPU whose thread has ended, or is another one by now."""
    return GoneError(
        f"vCPU {vcpu}: its thread {tid} is gone",
        subject=vm.name,
        why="it has ended since the VM was asked",
        fix=command("vm", "vcpus", vm.address),
        errno="ESRCH",
    )
