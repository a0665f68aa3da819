# SPDX-License-Identifier: Apache-2.0
"""The VMs of this host that have a control socket: finding them, asking them."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pmuctl.control.client import Client, socket_at
from pmuctl.control.door import filter_from
from pmuctl.control.registry import Entry, scan_sockets
from pmuctl.errors import (
    DeniedError,
    NotFoundError,
    PmuctlError,
    RefusedError,
    UnreachableError,
    UsageError,
)
from pmuctl.host.procs import Procfs
from pmuctl.manage.supervised import orphan, refused_start, with_record
from pmuctl.model.event import WIDEST_BITS, EventSet
from pmuctl.model.vm import Vm, VmPmu, VmState, VmVcpu, Window

ASKED_AT_ONCE = 32

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How this user's VMs are reached: where to look, and how long to wait (seconds).

    `trace` is told every request as it is sent.
    """

    environ: Mapping[str, str]
    uid: int
    deadline: float
    socket: Path | None = None
    procs: Procfs = field(default_factory=Procfs)
    trace: Callable[[str], None] = field(default=lambda _: None)

    def entries(self) -> list[Entry]:
        """The sockets to look at: the one that was named, or all there are."""
        if self.socket is not None:
            return [socket_at(self.socket)]
        return scan_sockets(self.environ, self.uid)

    def client(self, entry: Entry) -> Client:
        """A connection, not yet made, to a VM's control socket."""
        return Client(entry, deadline=self.deadline, procs=self.procs, trace=self.trace)


def list_vms(reach: Reach, names: Sequence[str] = ()) -> list[Vm]:
    """The VMs that the names stand for, by default all, each with its problem if it has one.

    They are asked side by side: the silent ones cost one deadline, not one each. Raises
    NotFoundError for a name that stands for none.
    """
    for name in names:
        _check_form(name)
    entries = reach.entries()
    pool = ThreadPoolExecutor(max_workers=ASKED_AT_ONCE)
    try:
        found = list(pool.map(lambda entry: _try_read(reach, entry), entries))
    finally:
        # whoever is stopped by a signal does not wait for the silent ones
        pool.shutdown(wait=False, cancel_futures=True)
    if not names:
        return found
    matched = [[vm for vm in found if _is_called(vm, name)] for name in names]
    for name, its in zip(names, matched, strict=True):
        if not its:
            raise _not_found(reach, name, [vm.name for vm in found])
    return [vm for vm in found if any(vm in its for its in matched)]


@contextmanager
def connected(reach: Reach, name: str, *, strictly: bool = False) -> Iterator[tuple[Client, Vm]]:
    """The one VM that a name, `uuid/...` or `pid/N` stands for, asked over an open connection.

    What is asked and changed on the connection is that VM's: it is named anew by its own answer.
    With `strictly`, where something is to be changed, its peer must be known to be a VMM, and a
    VM of another user's directory is not meant by a name or a UUID, which anybody can claim.
    To an orphaned VM there is no connection: its client is not to be used. Raises NotFoundError
    where there is none, UsageError where two VMs hold the name, and what Client raises.
    """
    entry = _find(reach, name, strictly=strictly)
    with ExitStack() as stack:
        client = reach.client(entry)
        try:
            stack.enter_context(client)
        except UnreachableError as error:
            its = orphan(entry, reach.procs) if _is_dead(error) else None
            if its is None:
                raise
            vm = its
        else:
            vm = with_record(read_vm(client, strictly=strictly), entry, reach.procs)
        if not _is_called(vm, name):
            raise NotFoundError(
                "there is no such VM with this control socket",
                subject=name,
                why=f"the VM at {entry.path} is named {vm.name}",
                fix=f"pmuctl vm list --socket {entry.path}" if reach.socket else "pmuctl vm list",
            )
        yield client, vm


def _find(reach: Reach, name: str, *, strictly: bool) -> Entry:
    _check_form(name)
    entries = reach.entries()
    if reach.socket is not None:
        return entries[0]
    if "/" not in name:
        found = [entry for entry in entries if entry.name == name]
    else:
        vms = list_vms(reach)
        paths = {vm.socket for vm in vms if _is_called(vm, name)}
        found = [entry for entry in entries if str(entry.path) in paths]
        unasked = [vm for vm in vms if vm.state in (VmState.SILENT, VmState.DENIED)]
        if not found and unasked:
            raise UnreachableError(
                "it may be one of the VMs that cannot be asked",
                subject=name,
                why=", ".join(f"{vm.name} is {vm.state}" for vm in unasked),
                fix="pmuctl vm list",
            )
    if not found:
        raise _not_found(reach, name, [entry.name for entry in entries if entry.name])
    return choose_entry(found, name, uid=reach.uid, strictly=strictly)


def choose_entry(found: Sequence[Entry], name: str, *, uid: int, strictly: bool) -> Entry:
    """The one of these sockets, all called so, that user `uid` means.

    One's own go before another user's; to change another user's VM its process must be named.
    Raises UsageError where that leaves none or several.
    """
    own = [entry for entry in found if entry.owner in (None, uid)]
    others = [entry for entry in found if entry not in own]
    if strictly and others and not own and not name.startswith("pid/"):
        raise UsageError(
            "only another user's VM is called so",
            subject=name,
            why=f"{others[0].path} is uid {others[0].owner}'s, and anybody can take a name",
            fix="name it by its process: pid/N, with N from pmuctl vm list",
        )
    found = own or others
    if len(found) > 1:
        raise UsageError(
            "two VMs hold this name",
            subject=name,
            why=", ".join(str(entry.path) for entry in found),
            fix=f"add --socket {found[0].path}, or name it by its process: pid/N",
        )
    return found[0]


