# SPDX-License-Identifier: Apache-2.0
"""A VMM whose KVM is the model: the true server in front of tests.fakes.kvm_model."""

import errno
import os
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path

from pmuctl.control.server.server import VcpuStatus
from pmuctl.host.proc_files import TooManyLinksError
from pmuctl.host.procfs import Procfs
from pmuctl.host.thread_affinity import ThreadAffinity
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.event import WIDEST_BITS
from pmuctl.model.event_filter import Action, FilterRange
from pmuctl.model.kvm_caps import ATTR_NAMES, KvmCaps
from pmuctl.model.vpmu import Vcpu, Vpmu
from pmuctl.uapi.kvm_arm64 import (
    KVM_ARM_VCPU_PMU_V3_FILTER,
    KVM_ARM_VCPU_PMU_V3_INIT,
    KVM_ARM_VCPU_PMU_V3_IRQ,
    KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS,
)
from pmuctl.value import field as value_field
from pmuctl.value import replace, value
from tests.fakes.kvm_model import KvmVm, has_attr, run, set_attr


class FakeThreads(ThreadAffinity):
    """Masks of threads that need not exist; `refuses` maps a thread to the errno it gives."""

    def __init__(self, masks: Mapping[int, CpuSet]) -> None:
        self.masks = dict(masks)
        self.refuses: dict[int, int] = {}

    def get(self, tid: int) -> CpuSet:
        if tid not in self.masks:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        return self.masks[tid]

    def set(self, tid: int, cpus: CpuSet) -> None:
        if error := self.refuses.get(tid):
            raise OSError(error, os.strerror(error))
        self.masks[tid] = cpus


class KernelThreads(FakeThreads):
    """Masks that are taken as the kernel takes them (__sched_setaffinity()).

    `online` are the active CPUs, `cpusets` maps a thread to the CPUs its cpuset allows.
    """

    def __init__(self, masks: Mapping[int, CpuSet], *, online: str = "0-3") -> None:
        super().__init__(masks)
        self.online = CpuSet.parse(online)
        self.cpusets: dict[int, CpuSet] = {}
        self.calls: list[tuple[int, CpuSet]] = []

    def get(self, tid: int) -> CpuSet:
        if tid not in self.masks:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        return self.masks[tid]

    def set(self, tid: int, cpus: CpuSet) -> None:
        self.get(tid)
        cpus &= self.cpusets.get(tid, cpus)
        if not cpus & self.online:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        super().set(tid, cpus)
        self.calls.append((tid, cpus))


