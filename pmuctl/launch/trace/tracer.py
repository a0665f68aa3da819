# SPDX-License-Identifier: Apache-2.0
"""The tracer of VMMs' threads: it seizes, follows and detaches them, and handles every stop."""

import os
import time
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from itertools import islice
from typing import Protocol

from pmuctl.host.procfs import Procfs
from pmuctl.host.resource_errors import ResourceExhaustedError
from pmuctl.launch.trace.arch import Arch
from pmuctl.launch.trace.tracee import SYSCALL_STOP, WALL, ThreadGoneError, Tracee, is_group_stop
from pmuctl.uapi.ptrace import (
    PTRACE_EVENT_EXEC,
    PTRACE_EVENT_STOP,
    PTRACE_LISTEN,
    PTRACE_O_EXITKILL,
    PTRACE_O_TRACECLONE,
    PTRACE_O_TRACEEXEC,
    PTRACE_O_TRACEFORK,
    PTRACE_O_TRACESYSGOOD,
    PTRACE_O_TRACEVFORK,
    PTRACE_SYSCALL_INFO_ENTRY,
    PTRACE_SYSCALL_INFO_EXIT,
    ptrace,
)

OPTIONS = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXEC | PTRACE_O_EXITKILL
"""With EXITKILL the end of the tracer kills all that it traces: no VM starts half prepared."""
STOPS_AT_ONCE = 64
"""Stops handled in one turn: threads that come and go all the time would leave no turn to
others."""
FOLLOW_SECONDS = 5.0
"""How long threads may take to stop (seconds): one may be stuck in the kernel, or they are too
many."""

CHILD_OPTIONS = PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK


class SyscallEvents(Protocol):
    """What the tracer reports of system calls and processes, each time with the thread stopped.

    The receiver may park the thread, or have the tracer detach it; else it goes on afterwards.
    """

    def on_enter(self, thread: Tracee, nr: int, args: tuple[int, ...]) -> None:
        """Handle the entry of a system call."""

    def on_exit(self, thread: Tracee, nr: int, args: tuple[int, ...], result: int) -> None:
        """Handle the exit of a system call; `result` is -errno for an error."""

    def on_gone(self, tgid: int) -> None:
        """Handle that no thread of this process is traced any more, or that it called execve()."""


class SignalEvents(Protocol):
    """What the tracer reports of signals, each time with the thread stopped."""

    def on_group_stop(self, thread: Tracee) -> None:
        """Handle that job control stops the thread's process."""

    def on_signal(self, thread: Tracee, signum: int) -> int:
        """Return the signal to deliver to the thread in place of this one, 0 for none."""


