# SPDX-License-Identifier: Apache-2.0
"""Queries of many control sockets at once, under one deadline that no socket can lengthen."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pmuctl.control.protocol.stream import ByteBudget, OverBudgetError
from pmuctl.control.runtime.sockets import ControlSocket
from pmuctl.errors import UnreachableError
from pmuctl.host.parallel import AT_ONCE, run_parallel
from pmuctl.host.signals import defer_signals
from pmuctl.manage.inventory.query import ask_socket, make_unread_reply, make_vm
from pmuctl.manage.inventory.replies import Reply
from pmuctl.manage.inventory.session import Session
from pmuctl.model.vm import Vm, VmState
from pmuctl.value import replace

if TYPE_CHECKING:
    from concurrent.futures import Future

REST_SECONDS = 60.0
"""The longest pause after which SocketPoller queries a mute socket again."""

OWN_BYTES = 8 << 20
"""Bytes of all answers and start records of root's and the caller's own VMs: 1,000 VMs of 8 vCPUs
answer with 1 MiB, and their records with command lines of 4 KiB take 5 MiB."""
OTHERS_BYTES = 4 << 20
"""Bytes of all answers and start records of other users' VMs."""

SLOW_BYTES = 64 << 10
"""Bytes of the answer of a socket that SocketPoller does not wait for."""

T = TypeVar("T")

MakeResult = Callable[[Session, ControlSocket, Reply], T]
"""A function that makes of a socket's reply what is kept of it."""

SocketKey = tuple[Path, int, int]
"""A socket's path, inode and mtime (ns): a new socket at the same path is queried at once."""


def ask_all(session: Session, sockets: Sequence[ControlSocket]) -> list[Vm]:
    """Return the VM of each of these sockets, in their order; see `ask_sockets`."""
    return ask_sockets(session, sockets, make_vm)


def ask_sockets(
    session: Session, sockets: Sequence[ControlSocket], make: MakeResult[T]
) -> list[T]:
    """Return what `make` makes of the reply of each of these sockets; they share one deadline.

    They are queried concurrently: the user's own and root's first, then those of each other user
    in turn, so that no user's mute sockets delay those of others. A socket that is not reached
    before the deadline counts as silent, and so does one whose answer is past its user's budget.
    Nothing is kept of a reply but what `make` returns.
    """
    budgets = AnswerBudgets(session.host.uid)
    budgets.divide(sockets)
    results = _query_sockets(session, sockets, make, budgets.find)
    return [
        make(session, socket, _make_unreached_reply(session, socket, budgets.find(socket)))
        if result is None
        else result
        for socket, result in zip(sockets, results, strict=True)
    ]


def _query_sockets(
    session: Session,
    sockets: Sequence[ControlSocket],
    make: MakeResult[T],
    find_budget: Callable[[ControlSocket], ByteBudget],
) -> list[T | None]:
    """Return the same; None for a socket that was not reached."""
    until = time.monotonic() + session.deadline

    def ask(socket: ControlSocket) -> T | None:
        left = until - time.monotonic()
        if left <= 0:
            return None
        limited = replace(session, deadline=left)
        return make(session, socket, ask_socket(limited, socket, budget=find_budget(socket)))

    if not session.host.is_live:  # captured replies are read at once
        return [make(session, socket, ask_socket(session, socket)) for socket in sockets]
    turns = _order_by_turns(sockets, session.host.uid)
    results = run_parallel([partial(ask, socket) for socket in turns])
    by_path = {socket.path: result for socket, result in zip(turns, results, strict=True)}
    return [by_path[socket.path] for socket in sockets]


class AnswerBudgets:
    """The bytes that control sockets may answer with: each user has a budget of his own.

    The sockets of root and user `uid` share one, and the other users share OTHERS_BYTES evenly, so
    that nobody's answers crowd out those of another user, and all fit in memory.
    """

    def __init__(self, uid: int) -> None:
        self._uid = uid
        self._own = ByteBudget(OWN_BYTES)
        self._others: dict[int | None, ByteBudget] = {}

    def divide(self, sockets: Sequence[ControlSocket]) -> None:
        """Give each user who has one of these sockets his share, less what is spent of it."""
        owners = {socket.speaks_for for socket in sockets} - {None, self._uid}
        share = OTHERS_BYTES // max(len(owners), 1)
        self._others = {owner: self._others.get(owner) or ByteBudget(share) for owner in owners}
        for budget in self._others.values():
            budget.limit = share

    def find(self, socket: ControlSocket) -> ByteBudget:
        """Return the budget of the user whose socket it is."""
        return self._others.get(socket.speaks_for, self._own)

    def make_part(self, socket: ControlSocket, limit: int | None = None) -> ByteBudget:
        """Return a part for one socket, by default as large as the user's whole budget."""
        whole = self.find(socket)
        return ByteBudget(limit or whole.limit, whole)


