# SPDX-License-Identifier: Apache-2.0
"""A VMM of a few calls for x86-64, to be run behind the gate; says what came of each.

It prints a JSON object a line. At the points named by --pause it says {"at": POINT} and waits
for a line: `before` it opens KVM, when its `windows` are open, once its vCPUs are `made`, once
they `ran` (or spin), `last`.
"""

import _thread
import argparse
import ctypes
import errno
import json
import mmap
import os
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

KVM_CREATE_VM, KVM_CREATE_VCPU, KVM_GET_VCPU_MMAP_SIZE, KVM_RUN = 0xAE01, 0xAE41, 0xAE04, 0xAE80
KVM_SET_USER_MEMORY_REGION, KVM_HAS_DEVICE_ATTR = 0x4020AE46, 0x4018AEE3
KVM_CREATE_IRQCHIP = 0xAE60
PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 4, 22, 38
SECCOMP_MODE_FILTER, NR_EXIT_GROUP = 2, 231
REFUSALS = {"errno": 0x00050001, "trap": 0x00030000}
CLONE_VM, CLONE_FILES, CLONE_VFORK = 0x100, 0x400, 0x4000

# int f(vm, KVM_CREATE_VCPU, index, u64 out[17]): fills registers and the 2 KB below the stack
# pointer with known values, makes the ioctl, stores what it finds afterwards: rax rbx rbp r12 r13
# r14 r8 r9 r10 rdi rsi rdx rsp, the differences below the stack pointer, …, rsp before.
CHECKED_IOCTL = bytes.fromhex(
    "535541544155415641574989cfb81000000048bb111111111111111148bd222222222222222249bc3333333333"
    "33333349bd444444444444444449be555555555555555549b8666666666666666649b9777777777777777749ba"
    "88888888888888884989a78000000031c948ffc14989cb49f7db48b899999999000000004831c84a8904dc4881"
    "f90001000075ddb8100000000f0549890749895f0849896f104d8967184d896f204d8977284d8947304d894f38"
    "4d89574049897f4849897750498957584989676031c931d248ffc14989cb49f7db48b899999999000000004831"
    "c84a3304dc4809c24881f90001000075da49895768415f415e415d415c5d5bc3"
)

libc = ctypes.CDLL(None, use_errno=True)
libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
said = threading.Lock()
memories: list[mmap.mmap] = []
"""Of all guests, which may run to the end."""


def ioctl(fd: int, request: int, arg: object = 0) -> int:
    """What the call returned, -errno for an error."""
    value = arg if isinstance(arg, int) else ctypes.addressof(arg)  # type: ignore[arg-type]
    result: int = libc.ioctl(fd, request, value)
    return result if result >= 0 else -ctypes.get_errno()


def say(**what: object) -> None:
    with said:
        print(json.dumps(what), flush=True)


def pause(options: argparse.Namespace, point: str) -> None:
    if point in options.pause:
        say(at=point)
        sys.stdin.readline()


def make_vcpu(vm: int, index: int) -> int:
    """Make a vCPU, again as long as a signal interrupts that."""
    interrupted = 0
    while (result := ioctl(vm, KVM_CREATE_VCPU, index)) == -errno.EINTR:
        interrupted += 1
    link = os.readlink(f"/proc/self/fd/{result}") if result >= 0 else None
    tid = threading.get_native_id()
    say(vcpu=index, result=result, link=link, interrupted=interrupted, tid=tid)
    return result


def make_checked(vm: int, index: int) -> int:
    """Make a vCPU and say which registers were not as they should be afterwards."""
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(CHECKED_IOCTL)
    out = (ctypes.c_uint64 * 17)()
    start = ctypes.addressof(ctypes.c_char.from_buffer(code))
    call = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_uint64] * 4)(start)
    call(vm, KVM_CREATE_VCPU, index, ctypes.addressof(out))
    kept = [0x1111111111111111 * n for n in range(1, 9)]
    wanted = [*kept, vm, KVM_CREATE_VCPU, index, out[16], 0]
    wrong = [n + 1 for n, value in enumerate(wanted) if out[n + 1] != value]
    result = ctypes.c_int64(out[0]).value
    link = os.readlink(f"/proc/self/fd/{result}") if result >= 0 else None
    say(vcpu=index, result=result, link=link, wrong=wrong)
    return result


