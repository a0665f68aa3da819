# SPDX-License-Identifier: Apache-2.0
"""Preparation of a VMM: what can be refused is refused here, before the VMM is started."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pmuctl.control.protocol.messages import NAME, VM_NAME
from pmuctl.control.runtime.listener import check_bindable
from pmuctl.control.runtime.sockets import file_name, own_dir
from pmuctl.errors import PmuctlError, RefusedError, UsageError, command
from pmuctl.host.host import Host
from pmuctl.host.pmus import scan_event_sources, scan_pmus
from pmuctl.launch.ioctls import lock, steps
from pmuctl.launch.spec import LaunchSpec
from pmuctl.manage.resolve import AUTO, NONE, FilterWords, choose_pmu, compile_filter
from pmuctl.manage.start.exec import as_warning, find_program
from pmuctl.manage.start.preflight import (
    ask_kvm,
    check_cpus,
    check_is_no_client,
    check_kernel,
    check_own_process,
    cpus_of,
    parse_affinity,
)
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.event import WIDEST_BITS
from pmuctl.model.event_filter import EventFilter
from pmuctl.model.kvm_caps import DefaultPmu, KvmCaps
from pmuctl.model.pmu import Pmu
from pmuctl.value import replace, value


@value(kw_only=True)
class StartRequest:
    """The options of `pmuctl run`; None for those not given. `timeout` is in seconds."""

    command: tuple[str, ...]
    name: str | None = None
    pmu: str | None = None
    filter: FilterWords | None = None
    affinity: str = AUTO
    hold: bool = False
    timeout: float | None = None
    best_effort: bool = False


@value(kw_only=True)
class PreparedStart:
    """A VMM that is ready to be started: its file, its launch spec, and the steps to come.

    `obstacle` is why the settings cannot be applied, if the VMM is to be started without them;
    `warnings` are about settings that will be applied.
    """

    executable: str
    spec: LaunchSpec
    steps: tuple[str, ...]
    obstacle: PmuctlError | None = None
    warnings: tuple[PmuctlError, ...] = ()


def prepare(request: StartRequest, host: Host, pid: int) -> PreparedStart:
    """Check what can be known before the VMM is started, as process `pid`; change nothing.

    Raise UsageError, NotFoundError (PMU, event, CPU), NoCommandError and NotExecutableError; and
    DeniedError, UnsupportedError, PinnedError and RefusedError for obstacles of this host. A
    request with `best_effort` gets the latter as `obstacle` instead.
    """
    check_words(request)
    check_own_process(host.procs, pid)
    name = request.name
    if name is None:
        name = default_name(request.command[0], pid)
    # absolute, because the supervisor may have another working directory than the caller
    socket = _make_absolute(own_dir(host.environ, host.uid)) / file_name(name)
    target = _resolve_target(request, host)
    executable = find_program(request.command[0], host.environ)

    caps = KvmCaps(has_vpmu=None)
    obstacle: PmuctlError | None = None
    try:
        check_bindable(socket, host.procs)
        caps = ask_kvm(host, target.pmus)
        target = _check_target(target, request, caps, host, pid)
    except UsageError:
        raise
    except PmuctlError as error:
        if not request.best_effort:
            raise
        obstacle = as_warning(error)

    spec = _make_spec(request, name, socket, target, caps)
    return PreparedStart(
        executable=executable,
        spec=spec,
        steps=tuple(_describe_steps(spec, executable, gated=obstacle is None)),
        obstacle=obstacle,
        warnings=tuple(_iter_warnings(request, target)) if obstacle is None else (),
    )


@value(kw_only=True)
class _Target:
    """What the words of a request stand for on a host with these PMUs; None for what has none.

    `cpus` are those of the vCPU threads.
    """

    pmus: Sequence[Pmu]
    pmu: Pmu | None = None
    filter: EventFilter | None = None
    cpus: CpuSet | None = None


def _resolve_target(request: StartRequest, host: Host) -> _Target:
    """Return what the words stand for, before KVM is asked; raise UsageError, NotFoundError."""
    names = scan_event_sources(host.sysfs).names
    pmus = scan_pmus(host.sysfs, names)
    pmu, event_filter, cpus = None, None, None
    if request.pmu is not None or request.filter is not None:
        fix = "give --pmu PMU with --filter"
        pmu = choose_pmu(request.pmu, pmus, names, host.sysfs, fix=fix)
    if request.filter is not None and pmu is not None:
        event_filter = compile_filter(request.filter, pmu, WIDEST_BITS)
    if request.affinity not in (AUTO, NONE):
        cpus = parse_affinity(request.affinity, pmu, pmus, host.sysfs)
    return _Target(pmus=pmus, pmu=pmu, filter=event_filter, cpus=cpus)


def _check_target(
    target: _Target, request: StartRequest, caps: KvmCaps, host: Host, pid: int
) -> _Target:
    """Return the target as this KVM takes it, with the CPUs of `--affinity auto`.

    Raise what `check_kernel`, `cpus_of` and `check_cpus` raise.
    """
    pmu, event_filter, cpus = target.pmu, target.filter, target.cpus
    if request.filter is not None and pmu is not None:
        event_filter = compile_filter(request.filter, pmu, caps.event_bits_for(pmu.type))
    check_kernel(caps, pmu, event_filter)
    if request.affinity == AUTO and pmu is not None:
        cpus = cpus_of(pmu)
    if cpus is not None:
        check_cpus(cpus, pmu, host, pid)
    return replace(target, filter=event_filter, cpus=cpus)


def _make_spec(
    request: StartRequest, name: str, socket: Path, target: _Target, caps: KvmCaps
) -> LaunchSpec:
    """Return the launch spec of a request whose words stand for `target`."""
    pmu = target.pmu
    return LaunchSpec(
        name=name,
        socket=socket,
        command=request.command,
        pmu=None if pmu is None or pmu.type is None else (pmu.type, pmu.name),
        filter=target.filter,
        affinity=target.cpus,
        names_cpus=request.affinity not in (AUTO, NONE),
        attributes=caps.attributes,
        event_bits=caps.event_bits,
        event_bits_of=caps.event_bits_of,
        defaults=_find_default_pmus(caps, target.pmus) if pmu is None else {},
        hold=request.hold,
        timeout=request.timeout,
        best_effort=request.best_effort,
    )


def _find_default_pmus(caps: KvmCaps, pmus: Sequence[Pmu]) -> Mapping[tuple[int, str], CpuSet]:
    """Return the PMUs, with their CPUs, of which KVM chooses one by the CPU of KVM_ARM_VCPU_INIT.

    Return an empty mapping if KVM chooses otherwise.
    """
    if caps.default is not DefaultPmu.AT_VCPU_INIT:
        return {}
    return {
        (pmu.type, pmu.name): pmu.cpus
        for pmu in pmus
        if pmu.type is not None and pmu.type in caps.counters and pmu.cpus
    }


def _make_absolute(directory: Path) -> Path:
    """Return the absolute path; raise UsageError if the working directory has been removed."""
    try:
        return directory.absolute()
    except OSError as error:
        raise UsageError(
            f"{directory}: the directory it is below is gone",
            why=error.strerror or str(error),
            fix="change to another directory",
        ) from None


def check_words(request: StartRequest) -> None:
    """Raise UsageError for a client of a service, options that do not go together, and none."""
    check_is_no_client(request.command)
    has_cpus = request.affinity not in (AUTO, NONE)
    if request.pmu is None and request.filter is None and not has_cpus and not request.hold:
        raise UsageError(
            "there is nothing to set for the VM",
            why="without settings the VMM can be started by itself",
            fix="give --pmu, --filter, --affinity CPUSET or --hold",
        )
    if request.timeout is not None and not request.hold:
        raise UsageError(
            "--timeout without --hold",
            why="it ends a VMM that is held, and this one is not",
            fix="give --hold, too, or leave --timeout out",
        )
    if request.hold and request.affinity == NONE:
        raise UsageError(
            "--affinity none with --hold",
            why="a PMU that is set while the VMM is held narrows its threads, too",
            fix="leave --affinity out",
        )


def default_name(command: str, pid: int) -> str:
    """Return the name of a VM that was given none: that of its VMM, and its process id."""
    suffix = f"-{pid}"
    allowed = "".join(
        char if VM_NAME.fullmatch(f"x{char}") else "_" for char in Path(command).name
    )
    return (allowed.lstrip("_.-") or "vm")[: NAME.most - len(suffix)] + suffix


def _iter_warnings(request: StartRequest, target: _Target) -> Iterator[PmuctlError]:
    """Yield the warnings about settings that will be applied."""
    pmu, cpus = target.pmu, target.cpus
    several = [other for other in target.pmus if cpus and other.cpus and cpus & other.cpus]
    if pmu is None and not request.hold and len(several) > 1:
        yield RefusedError(
            f"--affinity {request.affinity}: these CPUs are of {len(several)} PMUs",
            why=f"KVM gives the VM one of {', '.join(other.name for other in several)}, and its "
            "counters stop silently on the CPUs of the others",
            fix=f"--pmu {several[0].name}, or --affinity with CPUs of one PMU",
        )
    if pmu is not None and request.affinity == NONE:
        yield RefusedError(
            "the VMM's threads are not kept on the PMU's CPUs (--affinity none)",
            subject=pmu.name,
            why="a vCPU off them fails to enter the guest, and QEMU then spins without a word",
            fix=f"keep the vCPU threads on {pmu.cpus or 'its CPUs'} by other means",
        )


def hold_commands(spec: LaunchSpec) -> tuple[str, ...]:
    """Return the commands for another terminal while the VMM is held, with words to replace."""
    pmu = () if spec.pmu is not None else ("pmu", "PMU")
    return (
        command("vm", "wait", spec.name, "--for", "open"),
        command(*("vm", "set", spec.name, *pmu, "filter", "default", "deny", "allow", "EVENTS")),
        command("vm", "release", spec.name),
    )


def _describe_steps(spec: LaunchSpec, executable: str, *, gated: bool) -> Iterator[str]:
    """Yield a line for each step of the start; unless `gated`, the VMM is only executed."""
    if gated:
        yield (
            "seccomp(SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER)"
            "  ioctl KVM_CREATE_VCPU alone is notified"
        )
    yield f"execve({executable}, {shlex.join(spec.command)})"
    if not gated:
        return
    if spec.affinity is not None:
        yield (
            f"sched_setaffinity(each thread, {spec.affinity})"
            "  vCPU threads for good, others until the vCPUs run"
        )
    for step in steps(spec):
        yield step.describe() + (", locks the PMU" if step == lock() else "")
    if spec.hold:
        limit = "" if spec.timeout is None else f", ends it after {spec.timeout:g} s"
        yield f"hold  until pmu-release at {spec.socket}{limit}"
