# SPDX-License-Identifier: Apache-2.0
"""Which process is believed to have the VM that a control socket speaks for."""

from pathlib import Path

import pytest

from pmuctl.control.client.peer_auth import AuthenticatedVmm, PeerCred, authenticate
from pmuctl.control.runtime.sockets import ControlSocket
from pmuctl.errors import DeniedError, NoVmError, PmuctlError, RefusedError
from pmuctl.host.procfs import ProcessFacts, Procfs
from pmuctl.model.vm_ref import ProcessId
from tests.fakes.vmm import fake_proc

SERVER, VMM, INIT = 300, 4121, 1
USER, OTHER = 1000, 1001
EITHER = pytest.mark.parametrize("strictly", [True, False])
ENTRY = ControlSocket(name="web1", path=Path("/run/pmuctl/web1.sock"))
BOOT = 1_000_000_000
"""When the machine of fake_proc started, in seconds since the epoch."""


@pytest.fixture
def procs(tmp_path: Path) -> Procfs:
    """A server without a VM, the VMM of the same user that it supervises, and root's process 1."""
    fake_proc(tmp_path, SERVER, holds_kvm=False, uid=USER, start=50)
    fake_proc(tmp_path, VMM, uid=USER, start=60, tids=[VMM, 4130])
    fake_proc(tmp_path, INIT, holds_kvm=False, uid=0, start=1)
    return Procfs(tmp_path)


def ask(
    procs: Procfs, pid: int = VMM, *, strictly: bool = True, uid: int = USER, server: int = SERVER
) -> AuthenticatedVmm:
    """Whom the peer is believed to speak for when it names `pid`."""
    return authenticate(ENTRY, PeerCred(server, uid, uid, 50), pid, procs, strictly=strictly)


def doubts(cls: type[PmuctlError], words: str, procs: Procfs, pid: int = VMM, **its: int) -> None:
    """Neither a question nor a change is put to it, and the reason is this one."""
    for strictly in (True, False):
        with pytest.raises(cls) as caught:
            ask(procs, pid, strictly=strictly, **its)
        assert words in str(caught.value.why)
        assert caught.value.subject == "web1"
        assert caught.value.fix


@EITHER
def test_a_supervisor_speaks_for_a_vmm_of_its_own_user(procs: Procfs, *, strictly: bool) -> None:
    vmm = ask(procs, strictly=strictly)
    threads = frozenset({VMM, 4130})
    assert vmm == AuthenticatedVmm(
        pid=VMM, uid=USER, started=60, has_vm=True, is_supervised=True, threads=threads
    )


@EITHER
def test_a_server_in_its_vmm_speaks_for_itself(procs: Procfs, *, strictly: bool) -> None:
    fake_proc(procs.root, SERVER)
    vmm = ask(procs, SERVER, strictly=strictly)
    assert vmm == AuthenticatedVmm(pid=SERVER, uid=USER, started=50, has_vm=True)


@EITHER
def test_a_vmm_with_a_number_of_its_own_is_the_peer(procs: Procfs, *, strictly: bool) -> None:
    """In a container it is perhaps 1, and no process outside is meant by that."""
    fake_proc(procs.root, SERVER)
    for pid in (INIT, VMM, 7):
        vmm = ask(procs, pid, strictly=strictly)
        assert (vmm.pid, vmm.uid, vmm.is_supervised) == (SERVER, USER, False)


def set_pids(procs: Procfs, pid: int, *pids: int) -> None:
    """In its own pid namespace, `pid` has the last of these."""
    status = procs.root / str(pid) / "status"
    status.write_text(f"{status.read_text().partition('NSpid')[0]}NSpid:\t{pid}")
    with status.open("a") as file:
        file.writelines(f"\t{number}" for number in pids)
        file.write("\n")


def test_a_supervisor_in_another_pid_namespace_is_not_believed_about_pids(procs: Procfs) -> None:
    set_pids(procs, SERVER, SERVER)  # its number may be the same there
    doubts(RefusedError, f"process {SERVER} speaks for process {VMM}, which is another", procs)
    (procs.root / str(SERVER) / "status").unlink()
    doubts(
        RefusedError, f"process {SERVER} speaks for process {VMM}, which is another", procs, uid=0
    )


def test_a_vmm_in_another_pid_namespace_is_not_believed_about_threads(procs: Procfs) -> None:
    fake_proc(procs.root, SERVER, tids=[SERVER, 301])
    assert ask(procs, SERVER).threads == {SERVER, 301}
    set_pids(procs, SERVER, 1)
    assert ask(procs, 1).threads == frozenset()


def test_the_process_of_another_user_is_not_believed(procs: Procfs) -> None:
    fake_proc(procs.root, VMM, uid=OTHER)
    doubts(RefusedError, f"process {VMM}, which is uid {OTHER}", procs)


@pytest.mark.parametrize("holds_kvm", [True, False])
def test_process_1_is_not_a_users_vmm(procs: Procfs, *, holds_kvm: bool) -> None:
    fake_proc(procs.root, INIT, holds_kvm=holds_kvm)
    doubts(RefusedError, "process 1, which is uid 0", procs, INIT)


@pytest.mark.parametrize("uids", [(USER, 0, 0), (USER, 0, USER), (USER, USER, 0), (0, USER, USER)])
def test_a_setuid_process_is_nobodys(procs: Procfs, uids: tuple[int, int, int]) -> None:
    words = "\t".join(map(str, (*uids, uids[1])))
    for pid in (VMM, SERVER):
        (procs.root / str(pid) / "status").write_text(f"Uid:\t{words}\n")
        assert procs.uid(pid) is None
        doubts(RefusedError, "is several users'", procs)
        fake_proc(procs.root, VMM, uid=USER)
    fake_proc(procs.root, SERVER, uid=USER)
    (procs.root / str(SERVER) / "status").write_text(f"Uid:\t{words}\n")
    doubts(RefusedError, f"process {SERVER} is several users'", procs, SERVER)


