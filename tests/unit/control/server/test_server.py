# SPDX-License-Identifier: Apache-2.0
"""The control server against clients that are wrong, slow, hostile or in each other's way."""

import asyncio
import contextlib
import errno
import json
import os
import resource
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qemu.qmp import ExecuteError, QMPClient

from pmuctl.control.protocol.messages import COMMANDS
from pmuctl.control.protocol.qmp_codec import ERROR_CLASSES, MESSAGE_MAX, encode
from pmuctl.control.server.commands import OnChange
from pmuctl.control.server.connection import Connection
from pmuctl.control.server.server import CLIENTS_MAX, READERS_MAX, Server, VcpuStatus
from pmuctl.errors import PmuctlError, UsageError
from pmuctl.host.sysfs import Sysfs
from pmuctl.model.cpuset import CpuSet
from tests.fakes.peers import PATIENCE, RawClient, connect_as
from tests.fakes.strategies import JSON, QUICKLY
from tests.fakes.vmm import FakeVm
from tests.skips import only_root

A72: dict[str, object] = {"type": 11, "name": "armv8_cortex_a72"}
NOBODY = 65534
as_root = only_root("only root can be another user")


class Room:
    """Servers on a host with two PMUs, each with a client that must be served all the while."""

    def __init__(
        self,
        root: Path,
        directory: Path,
        servers: contextlib.ExitStack,
        clients: contextlib.ExitStack,
    ) -> None:
        self.root = root
        self.path = directory / "web1.sock"
        self._servers, self._clients = servers, clients
        self.vm = FakeVm()

    def start(self, vm: FakeVm | None = None, **its: Any) -> Server:
        """A server of this VM until the end of the test."""
        self.vm = vm or self.vm
        self.server = self._servers.enter_context(self.make(**its))
        return self.server

    def make(self, *, stall: float = PATIENCE, on_change: OnChange | None = None) -> Server:
        """A server whose context is not entered yet."""
        return Server(
            self.vm,
            self.path,
            sysfs=Sysfs(self.root),
            threads=self.vm.threads,
            stall=stall,
            on_change=on_change,
        )

    def client(self) -> RawClient:
        """A client that has given its capabilities."""
        return self._clients.enter_context(RawClient.ready(self.path))

    def stranger(self) -> RawClient:
        """A client that has not read its greeting yet."""
        return self._clients.enter_context(RawClient.connect(self.path))

    def readers(self, count: int) -> list[RawClient]:
        """Clients of another user than root and the VMM's, let in by the socket's mode."""
        self.path.chmod(0o666)
        clients = connect_as(NOBODY, self.path, count)
        return [self._clients.enter_context(client) for client in clients]


@pytest.fixture
def room(dump: Callable[[str], Path], open_dir: Path) -> Iterator[Room]:
    """Checks at the end that the server lives, for all and to the VM's release."""
    with contextlib.ExitStack() as servers:
        with contextlib.ExitStack() as clients:
            room = Room(dump("two-pmus-6.12"), open_dir, servers, clients)
            yield room
        if hasattr(room, "server") and room.path.exists():
            with RawClient.ready(room.path) as last:
                assert last.ask("query-commands")["return"]
                assert "outcome" in last.ask("pmu-release")["return"]
            room.server.wait_for_release(PATIENCE)


@pytest.fixture
def open_dir() -> Iterator[Path]:
    """A directory that other users reach, as pytest's own they do not."""
    with tempfile.TemporaryDirectory(prefix="pmuctl-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def fails(answer: Mapping[str, Any], words: str, *, name: str = "GenericError") -> None:
    assert answer["error"]["class"] == name
    assert words in answer["error"]["desc"]


# Bad requests


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\xff\xfe", "a JSON object is expected"),
        (b"[]", "a JSON object is expected"),
        (b'"x"', "a JSON object is expected"),
        (b"}", "a JSON object is expected"),
        (b'{"execute":"\xff"}', "not valid JSON"),
        (b'{"execute":}', "not valid JSON"),
        (b'{"execute":"query-pmu","id":NaN}', "not valid JSON"),
        (b'{"execute":"query-pmu","id":1e999}', "not valid JSON"),
        (b'{"execute":"query-pmu","id":' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"execute":"query-pmu","id":"\\ud800"}', "not valid JSON"),
        (b'{"execute":"query-pmu","execute":"pmu-release"}', "given twice"),
        (b'{"a":' * 33, "nesting over 32"),
        (b'{"a":"' + b"x" * MESSAGE_MAX + b'"}', "a message over 1048576 bytes"),
        (b'{"a":"' + b"x" * MESSAGE_MAX, "a message over 1048576 bytes"),
    ],
)
def test_a_stream_that_cannot_be_followed_is_told_so_and_closed(
    room: Room, data: bytes, words: str
) -> None:
    room.start()
    other, bad = room.client(), room.client()
    bad.send(data)
    fails(bad.read(), words)
    assert bad.is_closed()
    assert other.ask("query-pmu")["return"]["window"] == "open"