class FakeVm:
    """A `VmmBackend` of two vCPUs with the threads 1001 and 1002.

    `calls` records what reached KVM as (attribute, value); `faults` maps an attribute to the
    errno that KVM gives in spite of the model, once `fault_after` calls were let through.
    """

    vmm = "fake"
    uuid: str | None = "6695eb01-f6a4-8304-79aa-97f2502e193f"

    def __init__(
        self,
        name: str = "web1",
        *,
        counters: Mapping[int, int | None] | None = None,
        has_pmu: bool = True,
        has_nr_counters: bool = True,
        event_bits: int = WIDEST_BITS,
        event_bits_of: Mapping[int, int] | None = None,
        cpus: str = "0-3",
    ) -> None:
        self.name = name
        self.pid = os.getpid()
        attributes = frozenset(ATTR_NAMES)
        if not has_nr_counters:
            attributes -= {KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS}
        caps = KvmCaps(
            has_vpmu=True,
            counters={10: 6, 11: 6} if counters is None else counters,
            attributes=attributes,
            event_bits=event_bits,
            event_bits_of=event_bits_of or {},
        )
        self.kvm = KvmVm(vpmu=Vpmu(caps=caps, vcpus=(Vcpu(has_pmu=has_pmu),) * 2))
        self.threads = FakeThreads({1001: CpuSet.parse(cpus), 1002: CpuSet.parse(cpus)})
        self.calls: list[tuple[str, object]] = []
        self.faults: dict[str, int] = {}
        self.fault_after = 0
        self.ran = [False, False]
        self.default: tuple[int, str] | None = None

    @property
    def vpmu(self) -> Vpmu:
        """What KVM keeps of its vPMU."""
        return self.kvm.vpmu

    def vcpus(self) -> Sequence[VcpuStatus]:
        return [
            VcpuStatus(index=n, tid=1001 + n, initialised=its.initialised, has_run=self.ran[n])
            for n, its in enumerate(self.vpmu.vcpus)
        ]

    def has_vpmu(self) -> bool:
        return self.vpmu.vcpus[0].has_pmu

    def default_pmu(self) -> tuple[int, str] | None:
        return self.default

    def event_bits(self, pmu_type: int | None) -> int | None:
        caps = self.vpmu.caps
        return None if pmu_type is None and caps.event_bits_of else caps.event_bits_for(pmu_type)

    def counters_limit(self, pmu_type: int) -> int | None:
        return self.vpmu.caps.counters.get(pmu_type)

    def has_attr(self, attr: int) -> bool:
        return has_attr(self.kvm, 0, attr) == 0

    def set_attr(self, vcpu: int, attr: int, payload: bytes) -> None:
        value: int | FilterRange
        if attr == KVM_ARM_VCPU_PMU_V3_FILTER:
            base, nevents, action = struct.unpack("=HHB3x", payload)
            value = FilterRange(base, nevents, Action.DENY if action else Action.ALLOW)
        else:
            value = struct.unpack("=i", payload)[0]
        name = ATTR_NAMES[attr]
        error = self.faults.get(name)
        if error and self.fault_after:
            self.fault_after, error = self.fault_after - 1, 0
        if not error:
            error, self.kvm = set_attr(self.kvm, vcpu, attr, value)
        if error:
            raise OSError(error, os.strerror(error))
        self.calls.append((name, value))

    def initialise(self) -> None:
        """What a VMM does once it goes on: IRQ and INIT on each vCPU."""
        for n in range(len(self.vpmu.vcpus)):
            for attr, data in ((KVM_ARM_VCPU_PMU_V3_IRQ, 23), (KVM_ARM_VCPU_PMU_V3_INIT, None)):
                error, self.kvm = set_attr(self.kvm, n, attr, data)
                assert error == 0

    def run(self) -> None:
        """Both vCPUs run."""
        for n in range(len(self.vpmu.vcpus)):
            error, self.kvm = run(self.kvm, n)
            assert error == 0
            self.ran[n] = True


class StallingVm(FakeVm):
    """One that answers nothing while `goes_on` is not set."""

    def __init__(self, name: str = "web1") -> None:
        super().__init__(name)
        self.goes_on = threading.Event()
        self.goes_on.set()

    def vcpus(self) -> Sequence[VcpuStatus]:
        self.goes_on.wait()
        return super().vcpus()


class SupervisedVm(FakeVm):
    """A `VmmBackend` to a VMM that is another process, `pid`; at first it has made no vCPU.

    So is a VM behind the socket of pmuctl run: its counters cannot be set, and which thread runs
    a vCPU is not known before it has run.
    """

    vmm = "supervised"
    uuid = None

    def __init__(self, pid: int, name: str = "web1") -> None:
        super().__init__(name, has_nr_counters=False)
        self.pid = pid
        self.is_made = False

    def vcpus(self) -> Sequence[VcpuStatus]:
        its = super().vcpus() if self.is_made else []
        return [vcpu if vcpu.has_run else replace(vcpu, tid=None) for vcpu in its]


ME = os.geteuid()


@value
class ClosedProcfs(Procfs):
    """A procfs in which nobody may look at the descriptors of some processes.

    `inherited` maps a process to the one whose descriptors it has as copies. `before` is called
    before each access. The tables of the processes `endless` have no end.
    """

    unreadable: frozenset[int] = frozenset()
    inherited: Mapping[int, int] = value_field(default_factory=dict)
    before: Callable[[], None] = value_field(default=lambda: None)
    endless: frozenset[int] = frozenset()

    def is_same_file(self, pid: int, fd: int, other_pid: int, other_fd: int) -> bool | None:
        self.before()
        return fd == other_fd and self.inherited.get(pid) == other_pid

    def _read_file(self, path: str) -> bytes:
        self.before()
        return super()._read_file(path)

    def _list_names(self, path: str) -> list[str]:
        self.before()
        return super()._list_names(path)

    def iter_links(self, path: str, *, most: int | None = None) -> Iterator[tuple[int, str]]:
        self.before()
        if int(path.partition("/")[0]) in self.unreadable:
            raise PermissionError
        if int(path.partition("/")[0]) in self.endless:
            if most is not None:
                raise TooManyLinksError
            return ((fd, "/dev/null") for fd in count())
        return super().iter_links(path, most=most)


