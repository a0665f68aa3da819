# SPDX-License-Identifier: Apache-2.0
"""VMMs that move a vCPU's descriptor, or share it, before they initialise it.

`python3 -m` this in the lab, with how: a name of WAYS or HELPERS, or WITHOUT_VPMU. It makes two
VMs of one vCPU each, runs both, and says so as the other stand-ins do.
"""

import ctypes
import fcntl
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

from pmuctl.uapi.pidfd import pidfd_getfd
from tests.lab.standins.kinds import init_pmu
from tests.lab.standins.talk import say, say_status
from tests.lab.standins.vm import Plan, StandinVcpu, StandinVm
from tests.lab.vmm.vcpu import FailEntry

CLONE_VM, CLONE_FILES, CLONE_VFORK, CLONE_UNTRACED = 0x100, 0x400, 0x4000, 0x800000
STACK_BYTES = 1 << 20

libc = ctypes.CDLL(None, use_errno=True)
stacks: list[mmap.mmap] = []
"""Of the processes that were made: they may still run."""


def move(vcpu: StandinVcpu, to: int) -> None:
    """Put it at this descriptor, and close the one it had."""
    os.dup2(vcpu.fd, to, inheritable=False)
    os.close(vcpu.fd)
    vcpu.fd = to


def at_its_old_descriptor(vms: list[StandinVm], duplicate: Callable[[int], int]) -> None:
    """The second VM's vCPU gets the descriptor that the first one's had."""
    first = vms[0].create_vcpu()
    before = first.fd
    first.fd = duplicate(before)
    os.close(before)
    second = vms[1].create_vcpu()
    assert second.fd == before
    second.init(vpmu=True)
    first.init(vpmu=True)


def with_dupfd(vms: list[StandinVm]) -> None:
    """Moved with F_DUPFD."""
    at_its_old_descriptor(vms, lambda fd: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 500))


def with_dup2(vms: list[StandinVm]) -> None:
    """Moved with dup3."""
    at_its_old_descriptor(vms, lambda fd: os.dup2(fd, 500, inheritable=False))


def in_own_table(vms: list[StandinVm]) -> None:
    """Made, moved and initialised by a thread with descriptors of its own."""
    if libc.unshare(CLONE_FILES):
        os._exit(3)
    for number, vm in enumerate(vms):
        vcpu = vm.create_vcpu()
        os.close(os.dup(0))
        move(vcpu, 600 + number)
        vcpu.init(vpmu=True)


def through_socket(vms: list[StandinVm]) -> None:
    """Sent to itself, closed, and received again: for a while it is in no table."""
    ours, theirs = socket.socketpair()
    for vm in vms:
        before = vcpu_fds()
        vcpu = vm.create_vcpu()
        socket.send_fds(ours, [b"1"], [vcpu.fd])
        for fd in vcpu_fds() - before:  # the mapping of its page has a duplicate
            os.close(fd)
        os.close(os.dup(0))
        _, [vcpu.fd], _, _ = socket.recv_fds(theirs, 1, 1)
        vcpu.init(vpmu=True)


def in_child(vms: list[StandinVm]) -> None:
    """Made here, initialised by a process with the same memory."""
    for vm in vms:
        vcpu = vm.create_vcpu()
        as_process(lambda vcpu=vcpu: vcpu.init(vpmu=True))  # type: ignore[misc]


def in_untraced_child(vms: list[StandinVm]) -> None:
    """The same, of a process that wants no tracer to be told of it."""
    for vm in vms:
        vcpu = vm.create_vcpu()
        as_process(lambda vcpu=vcpu: vcpu.init(vpmu=True), CLONE_UNTRACED)  # type: ignore[misc]


def by_child(vms: list[StandinVm]) -> None:
    """Made by a process with the same memory, initialised here."""
    for vm in vms:
        as_process(lambda vm=vm: vm.create_vcpu())  # type: ignore[misc]
        vm.vcpus[0].init(vpmu=True)


def beside_program(vms: list[StandinVm]) -> None:
    """A vfork child executes a program between the two."""
    for vm in vms:
        vcpu = vm.create_vcpu()
        subprocess.run(["true"], close_fds=False, check=True)
        vcpu.init(vpmu=True)