def test_a_client_that_floods_without_reading_is_closed(room: Room) -> None:
    room.start()
    other, bad = room.client(), room.client()
    with pytest.raises(OSError, match=r"Broken pipe|reset"):
        bad.send(b'{"a":"' + b"x" * (64 << 20))
    assert other.ask("query-pmu")["return"]


@pytest.mark.parametrize(
    ("request_", "words", "name"),
    [
        ({}, "execute, arguments and id", "GenericError"),
        ({"execute": 1}, "execute, arguments and id", "GenericError"),
        ({"execute": "query-pmu", "x": 1}, "execute, arguments and id", "GenericError"),
        ({"exec-oob": "query-pmu"}, "execute, arguments and id", "GenericError"),
        ({"execute": "quit"}, "there is no command 'quit'", "CommandNotFound"),
        ({"execute": "\x1b[2J"}, r"there is no command '\x1b[2J'", "CommandNotFound"),
        ({"execute": "qmp_capabilities"}, "given already", "CommandNotFound"),
        ({"execute": "query-pmu", "arguments": []}, "arguments: an object", "GenericError"),
        ({"execute": "query-pmu", "arguments": None}, "arguments: an object", "GenericError"),
        ({"execute": "query-pmu", "arguments": {"x": 1}}, "arguments.x: is not", "GenericError"),
        ({"execute": "pmu-apply"}, "arguments.type: is missing", "GenericError"),
        (
            {"execute": "pmu-apply", "arguments": A72 | {"counters": "2"}},
            "arguments.counters: a whole number",
            "GenericError",
        ),
        (
            {"execute": "pmu-apply", "arguments": A72 | {"type": 10**300}},
            "arguments.type: must be 0-2147483647",
            "GenericError",
        ),
        (
            {
                "execute": "pmu-apply",
                "arguments": A72 | {"filter": {"default": "deny", "except": [[1]]}},
            },
            "arguments.filter.except[0]: a list of 2",
            "GenericError",
        ),
        ({"execute": "query-pmu", "id": "x" * 1024}, "id: its JSON is longer", "GenericError"),
    ],
)
def test_a_wrong_request_is_answered_and_the_next_one_as_well(
    room: Room, request_: Mapping[str, object], words: str, name: str
) -> None:
    room.start()
    client = room.client()
    client.send(json.dumps(request_).encode())
    fails(client.read(), words, name=name)
    assert client.ask("query-pmu")["return"]
    assert room.vm.calls == []


@pytest.mark.parametrize(
    "tag", [0, None, "x", [1, {"a": -0.5}], True, "\u2028\x00", 10**4000 % 10**900]
)
def test_an_answer_has_the_id_of_its_request(room: Room, tag: object) -> None:
    room.start()
    client = room.client()
    for name in ("query-commands", "nothing"):
        client.send(encode({"execute": name, "id": tag}))
        assert client.read()["id"] == tag


def test_no_command_comes_before_the_capabilities(room: Room) -> None:
    room.start()
    client = room.stranger()
    assert set(client.read()["QMP"]) == {"version", "capabilities"}
    for name in ("query-pmu", "pmu-release", "nothing"):
        fails(client.ask(name), "qmp_capabilities is expected first", name="CommandNotFound")
    assert client.ask("qmp_capabilities")["return"] == {}
    assert client.ask("query-pmu")["return"]["waiting"]


@settings(QUICKLY, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(COMMANDS)), JSON)
def test_any_arguments_are_answered_with_return_or_error(
    fuzzed: RawClient, name: str, arguments: object
) -> None:
    fuzzed.send(encode({"execute": name, "arguments": arguments, "id": 1}))
    answer = fuzzed.reply()
    assert set(answer) in ({"return", "id"}, {"error", "id"})


