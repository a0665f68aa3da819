# SPDX-License-Identifier: Apache-2.0
"""No vCPU is forgotten, and none is waited for for ever, whatever a VMM does with descriptors."""

import errno
import struct

import pytest

from pmuctl.uapi.kvm import KVM_ARM_VCPU_INIT, KVM_RUN
from tests.launch.scripted import (
    ADDRESS,
    ARM64,
    CLOSE_RANGE,
    FCNTL,
    FUTEX,
    NOWHERE,
    WITH,
    WITHOUT,
    Kernel,
    VcpuFile,
    Vmm,
)

CLONE, CLONE3, EXIT, IO_URING_ENTER, PIDFD_GETFD, UNSHARE = 220, 435, 93, 426, 438, 97
CLONE_VM, CLONE_FILES, CLONE_THREAD, CLONE_UNTRACED = 0x100, 0x400, 0x10000, 0x800000
CLOSE_RANGE_UNSHARE, CLOSE_RANGE_CLOEXEC = 2, 4
FD, COPY = 710, 720


@pytest.fixture(params=[False, True], ids=["", "without kcmp"])
def vmm(request: pytest.FixtureRequest) -> Vmm:
    return Vmm(kernel=Kernel(NOWHERE, is_mute=request.param))


def opened(vmm: Vmm) -> list[int]:
    """The numbers of the vCPUs whose windows were told of, so far."""
    return [its[1] for its in vmm.master.told if isinstance(its, tuple) and its[0] == "opened"]


# --- none is forgotten ---------------------------------------------------------------------------


def test_one_made_by_a_thread_with_descriptors_of_its_own(vmm: Vmm) -> None:
    alone = vmm.beside(2, table={})
    alone.create(0)
    alone.duplicate(1, 30) if 1 in alone.table else alone.close(1)
    alone.move(10, FD)
    alone.init(FD)
    assert opened(vmm) == [0]


@pytest.mark.parametrize("number", [0, 1])
def test_one_that_was_moved_where_the_next_takes_its_old_descriptor(vmm: Vmm, number: int) -> None:
    vmm.create(0, fd=FD)
    vmm.move(FD, COPY)
    vmm.create(number, fd=FD, vm_fd=5)
    vmm.init(FD)
    assert opened(vmm) == [number]
    assert not vmm.windows.is_idle
    vmm.init(COPY)
    assert opened(vmm) == [number, 0]
    assert vmm.windows.is_idle


def test_the_same_the_moved_one_first(vmm: Vmm) -> None:
    vmm.create(0, fd=FD)
    vmm.duplicate(FD, COPY)
    vmm.close(FD)
    vmm.create(0, fd=FD, vm_fd=5)
    vmm.init(COPY)
    assert not vmm.windows.is_idle
    vmm.init(FD)
    assert opened(vmm) == [0, 0]
    assert vmm.windows.is_idle


def test_one_that_is_in_no_table_for_a_while(vmm: Vmm) -> None:
    vmm.create(0, fd=FD)
    vmm.send(control=20)
    vmm.close(FD)
    vmm.close(1)
    assert not vmm.windows.is_idle
    vmm.table[COPY] = VcpuFile(0)
    vmm.receive(control=20)
    vmm.init(COPY)
    assert opened(vmm) == [0]
    assert vmm.windows.is_idle


@pytest.mark.parametrize(
    "call",
    [
        (IO_URING_ENTER, 4, 1),
        (PIDFD_GETFD, 4, 1),
        (CLONE, CLONE_VM),
        (CLONE, 17),
        (UNSHARE, CLONE_FILES),
        (CLOSE_RANGE, 4000, 4000, CLOSE_RANGE_UNSHARE),
        (CLONE3, ADDRESS),
    ],
)
def test_one_that_may_have_left_by(vmm: Vmm, call: tuple[int, ...]) -> None:
    vmm.create(0, fd=FD)
    vmm.call(*call)
    vmm.close(FD)
    assert not vmm.windows.is_idle


def test_one_that_came_back_from_who_took_it(vmm: Vmm) -> None:
    """Another process took it by pidfd_getfd, which nobody sees; it can only send it back."""
    vmm.create(0, fd=FD)
    vmm.receive(control=20)
    vmm.close(FD)
    assert not vmm.windows.is_idle


