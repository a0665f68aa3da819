# SPDX-License-Identifier: Apache-2.0
"""System calls that close descriptors, or by which they may leave a process and come back."""

import struct

from pmuctl.launch.trace.arch import LOW_32_BITS, Arch
from pmuctl.launch.trace.tracee import Tracee
from pmuctl.uapi.pidfd import LAST_FD

CLONE_FILES, CLONE_UNTRACED = 0x400, 0x800000
"""include/uapi/linux/sched.h"""
CLOSE_RANGE_CLOEXEC = 4
"""include/uapi/linux/close_range.h"""
MSG_CONTROL = 32
"""Where struct msghdr has msg_control, and after it msg_controllen, in 64-bit programs."""
MMSGHDR_SIZE = 64
MESSAGES_MAX = 64
"""Messages of one sendmmsg() or recvmmsg() to look at; more may hold anything."""


def closed_fds(arch: Arch, nr: int, args: tuple[int, ...]) -> range:
    """Return the descriptors that this call may close; an empty range for most calls."""
    low = [arg & LOW_32_BITS for arg in args]
    if nr == arch.nr_close:
        return range(low[0], low[0] + 1)
    if nr == arch.nr_close_range and not low[2] & CLOSE_RANGE_CLOEXEC:
        return range(low[0], low[1] + 1)
    if nr in (arch.nr_dup2, arch.nr_dup3) and low[0] != low[1]:
        return range(low[1], low[1] + 1)
    if nr == arch.nr_exit:  # the last thread that has them may close all
        return range(LAST_FD + 1)
    return range(0)


def may_carry_out(arch: Arch, thread: Tracee, nr: int, args: tuple[int, ...]) -> bool:
    """Return whether descriptors may leave the thread's table by the call it has entered.

    They leave with a message, with io_uring, and with a table that is copied.
    """
    if nr in arch.carrying_calls or nr in arch.forking_calls:
        return True
    if nr == arch.nr_clone:
        return not args[0] & CLONE_FILES
    if nr == arch.nr_clone3:
        flags = _read_words(thread, args[0], 1)
        return not flags or not flags[0] & CLONE_FILES
    if nr == arch.nr_unshare:
        return bool(args[0] & CLONE_FILES)
    if nr == arch.nr_close_range:
        return bool(args[2] & ~CLOSE_RANGE_CLOEXEC & LOW_32_BITS)  # CLOSE_RANGE_UNSHARE
    if nr == arch.nr_sendmsg:
        return _has_control(thread, args[1], 1)
    return nr == arch.nr_sendmmsg and _has_control(thread, args[1], args[2] & LOW_32_BITS)


def have_child_traced(arch: Arch, thread: Tracee, nr: int, args: tuple[int, ...]) -> bool:
    """Take CLONE_UNTRACED off a call that makes a task: its tracer would not be told of the task.

    Return False if that cannot be done.
    """
    if nr == arch.nr_clone and args[0] & CLONE_UNTRACED:
        thread.set_argument(0, args[0] & ~CLONE_UNTRACED)
    if nr != arch.nr_clone3:
        return True
    flags = _read_words(thread, args[0], 1)
    if not flags or not flags[0] & CLONE_UNTRACED:
        return bool(flags)
    try:
        thread.write(args[0], struct.pack("<Q", flags[0] & ~CLONE_UNTRACED))
    except OSError:
        return False
    return True


def may_bring_back(
    arch: Arch, thread: Tracee, nr: int, args: tuple[int, ...], result: int
) -> bool:
    """Return whether descriptors may have come with the message that the thread has received."""
    if result < 0:
        return False
    if nr == arch.nr_recvmsg:
        return _has_control(thread, args[1], 1)
    return nr == arch.nr_recvmmsg and _has_control(thread, args[1], result)


def _has_control(thread: Tracee, address: int, count: int) -> bool:
    """Return whether any of these messages has control data, or that is not known."""
    if count > MESSAGES_MAX:
        return True
    for position in range(count):
        words = _read_words(thread, address + position * MMSGHDR_SIZE + MSG_CONTROL, 2)
        if not words or words[1]:
            return True
    return False


def _read_words(thread: Tracee, address: int, count: int) -> tuple[int, ...]:
    """Return 64-bit words of the process's memory; an empty tuple if they cannot be read."""
    try:
        return struct.unpack(f"<{count}Q", thread.read(address, 8 * count))
    except OSError:
        return ()
