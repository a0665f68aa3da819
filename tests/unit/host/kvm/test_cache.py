# SPDX-License-Identifier: Apache-2.0
"""What KVM does is probed once a boot, and a cache is believed no further than its owner."""

import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmuctl.host.kvm.cache import CAPS, read_kvm_caps
from pmuctl.host.runtime_dirs import PROBE_CACHE
from pmuctl.host.sysfs import Sysfs
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.kvm_caps import DefaultPmu, KvmCaps
from pmuctl.model.pmu import Pmu
from pmuctl.value import replace
from tests.fakes.strategies import QUICKLY
from tests.skips import skip

FOUND = KvmCaps(
    has_vpmu=True,
    attributes=frozenset({0, 1, 2, 3}),
    counters={8: 6, 9: 4},
    event_bits=16,
    event_bits_of={9: 10},
    default=DefaultPmu.ONE,
    default_pmu=8,
    has_strict=False,
    cpus={8: CpuSet.parse("0-1"), 9: CpuSet.parse("2-3")},
)
OTHER = replace(FOUND, counters={8: 1, 9: 1})


class Prober:
    """Says what it was told to, and counts how often it was asked."""

    def __init__(self, answer: KvmCaps = FOUND) -> None:
        self.answer = answer
        self.asked = 0

    def __call__(self, pmus: Sequence[Pmu]) -> KvmCaps:
        self.asked += 1
        return self.answer


def pmu(number: int) -> Pmu:
    return Pmu(
        name=f"pmu{number}",
        path="",
        type=number,
        cpus=None,
        online=None,
        cores=(),
        events={},
        formats={},
        caps={},
    )


