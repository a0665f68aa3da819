# SPDX-License-Identifier: Apache-2.0
"""The VMs of a host: those with a control socket, those found by their processes, and finding one
of them by its name."""

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches

from pmuctl.control.client import Client
from pmuctl.control.registry import Entry
from pmuctl.errors import NotFoundError, UnreachableError, UnsupportedError, UsageError
from pmuctl.manage.found import ASKED_AT_ONCE, Survey, VmProcess, find_vms, survey
from pmuctl.manage.reach import Reach as Reach
from pmuctl.manage.reach import is_dead, read_vm, try_read
from pmuctl.manage.supervised import orphan, refused_start, with_record
from pmuctl.model.vm import Vm, VmState, VmVcpu

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_PID = re.compile(r"[0-9]{1,10}(/[0-9]{1,10})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """VMs, and how many processes could not be looked at: whether those have VMs is not known.

    `is_partial` tells that other users' processes are hidden altogether.
    """

    vms: list[Vm]
    unreadable: int = 0
    is_partial: bool = False


def list_vms(reach: Reach, names: Sequence[str] = ()) -> list[Vm]:
    """The VMs that the names stand for, by default all; see `take_stock`."""
    return take_stock(reach, names).vms


def take_stock(reach: Reach, names: Sequence[str] = ()) -> Listing:
    """The VMs that the names stand for, by default all, each with its problem if it has one.

    Those with a control socket are asked side by side: the silent ones cost one deadline, not one
    each. All others are found by their processes, unless a socket was named. Raises NotFoundError
    for a name that stands for none.
    """
    for name in names:
        check_form(name)
    seen = _survey(reach)
    entries = reach.entries()
    managed: list[Vm] = []
    if entries:
        pool = ThreadPoolExecutor(max_workers=ASKED_AT_ONCE)
        try:
            managed = list(pool.map(lambda entry: try_read(reach, entry), entries))
        finally:
            # whoever is stopped by a signal does not wait for the silent ones
            pool.shutdown(wait=False, cancel_futures=True)
    found = _merge(reach, managed, seen.processes)
    if names:
        matched = [[vm for vm in found if is_called(vm, name)] for name in names]
        for name, its in zip(names, matched, strict=True):
            if not its:
                raise _not_found(reach, name, [vm.name for vm in found], seen)
        found = [vm for vm in found if any(vm in its for its in matched)]
    return Listing(vms=found, unreadable=seen.unreadable, is_partial=seen.is_partial)


def _survey(reach: Reach) -> Survey:
    return Survey() if reach.socket is not None else survey(reach.scene)


def _merge(reach: Reach, managed: Sequence[Vm], processes: Sequence[VmProcess]) -> list[Vm]:
    """Every VM once: one with a control socket is the one that its process has."""
    incomplete = {vm.pid for vm in managed if _lacks(vm)}
    known = {vm.pid for vm in managed if vm.pid is not None}
    wanted = [its for its in processes if its.pid not in known or its.pid in incomplete]
    found = find_vms(wanted, reach.scene)
    by_pid = {vm.pid: vm for vm in found}
    merged = [_filled(vm, by_pid[vm.pid]) if vm.pid in by_pid else vm for vm in managed]
    merged += [vm for vm in found if vm.pid not in known]
    return sorted(merged, key=_order)


def _lacks(vm: Vm) -> bool:
    """Whether its process can tell more of a VM than its socket has."""
    return vm.vcpus is None or any(its.tid is None for its in vm.vcpus)


def _filled(vm: Vm, found: Vm) -> Vm:
    """A VM with a control socket, and what only its process tells: threads of its vCPUs."""
    if vm.vcpus is None:
        kind, sets_pmu = found.kind, found.sets_pmu
        return replace(vm, vcpus=found.vcpus or None, kind=kind, sets_pmu=sets_pmu)
    its = {vcpu.index: vcpu for vcpu in found.vcpus or ()}
    return replace(vm, vcpus=tuple(_with_thread(vcpu, its.get(vcpu.index)) for vcpu in vm.vcpus))


def _with_thread(vcpu: VmVcpu, found: VmVcpu | None) -> VmVcpu:
    if vcpu.tid is not None or found is None:
        return vcpu
    return replace(vcpu, tid=found.tid, evidence=found.evidence)


def _order(vm: Vm) -> tuple[bool, str, int]:
    """By name; those that have none behind the others, by process."""
    has_none = vm.socket is None and vm.name.startswith("pid/")
    return has_none, "" if has_none else vm.name, vm.pid or 0


def look(reach: Reach, name: str, *, strictly: bool = False) -> Vm:
    """The one VM that a name, `uuid/...` or `pid/N` stands for, whether it can be asked or not.

    `strictly` as for `connected`. Raises NotFoundError where there is none, UsageError where two
    VMs hold the name, and what Client raises of one with a control socket.
    """
    found = _find(reach, name, strictly=strictly)
    if isinstance(found, Vm):
        return found
    with _asked(reach, name, found, strictly=strictly) as (_, vm):
        pass
    seen = _survey(reach)
    if not _lacks(vm):
        return vm
    its = find_vms([process for process in seen.processes if process.pid == vm.pid], reach.scene)
    return _filled(vm, its[0]) if its else vm


@contextmanager
def connected(
    reach: Reach, name: str, *, strictly: bool = False
) -> Iterator[tuple[Client | None, Vm]]:
    """The one VM that a name, `uuid/...` or `pid/N` stands for, asked over an open connection.

    What is asked and changed on the connection is that VM's: it is named anew by its own answer.
    With `strictly`, where something is to be changed, its peer must be known to be a VMM, and a
    VM of another user's directory is not meant by a name or a UUID, which anybody can claim.
    To an orphaned VM there is no connection, and None instead. Raises NotFoundError where there is
    none, UsageError where two VMs hold the name, UnsupportedError for one without a control
    socket, and what Client raises.
    """
    found = _find(reach, name, strictly=strictly)
    if isinstance(found, Vm):
        raise UnsupportedError(
            "it has no control socket",
            subject=found.name,
            why="KVM takes PMU settings only from the process that made the VM, and nobody "
            f"listens for pmuctl in process {found.pid}",
            fix="start the VM with pmuctl run",
        )
    with _asked(reach, name, found, strictly=strictly) as its:
        yield its


@contextmanager
def _asked(
    reach: Reach, name: str, entry: Entry, *, strictly: bool
) -> Iterator[tuple[Client | None, Vm]]:
    with ExitStack() as stack:
        client: Client | None = None
        try:
            client = stack.enter_context(reach.client(entry))
        except UnreachableError as error:
            its = orphan(entry, reach.procs) if is_dead(error) else None
            if its is None:
                raise
            vm = its
        else:
            vm = with_record(read_vm(client, strictly=strictly), entry, reach.procs)
        if not is_called(vm, name):
            raise NotFoundError(
                "there is no such VM with this control socket",
                subject=name,
                why=f"the VM at {entry.path} is named {vm.name}",
                fix=f"pmuctl vm list --socket {entry.path}" if reach.socket else "pmuctl vm list",
            )
        _check_rivals(reach, name, entry, vm)
        yield client, vm


def _check_rivals(reach: Reach, name: str, entry: Entry, vm: Vm) -> None:
    """Raise UsageError where a VM without a control socket has the same claim to the name."""
    if "/" in name or reach.socket is not None:
        return
    others = [its for its in survey(reach.scene).processes if its.pid != vm.pid]
    if any(its.identity.name == name for its in others):
        # some of them may have a control socket under another name
        rivals = [its for its in list_vms(reach) if its.socket is None and its.name == name]
        _choose([entry], rivals, name, uid=reach.uid, strictly=False)


def _find(reach: Reach, name: str, *, strictly: bool) -> Entry | Vm:
    """The control socket of the VM that is meant, or the VM where that has none."""
    check_form(name)
    entries = reach.entries()
    if reach.socket is not None:
        return entries[0]
    if by_name := [entry for entry in entries if entry.name == name]:
        return choose_entry(by_name, name, uid=reach.uid, strictly=strictly)
    seen = _survey(reach)
    # a name is what a process says of itself; QEMU's monitor can say it, too
    namesakes = (its.identity.name == name or _may_tell(its) for its in seen.processes)
    vms: list[Vm] = []
    if "/" in name or any(namesakes):
        vms = [vm for vm in list_vms(reach) if is_called(vm, name)]
    paths = {vm.socket for vm in vms}
    named = [entry for entry in entries if "/" in name and str(entry.path) in paths]
    unmanaged = [vm for vm in vms if vm.socket is None]
    if not named and not unmanaged:
        if "/" in name:
            _refuse_unasked(reach, name)
        names = [entry.name for entry in entries if entry.name]
        names += [its.identity.name or f"pid/{its.pid}" for its in seen.processes]
        raise _not_found(reach, name, names, seen)
    return _choose(named, unmanaged, name, uid=reach.uid, strictly=strictly)


def _may_tell(process: VmProcess) -> bool:
    return process.identity.name is None and bool(process.identity.monitors)


def _refuse_unasked(reach: Reach, name: str) -> None:
    """Raise UnreachableError where a VM that cannot be asked may be the one that is meant."""
    unasked = [vm for vm in list_vms(reach) if vm.state in (VmState.SILENT, VmState.DENIED)]
    if unasked:
        raise UnreachableError(
            "it may be one of the VMs that cannot be asked",
            subject=name,
            why=", ".join(f"{vm.name} is {vm.state}" for vm in unasked),
            fix="pmuctl vm list",
        )


def _choose(
    entries: Sequence[Entry], vms: Sequence[Vm], name: str, *, uid: int, strictly: bool
) -> Entry | Vm:
    """The one of these that is meant: sockets, and VMs that have none, all called so.

    Root's and one's own go before another user's. Raises UsageError where that leaves several.
    """
    own = [vm for vm in vms if vm.owner in (0, uid)]
    has_own_entry = any(entry.owner in (None, uid) for entry in entries)
    rivals = own if own or has_own_entry else vms
    if not rivals:
        return choose_entry(entries, name, uid=uid, strictly=strictly)
    if own and not has_own_entry:
        entries = ()
    if len(rivals) + len(entries) > 1:
        places = [*(str(its.path) for its in entries), *(f"pid/{vm.pid}" for vm in rivals)]
        raise UsageError(
            "two VMs hold this name",
            subject=name,
            why=", ".join(places),
            fix="name it by its process: pid/N",
        )
    return rivals[0]


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


def check_form(name: str) -> None:
    """Raise UsageError for what cannot be a VM: NAME, uuid/UUID or pid/PID."""
    kind, slash, rest = name.partition("/")
    if slash and (kind not in ("pid", "uuid") or not rest):
        raise UsageError(f"{name}: not a VM", why="a VM is NAME, uuid/UUID or pid/PID")
    if kind == "pid" and slash and not _PID.fullmatch(rest):
        raise UsageError(f"{name}: {rest} is not a process id")


def is_called(vm: Vm, name: str) -> bool:
    """Whether a NAME, uuid/UUID or pid/PID is this VM's."""
    kind, slash, rest = name.partition("/")
    if slash and kind == "uuid":
        return vm.uuid is not None and vm.uuid.lower() == rest.lower()
    if slash and kind == "pid":
        # pid/PID/FD is the name of one of several VMs of a process
        return (vm.pid is not None and str(vm.pid) == rest) or vm.name == name
    return vm.name == name


def _not_found(reach: Reach, name: str, names: Sequence[str], seen: Survey) -> NotFoundError:
    if reach.socket is None and (refused := refused_start(name, reach.environ, reach.uid)):
        return refused
    names = list(dict.fromkeys(its for its in names if its != name))
    near = get_close_matches(name.lower(), {its.lower(): its for its in names}, n=3, cutoff=0.5)
    near = [its for its in names if its.lower() in near]
    if _UUID.fullmatch(name):
        near = [f"uuid/{name}"]
    why = f"near: {', '.join(near)}" if near else f"found: {', '.join(names) or 'none'}"
    if seen.unreadable or seen.is_partial:
        why += "; other users' processes may not be read"
    return NotFoundError("there is no such VM", subject=name, why=why, fix="pmuctl vm list")