PLAUSIBLE = st.fixed_dictionaries(
    {
        "type": st.sampled_from([10, 11, 12]) | JSON,
        "name": st.sampled_from(["armv8_cortex_a53", "armv8_cortex_a72"]) | JSON,
    },
    optional={
        "counters": st.integers(0, 40) | JSON,
        "filter": st.fixed_dictionaries(
            {
                "default": st.sampled_from(["allow", "deny"]) | JSON,
                "except": st.lists(
                    st.tuples(st.integers(0, 1 << 16), st.integers(0, 1 << 16)), max_size=4
                )
                | JSON,
            }
        )
        | JSON,
        "cpus": st.lists(st.integers(0, 5), max_size=4) | JSON,
        "dry-run": st.booleans() | JSON,
    },
)


@settings(QUICKLY, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(PLAUSIBLE)
def test_arguments_that_are_nearly_right_are_answered_as_well(
    fuzzed: RawClient, arguments: Mapping[str, object]
) -> None:
    fuzzed.send(encode({"execute": "pmu-apply", "arguments": arguments}))
    answer = fuzzed.reply()
    if "error" in answer:
        assert answer["error"]["class"] in {*ERROR_CLASSES, "GenericError"}
        assert "the VMM failed" not in answer["error"]["desc"]
    else:
        COMMANDS["pmu-apply"].result.check(answer["return"], "return")


@pytest.fixture
def fuzzed(room: Room) -> RawClient:
    """A client of a server that may be asked anything, many times."""
    room.start()
    return room.client()


# Who is told of changes


def test_who_changes_something_is_told_with_the_steps(room: Room) -> None:
    told: list[tuple[str, tuple[str, ...], str]] = []

    def note(by: str, steps: tuple[str, ...]) -> None:
        told.append((by, steps, threading.current_thread().name))

    room.start(on_change=note)
    client = room.client()
    client.ask("pmu-apply", **A72, dry_run=True)
    client.ask("query-pmu")
    assert told == []
    client.ask("pmu-apply", **A72)
    step = "KVM_SET_DEVICE_ATTR(vcpu 0, KVM_ARM_VCPU_PMU_V3_SET_PMU, 11)  armv8_cortex_a72"
    who = f"uid {os.geteuid()}, pid {os.getpid()}"
    assert told == [(who, (step,), "pmuctl-control")]
    client.ask("pmu-apply", **A72)  # unchanged
    assert "error" in client.ask("pmu-apply", type=12, name="x")
    assert len(told) == 1


def test_a_change_that_was_done_in_part_is_told_as_far_as_it_was(room: Room) -> None:
    told: list[tuple[str, ...]] = []
    room.start(on_change=lambda _, steps: told.append(steps))
    room.vm.faults["SET_NR_COUNTERS"] = errno.EIO
    assert "error" in room.client().ask("pmu-apply", **A72, counters=2)
    assert [len(steps) for steps in told] == [1]
    assert "SET_PMU, 11" in told[0][0]


def test_a_note_that_fails_changes_no_answer(room: Room) -> None:
    def note(by: str, steps: tuple[str, ...]) -> None:
        raise OSError(errno.ENOSPC, "no space")

    room.start(on_change=note)
    assert room.client().ask("pmu-apply", **A72)["return"]["outcome"] == "set"


# Clients that stall, leave or are many


def test_half_a_request_has_a_bounded_time(room: Room) -> None:
    room.start(stall=0.05)
    other, slow = room.client(), room.client()
    slow.send(b'{"execute":')
    fails(slow.read(), "not ended in time")
    assert slow.is_closed()
    assert other.ask("query-pmu")["return"]


def test_a_byte_now_and_then_does_not_win_time(room: Room) -> None:
    room.start(stall=0.1)
    slow = room.client()
    slow.send(b'{"execute":"')
    ticking = threading.Event()

    def tick() -> None:
        with contextlib.suppress(OSError):
            while not ticking.wait(0.01):
                slow.send(b"x")

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        fails(slow.read(), "not ended in time")
    finally:
        ticking.set()
        thread.join()


def test_each_request_has_a_clock_of_its_own() -> None:
    here, there = socket.socketpair()
    with here, there:
        connection = Connection(here)

        def owes_after(data: bytes) -> float | None:
            there.sendall(data)
            connection.receive()
            while connection.next_request() is not None:
                pass
            return connection.owes_since

        assert owes_after(b"{} ") is None
        since = owes_after(b'{"a":')
        assert since is not None
        assert owes_after(b"1") == since
        later = owes_after(b"}{")
        assert later is not None
        assert later > since
        assert owes_after(b"}") is None


def test_what_a_client_leaves_unread_is_bounded() -> None:
    here, there = socket.socketpair()
    with here, there:
        connection = Connection(here)

        def tell_much() -> None:
            for _ in range(1000):
                connection.send({"event": "x" * 10_000})

        with pytest.raises(ConnectionAbortedError):
            tell_much()
        assert connection.owes_since is not None


def test_an_idle_client_may_stay(room: Room) -> None:
    room.start(stall=0.01)
    client, other = room.client(), room.client()
    other.send(b"{")
    assert other.is_closed()  # so the bound has passed
    assert client.ask("query-commands")["return"]


def test_a_client_that_never_reads_is_dropped_and_takes_bounded_memory(room: Room) -> None:
    room.start(stall=0.2)
    other, deaf = room.client(), room.client()
    deaf.socket.settimeout(0)
    written = 0
    with contextlib.suppress(OSError):
        while written < 64 << 20:  # ends once the server takes no more, or has closed
            written += deaf.socket.send(encode({"execute": "query-pmu"}) * 1000)
            assert other.ask("query-commands")["return"]
    assert written < 8 << 20
    hangup = select.poll()
    hangup.register(deaf.socket, 0)
    assert hangup.poll(PATIENCE * 1000)
    assert other.ask("query-commands")["return"]


def test_many_requests_in_one_write_are_all_answered_in_order(room: Room) -> None:
    room.start()
    client = room.client()
    count = 3000
    requests = b"".join(encode({"execute": "query-commands", "id": n})[:-2] for n in range(count))
    writer = threading.Thread(target=client.send, args=(requests,))
    writer.start()
    assert [client.read()["id"] for _ in range(count)] == list(range(count))
    writer.join()


def test_one_client_cannot_keep_the_server_to_itself(room: Room) -> None:
    class Busy(FakeVm):
        """Counts what it is asked, and answers the first question when the test says so."""

        asked = 0
        asked_before = 0
        is_in = threading.Event()
        may_go = threading.Event()

        def event_bits(self, pmu_type: int | None) -> int | None:
            self.asked += 1
            self.is_in.set()
            assert self.may_go.wait(PATIENCE)
            return super().event_bits(pmu_type)

        def set_attr(self, vcpu: int, attr: int, payload: bytes) -> None:
            self.asked_before = self.asked
            super().set_attr(vcpu, attr, payload)

    vm = Busy()
    room.start(vm)
    greedy, other = room.client(), room.client()
    count = 100
    greedy.send(b"".join(encode({"execute": "query-pmu", "id": n}) for n in range(count)))
    assert vm.is_in.wait(PATIENCE)
    other.send(encode({"execute": "pmu-apply", "arguments": A72}))
    vm.may_go.set()
    assert other.reply()["return"]["outcome"] == "set"
    # each query asks twice: at most two of them came before
    assert vm.asked_before <= 5
    assert [greedy.reply()["id"] for _ in range(count)] == list(range(count))


def test_requests_are_answered_even_if_no_more_can_come(room: Room) -> None:
    room.start()
    client = room.client()
    client.send(
        encode({"execute": "query-pmu", "id": 1}) + encode({"execute": "query-pmu", "id": 2})
    )
    client.socket.shutdown(socket.SHUT_WR)
    assert [client.read()["id"], client.read()["id"]] == [1, 2]
    assert client.is_closed()


@pytest.mark.parametrize(
    "data", [b"", b"{", b'{"execute":"query-pmu"}' * 50, b"\xff", b'{"execute":"pmu-apply"}{']
)
def test_clients_that_leave_at_any_point_disturb_nobody(room: Room, data: bytes) -> None:
    room.start()
    other = room.client()
    for _ in range(20):
        with room.client() as client:
            client.send(data)
    with room.stranger():
        pass
    assert other.ask("query-pmu")["return"]


def test_too_many_clients_are_told_so(room: Room) -> None:
    room.start()
    clients = [room.client() for _ in range(CLIENTS_MAX)]
    late = room.stranger()
    fails(late.read(), "too many clients")
    assert late.is_closed()
    assert all(client.ask("query-commands")["return"] for client in clients)
    clients[0].socket.close()
    assert "QMP" in room.stranger().read()


def test_a_server_without_descriptors_goes_on_when_there_are_some(room: Room) -> None:
    room.start()
    other = room.client()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(fd) for fd in os.listdir("/proc/self/fd"))
    with socket.socket(socket.AF_UNIX) as late, contextlib.ExitStack() as fillers:
        late.settimeout(PATIENCE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, highest + 8), hard))
        try:
            with contextlib.suppress(OSError):
                while True:
                    fillers.callback(os.close, os.dup(0))
            late.connect(str(room.path))
            assert other.ask("query-commands")["return"]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        with RawClient(late) as client:
            client.begin()