class Helper:
    """A process with memory of its own that keeps a vCPU while this one has none.

    What it is to do, and has done, stands in memory that both see: no call tells of it.
    """

    def __init__(self, *, shares_fds: bool, vpmu: bool = True) -> None:
        self._vpmu = vpmu
        self._state = mmap.mmap(-1, 4096)
        self._ours, self._theirs = socket.socketpair()
        vmm = os.getpid()
        job = self._keep_in_flight if shares_fds else lambda: self._keep(vmm)
        clone(job, CLONE_FILES if shares_fds else 0)

    def use(self, vms: list[StandinVm]) -> None:
        """Have it keep the vCPU of the first VM for a while."""
        first = vms[0].create_vcpu()
        fds = vcpu_fds()
        self._tell(1, first.fd)
        self._await(2)
        for fd in fds:  # the mapping of its page has a duplicate
            os.close(fd)
        self._tell(3)
        _, [first.fd], _, _ = socket.recv_fds(self._ours, 1, 1)
        say(event="back", vm=0)
        first.init(vpmu=self._vpmu)
        vms[1].create_vcpu().init(vpmu=True)

    def _keep(self, vmm: int) -> None:
        self._await(1)
        pidfd = os.pidfd_open(vmm)
        fd = pidfd_getfd(pidfd, int.from_bytes(self._state[1:5], "little"))
        self._tell(2)
        self._await(3)
        socket.send_fds(self._theirs, [b"1"], [fd])

    def _keep_in_flight(self) -> None:
        self._await(1)
        fd = int.from_bytes(self._state[1:5], "little")
        socket.send_fds(self._theirs, [b"1"], [fd])
        self._tell(2)

    def _tell(self, state: int, fd: int = 0) -> None:
        self._state[1:5] = fd.to_bytes(4, "little")
        self._state[0] = state

    def _await(self, state: int) -> None:
        while self._state[0] != state:
            pass


WAYS: dict[str, Callable[[list[StandinVm]], None]] = {
    "dupfd": with_dupfd,
    "dup2": with_dup2,
    "own-table": in_own_table,
    "socket": through_socket,
    "in-child": in_child,
    "in-untraced-child": in_untraced_child,
    "by-child": by_child,
    "exec": beside_program,
}
HELPERS = {"helper": False, "table-sharer": True}
"""Ways by a helper, and whether that has the same descriptors."""
WITHOUT_VPMU = "without-vpmu"
"""By a helper, and initialised without a vPMU."""


def vcpu_fds() -> set[int]:
    """The descriptors of vCPUs in this thread's table."""
    found = set()
    for name in os.listdir("/proc/thread-self/fd"):
        with suppress(FileNotFoundError):
            if os.readlink(f"/proc/thread-self/fd/{name}").startswith("anon_inode:kvm-vcpu"):
                found.add(int(name))
    return found


def as_process(job: Callable[[], object], more: int = 0) -> None:
    """Do it in a process that shares this one's memory and descriptors, and wait for that.

    `more` are more flags of clone(2).
    """
    pid = clone(job, CLONE_VM | CLONE_FILES | CLONE_VFORK | more)
    say(event="child", status=os.waitpid(pid, 0)[1])


def clone(job: Callable[[], object], flags: int) -> int:
    """Do it in a process that shares with this one what these flags say; return its id."""

    def begin(_: object) -> int:
        job()
        return 0

    stack = mmap.mmap(-1, STACK_BYTES)
    top = ctypes.addressof(ctypes.c_char.from_buffer(stack)) + STACK_BYTES
    begun = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(begin)
    stacks.append(stack)
    return int(libc.clone(begun, ctypes.c_void_p(top), flags | signal.SIGCHLD, None))


def failed(vcpu: int, exit_: FailEntry) -> None:
    """Say so and end."""
    print(f"vcpu {vcpu}: unexpected fail entry, reason {exit_.reason:#x}", file=sys.stderr)
    os._exit(1)


def live(way: Callable[[list[StandinVm]], None]) -> None:
    """Make both VMs this way, and run them."""
    vms = [StandinVm(Plan(vcpus=1), number) for number in range(2)]
    way(vms)
    for vm in vms:
        vm.create_gic()
        init_pmu(vm)
    for vm in vms:
        vm.start("vcpu%d", failed)
        vm.wait()
    say_status()


def main() -> int:
    """Have another thread than the first do all of it: the first has the other descriptors."""
    name = sys.argv[1]
    if name in WAYS:
        way = WAYS[name]
    else:
        way = Helper(shares_fds=HELPERS.get(name, False), vpmu=name != WITHOUT_VPMU).use
    thread = threading.Thread(target=live, args=(way,))
    thread.start()
    thread.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
