# SPDX-License-Identifier: Apache-2.0
"""pmuctl conformance: our own server passes, and each fault of another is found by its check."""

import contextlib
import csv
import io
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pmuctl.conformance.pmu_checks import check_names
from pmuctl.control.protocol.messages import COMMANDS
from pmuctl.control.protocol.qmp_codec import Decoder, Message, WireError, encode
from pmuctl.control.server.commands import CommandHandler
from pmuctl.control.server.connection import Connection
from pmuctl.control.server.pmu_state import PmuState
from tests.cli.conftest import Machine, Ran
from tests.fakes.peers import GREETING, PATIENCE
from tests.fakes.vmm import FakeVm

PAGE = Path(__file__).parents[2] / "man/pmuctl-conformance.1"
HANGING = 1.5
"""Seconds for a check of a server that does not answer."""

A53, A72 = "armv8_cortex_a53", "armv8_cortex_a72"
PMUS = {10: A53, 11: A72}

Answer = dict[str, Any]


class OtherServer:
    """A server of another make, with one fault; one thread for each client."""

    def __init__(self) -> None:
        self.vm = FakeVm()
        self._settings = PmuState(self.vm, lambda: PMUS, self.vm.threads)
        self._dispatcher = CommandHandler(self._settings, self.tell)
        self._clients: list[Connection] = []
        self._threads: list[threading.Thread] = []
        self.lock = threading.Lock()

    # what a fault changes

    def greet(self, its: socket.socket) -> None:
        its.sendall(GREETING)

    def requests(self, its: socket.socket) -> Iterator[Message]:
        decoder = Decoder()
        while data := its.recv(1 << 16):
            decoder.feed(data)
            while (request := decoder.next()) is not None:
                yield request

    def request(self, request: Answer) -> Answer:
        return request

    def answer(self, request: Answer, answer: Answer) -> Answer | None:
        return answer

    def told(self, event: Message) -> Message | None:
        return event

    def bad(self, its: socket.socket) -> None:
        its.sendall(encode({"error": {"class": "GenericError", "desc": "what?"}}))

    # what is the same for all

    def tell(self, name: str, data: Message) -> None:
        event = self.told({"event": name, "data": data, "timestamp": {}})
        for client in self._clients if event else ():
            if client.is_ready and event:
                with contextlib.suppress(OSError):
                    client.socket.sendall(encode(event))

    def serve(self, listener: socket.socket) -> None:
        self.listener = listener
        with contextlib.suppress(OSError):
            while True:
                its, _ = listener.accept()
                thread = threading.Thread(target=self.client, args=(its,), daemon=True)
                self._threads.append(thread)
                thread.start()
        for client in list(self._clients):
            with contextlib.suppress(OSError):
                client.socket.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)

    def client(self, its: socket.socket) -> None:
        with its, contextlib.suppress(OSError):
            connection = Connection(its)
            its.settimeout(PATIENCE)
            self._clients.append(connection)
            try:
                self.greet(its)
                for request in self.requests(its):
                    self._answer(connection, request)
            except (WireError, ValueError):
                self.bad(its)
            finally:
                self._clients.remove(connection)

    def _answer(self, connection: Connection, request: Answer) -> None:
        with self.lock:
            answer = self._dispatcher.answer(self.request(request), connection)
            if answer.get("return") == {"outcome": "released"}:
                self.tell("PMU_WINDOW", {"window": "sealed", "by": "it was released"})
            changed = self.answer(request, answer)
            if changed is not None:
                connection.socket.sendall(encode(changed))


class WrongId(OtherServer):
    def answer(self, request: Answer, answer: Answer) -> Answer:
        return answer | {"id": "other"} if "id" in answer else answer


class NoId(OtherServer):
    def answer(self, request: Answer, answer: Answer) -> Answer:
        return {key: value for key, value in answer.items() if key != "id"}


class MissingField(OtherServer):
    def answer(self, request: Answer, answer: Answer) -> Answer:
        if request.get("execute") == "query-pmu":
            answer["return"].pop("vmm", None)
        return answer


class TakesAnyArgument(OtherServer):
    def request(self, request: Answer) -> Answer:
        request.get("arguments", {}).pop("no-such-argument", None)
        return request


