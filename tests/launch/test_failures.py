# SPDX-License-Identifier: Apache-2.0
"""What a start may meet, by name; what differs between machines; the gate's program."""

import errno
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from pmuctl.host.procfs import Procfs
from pmuctl.host.resource_errors import find_exhaustion
from pmuctl.launch.failures import (
    may_trace_all,
    memory_not_writable,
    no_gate,
    no_supervisor,
    not_followable,
    not_traceable,
    yama_scope,
)
from pmuctl.launch.trace.arch import ARCHES, Arch, native_arch
from pmuctl.launch.trace.seccomp_gate import _build_program
from pmuctl.launch.trace.tracee import Tracee, is_group_stop
from pmuctl.uapi.kvm import KVM_CREATE_VCPU
from pmuctl.uapi.seccomp import (
    SECCOMP_RET_ALLOW,
    SECCOMP_RET_ERRNO,
    SECCOMP_RET_USER_NOTIF,
    seccomp_data,
)
from tests.skips import skip

PID = 4121
both = pytest.mark.parametrize("machine", ARCHES.values(), ids=ARCHES.keys())


def procfs(
    root: Path,
    *,
    yama: int | None = None,
    tracer: int = 0,
    caps: int = 0,
    owner: int | None = None,
) -> Procfs:
    """A /proc with this restriction, these capabilities of ours, and the process PID."""
    if yama is not None:
        (root / "sys/kernel/yama").mkdir(parents=True)
        (root / "sys/kernel/yama/ptrace_scope").write_text(f"{yama}\n")
    (root / "self").mkdir()
    (root / "self/status").write_text(f"Name:\tx\nCapEff:\t{caps:016x}\n")
    (root / str(PID)).mkdir()
    status = root / str(PID) / "status"
    status.write_text(f"Name:\tx\nTgid:\t{PID}\nTracerPid:\t{tracer}\n")
    if owner is not None:
        os.chown(status, owner, owner)
    return Procfs(root)


@pytest.mark.parametrize(
    ("its", "why", "fix"),
    [
        ({"tracer": 77}, "process 77 traces it already (EPERM)", "without the debugger"),
        ({"tracer": 77, "yama": 3}, "process 77 traces it already (EPERM)", "strace"),
        ({"yama": 3}, "Yama forbids all tracing until the next boot", "boot"),
        ({"yama": 3, "caps": 1 << 19}, "Yama forbids all tracing until the next boot", "boot"),
        ({"yama": 2}, "Yama lets only administrators trace", "run pmuctl as root"),
        ({"yama": 2, "caps": 1 << 19}, "the kernel does not say why (EPERM)", "as root"),
        ({"yama": 1}, "the kernel does not say why (EPERM)", "as root"),
        ({"yama": 0}, "the kernel does not say why (EPERM)", "as root"),
        ({}, "the kernel does not say why (EPERM)", "as root"),
    ],
    ids=str,
)
def test_why_it_may_not_be_traced(tmp_path: Path, its: dict[str, int], why: str, fix: str) -> None:
    error = not_traceable(procfs(tmp_path, **its), PID)
    assert error.message == "the VMM may not be traced"
    assert error.why is not None
    assert error.why.startswith(why)
    assert error.fix is not None
    assert fix in error.fix
    assert error.errno == "EPERM"


