# SPDX-License-Identifier: Apache-2.0
"""Which CPUs a thread's cpuset allows, and where that is set: both versions, and hostile trees."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from pmuctl.host.cpuset_cgroup import Cpuset, Cpusets
from pmuctl.host.mounts import PATH_MOUNTS
from pmuctl.host.sysfs import TEXT_LIMIT, Sysfs
from pmuctl.model.cpuset import CpuSet
from pmuctl.value import replace

V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "31 23 0:27 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
OTHERS = (
    "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
    "32 23 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
)
ROOT = "sys/fs/cgroup"


def host(
    root: Path, *, mounts: str = V2, group: str = "0::/m/vm\n", files: Mapping[str, str]
) -> Cpuset | None:
    """The cpuset of thread 12 of process 11, of a host with these files below /sys/fs/cgroup."""
    texts = {
        "proc/self/mountinfo": OTHERS + mounts,
        "proc/11/task/12/cgroup": group,
        **{f"{ROOT}/{name}": text for name, text in files.items()},
    }
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text.encode(errors="surrogateescape"))
    return Cpusets(Sysfs(root)).read(11, 12)


def cpuset(path: str, cpus: str, version: int = 2) -> Cpuset:
    return Cpuset(version=version, path=path, cpus=CpuSet.parse(cpus))


EVERYWHERE = {"cpuset.cpus.effective": "0-3\n"}


def test_the_group_that_sets_it(tmp_path: Path) -> None:
    files = {
        **EVERYWHERE,
        "m/cpuset.cpus": "\n",
        "m/cpuset.cpus.effective": "0-3\n",
        "m/vm/cpuset.cpus": "0-1\n",
        "m/vm/cpuset.cpus.effective": "0-1\n",
    }
    found = host(tmp_path, files=files)
    assert found == cpuset("/sys/fs/cgroup/m/vm", "0-1")
    assert found is not None
    assert found.file == "/sys/fs/cgroup/m/vm/cpuset.cpus"


def test_a_group_that_sets_none_has_those_of_its_parent(tmp_path: Path) -> None:
    files = {
        **EVERYWHERE,
        "m/cpuset.cpus": "0-1\n",
        "m/cpuset.cpus.effective": "0-1\n",
        "m/vm/cpuset.cpus": "\n",
        "m/vm/cpuset.cpus.effective": "0-1\n",
    }
    assert host(tmp_path, files=files) == cpuset("/sys/fs/cgroup/m", "0-1")


def test_a_group_without_the_controller_is_passed_over(tmp_path: Path) -> None:
    files = {
        **EVERYWHERE,
        "m/cpuset.cpus": "1\n",
        "m/cpuset.cpus.effective": "1\n",
        "m/vm/cgroup.procs": "",
    }
    assert host(tmp_path, files=files) == cpuset("/sys/fs/cgroup/m", "1")


def test_a_threaded_group_is_the_threads_own(tmp_path: Path) -> None:
    files = {
        **EVERYWHERE,
        "m/vm/t/cpuset.cpus": "3\n",
        "m/vm/t/cpuset.cpus.effective": "3\n",
        "m/vm/cpuset.cpus": "2-3\n",
        "m/vm/cpuset.cpus.effective": "2-3\n",
    }
    found = host(tmp_path, group="0::/m/vm/t\n", files=files)
    assert found == cpuset("/sys/fs/cgroup/m/vm/t", "3")


def test_the_group_above_that_takes_away_what_is_set_below_it(tmp_path: Path) -> None:
    files = {
        **EVERYWHERE,
        "m/cpuset.cpus": "0-1\n",
        "m/cpuset.cpus.effective": "0-1\n",
        "m/vm/cpuset.cpus": "0-3\n",
        "m/vm/cpuset.cpus.effective": "0-1\n",
    }
    assert host(tmp_path, files=files) == cpuset("/sys/fs/cgroup/m", "0-1")


def test_an_offline_cpu_is_nobodys_doing(tmp_path: Path) -> None:
    files = {
        "cpuset.cpus.effective": "0-2\n",
        "m/cpuset.cpus": "0-3\n",
        "m/cpuset.cpus.effective": "0-2\n",
        "m/vm/cpuset.cpus": "2-3\n",
        "m/vm/cpuset.cpus.effective": "2\n",
    }
    assert host(tmp_path, files=files) == cpuset("/sys/fs/cgroup/m/vm", "2")


def test_nobody_sets_anything(tmp_path: Path) -> None:
    assert host(tmp_path, files=EVERYWHERE) == cpuset("/sys/fs/cgroup", "0-3")


def test_version_1(tmp_path: Path) -> None:
    group = "9:name=systemd:/x\n4:cpu,cpuacct:/y\n3:cpuset:/vm: 1\n0::/z\n"
    files = {
        **{f"cpuset/{name}": "0-3\n" for name in ("cpuset.cpus", "cpuset.effective_cpus")},
        "cpuset/vm: 1/cpuset.cpus": "0\n",
        "cpuset/vm: 1/cpuset.effective_cpus": "0\n",
    }
    found = host(tmp_path, mounts=V1, group=group, files=files)
    assert found == cpuset("/sys/fs/cgroup/cpuset/vm: 1", "0", version=1)


def test_version_1_from_before_cgroups_had_names(tmp_path: Path) -> None:
    mounts = "31 23 0:27 / /dev/cpu\\040set rw - cgroup none rw,cpuset,noprefix\n"
    files = {"../../../dev/cpu set/vm/cpus": "1\n", "../../../dev/cpu set/vm/effective_cpus": "1"}
    found = host(tmp_path, mounts=mounts, group="3:cpuset:/vm\n", files=files)
    assert found is not None
    assert found == replace(cpuset("/dev/cpu set/vm", "1", version=1), prefix="")
    assert found.file == "/dev/cpu set/vm/cpus"


def test_a_mount_of_a_part_of_the_hierarchy(tmp_path: Path) -> None:
    mounts = "30 23 0:26 /m /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    files = {"vm/cpuset.cpus": "1\n", "vm/cpuset.cpus.effective": "1\n"}
    assert host(tmp_path, mounts=mounts, files=files) == cpuset("/sys/fs/cgroup/vm", "1")
    assert host(tmp_path, mounts=mounts, group="0::/mm/vm\n", files=files) is None


@pytest.mark.parametrize(
    "group",
    [
        *("", "\n", "0::m\n", "0::/../../x\n", "0::/m/./vm\n", "nonsense", "1:cpu:/m\n"),
        *("\0" * 99, "0::/" + "a/" * 3000 + "\n", "0::/m/vm (deleted)\x1b[2J\n"),
        "0::/" + "x" * 5000,
    ],
)
def test_what_names_no_group_to_be_seen(tmp_path: Path, group: str) -> None:
    assert host(tmp_path, group=group, files={"m/vm/cpuset.cpus.effective": "1\n"}) is None


def test_no_such_thread_and_no_hierarchy(tmp_path: Path) -> None:
    assert host(tmp_path, mounts="", files=EVERYWHERE) is None
    assert Cpusets(Sysfs(tmp_path)).read(11, 13) is None
    assert Cpusets(Sysfs(tmp_path / "nothing")).read(11, 12) is None


def test_lists_that_are_none(tmp_path: Path) -> None:
    files = {"m/vm/cpuset.cpus.effective": "0-\n", "m/cpuset.cpus.effective": "9" * 99}
    assert host(tmp_path, files=files) is None
    huge = {"m/vm/cpuset.cpus.effective": "0-65535," * 9000, **EVERYWHERE}
    assert host(tmp_path, files=huge) == cpuset("/sys/fs/cgroup", "0-3")


def test_a_link_does_not_lead_out_of_the_tree(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "cpuset.cpus.effective").write_text("7\n")
    root = tmp_path / "root"
    (root / ROOT / "m").mkdir(parents=True)
    (root / ROOT / "m/vm").symlink_to(outside)
    assert host(root, files={}) is None


class Counting(Sysfs):
    """It counts how often each file is read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.reads: Counter[str] = Counter()

    def read_text(self, path: str, *, limit: int = TEXT_LIMIT) -> str | None:
        self.reads[path] += 1
        return super().read_text(path, limit=limit)


