# SPDX-License-Identifier: Apache-2.0
"""A VMM whose vCPU is initialised by another thread than made it, before that one can tell it.

That thread guesses the file descriptor and tries until there is one. `python3 -m` this in the lab.
"""

import errno
import os
import sys

from pmuctl.host.kvm.device import init_vcpu
from tests.lab.standins.kinds import init_pmu
from tests.lab.standins.talk import say, say_status, start_thread
from tests.lab.standins.vm import Plan, StandinVm
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


def failed(vcpu: int, exit_: FailEntry) -> None:
    """Say so and end."""
    print(f"vcpu {vcpu}: unexpected fail entry, reason {exit_.reason:#x}", file=sys.stderr)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