def test_one_that_is_open_in_another_table(vmm: Vmm) -> None:
    other = vmm.beside(2, table={})
    vmm.create(0, fd=FD)
    vmm.call(FUTEX, ADDRESS)
    other.table[3] = vmm.table[FD]
    vmm.close(FD)
    assert not vmm.windows.is_idle
    other.init(3)
    assert opened(vmm) == [0]


def test_one_that_another_thread_guessed_and_duplicated() -> None:
    """By no call of its maker could it learn of it."""
    vmm = Vmm()
    vmm.create(0, fd=FD)
    vmm.table[COPY] = vmm.table[FD]
    vmm.close(FD)
    assert not vmm.windows.is_idle


def test_one_that_is_initialised_by_two_threads_at_once_counts_once() -> None:
    vmm = Vmm()
    other = vmm.beside(2)
    vmm.create(0, fd=FD, vm_fd=5)
    vmm.move(FD, 501)
    vmm.create(0, fd=FD)
    vmm.duplicate(FD, COPY)
    calls = [(vmm, FD), (other, COPY)]
    for its, fd in calls:
        its.thread.memory = struct.pack("<II", 5, WITH)
        its.enter(ARM64.nr_ioctl, (fd, KVM_ARM_VCPU_INIT, ADDRESS, 0, 0, 0))
    vmm.table[FD].has_vpmu = True
    for its, fd in calls:
        its.leave(ARM64.nr_ioctl, (fd, KVM_ARM_VCPU_INIT, ADDRESS, 0, 0, 0))
    assert not vmm.windows.is_idle
    vmm.init(501)
    assert vmm.windows.is_idle


@pytest.mark.parametrize("answer", [errno.EPERM, errno.EBADF])
def test_one_of_which_kvm_could_not_be_asked(
    vmm: Vmm, monkeypatch: pytest.MonkeyPatch, answer: int
) -> None:
    """The VMM's own seccomp filter answers, or the descriptor was closed just then."""
    vmm.create(0)
    vmm.init(10)
    vmm.create(0, fd=FD, vm_fd=5)
    vmm.call(FUTEX, ADDRESS)
    monkeypatch.setattr(vmm.thread, "ask", lambda *_: -answer)
    vmm.init(FD)
    assert opened(vmm) == [0, 0]


def test_one_that_took_the_descriptor_of_another_after_kvm_was_asked(vmm: Vmm) -> None:
    """What was judged a reset is set all the same: KVM refuses where it is one."""
    other = vmm.beside(2)
    vmm.create(0, fd=FD)
    vmm.init(FD)
    vmm.create(0, fd=COPY, vm_fd=5)
    vmm.call(FUTEX, ADDRESS)
    call = (FD, KVM_ARM_VCPU_INIT, ADDRESS, 0, 0, 0)
    vmm.enter(ARM64.nr_ioctl, call)
    other.call(24, COPY, FD, effect=lambda: vmm.table.update({FD: vmm.table[COPY]}))
    vmm.leave(ARM64.nr_ioctl, call)
    assert vmm.master.told[-1] == ("reset", FD)
    assert not vmm.windows.is_idle


def test_a_child_that_its_tracer_would_not_be_told_of(vmm: Vmm) -> None:
    vmm.create(0)
    vmm.call(CLONE, CLONE_VM | CLONE_UNTRACED)
    assert vmm.thread.arguments == {0: CLONE_VM}
    vmm.thread.memory = struct.pack("<Q", CLONE_VM | CLONE_FILES | CLONE_UNTRACED)
    vmm.call(CLONE3, ADDRESS, 88)
    assert vmm.thread.memory[:8] == struct.pack("<Q", CLONE_VM | CLONE_FILES)


def test_one_whose_descriptors_may_not_be_looked_at() -> None:
    vmm = Vmm(kernel=Kernel(NOWHERE, hides=True))
    vmm.create(0, fd=FD)
    vmm.close(FD)
    assert not vmm.windows.is_idle


