# SPDX-License-Identifier: Apache-2.0
"""Setting and recording the affinity of a VM's vCPU threads, which no signal interrupts."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

from pmuctl.control.runtime.affinity_record import write_affinity_record
from pmuctl.errors import PmuctlError, RefusedError
from pmuctl.host.resource_errors import ResourceExhaustedError
from pmuctl.host.signals import defer_signals
from pmuctl.manage.affinity.blockers import describe_cpuset
from pmuctl.manage.affinity.host_state import HostState
from pmuctl.manage.affinity.mask_changes import AffinityResult, set_affinities
from pmuctl.manage.affinity.vcpu_threads import VcpuThreads
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.vm import Vm
from pmuctl.model.vm_ref import VmId
from pmuctl.value import value


@value(kw_only=True)
class VmAffinityResult:
    """The result of each vCPU thread of a VM, and warnings.

    A warning says which CPUs the kernel left out of a mask, or that nothing could be recorded.
    """

    vm: Vm
    results: tuple[AffinityResult, ...]
    warnings: tuple[PmuctlError, ...] = ()

    @property
    def steps(self) -> tuple[str, ...]:
        """The system calls that were made, or would be."""
        return tuple(result.describe() for result in self.results if result.outcome != "unchanged")


def apply_affinity(
    vcpu_threads: VcpuThreads,
    wanted: Mapping[int, CpuSet],
    host_state: HostState,
    *,
    record_unchanged: bool,
    dry_run: bool,
) -> VmAffinityResult:
    """Put each vCPU's thread on the CPUs that are wanted, and record it: all, or nothing.

    Record what was set, and with `record_unchanged` also masks that were so already. A signal
    that ends pmuctl waits for that. Raise what `set_affinities` raises; whatever is raised once
    all threads are set, the host's `changes` tells so.
    """
    warnings: list[PmuctlError] = []
    with defer_signals():
        results = set_affinities(vcpu_threads, wanted, host_state, dry_run=dry_run)
        masks = {
            result.tid: result.wanted
            for result in results
            if record_unchanged or result.outcome == "set"
        }
        if not dry_run:
            warnings += _record_affinity(vcpu_threads, masks, host_state)
    if not dry_run:
        warnings += _iter_reductions(results, vcpu_threads.pid, host_state)
    return VmAffinityResult(vm=vcpu_threads.vm, results=tuple(results), warnings=tuple(warnings))


def _record_affinity(
    vcpu_threads: VcpuThreads, masks: Mapping[int, CpuSet], host_state: HostState
) -> Iterator[PmuctlError]:
    """Record these masks, by thread id; yield the error if that fails."""
    vm = vcpu_threads.vm
    try:
        write_affinity_record(
            host_state.host.environ,
            host_state.host.uid,
            vm.id or VmId(vcpu_threads.process),
            masks,
            host_state.host.procs,
            owner=vm.owner,
        )
    except RefusedError as error:
        error.subject = vm.name
        yield error


def _iter_reductions(
    results: Sequence[AffinityResult], pid: int, host_state: HostState
) -> Iterator[RefusedError]:
    """Yield a warning for each thread whose mask the kernel reduced, with what reduced it."""
    host_state.cpusets.forget()
    for result in results:
        missing = result.wanted - result.cpus
        if host_state.online is not None:
            missing &= host_state.online
        if not missing:
            continue
        by = "the kernel left them out"
        with suppress(ResourceExhaustedError):  # what was done is told without the reason, too
            cpuset = host_state.cpusets.read(pid, result.tid)
            if cpuset is not None and not missing <= cpuset.cpus:
                by = f"{describe_cpuset(cpuset)} allows only {cpuset.cpus}"
        yield RefusedError(
            f"vCPU {result.vcpu} was put on {result.cpus} only",
            subject=result.vm,
            why=f"wanted were {result.wanted}; {by}",
        )
