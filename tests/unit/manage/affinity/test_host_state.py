# SPDX-License-Identifier: Apache-2.0
"""The machine on which VMs are judged: what is read of it, for whom."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pmuctl.host.host import Host
from pmuctl.host.kvm.cache import PATH_BOOT_ID, read_kvm_caps
from pmuctl.host.pmus import scan_pmus
from pmuctl.host.procfs import Procfs
from pmuctl.host.sysfs import Sysfs
from pmuctl.manage.affinity.host_state import read_host_state
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.kvm_caps import DefaultPmu, KvmCaps
from tests.fakes.vmm import FakeThreads, fake_proc

PROBED = KvmCaps(
    has_vpmu=True, counters={10: 6, 11: 6}, event_bits=16, default=DefaultPmu.ONE, default_pmu=10
)


def test_what_probes_found_is_read_as_the_user_who_asks(
    tmp_path: Path, dump: Callable[[str], Path]
) -> None:
    """Not as the user who runs this process."""
    root, uid = dump("two-pmus-6.12"), os.geteuid() or 1000
    (root / PATH_BOOT_ID).parent.mkdir(parents=True, exist_ok=True)
    (root / PATH_BOOT_ID).write_text("4b3a\n")
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    sysfs = Sysfs(root)
    read_kvm_caps(sysfs, scan_pmus(sysfs), environ, uid=uid, probe=lambda _: PROBED)
    (kept,) = (tmp_path / "pmuctl").iterdir()
    assert kept.is_file()
    site = read_host_state(
        Host(environ=environ, uid=uid, procs=Procfs(root / "proc"), sysfs=sysfs)
    )
    assert site.host_pmus.probed == PROBED
    assert [pmu.name for pmu in site.pmus] == ["armv8_cortex_a53", "armv8_cortex_a72"]
    assert site.online == CpuSet.parse("0-3")


def test_the_threads_of_this_machine_are_not_those_of_a_captured_tree(
    tmp_path: Path, dump: Callable[[str], Path]
) -> None:
    root = dump("two-pmus-6.12")
    proc = fake_proc(tmp_path / "proc", 11, tids=[12])
    (proc / "11/task/12/status").write_text("Name:\tx\nCpus_allowed_list:\t2-3\n")
    live = FakeThreads({12: CpuSet.parse("0-1")})
    own = Host(environ={}, uid=0, procs=Procfs(proc), sysfs=Sysfs(tmp_path), threads=live)
    here, there = read_host_state(own), read_host_state(own.captured(tmp_path))
    assert here.read_mask(11, 12) == CpuSet.parse("0-1")
    assert there.read_mask(11, 12) == CpuSet.parse("2-3")
    assert (here.read_mask(11, None), there.read_mask(None, 12)) == (None, None)
    assert here.host.threads is live
    with pytest.raises(ValueError, match="captured"):
        assert there.host.threads
    assert root


def test_no_kvm_is_asked_for_a_captured_tree_even_if_that_is_the_root_of_this_machine() -> None:
    host = Host(environ={}, uid=0)
    assert host.kvm is not None
    assert host.captured(Path("/")).kvm is None