def test_one_that_another_thread_duplicates_while_it_is_closed(vmm: Vmm) -> None:
    """The kernel has taken hold of the file, and has not given it its new descriptor yet."""
    other = vmm.beside(2)
    vmm.create(0, fd=FD)
    vmm.init(FD, WITHOUT)
    vmm.call(FUTEX, ADDRESS)
    file = vmm.table[FD]
    duplicating = (FCNTL, (FD, 0, 30, 0, 0, 0))
    other.enter(*duplicating)
    vmm.close(FD)
    assert not vmm.windows.is_idle
    vmm.table[30] = file
    other.leave(*duplicating)
    vmm.ioctl(30, KVM_RUN, 0)
    assert vmm.master.told[-2:] == [("without", 0), "settled"]


def test_one_whose_duplicate_has_taken_its_place_in_time(vmm: Vmm) -> None:
    other = vmm.beside(2)
    vmm.create(0, fd=FD)
    vmm.init(FD, WITHOUT)
    vmm.call(FUTEX, ADDRESS)
    vmm.enter(57, (FD, 0, 0, 0, 0, 0))
    other.duplicate(FD, 30)
    del vmm.table[FD]
    vmm.leave(57, (FD, 0, 0, 0, 0, 0))
    assert not vmm.windows.is_idle
    vmm.close(30)
    assert vmm.windows.is_idle


def test_one_that_may_come_back_is_sealed_before_its_last_descriptor_is_closed(vmm: Vmm) -> None:
    """A process beside the VMM took it by pidfd_getfd, which nobody sees."""
    vmm.create(0, fd=FD)
    vmm.duplicate(FD, COPY)
    vmm.close(FD)
    assert ("sealed", 0) not in vmm.master.told
    told: list[object] = []
    vmm.call(57, COPY, effect=lambda: told.extend(vmm.master.told))
    assert ("sealed", 0) in told
    assert vmm.windows.is_idle


def test_one_that_cannot_be_sealed_is_waited_for(vmm: Vmm) -> None:
    vmm.master.can_seal = False
    vmm.create(0, fd=FD)
    vmm.close(FD)
    assert not vmm.windows.is_idle
    vmm.table[COPY] = VcpuFile(0)
    vmm.receive(control=20)
    vmm.init(COPY)
    assert opened(vmm) == [0]


def test_one_whose_maker_ends_and_whose_descriptors_others_share_is_not_sealed(vmm: Vmm) -> None:
    """Another thread initialises it, with features that nobody knows yet."""
    other, idle = vmm.beside(2), vmm.beside(3, table={})
    vmm.create(0, fd=FD)
    vmm.call(FUTEX, ADDRESS)
    vmm.enter(EXIT, (0, 0, 0, 0, 0, 0))
    assert idle.table == {}
    other.init(FD)
    assert ("sealed", 0) not in vmm.master.told
    assert opened(vmm) == [0]


def test_one_of_two_with_the_same_number_is_sealed_at_its_close() -> None:
    vmm = Vmm()
    vmm.create(0, fd=FD)
    vmm.create(0, fd=COPY, vm_fd=5)
    vmm.call(FUTEX, ADDRESS)
    vmm.close(FD)
    assert vmm.master.told[-1] == ("sealed", 0)
    vmm.init(COPY)
    assert opened(vmm) == [0]
    assert vmm.windows.is_idle


def test_one_that_is_initialised_by_a_child_with_its_memory(vmm: Vmm) -> None:
    vmm.kernel.memories[9] = 1
    child = vmm.beside(9, tgid=9)
    assert not vmm.kernel.is_mute or vmm.windows.on_new_process(9) is False
    vmm.create(0, fd=FD)
    assert vmm.windows.on_new_process(9)
    vmm.windows.on_gone(1)  # the one that made it is gone, the memory is not
    child.init(FD)
    assert opened(vmm) == [0]


def test_one_made_by_a_child_with_its_memory() -> None:
    kernel = Kernel(NOWHERE)
    vmm = Vmm(kernel=kernel)
    kernel.memories[9] = 1
    child = vmm.beside(9, tgid=9)
    child.create(0, fd=FD)
    child.call(FUTEX, ADDRESS)
    assert vmm.spaces.scan_sharing_processes(9) == {1, 9}
    vmm.init(FD)
    assert opened(vmm) == [0]


