# SPDX-License-Identifier: Apache-2.0
"""Putting the vCPU threads of one VM on CPUs: all of them or none, and why it cannot be."""

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
from pmuctl.manage.affinity.blockers import Blocker, find_blocker
from pmuctl.manage.affinity.host_state import HostState
from pmuctl.manage.hints import cpus_words
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.effective_pmu import Consequence
from pmuctl.model.plan import SetAffinity
from pmuctl.model.vm import Vm, VmState
from pmuctl.model.vm_ref import ProcessId
from pmuctl.model.vmm_identity import VmmKind
from pmuctl.value import value


@value(kw_only=True)
class AffinityResult:
    """What became of a vCPU's thread: `set`, `unchanged` or `planned`.

    `cpus` is its mask now, or as it would be, `before` the one it had; `wanted` are the CPUs that
    were asked for, of which the kernel leaves out what is offline or not in the cpuset.
    """

    vm: str
    vcpu: int
    tid: int
    outcome: str
    cpus: CpuSet
    before: CpuSet
    wanted: CpuSet

    def words(self) -> str:
        """The step in the kernel's words."""
        return SetAffinity(self.vcpu, self.tid, self.wanted, self.before).words()


@value
class VcpuThreads:
    """The vCPU threads of a VM as they were found: vCPU number to thread id, and since when.

    A thread's id can be given to another one once it has ended; its start time tells.
    """

    vm: Vm
    process: ProcessId
    tids: Mapping[int, int]
    starts: Mapping[int, int | None]

    @property
    def pid(self) -> int:
        """The number of the process they are of."""
        return self.process.pid

    @classmethod
    def of(cls, vm: Vm, host_state: HostState, *, only: CpuSet | None = None) -> "VcpuThreads":
        """The threads of these vCPUs, by default all.

        Raises NotFoundError for a vCPU that is not there, what the VM could not be asked for, and
        RefusedError where a thread is not known.
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
        tids = {its.index: its.tid for its in vm.vcpus if only is None or its.index in only.cpus}
        known = {index: tid for index, tid in tids.items() if tid is not None}
        if len(known) < len(tids):
            raise no_threads(vm, CpuSet.of(tids.keys() - known.keys()))
        starts = {tid: host_state.host.procs.start_time(tid) for tid in known.values()}
        return cls(vm, vm.process, known, starts)

    def check(self, host_state: HostState, vcpu: int) -> None:
        """Raise NotFoundError unless the thread of a vCPU is still the one that was found."""
        tid = self.tids[vcpu]
        procs = host_state.host.procs
        is_there = tid in procs.threads(self.pid) and procs.start_time(tid) == self.starts[tid]
        # last, so that the thread that was seen is this process's
        if not is_there or not procs.is_there(self.process):
            raise _gone(self.vm, vcpu, tid)


def unknown_threads(vm: Vm) -> CpuSet:
    """The vCPUs of a VM of which nobody knows the thread."""
    return CpuSet.of(its.index for its in vm.vcpus or () if its.tid is None)


def no_threads(vm: Vm, vcpus: CpuSet | None = None) -> UnknownThreadsError:
    """The refusal of a VM whose vCPU threads, or those of some vCPUs, are not known."""
    its = [one for one in vm.vcpus or () if vcpus is None or one.index in vcpus.cpus]
    if vm.state in (VmState.STARTING, VmState.WAITING):
        why = "its VMM does not tell, and no vCPU has run yet"
        fix = command("vm", "wait", vm.address, "--for", "running")
    elif its and all(one.has_run is False for one in its):
        why = "its VMM does not tell, and such a vCPU has not run yet"
        fix = command("vm", "vcpus", vm.address)
    else:
        why = "it has run, but neither its VMM nor KVM nor the names of its threads tell"
        fix = "start the VM with pmuctl run"
        if vm.identity.kind is VmmKind.QEMU:
            fix = f"start QEMU with -name NAME,debug-threads=on, or {fix}"
    return UnknownThreadsError(
        f"which threads run {f'vCPU {vcpus}' if vcpus else 'its vCPUs'} is not known",
        subject=vm.name,
        why=why,
        now=NOTHING_CHANGED,
        fix=fix,
    )


def current_masks(crew: VcpuThreads, host_state: HostState) -> dict[int, CpuSet]:
    """The mask of each vCPU's thread; raises NotFoundError where one is gone."""
    masks: dict[int, CpuSet] = {}
    for vcpu, tid in sorted(crew.tids.items()):
        try:
            masks[vcpu] = host_state.host.threads.get(tid)
        except OSError as error:
            raise _explained(
                crew, host_state, SetAffinity(vcpu, tid, CpuSet(), CpuSet()), error
            ) from error
    return masks