def test_sigpipe_does_not_end_a_vmm_that_has_its_default_action(room: Room) -> None:
    program = f"""
import os, signal, socket, sys
from pathlib import Path
sys.path[:0] = {sys.path!r}
from tests.fakes.vmm import FakeVm
from pmuctl.control.server.server import Server
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
with Server(FakeVm(), Path({str(room.path)!r})):
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect({str(room.path)!r})
            client.recv(1000)
            client.sendall(b'{{"execute":"qmp_capabilities"}}' * 100)
            client.shutdown(socket.SHUT_RD)
print("alive")
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "alive\n", "")


# Who may change


@as_root
def test_another_user_may_read_and_not_change(room: Room) -> None:
    room.start()
    [reader] = room.readers(1)
    reader.begin()
    assert reader.ask("query-pmu")["return"]["name"] == "web1"
    assert reader.ask("query-commands")["return"]
    for answer in (reader.ask("pmu-apply", **A72, dry_run=True), reader.ask("pmu-release")):
        fails(answer, "is not permitted", name="NotPermitted")
        assert "uid 65534 is neither root nor" in answer["error"]["data"]["why"]
    assert room.vm.calls == []
    assert reader.ask("query-pmu")["return"]["window"] == "open"


@as_root
def test_idle_readers_cannot_keep_the_owner_out(room: Room) -> None:
    room.start()
    readers = room.readers(READERS_MAX + 3)
    for reader in readers[:READERS_MAX]:
        assert "QMP" in reader.read()
    for reader in readers[READERS_MAX:]:
        fails(reader.read(), "too many clients")
        assert reader.is_closed()
    assert room.client().ask("pmu-apply", **A72)["return"]["outcome"] == "set"


@as_root
def test_readers_hear_what_changes(room: Room) -> None:
    room.start()
    [reader] = room.readers(1)
    reader.begin()
    room.client().ask("pmu-apply", **A72)
    assert reader.event("PMU_APPLIED")["data"]["steps"][0]["attribute"] == "SET_PMU"


# Transactions and the window


class SlowVm(FakeVm):
    """A VM in which SET_PMU takes until the test lets it go on."""

    def __init__(self) -> None:
        super().__init__()
        self.is_in = threading.Event()
        self.may_go = threading.Event()

    def set_attr(self, vcpu: int, attr: int, payload: bytes) -> None:
        self.is_in.set()
        assert self.may_go.wait(PATIENCE)
        super().set_attr(vcpu, attr, payload)


def test_of_two_that_apply_at_once_each_is_told_the_truth(room: Room) -> None:
    vm = SlowVm()
    room.start(vm)
    first, second = room.client(), room.client()
    both = {"default": "deny", "except": [[17, 1]]}
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(lambda: first.ask("pmu-apply", **A72, filter=both))
        assert vm.is_in.wait(PATIENCE)
        two = pool.submit(lambda: second.ask("pmu-apply", **A72 | {"counters": 2}))
        vm.may_go.set()
        assert one.result()["return"]["outcome"] == "set"
        assert [s["attribute"] for s in two.result()["return"]["steps"]] == ["SET_NR_COUNTERS"]
    assert [name for name, _ in vm.calls] == ["SET_PMU", "FILTER", "SET_NR_COUNTERS"]


def test_of_two_other_pmus_at_once_one_is_refused(room: Room) -> None:
    room.start()
    one_filter = {"default": "deny", "except": [[17, 1]]}
    other = {"type": 10, "name": "armv8_cortex_a53"}
    clients = (room.client(), room.client())
    wanted = (A72 | {"filter": one_filter}, other | {"filter": one_filter})
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda n: clients[n].ask("pmu-apply", **wanted[n]), range(2)))
    done = [n for n, answer in enumerate(answers) if "return" in answer]
    assert len(done) == 1
    fails(answers[1 - done[0]], "while an event filter stands", name="Sealed")
    assert [name for name, _ in room.vm.calls] == ["SET_PMU", "FILTER"]
    assert room.vm.vpmu.pmu == wanted[done[0]]["type"]


def test_the_same_at_once_is_set_once(room: Room) -> None:
    room.start()
    clients = [room.client() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda its: its.ask("pmu-apply", **A72), clients))
    outcomes = sorted(answer["return"]["outcome"] for answer in answers)
    assert outcomes == ["set", "unchanged", "unchanged", "unchanged"]
    assert room.vm.calls == [("SET_PMU", 11)]


def test_a_vmm_that_goes_on_waits_for_the_transaction_under_way(room: Room) -> None:
    vm = SlowVm()
    server = room.start(vm)
    client = room.client()
    with ThreadPoolExecutor(2) as pool:
        applied = pool.submit(lambda: client.ask("pmu-apply", **A72))
        assert vm.is_in.wait(PATIENCE)
        gone_on = pool.submit(lambda: (server.wait_for_release(0), list(vm.calls)))
        vm.may_go.set()
        assert applied.result()["return"]["outcome"] == "set"
        assert gone_on.result() == (False, [("SET_PMU", 11)])
    fails(client.ask("pmu-apply", type=10, name="armv8_cortex_a53"), "sealed", name="Sealed")


def test_apply_and_release_at_once_apply_before_or_not_at_all(room: Room) -> None:
    server = room.start()
    at_release: list[int] = []

    def wait() -> None:
        assert server.wait_for_release(PATIENCE)
        at_release.append(len(room.vm.calls))

    applying, releasing = room.client(), room.client()
    with ThreadPoolExecutor(3) as pool:
        waiting = pool.submit(wait)
        applied = pool.submit(lambda: applying.ask("pmu-apply", **A72))
        released = pool.submit(lambda: releasing.ask("pmu-release"))
        waiting.result()
    assert released.result()["return"]["outcome"] == "released"
    if "return" in applied.result():
        assert (at_release, len(room.vm.calls)) == ([1], 1)
    else:
        fails(applied.result(), "sealed", name="Sealed")
        assert room.vm.calls == []


def test_a_vm_is_released_once(room: Room) -> None:
    room.start()
    one, two = room.client(), room.client()
    assert one.ask("pmu-release")["return"]["outcome"] == "released"
    assert two.ask("pmu-release")["return"]["outcome"] == "unchanged"
    now = two.ask("query-pmu")["return"]
    assert (now["window"], now["by"], now["waiting"]) == ("sealed", "it was released", False)


def test_a_release_that_comes_too_late_is_told_so_and_so_is_the_vmm(room: Room) -> None:
    server = room.start()
    assert not server.wait_for_release(0)
    client = room.client()
    assert client.ask("pmu-release")["return"]["outcome"] == "unchanged"
    assert not server.wait_for_release(0)
    assert client.ask("query-pmu")["return"]["by"] == "it was not released in time"


def test_a_vmm_that_seals_is_not_kept_waiting(room: Room) -> None:
    server = room.start()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: server.wait_for_release(PATIENCE))
        server.seal("it was asked to end")
        assert waiting.result() is False
    assert room.client().ask("query-pmu")["return"]["by"] == "it was asked to end"


@pytest.mark.parametrize("by_client", [True, False])
def test_all_hear_once_that_the_window_has_closed(room: Room, *, by_client: bool) -> None:
    server = room.start()
    client, other = room.client(), room.client()
    if by_client:
        assert other.ask("pmu-release")["return"]["outcome"] == "released"
    else:
        server.seal("it did not wait")
    event = client.read()
    assert (event["event"], event["data"]["window"]) == ("PMU_WINDOW", "sealed")
    assert event["data"]["by"] == ("it was released" if by_client else "it did not wait")
    assert set(event["timestamp"]) == {"seconds", "microseconds"}
    server.seal("again")
    assert "return" in client.ask("query-commands")


def test_events_come_while_a_request_is_under_way(room: Room) -> None:
    room.start()
    client, other = room.client(), room.client()
    request = encode({"execute": "query-pmu", "id": 7})
    client.send(request[:9])
    assert other.ask("pmu-apply", **A72)["return"]["outcome"] == "set"
    assert client.read()["event"] == "PMU_APPLIED"
    client.send(request[9:])
    assert client.read()["id"] == 7


def test_events_go_only_to_those_who_gave_their_capabilities(room: Room) -> None:
    room.start()
    stranger = room.stranger()
    assert "QMP" in stranger.read()
    room.client().ask("pmu-apply", **A72)
    assert "return" in stranger.ask("qmp_capabilities")


def test_type_and_name_must_mean_the_same_pmu(room: Room) -> None:
    room.start()
    answer = room.client().ask("pmu-apply", type=11, name="armv8_cortex_a53")
    fails(answer, "not the PMU with the perf type 11", name="NotFound")
    assert "armv8_cortex_a72" in answer["error"]["data"]["why"]
    assert room.vm.calls == []


def test_a_late_refusal_leaves_the_part_of_the_filter_that_stands(room: Room) -> None:
    class Full(FakeVm):
        def set_attr(self, vcpu: int, attr: int, payload: bytes) -> None:
            if len(self.calls) == 2:
                raise OSError(errno.ENOMEM, "no memory")
            super().set_attr(vcpu, attr, payload)

    room.start(Full())
    client = room.client()
    wanted = {"default": "deny", "except": [[17, 1], [20, 1]]}
    answer = client.ask("pmu-apply", **A72, filter=wanted)
    fails(answer, "was refused", name="Refused")
    assert len(answer["error"]["data"]["applied"]) == 2
    standing = client.ask("query-pmu")["return"]["filter"]
    assert (standing["default"], standing["except"]) == ("deny", [[17, 1]])


# Faults of the VMM


class BrokenError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even this works")


FAULTS = [RuntimeError("oops"), SystemExit(3), BrokenError(), OSError(), UnicodeError("\ud800")]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda its: type(its).__name__)
@pytest.mark.parametrize("name", ["vcpus", "has_vpmu", "event_bits", "has_attr"])
def test_a_fault_in_the_door_is_an_error_and_not_the_end(
    room: Room, name: str, fault: BaseException
) -> None:
    def fail(*_: object) -> object:
        raise fault

    vm = FakeVm()
    room.start(vm)
    client = room.client()
    vm.__dict__[name] = fail
    fails(client.ask("query-pmu"), "the VMM failed: ")
    fails(client.ask("pmu-apply", **A72), "the VMM failed: ")
    del vm.__dict__[name]
    assert client.ask("query-pmu")["return"]


@pytest.mark.parametrize("fault", FAULTS[:4], ids=lambda its: type(its).__name__)
def test_a_fault_in_a_transaction_is_an_error_and_not_the_end(
    room: Room, fault: BaseException
) -> None:
    class Falling(FakeVm):
        def set_attr(self, vcpu: int, attr: int, payload: bytes) -> None:
            if self.calls:
                raise fault
            super().set_attr(vcpu, attr, payload)

    room.start(Falling())
    client = room.client()
    answer = client.ask("pmu-apply", **A72, counters=2)
    assert "error" in answer
    if isinstance(fault, Exception):
        assert len(answer["error"]["data"]["applied"]) == 1
    assert client.ask("query-pmu")["return"]["pmu"]["type"] == 11


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("uuid", object()),
        ("uuid", "x" * 65),
        ("vmm", b"bytes"),
        ("vmm", "\udcff"),
        ("event_bits", lambda _: 1e999),
        ("vcpus", lambda: [VcpuStatus(index=0, tid=0, initialised=False, has_run=False)]),
    ],
)
def test_a_door_that_says_what_cannot_be_is_an_error_and_not_the_end(
    room: Room, name: str, value: object
) -> None:
    vm = FakeVm()
    vm.__dict__[name] = value
    room.start(vm)
    client = room.client()
    fails(client.ask("query-pmu"), "the VMM failed: ")
    assert client.ask("query-commands")["return"]


@pytest.mark.parametrize("name", ["", "../web1", "web 1", "web1\n", "x" * 65])
def test_a_vm_whose_name_is_none_has_no_server(room: Room, name: str) -> None:
    room.vm.name = name
    with pytest.raises(UsageError, match="not a name for a VM"), room.make():
        pass


def test_very_many_vcpus_and_ranges_fit_into_an_answer(room: Room) -> None:
    class Wide(FakeVm):
        def vcpus(self) -> Sequence[VcpuStatus]:
            return [
                VcpuStatus(index=n, tid=4_000_000 + n, initialised=False, has_run=False)
                for n in range(512)
            ]

    vm = Wide()
    vm.threads.masks = {4_000_000 + n: CpuSet.parse("0-3") for n in range(512)}
    room.start(vm)
    client = room.client()
    ranges = [[n * 8, 1] for n in range(1500)]
    answer = client.ask(
        "pmu-apply", **A72, filter={"default": "deny", "except": ranges}, cpus=[2, 3]
    )
    assert len(answer["return"]["steps"]) == 1001
    now = client.ask("query-pmu")["return"]
    assert (len(now["vcpus"]), now["filter"]["except"]) == (512, ranges)


# Beginning and end


def open_files() -> list[str]:
    """What this process has open, but for the listing itself."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}")
    return sorted(found)


