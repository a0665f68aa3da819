# SPDX-License-Identifier: Apache-2.0
"""Asking many control sockets, of whomever they are, in a time that none of them can lengthen."""

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import chain, zip_longest
from pathlib import Path

from pmuctl.control.runtime.sockets import ControlSocket
from pmuctl.errors import UnreachableError
from pmuctl.host.parallel import AT_ONCE, run_parallel
from pmuctl.host.signals import defer_signals
from pmuctl.manage.inventory.query import ask_socket, make_vm, nothing_told, try_read
from pmuctl.manage.inventory.replies import Reply
from pmuctl.manage.inventory.session import Session
from pmuctl.model.vm import Vm, VmState
from pmuctl.value import replace

REST_SECONDS = 60.0
"""The longest pause after which a socket that stays mute is asked again by one who watches it."""

Key = tuple[Path, int, int]
"""A socket's path, and its inode and time: where another one is made it is asked at once."""


def ask_all(session: Session, entries: Sequence[ControlSocket]) -> list[Vm]:
    """The VM of each of these sockets, in their order: see `ask_sockets`."""
    told = ask_sockets(session, entries)
    return [make_vm(session, entry, its) for entry, its in zip(entries, told, strict=True)]


def ask_sockets(session: Session, entries: Sequence[ControlSocket]) -> list[Reply]:
    """What each of these sockets says, in their order; all of them take one deadline together.

    They are asked side by side: one's own and root's first, then those of each other user in
    turn, so that no user's mute sockets are in the way of the others'. What is not reached before
    the deadline is silent.
    """
    asked = _ask(session, entries)
    return [its or _not_reached(session, entry) for entry, its in zip(entries, asked, strict=True)]


def _ask(session: Session, entries: Sequence[ControlSocket]) -> list[Reply | None]:
    """The same; None is what was not reached."""
    until = time.monotonic() + session.deadline

    def ask(entry: ControlSocket) -> Reply | None:
        left = until - time.monotonic()
        return ask_socket(replace(session, deadline=left), entry) if left > 0 else None

    if not session.host.is_live:  # nobody is asked, and nothing can be late
        return [ask_socket(session, entry) for entry in entries]
    turns = _in_turn(entries, session.host.uid)
    answers = run_parallel([partial(ask, entry) for entry in turns])
    by_path = {entry.path: its for entry, its in zip(turns, answers, strict=True)}
    return [by_path[entry.path] for entry in entries]


def _in_turn(entries: Sequence[ControlSocket], uid: int) -> Sequence[ControlSocket]:
    own = [entry for entry in entries if entry.owner in (None, uid)]
    others: dict[int | None, list[ControlSocket]] = {}
    for entry in entries:
        if entry.owner not in (None, uid):
            others.setdefault(entry.owner, []).append(entry)
    turns = chain.from_iterable(zip_longest(*others.values()))
    return [*own, *(entry for entry in turns if entry is not None)]


def _not_reached(session: Session, entry: ControlSocket) -> Reply:
    problem = UnreachableError(
        "its control socket was not asked",
        why=f"others that do not answer took all of {session.deadline:g} s",
        fix="--deadline SEC waits longer",
    )
    return nothing_told(session, entry, problem)


class SlowSocket:
    """A socket that no look waits for, and what it said last, or that it said nothing.

    `is_mute` tells that it was given the whole deadline, and did not answer.
    """

    def __init__(self, vm: Vm) -> None:
        self.vm = vm
        self.answer: Future[tuple[Vm, float]] | None = None
        self.due = 0.0
        self.pause = 0.0
        self.is_mute = False


class SocketPoller:
    """Asks the control sockets of a host at every look, and lets none of them hold up a look.

    One that does not answer within a look is asked apart from it, with the whole `deadline`, and
    the more rarely the longer it stays mute. Until it answers what it said last is what it is:
    its process and threads are still there to be seen.
    """

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._pool = ThreadPoolExecutor(max_workers=AT_ONCE)
        self._slow: dict[Key, SlowSocket] = {}
        self._said: dict[Key, Vm] = {}
        self.pending: frozenset[str] = frozenset()
        """The sockets of which it is not known yet whether they answer at all."""

    def close(self) -> None:
        """Ask no more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def ask(self, session: Session, entries: Sequence[ControlSocket]) -> list[Vm]:
        """What each of these sockets says, in order, within `session.deadline`, as `ask_all`."""
        keys = {entry.path: _key(entry) for entry in entries}
        present = set(keys.values())
        self._slow = {key: its for key, its in self._slow.items() if key in present}
        self._said = {key: its for key, its in self._said.items() if key in present}
        prompt = [entry for entry in entries if keys[entry.path] not in self._slow]
        # who has answered before first: new ones may be mute
        prompt.sort(key=lambda entry: keys[entry.path] not in self._said)
        found: dict[Path, Vm] = {}
        pending: set[str] = set()
        for entry, told in zip(prompt, _ask(session, prompt), strict=True):
            key = keys[entry.path]
            vm = make_vm(session, entry, told or _not_reached(session, entry))
            if told is None:  # it is not its fault: at the next look it is asked again
                pending.add(str(entry.path))
                found[entry.path] = self._last(session, key) or vm
            elif vm.state is VmState.SILENT:
                self._slow[key] = SlowSocket(vm)
            else:
                self._note(key, vm)
                found[entry.path] = vm
        for entry in entries:
            if (slow := self._slow.get(key := keys[entry.path])) is not None:
                found[entry.path] = self._tend(session, entry, key, slow)
                if slow.vm.state is VmState.SILENT and not slow.is_mute:
                    pending.add(str(entry.path))
        self.pending = frozenset(pending)
        return [found[entry.path] for entry in entries]

    def _tend(self, session: Session, entry: ControlSocket, key: Key, slow: SlowSocket) -> Vm:
        """Take its answer, if there is one, and ask it again once that is due."""
        now = time.monotonic()
        if slow.answer is not None and slow.answer.done():
            slow.vm, took = slow.answer.result()
            slow.answer = None
            slow.is_mute = slow.vm.state is VmState.SILENT
            if slow.is_mute:
                slow.pause = min(max(2 * slow.pause, self._deadline), REST_SECONDS)
            else:
                slow.pause = 0.0
                self._note(key, slow.vm)
                if took < session.deadline:  # the next look waits for it again
                    del self._slow[key]
                    return slow.vm
            slow.due = now + slow.pause
        if slow.answer is None and now >= slow.due:
            patient = replace(session, deadline=self._deadline)
            with defer_signals():
                slow.answer = self._pool.submit(_timed, patient, entry)
        if slow.vm.state is not VmState.SILENT:
            return slow.vm
        last = self._last(session, key)
        if last is None:
            return slow.vm
        if not slow.is_mute:
            return last
        return replace(last, state=VmState.SILENT, problem=slow.vm.problem)

    def _note(self, key: Key, vm: Vm) -> None:
        self._said.pop(key, None)
        if vm.state not in (VmState.DEAD, VmState.DENIED):
            self._said[key] = vm

    def _last(self, session: Session, key: Key) -> Vm | None:
        """What it said last, as long as the process goes on that said it."""
        vm = self._said.get(key)
        if vm is None or vm.process is None:
            return None
        return vm if session.host.procs.is_there(vm.process) else None


def _timed(session: Session, entry: ControlSocket) -> tuple[Vm, float]:
    began = time.monotonic()
    return try_read(session, entry), time.monotonic() - began


def _key(entry: ControlSocket) -> Key:
    try:
        its = entry.path.lstat()
    except OSError:
        return entry.path, 0, 0
    return entry.path, its.st_ino, its.st_mtime_ns