def _order_by_turns(sockets: Sequence[ControlSocket], uid: int) -> Sequence[ControlSocket]:
    """Return the sockets of root and user `uid`, then one of each other user in turn."""
    own = [socket for socket in sockets if socket.speaks_for in (None, uid)]
    others: dict[int | None, list[ControlSocket]] = {}
    for socket in sockets:
        if socket.speaks_for not in (None, uid):
            others.setdefault(socket.speaks_for, []).append(socket)
    turns = chain.from_iterable(zip_longest(*others.values()))
    return [*own, *(socket for socket in turns if socket is not None)]


def _make_unreached_reply(session: Session, socket: ControlSocket, budget: ByteBudget) -> Reply:
    problem = UnreachableError(
        "its control socket was not asked",
        why=f"others that do not answer took all of {session.deadline:g} s",
        fix="--deadline SEC waits longer",
    )
    return make_unread_reply(session, socket, problem, budget)


class SlowSocket:
    """A socket that no look waits for, and the VM of its last reply, which can be silent.

    `answer` is the query that is running, with the seconds it took; `due` (monotonic) is when the
    next one starts and `pause` how long in seconds the last pause was. `is_mute` is True if the
    socket had the whole deadline, and did not answer. `budget` bounds that query.
    """

    def __init__(self, vm: Vm, budget: ByteBudget) -> None:
        self.vm = vm
        self.budget = budget
        self.answer: Future[tuple[Vm, float]] | None = None
        self.due = 0.0
        self.pause = 0.0
        self.is_mute = False

    def give_back(self, _: object) -> None:
        """Give back what the query took of the budget."""
        self.budget.restart()