def map_run(vcpu: int, size: int) -> "ctypes.Array[ctypes.c_uint32]":
    """Its kvm_run; mmap.mmap would keep a duplicate of the descriptor."""
    prot = mmap.PROT_READ | mmap.PROT_WRITE
    address = libc.mmap(None, size, prot, mmap.MAP_SHARED, vcpu, 0)
    return (ctypes.c_uint32 * 3).from_address(address)


def make_vm(options: argparse.Namespace) -> None:
    kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC) if options.kvm is None else options.kvm
    vm = ioctl(kvm, KVM_CREATE_VM)
    say(vm=vm)
    memory = mmap.mmap(-1, 4096)
    memories.append(memory)
    memory[0xFF0:0xFF3] = b"\xeb\xfe\x90" if options.spin else b"\xf4\xeb\xfd"  # jmp . or hlt
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    region = struct.pack("<IIQQQ", 0, 0, 0xFFFFF000, 4096, address)
    ioctl(vm, KVM_SET_USER_MEMORY_REGION, ctypes.create_string_buffer(region, 32))
    size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE)
    if options.sleep:  # with it HLT, and a secondary's wait for its start, are slept in KVM_RUN
        ioctl(vm, KVM_CREATE_IRQCHIP)
    ready = threading.Barrier(options.vcpus + 1)
    stays = options.spin or options.sleep

    def run(index: int, vcpu: int | None = None) -> None:
        if vcpu is None:
            vcpu = make_vcpu(vm, index)
        page = map_run(vcpu, size) if vcpu >= 0 else None
        ready.wait()
        ready.wait()
        if page is not None and (options.run or stays):
            mask = sorted(os.sched_getaffinity(0))
            now = time.monotonic()
            say(running=index, tid=threading.get_native_id(), mask=mask, at=now)
            interrupted = 0
            while (result := ioctl(vcpu, KVM_RUN)) == -errno.EINTR:  # as a tracer's stop does
                interrupted += 1
            say(ran=index, result=result, reason=page[2], interrupted=interrupted)

    made: list[int | None] = [None] * options.vcpus
    if not options.threads:
        make = make_checked if options.registers else make_vcpu
        made = [make(vm, index) for index in range(options.vcpus)]
    signal.setitimer(signal.ITIMER_REAL, 0)
    threads = [
        threading.Thread(target=run, args=(index, made[index]), daemon=True)
        for index in range(options.vcpus)
    ]
    deaf = signal.valid_signals() if options.deaf_threads else set()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, deaf)
    for thread in threads:  # they inherit the mask
        thread.start()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    ready.wait()
    pause(options, "windows")
    if options.attribute and made[0] is not None:  # of group 0, as those of a PMU are on arm64
        attribute = ctypes.create_string_buffer(24)
        if options.storm:
            signal.setitimer(signal.ITIMER_REAL, 0.003, 0.003)
        say(attribute=ioctl(made[0], KVM_HAS_DEVICE_ATTR, attribute))
        signal.setitimer(signal.ITIMER_REAL, 0)
    if options.helper:
        fork_helper()
    pause(options, "made")
    ready.wait()
    if not stays:
        for thread in threads:
            thread.join()
    pause(options, "ran")


def refuse_exit(answer: int) -> None:
    """Have an own seccomp filter answer exit_group(2), as a jail may that ends by other means."""
    load, if_equal, answers = (0x20, 0, 0, 0), (0x15, 0, 1, NR_EXIT_GROUP), (0x06, 0, 0)
    allow = (*answers, 0x7FFF0000)
    code = struct.pack("<HBBIHBBIHBBIHBBI", *load, *if_equal, *answers, answer, *allow)
    buffer = ctypes.create_string_buffer(code)
    program = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", 4, ctypes.addressof(buffer)))
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0):
        os._exit(3)