def test_the_end_tells_those_who_are_connected_and_leaves_nothing(room: Room) -> None:
    files, threads = open_files(), threading.active_count()
    with contextlib.ExitStack() as clients:
        with room.make():
            idle, half = (clients.enter_context(RawClient.ready(room.path)) for _ in range(2))
            greeted = clients.enter_context(RawClient.connect(room.path))
            assert "QMP" in greeted.read()
            half.send(b'{"execute":')
        assert idle.read()["event"] == "VM_EXITED"
        assert half.read()["event"] == "VM_EXITED"
        for client in (idle, half, greeted):
            assert client.is_closed()
    assert os.listdir(room.path.parent) == [".lock"]
    assert (open_files(), threading.active_count()) == (files, threads)


def test_the_end_does_not_wait_for_a_client_that_does_not_read(room: Room) -> None:
    with room.make():
        deaf = room.client()
        deaf.socket.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                deaf.socket.send(encode({"execute": "query-pmu"}) * 100)


def test_a_server_that_cannot_begin_leaves_nothing(room: Room) -> None:
    room.start()
    files, threads = open_files(), threading.active_count()
    with pytest.raises(PmuctlError, match="is taken"), room.make():
        pass
    # the other server, of this process, has still to drop the connection that asked if it lives
    until = time.monotonic() + PATIENCE
    while (open_files(), threading.active_count()) != (files, threads):
        assert time.monotonic() < until
        time.sleep(0.01)
    assert room.client().ask("query-pmu")["return"]