def set_affinities(
    crew: VcpuThreads, wanted: Mapping[int, CpuSet], host_state: HostState, *, dry_run: bool
) -> list[AffinityResult]:
    """Put each vCPU's thread on the CPUs that are wanted, all or none.

    What is known to be in the way is refused before any is touched. Raises DeniedError,
    NotFoundError and RefusedError; where threads could not be put back, `now` tells which.
    """
    masks = current_masks(crew, host_state)
    steps = [SetAffinity(n, crew.tids[n], cpus, masks[n]) for n, cpus in sorted(wanted.items())]
    todo = [step for step in steps if step.cpus != step.before]
    # a mask without a CPU that is online is none that a thread can be left with
    stranded = [
        step
        for step in steps
        if host_state.online is not None and not step.cpus & host_state.online
    ]
    for step in (*todo, *stranded):
        if blocker := find_blocker(crew.pid, step.tid, step.cpus, host_state):
            raise blocked(crew.vm, step, blocker)
    done: list[SetAffinity] = []
    for step in () if dry_run else todo:
        try:
            crew.check(host_state, step.vcpu)
            host_state.host.threads.set(step.tid, step.cpus)
        except (OSError, NotFoundError) as error:
            problem: PmuctlError
            if isinstance(error, OSError):
                problem = _explained(crew, host_state, step, error)
            else:
                problem = error
            left = [its.words() for its in done if not _undo(its, crew, host_state)]
            problem.now = f"left so: {'; '.join(left)}" if left else _put_back(done)
            raise problem from None
        done.append(step)
    return [_placed(crew, step, host_state, dry_run=dry_run) for step in steps]


def check_inside(cpus: CpuSet, pmu: CpuSet, vm: Vm, name: str) -> None:
    """Raise RefusedError unless all of these CPUs are of the PMU `name`, which was set."""
    if outside := cpus - pmu:
        raise RefusedError(
            f"{cpus_words(outside)} not of {name}",
            subject=vm.name,
            why=f"its CPUs are {pmu}; {Consequence.FAIL_ENTRY.words()}",
            now=NOTHING_CHANGED,
            fix=command("affinity", "set", vm.address, cpus & pmu or pmu),
        )


def _placed(
    crew: VcpuThreads, step: SetAffinity, host_state: HostState, *, dry_run: bool
) -> AffinityResult:
    now = step.before
    if dry_run:
        now = step.cpus
    elif step.cpus != step.before:
        with suppress(OSError):  # it may have ended since
            now = host_state.host.threads.get(step.tid)
    outcome = "unchanged" if now == step.before else "planned" if dry_run else "set"
    return AffinityResult(
        vm=crew.vm.name,
        vcpu=step.vcpu,
        tid=step.tid,
        outcome=outcome,
        cpus=now,
        before=step.before,
        wanted=step.cpus,
    )


def _undo(step: SetAffinity, crew: VcpuThreads, host_state: HostState) -> bool:
    """Put a thread back; one that has ended needs it no more."""
    try:
        crew.check(host_state, step.vcpu)
        host_state.host.threads.set(step.tid, step.before)
    except (NotFoundError, ProcessLookupError):
        return True
    except OSError:
        return False
    return True


def _put_back(done: Sequence[SetAffinity]) -> str:
    vcpus = CpuSet.of(step.vcpu for step in done)
    return f"vCPU {vcpus} put back; nothing else was changed" if done else NOTHING_CHANGED


def _gone(vm: Vm, vcpu: int, tid: int) -> GoneError:
    return GoneError(
        f"vCPU {vcpu}: its thread {tid} is gone",
        subject=vm.name,
        why="it has ended since the VM was asked",
        fix=command("vm", "vcpus", vm.address),
        errno="ESRCH",
    )


def blocked(vm: Vm, step: SetAffinity, blocker: Blocker) -> RefusedError:
    """The refusal of a step that something on this machine is in the way of."""
    return RefusedError(
        f"vCPU {step.vcpu} cannot be put on {step.cpus}",
        subject=vm.name,
        why=f"{blocker.words} (sched_setaffinity gives EINVAL)",
        now=NOTHING_CHANGED,
        fix=blocker.fix,
        errno="EINVAL",
    )


def _explained(
    crew: VcpuThreads, host_state: HostState, step: SetAffinity, error: OSError
) -> PmuctlError:
    """What the kernel's answer to sched_setaffinity(2) means."""
    vm, number = crew.vm, error.errno or errno.EINVAL
    host_state.cpusets.forget()
    name = errno.errorcode.get(number, str(number))
    if number == errno.ESRCH:
        return _gone(vm, step.vcpu, step.tid)
    if number in (errno.EPERM, errno.EACCES):
        whose = "another user" if vm.owner is None else f"uid {vm.owner}"
        return DeniedError(
            f"vCPU {step.vcpu}: its thread may not be placed by this user",
            subject=vm.name,
            why=f"process {crew.pid} is of {whose}: that takes CAP_SYS_NICE ({name})",
            fix=f"run pmuctl as root or as {whose if vm.owner is not None else 'that user'}",
            errno=name,
        )
    if number == errno.EINVAL and (its := find_blocker(crew.pid, step.tid, step.cpus, host_state)):
        return blocked(vm, step, its)
    return RefusedError(
        f"vCPU {step.vcpu} cannot be put on {step.cpus}",
        subject=vm.name,
        why=f"sched_setaffinity gives {name}"
        + (": no CPU of these is online and in its cpuset" if number == errno.EINVAL else ""),
        errno=name,
    )