def fork_helper() -> None:
    """A process that has all descriptors of this one, and goes with it."""
    reader, writer = os.pipe()
    if pid := os.fork():
        say(helper=pid)
        os.close(reader)  # the other end stays open for as long as this process is there
        return
    os.close(writer)
    os.read(reader, 1)
    os._exit(0)


def status(*names: str) -> dict[str, str]:
    with open("/proc/self/status") as file:
        lines = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    return {name: lines[name].strip() for name in names}


def idle(count: int) -> None:
    """Threads that do nothing, for their masks to be looked at."""
    for _ in range(count):
        thread = threading.Thread(target=threading.Event().wait, daemon=True)
        thread.start()
        say(idle=thread.native_id)


def churn() -> None:
    """A thread that makes the next one and ends, and so on without end."""
    with suppress(RuntimeError):  # at the end no more can be made
        _thread.start_new_thread(churn, ())


def daemonize() -> None:
    """The process that was started ends, its grandchild goes on."""
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
    say(pid=os.getpid())


def make_vcpus(options: argparse.Namespace) -> None:
    """A VM whose vCPUs do not run."""
    vm = ioctl(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC), KVM_CREATE_VM)
    made = [make_vcpu(vm, index) for index in range(options.vcpus)]
    if options.attribute:
        say(attribute=ioctl(made[0], KVM_HAS_DEVICE_ATTR, ctypes.create_string_buffer(24)))


def as_process(what: Callable[[], None]) -> None:
    """Do it in a process that shares this one's memory, and waits for it, but is no thread."""

    def begin(_: object) -> int:
        what()
        return 0  # and with that it ends: to end it here would keep the interpreter locked

    stack = mmap.mmap(-1, 1 << 20)
    top = ctypes.addressof(ctypes.c_char.from_buffer(stack)) + (1 << 20)
    begun = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(begin)
    flags = CLONE_VM | CLONE_FILES | CLONE_VFORK | signal.SIGCHLD
    pid = libc.clone(begun, ctypes.c_void_p(top), flags, None)
    say(child=pid, status=os.waitpid(pid, 0)[1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--vcpus", type=int, default=1)
    parser.add_argument("--vms", type=int, default=1)
    parser.add_argument("--idle", type=int, default=0)
    parser.add_argument("--churn", type=int, default=0)
    parser.add_argument("--status", type=int, default=0)
    parser.add_argument("--kvm", type=int)
    parser.add_argument("--pause", type=lambda text: text.split(","), default=[])
    parser.add_argument("--signals", choices=("restart", "interrupt"))
    flags = ("threads", "process", "fork", "nodump", "registers", "attribute", "run", "spin")
    parser.add_argument("--no-exit", choices=REFUSALS)
    for name in (*flags, "sleep", "helper", "storm", "deaf-threads"):
        parser.add_argument(f"--{name}", action="store_true")
    options = parser.parse_args()
    say(pid=os.getpid())
    if options.fork:
        daemonize()
    if options.nodump:
        libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    if options.no_exit:
        refuse_exit(REFUSALS[options.no_exit])
    idle(options.idle)
    for _ in range(options.churn):
        churn()
    if options.signals:
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.siginterrupt(signal.SIGALRM, options.signals == "interrupt")
    pause(options, "before")
    for _ in range(options.vms):
        if options.signals:
            signal.setitimer(signal.ITIMER_REAL, 0.003, 0.003)
        if options.process:
            as_process(lambda: make_vcpus(options))
        else:
            make_vm(options)
    pause(options, "last")
    say(end=status("TracerPid", "Seccomp", "NoNewPrivs"))
    os._exit(options.status)


if __name__ == "__main__":
    main()
