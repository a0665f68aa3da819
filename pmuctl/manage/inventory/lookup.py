# SPDX-License-Identifier: Apache-2.0
"""Lookup of the VM that a reference means, among those of the same name, UUID or process."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from shlex import quote

from pmuctl.control.client.client import Client
from pmuctl.control.runtime.sockets import ControlSocket
from pmuctl.errors import (
    NotFoundError,
    UnreachableError,
    UnsupportedError,
    UsageError,
    WrongWordError,
    command,
)
from pmuctl.manage.inventory.inventory import Ask, Inventory, VmList
from pmuctl.manage.inventory.poller import ask_all
from pmuctl.manage.inventory.processes import VmProcess, explain_unscanned
from pmuctl.manage.inventory.query import ask_vm, has_no_listener, make_vm
from pmuctl.manage.inventory.replies import CapturedSocket, Reply
from pmuctl.manage.inventory.session import Session
from pmuctl.manage.inventory.start_records import find_orphan, refused_start
from pmuctl.manage.inventory.unbacked_sockets import is_unbacked
from pmuctl.model.vm import Vm, VmState
from pmuctl.model.vm_ref import UUID, ByGlob, ByName, ByPid, VmRef, is_glob, parse_ref

Candidate = ControlSocket | Vm
"""What a reference can mean: a control socket, before it is queried, or a VM that has none."""


def list_vms(session: Session, refs: Sequence[VmRef] = (), *, ask: Ask = ask_all) -> VmList:
    """Return the VMs that are meant, by default all; `ask` queries their control sockets.

    Raise NotFoundError for a reference that means no VM.
    """
    return select_vms(Inventory(session, ask), refs)


def select_vms(inventory: Inventory, refs: Sequence[VmRef] = ()) -> VmList:
    """Return the VMs of an inventory that are meant, as `list_vms`."""
    for ref in refs:
        if isinstance(ref, ByPid):
            inventory.name_process(ref.pid)
    vms = inventory.vms
    for ref in refs:
        if not any(vm.is_meant(ref) for vm in vms):
            raise _make_not_found_error(inventory, ref, [vm.name for vm in vms])
    if refs:
        vms = [vm for vm in vms if any(vm.is_meant(ref) for ref in refs)]
    scan = inventory.process_scan
    return VmList(
        vms=vms,
        unreadable=scan.unreadable,
        is_partial=scan.is_partial,
        left_out=inventory.socket_scan.left_out,
        scratch=0 if refs else inventory.scratch,
        unscanned=scan.unscanned,
        unsearched=inventory.socket_scan.unsearched,
    )


def expand_globs(inventory: Inventory, refs: Sequence[VmRef]) -> list[VmRef]:
    """Return references to one VM each, in place of globs; to VMs of the user or root only.

    Anybody can take a name, so another user's VM is meant by no glob. Raise NotFoundError for a
    glob that matches no VM, UsageError if it matches another user's VMs only.
    """
    expanded: list[VmRef] = []
    for ref in refs:
        if not isinstance(ref, ByGlob):
            expanded.append(ref)
            continue
        vms = select_vms(inventory, [ref]).vms
        own = [vm for vm in vms if _is_own(vm, inventory.session.user)]
        if not own:
            raise _make_strangers_error(ref, f"{vms[0].name} is", "pid/N, from pmuctl vm list")
        expanded += [parse_ref(vm.address) for vm in own]
    return expanded


def lookup_vm(inventory: Inventory, ref: VmRef, *, strictly: bool = False) -> Vm:
    """Return the one VM that is meant, whether it can be queried or not.

    `strictly` is as in `open_vm`; it also applies to a VM without a control socket, because the
    affinity of its threads can be set. Raise NotFoundError if there is none, UsageError if two
    VMs hold the name, and what Client raises for a VM with a control socket.
    """
    found = _find_candidate(inventory, ref, strictly=strictly)
    if isinstance(found, Vm):
        is_own = found.owner == inventory.session.host.uid
        if strictly and not is_own and not isinstance(ref, ByPid):
            whose = "several users'" if found.owner is None else f"uid {found.owner}'s"
            raise _make_strangers_error(ref, f"process {found.pid} is {whose}", f"pid/{found.pid}")
        return found
    vm = inventory.ask(found, strictly=strictly)
    if vm.problem is not None and vm.state is not VmState.ORPHANED:
        raise vm.problem
    _check_vm(inventory, ref, found, vm)
    return vm


@contextmanager
def open_vm(
    inventory: Inventory, ref: VmRef, *, strictly: bool = False
) -> Iterator[tuple[Client | None, Vm]]:
    """Open a connection to the one VM that is meant, and query it there.

    Yield the connection, and the VM by its own answer: what is changed on the connection is that
    VM. For an orphaned VM the connection is None. With `strictly`, for a change, the peer must be
    known to be a VMM, and a VM of another user's directory is not meant by a name or a UUID,
    which anybody can claim.

    Raise NotFoundError if there is no such VM, UsageError if two VMs hold the name,
    UnsupportedError for a VM without a control socket, and what Client raises.
    """
    found = _find_candidate(inventory, ref, strictly=strictly)
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
        reply: Reply | None
        try:
            client = stack.enter_context(session.client(found))
        except UnreachableError as error:
            reply = find_orphan(found, session.host.procs) if has_no_listener(error) else None
            if reply is None:
                raise
        else:
            reply = ask_vm(client, strictly=strictly)
        vm = inventory.complete(make_vm(session, found, reply))
        _check_vm(inventory, ref, found, vm)
        yield client, vm


def _check_vm(inventory: Inventory, ref: VmRef, socket: ControlSocket, vm: Vm) -> None:
    """Raise NotFoundError if a socket's VM is not the one that is meant.

    Raise UsageError if a VM without a control socket has the same claim to the name.
    """
    session = inventory.session
    if not vm.is_meant(ref):
        where = ("--socket", socket.path) if session.socket else ()
        raise NotFoundError(
            "there is no such VM with this control socket",
            subject=str(ref),
            why=f"the VM at {socket.path} is named {vm.name}",
            fix=command("vm", "list", *where),
        )
    if isinstance(ref, ByName) and any(
        process.identity.name == ref.name and process.kvm_process.process != vm.process
        for process in inventory.process_scan.processes
    ):
        # some of these processes may have a control socket under another name
        rivals = [other for other in inventory.vms if not other.is_managed and other.is_meant(ref)]
        choose_candidate([socket, *rivals], ref, uid=session.user, strictly=False)


def _find_candidate(inventory: Inventory, ref: VmRef, *, strictly: bool) -> Candidate:
    """Return the control socket of the VM that is meant, or the VM if it has none."""
    session, sockets = inventory.session, inventory.sockets
    if session.socket is not None:
        return sockets[0]
    name = ref.name if isinstance(ref, ByName) else None
    candidates: list[Candidate] = [socket for socket in sockets if socket.name == name]
    if candidates:
        return choose_candidate(candidates, ref, uid=session.user, strictly=strictly)
    if isinstance(ref, ByPid):
        inventory.name_process(ref.pid)
    processes = inventory.process_scan.processes
    # a process gives its VM's name; if it does not, QEMU's monitor may
    is_named = (process.identity.name == name or _may_reply(process) for process in processes)
    if name is None or any(is_named):
        vms = [vm for vm in inventory.vms if vm.is_meant(ref)]
        paths = {vm.socket for vm in vms}
        candidates += [socket for socket in sockets if name is None and str(socket.path) in paths]
        candidates += [vm for vm in vms if not vm.is_managed]
    if not candidates:
        if name is None:
            _refuse_unasked(inventory, ref)
        names = [vm.name for vm in inventory.vms]
        raise _make_not_found_error(inventory, ref, names)
    return choose_candidate(candidates, ref, uid=session.user, strictly=strictly)


def _may_reply(process: VmProcess) -> bool:
    return process.identity.name is None and bool(process.identity.monitors)


def _refuse_unasked(inventory: Inventory, ref: VmRef) -> None:
    """Raise UnreachableError if a VM that cannot be queried may be the one that is meant.

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


