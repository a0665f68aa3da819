# SPDX-License-Identifier: Apache-2.0
"""What pmuctl remembers of where it put vCPU threads: for one process, by whom it believes."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from pmuctl.control.runtime.affinity_record import (
    AffinityRecord,
    last_affinity_record,
    read_affinity_record,
    write_affinity_record,
    write_unmanaged,
)
from pmuctl.errors import RefusedError
from pmuctl.host import json_store
from pmuctl.host.procfs import Procfs
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.vm_ref import ProcessId, VmId
from tests.fakes.vmm import fake_proc
from tests.skips import only_root

PID, START = 4121, 77
PROCESS = ProcessId(PID, START)
VM = VmId(PROCESS, 9)
MASKS = {4122: CpuSet.parse("2"), 4123: CpuSet.parse("2-3")}
UID = os.geteuid()


@pytest.fixture
def environ(tmp_path: Path) -> Mapping[str, str]:
    return {"PMUCTL_RUNTIME_DIR": str(tmp_path / "run")}


@pytest.fixture
def procs(tmp_path: Path) -> Procfs:
    return Procfs(fake_proc(tmp_path / "proc", PID, start=START))


def record(environ: Mapping[str, str], pid: int = PID) -> Path:
    return Path(environ["PMUCTL_RUNTIME_DIR"]) / f".placed-{pid}.json"


def write(
    environ: Mapping[str, str], procs: Procfs, masks: Mapping[int, CpuSet] = MASKS, uid: int = UID
) -> None:
    write_affinity_record(environ, uid, VM, masks, procs, owner=UID)


def read(environ: Mapping[str, str], start: int = START) -> AffinityRecord:
    return read_affinity_record(environ, UID, ProcessId(PID, start), owner=UID)


def leave(environ: Mapping[str, str], procs: Procfs, vm: VmId, *tids: int) -> None:
    write_unmanaged(environ, UID, vm, tids, procs, owner=UID)


def test_what_is_written_is_read_and_added_to(environ: Mapping[str, str], procs: Procfs) -> None:
    write(environ, procs)
    assert read(environ) == AffinityRecord(cpus=MASKS)
    write(environ, procs, {4123: CpuSet.parse("3")})
    assert read(environ) == AffinityRecord(cpus={**MASKS, 4123: CpuSet.parse("3")})


def test_the_text_is_that_of_every_version(environ: Mapping[str, str], procs: Procfs) -> None:
    write(environ, procs, {4123: CpuSet.parse("2-3"), 4122: CpuSet.parse("2")})
    leave(environ, procs, VmId(PROCESS, 12))
    leave(environ, procs, VmId(PROCESS))
    document = json.loads(record(environ).read_text())
    assert list(document) == ["format", "start", "when", "left-alone", "threads"]
    assert document.pop("when") > 0
    assert json.dumps(document) == (
        '{"format": 2, "start": 77, "left-alone": [-1, 12], '
        '"threads": [{"tid": 4122, "cpus": "2"}, {"tid": 4123, "cpus": "2-3"}]}'
    )


def test_what_is_left_alone_is_so_until_it_is_placed(
    environ: Mapping[str, str], procs: Procfs
) -> None:
    """Of two VMs of a process each for itself."""
    second = VmId(PROCESS, 12)
    write(environ, procs)
    leave(environ, procs, VM, *MASKS)
    its = read(environ)
    assert (its.cpus, its.leaves(VM), its.leaves(second)) == ({}, True, False)
    before = record(environ).stat().st_ino
    leave(environ, procs, VM, *MASKS)
    assert record(environ).stat().st_ino == before
    write_affinity_record(environ, UID, second, {4130: MASKS[4122]}, procs, owner=UID)
    assert read(environ).leaves(VM)
    write(environ, procs, {})
    assert read(environ) == AffinityRecord(cpus={4130: MASKS[4122]})


def test_where_it_is_not_known_which_vm_it_is_all_are(
    environ: Mapping[str, str], procs: Procfs
) -> None:
    leave(environ, procs, VmId(PROCESS))
    assert read(environ).leaves(VM)
    assert read(environ).leaves(VmId(PROCESS))
    write(environ, procs, {})
    assert read(environ) == AffinityRecord()


def test_what_holds_already_is_not_written_anew(environ: Mapping[str, str], procs: Procfs) -> None:
    write(environ, procs)
    before = record(environ).stat().st_ino
    write(environ, procs, {4122: MASKS[4122]})
    assert record(environ).stat().st_ino == before


def test_of_another_process_with_the_id_nothing_is_known(
    environ: Mapping[str, str], procs: Procfs
) -> None:
    write(environ, procs)
    assert read(environ, START + 1) == AffinityRecord()


@only_root("only root may write as several users")
def test_the_last_word_is_roots_or_the_owners(tmp_path: Path, procs: Procfs) -> None:
    """A user's `affinity none` holds for root's `align --all`, too, until root places it."""
    user, other = 1001, 1002
    run, users = tmp_path / "root", tmp_path / "user"
    for uid in (user, other):
        directory = users / str(uid) / "pmuctl"
        directory.mkdir(parents=True)
        os.chown(directory, uid, uid)

    def dirs(uid: int) -> list[tuple[Path, int | None]]:
        own = [(users / str(its) / "pmuctl", its) for its in (user, other)]
        return [(run, None), *(pair for pair in own if uid in (0, pair[1]))]

    def say(uid: int, when: int, **its: object) -> None:
        document = {"format": 2, "start": START, "when": when, "left-alone": [], "threads": []}
        directory = run if uid == 0 else users / str(uid) / "pmuctl"
        json_store.save(
            directory, f".placed-{PID}.json", document | its, owners={0, uid}, limit=9999
        )

    def seen(uid: int) -> AffinityRecord:
        return last_affinity_record(dirs(uid), uid, PROCESS, owner=user)

    placed = [{"tid": 4122, "cpus": "2"}]
    say(0, 10, threads=placed)
    assert [seen(uid).cpus for uid in (0, user)] == [{4122: CpuSet.parse("2")}] * 2
    say(user, 20, **{"left-alone": [9]})
    assert [seen(uid).leaves(VM) for uid in (0, user)] == [True] * 2
    say(0, 30, threads=placed)
    assert [seen(uid).leaves(VM) for uid in (0, user)] == [False] * 2
    say(other, 40, **{"left-alone": [9]})  # it is not that user's
    assert not seen(0).leaves(VM)
    say(user, 1 << 62, **{"left-alone": [9]})  # nobody was there yet
    assert not seen(0).leaves(VM)


def test_records_of_processes_that_have_ended_are_removed(
    environ: Mapping[str, str], procs: Procfs
) -> None:
    write(environ, procs)
    for pid in (1, 2):
        record(environ, pid).write_text("{}")
    fake_proc(procs.root, 2, start=1)
    write(environ, procs, {4122: CpuSet.parse("3")})
    assert [record(environ, pid).exists() for pid in (1, 2, PID)] == [False, True, True]


@pytest.mark.parametrize(
    ("environ", "uid", "why"),
    [
        ({}, 1001, "there is no runtime directory"),
        ({"PMUCTL_RUNTIME_DIR": "/dev/null/x"}, UID, "/dev/null/x: Not a directory"),
    ],
)
def test_that_nothing_can_be_written_is_told(
    procs: Procfs, environ: Mapping[str, str], uid: int, why: str
) -> None:
    with pytest.raises(RefusedError, match="were put could not be recorded") as error:
        write(environ, procs, uid=uid)
    assert why in str(error.value.why)
    with pytest.raises(RefusedError, match="left alone could not be recorded"):
        write_unmanaged(environ, uid, VM, [], procs, owner=UID)
    with pytest.raises(RefusedError, match="left alone could not be recorded"):
        write_unmanaged(environ, uid, VmId(ProcessId(PID + 1, 1)), [], procs, owner=UID)


@pytest.mark.parametrize(
    "kind", ["mode", "link", "fifo", "no json", "huge", "cpus", "masks", "format"]
)
def test_a_record_that_is_not_to_be_believed(
    environ: Mapping[str, str], procs: Procfs, kind: str
) -> None:
    write(environ, procs)
    path = record(environ)
    text = path.read_text()
    document = json.loads(text)
    match kind:
        case "mode":
            path.chmod(0o666)
        case "link":
            path.rename(path.with_name("other"))
            path.symlink_to("other")
        case "fifo":
            path.unlink()
            os.mkfifo(path)
        case "no json":
            path.write_text(text[:-9])
        case "huge":
            path.write_text(text + " " * (2 << 20))
        case "cpus":
            document["threads"][0]["cpus"] = "3-1"
            path.write_text(json.dumps(document))
        case "masks":
            threads = [{"tid": tid, "cpus": "0-65535"} for tid in range(1, 200)]
            path.write_text(json.dumps(document | {"threads": threads}))
        case _:
            path.write_text(json.dumps(document | {"format": 1}))
    assert read(environ) == AffinityRecord()