def test_what_is_not_dumpable_belongs_to_another_user(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        skip("only root can give files away", runs="as root")
    error = not_traceable(procfs(tmp_path, owner=65534), PID)
    assert error.why is not None
    assert "PR_SET_DUMPABLE 0" in error.why


def test_a_process_that_has_gone_meanwhile(tmp_path: Path) -> None:
    error = not_traceable(Procfs(tmp_path), PID)
    assert error.why == "the kernel does not say why (EPERM)"


@pytest.mark.parametrize(("text", "scope"), [("1\n", 1), ("3", 3), ("", 0), ("x", 0)])
def test_yamas_scope(tmp_path: Path, text: str, scope: int) -> None:
    (tmp_path / "sys/kernel/yama").mkdir(parents=True)
    (tmp_path / "sys/kernel/yama/ptrace_scope").write_text(text)
    assert yama_scope(Procfs(tmp_path)) == scope


def test_without_yama_and_without_a_status(tmp_path: Path) -> None:
    assert yama_scope(Procfs(tmp_path)) == 0
    assert not may_trace_all(Procfs(tmp_path))


@pytest.mark.parametrize(("caps", "may"), [(0, False), (1 << 19, True), (~(1 << 19), False)])
def test_who_may_trace_all(tmp_path: Path, caps: int, may: bool) -> None:  # noqa: FBT001
    assert may_trace_all(procfs(tmp_path, caps=caps & (1 << 41) - 1)) == may


def test_a_listener_that_stands_already() -> None:
    error = no_gate(OSError(errno.EBUSY, os.strerror(errno.EBUSY)))
    assert error.errno == "EBUSY"
    assert "pmuctl run inside pmuctl run" in str(error.why)


@pytest.mark.parametrize(("number", "name"), [(errno.EINVAL, "EINVAL"), (errno.ENOSYS, "ENOSYS")])
def test_a_kernel_without_listeners(number: int, name: str) -> None:
    error = no_gate(OSError(number, os.strerror(number)))
    assert error.errno == name
    assert name in str(error.why)
    assert "Linux 5.5" in str(error.fix)


@pytest.mark.parametrize(
    ("number", "name", "fix"),
    [
        (errno.EMFILE, "EMFILE", "ulimit -n"),
        (errno.ENFILE, "ENFILE", "fs.file-max"),
        (errno.ENOMEM, "ENOMEM", "free some memory"),
    ],
)
def test_a_shortage_is_called_so(number: int, name: str, fix: str) -> None:
    shortage = find_exhaustion(OSError(number, os.strerror(number), "/proc/7/task"))
    assert shortage is not None
    error = not_followable(shortage)
    assert (error.message, error.errno) == ("the VMM cannot be followed", name)
    assert error.why == (
        f"its supervisor runs short: /proc/7/task: {os.strerror(number)} ({name})"
    )
    assert fix in str(error.fix)


def test_that_there_is_no_memory_is_no_want_of_permission() -> None:
    error = memory_not_writable(OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)))
    assert error.why == "its supervisor runs short: Cannot allocate memory (ENOMEM)"
    error = memory_not_writable(OSError(errno.EPERM, os.strerror(errno.EPERM)))
    assert "PR_SET_DUMPABLE 0" in str(error.why)


@both
def test_the_call_made_once_more(machine: Arch) -> None:
    registers = [1000 + n for n in range(machine.register_count)]
    its = machine.restart_call(registers)
    assert its[machine.pc] == registers[machine.pc] - machine.insn_size
    changed = {n for n, value in enumerate(its) if value != registers[n]}
    if machine.nr_at_entry is None:
        assert changed == {machine.pc}
    else:
        assert changed == {machine.pc, machine.nr}
        assert its[machine.nr] == registers[machine.nr_at_entry]
    assert registers == [1000 + n for n in range(machine.register_count)]


@both
def test_another_call(machine: Arch) -> None:
    registers = [1000 + n for n in range(machine.register_count)]
    its = machine.inject_call(registers, machine.nr_ioctl, (7, 8, 9))
    assert its[machine.nr] == machine.nr_ioctl
    assert [its[n] for n in machine.args[:4]] == [7, 8, 9, registers[machine.args[3]]]
    changed = {n for n, value in enumerate(its) if value != registers[n]}
    assert changed == {machine.pc, machine.nr, *machine.args[:3]}


def judge(program: bytes, arch: int, nr: int, args: tuple[int, int, int]) -> int:
    """What a seccomp program of loads, comparisons and returns says of a call."""
    data = seccomp_data(nr, arch, 0xFFFF_8000_0000_1234, (*args, 0, 0, 0))
    its, position = bytes(data), 0
    while True:
        code, jump, otherwise, value = struct.unpack_from("=HBBI", program, 8 * position)
        position += 1
        match code:
            case 0x20:
                accumulator = struct.unpack_from("<I", its, value)[0]
            case 0x15:
                position += jump if accumulator == value else otherwise
            case 0x06:
                return int(value)
            case _:
                raise AssertionError(f"no such instruction here: {code:#x}")


