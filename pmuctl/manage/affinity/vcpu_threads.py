# SPDX-License-Identifier: Apache-2.0
"""The vCPU threads of one VM, and setting their affinity: all of them or none."""

import errno
from collections.abc import Mapping, Sequence
from contextlib import suppress

from pmuctl.errors import (
    NOTHING_CHANGED,
    DeniedError,
    GoneError,
    NotFoundError,
    PmuctlError,
    RefusedError,
    UnknownThreadsError,
    command,
)
from pmuctl.host.resource_errors import spare_descriptor
from pmuctl.host.thread_affinity import NO_USABLE_CPU
from pmuctl.manage.affinity.blockers import Blocker, find_blocker
from pmuctl.manage.affinity.host_state import HostState
from pmuctl.manage.hints import describe_cpus
from pmuctl.model.alignment import format_vcpus
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.effective_pmu import Consequence
from pmuctl.model.plan import SetAffinity
from pmuctl.model.vm import Vm, VmState
from pmuctl.model.vm_ref import ProcessId
from pmuctl.model.vmm.identity import VmmKind
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
        if dead := [n for n in vm.dead_vcpus if only is None or n in only.cpus]:
            if only is not None or len(dead) == len(indices):
                raise make_dead_error(vm, CpuSet.of(dead))
        tids = {
            vcpu.index: vcpu.tid
            for vcpu in vm.vcpus
            if not vcpu.is_dead and (only is None or vcpu.index in only.cpus)
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
            raise _make_gone_error(self.vm, vcpu, tid)


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
    unknown = [vcpu for vcpu in vm.vcpus or () if vcpus is None or vcpu.index in vcpus.cpus]
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


def check_inside(cpus: CpuSet, pmu: CpuSet, vm: Vm, name: str) -> None:
    """Raise RefusedError unless all of these CPUs belong to the PMU `name`, which was set."""
    if outside := cpus - pmu:
        raise RefusedError(
            f"{describe_cpus(outside)} not of {name}",
            subject=vm.name,
            why=f"its CPUs are {pmu}; {Consequence.FAIL_ENTRY.explain()}",
            now=NOTHING_CHANGED,
            fix=command("affinity", "set", vm.address, cpus & pmu or pmu),
        )


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


def _make_gone_error(vm: Vm, vcpu: int, tid: int) -> GoneError:
    return GoneError(
        f"vCPU {vcpu}: its thread {tid} is gone",
        subject=vm.name,
        why="it has ended since the VM was asked",
        fix=command("vm", "vcpus", vm.address),
        errno="ESRCH",
    )


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
        return _make_gone_error(vm, step.vcpu, step.tid)
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
