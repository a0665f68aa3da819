# SPDX-License-Identifier: Apache-2.0
"""What somebody calls a VM, and which VM that is."""

import pytest

from pmuctl.errors import UsageError
from pmuctl.model.vm import Vm, VmState
from pmuctl.model.vm_ref import ByName, ByPid, ByUuid, ProcessId, VmId, VmRef, parse_ref

ID = "6695eb01-f6a4-8304-79aa-97f2502e193f"
VM = Vm(
    name="web1",
    socket=None,
    state=VmState.RUNNING,
    uuid=ID,
    id=VmId(ProcessId(4121, 100), 9),
)


@pytest.mark.parametrize(
    ("text", "ref", "is_its"),
    [
        ("web1", ByName("web1"), True),
        ("4121", ByName("4121"), False),
        (f"uuid/{ID.upper()}", ByUuid(ID.upper()), True),
        (ID, ByName(ID), False),
        ("pid/4121", ByPid(4121), True),
        ("pid/4121/9", ByPid(4121, 9), True),
        ("pid/4121/10", ByPid(4121, 10), False),
        ("pid/9", ByPid(9), False),
    ],
)
def test_what_is_meant(text: str, ref: VmRef, *, is_its: bool) -> None:
    assert parse_ref(text) == ref
    assert str(ref) == text
    assert VM.is_meant(ref) is is_its


@pytest.mark.parametrize(
    ("text", "form"),
    [
        *((text, "a VM is NAME, uuid/UUID or pid/PID") for text in ("pid/", "uuid/", "a/b", "/")),
        *((text, "a VM is NAME, uuid/UUID or pid/PID") for text in ("PID/1", "UUID/x")),
        *((text, "write it as pid/4121") for text in ("pid/x", "pid/1/", "pid/1/2/3", "pid/-1")),
        *((text, "write it as pid/4121") for text in ("pid/01", "pid/12345678901")),
        *((f"uuid/{text}", f"write it as uuid/{ID}") for text in ("xx", ID[:-1], f"{ID}/9")),
    ],
)
def test_what_is_no_vm(text: str, form: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_ref(text)
    assert form in (raised.value.why, raised.value.fix)


def test_one_of_which_the_descriptor_is_not_known_may_be_any_of_its_process() -> None:
    first, second = VmId(ProcessId(1, 2), 9), VmId(ProcessId(1, 2), 10)
    assert first.may_be(first)
    assert not first.may_be(second)
    assert VmId(ProcessId(1, 2)).may_be(first)
    assert second.may_be(VmId(ProcessId(1, 2)))
    assert not first.may_be(VmId(ProcessId(1, 3), 9))
