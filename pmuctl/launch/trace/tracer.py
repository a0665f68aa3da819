# SPDX-License-Identifier: Apache-2.0
"""The tracer of VMMs' threads: it seizes, follows and detaches them, and handles every stop."""

import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from itertools import islice

from pmuctl.host.procfs import Procfs
from pmuctl.host.resource_errors import ResourceExhaustedError
from pmuctl.launch.trace.arch import Arch
from pmuctl.launch.trace.process_end import WALL
from pmuctl.launch.trace.tracee import (
    STOP_SECONDS,
    SYSCALL_STOP,
    ThreadGoneError,
    Tracee,
    is_group_stop,
)
from pmuctl.launch.trace.tracer_events import SignalEvents, SyscallEvents
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

OPTIONS = (
    PTRACE_O_TRACESYSGOOD
    | PTRACE_O_TRACECLONE
    | PTRACE_O_TRACEFORK
    | PTRACE_O_TRACEVFORK
    | PTRACE_O_TRACEEXEC
    | PTRACE_O_EXITKILL
)
"""With EXITKILL the end of the tracer kills all that it traces: no VM starts half prepared."""
STOPS_AT_ONCE = 64
"""Stops handled in one turn: threads that come and go all the time leave turns to others."""
SHORTEST_PAUSE, LONGEST_PAUSE = 0.0001, 0.005
"""Seconds between two looks whether threads have stopped."""


class Tracer:
    """Every thread that this process traces, by thread id.

    `stops` counts the stops seen. What the threads fork is traced from its birth, and detached at
    once if it is not to be followed, unless `trace_children`.
    `syscall_events` and `signal_events` are set before the first thread is traced.
    """

    syscall_events: SyscallEvents
    signal_events: SignalEvents

    def __init__(self, arch: Arch, procs: Procfs, *, patience: float = STOP_SECONDS) -> None:
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

    def threads_of(self, tgid: int) -> list[Tracee]:
        """Return the threads of a process that are traced."""
        return [thread for thread in self.threads.values() if thread.tgid == tgid]

    def seize(self, tid: int, tgid: int) -> Tracee:
        """Begin to trace one thread, which runs on; raise OSError."""
        thread = Tracee(tid, tgid, self._arch, patience=self._patience)
        thread.seize(OPTIONS)
        self._add_thread(thread)
        return thread

    def _add_thread(self, thread: Tracee) -> None:
        self.threads[thread.tid] = thread
        self._thread_counts[thread.tgid] += 1

    def follow(self, tid: int, tgid: int, is_valid: Callable[[], bool]) -> bool:
        """Stop one thread at its system calls from now on.

        Return False, and leave it alone, if it is another thread by then: `is_valid` tells whether
        the id is still that of the thread that is meant. Raise OSError (EPERM, ESRCH).
        """
        thread = self.threads.get(tid)
        if thread is None:
            thread = self.seize(tid, tgid)
            if not is_valid():
                thread.leaving = True
                thread.interrupt()
                return False
        self._leaving.discard(tgid)
        thread.leaving = False
        if not thread.followed:
            thread.followed = True
            thread.interrupt()
        return True

    def follow_all(self, tgid: int) -> None:
        """Stop every thread of a process at its system calls; once this returns, none is missed.

        Raise OSError (EPERM) if a thread may not be traced, TimeoutError if one does not stop in
        time, or makes others faster than they can be traced; some are traced by then.
        """
        until = time.monotonic() + self._patience
        self._leaving.discard(tgid)
        # a thread that was in clone(2) as it was seized has made one that is not traced
        while stops := self._interrupt_all(tgid, until):
            self._wait_stopped(stops, until)

    def _interrupt_all(self, tgid: int, until: float) -> dict[Tracee, int]:
        """Seize every thread of a process, and interrupt those that were not followed before.

        Return these, each with its count of stops.
        """
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
        for thread in self.threads_of(tgid):
            thread.leaving = False
            if not thread.followed and not thread.parked:
                thread.followed = True
                stops[thread] = thread.stops
                with suppress(ProcessLookupError):
                    thread.interrupt()
        self._fully_followed.add(tgid)
        return stops

    def _wait_stopped(self, stops: Mapping[Tracee, int], until: float) -> None:
        """Wait until each of these threads has stopped once more; raise TimeoutError."""
        pause = SHORTEST_PAUSE
        while waiting := [
            thread
            for thread, count in stops.items()
            if thread.tid in self.threads and thread.stops == count
        ]:
            if time.monotonic() > until:
                raise TimeoutError(f"{len(waiting)} do not stop: one may be stuck in the kernel")
            # these first: the kernel would report the youngest first, for ever
            heard = [self.take_stop(thread.tid, os.WNOHANG) for thread in waiting]
            if any(heard) or self.take_stop(flags=os.WNOHANG):
                continue
            if all(self._waits_for_child(thread) for thread in waiting):
                break
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _waits_for_child(self, thread: Tracee) -> bool:
        """Return whether a thread waits for the child that it has vforked.

        It does not stop before the child has ended or executed a program, but stops then before
        it does anything else.
        """
        calls = {self._arch.nr_clone, self._arch.nr_clone3} | self._arch.forking_calls
        call = self._procs.syscall(thread.tgid, thread.tid)
        return bool(call) and call[0] in calls

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
        for thread in self.threads_of(tgid):
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

    def _handle_stop(self, tid: int, status: int) -> None:
        """Handle what waitpid() reported of a thread; resume it unless it is parked or gone."""
        if not os.WIFSTOPPED(status):
            self._forget_thread(tid)
            return
        self.stops += 1
        thread = self.threads.get(tid) or self._add_new_thread(tid)
        thread.stops += 1
        if thread.is_ending:
            thread.go_on_ending(status)
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
            for other in self.threads_of(thread.tgid):
                if other is not thread:
                    del self.threads[other.tid]
                    self._thread_counts[thread.tgid] -= 1
            thread.forget_calls()
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
            thread = Tracee(tid, self._procs.tgid(tid) or tid, self._arch, patience=self._patience)
        except ResourceExhaustedError as error:  # it is reported at the thread's next call
            thread = Tracee(tid, tid, self._arch, patience=self._patience)
            thread.shortage = error
        is_new_process = thread.shortage is None and not self._thread_counts[thread.tgid]
        if is_new_process and self.syscall_events.on_new_process(thread.tgid):
            self._fully_followed.add(thread.tgid)
        thread.followed = thread.tgid in self._fully_followed or thread.shortage is not None
        is_no_concern = is_new_process and not thread.followed and not self.trace_children
        thread.leaving = is_no_concern or thread.tgid in self._leaving
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
        # a call may have been skipped at its entry
        if thread.leaving and thread.call is None and not thread.parked:
            self.detach(thread)
            return True
        return False
