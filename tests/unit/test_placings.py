# SPDX-License-Identifier: Apache-2.0
"""What pmuctl remembers of where it put vCPU threads: for one process, by whom it believes."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from pmuctl.control.placings import forget_placings, read_placings, write_placings
from pmuctl.host.procs import Procfs
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.ref import ProcessId
from tests.fakes.vmm import fake_proc

PID, START = 4121, 77
PROCESS = ProcessId(PID, START)
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


def test_what_is_written_is_read_and_added_to(environ: Mapping[str, str], procs: Procfs) -> None:
    write_placings(environ, UID, PROCESS, MASKS, procs)
    assert read_placings(environ, UID, PROCESS) == MASKS
    write_placings(environ, UID, PROCESS, {4123: CpuSet.parse("3")}, procs)
    assert read_placings(environ, UID, PROCESS) == {**MASKS, 4123: CpuSet.parse("3")}
    # of two VMs of the process one is forgotten, and then the other
    forget_placings(environ, UID, PROCESS, [4122])
    assert read_placings(environ, UID, PROCESS) == {4123: CpuSet.parse("3")}
    for _ in range(2):
        forget_placings(environ, UID, PROCESS, [4123])
        assert read_placings(environ, UID, PROCESS) == {}
    assert not record(environ).exists()


def test_of_another_process_with_the_id_nothing_is_known(
    environ: Mapping[str, str], procs: Procfs
) -> None:
    write_placings(environ, UID, PROCESS, MASKS, procs)
    assert read_placings(environ, UID, ProcessId(PID, START + 1)) == {}


def test_records_of_processes_that_have_ended_are_removed(
    environ: Mapping[str, str], procs: Procfs
) -> None:
    write_placings(environ, UID, PROCESS, MASKS, procs)
    for pid in (1, 2):
        record(environ, pid).write_text("{}")
    fake_proc(procs.root, 2, start=1)
    write_placings(environ, UID, PROCESS, MASKS, procs)
    assert [record(environ, pid).exists() for pid in (1, 2, PID)] == [False, True, True]


def test_where_nothing_can_be_written_nothing_is(procs: Procfs) -> None:
    write_placings({}, 1001, PROCESS, MASKS, procs)
    write_placings({"PMUCTL_RUNTIME_DIR": "/dev/null/x"}, UID, PROCESS, MASKS, procs)
    forget_placings({"PMUCTL_RUNTIME_DIR": "/dev/null/x"}, UID, PROCESS, MASKS)


@pytest.mark.parametrize("kind", ["mode", "link", "fifo", "no json", "huge", "cpus", "format"])
def test_a_record_that_is_not_to_be_believed(
    environ: Mapping[str, str], procs: Procfs, kind: str
) -> None:
    write_placings(environ, UID, PROCESS, MASKS, procs)
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
        case _:
            path.write_text(json.dumps(document | {"format": 1}))
    assert read_placings(environ, UID, PROCESS) == {}
