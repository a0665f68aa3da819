# SPDX-License-Identifier: Apache-2.0
"""Finding the one VM that is meant, among those that have the same name or none."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from shlex import quote

from pmuctl.control.client.client import Client
from pmuctl.control.runtime.sockets import ControlSocket
from pmuctl.errors import NotFoundError, UnreachableError, UnsupportedError, UsageError, command
from pmuctl.manage.inventory.inventory import Ask, Inventory, VmList
from pmuctl.manage.inventory.poller import ask_all
from pmuctl.manage.inventory.processes import VmProcess
from pmuctl.manage.inventory.query import ask_vm, is_dead, make_vm
from pmuctl.manage.inventory.replies import CapturedEntry, Reply
from pmuctl.manage.inventory.session import Session
from pmuctl.manage.inventory.start_records import orphan, refused_start
from pmuctl.manage.inventory.unbacked_sockets import is_unbacked
from pmuctl.model.vm import Vm, VmState
from pmuctl.model.vm_ref import UUID, ByName, ByPid, VmRef


def list_vms(session: Session, refs: Sequence[VmRef] = (), *, ask: Ask = ask_all) -> VmList:
    """The VMs that are meant, by default all; raises NotFoundError for what means none.

    Their control sockets are asked by `ask`.
    """
    return select_vms(Inventory(session, ask), refs)


def select_vms(inventory: Inventory, refs: Sequence[VmRef] = ()) -> VmList:
    """The same, of a inventory that is there."""
    vms = inventory.vms
    for ref in refs:
        if not any(vm.is_meant(ref) for vm in vms):
            raise _not_found(inventory, ref, [vm.name for vm in vms])
    if refs:
        vms = [vm for vm in vms if any(vm.is_meant(ref) for ref in refs)]
    seen = inventory.seen
    return VmList(
        vms=vms,
        unreadable=seen.unreadable,
        is_partial=seen.is_partial,
        left_out=inventory.sockets.left_out,
        scratch=0 if refs else inventory.scratch,
    )


def lookup_vm(inventory: Inventory, ref: VmRef, *, strictly: bool = False) -> Vm:
    """The one VM that is meant, whether it can be asked or not.

    `strictly` as for `open_vm`; it goes for a VM without a control socket as well, whose threads
    can be placed. Raises NotFoundError where there is none, UsageError where two VMs hold the
    name, and what Client raises of one with a control socket.
    """
    found = _find(inventory, ref, strictly=strictly)
    if isinstance(found, Vm):
        is_own = found.owner == inventory.session.host.uid
        if strictly and not is_own and not isinstance(ref, ByPid):
            whose = "several users'" if found.owner is None else f"uid {found.owner}'s"
            raise _strangers(ref, f"process {found.pid} is {whose}", f"pid/{found.pid}")
        return found
    vm = inventory.ask(found, strictly=strictly)
    if vm.problem is not None and vm.state is not VmState.ORPHANED:
        raise vm.problem
    _check(inventory, ref, found, vm)
    return vm


@contextmanager
def open_vm(
    inventory: Inventory, ref: VmRef, *, strictly: bool = False
) -> Iterator[tuple[Client | None, Vm]]:
    """The one VM that is meant, asked over an open connection.

    What is asked and changed on the connection is that VM's: it is named anew by its own answer.
    With `strictly`, where something is to be changed, its peer must be known to be a VMM, and a
    VM of another user's directory is not meant by a name or a UUID, which anybody can claim.
    To an orphaned VM there is no connection, and None instead. Raises NotFoundError where there is
    none, UsageError where two VMs hold the name, UnsupportedError for one without a control
    socket, and what Client raises.
    """
    found = _find(inventory, ref, strictly=strictly)
    if isinstance(found, Vm):
        raise UnsupportedError(
            "it has no control socket",
            subject=found.name,
            why="KVM takes PMU settings only from the process that made the VM, and nobody "
            f"listens for pmuctl in process {found.pid}",
            fix="start the VM with pmuctl run",
        )
    session = inventory.session
    with ExitStack() as stack:
        client: Client | None = None
        told: Reply | None
        try:
            client = stack.enter_context(session.client(found))
        except UnreachableError as error:
            told = orphan(found, session.host.procs) if is_dead(error) else None
            if told is None:
                raise
        else:
            told = ask_vm(client, strictly=strictly)
        vm = inventory.whole(make_vm(session, found, told))
        _check(inventory, ref, found, vm)
        yield client, vm


def _check(inventory: Inventory, ref: VmRef, entry: ControlSocket, vm: Vm) -> None:
    """Raise NotFoundError where a socket's VM is not what is meant, UsageError for a rival.

    That is a VM without a control socket that has the same claim to the name.
    """
    session = inventory.session
    if not vm.is_meant(ref):
        where = ("--socket", entry.path) if session.socket else ()
        raise NotFoundError(
            "there is no such VM with this control socket",
            subject=str(ref),
            why=f"the VM at {entry.path} is named {vm.name}",
            fix=command("vm", "list", *where),
        )
    if isinstance(ref, ByName):
        others = [its for its in inventory.seen.processes if its.holder.process != vm.process]
        if any(its.identity.name == ref.name for its in others):
            # some of them may have a control socket under another name
            rivals = [its for its in inventory.vms if its.socket is None and its.is_meant(ref)]
            _choose([entry], rivals, ref, uid=session.user, strictly=False)


def _find(inventory: Inventory, ref: VmRef, *, strictly: bool) -> ControlSocket | Vm:
    """The control socket of the VM that is meant, or the VM where that has none."""
    session, entries, seen = inventory.session, inventory.entries, inventory.seen
    if session.socket is not None:
        return entries[0]
    name = ref.name if isinstance(ref, ByName) else None
    if by_name := [entry for entry in entries if entry.name == name]:
        return choose_entry(by_name, ref, uid=session.user, strictly=strictly)
    # a name is what a process says of itself; QEMU's monitor can say it, too
    namesakes = (its.identity.name == name or _may_tell(its) for its in seen.processes)
    vms: list[Vm] = []
    if name is None or any(namesakes):
        vms = [vm for vm in inventory.vms if vm.is_meant(ref)]
    paths = {vm.socket for vm in vms}
    named = [entry for entry in entries if name is None and str(entry.path) in paths]
    unmanaged = [vm for vm in vms if vm.socket is None]
    if not named and not unmanaged:
        if name is None:
            _refuse_unasked(inventory, ref)
        names = [entry.name for entry in entries if entry.name]
        names += [its.identity.name or f"pid/{its.pid}" for its in seen.processes]
        raise _not_found(inventory, ref, names)
    return _choose(named, unmanaged, ref, uid=session.user, strictly=strictly)


def _may_tell(process: VmProcess) -> bool:
    return process.identity.name is None and bool(process.identity.monitors)


def _refuse_unasked(inventory: Inventory, ref: VmRef) -> None:
    """Raise UnreachableError where a VM that cannot be asked may be the one that is meant.

    A socket that anybody can make, with no VM behind it, is none.
    """
    unasked = [
        vm
        for vm in inventory.vms
        if vm.state in (VmState.SILENT, VmState.DENIED)
        and (not isinstance(ref, ByPid) or vm.pid in (None, ref.pid))
        and not is_unbacked(vm, inventory.session)
    ]
    if unasked:
        raise UnreachableError(
            "it may be one of the VMs that cannot be asked",
            subject=str(ref),
            why=", ".join(f"{vm.name} is {vm.state}" for vm in unasked),
            fix="pmuctl vm list",
        )


def _choose(
    entries: Sequence[ControlSocket], vms: Sequence[Vm], ref: VmRef, *, uid: int, strictly: bool
) -> ControlSocket | Vm:
    """The one of these that is meant: sockets, and VMs that have none, all called so.

    Root's and one's own go before another user's. Raises UsageError where that leaves several.
    """
    own = [vm for vm in vms if vm.owner in (0, uid)]
    has_own_entry = any(entry.owner in (None, uid) for entry in entries)
    rivals = own if own or has_own_entry else vms
    if not rivals:
        return choose_entry(entries, ref, uid=uid, strictly=strictly)
    if own and not has_own_entry:
        entries = ()
    if len(rivals) + len(entries) > 1:
        places = [*(str(its.path) for its in entries), *(f"pid/{vm.pid}" for vm in rivals)]
        raise UsageError(
            "two VMs hold this name",
            subject=str(ref),
            why=", ".join(places),
            fix="name it by its process: pid/N",
        )
    return rivals[0]


def choose_entry(
    found: Sequence[ControlSocket], ref: VmRef, *, uid: int, strictly: bool
) -> ControlSocket:
    """The one of these sockets, all called so, that user `uid` means.

    One's own go before another user's; to change another user's VM its process must be named.
    Raises UsageError where that leaves none or several.
    """
    own = [entry for entry in found if entry.owner in (None, uid)]
    others = [entry for entry in found if entry not in own]
    if strictly and not own and others and _is_strangers(ref, others[0].owner, uid):
        whose = f"{others[0].path} is uid {others[0].owner}'s"
        raise _strangers(ref, whose, "pid/N, with N from pmuctl vm list")
    found = own or others
    if len(found) > 1:
        raise _ambiguous(found, ref)
    return found[0]


def _ambiguous(found: Sequence[ControlSocket], ref: VmRef) -> UsageError:
    """Several sockets of one name, or of one process."""
    is_process = isinstance(ref, ByPid)
    fixes = [] if is_process else ["name it by its process: pid/N"]
    if not isinstance(found[0], CapturedEntry):
        fixes.insert(0, f"add --socket {quote(str(found[0].path))}")
    elif is_process:
        fixes = [f"name it by the name of one, as {found[0].name}"]
    return UsageError(
        "it has several control sockets" if is_process else "two VMs hold this name",
        subject=str(ref),
        why=", ".join(str(entry.path) for entry in found),
        fix=", or ".join(fixes),
    )


def _is_strangers(ref: VmRef, owner: int | None, uid: int) -> bool:
    return not isinstance(ref, ByPid) and owner not in (None, uid)


def _strangers(ref: VmRef, whose: str, place: str) -> UsageError:
    return UsageError(
        "only another user's VM is called so",
        subject=str(ref),
        why=f"{whose}, and anybody can take a name",
        fix=f"name it by its process: {place}",
    )


def _not_found(inventory: Inventory, ref: VmRef, names: Sequence[str]) -> NotFoundError:
    session, name = inventory.session, str(ref)
    if session.host.is_live and session.socket is None:
        refused = refused_start(name, session.host.environ, session.host.uid)
        if refused is not None:
            return refused
    names = list(dict.fromkeys(its for its in names if its != name))
    near = get_close_matches(name.lower(), {its.lower(): its for its in names}, n=3, cutoff=0.5)
    near = [its for its in names if its.lower() in near]
    if UUID.fullmatch(name):
        near = [f"uuid/{name}"]
    why = f"near: {', '.join(near)}" if near else f"found: {', '.join(names) or 'none'}"
    if inventory.seen.unreadable or inventory.seen.is_partial:
        why += "; other users' processes may not be read"
    return NotFoundError("there is no such VM", subject=str(ref), why=why, fix="pmuctl vm list")
