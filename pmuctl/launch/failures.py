# SPDX-License-Identifier: Apache-2.0
"""Errors for a VMM that cannot be set up, held or followed."""

import errno
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pmuctl.errors import (
    DeniedError,
    PmuctlError,
    RefusedError,
    UnreachableError,
    UnsupportedError,
)
from pmuctl.host.procfs import Procfs
from pmuctl.host.resource_errors import ResourceExhaustedError, find_exhaustion
from pmuctl.model.vmm.advice import ask_for_kvm, ask_for_vpmu
from pmuctl.model.vmm.identity import VmmIdentity, identify

PATH_YAMA = "sys/kernel/yama/ptrace_scope"
CAP_SYS_PTRACE = 19
"""include/uapi/linux/capability.h"""


def yama_scope(procs: Procfs) -> int:
    """Return Yama's restriction of ptrace, 0-3; 0 if there is no Yama."""
    with suppress(OSError, ValueError):
        return int((Path(procs.root) / PATH_YAMA).read_text())
    return 0


def may_trace_all(procs: Procfs) -> bool:
    """Return True if this process has CAP_SYS_PTRACE."""
    with suppress(OSError, ValueError, StopIteration):
        lines = (Path(procs.root) / "self/status").read_text().splitlines()
        caps = next(line for line in lines if line.startswith("CapEff:"))
        return bool(int(caps.split()[1], 16) >> CAP_SYS_PTRACE & 1)
    return False


def not_traceable(procs: Procfs, pid: int) -> PmuctlError:
    """Return the error for a process that refused PTRACE_SEIZE with EPERM."""
    why, fix = "the kernel does not say why (EPERM)", "run pmuctl as root"
    tracer = procs.tracer(pid)
    scope = yama_scope(procs)
    if tracer:
        why = f"process {tracer} traces it already (EPERM)"
        fix = "start it without the debugger or strace"
    elif scope == 3:
        why = "Yama forbids all tracing until the next boot (kernel.yama.ptrace_scope is 3)"
        fix = "boot with another kernel.yama.ptrace_scope"
    elif scope == 2 and not may_trace_all(procs):
        why = "Yama lets only administrators trace (kernel.yama.ptrace_scope is 2)"
        fix = "run pmuctl as root, or set kernel.yama.ptrace_scope to 1"
    elif _find_status_owner(procs, pid) not in (None, os.geteuid()):
        why = "it made itself undumpable (PR_SET_DUMPABLE 0), or belongs to another user (EPERM)"
        fix = "run pmuctl as root, or start it so that it may be debugged"
    return DeniedError("the VMM may not be traced", why=why, fix=fix, errno="EPERM")


def not_visible() -> PmuctlError:
    """Return the error for a VMM one of whose threads is not to be seen in /proc."""
    return DeniedError(
        "the VMM may not be traced",
        why="a thread that makes a vCPU is not in /proc: another pid namespace, or hidepid",
        fix="run pmuctl in the VMM's pid namespace, or as root",
    )


def _find_status_owner(procs: Procfs, pid: int) -> int | None:
    """Return who owns the files in /proc/PID: root if it is not dumpable (proc_pid(5)).

    The directory itself stays its user's (task_dump_owner() in fs/proc/base.c). Return None if the
    process is gone.
    """
    with suppress(OSError):
        return os.stat(procs.root / str(pid) / "status").st_uid
    return None


def no_gate(error: OSError) -> PmuctlError:
    """Return the error for a seccomp filter that could not be installed."""
    if error.errno == errno.EBUSY:
        return RefusedError(
            "calls of the VMM to KVM cannot be stopped",
            why="another seccomp filter with a listener stands already (EBUSY): "
            "pmuctl run inside pmuctl run, or a container runtime's",
            fix="run pmuctl outside of it",
            errno="EBUSY",
        )
    name = errno.errorcode.get(error.errno or 0, str(error.errno))
    return DeniedError(
        "calls of the VMM to KVM cannot be stopped",
        why=f"seccomp with a listener gives {name}: {error.strerror}",
        fix="pmuctl run needs Linux 5.5 or newer and the right to use seccomp",
        errno=name,
    )


