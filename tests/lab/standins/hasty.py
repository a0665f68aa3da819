# SPDX-License-Identifier: Apache-2.0
"""A VMM whose vCPU is initialised by another thread than made it, before that one can tell it.

That thread guesses the file descriptor and tries until there is one. `python3 -m` this in the lab;
with an argument the other thread also runs the vCPU, while its maker makes no call any more.
"""

import ctypes
import errno
import mmap
import os
import struct
import sys
import threading
import time
from collections.abc import Callable

from pmuctl.host.kvm.device import init_vcpu
from pmuctl.uapi.kvm import KVM_CREATE_VCPU
from tests.lab.standins.kinds import init_pmu
from tests.lab.standins.talk import say, say_status, start_thread
from tests.lab.standins.vm import Plan, StandinVcpu, StandinVm
from tests.lab.vmm.vcpu import FailEntry


def main() -> int:
    """Make one VM with one vCPU and run it."""
    vm = StandinVm(Plan(vcpus=1))
    guess = os.dup(0)
    os.close(guess)

    def initialise() -> None:
        tries = 1
        while True:
            try:
                init_vcpu(vm.fd, guess, vpmu=True)
                break
            except OSError as error:
                if error.errno != errno.EBADF:
                    raise
                tries += 1
        say(call="KVM_ARM_VCPU_INIT", result="OK", tries=tries)

    hasty = start_thread("hasty", initialise)
    vm.create_vcpu()
    hasty.join()
    vm.create_gic()
    init_pmu(vm)
    vm.start("vcpu%d", failed)
    vm.wait()
    say_status()
    return 0


# int f(vm, KVM_CREATE_VCPU, index, int out[2]): makes the ioctl, stores what it returned, and
# makes no call until out[1] is set.
# mov x8, 29; svc 0; str w0, [x3]; 1: ldr w1, [x3, 4]; cbz w1, 1b; ret
SILENT_CREATE = struct.pack(
    "<6I", 0xD28003A8, 0xD4000001, 0xB9000060, 0xB9400461, 0x34FFFFE1, 0xD65F03C0
)


class MadeElsewhere(StandinVcpu):
    """A vCPU with this descriptor, made by a thread that never tells."""

    made = -1

    def _call(self, name: str, job: Callable[[], int | None]) -> int:
        return self.made if name == "KVM_CREATE_VCPU" else super()._call(name, job)


def run_silently_made() -> int:
    """Make a vCPU in a thread that spins from then on, and use it here."""
    vm = StandinVm(Plan(vcpus=1))
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(SILENT_CREATE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(code))
    create = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_uint64] * 4)(start)
    out = (ctypes.c_int * 2)(-1, 0)
    address = ctypes.addressof(out)
    silent = threading.Thread(
        target=lambda: create(vm.fd, KVM_CREATE_VCPU, 0, address), daemon=True
    )
    silent.start()
    while out[0] < 0:
        time.sleep(0.001)
    MadeElsewhere.made = out[0]
    vcpu = MadeElsewhere(vm._kvm, vm.fd, 0, 0)
    vm.vcpus.append(vcpu)
    vcpu.init(vpmu=True)
    vm.create_gic()
    init_pmu(vm)
    say(event="prepared")
    vm.plan = Plan(vcpus=1, rounds=1000)
    vm.start("vcpu%d", failed)
    vm.wait()
    return 0


def failed(vcpu: int, exit_: FailEntry) -> None:
    """Say so and end."""
    print(f"vcpu {vcpu}: unexpected fail entry, reason {exit_.reason:#x}", file=sys.stderr)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(run_silently_made() if sys.argv[1:] else main())
