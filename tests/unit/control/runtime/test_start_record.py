# SPDX-License-Identifier: Apache-2.0
"""The record of a VM under a supervisor: text and value, and what is not believed of one."""

import copy
import json
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmuctl.control.runtime.sockets import record_path
from pmuctl.control.runtime.start_record import (
    CHANGES_KEPT,
    COMMAND_CHARS,
    FORM,
    SIZE_LIMIT,
    STEPS_KEPT,
    TEXT_CHARS,
    Problem,
    Record,
    read_record,
    remove_record,
    write_record,
)
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.event import EventSet
from pmuctl.model.event_filter import Action, EventFilter
from pmuctl.model.settings_change import SettingsChange
from pmuctl.value import replace
from tests.fakes.strategies import QUICKLY

ME = {os.geteuid()}
FULL = Record(
    name="web1",
    pid=4121,
    start=98765,
    supervisor=4100,
    command=("qemu-system-aarch64", "-append", "a b\n", ""),
    began=1_700_000_000,
    pmu=(11, "armv8_cortex_a72"),
    filter=EventFilter(Action.DENY, EventSet.of_ranges([(0x11, 1), (0x8, 2)])),
    derived=(10, "armv8_cortex_a53"),
    cpus=CpuSet.parse("2-3,8"),
    applied=(
        SettingsChange(1_700_000_001, "pmuctl run", ("SET_PMU", "FILTER")),
        SettingsChange(1_700_000_099, "uid 0, pid 9", ()),
    ),
    problem=Problem(message="it was refused", why="because", fix=None, status=9),
    stops=78,
)
LEAST = Record(name="a", pid=1, start=0, supervisor=1, command=(), began=0)


def parse(document: object) -> Record:
    record: Record = FORM.read(document, "record")
    return record


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run/web1.sock.json"


def test_its_place_is_beside_the_socket() -> None:
    assert record_path(Path("/run/pmuctl/web1.sock")) == Path("/run/pmuctl/web1.sock.json")
    assert record_path(Path("/run/pmuctl/a.b.sock")) == Path("/run/pmuctl/a.b.sock.json")
    assert record_path(Path("/tmp/other")) == Path("/tmp/other.json")


@pytest.mark.parametrize("record", [FULL, LEAST, replace(FULL, cpus=CpuSet())])
def test_what_was_written_is_read(path: Path, record: Record) -> None:
    assert read_record(path, ME) is None
    write_record(path, record)
    assert read_record(path, ME) == record
    assert os.listdir(path.parent) == ["web1.sock.json"]
    remove_record(path)
    assert read_record(path, ME) is None
    remove_record(path)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
RANGES = st.lists(st.tuples(st.integers(0, 0xFF00), st.integers(1, 0xFF)), max_size=5)
RECORDS = st.builds(
    Record,
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", fullmatch=True),
    pid=st.integers(1, (1 << 31) - 1),
    start=st.integers(0, (1 << 63) - 1),
    supervisor=st.integers(1, (1 << 31) - 1),
    command=st.lists(TEXTS, max_size=5).map(tuple),
    began=st.integers(0, 253402300799),
    pmu=st.none() | st.tuples(st.integers(0, (1 << 31) - 1), TEXTS),
    derived=st.none() | st.tuples(st.integers(0, (1 << 31) - 1), TEXTS),
    filter=st.none()
    | st.builds(EventFilter, st.sampled_from(Action), RANGES.map(EventSet.of_ranges)),
    cpus=st.none() | st.frozensets(st.integers(0, 0xFFFF), max_size=9).map(CpuSet.of),
    applied=st.lists(
        st.builds(
            SettingsChange, st.integers(0, 1 << 33), TEXTS, st.lists(TEXTS, max_size=3).map(tuple)
        ),
        max_size=4,
    ).map(tuple),
    problem=st.none()
    | st.builds(
        Problem,
        message=TEXTS,
        why=st.none() | TEXTS,
        fix=st.none() | TEXTS,
        status=st.integers(0, 255),
    ),
    stops=st.none() | st.integers(0, 1 << 31),
)


@QUICKLY
@given(RECORDS)
def test_text_and_value_are_inverse(record: Record) -> None:
    assert parse(json.loads(json.dumps(FORM.format(record)))) == record


def test_the_text_is_that_of_every_version() -> None:
    assert json.dumps(FORM.format(FULL)) == (
        '{"format": 1, "name": "web1", "pid": 4121, "start": 98765, "supervisor": 4100, '
        '"command": ["qemu-system-aarch64", "-append", "a b\\n", ""], "began": 1700000000, '
        '"pmu": {"type": 11, "name": "armv8_cortex_a72"}, '
        '"derived": {"type": 10, "name": "armv8_cortex_a53"}, '
        '"filter": {"default": "deny", "except": [[8, 2], [17, 1]]}, "cpus": "2-3,8", '
        '"applied": [{"when": 1700000001, "by": "pmuctl run", "steps": ["SET_PMU", "FILTER"]}, '
        '{"when": 1700000099, "by": "uid 0, pid 9", "steps": []}], '
        '"problem": {"message": "it was refused", "why": "because", "now": null, '
        '"fix": null, "status": 9}, "stops": 78}'
    )


def test_one_of_before_kvms_choice_was_kept_is_read() -> None:
    older = FORM.format(FULL)
    del older["derived"]
    assert parse(older) == replace(FULL, derived=None)


def test_one_of_before_a_problem_had_a_state_is_read() -> None:
    older = FORM.format(FULL)
    del older["problem"]["now"]
    assert parse(older) == FULL


