# SPDX-License-Identifier: Apache-2.0
"""Sockets that other users make, with nothing behind: they decide nothing, and bury nothing."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pmuctl.control.runtime.sockets import ControlSocket, SocketScan
from pmuctl.errors import (
    DeniedError,
    ExitStatus,
    NotFoundError,
    PmuctlError,
    UnreachableError,
    UsageError,
)
from pmuctl.host.host import Host
from pmuctl.host.procfs import Procfs
from pmuctl.host.sysfs import Sysfs
from pmuctl.manage.affinity.align_many import AlignResult, align_all
from pmuctl.manage.affinity.host_state import read_host_state
from pmuctl.manage.inventory.inventory import Inventory, VmList, merge
from pmuctl.manage.inventory.lookup import lookup_vm
from pmuctl.manage.inventory.poller import ask_all
from pmuctl.manage.inventory.session import Session
from pmuctl.manage.inventory.unbacked_sockets import FEW, hide_unbacked, is_unbacked
from pmuctl.model.vm import Vm, VmState
from pmuctl.model.vm_ref import ByPid, ByUuid, ProcessId, VmId
from pmuctl.value import replace
from tests.fakes.peers import mute
from tests.fakes.vmm import FakeThreads, fake_proc

ME = os.geteuid()
ANOTHER, A_THIRD = ME + 1, ME + 2
"""Users who look; the sockets of these tests are all this one's."""


@pytest.fixture
def root(dump: Callable[[str], Path]) -> Path:
    return dump("two-pmus-6.12")


def session_of(
    root: Path, *, uid: int, holds_kvm: bool = False, socket: Path | None = None
) -> Session:
    """A machine on which the process behind the sockets has a VM open, or has not."""
    proc = fake_proc(root / "proc", os.getpid(), holds_kvm=holds_kvm, uid=ME, start=5)
    host = Host(
        environ={"PMUCTL_RUNTIME_DIR": str(root / "placings")},
        uid=uid,
        procs=Procfs(proc),
        sysfs=Sysfs(root),
        threads=FakeThreads({}),
    )
    return Session(host=host, deadline=0.2, socket=socket)


def asked(session: Session, *entries: ControlSocket) -> list[Vm]:
    return merge(ask_all(session, entries), (), session)


def entries(place: Path, count: int, owner: int | None = ME) -> list[ControlSocket]:
    paths = [place / f"a{n}.sock" for n in range(count)]
    return [ControlSocket(name=path.stem, path=path, speaks_for=owner) for path in paths]


def mutes(session: Session, place: Path, count: int, owner: int | None = ME) -> list[Vm]:
    """What is told of sockets at which somebody listens and says nothing."""
    its = entries(place, count, owner)
    with mute(*(one.path for one in its)):
        found = asked(session, *its)
    assert {vm.state for vm in found} == {VmState.SILENT}
    return found


def aligned(session: Session, vms: Sequence[Vm]) -> AlignResult:
    return align_all(vms, session, read_host_state(session.host), dry_run=False)


def subjects(errors: Sequence[PmuctlError]) -> list[str | None]:
    return [error.subject for error in errors]


def test_another_users_mute_socket_is_no_failure(root: Path, tmp_path: Path) -> None:
    session = session_of(root, uid=ANOTHER)
    its = aligned(session, mutes(session, tmp_path / "run", 1))
    assert its.vms.status() is ExitStatus.OK
    assert (its.vms.failed, subjects(its.warnings)) == ((), ["a0"])


def test_nor_is_one_whose_peer_is_not_that_user(root: Path, tmp_path: Path) -> None:
    """It is refused, whatever is behind it."""
    session = session_of(root, uid=ANOTHER, holds_kvm=True)
    its = aligned(session, mutes(session, tmp_path / "run", 1, owner=A_THIRD))
    assert its.vms.status() is ExitStatus.OK


def test_what_has_a_vm_fails(root: Path, tmp_path: Path) -> None:
    """Its vCPUs may be anywhere, and nobody can tell."""
    session = session_of(root, uid=ANOTHER, holds_kvm=True)
    its = aligned(session, mutes(session, tmp_path / "run", 1))
    assert its.vms.status() is ExitStatus.UNREACHABLE
    assert (subjects(its.vms.failed), its.warnings) == (["a0"], [])


