# SPDX-License-Identifier: Apache-2.0
"""Who runs out of descriptors is told so, and not that nothing is there."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pmuctl.control.runtime.sockets import scan_sockets
from pmuctl.errors import ExitStatus
from pmuctl.host import json_store
from pmuctl.host.kvm.process_scan import KvmScanner
from pmuctl.host.pmus import scan_pmu_types, scan_pmus
from pmuctl.host.procfs import Procfs
from pmuctl.host.resource_errors import ResourceExhaustedError, raise_if_exhausted
from pmuctl.host.sysfs import PATH_CPU_ONLINE, Sysfs
from pmuctl.schema import AnyValue
from tests.fakes.shortage import no_descriptors
from tests.fakes.vmm import fake_proc

PID = 4121


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_shortage_tells_nothing_of_a_file(number: int) -> None:
    with pytest.raises(ResourceExhaustedError) as raised:
        raise_if_exhausted(OSError(number, os.strerror(number), "/sys/x"))
    its = raised.value
    assert (its.status, its.subject) == (ExitStatus.REFUSED, "/sys/x")
    assert its.errno == errno.errorcode[number]
    assert its.why is not None
    assert its.errno in its.why
    assert its.fix


@pytest.mark.parametrize(
    "number",
    [
        errno.ENOENT,
        errno.ENOTDIR,
        errno.ENODEV,
        errno.EACCES,
        errno.EIO,
        errno.ESRCH,
        errno.EINVAL,
    ],
)
def test_what_is_of_the_file_itself_passes(number: int) -> None:
    raise_if_exhausted(OSError(number, os.strerror(number)))


@pytest.mark.parametrize(
    "read",
    [
        lambda root: scan_pmus(Sysfs(root), ["armv8_cortex_a53"]),
        lambda root: scan_pmus(Sysfs(root)),
        lambda root: scan_pmu_types(Sysfs(root)),
        lambda root: Sysfs(root).read_text(PATH_CPU_ONLINE),
        lambda root: Sysfs(root).resolve(PATH_CPU_ONLINE),
        lambda _: Sysfs().entries("sys"),
        lambda root: KvmScanner(Procfs(root)).scan(),
        lambda root: Procfs(root).holds_kvm(PID),
        lambda root: Procfs(root).start_time(PID),
        lambda root: Procfs(root).threads(PID),
        lambda root: Procfs(root).vcpu_fds(PID),
        lambda root: scan_sockets({"PMUCTL_RUNTIME_DIR": str(root)}, 0),
        lambda root: json_store.load(root, "a.json", AnyValue(), owners={0}, limit=10),
    ],
)
def test_no_reader_takes_a_shortage_for_an_absence(
    tmp_path: Path, read: Callable[[Path], object]
) -> None:
    fake_proc(tmp_path, PID)
    (tmp_path / str(PID) / "task").mkdir(exist_ok=True)
    read(tmp_path)  # there is nothing else wrong with it
    with (
        no_descriptors(),
        pytest.raises(ResourceExhaustedError, match="this machine cannot be read"),
    ):
        read(tmp_path)


def test_a_vm_is_not_lost_between_the_list_and_its_process(tmp_path: Path) -> None:
    """The list of processes can be had, what one of them has open cannot."""
    fake_proc(tmp_path, PID, start=7)
    assert [its.pid for its in KvmScanner(Procfs(tmp_path)).scan().processes] == [PID]

    class Listed(Procfs):
        def _list_names(self, path: str) -> list[str]:
            return [str(PID)] if not path else super()._list_names(path)

    with no_descriptors(), pytest.raises(ResourceExhaustedError):
        KvmScanner(Listed(tmp_path)).scan()