def test_a_process_that_has_the_id_of_one_that_shared_memory_is_none_of_it() -> None:
    """It is neither followed nor confined nor killed with it."""
    vmm = Vmm()
    vmm.kernel.memories[9] = 1
    vmm.beside(9, tgid=9)
    vmm.create(0, fd=FD)
    spaces = vmm.spaces
    assert spaces.scan_sharing_processes(1) == spaces.sharing_processes(1) == {1, 9}
    del vmm.kernel.memories[9]  # it ended unseen, and a stranger has its id
    assert spaces.sharing_processes(1) == {1}
    assert spaces.scan_sharing_processes(1) == {1}


def test_one_made_where_a_child_has_executed_another_program(vmm: Vmm) -> None:
    vmm.kernel.memories[9] = 1
    vmm.beside(9, tgid=9)
    vmm.create(0, fd=FD)
    vmm.windows.on_new_process(9)
    vmm.windows.on_gone(9)
    assert not vmm.windows.is_idle
    vmm.init(FD)
    assert opened(vmm) == [0]


def test_one_that_is_initialised_by_a_child_after_another_vmm_has_ended(vmm: Vmm) -> None:
    vmm.create(0)
    vmm.init(10)
    second = vmm.beside(5, tgid=5, table={})
    del vmm.kernel.tgids[1]  # it was detached by then, so that nobody tells of its end
    second.create(0, fd=FD)
    vmm.kernel.memories[9] = 5
    child = second.beside(9, tgid=9)
    assert vmm.windows.on_new_process(9)
    child.init(FD)
    assert opened(vmm) == [0, 0]


def test_the_memory_of_processes_that_have_ended_is_not_kept() -> None:
    """They were detached by then: nobody tells of their end. A gate may see very many."""
    vmm = Vmm()
    vmm.create(0)
    vmm.init(10)
    for tgid in (2, 3):
        del vmm.kernel.tgids[tgid - 1]
        vmm = vmm.beside(tgid, tgid=tgid, table={})
        vmm.create(0)
        assert vmm.spaces.find(tgid) is not None
        assert vmm.spaces.find(tgid - 1) is None
        vmm.init(10)
    assert opened(vmm) == [0, 0, 0]


# --- none is waited for for ever -----------------------------------------------------------------


def test_one_that_is_only_asked_and_closed(vmm: Vmm) -> None:
    """QEMU's query-gic-capabilities, while its VM runs: nothing is asked, nobody else followed."""
    vmm.create(0, fd=FD)
    vmm.init(FD)
    vmm.create(0, fd=COPY, vm_fd=5)
    vmm.ioctl(COPY, 0xAE03, 0)
    vmm.close(COPY)
    assert vmm.windows.is_idle
    assert opened(vmm) == [0]
    assert vmm.thread.asked == 0
    assert "spread" not in vmm.master.told
    assert not vmm.thread.blocked


def test_the_same_among_calls_that_others_could_learn_by() -> None:
    vmm = Vmm()
    vmm.create(0, fd=FD)
    vmm.init(FD)
    vmm.create(0, fd=COPY, vm_fd=5)
    vmm.ioctl(FD, KVM_RUN, 0)  # the VM runs on
    vmm.init(FD)  # and is reset
    vmm.send(control=0)
    vmm.receive(control=0)
    vmm.call(CLONE, CLONE_VM | CLONE_FILES | CLONE_THREAD)
    vmm.call(UNSHARE, 0)
    assert not vmm.windows.is_idle
    vmm.close(FD)
    assert not vmm.windows.is_idle
    vmm.close(COPY)
    assert vmm.windows.is_idle
    assert not vmm.thread.blocked


def test_nothing_is_asked_of_a_vcpu_that_runs() -> None:
    """KVM would answer once it does not any more."""
    vmm = Vmm()
    vmm.create(0, fd=FD)
    vmm.init(FD)
    vmm.create(0, fd=COPY, vm_fd=5)
    other = vmm.beside(2)
    vmm.call(FUTEX, ADDRESS)
    other.enter(ARM64.nr_ioctl, (FD, KVM_RUN, 0, 0, 0, 0))
    asked = vmm.thread.asked
    vmm.close(FD)
    assert vmm.thread.asked == asked
    assert not vmm.windows.is_idle