@pytest.mark.parametrize("owner", [None, ANOTHER])
def test_ones_own_and_roots_mute_socket_fails(
    root: Path, tmp_path: Path, owner: int | None
) -> None:
    session = session_of(root, uid=ANOTHER)
    its = aligned(session, mutes(session, tmp_path / "run", 1, owner=owner))
    assert (subjects(its.vms.failed), its.warnings) == (["a0"], [])


def test_a_mute_socket_that_is_named_fails(root: Path, tmp_path: Path) -> None:
    session = session_of(root, uid=ANOTHER, socket=tmp_path / "run/a0.sock")
    its = aligned(session, mutes(session, tmp_path / "run", 1, owner=None))
    assert its.vms.status() is ExitStatus.UNREACHABLE


def test_those_of_one_user_are_counted_where_they_are_many(root: Path, tmp_path: Path) -> None:
    session = session_of(root, uid=ANOTHER)
    seen = VmList(vms=mutes(session, tmp_path / "run", FEW))
    assert hide_unbacked(seen, session) == seen
    seen = VmList(vms=mutes(session, tmp_path / "more", FEW + 1))
    # dead ones as well
    seen.vms[:] = [*seen.vms[:3], *asked(session, *entries(tmp_path / "more", FEW + 1)[3:])]
    assert {vm.state for vm in seen.vms} == {VmState.SILENT, VmState.DEAD}
    few = replace(seen.vms[0], owner=A_THIRD)
    its = hide_unbacked(replace(seen, vms=[*seen.vms, few]), session)
    assert (its.vms, its.unbacked) == ([few], {ME: FEW + 1})


def test_no_other_is_counted_away(root: Path, tmp_path: Path) -> None:
    for owner, holds_kvm in ((None, False), (ANOTHER, False), (ME, True)):
        session = session_of(root, uid=ANOTHER, holds_kvm=holds_kvm)
        vms = mutes(session, tmp_path / f"{owner}", FEW + 1, owner=owner)
        assert hide_unbacked(VmList(vms=vms), session).vms == vms


ASKED = (VmState.SILENT, VmState.DENIED, VmState.ORPHANED)


def untold(state: VmState, process: ProcessId | None) -> Vm:
    return Vm(
        name="a0",
        socket="/run/user/7/pmuctl/a0.sock",
        state=state,
        id=VmId(process) if process else None,
        owner=A_THIRD,
        problem=DeniedError("private", subject="a0"),
    )


@pytest.mark.parametrize("state", ASKED)
def test_whatever_it_says_its_process_decides(root: Path, state: VmState) -> None:
    vm = untold(state, ProcessId(os.getpid(), 5))
    assert is_unbacked(vm, session_of(root, uid=0))
    assert not is_unbacked(vm, session_of(root, uid=0, holds_kvm=True))


def test_where_no_process_is_known_root_alone_knows_that_there_is_none(root: Path) -> None:
    """An ordinary user may be kept from another's socket, which then tells nothing of itself."""
    vm = untold(VmState.DENIED, None)
    assert is_unbacked(vm, session_of(root, uid=0))
    assert not is_unbacked(vm, session_of(root, uid=ANOTHER))
    assert is_unbacked(untold(VmState.SILENT, None), session_of(root, uid=ANOTHER))


def test_it_is_not_taken_for_the_vm_that_is_named_by_process_or_uuid(
    root: Path, tmp_path: Path
) -> None:
    """Root's `vm wait pid/N --for stopped` would wait for as long as the socket stays."""
    its = entries(tmp_path / "run", 2)
    with mute(*(one.path for one in its)):
        for holds_kvm, error in ((False, NotFoundError), (True, UnreachableError)):
            stock = Inventory(session_of(root, uid=ANOTHER, holds_kvm=holds_kvm))
            stock.socket_scan = SocketScan(its)
            with pytest.raises(error):
                lookup_vm(stock, ByUuid("6695eb01-f6a4-8304-79aa-97f2502e193f"))
            with pytest.raises(NotFoundError):
                lookup_vm(stock, ByPid(1))


def test_of_several_of_one_process_a_socket_is_named(root: Path, tmp_path: Path) -> None:
    its = entries(tmp_path / "run", 2)
    with mute(*(one.path for one in its)):
        stock = Inventory(session_of(root, uid=ANOTHER, holds_kvm=True))
        stock.socket_scan = SocketScan(its)
        with pytest.raises(UsageError, match="it has several control sockets") as caught:
            lookup_vm(stock, ByPid(os.getpid()))
    assert caught.value.fix == f"add --socket {its[0].path}"