def test_a_server_that_is_only_made_has_nothing_open(room: Room) -> None:
    files = open_files()
    server = room.make()
    server.seal("it did not wait")
    assert not server.wait_for_release()
    assert open_files() == files


def test_sealing_after_the_end_does_no_harm(room: Room) -> None:
    with room.make() as server:
        pass
    server.seal("too late")


# An independent client


def test_the_qmp_client_of_qemu_works(room: Room) -> None:
    room.start()

    async def talk() -> None:
        qmp = QMPClient("pmuctl")
        await qmp.connect(str(room.path))
        try:
            commands: Any = await qmp.execute("query-commands")
            assert {its["name"] for its in commands} == set(COMMANDS)
            pmu: Any = await qmp.execute("query-pmu")
            assert pmu["name"] == "web1"
            with qmp.listener("PMU_APPLIED") as events:
                done: Any = await qmp.execute("pmu-apply", A72)
                assert done["outcome"] == "set"
                event: Any = await asyncio.wait_for(events.get(), PATIENCE)
                assert event["data"]["steps"][0]["attribute"] == "SET_PMU"
            with pytest.raises(ExecuteError) as refused:
                await qmp.execute("pmu-apply", A72 | {"type": 99})
            assert refused.value.error.error.class_ == "NotFound"
            with qmp.listener("PMU_WINDOW") as events:
                await qmp.execute("pmu-release")
                event = await asyncio.wait_for(events.get(), PATIENCE)
                assert event["data"] == {"window": "sealed", "by": "it was released"}
        finally:
            await qmp.disconnect()

    asyncio.run(asyncio.wait_for(talk(), 4 * PATIENCE))