def no_supervisor(error: OSError | ImportError) -> PmuctlError:
    """Return the error for a supervisor that could not be started, or prepare itself."""
    number = error.errno if isinstance(error, OSError) else None
    if os.strerror(errno.EMFILE) in str(error):  # of a module there is only the text
        number = errno.EMFILE
    name = errno.errorcode.get(number or 0)
    shortage = find_exhaustion(OSError(number, str(error)))
    return RefusedError(
        "the supervisor cannot be started",
        why=re.sub(r"^\[Errno [0-9]+\] ", "", str(error)),
        fix=None if shortage is None else shortage.fix,
        errno=name,
    )


def made_without_vpmu(vmm: VmmIdentity) -> PmuctlError:
    """Return the error for a VMM that makes a vCPU to run without a vPMU."""
    return UnsupportedError(
        "its VMM makes vCPUs without a vPMU",
        why="KVM_ARM_VCPU_INIT came without the feature KVM_ARM_VCPU_PMU_V3",
        fix=ask_for_vpmu(vmm),
        errno="ENODEV",
    )


def no_vm(command: Sequence[str], why: str, *, may_come: bool) -> PmuctlError:
    """Return the error for a command that made no KVM VM, though there are settings for one.

    `may_come` says that processes are left which can make one yet: one that fetches a disk image
    first, or waits for orders at a socket, is no failure.
    """
    return UnreachableError(
        "no KVM VM was made so far" if may_come else "no KVM VM was made",
        why=f"{why}: neither it nor its children asked KVM for a vCPU",
        now="the settings wait for one that is made yet"
        if may_come
        else "the settings reached no VM",
        fix=ask_for_kvm(identify(command, ""), command),
    )


def not_held() -> PmuctlError:
    """Return the error for a VMM that runs a vCPU before it was held."""
    return RefusedError(
        "its VMM ran a vCPU before it could be held",
        why="it was to be held at its first call for an attribute of a PMU, and none was seen",
        fix="start it without --hold",
    )


def not_released(seconds: float) -> PmuctlError:
    """Return the error for a VMM that nobody released within this time (seconds)."""
    return UnreachableError(
        "nobody released it",
        why=f"it was held for {seconds:g} s (--timeout)",
        fix="pmuctl vm set and pmuctl vm release while it is held",
    )


def memory_not_writable(error: OSError) -> PmuctlError:
    """Return the error for a VMM whose memory could not be written."""
    if (shortage := find_exhaustion(error)) is not None:
        return not_followable(shortage)
    if error.errno == errno.EFAULT:
        return RefusedError(
            "no call can be put into the VMM",
            why="there is no room below the stack pointer of its thread (EFAULT)",
            fix="give the threads of the VMM a larger stack",
            errno="EFAULT",
        )
    if error.errno == errno.EIO:
        return RefusedError(
            "no call can be put into the VMM",
            why="its thread did not come back from one (EIO)",
            fix="run it without other tools that trace or freeze it",
            errno="EIO",
        )
    return DeniedError(
        "no call can be put into the VMM",
        why=f"its memory may not be written: {error.strerror}; it may have made itself "
        "undumpable (PR_SET_DUMPABLE 0)",
        fix="run pmuctl as root, or start the VMM so that it may be debugged",
        errno=errno.errorcode.get(error.errno or 0),
    )


def not_followable(shortage: ResourceExhaustedError) -> PmuctlError:
    """Return the error for a VMM that cannot be followed for want of descriptors or memory."""
    what = f"{shortage.subject}: " if shortage.subject else ""
    return RefusedError(
        "the VMM cannot be followed",
        why=f"its supervisor runs short: {what}{shortage.why}",
        fix=shortage.fix,
        errno=shortage.errno,
    )


def vcpu_moved() -> PmuctlError:
    """Return the error for a vCPU that was moved to another descriptor before it was followed."""
    return RefusedError(
        "the VMM cannot be followed",
        why="another thread closed a vCPU's descriptor before the call that made it returned",
        fix="run it with --best-effort if it may go without its settings",
    )


def not_stopped(error: OSError) -> PmuctlError:
    """Return the error for a VMM whose threads could not all be followed in time."""
    return RefusedError(
        "the VMM's threads cannot be followed",
        why=str(error),
        fix="start it again on a less busy host",
    )