class SocketPoller:
    """Queries of a host's control sockets at every look, of which no socket delays a look.

    A socket that does not answer within a look is queried in the background, with the whole
    `deadline` (seconds), and the more rarely the longer it stays mute. Until it answers, its last
    reply holds: its process and threads are still there to be seen.
    """

    def __init__(self, deadline: float) -> None:
        from concurrent.futures import ThreadPoolExecutor

        self._deadline = deadline
        self._pool = ThreadPoolExecutor(max_workers=AT_ONCE)
        self._slow: dict[SocketKey, SlowSocket] = {}
        self._last_vms: dict[SocketKey, Vm] = {}
        self._budgets: AnswerBudgets | None = None
        self._kept: dict[SocketKey, ByteBudget] = {}
        """What the last replies took of the budgets, for as long as they are kept."""
        self.pending: frozenset[str] = frozenset()
        """The sockets of which it is not known yet whether they answer at all."""

    def close(self) -> None:
        """Stop all queries."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def ask(self, session: Session, sockets: Sequence[ControlSocket]) -> list[Vm]:
        """Return the VM of each socket, in order, within `session.deadline`, as `ask_all`.

        Only what the monitor compares is kept of it. A user's budget is for all that is kept,
        whenever it came: who answers with very much, and then no more, has used it up.
        """
        if self._budgets is None:
            self._budgets = AnswerBudgets(session.host.uid)
        self._budgets.divide(sockets)
        keys = {socket.path: _read_key(socket) for socket in sockets}
        self._forget_others(set(keys.values()))
        prompt = [socket for socket in sockets if keys[socket.path] not in self._slow]
        # those that have answered before go first, because new ones may be mute
        prompt.sort(key=lambda socket: keys[socket.path] not in self._last_vms)
        vms: dict[Path, Vm] = {}
        pending: set[str] = set()
        for socket, vm in zip(prompt, self._ask_prompt(session, prompt, keys), strict=True):
            key = keys[socket.path]
            if vm is None:  # others took the time, so the next look queries it again
                pending.add(str(socket.path))
                part = self._budgets.make_part(socket)
                unreached = make_vm(session, socket, _make_unreached_reply(session, socket, part))
                part.restart()
                vms[socket.path] = self._get_last_vm(session, key) or unreached
            elif vm.state is VmState.SILENT:
                self._slow[key] = SlowSocket(vm, self._budgets.make_part(socket, SLOW_BYTES))
            else:
                vms[socket.path] = vm
        for socket in sockets:
            if (slow := self._slow.get(key := keys[socket.path])) is not None:
                vms[socket.path] = self._poll_slow(session, socket, key, slow)
                if slow.vm.state is VmState.SILENT and not slow.is_mute:
                    pending.add(str(socket.path))
        self.pending = frozenset(pending)
        return [vms[socket.path] for socket in sockets]

    def _forget_others(self, present: Collection[SocketKey]) -> None:
        """Forget the sockets that are gone, and what they took of the budgets."""
        for key in self._kept.keys() - present:
            self._kept.pop(key).restart()
        for key in self._slow.keys() - present:
            slow = self._slow.pop(key)
            if slow.answer is not None:
                slow.answer.add_done_callback(slow.give_back)
        self._last_vms = {key: vm for key, vm in self._last_vms.items() if key in present}

    def _ask_prompt(
        self,
        session: Session,
        sockets: Sequence[ControlSocket],
        keys: Mapping[Path, SocketKey],
    ) -> list[Vm | None]:
        """Return the VMs of sockets that are waited for, None for one that is not reached.

        The last replies make room for new ones, and take it again where none came.
        """
        assert self._budgets is not None
        parts = {socket.path: self._budgets.make_part(socket) for socket in sockets}
        kept = {socket.path: self._kept.get(keys[socket.path]) for socket in sockets}
        taken = {path: budget.restart() for path, budget in kept.items() if budget is not None}

        def find_budget(socket: ControlSocket) -> ByteBudget:
            return parts[socket.path]

        vms = _query_sockets(session, sockets, _make_compared_vm, find_budget)
        for socket, vm in zip(sockets, vms, strict=True):
            path = socket.path
            if vm is not None and vm.state is not VmState.SILENT:
                self._keep_vm(keys[path], vm, parts[path])
                continue
            parts[path].restart()
            if (budget := kept[path]) is not None:
                with suppress(OverBudgetError):
                    budget.spend(taken[path])
        return vms

    def _poll_slow(
        self, session: Session, socket: ControlSocket, key: SocketKey, slow: SlowSocket
    ) -> Vm:
        """Take the answer of a slow socket, if there is one, and query it again once it is due."""
        now = time.monotonic()
        if slow.answer is not None and slow.answer.done():
            slow.vm, took = slow.answer.result()
            slow.answer = None
            slow.is_mute = slow.vm.state is VmState.SILENT
            if slow.is_mute:
                slow.budget.restart()
                slow.pause = min(max(2 * slow.pause, self._deadline), REST_SECONDS)
            else:
                slow.pause = 0.0
                self._keep_vm(key, slow.vm, slow.budget)
                if took < session.deadline:  # fast enough for the next look to wait for it
                    del self._slow[key]
                    return slow.vm
            slow.due = now + slow.pause
        if slow.answer is None and now >= slow.due:
            assert self._budgets is not None
            slow.budget = self._budgets.make_part(socket, SLOW_BYTES)
            patient = replace(session, deadline=self._deadline)
            with defer_signals():
                slow.answer = self._pool.submit(_time_query, patient, socket, slow.budget)
        if slow.vm.state is not VmState.SILENT:
            return slow.vm
        last = self._get_last_vm(session, key)
        if last is None:
            return slow.vm
        if not slow.is_mute:
            return last
        return replace(last, state=VmState.SILENT, problem=slow.vm.problem)

    def _keep_vm(self, key: SocketKey, vm: Vm, budget: ByteBudget) -> None:
        """Keep a VM in place of the last one, with what its reply has taken of the budgets."""
        self._last_vms.pop(key, None)
        if (last := self._kept.pop(key, None)) is not None:
            last.restart()
        if vm.state in (VmState.DEAD, VmState.DENIED):
            budget.restart()
            return
        self._last_vms[key], self._kept[key] = vm, budget

    def _get_last_vm(self, session: Session, key: SocketKey) -> Vm | None:
        """Return the VM of a socket's last reply, if the process that gave it still runs."""
        vm = self._last_vms.get(key)
        if vm is None or vm.process is None:
            return None
        return vm if session.host.procs.is_there(vm.process) else None


def _time_query(session: Session, socket: ControlSocket, budget: ByteBudget) -> tuple[Vm, float]:
    """Return the VM of a socket and the seconds that its query took."""
    began = time.monotonic()
    reply = ask_socket(session, socket, budget=budget)
    return _make_compared_vm(session, socket, reply), time.monotonic() - began


def _make_compared_vm(session: Session, socket: ControlSocket, reply: Reply) -> Vm:
    """Return the VM of a socket without what nobody compares at the next look."""
    vm = make_vm(session, socket, reply)
    return replace(vm, attributes=(), by=None, command=None, applied=())


def _read_key(socket: ControlSocket) -> SocketKey:
    try:
        status = socket.path.lstat()
    except OSError:
        return socket.path, 0, 0
    return socket.path, status.st_ino, status.st_mtime_ns