def choose_candidate(
    candidates: Sequence[Candidate], ref: VmRef, *, uid: int, strictly: bool
) -> Candidate:
    """Return the one of these candidates, all called so, that user `uid` means.

    The user's own and root's go before another user's. To change another user's VM that has a
    control socket (`strictly`), its process must be named. Raise UsageError if that leaves none
    or several.
    """
    own = [candidate for candidate in candidates if _is_own(candidate, uid)]
    found = own or candidates
    sockets = [candidate for candidate in found if not isinstance(candidate, Vm)]
    if strictly and not own and sockets == found and not isinstance(ref, ByPid):
        whose = f"{_get_address(found[0])} is uid {sockets[0].speaks_for}'s"
        raise _make_strangers_error(ref, whose, "pid/N, with N from pmuctl vm list")
    if len(found) > 1:
        raise _make_ambiguity_error(found, ref)
    return found[0]


def _is_own(candidate: Candidate, uid: int) -> bool:
    """Return True if only root or user `uid` can have made it."""
    if isinstance(candidate, Vm):
        return candidate.owner in (0, uid)
    return candidate.speaks_for in (None, uid)


def _get_address(candidate: Candidate) -> str:
    return f"pid/{candidate.pid}" if isinstance(candidate, Vm) else str(candidate.path)


