# SPDX-License-Identifier: Apache-2.0
"""A test that fails is shown with what it asked of its lab, and what was there."""

from collections.abc import Iterator

import pytest

from tests.lab.machine import Lab
from tests.lab.vms import ReferenceVm, reference_vm

RECORD = "/run/pmuctl/journal.sock.json"


@pytest.fixture
def record(lab_newest: Lab) -> Iterator[str]:
    """The path of a record."""
    lab_newest.write_file(RECORD, b'{"what": "supervisors keep"}')
    yield RECORD
    lab_newest.run(["rm", RECORD], check=True)


def fail_with(vm: ReferenceVm) -> None:
    """Ask something, and fail."""
    assert vm.pmuctl("show").status == 0
    raise ZeroDivisionError


def test_what_was_asked_and_what_was_there_is_kept(lab_newest: Lab, record: str) -> None:
    """Taken before the VM of the failing test was ended, which is gone in the end."""
    lab_newest.run(["sh", "-c", "echo 'lab: a word in the log' >/dev/kmsg"], check=True)
    with pytest.raises(ZeroDivisionError), reference_vm(lab_newest, name="journal") as vm:
        fail_with(vm)
    text = lab_newest.journal.text()
    asked, _, rest = text.partition("--- before journal was ended:\n")
    before, _, now = rest.partition("--- now:\n")
    assert "--- pmuctl vm show journal (status 0)\nNAME" in asked
    assert "--- python3 -m tests.lab.vmm --name journal (status 0)" in asked
    for state in (before, now):
        assert f"{record}:\n" in state
        assert "supervisors keep" in state
        assert "lab: a word in the log" in state
    assert f"/proc/{vm.pid}/task/{vm.tids[0]}/status:TracerPid:" in before
    assert f"/proc/{vm.pid}/" not in now


def test_each_test_begins_anew(lab_newest: Lab) -> None:
    assert not lab_newest.journal.is_used
    lab_newest.run(["echo", "x" * 5000])
    text = lab_newest.journal.text()
    assert text.startswith("--- echo ")
    assert "(status 0)\n…" + "x" * 3999 + "\n--- now:" in text