def fake_proc(
    root: Path,
    pid: int,
    *,
    holds_kvm: bool = True,
    tids: Sequence[int] = (),
    uid: int | None = None,
    start: int | None = None,
) -> Path:
    """A procfs in which `pid` has a KVM VM open, or has not, and these threads.

    Its user and start time (clock ticks since boot) cannot be told unless they are given, but for
    the user of this process, which serves for it.
    """
    if uid is None and pid == os.getpid():
        uid = ME
    fds = root / str(pid) / "fd"
    fds.mkdir(parents=True, exist_ok=True)
    for old in fds.iterdir():
        old.unlink()
    (fds / "0").symlink_to("/dev/null")
    (root / "stat").write_text("btime 1000000000\n")
    if holds_kvm:
        (fds / "9").symlink_to("anon_inode:kvm-vm")
    status = root / str(pid) / "status"
    if uid is not None or not status.exists():
        uids = "" if uid is None else f"Uid:\t{uid}\t{uid}\t{uid}\t{uid}\n"
        status.write_text(f"Name:\tx\n{uids}NSpid:\t{pid}\n")
    if start is not None:
        (root / str(pid) / "stat").write_text(f"{pid} (x) S {'0 ' * 18}{start} 0\n")
    for tid in tids:
        (root / str(pid) / "task" / str(tid)).mkdir(parents=True, exist_ok=True)
    return root


def fake_vmm(
    root: Path,
    pid: int,
    argv: Sequence[str] = (),
    *,
    vcpus: Mapping[int, str] | None = None,
    comm: str = "vmm",
    masks: str = "0-3",
    ran: int = 7,
    state: str = "S",
    uid: int = ME,
    start: int = 100,
    has_names: bool = True,
    thread_name: str = "CPU {}/KVM",
    vcpu_link: str = "anon_inode:kvm-vcpu:{}",
) -> Path:
    """A procfs in which `pid` is a VMM without a control socket: its vCPUs' threads are pid + 1
    and so on, beside one thread more.

    `vcpus` maps a vCPU to the mask of its thread, `ran` are its clock ticks of guest code. Without
    `has_names` all threads are named as the process. In `thread_name` and `vcpu_link`, the target
    of its descriptor, `{}` is the number of a vCPU.
    """
    vcpus = {0: masks, 1: masks} if vcpus is None else vcpus
    tids: dict[int, int | None] = {
        pid: None,
        **{pid + 1 + n: index for n, index in enumerate(vcpus)},
    }
    tids[pid + 1 + len(vcpus)] = None
    fake_proc(root, pid, tids=list(tids), uid=uid, start=start)
    folder = root / str(pid)
    for index in vcpus:
        (folder / "fd" / str(20 + index)).symlink_to(vcpu_link.format(index))
        # newer QEMUs hold the statistics of each vCPU, too, and those of the VM
        (folder / "fd" / str(50 + index)).symlink_to(f"anon_inode:kvm-vcpu-stats:{index}")
    (folder / "fd" / "90").symlink_to("anon_inode:kvm-vm-stats")
    (folder / "cmdline").write_bytes(b"".join(os.fsencode(word) + b"\0" for word in argv))
    (folder / "comm").write_text(f"{comm}\n")
    (folder / "cgroup").write_text("0::/machine.slice\n")
    for tid, vcpu in tids.items():
        name = thread_name.format(vcpu) if vcpu is not None and has_names else comm
        fields = [state, *["0"] * 18, str(start), *["0"] * 16, str(tid % 4), *["0"] * 3]
        fields += [str(0 if vcpu is None else ran), "0"]
        task = folder / "task" / str(tid)
        (task / "stat").write_text(f"{tid} ({name}) {' '.join(fields)}\n")
        mask = masks if vcpu is None else vcpus[vcpu]
        (task / "status").write_text(
            f"Name:\t{name}\nTgid:\t{pid}\nPPid:\t1\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n"
            f"Cpus_allowed_list:\t{mask}\n"
        )
        (task / "comm").write_text(f"{name}\n")
        (task / "cgroup").write_text("0::/machine.slice\n")
        if tid == pid:
            fields[-2] = str(ran * len(vcpus))  # of a process: that of all its threads
            (folder / "stat").write_text(f"{tid} ({name}) {' '.join(fields)}\n")
    (folder / "status").write_text((folder / "task" / str(pid) / "status").read_text())
    return root
