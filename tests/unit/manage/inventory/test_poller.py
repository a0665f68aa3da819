# SPDX-License-Identifier: Apache-2.0
"""Control sockets that are asked all at once: mute ones take no time from the others."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pmuctl.control.runtime.sockets import ControlSocket
from pmuctl.control.server.server import Server
from pmuctl.host.host import Host
from pmuctl.host.procfs import Procfs
from pmuctl.host.sysfs import Sysfs
from pmuctl.manage.inventory.poller import SocketPoller, ask_all
from pmuctl.manage.inventory.session import Session
from pmuctl.model.vm import Vm, VmState
from tests.fakes.peers import PATIENCE, mute
from tests.fakes.vmm import FakeVm, StallingVm, fake_proc

ME = os.geteuid()
ANOTHER, A_THIRD = ME + 1, ME + 2
"""Users who act; the sockets of these tests are all this one's."""
MANY = 200
DEADLINE = 0.3


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def procs(tmp_path: Path) -> Procfs:
    return Procfs(fake_proc(tmp_path / "proc", os.getpid(), tids=[1001, 1002], start=5))


@pytest.fixture
def vm(place: Path, procs: Procfs, dump: Callable[[str], Path]) -> Iterator[FakeVm]:
    its = FakeVm("web1")
    sysfs = Sysfs(dump("two-pmus-6.12"))
    with Server(its, place / "web1.sock", sysfs=sysfs, threads=its.threads):
        yield its


def reach(procs: Procfs, *, uid: int = ME, deadline: float = DEADLINE) -> Session:
    return Session(host=Host(environ={}, uid=uid, procs=procs), deadline=deadline)


def entry(path: Path, owner: int | None = None) -> ControlSocket:
    return ControlSocket(name=path.stem, path=path, speaks_for=owner)


def seconds(act: Callable[[], object]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


def test_very_many_mute_sockets_cost_one_deadline(place: Path, procs: Procfs) -> None:
    paths = [place / f"a{n}.sock" for n in range(MANY)]
    found: list[Vm] = []
    with mute(*paths):
        took = seconds(lambda: found.extend(ask_all(reach(procs), [*map(entry, paths)])))
    assert took < 3 * DEADLINE
    assert [vm.name for vm in found] == [path.stem for path in paths]
    assert {vm.state for vm in found} == {VmState.SILENT}
    problems = [vm.problem for vm in found]
    assert "no greeting" in str(problems[0] and problems[0].why)
    assert "others that do not answer" in str(problems[-1] and problems[-1].why)
    assert found[-1].problem is not None
    assert found[-1].problem.subject == f"a{MANY - 1}"


def test_ones_own_are_asked_first(place: Path, procs: Procfs, vm: FakeVm) -> None:
    paths = [place / f"a{n}.sock" for n in range(MANY)]
    entries = [*(entry(path, ME) for path in paths), entry(place / "web1.sock")]
    with mute(*paths):
        *others, own = ask_all(reach(procs, uid=ANOTHER), entries)
    assert own.state is VmState.WAITING
    assert {its.state for its in others} == {VmState.SILENT}


def test_no_user_is_in_the_way_of_another(place: Path, procs: Procfs, vm: FakeVm) -> None:
    paths = [place / f"a{n}.sock" for n in range(MANY)]
    # that its peer is not the user whose directory it is in is told at once
    others = [entry(place / "web1.sock", A_THIRD)]
    with mute(*paths):
        asked = [*(entry(path, ME) for path in paths), *others]
        found = ask_all(reach(procs, uid=ANOTHER), asked)
    assert f"it is uid {ME}'s" in str(found[-1].problem and found[-1].problem.why)


# Again and again


def test_a_mute_socket_holds_up_one_look_only(place: Path, procs: Procfs, vm: FakeVm) -> None:
    entries = [entry(place / "a1.sock"), entry(place / "web1.sock")]
    with mute(place / "a1.sock"), closing(SocketPoller(PATIENCE)) as asker:
        asker.ask(reach(procs), entries)
        assert asker.pending == {str(place / "a1.sock")}
        found: list[Vm] = []
        took = seconds(lambda: found.extend(asker.ask(reach(procs), entries)))
    assert [its.state for its in found] == [VmState.SILENT, VmState.WAITING]
    assert took < DEADLINE


def test_it_is_asked_apart_with_the_whole_deadline(place: Path, procs: Procfs) -> None:
    """And then it is known to be mute; when it answers at last it is one of the others."""
    path = place / "web1.sock"
    vm = StallingVm("web1")
    vm.goes_on.clear()
    entries = [entry(path)]
    sysfs = Sysfs(Path("/nonexistent"))
    with (
        Server(vm, path, sysfs=sysfs, threads=vm.threads),
        closing(SocketPoller(2 * DEADLINE)) as asker,
    ):
        states = [asker.ask(reach(procs), entries)[0].state]
        assert asker.pending
        until(lambda: [asker.ask(reach(procs), entries), not asker.pending][1])
        states.append(asker.ask(reach(procs), entries)[0].state)
        vm.goes_on.set()
        until(lambda: asker.ask(reach(procs), entries)[0].state is VmState.WAITING)
    assert states == [VmState.SILENT] * 2


def test_what_it_said_last_holds_while_its_process_goes_on(place: Path, procs: Procfs) -> None:
    path = place / "web1.sock"
    vm = StallingVm("web1")
    entries = [entry(path)]
    with (
        Server(vm, path, sysfs=Sysfs(Path("/nonexistent")), threads=vm.threads),
        closing(SocketPoller(2 * DEADLINE)) as asker,
    ):
        (told,) = asker.ask(reach(procs), entries)
        vm.goes_on.clear()
        # as long as it may be slow only nothing has changed
        assert asker.ask(reach(procs), entries) == [told]
        until(lambda: asker.ask(reach(procs), entries)[0].state is VmState.SILENT)
        (silent,) = asker.ask(reach(procs), entries)
        assert (silent.vcpus, silent.pid, silent.window) == (told.vcpus, told.pid, told.window)
        assert silent.problem is not None
        fake_proc(procs.root, os.getpid(), tids=[1001], start=6)
        (silent,) = asker.ask(reach(procs), entries)
        assert (silent.state, silent.vcpus) == (VmState.SILENT, None)
        vm.goes_on.set()


def test_another_socket_in_its_place_is_asked_at_once(
    place: Path, procs: Procfs, dump: Callable[[str], Path]
) -> None:
    path = place / "web1.sock"
    with closing(SocketPoller(PATIENCE)) as asker:
        with mute(path):
            assert asker.ask(reach(procs), [entry(path)])[0].state is VmState.SILENT
        path.unlink()
        vm = FakeVm("web1")
        with Server(vm, path, sysfs=Sysfs(dump("two-pmus-6.12")), threads=vm.threads):
            assert asker.ask(reach(procs), [entry(path)])[0].state is VmState.WAITING


def until(holds: Callable[[], object]) -> None:
    """Look until it holds; it fails where that takes too long."""
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)