class Machine:
    """A host with a boot id, and two runtime directories that belong to who runs this."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.boot_id = root / "proc/sys/kernel/random/boot_id"
        self.boot_id.parent.mkdir(parents=True)
        self.boot_id.write_text("one\n")
        self.run = root / "run/pmuctl"
        self.run.parent.mkdir()
        self.cache = self.run / PROBE_CACHE
        self.types = [8, 9]

    def read(self, prober: Prober, *, uid: int | None = None, runtime: str = "") -> KvmCaps:
        return read_kvm_caps(
            Sysfs(self.root),
            [pmu(number) for number in self.types],
            {"XDG_RUNTIME_DIR": runtime},
            run=self.run,
            uid=os.geteuid() if uid is None else uid,
            probe=prober,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    its = Machine(tmp_path)
    if os.geteuid():
        skip("root's directory is root's", runs="as root")
    return its


def test_a_boot_is_probed_once(machine: Machine) -> None:
    prober = Prober()
    assert machine.read(prober) == machine.read(prober) == FOUND
    assert prober.asked == 1
    assert stat.S_IMODE(machine.cache.stat().st_mode) == 0o644
    assert stat.S_IMODE(machine.run.stat().st_mode) == 0o755
    assert [path.name for path in machine.run.iterdir()] == [PROBE_CACHE]


def test_another_boot_or_other_pmus_are_probed_anew(machine: Machine) -> None:
    prober = Prober()
    machine.read(prober)
    machine.boot_id.write_text("two\n")
    machine.read(prober)
    assert prober.asked == 2
    machine.types = [8, 9, 10]
    machine.read(prober)
    assert prober.asked == 3
    machine.read(prober)
    assert prober.asked == 3


def test_without_a_boot_id_nothing_is_kept(machine: Machine) -> None:
    machine.boot_id.unlink()
    prober = Prober()
    assert machine.read(prober) == machine.read(prober) == FOUND
    assert prober.asked == 2
    assert not machine.run.exists()


@pytest.mark.parametrize(
    "answer",
    [
        KvmCaps(has_vpmu=None),
        replace(FOUND, default=None, default_pmu=None),
        replace(FOUND, counters={8: 6, 9: None}),
    ],
)
def test_what_could_not_be_found_out_is_tried_again(machine: Machine, answer: KvmCaps) -> None:
    """/dev/kvm may be there next time, or the caller be free to go to every CPU."""
    assert machine.read(Prober(answer)) == answer
    assert machine.read(Prober(OTHER)) == OTHER
    assert machine.read(Prober()) == OTHER


def test_a_host_without_vpmu_is_known_to_have_none(machine: Machine) -> None:
    machine.read(Prober(KvmCaps(has_vpmu=False)))
    assert machine.read(Prober()) == KvmCaps(has_vpmu=False)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"key": 1}', "\udcff", "[" * 100000])
def test_a_torn_cache_is_made_anew(machine: Machine, content: str) -> None:
    machine.read(Prober(OTHER))
    machine.cache.write_text(content, errors="surrogateescape")
    assert machine.read(Prober()) == FOUND
    assert machine.read(Prober(OTHER)) == FOUND


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("has_vpmu", 1),
        ("has_strict", 0),
        ("has_strict", None),
        ("attributes", [0, True]),
        ("counters", {"8": True}),
        ("counters", {"8": 1 << 31}),
        ("counters", {"٣x": 1}),
        ("counters", {"9" * 5000: 1}),
        ("event_bits_of", {"8": None}),
        ("default", "three"),
        ("cpus", {"8": "0-70000"}),
        ("cpus", {"8": "\ud800"}),
    ],
)
def test_a_field_that_is_nearly_right_is_not_believed(field: str, value: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the texts are several
        CAPS.read(CAPS.format(FOUND) | {field: value}, "probed")


@pytest.mark.parametrize("field", CAPS.format(FOUND))
@pytest.mark.parametrize("value", ["x", -1, {"a": 1}, ["a"], 1.5])
def test_a_field_of_another_kind_is_not_believed(field: str, value: object) -> None:
    document = CAPS.format(FOUND) | {field: value}
    with pytest.raises(ValueError):  # noqa: PT011 - the texts are several
        CAPS.read(document, "probed")


def test_a_truncated_cache_is_made_anew(machine: Machine) -> None:
    machine.read(Prober(OTHER))
    text = machine.cache.read_text()
    machine.cache.write_text(text[: len(text) // 2])
    assert machine.read(Prober()) == FOUND


def test_a_link_is_not_followed(machine: Machine) -> None:
    machine.read(Prober(OTHER))
    elsewhere = machine.root / "elsewhere"
    machine.cache.rename(elsewhere)
    machine.cache.symlink_to(elsewhere)
    before = elsewhere.read_text()
    assert machine.read(Prober()) == FOUND
    assert elsewhere.read_text() == before
    assert not machine.cache.is_symlink()


def test_a_linked_directory_is_neither_read_nor_written(machine: Machine) -> None:
    machine.read(Prober(OTHER))
    elsewhere = machine.root / "elsewhere"
    machine.run.rename(elsewhere)
    machine.run.symlink_to(elsewhere)
    before = (elsewhere / PROBE_CACHE).read_text()
    assert machine.read(Prober()) == FOUND
    assert (elsewhere / PROBE_CACHE).read_text() == before


def test_a_pipe_holds_nobody_up(machine: Machine) -> None:
    machine.run.mkdir()
    os.mkfifo(machine.cache)
    assert machine.read(Prober()) == FOUND


def test_the_cache_of_another_user_is_not_believed(machine: Machine) -> None:
    machine.read(Prober(OTHER))
    os.chown(machine.cache, 4321, 0)
    assert machine.read(Prober()) == FOUND
    assert machine.cache.stat().st_uid == 0


def test_a_directory_of_another_user_is_neither_read_nor_written(machine: Machine) -> None:
    machine.read(Prober(OTHER))
    os.chown(machine.run, 4321, 0)
    assert machine.read(Prober()) == FOUND
    assert CAPS.read(json.loads(machine.cache.read_text())["probed"], "probed") == OTHER


@pytest.mark.parametrize("what", ["file", "directory"])
def test_what_others_may_write_to_is_not_believed(machine: Machine, what: str) -> None:
    machine.read(Prober(OTHER))
    (machine.cache if what == "file" else machine.run).chmod(0o777)
    assert machine.read(Prober()) == FOUND


def test_a_user_reads_what_root_found_and_keeps_their_own(machine: Machine) -> None:
    runtime = machine.root / "user"
    runtime.mkdir()
    os.chown(runtime, 4321, 4321)
    user = {"uid": 4321, "runtime": str(runtime)}
    machine.read(Prober(OTHER))
    assert machine.read(Prober(), **user) == OTHER  # type: ignore[arg-type]
    machine.cache.unlink()
    # root runs this, so what it makes here is believed too
    assert machine.read(Prober(), **user) == FOUND  # type: ignore[arg-type]
    assert not machine.cache.exists()
    assert (runtime / "pmuctl" / PROBE_CACHE).exists()
    assert machine.read(Prober(OTHER), **user) == FOUND  # type: ignore[arg-type]


def test_no_directory_no_cache_no_error(machine: Machine) -> None:
    machine.run.parent.rmdir()
    assert machine.read(Prober()) == FOUND
    machine.run.parent.write_text("in the way")
    assert machine.read(Prober()) == FOUND
    assert machine.read(Prober(), uid=4321, runtime="relative") == FOUND
    assert not Path("relative").exists()


NUMBERS = st.integers(0, (1 << 31) - 1)
CAPABILITIES = st.builds(
    KvmCaps,
    has_vpmu=st.none() | st.booleans(),
    attributes=st.frozensets(NUMBERS, max_size=5),
    counters=st.dictionaries(NUMBERS, st.none() | NUMBERS, max_size=3),
    event_bits=st.none() | NUMBERS,
    event_bits_of=st.dictionaries(NUMBERS, NUMBERS, max_size=3),
    default=st.none() | st.sampled_from(DefaultPmu),
    default_pmu=st.none() | NUMBERS,
    has_strict=st.booleans(),
    cpus=st.dictionaries(
        NUMBERS, st.frozensets(st.integers(0, 0xFFFF), max_size=5).map(CpuSet.of), max_size=3
    ),
)


@QUICKLY
@given(CAPABILITIES)
def test_text_and_value_are_inverse(probed: KvmCaps) -> None:
    assert CAPS.read(json.loads(json.dumps(CAPS.format(probed))), "probed") == probed


def test_the_text_is_that_of_every_version() -> None:
    assert json.dumps(CAPS.format(FOUND)) == (
        '{"has_vpmu": true, "attributes": [0, 1, 2, 3], "counters": {"8": 6, "9": 4}, '
        '"event_bits": 16, "event_bits_of": {"9": 10}, "default": "one", "default_pmu": 8, '
        '"has_strict": false, "cpus": {"8": "0-1", "9": "2-3"}}'
    )
