# SPDX-License-Identifier: Apache-2.0
"""What other users and false VMMs can make of root's commands: words on a screen, no more."""

import json
import os
import signal
from pathlib import Path

import pytest

from pmuctl.control.runtime.sockets import ControlSocket
from pmuctl.errors import UsageError
from pmuctl.manage.inventory.lookup import choose_candidate
from pmuctl.model.vm_ref import ByName, ByPid, parse_ref
from tests.cli.conftest import Machine
from tests.fakes.peers import EVIL, GREETING, RawClient, answering, bad_server, query

A72 = "armv8_cortex_a72"


@pytest.mark.parametrize("options", [(), ("--dry-run",), ("-v",), ("-J",), ("--format", "csv")])
def test_no_word_of_a_vmm_steers_the_terminal(machine: Machine, options: tuple[str, ...]) -> None:
    machine.runtime.mkdir()
    steps = [{"attribute": EVIL, "words": EVIL, "outcome": "done"}]
    answers = {
        "query-pmu": query(vmm=EVIL, by=EVIL, attributes=[EVIL]),
        "pmu-apply": {"outcome": "set", "steps": steps},
    }
    with bad_server(machine.runtime / "web1.sock", answering(answers)):
        told = machine.run("vm", "set", "web1", "pmu", A72, *options)
    assert told.status == 0
    for text in (told.stdout, told.stderr):
        assert "\x1b" not in text
        assert "\nweb9" not in text
        assert "\u202e" not in text


def test_no_word_of_a_refusal_steers_the_terminal(machine: Machine) -> None:
    machine.runtime.mkdir()
    data = {"why": EVIL, "errno": EVIL, "applied": [{"words": EVIL}]}
    error = {"error": {"class": "Refused", "desc": EVIL, "data": data}}
    answers = {"query-pmu": query(), "pmu-apply": error}
    with bad_server(machine.runtime / "web1.sock", answering(answers)):
        told = machine.run("vm", "set", "web1", "pmu", A72)
    assert told.status == 9
    assert "\x1b" not in told.stderr
    assert len(told.stderr.splitlines()) <= 4


@pytest.mark.parametrize("error", [{"class": "GenericError", "desc": "x"}, {"class": "New"}, {}])
def test_a_failure_without_an_account_is_an_unknown_outcome(
    machine: Machine, error: dict[str, str]
) -> None:
    machine.runtime.mkdir()
    answers = {"query-pmu": query(), "pmu-apply": {"error": error}}
    with bad_server(machine.runtime / "web1.sock", answering(answers)):
        told = machine.run("vm", "set", "web1", "pmu", A72)
    assert told.status == 10
    assert "nothing was changed" not in told.stderr
    assert "pmuctl vm show web1" in told.stderr


@pytest.mark.usefixtures("with_signals")
def test_a_signal_while_a_change_is_unanswered_says_so(machine: Machine) -> None:
    machine.runtime.mkdir()

    def serve(client: RawClient) -> None:
        client.send(GREETING)
        for answer in ({}, query()):
            request = client.read()
            client.send(json.dumps({"return": answer, "id": request["id"]}).encode())
        client.read()
        os.kill(os.getpid(), signal.SIGTERM)
        assert client.is_closed()

    with bad_server(machine.runtime / "web1.sock", serve):
        told = machine.run("vm", "release", "web1")
    assert told.status == 143
    assert "pmu-release was sent, its outcome is not known" in told.stderr


def test_a_vm_is_named_by_its_own_answer_on_the_connection_that_changes_it(
    machine: Machine,
) -> None:
    machine.runtime.mkdir()
    done = {"outcome": "set", "steps": []}
    for name, status in (("web1", 0), ("other", 4)):
        path = machine.runtime / f"socket-of-{name}"
        with bad_server(path, answering({"query-pmu": query(name), "pmu-apply": done})):
            ran = machine.run("vm", "set", "web1", "pmu", A72, "--socket", str(path))
        assert ran.status == status
    assert "is named other" in ran.stderr


def test_a_path_that_is_no_socket_is_a_usage_error(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    for path in (tmp_path / "file", tmp_path, Path("/dev/null")):
        ran = machine.run("vm", "show", "web1", "--socket", str(path))
        assert ran.status == 2
        assert "not a socket" in ran.stderr
        assert "remove" not in ran.stderr


def entry(owner: int | None, path: str = "/a") -> ControlSocket:
    return ControlSocket(name="web1", path=Path(path), speaks_for=owner)


def test_ones_own_vm_goes_before_another_users() -> None:
    for strictly in (False, True):
        found = [entry(1000, "/u"), entry(None, "/r")]
        assert choose_candidate(found, ByName("web1"), uid=0, strictly=strictly) == found[1]


def test_another_users_vm_may_be_looked_at_but_not_changed_by_its_name() -> None:
    found = [entry(1000)]
    assert choose_candidate(found, ByName("web1"), uid=0, strictly=False) == found[0]
    assert choose_candidate(found, ByPid(7), uid=0, strictly=True) == found[0]
    for name in ("web1", "uuid/6695eb01-f6a4-8304-79aa-97f2502e193f"):
        with pytest.raises(UsageError, match="another user's VM") as error:
            choose_candidate(found, parse_ref(name), uid=0, strictly=True)
        assert "pid/N" in (error.value.fix or "")
    assert choose_candidate(found, ByName("web1"), uid=1000, strictly=True) == found[0]


def test_two_of_the_same_standing_are_ambiguous() -> None:
    with pytest.raises(UsageError, match="two VMs hold this name"):
        choose_candidate(
            [entry(None, "/a"), entry(None, "/b")], ByName("web1"), uid=0, strictly=False
        )
    with pytest.raises(UsageError, match="two VMs hold this name"):
        choose_candidate([entry(1, "/a"), entry(2, "/b")], ByName("web1"), uid=0, strictly=False)
