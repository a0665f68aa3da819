# SPDX-License-Identifier: Apache-2.0
"""A vCPU with the thread that makes, sets up and runs it, and the ways KVM_RUN comes back."""

import ctypes
import mmap
import os
import struct
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from threading import get_native_id
from typing import TYPE_CHECKING, NamedTuple, ParamSpec, Self, TypeVar

from pmuctl.host.kvm.device import has_pmu_attr, init_vcpu, on_cpus, pin, set_pmu_attr
from pmuctl.uapi.ioctl import ioctl
from pmuctl.uapi.kvm import (
    KVM_CREATE_VCPU,
    KVM_EXIT_FAIL_ENTRY,
    KVM_EXIT_MMIO,
    KVM_GET_VCPU_MMAP_SIZE,
    KVM_RUN,
    KVM_SET_ONE_REG,
)
from pmuctl.uapi.kvm_arm64 import (
    KVM_ARM_VCPU_PMU_V3_INIT,
    KVM_ARM_VCPU_PMU_V3_IRQ,
    kvm_reg_arm_core,
)
from pmuctl.uapi.kvm_structs import kvm_one_reg, kvm_run, user_pt_regs

# The stand-ins need neither, and are to start fast.
if TYPE_CHECKING:
    from concurrent.futures import Future

    from pmuctl.model.cpuset import CpuSet

PMU_IRQ = 23
"""The PPI of the PMU's overflow interrupt, the one Arm's Base System Architecture gives it."""

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Store(NamedTuple):
    """KVM_EXIT_MMIO: the guest wrote `value` where there is no memory."""

    address: int
    value: int


class FailEntry(NamedTuple):
    """KVM_EXIT_FAIL_ENTRY: KVM did not enter the guest, and KVM_RUN returned 0 all the same.

    With reason KVM_EXIT_FAIL_ENTRY_CPU_UNSUPPORTED the thread was on `cpu`, which the PMU chosen
    by SET_PMU does not cover (vcpu.rst section 1.4). The vCPU is unharmed and runs once its thread
    is on a CPU of that PMU; to call KVM_RUN again without that is to spin.
    """

    reason: int
    cpu: int


class OtherExit(NamedTuple):
    """Any other exit, by its KVM_EXIT_ number: nothing that the guest here should cause."""

    reason: int


Exit = Store | FailEntry | OtherExit