def test_members_of_a_later_version_are_let_through() -> None:
    assert parse(FORM.format(FULL) | {"later": [1]}) == FULL


def wrong() -> Iterator[tuple[str, object]]:
    """Each member of a record gone, and of every other kind or range."""
    good: Any = json.loads(json.dumps(FORM.format(FULL)))
    odd: Sequence[object] = (
        None,
        True,
        -1,
        1.5,
        1 << 64,
        "x",
        "\ud800",
        [],
        {},
        [1],
        {"a": 1},
        "../x",
        10**30,
    )
    for key in good:
        yield key, {name: its for name, its in good.items() if name != key}
        for value in odd:
            yield key, good | {key: value}
    for key in ("pmu", "derived", "filter", "problem"):
        for member in good[key]:
            for value in odd:
                yield f"{key}.{member}", good | {key: good[key] | {member: value}}
        yield key, good | {key: good[key] | {"more": 1}}
    for member in good["applied"][0]:
        for value in odd:
            bent = copy.deepcopy(good)
            bent["applied"][0][member] = value
            yield f"applied.{member}", bent
    yield "filter past the space", good | {"filter": {"default": "deny", "except": [[0xFFFF, 9]]}}
    yield "cpus", good | {"cpus": "0-70000"}
    yield "began", good | {"began": 253402300800}
    yield "command", good | {"command": ["x"] * 5000}
    yield "applied", good | {"applied": good["applied"] * 50}
    yield "format", good | {"format": 2}
    yield from (("all", its) for its in (*odd, [good]))


def test_a_member_of_another_kind_is_not_believed(path: Path) -> None:
    refused = 0
    for where, document in wrong():
        try:
            record = parse(document)
        except ValueError:
            refused += 1
            continue
        # what is taken is a record all the same
        assert parse(FORM.format(record)) == record, where
    assert refused > 200


def test_any_bytes_are_a_record_or_none(path: Path) -> None:
    rng = random.Random(1)
    write_record(path, FULL)
    good = path.read_bytes()
    splinters = [b'"', b"{", b"[", b"]", b"-", b"9" * 30, b"null", b"\xff", b"\\ud800", b"true"]
    for _ in range(3000):
        data = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(data))
            data[at : at + rng.randrange(8)] = rng.choice(splinters)
        path.write_bytes(data)
        record = read_record(path, ME)
        assert record is None or parse(FORM.format(record)) == record


@pytest.mark.parametrize("kind", ["link", "fifo", "huge", "mode", "directory's mode", "owner"])
def test_a_record_that_another_may_have_made_is_none(path: Path, kind: str) -> None:
    write_record(path, FULL)
    owners = ME
    match kind:
        case "link":
            path.rename(path.with_name("other"))
            path.symlink_to("other")
        case "fifo":
            path.unlink()
            os.mkfifo(path)
        case "huge":
            path.write_bytes(path.read_bytes() + b" " * SIZE_LIMIT)
        case "mode":
            path.chmod(0o666)
        case "directory's mode":
            path.parent.chmod(0o777)
        case _:
            owners = {os.geteuid() + 1}
    assert read_record(path, owners) is None


def test_a_link_in_the_way_is_replaced_and_not_followed(path: Path) -> None:
    path.parent.mkdir()
    precious = path.with_name("precious")
    precious.write_text("x")
    path.symlink_to(precious)
    write_record(path, LEAST)
    assert read_record(path, ME) == LEAST
    assert precious.read_text() == "x"


def test_where_it_cannot_be_written_the_old_one_stays(path: Path) -> None:
    write_record(path, LEAST)
    path.parent.chmod(0o777)
    with pytest.raises(PermissionError):
        write_record(path, FULL)
    path.parent.chmod(0o755)
    assert read_record(path, ME) == LEAST
    assert os.listdir(path.parent) == ["web1.sock.json"]


def test_what_is_very_long_is_cut(path: Path) -> None:
    change = SettingsChange(1, "b" * 2000, tuple(f"step {n}" for n in range(100)))
    long = replace(
        FULL,
        command=("vmm", "x" * (COMMAND_CHARS + 9), "more"),
        applied=tuple(change._replace(when=when) for when in range(100)),
        problem=Problem(message="m" * 2000, why="w" * 2000, fix="f" * 2000, status=125),
    )
    write_record(path, long)
    record = read_record(path, ME)
    assert record is not None
    assert record.command[0] == "vmm"
    assert record.command[1].endswith("x…")
    assert len(record.command) == 2
    assert [its.when for its in record.applied] == list(range(100 - CHANGES_KEPT, 100))
    assert record.applied[0].steps[:2] == ("step 0", "step 1")
    assert record.applied[0].steps[-1] == f"… and {100 - STEPS_KEPT} more"
    assert record.problem is not None
    assert record.problem.message == "m" * (TEXT_CHARS - 1) + "…"
    many = replace(FULL, command=("",) * 100_000)
    write_record(path, many)
    assert len(getattr(read_record(path, ME), "command", ())) == 4096


def test_a_record_of_the_largest_filter_can_be_read(path: Path) -> None:
    every_other = EventFilter(Action.DENY, EventSet.of_ranges((n, 1) for n in range(0, 65536, 2)))
    record = replace(FULL, filter=every_other, cpus=CpuSet.of(range(0, 65536, 2)))
    write_record(path, record)
    assert read_record(path, ME) == record


def test_an_argument_that_is_not_utf8_is_told_as_an_escape(path: Path) -> None:
    write_record(path, replace(LEAST, command=("vmm", "a\udcffb")))
    assert getattr(read_record(path, ME), "command", None) == ("vmm", "a\\udcffb")
