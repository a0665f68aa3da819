# SPDX-License-Identifier: Apache-2.0
"""Which calls of a VMM open a window, as VMMs make them; the threads are scripted."""

import os
import struct
import time
from collections.abc import Callable

import pytest

from pmuctl.host.procfs import Procfs
from pmuctl.host.resource_errors import ResourceExhaustedError
from pmuctl.launch.trace.address_space import AddressSpaces
from pmuctl.launch.trace.arch import ARCHES
from pmuctl.launch.trace.vcpu_tracker import VcpuTracker
from pmuctl.uapi.kvm import (
    KVM_ARM_VCPU_INIT,
    KVM_CREATE_VCPU,
    KVM_HAS_DEVICE_ATTR,
    KVM_RUN,
    KVM_SET_DEVICE_ATTR,
)
from tests.fakes.peers import PATIENCE
from tests.fakes.shortage import no_descriptors
from tests.launch.scripted import (
    ADDRESS,
    ARM64,
    FUTEX,
    NOWHERE,
    WITH,
    WITHOUT,
    FakeTracee,
    Master,
    Vmm,
)

STRICT = WITH | 1 << 9


@pytest.fixture
def vmm() -> Vmm:
    return Vmm()


def test_the_window_opens_where_init_has_returned(vmm: Vmm) -> None:
    vmm.create(0)
    assert vmm.master.told == []
    assert vmm.thread.blocked
    assert not vmm.windows.is_idle
    vmm.init(10)
    assert vmm.master.told == [("opened", 0), "settled"]
    assert not vmm.thread.blocked
    assert vmm.windows.is_idle


def test_qemus_probe_without_a_pmu_is_closed_without_being_mapped(vmm: Vmm) -> None:
    vmm.create(0)
    vmm.init(10, WITHOUT)
    assert vmm.master.told == []
    vmm.close(10)
    assert vmm.master.told == ["settled"]


def test_where_a_vcpu_is_initialised_is_told_before_and_after(vmm: Vmm) -> None:
    other = vmm.beside(2)
    vmm.create(0)
    vmm.create(1)
    assert vmm.master.seen == [("made", 0), ("made", 1)]
    del vmm.master.seen[:]
    vmm.init(10, WITHOUT, result=-22)
    assert vmm.master.seen == []
    vmm.init(10, result=-22)
    assert vmm.master.seen == [(1, 1)] * 2
    other.init(11)
    assert vmm.master.seen == [(1, 1)] * 2 + [(1, 2)] * 2


def test_a_strict_vcpu_gets_no_pmu_by_itself(vmm: Vmm) -> None:
    vmm.create(0)
    vmm.init(10, STRICT)
    assert vmm.master.seen == [("made", 0), (1, None), (1, 1)]
    assert vmm.master.told == [("opened", 0), "settled"]


def test_an_init_that_was_missed_is_told_as_such(vmm: Vmm) -> None:
    vmm.create(0)
    vmm.table[10].has_vpmu = True  # by another thread, before anybody followed that
    vmm.call(FUTEX, ADDRESS)
    assert vmm.master.seen == [("made", 0), (1, None)]
    assert vmm.master.told == ["spread", ("opened", 0), "settled"]


def test_one_that_was_moved_before_all_were_followed_is_told_as_lost(vmm: Vmm) -> None:
    """Nobody knows whether it runs by now."""
    vmm.create(0)
    vmm.table[20] = vmm.table.pop(10)
    vmm.call(FUTEX, ADDRESS)
    assert vmm.master.told == ["spread", ("lost", None)]


def test_others_are_followed_where_its_maker_makes_no_call(vmm: Vmm) -> None:
    """They may use it meanwhile: what they run by then is looked at."""
    began = time.monotonic()
    other = vmm.beside(2)
    vmm.create(0)
    assert vmm.windows.check_makers(began) is not None
    assert vmm.master.told == []
    assert vmm.windows.check_makers(began + PATIENCE) is None
    assert vmm.master.told == [("silent", 0)]
    other.ioctl(10, KVM_RUN)
    assert vmm.master.told == [("silent", 0)]  # KVM refuses that


def test_one_that_another_has_initialised_and_runs_is_seen_there(vmm: Vmm) -> None:
    other = vmm.beside(2)
    vmm.create(0)
    vmm.table[10].has_vpmu = True
    vmm.table[20] = vmm.table[10]
    vmm.windows.check_makers(time.monotonic() + PATIENCE)
    other.ioctl(20, KVM_RUN)
    assert vmm.master.told == [("silent", 0), ("opened", 0), "settled"]


