# SPDX-License-Identifier: Apache-2.0
"""Changes of the masks of a VM's vCPU threads: all of them or none."""

import errno
from collections.abc import Mapping, Sequence
from contextlib import suppress

from pmuctl.errors import (
    NOTHING_CHANGED,
    DeniedError,
    NotFoundError,
    PmuctlError,
    RefusedError,
)
from pmuctl.host.resource_errors import spare_descriptor
from pmuctl.host.thread_affinity import NO_USABLE_CPU
from pmuctl.manage.affinity.blockers import Blocker, find_blocker
from pmuctl.manage.affinity.host_state import HostState
from pmuctl.manage.affinity.vcpu_threads import VcpuThreads, make_gone_error
from pmuctl.model.alignment import format_vcpus
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.plan import SetAffinity
from pmuctl.model.vm import Vm
from pmuctl.value import value


@value(kw_only=True)
class AffinityResult:
    """The outcome for a vCPU's thread: `set`, `unchanged` or `planned`.

    `cpus` is its mask now, or as it would be, `before` the one it had. `wanted` are the CPUs that
    were asked for; the kernel leaves out those that are offline or not in the cpuset.
    """

    vm: str
    vcpu: int
    tid: int
    outcome: str
    cpus: CpuSet
    before: CpuSet
    wanted: CpuSet

    def describe(self) -> str:
        """Return the system call that sets the mask."""
        return SetAffinity(self.vcpu, self.tid, self.wanted, self.before).describe()


def current_masks(vcpu_threads: VcpuThreads, host_state: HostState) -> dict[int, CpuSet]:
    """Return the mask of each vCPU's thread; raise GoneError if one is gone."""
    masks: dict[int, CpuSet] = {}
    for vcpu, tid in sorted(vcpu_threads.tids.items()):
        try:
            masks[vcpu] = host_state.host.threads.get(tid)
        except OSError as error:
            step = SetAffinity(vcpu, tid, CpuSet(), CpuSet())
            raise _make_affinity_error(vcpu_threads, host_state, step, error) from error
    return masks


def set_affinities(
    vcpu_threads: VcpuThreads,
    wanted: Mapping[int, CpuSet],
    host_state: HostState,
    *,
    dry_run: bool,
) -> list[AffinityResult]:
    """Put each vCPU's thread on the CPUs that are wanted, all or none.

    What is known to be in the way is refused before any thread is changed. Raise DeniedError,
    GoneError or RefusedError; its `now` says which threads could not be put back. Whatever else
    is raised, the threads are put back as well; the host's `changes` has those that could not be.
    """
    masks = current_masks(vcpu_threads, host_state)
    steps = [
        SetAffinity(n, vcpu_threads.tids[n], cpus, masks[n]) for n, cpus in sorted(wanted.items())
    ]
    todo = [step for step in steps if step.cpus != step.before]
    # a thread cannot be left with a mask in which no CPU is online
    stranded = [
        step
        for step in steps
        if host_state.online is not None and not step.cpus & host_state.online
    ]
    for step in (*todo, *stranded):
        if blocker := find_blocker(vcpu_threads.pid, step.tid, step.cpus, host_state):
            raise make_blocked_error(vcpu_threads.vm, step, blocker)
    if dry_run:
        return [_make_result(vcpu_threads, step, step.cpus, dry_run=True) for step in steps]
    return _apply_steps(steps, vcpu_threads, host_state)


def _apply_steps(
    steps: Sequence[SetAffinity], vcpu_threads: VcpuThreads, host_state: HostState
) -> list[AffinityResult]:
    """Set the masks that differ, and read back what the kernel made of them: all or none."""
    vm, host = vcpu_threads.vm, host_state.host
    done: list[SetAffinity] = []
    with spare_descriptor() as free_descriptor:
        try:
            for step in steps:
                if step.cpus == step.before:
                    continue
                vcpu_threads.check(host_state, step.vcpu)
                host.changes.add(vm.name, [step.describe()])
                done.append(step)
                try:
                    host.threads.set(step.tid, step.cpus)
                except (OSError, PmuctlError):  # it was refused
                    host.changes.remove(vm.name, done.pop().describe())
                    raise
            return [
                _make_result(vcpu_threads, step, _read_back(step, host_state)) for step in steps
            ]
        except BaseException as error:
            free_descriptor()
            left = [undo for undo in done if not _undo_step(undo, vcpu_threads, host_state)]
            problem = _explain_error(error, vcpu_threads, host_state, step)
            if isinstance(problem, PmuctlError):
                problem.subject = vm.name
                problem.now = _describe_state(done, left)
            raise problem from None