class Tracer:
    """Every thread that this process traces, by thread id.

    `stops` counts the stops seen. With `trace_children` what the threads fork is traced as well.
    `syscall_events` and `signal_events` are set before the first thread is traced.
    """

    syscall_events: SyscallEvents
    signal_events: SignalEvents

    def __init__(self, arch: Arch, procs: Procfs, *, patience: float = FOLLOW_SECONDS) -> None:
        self._patience = patience
        self.threads: dict[int, Tracee] = {}
        self.stops = 0
        self.trace_children = False
        self._arch = arch
        self._procs = procs
        self._fully_followed: set[int] = set()
        self._leaving: set[int] = set()
        self._thread_counts: Counter[int] = Counter()

    def followed_processes(self) -> set[int]:
        """Return the processes of which threads stop at system calls, and are to go on so."""
        return {
            thread.tgid
            for thread in self.threads.values()
            if thread.followed and not thread.leaving
        }

    def seize(self, tid: int, tgid: int) -> Tracee:
        """Begin to trace one thread, which runs on; raise OSError."""
        thread = Tracee(tid, tgid, self._arch)
        thread.seize(OPTIONS | (CHILD_OPTIONS if self.trace_children else 0))
        self._add_thread(thread)
        return thread

    def _add_thread(self, thread: Tracee) -> None:
        self.threads[thread.tid] = thread
        self._thread_counts[thread.tgid] += 1

    def follow(self, tid: int, tgid: int) -> None:
        """Stop one thread at its system calls from now on; raise OSError (EPERM, ESRCH)."""
        self._leaving.discard(tgid)
        thread = self.threads.get(tid) or self.seize(tid, tgid)
        thread.leaving = False
        if not thread.followed:
            thread.followed = True
            thread.interrupt()

    def follow_all(self, tgid: int) -> None:
        """Stop every thread of a process at its system calls; once this returns, none is missed.

        Raise OSError (EPERM) if a thread may not be traced, TimeoutError if one does not stop in
        time, or makes others faster than they can be traced; some are traced by then.
        """
        self._leaving.discard(tgid)
        until = time.monotonic() + self._patience
        tried: frozenset[int] = frozenset()
        while True:
            tids, is_complete = self._procs.list_threads(tgid)
            untraced = tids - self.threads.keys()
            if is_complete and untraced <= tried:
                break
            if time.monotonic() > until:
                raise TimeoutError("they make others without end")
            for tid in untraced:
                self._seize_listed_thread(tid, tgid)
            tried = untraced  # one that was gone by then may have made another before
        stops: dict[Tracee, int] = {}
        for thread in self._threads_of(tgid):
            thread.leaving = False
            if not thread.followed and not thread.parked:
                thread.followed = True
                stops[thread] = thread.stops
                with suppress(ProcessLookupError):
                    thread.interrupt()
        self._fully_followed.add(tgid)
        while waiting := [
            thread.tid
            for thread, count in stops.items()
            if thread.tid in self.threads and thread.stops == count
        ]:
            if time.monotonic() > until:
                raise TimeoutError(f"{len(waiting)} do not stop: one may be stuck in the kernel")
            # these first: the kernel would report the youngest first, for ever
            heard = [self.take_stop(tid, os.WNOHANG) for tid in waiting]
            if not any(heard):  # any other: a parent may wait for the child it has vforked
                self.take_stop()

    def _seize_listed_thread(self, tid: int, tgid: int) -> None:
        """Begin to trace a thread unless it is gone, a zombie, or traced here; raise OSError."""
        try:
            self.seize(tid, tgid)
        except ProcessLookupError:
            pass
        except PermissionError:
            # a thread that is traced here from its birth gives EPERM, too
            is_ours = self._procs.tracer(tid) == os.getpid()
            if not is_ours and not self._procs.is_zombie(tgid, tid):
                raise

    def follows_all(self, tgid: int) -> bool:
        """Return True if every thread of a process is followed."""
        return tgid in self._fully_followed

    def unfollow(self, tgid: int) -> None:
        """Keep tracing the threads of a process without stopping them at system calls."""
        self._fully_followed.discard(tgid)
        for thread in self._threads_of(tgid):
            thread.followed = False

    def detach_all(self, keep: Collection[int] = ()) -> None:
        """Detach from every thread, from each at its next harmless stop.

        Processes to `keep`, and threads on their way through the gate, stay traced.
        """
        self._fully_followed &= set(keep)
        for thread in self.threads.values():
            if thread.tgid in keep or thread.is_entering:
                continue
            self._leaving.add(thread.tgid)
            thread.leaving = True
            with suppress(ProcessLookupError):
                thread.interrupt()

    def detach(self, thread: Tracee, signum: int = 0) -> None:
        """Detach from a thread that is stopped where that does no harm."""
        if self.threads.pop(thread.tid, None) is not None:
            self._thread_counts[thread.tgid] -= 1
        thread.detach(signum)

    def take_stops(self) -> bool:
        """Handle threads that have stopped, or ended; return True if there may be more."""
        if not all(self.take_stop(flags=os.WNOHANG) for _ in range(STOPS_AT_ONCE)):
            return False
        # the kernel reports the youngest first: if those never end, the oldest get turns, too
        for tid in list(islice(self.threads, STOPS_AT_ONCE)):
            self.take_stop(tid, os.WNOHANG)
        return True

    def take_stop(self, which: int = -1, flags: int = 0) -> bool:
        """Handle a stop of one thread or any; return True if there was one.

        Wait for it unless `flags` has WNOHANG.
        """
        try:
            tid, status = os.waitpid(which, WALL | flags)
        except ChildProcessError:
            for tid in [which] if which > 0 else list(self.threads):
                self._forget_thread(tid)
            return False
        if not tid:
            return False
        try:
            self._handle_stop(tid, status)
        except ProcessLookupError:
            pass  # SIGKILL took it out of its stop; its end is yet to be reported
        except ThreadGoneError:
            self._forget_thread(tid)
        return True

    def _threads_of(self, tgid: int) -> list[Tracee]:
        return [thread for thread in self.threads.values() if thread.tgid == tgid]

    def _handle_stop(self, tid: int, status: int) -> None:
        """Handle what waitpid() reported of a thread; resume it unless it is parked or gone."""
        if not os.WIFSTOPPED(status):
            self._forget_thread(tid)
            return
        self.stops += 1
        thread = self.threads.get(tid) or self._add_new_thread(tid)
        thread.stops += 1
        if thread.is_ending:  # a signal came between, and it is to make its call all the same
            thread.resume()
            return
        event, signum = status >> 16, os.WSTOPSIG(status)
        if signum == SYSCALL_STOP:
            if self._at_syscall(thread):
                return
        elif event == PTRACE_EVENT_STOP:
            if thread.leaving:
                self.detach(thread)
            elif is_group_stop(status):
                self.signal_events.on_group_stop(thread)
                ptrace(PTRACE_LISTEN, tid)
            elif not thread.parked:
                if thread.is_entering:
                    thread.block_signals()
                thread.resume()
            return
        elif event == PTRACE_EVENT_EXEC:
            # the kernel has ended the other threads without reporting it
            for other in self._threads_of(thread.tgid):
                if other is not thread:
                    del self.threads[other.tid]
                    self._thread_counts[thread.tgid] -= 1
            self.syscall_events.on_gone(thread.tgid)
        elif not event:
            if thread.leaving:
                self.detach(thread, signum)
                return
            signum = self.signal_events.on_signal(thread, signum)
            if thread.tid in self.threads and not thread.parked:
                thread.resume(signum)
            return
        if thread.tid in self.threads and not thread.parked:
            thread.resume()

    def _add_new_thread(self, tid: int) -> Tracee:
        """Add a thread that a traced one has made."""
        try:
            thread = Tracee(tid, self._procs.tgid(tid) or tid, self._arch)
        except ResourceExhaustedError as error:  # it is reported at the thread's next call
            thread = Tracee(tid, tid, self._arch)
            thread.shortage = error
        thread.followed = thread.tgid in self._fully_followed or thread.shortage is not None
        thread.leaving = thread.tgid in self._leaving
        self._add_thread(thread)
        return thread

    def _forget_thread(self, tid: int) -> None:
        """Drop a thread that is gone."""
        thread = self.threads.pop(tid, None)
        if thread is None:
            return
        self._thread_counts[thread.tgid] -= 1
        if not self._thread_counts[thread.tgid]:
            del self._thread_counts[thread.tgid]
            self._fully_followed.discard(thread.tgid)
            self._leaving.discard(thread.tgid)
            self.syscall_events.on_gone(thread.tgid)

    def _at_syscall(self, thread: Tracee) -> bool:
        """Handle a stop at a system call; return True if the thread was detached there."""
        info = thread.syscall_info()
        if info.op == PTRACE_SYSCALL_INFO_ENTRY:
            thread.call = info.entry.nr, tuple(info.entry.args)
            self.syscall_events.on_enter(thread, *thread.call)
        elif info.op == PTRACE_SYSCALL_INFO_EXIT and thread.call is not None:
            call, thread.call = thread.call, None
            self.syscall_events.on_exit(thread, *call, info.exit.rval)
        if thread.leaving and info.op == PTRACE_SYSCALL_INFO_EXIT and not thread.parked:
            self.detach(thread)
            return True
        return False