@both
def test_the_gate_stops_one_call_only(machine: Arch) -> None:
    program = bytes(_build_program(machine))
    arch, nr = machine.audit_arch, machine.nr_ioctl
    assert judge(program, arch, nr, (4, KVM_CREATE_VCPU, 0)) == SECCOMP_RET_USER_NOTIF
    # the kernel takes an unsigned int: what is above it does not make it another request
    high = 0xDEAD << 32 | KVM_CREATE_VCPU
    assert judge(program, arch, nr, (4, high, 0)) == SECCOMP_RET_USER_NOTIF
    for its in (
        (arch, nr, (4, KVM_CREATE_VCPU + 1, 0)),
        (arch, nr, (KVM_CREATE_VCPU, 0xAE80, KVM_CREATE_VCPU)),
        (arch, nr + 1, (4, KVM_CREATE_VCPU, 0)),
        (arch ^ 0x8000_0000, nr, (4, KVM_CREATE_VCPU, 0)),
    ):
        assert judge(program, *its) == SECCOMP_RET_ALLOW


def test_the_gate_refuses_the_call_to_programs_of_another_kind() -> None:
    """They cannot be followed: int 0x80 and x32 on x86-64, AArch32 on arm64."""
    refused = SECCOMP_RET_ERRNO | errno.EPERM
    for machine, arch, nr in (
        ("x86_64", 0x4000_0003, 54),
        ("x86_64", 0xC000_003E, 0x4000_0000 | 514),
        ("x86_64", 0xC000_003E, 0x4000_0000 | 16),
        ("aarch64", 0x4000_0028, 54),
    ):
        program = bytes(_build_program(ARCHES[machine]))
        assert judge(program, arch, nr, (4, KVM_CREATE_VCPU, 0)) == refused
        assert judge(program, arch, nr, (4, KVM_CREATE_VCPU + 1, 0)) == SECCOMP_RET_ALLOW
        assert judge(program, arch, nr + 1, (4, KVM_CREATE_VCPU, 0)) == SECCOMP_RET_ALLOW


def test_the_rows_have_the_numbers_of_the_headers() -> None:
    arm64, x86 = ARCHES["aarch64"], ARCHES["x86_64"]
    assert (arm64.audit_arch, arm64.nr_ioctl, arm64.nr_seccomp) == (0xC00000B7, 29, 277)
    assert (x86.audit_arch, x86.nr_ioctl, x86.nr_seccomp) == (0xC000003E, 16, 317)


@pytest.mark.parametrize(
    ("status", "is_stop"),
    [(0x80137F, True), (0x80147F, True), (0x80057F, False), (0x137F, False), (0x3057F, False)],
    ids=hex,
)
def test_stops_of_job_control(status: int, is_stop: bool) -> None:  # noqa: FBT001
    assert is_group_stop(status) == is_stop


class Sunk(Tracee):
    """A thread whose stack pointer is near the beginning of its memory."""

    def __init__(self) -> None:
        super().__init__(1, 1, native_arch())

    def registers(self) -> list[int]:
        return [100] * native_arch().register_count

    def block_signals(self) -> None: ...
    def unblock_signals(self) -> None: ...


def test_a_stack_pointer_with_no_room_below_it_is_told_as_such() -> None:
    with pytest.raises(OSError, match="Bad address") as raised:
        Sunk().ioctl(3, 0, bytes(24))
    error = memory_not_writable(raised.value)
    assert error.message == "no call can be put into the VMM"
    assert error.why == "there is no room below the stack pointer of its thread (EFAULT)"


def test_a_supervisor_that_finds_no_descriptors_says_so() -> None:
    """Each limit falls into another step of its start, and one into the import of a module."""
    error = no_supervisor(OSError(errno.EMFILE, "Too many open files"))
    assert (error.why, error.errno) == ("Too many open files", "EMFILE")
    error = no_supervisor(ImportError("/lib/grp.so: cannot open: Too many open files"))
    assert (error.errno, error.fix) == ("EMFILE", "allow this process more open files (ulimit -n)")
    assert no_supervisor(OSError(errno.EACCES, "Permission denied", "/run")).fix is None


def test_descriptors_are_closed_however_high_the_limit_is() -> None:
    """In one call, though the soft limit is below one that is open."""
    script = (
        "import os, resource\n"
        "from pmuctl.uapi.pidfd import close_fds_from\n"
        "os.dup2(0, 900)\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (16, hard))\n"
        "close_fds_from(4)\n"
        "print([fd for fd in range(4, 1000) if os.path.exists(f'/proc/self/fd/{fd}')])\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "[]\n"), ran