def test_another_vcpu_may_run_meanwhile(vmm: Vmm) -> None:
    other = vmm.beside(2)
    vmm.create(0)
    vmm.init(10)
    vmm.create(0, fd=20, vm_fd=5)
    vmm.windows.check_makers(time.monotonic() + PATIENCE)
    del vmm.master.told[:]
    other.ioctl(10, KVM_RUN)
    assert vmm.master.told == []


def test_a_vcpu_that_is_refused_where_it_is_made_is_not_waited_for(vmm: Vmm) -> None:
    vmm.master.refuses = True
    vmm.create(0)
    assert vmm.windows.is_idle
    assert vmm.master.told == ["settled"]


def test_another_thread_can_learn_of_it_by_any_other_call(vmm: Vmm) -> None:
    vmm.call(FUTEX, ADDRESS)
    assert vmm.master.told == ["settled"]  # there is no vCPU yet
    del vmm.master.told[:]
    vmm.create(0)
    for nr in ARM64.private_calls:
        vmm.call(nr, ADDRESS)
    assert vmm.master.told == []
    vmm.call(FUTEX, ADDRESS)
    assert vmm.master.told == ["spread"]


def test_what_cannot_be_followed_is_tried_once_for_each_vcpu(vmm: Vmm) -> None:
    """Each try may take seconds, and a warning."""
    vmm.master.is_hindered = True
    for index in range(2):
        vmm.create(index)
        vmm.call(FUTEX, ADDRESS)
        vmm.call(FUTEX, ADDRESS)
        vmm.init(10 + index)
        assert vmm.master.told == ["spread", ("opened", index), "settled"]
        del vmm.master.told[:]


def test_qemu_probes_then_makes_the_true_one(vmm: Vmm) -> None:
    vmm.create(0, fd=8, vm_fd=7)
    vmm.init(8, WITHOUT)
    vmm.close(8)
    for index in range(2):
        vmm.create(index)
        vmm.map(10 + index)
        vmm.init(10 + index)
    assert vmm.master.told == ["settled", ("opened", 0), "settled", ("opened", 1), "settled"]


def test_one_that_is_mapped_has_no_vpmu_for_good(vmm: Vmm) -> None:
    vmm.create(0)
    vmm.map(10)
    vmm.init(10, WITHOUT)
    assert vmm.master.told == [("without", 0), "settled"]


def test_one_that_runs_has_no_vpmu_for_good(vmm: Vmm) -> None:
    vmm.create(0)
    vmm.init(10, WITHOUT)
    vmm.ioctl(10, KVM_RUN, 0)
    assert vmm.master.told == [("without", 0), "settled"]


def test_crosvm_makes_all_and_initialises_them_afterwards(vmm: Vmm) -> None:
    for index in range(3):
        vmm.create(index)
    for index in range(3):
        assert vmm.thread.blocked
        vmm.init(10 + index)
    assert vmm.master.told == [("opened", 0), ("opened", 1), ("opened", 2), "settled"]
    assert not vmm.thread.blocked


def test_an_init_that_fails_is_followed_by_another(vmm: Vmm) -> None:
    vmm.create(0)
    vmm.init(10, WITH | 1 << 7, result=-22)
    assert vmm.master.told == []
    vmm.init(10)
    assert vmm.master.told == [("opened", 0), "settled"]


def test_an_init_with_it_that_fails_and_one_without_it(vmm: Vmm) -> None:
    vmm.create(0)
    vmm.map(10)
    vmm.init(10, WITH, result=-22)
    vmm.init(10, WITHOUT)
    assert vmm.master.told == [("without", 0), "settled"]


def test_a_descriptor_is_used_again(vmm: Vmm) -> None:
    vmm.create(0)
    vmm.close(10)
    vmm.create(3, fd=10)
    vmm.init(10)
    assert vmm.master.told == [("sealed", 0), "settled", ("opened", 3), "settled"]


def test_a_second_init_of_a_vcpu_is_a_reset(vmm: Vmm) -> None:
    vmm.create(0)
    vmm.init(10)
    vmm.init(10)
    vmm.ioctl(10, KVM_RUN, 0)
    assert vmm.master.told == [("opened", 0), "settled"]