def test_a_process_that_is_not_there_is_not_believed(procs: Procfs) -> None:
    for pid in (7, 1 << 40, (1 << 63) - 1):
        doubts(NoVmError, f"there is no process {pid}", procs, pid)


def test_a_process_that_cannot_be_told_is_not_believed(procs: Procfs) -> None:
    (procs.root / str(VMM) / "stat").write_text("x")
    doubts(NoVmError, "there is no process", procs)


class Dying(Procfs):
    """A procfs whose process VMM ends after the first look, and is `then` another's."""

    def holds_kvm(self, pid: int) -> bool | None:
        held = super().holds_kvm(pid)
        if pid == VMM:
            (self.root / str(VMM) / "stat").write_text("x")
            fake_proc(self.root, VMM, uid=USER, start=61)
        return held


@EITHER
def test_a_process_that_dies_between_two_looks_is_not_believed(
    procs: Procfs, *, strictly: bool
) -> None:
    with pytest.raises(NoVmError, match="not believed"):
        ask(Dying(procs.root), strictly=strictly)


def test_threads_of_a_process_that_took_over_the_pid_do_not_count(procs: Procfs) -> None:
    facts = Dying(procs.root).read_facts(VMM)
    assert facts == ProcessFacts(pid=VMM, threads=frozenset())
    assert (facts.started, facts.has_vm) == (None, False)


@EITHER
def test_the_vmm_that_has_the_pid_of_a_peer_that_had_ended_is_not_the_peer(
    procs: Procfs, *, strictly: bool
) -> None:
    """What it forked still has its socket, and the kernel has given its pid to a VMM."""
    ended = PeerCred(VMM, USER, USER, None)
    with pytest.raises(NoVmError, match="not believed"):
        authenticate(ENTRY, ended, VMM, procs, strictly=strictly)


def test_roots_supervisor_speaks_for_any_users_vmm(procs: Procfs) -> None:
    fake_proc(procs.root, VMM, uid=OTHER)
    assert ask(procs, uid=0).uid == OTHER


def test_before_it_has_a_vm_it_is_asked_and_not_changed(procs: Procfs) -> None:
    fake_proc(procs.root, VMM, holds_kvm=False)
    assert ask(procs, strictly=False).has_vm is False
    with pytest.raises(NoVmError, match="not there to be changed") as caught:
        ask(procs)
    assert caught.value.fix == "pmuctl vm wait web1 --for open"
    theirs = ControlSocket(
        name="web1", path=Path("/run/user/1000/pmuctl/web1.sock"), speaks_for=USER
    )
    with pytest.raises(NoVmError) as caught:
        authenticate(theirs, PeerCred(SERVER, USER, USER, 50), VMM, procs, strictly=True)
    assert caught.value.fix == f"pmuctl vm wait pid/{VMM} --for open"


def test_a_peer_without_a_vm_that_names_itself_is_not_believed(procs: Procfs) -> None:
    doubts(NoVmError, f"process {SERVER} that listens there has no VM open", procs, SERVER)


class Unreadable(Procfs):
    """A procfs of processes that this user may not look into."""

    def holds_kvm(self, pid: int) -> bool | None:
        return None


@pytest.mark.parametrize("pid", [SERVER, VMM])
def test_what_cannot_be_looked_at_is_asked_and_not_changed(procs: Procfs, pid: int) -> None:
    hidden = Unreadable(procs.root)
    assert ask(hidden, pid, strictly=False).pid == pid
    with pytest.raises(DeniedError) as caught:
        ask(hidden, pid)
    assert caught.value.why == f"/proc/{pid}/fd may not be read by this user"
    # and no other user's all the same
    doubts(RefusedError, "which is uid 0", hidden, INIT)


def test_a_pid_that_is_another_users_by_now_speaks_for_nobody(procs: Procfs) -> None:
    fake_proc(procs.root, SERVER, holds_kvm=False, uid=OTHER)
    fake_proc(procs.root, VMM, uid=OTHER)
    for pid in (SERVER, VMM):
        doubts(RefusedError, f"process {SERVER} is uid {OTHER}", procs, pid)


@pytest.mark.parametrize(
    ("peer", "since", "is_its"),
    [
        (PeerCred(VMM, USER, USER, 60), BOOT + 1, True),
        (PeerCred(VMM, 0, 0, 60), BOOT + 1, True),  # root began, and has become the user since
        (PeerCred(VMM, OTHER, OTHER, 60), BOOT + 1, False),
        (PeerCred(VMM, USER, USER, 60_000), BOOT + 500, False),  # it started 100 s later
        (PeerCred(VMM, 0, 0, 60_000), BOOT + 500, False),
        (PeerCred(VMM, USER, USER, None), BOOT + 1, False),
    ],
)
def test_a_pid_that_was_given_anew_is_not_who_listens(
    procs: Procfs, peer: PeerCred, since: float, *, is_its: bool
) -> None:
    assert (peer.process(procs, since) == ProcessId(VMM, peer.started or 0)) is is_its


def test_without_the_time_of_boot_nobody_is_known_to_listen(procs: Procfs) -> None:
    (procs.root / "stat").unlink()
    assert PeerCred(VMM, USER, USER, 60).process(procs, BOOT + 1) is None
