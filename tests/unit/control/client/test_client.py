# SPDX-License-Identifier: Apache-2.0
"""The control socket's client against servers that are silent, wrong or hostile."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from pmuctl.control.client.client import Client, socket_at
from pmuctl.control.protocol.qmp_codec import MESSAGE_MAX, encode
from pmuctl.control.runtime.sockets import ControlSocket
from pmuctl.control.server.server import Server
from pmuctl.errors import (
    DeniedError,
    NotFoundError,
    NoVmError,
    PmuctlError,
    RefusedError,
    SealedError,
    UnknownOutcomeError,
    UnreachableError,
    UnsupportedError,
    UsageError,
)
from pmuctl.host.procfs import Procfs
from pmuctl.host.sysfs import Sysfs
from pmuctl.manage.inventory.query import ask_vm
from pmuctl.manage.inventory.replies import vm_of
from tests.fakes.peers import GREETING, PATIENCE, RawClient, bad_server
from tests.fakes.vmm import FakeVm, fake_proc
from tests.skips import only_root, only_users

Script = Callable[[RawClient], None]
ME = os.geteuid()
A72: dict[str, object] = {"type": 11, "name": "armv8_cortex_a72"}

PMU: dict[str, Any] = {
    "name": "web1",
    "uuid": None,
    "vmm": "bad",
    "pid": 1,
    "window": "open",
    "waiting": True,
    "since": None,
    "by": None,
    "attributes": ["SET_PMU"],
    "event-bits": 16,
    "pmu": {"name": "armv8_cortex_a72", "type": 11, "origin": "applied"},
    "counters": {"value": 2, "origin": "vmm"},
    "filter": {"default": "deny", "except": [[17, 1]], "origin": "unknown"},
    "vcpus": [{"index": 0, "tid": 1001, "initialised": False, "has-run": False}],
}


@pytest.fixture
def path() -> Iterator[Path]:
    """Where a server may listen: a short path."""
    with tempfile.TemporaryDirectory(prefix="pmuctl-") as name:
        yield Path(name) / "web1.sock"


@pytest.fixture
def procs(tmp_path: Path) -> Procfs:
    """A procfs in which this process, which serves, has a VM open."""
    return Procfs(fake_proc(tmp_path / "proc", os.getpid(), tids=[1001, 1002]))


def told(procs: Procfs, name: str, text: str) -> None:
    (procs.root / str(os.getpid()) / name).write_text(text)


def started(procs: Procfs, start: int) -> None:
    told(procs, "stat", f"1 (x) S {'0 ' * 18}{start} 0\n")


def client(path: Path, *, deadline: float = PATIENCE, **its: Any) -> Client:
    procs = its.pop("procs", Procfs())
    return Client(ControlSocket(name="web1", path=path, **its), deadline=deadline, procs=procs)


def begins(peer: RawClient) -> None:
    """Greet and take the capabilities."""
    peer.send(GREETING)
    answers(peer, {"return": {}})


def answers(peer: RawClient, message: Mapping[str, object]) -> None:
    """Answer the next request with this, under its own id."""
    peer.send(encode({"id": peer.read()["id"], **message}))


def waits(peer: RawClient) -> None:
    """Say nothing until the client leaves."""
    while True:
        peer.read()


def ask(path: Path, name: str, script: Script, *, deadline: float = PATIENCE) -> object:
    """One command to a server that does as the script says."""
    with bad_server(path, script), client(path, deadline=deadline) as its:
        return its.execute(name, A72 if name == "pmu-apply" else None)


# Before anything was asked


def greets_with(data: bytes) -> Script:
    def script(peer: RawClient) -> None:
        peer.send(data)
        waits(peer)

    return script


def floods(peer: RawClient) -> None:
    event = encode({"event": "PMU_REFUSED", "data": {"class": "x", "desc": "y" * 100}})
    while True:
        peer.send(event * 100)


def trickles(peer: RawClient) -> None:
    for byte in GREETING * 1000:
        peer.send(bytes([byte]))
        time.sleep(0.005)


def hears_and_leaves(peer: RawClient) -> None:
    peer.send(GREETING)
    peer.read()


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (greets_with(b"SSH-2.0-OpenSSH_9.6\r\n"), "does not speak the protocol"),
        (greets_with(b"\xff\x00\x1b[2J"), "does not speak the protocol"),
        (greets_with(b"[]"), "does not speak the protocol"),
        (greets_with(b"{}"), "no QMP greeting"),
        (greets_with(b'{"QMP":[]}'), "no QMP greeting"),
        (greets_with(b'{"event":"x"}'), "no QMP greeting"),
        (greets_with(b'{"a":' * 40), "nesting over 32"),
        (greets_with(b'{"QMP":"' + b"x" * (1 << 21)), "a message over 1048576 bytes"),
        (greets_with(encode({"error": {"desc": "too many clients"}})), "too many clients"),
        (greets_with(encode({"error": {"desc": [1]}})), "it answers: None"),
        (greets_with(b'{"error":1}'), "no QMP greeting"),
        (lambda peer: None, "closed before a greeting"),
        (lambda peer: peer.send(GREETING[:9]), "closed before a greeting"),
        (hears_and_leaves, "closed before an answer"),
    ],
)
def test_who_does_not_greet_is_unreachable(path: Path, script: Script, words: str) -> None:
    with pytest.raises(UnreachableError) as caught:
        ask(path, "pmu-apply", script)
    assert words in str(caught.value.why)
    assert caught.value.subject == "web1"


@pytest.mark.parametrize("script", [waits, trickles, greets_with(GREETING), floods])
def test_one_deadline_holds_for_the_whole_exchange(path: Path, script: Script) -> None:
    def greets_and(peer: RawClient) -> None:
        if script is floods:
            peer.send(GREETING)
        script(peer)

    begun = time.monotonic()
    with pytest.raises(UnreachableError, match="does not answer") as caught:
        ask(path, "query-pmu", greets_and, deadline=0.2)
    assert "in 0.2 s" in str(caught.value.why)
    assert time.monotonic() - begun < PATIENCE / 2


def test_a_deadline_that_ends_before_a_request_is_named(path: Path) -> None:
    def agrees_and_waits(peer: RawClient) -> None:
        begins(peer)
        waits(peer)

    with bad_server(path, agrees_and_waits), client(path, deadline=0.5) as its:
        time.sleep(0.6)
        with pytest.raises(UnreachableError) as caught:
            its.execute("query-pmu")
    assert str(caught.value.why).endswith("query-pmu could not be sent in 0.5 s")


def test_no_socket_is_not_found(path: Path) -> None:
    with pytest.raises(NotFoundError), client(path):
        pass


def test_a_dead_socket_is_unreachable(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as its:
        its.bind(str(path))
    with pytest.raises(UnreachableError) as caught, client(path):
        pass
    assert caught.value.errno == "ECONNREFUSED"


@pytest.mark.parametrize("kind", ["file", "directory", "loop", "below a file"])
def test_what_is_no_socket_is_an_error(path: Path, kind: str) -> None:
    match kind:
        case "file":
            path.touch()
        case "directory":
            path.mkdir()
        case "loop":
            path.symlink_to(path)
        case _:
            path.touch()
            path /= "x"
    cls = UsageError if kind in ("file", "directory") else UnreachableError
    with pytest.raises(cls) as caught, client(path):
        pass
    assert str(path) in f"{caught.value.message} {caught.value.why}"


@pytest.mark.usefixtures("vm")
def test_a_deadline_that_is_over_is_unreachable(path: Path) -> None:
    with pytest.raises(UnreachableError, match="does not answer"), client(path, deadline=0):
        pass


def test_a_client_waits_until_the_server_takes_it(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, ExitStack() as stack:
        listener.bind(str(path))
        listener.listen(0)
        waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
        waiting.connect(str(path))  # as many as listen(0) lets wait
        with pytest.raises(UnreachableError) as caught, client(path, deadline=0.05):
            pass
        assert caught.value.why == f"{path}: no connection in 0.05 s"

        def serve() -> None:
            for _ in range(2):
                # the first is the one that only waited, and has left
                with RawClient(listener.accept()[0]) as peer, suppress(OSError, EOFError):
                    begins(peer)

        waiting.close()
        thread = threading.Thread(target=serve)
        thread.start()
        with client(path):
            pass
        thread.join()


# After a request


def cut(data: bytes) -> Script:
    """Read the request, send this and close."""

    def script(peer: RawClient) -> None:
        begins(peer)
        peer.read()
        peer.send(data)

    return script


@pytest.mark.parametrize(
    "data", [b"", b'{"return":', encode({"event": "PMU_APPLIED", "data": {}})]
)
def test_no_answer_to_a_question_is_unreachable(path: Path, data: bytes) -> None:
    with pytest.raises(UnreachableError) as caught:
        ask(path, "query-pmu", cut(data))
    assert "closed before an answer" in str(caught.value.why)


@pytest.mark.parametrize("name", ["pmu-apply", "pmu-release"])
@pytest.mark.parametrize("data", [b"", b'{"return":', b"\xff", b"[]", b'{"id":"x"}'])
def test_no_answer_to_a_change_leaves_its_outcome_unknown(
    path: Path, name: str, data: bytes
) -> None:
    with pytest.raises(UnknownOutcomeError) as caught:
        ask(path, name, cut(data))
    assert caught.value.status == 10
    assert caught.value.fix == "pmuctl vm show web1 tells what holds now"


def test_a_change_without_answer_in_time_leaves_its_outcome_unknown(path: Path) -> None:
    def script(peer: RawClient) -> None:
        begins(peer)
        waits(peer)

    with pytest.raises(UnknownOutcomeError) as caught:
        ask(path, "pmu-apply", script, deadline=1)
    assert caught.value.why == "no answer in 1 s"


def test_a_change_that_could_not_be_sent_was_not_done(path: Path) -> None:
    with bad_server(path, begins), client(path) as its:
        while its._stream._socket.recv(1, socket.MSG_PEEK):  # until the end is here
            pass
        with pytest.raises(UnreachableError, match="does not answer") as caught:
            its.execute("pmu-release")
    assert "could not be sent" in str(caught.value.why)


def test_answers_to_other_requests_and_events_are_passed_over(path: Path) -> None:
    def script(peer: RawClient) -> None:
        begins(peer)
        tag = peer.read()["id"]
        for other in ("x", None, 1, [tag], {"a": tag}, tag + "0"):
            peer.send(encode({"return": {"outcome": "unchanged"}, "id": other}))
        peer.send(encode({"event": "PMU_WINDOW", "data": 1, "id": tag}))
        peer.send(encode({"return": {"outcome": "unchanged"}}))
        peer.send(encode({"return": {"outcome": "released"}, "id": tag}))

    assert ask(path, "pmu-release", script) == {"outcome": "released"}


def test_an_answer_given_twice_is_not_taken_for_the_next_one(path: Path) -> None:
    def script(peer: RawClient) -> None:
        peer.send(GREETING)
        first = encode({"return": {}, "id": peer.read()["id"]})
        peer.send(first * 2)
        answers(peer, {"return": {"outcome": "released"}})

    assert ask(path, "pmu-release", script) == {"outcome": "released"}


def test_what_comes_after_an_answer_does_not_spoil_it(path: Path) -> None:
    def script(peer: RawClient) -> None:
        begins(peer)
        tag = peer.read()["id"]
        peer.send(encode({"return": {"outcome": "released"}, "id": tag}) + b"\xff")

    assert ask(path, "pmu-release", script) == {"outcome": "released"}


def wrong_answers() -> Iterator[tuple[str, dict[str, Any]]]:
    for key in PMU:
        if key not in ("waiting", "event-bits"):  # these may be left out
            yield key, {name: value for name, value in PMU.items() if name != key}
        yield key, PMU | {key: {"x": 1} if key != "vcpus" else 1}
    for key in ("pmu", "counters", "filter"):
        for member in PMU[key]:
            yield f"{key}.{member}", PMU | {key: PMU[key] | {member: -1}}
    for member in PMU["vcpus"][0]:
        yield f"vcpus[0].{member}", PMU | {"vcpus": [PMU["vcpus"][0] | {member: "x"}]}
    yield "name", PMU | {"name": "../x"}
    yield "filter.except[0][1]", PMU | {"filter": PMU["filter"] | {"except": [[1, 0]]}}
    yield "vcpus", PMU | {"vcpus": PMU["vcpus"] * 5000}


@pytest.mark.parametrize(("where", "answer"), list(wrong_answers()))
def test_a_wrong_answer_to_a_question_is_refused(
    path: Path, where: str, answer: dict[str, Any]
) -> None:
    def script(peer: RawClient) -> None:
        begins(peer)
        answers(peer, {"return": answer})

    with pytest.raises(RefusedError, match="its answer to query-pmu is wrong") as caught:
        ask(path, "query-pmu", script)
    assert str(caught.value.why).startswith(f"return.{where}")


@pytest.mark.parametrize("reply", [{}, {"return": None}, {"return": []}, {"error": 1}])
def test_an_answer_without_a_result_is_refused(path: Path, reply: dict[str, object]) -> None:
    def script(peer: RawClient) -> None:
        begins(peer)
        answers(peer, reply)

    with pytest.raises(RefusedError, match="is wrong"):
        ask(path, "query-pmu", script)


@pytest.mark.parametrize("outcome", [None, 1, "done", {"x": 1}])
def test_a_wrong_answer_to_a_change_leaves_its_outcome_unknown(
    path: Path, outcome: object
) -> None:
    def script(peer: RawClient) -> None:
        begins(peer)
        answers(peer, {"return": {"outcome": outcome}})

    with pytest.raises(UnknownOutcomeError) as caught:
        ask(path, "pmu-release", script)
    assert "the answer is wrong: return.outcome" in str(caught.value.why)


def test_members_of_a_later_version_are_dropped(path: Path) -> None:
    def script(peer: RawClient) -> None:
        begins(peer)
        answers(peer, {"return": PMU | {"later": [1]}, "also": 1})

    assert ask(path, "query-pmu", script) == PMU


def test_an_answer_too_large_is_refused(path: Path) -> None:
    def script(peer: RawClient) -> None:
        begins(peer)
        answers(peer, {"return": PMU | {"vmm": "x" * MESSAGE_MAX}})

    with pytest.raises(RefusedError) as caught:
        ask(path, "query-pmu", script)
    assert caught.value.why == "a message over 1048576 bytes"


@pytest.mark.parametrize(
    ("problem", "cls"),
    [
        ({}, RefusedError),
        ({"class": 1, "desc": 2, "data": 3}, RefusedError),
        ({"class": "Sealed", "desc": "\x1b[2J\n\u202e", "data": {"why": "\0"}}, SealedError),
        ({"class": "Sealed", "data": {"applied": [1, {}, {"words": 1}]}}, SealedError),
        ({"class": "GenericError", "desc": "x" * 100_000}, RefusedError),
        ({"class": "CommandNotFound", "desc": {}}, UnsupportedError),
        ({"class": "CommandNotFound", "desc": "x" * 100_000}, UnsupportedError),
        ({"class": "__class__", "desc": "{0.__class__}"}, RefusedError),
    ],
)
def test_an_error_of_any_form_is_an_error(
    path: Path, problem: dict[str, object], cls: type[PmuctlError]
) -> None:
    def script(peer: RawClient) -> None:
        begins(peer)
        answers(peer, {"error": problem})

    with pytest.raises(cls) as caught:
        ask(path, "pmu-apply", script)
    error = caught.value
    assert all(len(str(text)) <= 1000 for text in (error.message, error.why, error.errno))


def test_an_error_without_id_is_the_answer_to_what_could_not_be_read(path: Path) -> None:
    def script(peer: RawClient) -> None:
        begins(peer)
        peer.read()
        peer.send(encode({"error": {"class": "GenericError", "desc": "JSON parse error"}}))

    with pytest.raises(RefusedError, match="JSON parse error"):
        ask(path, "query-pmu", script)


# Whom it believes


@pytest.fixture
def vm(path: Path, dump: Callable[[str], Path]) -> Iterator[FakeVm]:
    """A true server of a fake VM."""
    vm = FakeVm()
    with Server(vm, path, sysfs=Sysfs(dump("two-pmus-6.12")), threads=vm.threads):
        yield vm


@pytest.mark.usefixtures("vm")
def test_a_peer_of_another_user_than_the_directorys_is_not_believed(path: Path) -> None:
    with (
        pytest.raises(RefusedError, match="not believed") as caught,
        client(path, speaks_for=ME + 1),
    ):
        pass
    assert caught.value.why == f"{path.parent}: it is uid {ME}'s, not uid {ME + 1}'s"
    with client(path, speaks_for=ME):
        pass


@pytest.mark.parametrize("what", ["socket", "directory"])
def test_a_socket_that_was_swapped_for_a_link_is_not_connected_to(
    path: Path, tmp_path: Path, what: str
) -> None:
    """Root would be led to what only root may connect to: the scan saw a socket there."""
    found = tmp_path / "run" / path.name
    if what == "socket":
        found.parent.mkdir()
        found.symlink_to(path)
    else:
        found.parent.symlink_to(path.parent)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(0)
        with pytest.raises(PmuctlError), client(found, speaks_for=ME):
            pass
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.usefixtures("vm")
@pytest.mark.parametrize("strictly", [True, False])
def test_a_peer_without_a_vm_is_not_believed(path: Path, procs: Procfs, *, strictly: bool) -> None:
    fake_proc(procs.root, os.getpid(), holds_kvm=False)
    with client(path, procs=procs) as its:
        with pytest.raises(RefusedError, match="not believed"):
            its.authenticate(os.getpid(), strictly=strictly)
    with client(path, procs=Procfs(procs.root / "empty")) as its:
        with pytest.raises(RefusedError, match="not believed"):
            its.authenticate(os.getpid(), strictly=strictly)


class Unreadable(Procfs):
    """A procfs of processes that this user may not look into."""

    def holds_kvm(self, pid: int) -> bool | None:
        return None


@pytest.mark.usefixtures("vm")
def test_a_peer_that_cannot_be_checked_may_be_asked_and_not_changed(path: Path) -> None:
    with client(path, procs=Unreadable()) as its:
        its.authenticate(os.getpid(), strictly=False)
        with pytest.raises(DeniedError):
            its.authenticate(os.getpid(), strictly=True)


@pytest.mark.usefixtures("vm")
def test_thread_ids_that_are_not_the_peers_do_not_count(path: Path, procs: Procfs) -> None:
    (procs.root / str(os.getpid()) / "task" / "1001").rmdir()
    for name in ("x", "²", "-1", "0"):
        (procs.root / str(os.getpid()) / "task" / name).mkdir()
    with client(path, procs=procs) as its:
        vcpus = vm_of(its.control_socket, ask_vm(its), procs, is_own=False).vcpus
        assert its.authenticate(os.getpid(), strictly=True).threads == {1002}
    assert vcpus is not None
    assert [vcpu.tid for vcpu in vcpus] == [None, 1002]


@pytest.mark.usefixtures("vm")
def test_a_process_that_took_over_the_pid_is_not_the_peer(path: Path, procs: Procfs) -> None:
    started(procs, 1000)
    with client(path, procs=procs) as its:
        vmm = its.authenticate(os.getpid(), strictly=True)
        assert vmm.threads == {1001, 1002}
        started(procs, 1001)
        with pytest.raises(NoVmError, match="not believed"):
            its.authenticate(os.getpid(), strictly=False)


@pytest.mark.usefixtures("vm")
@only_users("what root began is believed under any user")
def test_a_pid_that_is_another_users_by_now_is_not_believed(path: Path, procs: Procfs) -> None:
    started(procs, 5)
    told(procs, "status", f"Name:\tx\nUid:\t{ME}\t{ME + 1}\t{ME}\t{ME}\n")
    with client(path, procs=procs) as its:
        with pytest.raises(RefusedError, match="not believed"):
            its.authenticate(os.getpid(), strictly=True)


LISTENER = """
import os, socket, sys
its = socket.socket(fileno=int(sys.argv[1]))
os.setresuid(65534, 65534, 65534)
its.listen()
"""


@contextmanager
def nobodys_server(path: Path, script: Script, count: int) -> Iterator[int]:
    """A server that, to SO_PEERCRED, is a process of uid 65534, and the pid of that."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        with subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", LISTENER, str(listener.fileno())],
            pass_fds=[listener.fileno()],
        ) as process:
            assert process.wait(PATIENCE) == 0

        def serve() -> None:
            for _ in range(count):
                with RawClient(listener.accept()[0]) as peer:
                    script(peer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield process.pid
        thread.join()


@only_root("only root can be another user")
def test_a_pid_that_is_another_users_by_now_is_not_believed_by_root(
    path: Path, tmp_path: Path
) -> None:
    with nobodys_server(path, begins, 2) as pid:
        procs = Procfs(fake_proc(tmp_path / "proc", pid, uid=65534))
        with client(path, procs=procs) as its:
            its.authenticate(pid, strictly=True)
        fake_proc(procs.root, pid, uid=1000)
        with client(path, procs=procs) as its:
            with pytest.raises(RefusedError, match="not believed") as caught:
                its.authenticate(pid, strictly=True)
    assert caught.value.why == f"uid 65534 began to listen there, process {pid} is uid 1000"


@only_root("only root can be another user")
def test_a_user_speaks_for_no_process_of_another_in_the_true_proc(path: Path) -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    claims = iter([1, os.getpid(), ended.pid, (1 << 63) - 1])

    def claim(peer: RawClient) -> None:
        begins(peer)
        answers(peer, {"return": PMU | {"pid": next(claims)}})

    with nobodys_server(path, claim, 4):
        for cls in (RefusedError, RefusedError, NoVmError, NoVmError):
            with client(path) as its, pytest.raises(cls, match="not believed") as caught:
                ask_vm(its)
            assert type(caught.value) is cls


@pytest.mark.usefixtures("vm")
def test_a_socket_by_its_path_is_named_by_it(path: Path) -> None:
    said: list[str] = []
    with Client(socket_at(path), deadline=PATIENCE, procs=Procfs(), trace=said.append) as its:
        assert its.subject == str(path)
        answer = its.execute("pmu-apply", A72)
    assert said[0] == f"{path} <- qmp_capabilities {{}}"
    assert json.loads(said[1].removeprefix(f"{path} <- pmu-apply ")) == A72
    assert isinstance(answer, dict)
    assert answer["outcome"] == "set"