def _make_ambiguity_error(found: Sequence[Candidate], ref: VmRef) -> UsageError:
    """Return the error for several VMs of one name, or several sockets of one process."""
    has_vm = any(isinstance(candidate, Vm) for candidate in found)
    is_process = isinstance(ref, ByPid) and not has_vm
    fixes = [] if is_process else ["name it by its process: pid/N"]
    if isinstance(found[0], CapturedSocket):
        if is_process:
            fixes = [f"name it by the name of one, as {found[0].name}"]
    elif not has_vm:
        fixes.insert(0, f"add --socket {quote(_get_address(found[0]))}")
    return UsageError(
        "it has several control sockets" if is_process else "two VMs hold this name",
        subject=str(ref),
        why=", ".join(_get_address(candidate) for candidate in found),
        fix=", or ".join(fixes),
    )


def _make_strangers_error(ref: VmRef, whose: str, address: str) -> UsageError:
    return UsageError(
        "only another user's VM is called so",
        subject=str(ref),
        why=f"{whose}, and anybody can take a name",
        fix=f"name it by its process: {address}",
    )


def _make_glob_error(ref: VmRef, matching: Sequence[str]) -> UsageError:
    """Return the refusal of a glob by a command that takes one VM."""
    if len(matching) == 1:
        return WrongWordError(
            f"{ref}: not the name of a VM",
            words=(str(ref),),
            right=(matching[0],),
            why="this command takes one VM, by its name",
        )
    return UsageError(
        f"stands for {len(matching)} VMs",
        subject=str(ref),
        why=f"this command takes one VM: {', '.join(matching)}",
        fix=command("vm", "list", ref),
    )


def _make_not_found_error(
    inventory: Inventory, ref: VmRef, names: Sequence[str]
) -> NotFoundError | UsageError:
    session, name, scan = inventory.session, str(ref), inventory.process_scan
    if session.host.is_live and session.socket is None:
        refused = refused_start(name, session.host.environ, session.host.uid)
        if refused is not None:
            return refused
    names = list(dict.fromkeys(other for other in names if other != name))
    matching = [other for other in names if is_glob(name) and ByGlob(name).matches(other)]
    if matching:
        return _make_glob_error(ref, matching)
    if isinstance(ref, ByName) and any(str(process.pid) == name for process in scan.processes):
        return WrongWordError(
            f"{name}: not the name of a VM",
            words=(name,),
            right=(f"pid/{name}",),
            why="a process is named as pid/N",
        )
    alike = [other for other in names if other.lower() == name.lower()]
    if isinstance(ref, ByName) and len(alike) == 1:
        return WrongWordError(
            f"{name}: there is no such VM",
            words=(name,),
            right=(alike[0],),
            why=f"did you mean {alike[0]}? Upper and lower case differ",
        )
    by_lower = {other.lower(): other for other in names}
    close = get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)
    near = [other for other in names if other.lower() in close]
    if UUID.fullmatch(name):
        near = [f"uuid/{name}"]
    why = f"similar names: {', '.join(near)}" if near else f"found: {', '.join(names) or 'none'}"
    if scan.is_partial and not session.host.is_live:
        why += "; not all processes of that host may be captured"
    elif scan.unreadable or scan.is_partial:
        why += "; other users' processes may not be read"
    if scan.unscanned:
        why += f"; {explain_unscanned(scan.unscanned)}"
    return NotFoundError("there is no such VM", subject=str(ref), why=why, fix="pmuctl vm list")