def _read_back(step: SetAffinity, host_state: HostState) -> CpuSet:
    """Return the mask of a thread now, the wanted one if the thread has ended since."""
    if step.cpus == step.before:
        return step.before
    with suppress(OSError):
        return host_state.host.threads.get(step.tid)
    return step.cpus


def _make_result(
    vcpu_threads: VcpuThreads, step: SetAffinity, now: CpuSet, *, dry_run: bool = False
) -> AffinityResult:
    outcome = "unchanged" if now == step.before else "planned" if dry_run else "set"
    return AffinityResult(
        vm=vcpu_threads.vm.name,
        vcpu=step.vcpu,
        tid=step.tid,
        outcome=outcome,
        cpus=now,
        before=step.before,
        wanted=step.cpus,
    )


def _undo_step(step: SetAffinity, vcpu_threads: VcpuThreads, host_state: HostState) -> bool:
    """Put a thread back on its mask; return False if that fails, True also if it has ended.

    Nothing is raised: the other threads are to be put back, too.
    """
    host = host_state.host
    try:
        vcpu_threads.check(host_state, step.vcpu)
        host.threads.set(step.tid, step.before)
    except (NotFoundError, ProcessLookupError):
        pass
    except BaseException:
        # it may have been raised just after the call
        if not _has_mask(step.tid, step.before, host_state):
            return False
    host.changes.remove(vcpu_threads.vm.name, step.describe())
    return True


def _has_mask(tid: int, cpus: CpuSet, host_state: HostState) -> bool:
    """Return whether a thread is known to have this mask. Nothing is raised."""
    try:
        return host_state.host.threads.get(tid) == cpus
    except BaseException:
        return False


def _describe_state(done: Sequence[SetAffinity], left: Sequence[SetAffinity]) -> str:
    """Return which threads were put back, and which were left with their new masks."""
    parts = []
    if left:
        parts.append(f"left so: {'; '.join(step.describe() for step in left)}")
    if back := [step.vcpu for step in done if step not in left]:
        parts.append(f"{format_vcpus(back)} put back")
    return "; ".join([*parts, "nothing else was changed"]) if parts else NOTHING_CHANGED


def make_blocked_error(vm: Vm, step: SetAffinity, blocker: Blocker) -> RefusedError:
    """Return the error for a step that something on this machine blocks."""
    return RefusedError(
        f"vCPU {step.vcpu} cannot be put on {step.cpus}",
        subject=vm.name,
        why=f"{blocker.why} (sched_setaffinity gives EINVAL)",
        now=NOTHING_CHANGED,
        fix=blocker.fix,
        errno="EINVAL",
    )


def _explain_error(
    error: BaseException, vcpu_threads: VcpuThreads, host_state: HostState, step: SetAffinity
) -> BaseException:
    """Return what explains an OSError of a step; any other exception as it is."""
    if not isinstance(error, OSError):
        return error
    try:
        return _make_affinity_error(vcpu_threads, host_state, step, error)
    except PmuctlError as other:  # files are read for the reason
        return other


def _make_affinity_error(
    vcpu_threads: VcpuThreads, host_state: HostState, step: SetAffinity, error: OSError
) -> PmuctlError:
    """Return the error that explains an errno of sched_setaffinity(2)."""
    vm, number = vcpu_threads.vm, error.errno or errno.EINVAL
    host_state.cpusets.forget()
    name = errno.errorcode.get(number, str(number))
    if number == errno.ESRCH:
        return make_gone_error(vm, step.vcpu, step.tid)
    if number in (errno.EPERM, errno.EACCES):
        whose = "another user" if vm.owner is None else f"uid {vm.owner}"
        return DeniedError(
            f"vCPU {step.vcpu}: its thread may not be placed by this user",
            subject=vm.name,
            why=f"process {vcpu_threads.pid} is of {whose}: that takes CAP_SYS_NICE ({name})",
            fix=f"run pmuctl as root or as {whose if vm.owner is not None else 'that user'}",
            errno=name,
        )
    if number == errno.EINVAL and (
        blocker := find_blocker(vcpu_threads.pid, step.tid, step.cpus, host_state)
    ):
        return make_blocked_error(vm, step, blocker)
    return RefusedError(
        f"vCPU {step.vcpu} cannot be put on {step.cpus}",
        subject=vm.name,
        why=f"sched_setaffinity gives {name}"
        + (f": {NO_USABLE_CPU}" if number == errno.EINVAL else ""),
        errno=name,
    )
