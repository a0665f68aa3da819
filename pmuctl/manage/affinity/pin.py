# SPDX-License-Identifier: Apache-2.0
"""Placing vCPU threads so that it lasts: recorded, not cut in two by a signal, and told."""

from collections.abc import Iterator, Mapping, Sequence

from pmuctl.control.runtime.affinity_record import write_affinity_record
from pmuctl.errors import PmuctlError, RefusedError, Stopped
from pmuctl.host.signals import defer_signals
from pmuctl.manage.affinity.blockers import cpuset_words
from pmuctl.manage.affinity.host_state import HostState
from pmuctl.manage.affinity.vcpu_threads import AffinityResult, VcpuThreads, set_affinities
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.vm import Vm
from pmuctl.model.vm_ref import VmId
from pmuctl.value import value


@value(kw_only=True)
class VmAffinityResult:
    """What became of the vCPU threads of a VM, and what is to be warned of.

    That is what the kernel left out of the masks, and that they could not be recorded.
    """

    vm: Vm
    placed: tuple[AffinityResult, ...]
    warnings: tuple[PmuctlError, ...] = ()

    @property
    def steps(self) -> tuple[str, ...]:
        """What was done, or would be, in the kernel's words."""
        return tuple(its.words() for its in self.placed if its.outcome != "unchanged")


def apply_affinity(
    crew: VcpuThreads,
    wanted: Mapping[int, CpuSet],
    host_state: HostState,
    *,
    all_of_them: bool,
    dry_run: bool,
) -> VmAffinityResult:
    """Put each vCPU's thread on the CPUs that are wanted, and record it: all, or nothing.

    Recorded is what was set, or with `all_of_them` also what was so already. A signal that ends
    pmuctl waits for that, and then says what was done. Raises what `set_affinities` does.
    """
    placed: list[AffinityResult] = []
    warnings: list[PmuctlError] = []
    try:
        with defer_signals():
            placed += set_affinities(crew, wanted, host_state, dry_run=dry_run)
            its = [one for one in placed if all_of_them or one.outcome == "set"]
            if not dry_run:
                warnings += _record(crew, {one.tid: one.wanted for one in its}, host_state)
    except Stopped as stop:
        done = VmAffinityResult(vm=crew.vm, placed=tuple(placed))
        stop.lost = stop.lost or (stopped_after([done]) if not dry_run else None)
        raise
    warnings += reductions(placed, crew.pid, host_state)
    return VmAffinityResult(vm=crew.vm, placed=tuple(placed), warnings=tuple(warnings))


def stopped_after(done: Sequence[VmAffinityResult]) -> PmuctlError | None:
    """What a signal leaves to be told; None where nothing was changed."""
    steps = [f"{its.vm.name}: {step}" for its in done for step in its.steps]
    if not steps:
        return None
    return RefusedError("stopped once vCPU threads were placed", now=f"set: {'; '.join(steps)}")


def _record(
    crew: VcpuThreads, placed: Mapping[int, CpuSet], host_state: HostState
) -> Iterator[PmuctlError]:
    vm = crew.vm
    its = vm.id or VmId(crew.process)
    try:
        write_affinity_record(
            host_state.host.environ,
            host_state.host.uid,
            its,
            placed,
            host_state.host.procs,
            owner=vm.owner,
        )
    except RefusedError as error:
        error.subject = vm.name
        yield error


def reductions(
    placed: Sequence[AffinityResult], pid: int, host_state: HostState
) -> Iterator[RefusedError]:
    """What the kernel left out of the CPUs that were wanted, each with who took it."""
    host_state.cpusets.forget()
    for its in placed:
        missing = its.wanted - its.cpus
        if host_state.online is not None:
            missing &= host_state.online
        if not missing or its.outcome == "planned":
            continue
        cpuset = host_state.cpusets.read(pid, its.tid)
        by = "the kernel left them out"
        if cpuset is not None and not missing <= cpuset.cpus:
            by = f"{cpuset_words(cpuset)} allows only {cpuset.cpus}"
        yield RefusedError(
            f"vCPU {its.vcpu} was put on {its.cpus} only",
            subject=its.vm,
            why=f"wanted were {its.wanted}; {by}",
        )