def _check_form(name: str) -> None:
    kind, slash, rest = name.partition("/")
    if slash and (kind not in ("pid", "uuid") or not rest):
        raise UsageError(f"{name}: not a VM", why="a VM is NAME, uuid/UUID or pid/PID")
    if kind == "pid" and slash and not (rest.isascii() and rest.isdigit()):
        raise UsageError(f"{name}: {rest} is not a process id")


def read_vm(client: Client, *, strictly: bool = False) -> Vm:
    """What a VM says of itself, as far as its peer can be believed.

    With `strictly` a peer that cannot be checked is refused. Raises what Client raises, and
    RefusedError for a VM that answers to another name than its socket has.
    """
    answer: Any = client.execute("query-pmu")
    vmm = client.believe(answer["pid"], strictly=strictly)
    entry = client.entry
    if entry.name not in (None, answer["name"]):
        raise RefusedError(
            "its control socket answers for another VM",
            subject=entry.name,
            why=f"it calls itself {answer['name']}",
            fix=f"look at who made {entry.path}",
        )
    threads = client.threads(vmm)
    # of a supervised process that has no VM yet nothing is true of one
    is_made = vmm.has_vm is not False
    window = Window(answer["window"])
    vcpus = tuple(
        VmVcpu(
            index=its["index"],
            tid=its["tid"] if its["tid"] in threads else None,
            initialised=its["initialised"],
            has_run=its["has-run"],
        )
        for its in (answer["vcpus"] if is_made else ())
    )
    if answer["filter"] and filter_from(answer["filter"]).exceptions - EventSet.space(WIDEST_BITS):
        raise RefusedError(
            "its answer to query-pmu is wrong",
            subject=client.subject,
            why="its filter names events past 0xffff",
            fix=f"look at what listens at {entry.path}",
        )
    pmu, counters, its_filter = answer["pmu"], answer["counters"], answer["filter"]
    return Vm(
        name=answer["name"],
        socket=str(entry.path),
        state=_state(answer, vcpus) if is_made else VmState.STARTING,
        uuid=answer["uuid"],
        vmm=answer["vmm"],
        pid=vmm.pid,
        owner=vmm.uid,
        window=None if window is Window.OPEN and not vcpus else window,
        since=answer["since"],
        by=answer["by"],
        attributes=tuple(answer["attributes"]),
        event_bits=answer.get("event-bits"),
        pmu=pmu and VmPmu(name=pmu["name"], type=pmu["type"], origin=pmu["origin"]),
        counters=counters and counters["value"],
        counters_origin=counters and counters["origin"],
        filter=its_filter and filter_from(its_filter),
        filter_origin=its_filter and its_filter["origin"],
        vcpus=vcpus,
        supervised=vmm.is_supervised,
    )


def _state(answer: Any, vcpus: Sequence[VmVcpu]) -> VmState:
    if any(vcpu.has_run for vcpu in vcpus):
        return VmState.RUNNING
    # a peer that does not say whether it waits has still its window to say so
    waits = answer.get("waiting", answer["window"] == Window.OPEN)
    return VmState.WAITING if waits else VmState.STARTING


def _try_read(reach: Reach, entry: Entry) -> Vm:
    client = reach.client(entry)
    try:
        with client:
            return with_record(read_vm(client), entry, reach.procs)
    except PmuctlError as error:
        if _is_dead(error) and (vm := orphan(entry, reach.procs)):
            return vm
        peer = getattr(client, "peer", None)
        state = VmState.SILENT
        if isinstance(error, DeniedError):
            state = VmState.DENIED
        elif _is_dead(error):
            state = VmState.DEAD
        return Vm(
            name=entry.name or str(entry.path),
            socket=str(entry.path),
            state=state,
            pid=peer.pid if peer else None,
            owner=peer.uid if peer else entry.owner,
            problem=error,
        )


def _is_dead(error: PmuctlError) -> bool:
    return isinstance(error, UnreachableError) and error.errno == "ECONNREFUSED"


def _is_called(vm: Vm, name: str) -> bool:
    kind, slash, rest = name.partition("/")
    if slash and kind == "uuid":
        return vm.uuid is not None and vm.uuid.lower() == rest.lower()
    if slash and kind == "pid":
        return vm.pid is not None and str(vm.pid) == rest
    return vm.name == name


def _not_found(reach: Reach, name: str, names: Sequence[str]) -> NotFoundError:
    if reach.socket is None and (refused := refused_start(name, reach.environ, reach.uid)):
        return refused
    near = get_close_matches(name.lower(), {its.lower(): its for its in names}, n=3, cutoff=0.5)
    near = [its for its in names if its.lower() in near]
    if _UUID.fullmatch(name):
        near = [f"uuid/{name}"]
    return NotFoundError(
        "there is no such VM with a control socket",
        subject=name,
        why=f"near: {', '.join(near)}" if near else f"found: {', '.join(names) or 'none'}",
        fix="pmuctl vm list",
    )