class Vcpu:
    """One vCPU. Its methods wait for its thread; `run` and `set_…` are for `submit`.

    `init_masks` is where the thread could be, before and after KVM_ARM_VCPU_INIT.

    All its ioctls come from that thread, as api.rst section 1 asks. Sharing a thread is no way
    out: a vCPU's perf events belong to the thread that runs it, and on some kernels (seen on
    6.12) the second vCPU of a thread counts nothing.
    """

    def __init__(
        self, kvm_fd: int, vm_fd: int, *, index: int, vpmu: bool, cpus: Iterable[int] | None
    ) -> None:
        """KVM_CREATE_VCPU and KVM_ARM_VCPU_INIT, the thread being on `cpus` for so long.

        Raises OSError as KVM says.
        """
        self.index = index
        self.initialised = False
        self.has_run = False
        self.init_masks: tuple[CpuSet, ...] = ()
        from concurrent.futures import ThreadPoolExecutor

        with ExitStack() as undo:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"vcpu-{index}")
            undo.callback(self._thread.shutdown)
            self.tid = self.submit(get_native_id).result()
            self.fd = self.submit(self._create, vm_fd, vpmu=vpmu, cpus=cpus).result()
            undo.callback(os.close, self.fd)
            size = ioctl(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, what="KVM_GET_VCPU_MMAP_SIZE")
            self._page = undo.enter_context(mmap.mmap(self.fd, size))
            # no job may be left when page and fd go
            undo.callback(self._thread.shutdown)
            self._undo = undo.pop_all()

    def _create(self, vm_fd: int, *, vpmu: bool, cpus: Iterable[int] | None) -> int:
        from pmuctl.model.cpuset import CpuSet

        with on_cpus(cpus), ExitStack() as undo:
            fd = ioctl(vm_fd, KVM_CREATE_VCPU, self.index, what=self._what("KVM_CREATE_VCPU"))
            undo.callback(os.close, fd)
            before = CpuSet.of(os.sched_getaffinity(0))
            init_vcpu(vm_fd, fd, vpmu=vpmu)
            self.init_masks = (before, CpuSet.of(os.sched_getaffinity(0)))
            undo.pop_all()
        return fd

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def submit(
        self, job: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs
    ) -> "Future[_T]":
        """Have the vCPU's thread call this, after what it was given before."""
        return self._thread.submit(job, *args, **kwargs)

    def pin(self, cpus: Iterable[int]) -> None:
        """Put the thread on these CPUs; raises OSError."""
        pin(self.tid, cpus)

    def has_attr(self, attr: int) -> bool:
        """Whether this vCPU has the KVM_ARM_VCPU_PMU_V3_ attribute."""
        return self.submit(has_pmu_attr, self.fd, attr).result()

    def set_attr(self, attr: int, payload: bytes = b"") -> None:
        """Set a KVM_ARM_VCPU_PMU_V3_ attribute; raises OSError as KVM says."""
        self.submit(set_pmu_attr, self.fd, attr, payload).result()

    def init_pmu(self) -> None:
        """IRQ and INIT: from here on this vCPU takes no PMU attribute any more (EBUSY)."""
        self.set_attr(KVM_ARM_VCPU_PMU_V3_IRQ, struct.pack("=i", PMU_IRQ))
        self.set_attr(KVM_ARM_VCPU_PMU_V3_INIT)
        self.initialised = True

    def set_reg(self, offset: int, value: int) -> None:
        """Set the 64-bit core register at this offset (bytes) into struct user_pt_regs."""
        data = ctypes.c_uint64(value)
        reg = kvm_one_reg(id=kvm_reg_arm_core(offset), addr=ctypes.addressof(data))
        ioctl(self.fd, KVM_SET_ONE_REG, reg, what=self._what("KVM_SET_ONE_REG"))

    def start_at(self, pc: int, *, x0: int) -> None:
        """Let the guest begin at `pc` with `x0`; only before the first run.

        After an exit by MMIO this would go wrong: the next KVM_RUN first completes the store by
        stepping over the instruction at the PC of that time (api.rst, KVM_EXIT_MMIO).
        """
        self.submit(self.set_start, pc, x0=x0).result()

    def set_start(self, pc: int, *, x0: int) -> None:
        """`start_at` for `submit`."""
        self.set_reg(user_pt_regs.regs.offset, x0)
        self.set_reg(user_pt_regs.pc.offset, pc)

    def run(self) -> Exit:
        """Run the guest until it needs us; raises OSError as KVM says."""
        while True:
            try:
                ioctl(self.fd, KVM_RUN, what=self._what("KVM_RUN"))
            except InterruptedError:
                self.has_run = True
                continue  # a signal to this thread, such as SIGSTOP and SIGCONT
            self.has_run = True
            return self._read_exit()

    def _read_exit(self) -> Exit:
        run = kvm_run.from_buffer_copy(self._page)
        if run.exit_reason == KVM_EXIT_MMIO and run.mmio.is_write:
            data = bytes(run.mmio.data[: run.mmio.len])
            return Store(run.mmio.phys_addr, int.from_bytes(data, "little"))
        if run.exit_reason == KVM_EXIT_FAIL_ENTRY:
            fail = run.fail_entry
            return FailEntry(fail.hardware_entry_failure_reason, fail.cpu)
        return OtherExit(run.exit_reason)

    def _what(self, request: str) -> str:
        return f"{request} of vCPU {self.index}"