def test_a_vcpu_that_could_not_be_made_is_none(vmm: Vmm) -> None:
    vmm.ioctl(4, KVM_CREATE_VCPU, 0, result=-17)
    assert vmm.master.told == ["settled"]
    assert not vmm.thread.blocked
    assert not vmm.thread.is_entering


def test_only_32_bits_of_a_request_and_of_a_descriptor_count(vmm: Vmm) -> None:
    vmm.ioctl(4, 0xDEAD << 32 | KVM_CREATE_VCPU, 0, result=10)
    vmm.init(0xBEEF << 32 | 10)
    assert vmm.master.told == [("opened", 0), "settled"]


def test_the_same_descriptor_in_two_processes(vmm: Vmm) -> None:
    other = Vmm(vmm.windows, tid=9, tgid=9)
    vmm.create(0)
    other.create(1, fd=10)
    other.init(10)
    assert vmm.master.told == [("opened", 1)]
    vmm.init(10)
    assert vmm.master.told == [("opened", 1), ("opened", 0), "settled"]


def test_a_process_that_has_ended_is_not_waited_for(vmm: Vmm) -> None:
    vmm.create(0)
    vmm.windows.on_gone(1)
    assert vmm.windows.is_idle


def test_an_answer_is_of_no_other_thread_that_gets_the_same_id(vmm: Vmm) -> None:
    vmm.create(0)
    vmm.init(10)
    vmm.create(1)
    other = vmm.beside(2)
    # a reset; while KVM is asked, an execve() of another thread ends this one
    other.thread.call = ARM64.nr_ioctl, (10, KVM_ARM_VCPU_INIT, ADDRESS)
    vmm.windows.on_enter(other.thread, *other.thread.call)
    vmm.beside(2).init(11)
    assert ("opened", 1) in vmm.master.told


def test_a_hold_is_past_the_windows(vmm: Vmm) -> None:
    vmm.windows.awaits_attribute = True
    vmm.create(0)
    vmm.init(10)
    assert vmm.master.told == [("opened", 0)]  # it is followed further
    for group, request in ((1, KVM_SET_DEVICE_ATTR), (0, KVM_HAS_DEVICE_ATTR)):
        vmm.thread.memory = struct.pack("<IIQQ", 0, group, 0, 0)
        vmm.ioctl(10, request)
    assert vmm.master.told == [("opened", 0), ("attribute", 10)]


def test_a_vcpu_that_is_run_before_the_hold_is_told(vmm: Vmm) -> None:
    """Another thread has changed the group of attributes once it was read here."""
    vmm.windows.awaits_attribute = True
    vmm.create(0)
    vmm.init(10)
    vmm.thread.memory = struct.pack("<IIQQ", 0, 1, 0, 0)
    vmm.ioctl(10, KVM_SET_DEVICE_ATTR)
    vmm.ioctl(10, KVM_RUN)
    assert vmm.master.told == [("opened", 0), "unheld"]


def test_on_x86_the_window_opens_where_the_vcpu_is_made() -> None:
    master = Master()
    procs = Procfs(NOWHERE)
    windows = VcpuTracker(ARCHES["x86_64"], procs, AddressSpaces(procs), master)
    args = (4, KVM_CREATE_VCPU, 2, 0, 0, 0)
    thread = FakeTracee()
    windows.on_enter(thread, 16, args)
    windows.on_exit(thread, 16, args, 9)
    assert master.told == [("opened", 2), "settled"]


@pytest.mark.parametrize(
    "call", [lambda vmm: vmm.init(99), lambda vmm: vmm.close(10)], ids=["entered", "left"]
)
def test_what_cannot_be_read_for_want_of_descriptors_is_told(call: Callable[[Vmm], None]) -> None:
    """A duplicate of its descriptor, or none, and whether it is open still: the VMM's own tell."""
    procs, master = Procfs(), Master()
    vmm = Vmm(VcpuTracker(ARM64, procs, AddressSpaces(procs), master), tgid=os.getpid())
    vmm.create(0)
    with no_descriptors():
        call(vmm)
    assert master.told == [("lost", "EMFILE")]


def test_a_thread_of_nobody_knows_whom_is_told_at_its_next_call() -> None:
    vmm = Vmm()
    vmm.thread.shortage = ResourceExhaustedError("this machine cannot be read", errno="ENFILE")
    vmm.create(0)
    assert vmm.master.told == [("lost", "ENFILE")]