class MuddlesTypes(OtherServer):
    def request(self, request: Answer) -> Answer:
        arguments = request.get("arguments", {})
        if isinstance(arguments.get("type"), str):
            arguments["type"] = int(arguments["type"])
        return request


class AppliesOnDryRun(OtherServer):
    def request(self, request: Answer) -> Answer:
        request.get("arguments", {}).pop("dry-run", None)
        return request


class WrongOrder(OtherServer):
    def answer(self, request: Answer, answer: Answer) -> Answer:
        result = answer.get("return")
        if isinstance(result, dict) and "steps" in result:
            result["steps"].reverse()
        return answer


class OtherWords(OtherServer):
    """Another answer each time."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def answer(self, request: Answer, answer: Answer) -> Answer:
        result = answer.get("return")
        for step in result.get("steps", ()) if isinstance(result, dict) else ():
            self.count += 1
            step["words"] += f" {self.count}"
        return answer


class GenericErrorOnly(OtherServer):
    def answer(self, request: Answer, answer: Answer) -> Answer:
        if "error" in answer and request.get("execute") == "no-such-command":
            answer["error"]["class"] = "GenericError\x1b[2J"
        return answer


class DiesOfBadJson(OtherServer):
    def bad(self, its: socket.socket) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


class Terse(OtherServer):
    """Says no more than it must."""

    def answer(self, request: Answer, answer: Answer) -> Answer:
        if request.get("execute") == "query-pmu" and "return" in answer:
            for name in ("waiting", "event-bits"):
                del answer["return"][name]
        return answer


class Hangs(OtherServer):
    def answer(self, request: Answer, answer: Answer) -> Answer | None:
        return None if request.get("execute") == "query-pmu" else answer


class NeverGreets(OtherServer):
    def greet(self, its: socket.socket) -> None:
        pass


class AnswersNoCapabilities(OtherServer):
    def answer(self, request: Answer, answer: Answer) -> Answer | None:
        return None if request.get("execute") == "qmp_capabilities" else answer


class NeedsNoCapabilities(OtherServer):
    def answer(self, request: Answer, answer: Answer) -> Answer:
        if "capabilities is expected" in str(answer.get("error")):
            return {"return": [{"name": name} for name in COMMANDS]}
        return answer


class NoPmuCommands(OtherServer):
    """As a monitor that knows nothing of PMUs."""

    HAS = ("qmp_capabilities", "query-commands", "query-status")

    def request(self, request: Answer) -> Answer:
        return request if request["execute"] in self.HAS else request | {"execute": "none"}

    def answer(self, request: Answer, answer: Answer) -> Answer:
        if request["execute"] == "query-commands" and "return" in answer:
            answer["return"] = [{"name": name} for name in self.HAS]
        return answer


class NoSchema(OtherServer):
    def answer(self, request: Answer, answer: Answer) -> Answer:
        if request["execute"] == "query-commands" and "return" in answer:
            answer["return"] = [its for its in answer["return"] if "schema" not in its["name"]]
        return answer


class Naive(OtherServer):
    """Reads lines, and whatever Python takes for JSON."""

    def requests(self, its: socket.socket) -> Iterator[Message]:
        with its.makefile("rb") as lines:
            for line in lines:
                try:
                    yield json.loads(line, parse_constant=str)
                except RecursionError:
                    raise ValueError from None


class OneAtATime(OtherServer):
    def __init__(self) -> None:
        super().__init__()
        self.turn = threading.Lock()

    def client(self, its: socket.socket) -> None:
        with self.turn:
            super().client(its)


class NoEvents(OtherServer):
    def told(self, event: Message) -> None:
        return None


class VagueRefusals(OtherServer):
    def answer(self, request: Answer, answer: Answer) -> Answer:
        if "error" in answer and answer["error"]["class"] == "Sealed":
            answer["error"]["class"] = "Refused"
        return answer


class NeverUnchanged(OtherServer):
    def answer(self, request: Answer, answer: Answer) -> Answer:
        if answer.get("return") == {"outcome": "unchanged", "steps": []}:
            answer["return"]["outcome"] = "set"
        return answer


class ForgetsTheFilter(OtherServer):
    def answer(self, request: Answer, answer: Answer) -> Answer:
        if request["execute"] == "query-pmu" and "return" in answer:
            answer["return"]["filter"] = None
        return answer


SLOW = {Hangs, Naive, OneAtATime, NoEvents}
"""Those that let a client wait; the others are not timed."""


@pytest.fixture
def start(machine: Machine) -> Iterator[Callable[[OtherServer], Path]]:
    """Serve at a path that is returned."""
    with contextlib.ExitStack() as stack:

        def begin(server: OtherServer) -> Path:
            path = machine.root.parent / "other.sock"
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(path))
            listener.listen()
            thread = threading.Thread(target=server.serve, args=(listener,), daemon=True)
            thread.start()

            def end() -> None:
                with contextlib.suppress(OSError):
                    listener.shutdown(socket.SHUT_RDWR)
                thread.join(PATIENCE)

            stack.callback(end)
            return path

        yield begin


def results(ran: Ran) -> dict[str, tuple[str, str | None]]:
    assert ran.stderr == ""
    rows = json.loads(ran.stdout)["checks"]
    return {row["check"]: (row["result"], row["detail"]) for row in rows}


def with_result(found: Mapping[str, tuple[str, str | None]], result: str) -> set[str]:
    return {name for name, its in found.items() if its[0] == result}


def test_our_server_passes_and_nothing_is_changed(machine: Machine) -> None:
    vm = machine.start(FakeVm())
    masks = dict(vm.threads.masks)
    ran = machine.run("conformance", str(machine.runtime / "web1.sock"))
    assert (ran.status, ran.stderr) == (0, "")
    assert ran.lines[0].split() == ["CHECK", "RESULT", "DETAIL"]
    assert [line.split() for line in ran.lines[1:]] == [
        [name, "pass", "-"] for name in check_names(apply=False)
    ]
    assert vm.calls == []
    assert vm.threads.masks == masks
    assert not machine.servers["web1"].settings.closed.is_set()


@pytest.mark.parametrize("pmu", [A53, A72, "*a72"])
def test_our_server_passes_with_apply(machine: Machine, pmu: str) -> None:
    vm = machine.start(FakeVm())
    ran = machine.run("conformance", str(machine.runtime / "web1.sock"), "--apply", pmu, "-J")
    found = results(ran)
    assert list(found) == check_names(apply=True)
    assert set(found.values()) == {("pass", None)}
    assert ran.status == 0
    assert [name for name, _ in vm.calls] == [
        "SET_PMU",
        "SET_NR_COUNTERS",
        "FILTER",
        "FILTER",
        "FILTER",
    ]
    assert machine.servers["web1"].settings.released.is_set()


def test_our_server_passes_on_a_kernel_without_counters(machine: Machine) -> None:
    machine.start(FakeVm(has_nr_counters=False))
    ran = machine.run("conformance", str(machine.runtime / "web1.sock"), "--apply", A72, "-J")
    assert with_result(results(ran), "pass") == set(check_names(apply=True))


def test_what_cannot_be_tried_is_skipped(machine: Machine) -> None:
    vm = machine.start(FakeVm())
    machine.servers["web1"].seal("it did not wait")
    ran = machine.run("conformance", str(machine.runtime / "web1.sock"), "--apply", A72, "-J")
    found = results(ran)
    assert ran.status == 1
    real = set(check_names(apply=True)) - set(check_names(apply=False))
    assert with_result(found, "skip") == {"dry-run-order"} | real - {"apply"}
    assert found["apply"] == ("fail", "the window is not open: this wants a VM that waits")
    assert vm.calls == []


def test_pinned_threads_are_the_admins_affair(machine: Machine) -> None:
    machine.start(FakeVm(cpus="2-3"))
    ran = machine.run("conformance", str(machine.runtime / "web1.sock"), "-J")
    assert with_result(results(ran), "pass") == set(check_names(apply=False))


def test_it_has_the_formats_of_all_commands(machine: Machine) -> None:
    machine.start(FakeVm())
    path = str(machine.runtime / "web1.sock")
    ran = machine.run("conformance", path, "--format", "csv", "-o", "check,rule")
    rows = list(csv.reader(io.StringIO(ran.stdout)))
    assert rows[0] == ["CHECK", "RULE"]
    assert all(re.fullmatch(r"[A-Za-z].*[^.]\.", rule) for _, rule in rows[1:])
    verbose = machine.run("conformance", path, "-v", "--format", "name")
    assert verbose.lines == check_names(apply=False)
    assert f'{path} <- {{"execute":"query-pmu"' in verbose.stderr


DRY_RUNS = {"dry-run", "dry-run-order", "dry-run-again"}


@pytest.mark.parametrize(
    ("server", "failed", "detail"),
    [
        (OtherServer, set(), ""),
        (NoSchema, set(), ""),
        (Terse, set(), ""),
        (WrongId, {"ids"}, 'the id "a" was not repeated with a result'),
        (NoId, {"ids"}, 'the id "a" was not repeated with a result'),
        (MissingField, {"query-pmu"}, "query-pmu.vmm: is missing"),
        (TakesAnyArgument, {"unknown-argument"}, "query-commands was not refused"),
        (MuddlesTypes, {"wrong-argument"}, "pmu-apply was not refused"),
        (AppliesOnDryRun, {"dry-run"}, "query-pmu does not answer the same after a dry run"),
        (WrongOrder, {"dry-run-order"}, "the order is FILTER, SET_NR_COUNTERS, SET_PMU, affinity"),
        (OtherWords, {"dry-run-again"}, "the second answer is not the first one"),
        (
            GenericErrorOnly,
            {"unknown-command"},
            "no-such-command is not the error CommandNotFound, but GenericError\x1b[2J: "
            "there is no command 'no-such-command'",
        ),
        (NeedsNoCapabilities, {"capabilities-first"}, "query-commands was not refused"),
        (Hangs, {"query-pmu", *DRY_RUNS}, "no answer in 1.5 s"),
        (Naive, {"no-newline", "nan", "nesting", "size"}, ""),
        (OneAtATime, {"half-request"}, "no answer in 1.5 s"),
    ],
)
def test_exactly_the_rule_that_is_broken_fails(
    machine: Machine,
    start: Callable[[OtherServer], Path],
    server: type[OtherServer],
    failed: set[str],
    detail: str,
) -> None:
    argv = ["conformance", str(start(server())), "-J"]
    ran = machine.run(*argv, *(["--deadline", str(HANGING)] if server in SLOW else []))
    found = results(ran)
    assert with_result(found, "fail") == failed, found
    assert with_result(found, "skip") == ({"query-schema"} if server is NoSchema else set())
    assert ran.status == (1 if failed else 0)
    if detail:
        assert {found[name][1] for name in failed} == {detail}


@pytest.mark.parametrize(
    ("server", "failed", "skipped"),
    [
        (OtherServer, set(), set()),
        (Terse, set(), set()),
        (NoEvents, {"applied-event", "window-event"}, set()),
        (VagueRefusals, {"other-pmu", "sealed"}, set()),
        (NeverUnchanged, {"apply-again", "sealed"}, set()),
        (
            ForgetsTheFilter,
            {"apply"},
            {
                "apply-again",
                "difference",
                "other-pmu",
                "applied-event",
                "release",
                "window-event",
                "sealed",
            },
        ),
    ],
)
def test_exactly_the_rule_that_is_broken_fails_when_applied(
    machine: Machine,
    start: Callable[[OtherServer], Path],
    server: type[OtherServer],
    failed: set[str],
    skipped: set[str],
) -> None:
    argv = ["conformance", str(start(server())), "-J", "--apply", A72]
    ran = machine.run(*argv, *(["--deadline", str(HANGING)] if server in SLOW else []))
    found = results(ran)
    assert with_result(found, "fail") == failed, found
    assert with_result(found, "skip") == skipped
    assert ran.status == (1 if failed else 0)


def test_a_server_that_dies_is_told_once(
    machine: Machine, start: Callable[[OtherServer], Path]
) -> None:
    ran = machine.run("conformance", str(start(DiesOfBadJson())), "-J")
    found = results(ran)
    assert with_result(found, "fail") == {"bad-json"}
    names = check_names(apply=False)
    after = names[names.index("bad-json") + 1 :]
    gone = ("skip", "nobody listens there any more since bad-json")
    assert {found[name] for name in after} == {gone}
    assert with_result(found, "pass") == set(names) - {"bad-json", *after}


@pytest.mark.parametrize(
    ("server", "check", "detail"),
    [
        (NeverGreets, "greeting", "no answer in 0.3 s"),
        (AnswersNoCapabilities, "capabilities", "no answer in 0.3 s"),
    ],
)
def test_who_does_not_begin_is_asked_nothing_else(
    machine: Machine,
    start: Callable[[OtherServer], Path],
    server: type[OtherServer],
    check: str,
    detail: str,
) -> None:
    ran = machine.run("conformance", str(start(server())), "-J", "--deadline", "0.3")
    found = results(ran)
    assert ran.status == 1
    assert found[check] == ("fail", detail)
    assert with_result(found, "fail") == {check}
    names = check_names(apply=False)
    assert with_result(found, "skip") == set(names[names.index(check) + 1 :])


def test_a_monitor_without_pmu_commands_fails_for_them_only(
    machine: Machine, start: Callable[[OtherServer], Path]
) -> None:
    found = results(machine.run("conformance", str(start(NoPmuCommands())), "-J"))
    assert found["query-commands"] == ("fail", "there is no query-pmu, pmu-apply, pmu-release")
    assert with_result(found, "fail") == {"query-commands"}
    pmu = {"query-pmu", "missing-argument", "wrong-argument", "query-schema", *DRY_RUNS}
    assert with_result(found, "skip") == pmu


def test_what_a_server_may_leave_out_is_not_needed(
    machine: Machine, start: Callable[[OtherServer], Path]
) -> None:
    server = Terse()
    path = str(start(server))
    for words in (("set", "web1", "pmu", A72), ("release", "web1")):
        shown = json.loads(machine.run("vm", "show", "web1", "--socket", path, "-J").stdout)["vm"]
        assert (shown["state"], shown["window"]) == ("waiting", "open")
        assert shown["event_bits"] is None
        assert machine.run("vm", *words, "--socket", path).status == 0
    shown = json.loads(machine.run("vm", "show", "web1", "--socket", path, "-J").stdout)["vm"]
    assert (shown["state"], shown["window"]) == ("starting", "sealed")


class Evil(OtherServer):
    def greet(self, its: socket.socket) -> None:
        its.sendall(encode({"error": {"class": "\x1b[2J", "desc": "[red]\n\u202e"}}))


def test_hostile_text_stays_escaped(
    machine: Machine, start: Callable[[OtherServer], Path]
) -> None:
    ran = machine.run("conformance", str(start(Evil())))
    assert ran.status == 1
    assert "\\x1b[2J: [red]\\n\\u202e" in ran.stdout
    assert "\x1b" not in ran.stdout


class Floods(OtherServer):
    def answer(self, request: Answer, answer: Answer) -> Answer:
        if request.get("execute") == "query-pmu":
            for _ in range(1100):
                self.tell("PMU_REFUSED", {"class": "x", "desc": "x" * 100})
        return answer


def test_a_flood_of_events_is_not_kept(
    machine: Machine, start: Callable[[OtherServer], Path]
) -> None:
    found = results(machine.run("conformance", str(start(Floods())), "-J"))
    assert with_result(found, "fail") == {"query-pmu", *DRY_RUNS}
    assert found["query-pmu"][1] == "nothing but events comes"


def test_where_nobody_listens_nothing_is_checked(machine: Machine) -> None:
    machine.runtime.mkdir()
    path = machine.runtime / "web1.sock"
    ran = machine.run("conformance", str(path))
    assert (ran.status, ran.stdout) == (4, "")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    ran = machine.run("conformance", str(path))
    assert (ran.status, ran.stdout) == (3, "")
    assert "Connection refused" in ran.stderr
    ran = machine.run("conformance", str(machine.runtime))
    assert (ran.status, ran.stdout) == (2, "")
    assert "not a socket" in ran.stderr
    ran = machine.run("conformance", str(path), "--apply", "nothing")
    assert (ran.status, ran.stdout) == (4, "")


def test_the_page_lists_the_checks() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    names = [line[7:] for line in lines if re.fullmatch(r"\.It Cm [a-z0-9-]+", line)]
    assert names == check_names(apply=True)
    apply_from = names.index(check_names(apply=False)[-1]) + 1
    text = "\n".join(lines)
    assert text.index(".Ss With \\-\\-apply") < text.index(f".It Cm {names[apply_from]}")
    assert text.index(".Ss With \\-\\-apply") > text.index(f".It Cm {names[apply_from - 1]}")