def test_mounts_and_groups_are_read_once_for_many_threads(tmp_path: Path) -> None:
    files = {"m/vm/cpuset.cpus": "1\n", "m/vm/cpuset.cpus.effective": "1\n", **EVERYWHERE}
    host(tmp_path, files=files)
    sysfs = Counting(tmp_path)
    cpusets = Cpusets(sysfs)
    for _ in range(100):
        assert cpusets.read(11, 12) == cpuset("/sys/fs/cgroup/m/vm", "1")
    assert sysfs.reads.pop("proc/11/task/12/cgroup") == 100
    assert set(sysfs.reads.values()) == {1}
    assert PATH_MOUNTS in sysfs.reads


def test_after_a_change_groups_are_read_anew(tmp_path: Path) -> None:
    files = {"m/vm/cpuset.cpus": "1\n", "m/vm/cpuset.cpus.effective": "1\n", **EVERYWHERE}
    host(tmp_path, files=files)
    cpusets = Cpusets(Sysfs(tmp_path))
    assert cpusets.read(11, 12) == cpuset("/sys/fs/cgroup/m/vm", "1")
    for name in ("cpuset.cpus", "cpuset.cpus.effective"):
        (tmp_path / ROOT / "m/vm" / name).write_text("2\n")
    assert cpusets.read(11, 12) == cpuset("/sys/fs/cgroup/m/vm", "1")
    cpusets.forget()
    assert cpusets.read(11, 12) == cpuset("/sys/fs/cgroup/m/vm", "2")
    # a thread that was moved is in its new group at once
    (tmp_path / "proc/11/task/12/cgroup").write_text("0::/\n")
    assert cpusets.read(11, 12) == cpuset("/sys/fs/cgroup", "0-3")


def test_the_mounts_of_very_many_containers_hide_no_cpuset(tmp_path: Path) -> None:
    one = "99 23 0:99 / /var/lib/containers/{:064x}/merged rw - overlay overlay rw\n"
    mounts = "".join(one.format(number) for number in range(50_000)) + V2
    assert len(mounts) > 4 << 20
    files = {"m/vm/cpuset.cpus": "1\n", "m/vm/cpuset.cpus.effective": "1\n", **EVERYWHERE}
    assert host(tmp_path, mounts=mounts, files=files) == cpuset("/sys/fs/cgroup/m/vm", "1")