def test_nothing_is_asked_of_a_vcpu_that_runs_at_another_descriptor() -> None:
    vmm = Vmm()
    vmm.create(0, fd=FD)
    vmm.init(FD)
    vmm.duplicate(FD, 801)
    vmm.create(0, fd=COPY, vm_fd=5)
    other = vmm.beside(2, table=dict(vmm.table))
    vmm.call(FUTEX, ADDRESS)
    vmm.close(801)
    other.enter(ARM64.nr_ioctl, (801, KVM_RUN, 0, 0, 0, 0))
    del other.table[FD]
    asked = vmm.thread.asked
    vmm.close(FD)
    assert vmm.thread.asked == asked
    assert not vmm.windows.is_idle


def test_one_that_is_closed_with_others(vmm: Vmm) -> None:
    vmm.create(0, fd=FD)
    vmm.call(CLOSE_RANGE, FD, COPY, CLOSE_RANGE_CLOEXEC)
    assert not vmm.windows.is_idle
    vmm.call(CLOSE_RANGE, FD, COPY, 0, effect=vmm.table.clear)
    assert vmm.windows.is_idle


def test_one_that_is_replaced_by_another_file(vmm: Vmm) -> None:
    vmm.create(0, fd=FD)
    vmm.call(24, 1, FD, 0, effect=vmm.table.clear)
    assert vmm.windows.is_idle


def test_one_that_had_a_duplicate(vmm: Vmm) -> None:
    vmm.create(0, fd=FD)
    vmm.duplicate(FD, COPY)
    vmm.close(FD)
    assert not vmm.windows.is_idle
    vmm.close(COPY)
    assert vmm.windows.is_idle


def test_one_whose_last_descriptor_ends_with_its_thread(vmm: Vmm) -> None:
    alone = vmm.beside(2, table={})
    alone.create(0, fd=FD)
    alone.enter(EXIT, (0, 0, 0, 0, 0, 0))
    del vmm.kernel.tgids[2], vmm.kernel.tables[2]
    vmm.call(FUTEX, ADDRESS)
    assert vmm.windows.is_idle


def test_one_that_a_process_which_is_gone_had_made(vmm: Vmm) -> None:
    vmm.create(0)
    vmm.windows.on_gone(1)
    assert vmm.windows.is_idle


def test_one_that_left_does_not_count_for_the_next(vmm: Vmm) -> None:
    vmm.create(0, fd=FD)
    vmm.send(control=20)
    vmm.init(FD)
    vmm.create(0, fd=COPY, vm_fd=5)
    vmm.close(COPY)
    assert vmm.windows.is_idle


# --- which it is ---------------------------------------------------------------------------------


def test_a_duplicate_of_one_without_a_vpmu_may_not_run(vmm: Vmm) -> None:
    vmm.create(0, fd=FD)
    vmm.init(FD, WITHOUT)
    vmm.move(FD, COPY)
    vmm.ioctl(COPY, KVM_RUN, 0)
    assert ("without", 0) in vmm.master.told


def test_one_beside_it_that_has_a_vpmu_may(vmm: Vmm) -> None:
    vmm.create(0, fd=FD)
    vmm.init(FD)
    vmm.create(0, fd=COPY, vm_fd=5)
    vmm.init(COPY, WITHOUT)
    vmm.ioctl(FD, KVM_RUN, 0)
    assert ("without", 0) not in vmm.master.told
    vmm.close(COPY)
    assert vmm.windows.is_idle


def test_nothing_is_asked_of_one_that_only_its_maker_knows(vmm: Vmm) -> None:
    """Each question costs stops, and this one is initialised for the first time."""
    for index in range(2):
        vmm.create(index)
        vmm.map(10 + index)
        vmm.init(10 + index)
    assert opened(vmm) == [0, 1]
    assert vmm.thread.asked == 0


def test_one_that_others_know_is_asked_about_unless_it_is_the_first_of_all(vmm: Vmm) -> None:
    other = vmm.beside(2)
    for index in range(2):
        vmm.create(index)
    vmm.call(FUTEX, ADDRESS)
    asked = vmm.thread.asked
    other.init(10)
    assert (opened(vmm), other.thread.asked) == ([0], 0)
    other.init(11)
    assert (opened(vmm), other.thread.asked) == ([0, 1], 1)
    assert vmm.thread.asked == asked
