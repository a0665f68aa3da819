# SPDX-License-Identifier: Apache-2.0
"""In the lab: make sequences of calls on fresh VMs and say what the kernel answered.

Reads what `sequences.to_json` made; prints one JSON document: what pmuctl's probes found, where
the places are, what a guest reads unfiltered, and for each sequence the answer to the making of
the VM and, where that is OK, to each step: `OK`, `OK VALUE`, an errno's name, or what a guest saw.
"""

import ctypes
import errno
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial

from pmuctl.host.kvm.access import PATH_DEV_KVM
from pmuctl.host.kvm.cache import CAPS
from pmuctl.host.kvm.device import get_sys_reg, init_vcpu, on_cpus, vm_type
from pmuctl.host.kvm.probes import PMCR_EL0, probe_kvm_caps
from pmuctl.host.pmus import scan_pmus
from pmuctl.host.sysfs import Sysfs
from pmuctl.model.kvm_caps import KvmCaps
from pmuctl.uapi.ioctl import ioctl
from pmuctl.uapi.kvm import (
    KVM_CREATE_VCPU,
    KVM_CREATE_VM,
    KVM_GET_DEVICE_ATTR,
    KVM_HAS_DEVICE_ATTR,
    KVM_RUN,
    KVM_SET_DEVICE_ATTR,
)
from pmuctl.uapi.kvm_arm64 import KVM_ARM_VCPU_PMU_V3_CTRL
from pmuctl.uapi.kvm_structs import kvm_device_attr, kvm_run
from tests.lab import sequences
from tests.lab.sequences import Place, Script, Vm, is_address, pack, parse_attr, parse_value
from tests.lab.vmm.guest import Guest, Report, program
from tests.lab.vmm.machine import MMIO, RAM, Memory, create_gic, init_gic
from tests.lab.vmm.vcpu import FailEntry, Vcpu

WORKERS = 3
"""Processes that make VMs: most of a VM's short life is waiting for its threads and its end."""


class DrivenVcpu(Vcpu):
    """A vCPU whose every call can be made, wrong ones included."""

    def __init__(self, kvm_fd: int, vm_fd: int, *, index: int, feature: str, cpu: int) -> None:
        self._feature = feature
        super().__init__(kvm_fd, vm_fd, index=index, vpmu=feature != "none", cpus=[cpu])
        self.pin([cpu])
        self.guest = Guest(self)
        self.is_loaded = False

    def _create(self, vm_fd: int, *, vpmu: bool, cpus: Iterable[int] | None) -> int:
        with on_cpus(cpus), ExitStack() as undo:
            fd = ioctl(vm_fd, KVM_CREATE_VCPU, self.index, what=self._what("KVM_CREATE_VCPU"))
            undo.callback(os.close, fd)
            init_vcpu(vm_fd, fd, vpmu=vpmu, strict=self._feature == "strict")
            undo.pop_all()
        return fd

    def attr(self, request: int, attr: int, addr: int) -> str:
        """An ioctl on a PMU attribute, in the thread that calls."""
        its = kvm_device_attr(group=KVM_ARM_VCPU_PMU_V3_CTRL, attr=attr, addr=addr)
        return answer(lambda: ioctl(self.fd, request, its, what="attribute"))

    def start(self) -> str:
        """KVM_RUN with immediate_exit: EINTR is how it says that all is well."""
        self._page[kvm_run.immediate_exit.offset] = 1
        try:
            return answer(lambda: ioctl(self.fd, KVM_RUN, what="KVM_RUN"), fine=errno.EINTR)
        finally:
            self._page[kvm_run.immediate_exit.offset] = 0

    def counters(self) -> str:
        """PMCR_EL0.N."""
        value = 0

        def read() -> None:
            nonlocal value
            value = get_sys_reg(self.fd, PMCR_EL0) >> 11 & 0x1F

        return with_value(answer(read), lambda: value)


class DrivenVm:
    """One VM, and the words for what is done to it."""

    def __init__(self, stack: ExitStack, vm: Vm, places: Mapping[str, Place]) -> None:
        self._places = places
        self._stack = stack
        self._gic = -1
        kvm = os.open(PATH_DEV_KVM, os.O_RDWR | os.O_CLOEXEC)
        stack.callback(os.close, kvm)
        self._vm = ioctl(kvm, KVM_CREATE_VM, vm_type(kvm), what="KVM_CREATE_VM")
        stack.callback(os.close, self._vm)
        self._memory = stack.enter_context(Memory(self._vm))
        cpu = places[vm.place].cpu
        self.vcpus = [
            stack.enter_context(
                DrivenVcpu(kvm, self._vm, index=index, feature=vm.feature, cpu=cpu)
            )
            for index in range(vm.vcpus)
        ]
        if vm.gic != "none":
            self.gic("create")
        if vm.gic == "ready":
            self.gic("init")

    def gic(self, word: str) -> str:
        """Its next state."""
        if word == "create":
            self._gic = create_gic(self._vm)
            self._stack.callback(os.close, self._gic)
        else:
            init_gic(self._gic)
        return "OK"

    def step(self, text: str) -> str:
        """Make one step, in the thread of the vCPU it is about."""
        match text.split():
            case ["gic", word]:
                return self.gic(word)
            case ["at", place]:
                for vcpu in self.vcpus:
                    vcpu.pin([self._places[place].cpu])
                return "OK"
            case ["child", *words]:
                return in_child(lambda: self._call(words))
            case ["thread", *words]:
                return self._call(words)  # the main one
            case [_, index, *_] as words:
                return self.vcpus[int(index)].submit(self._call, words).result()
        raise ValueError(text)

    def _call(self, words: Sequence[str]) -> str:
        vcpu = self.vcpus[int(words[1])]
        match list(words):
            case ["has", _, attr]:
                return vcpu.attr(KVM_HAS_DEVICE_ATTR, parse_attr(attr), 0)
            case ["set", _, attr, *rest]:
                return self._set(vcpu, parse_attr(attr), rest)
            case ["get", _, attr, *rest]:
                buffer = ctypes.c_int(0)
                address = is_address(rest)
                addr = ctypes.addressof(buffer) if address is None else address
                return with_value(
                    vcpu.attr(KVM_GET_DEVICE_ATTR, parse_attr(attr), addr), lambda: buffer.value
                )
            case ["run", _]:
                return vcpu.start()
            case ["counters", _]:
                return vcpu.counters()
            case ["guest", _]:
                return self._guest(vcpu)
        raise ValueError(" ".join(words))

    def _set(self, vcpu: DrivenVcpu, attr: int, words: Sequence[str]) -> str:
        address = is_address(words)
        if address is not None:
            return vcpu.attr(KVM_SET_DEVICE_ATTR, attr, address)
        value = parse_value(words, self._places)
        assert value is not None
        data = ctypes.create_string_buffer(pack(value), 8)
        return vcpu.attr(KVM_SET_DEVICE_ATTR, attr, ctypes.addressof(data))

    def _guest(self, vcpu: DrivenVcpu) -> str:
        if not vcpu.is_loaded:
            self._memory.load(program())
            vcpu.set_start(RAM, x0=MMIO)
            vcpu.is_loaded = True
        try:
            outcome = vcpu.guest.round()
        except OSError as error:
            return name(error)
        match outcome:
            case Report(pmceid0=int(pmceid0), pmceid1=int(pmceid1)) as its:
                counts = "counts" if its.cycles else "stands-still"
                return f"{counts} N={its.pmcr_n} PMCEID0={pmceid0:#x} PMCEID1={pmceid1:#x}"
            case Report():
                return "no PMU"
            case FailEntry(reason, cpu):
                return f"FAIL_ENTRY {reason} {cpu}"
        return repr(outcome)


def name(error: OSError) -> str:
    """The errno's name."""
    return errno.errorcode[error.errno or 0]


def answer(call: Callable[[], object], *, fine: int = 0) -> str:
    """OK, or the errno's name."""
    try:
        call()
    except OSError as error:
        return "OK" if error.errno == fine else name(error)
    return "OK"


def with_value(result: str, value: Callable[[], int]) -> str:
    """The value beside OK."""
    return f"OK {value()}" if result == "OK" else result


def in_child(call: Callable[[], str]) -> str:
    """What the call answers in a forked process."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, call().encode())
        os._exit(0)
    os.close(write)
    with open(read, encoding="utf-8") as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    return text


def drive(script: Script, places: Mapping[str, Place]) -> list[str]:
    """The answers to one sequence; raises KeyError for a place the host has not got."""
    with ExitStack() as stack:
        try:
            vm = DrivenVm(stack, Vm.parse(script.vm), places)
        except OSError as error:
            return [name(error)]
        return ["OK", *(vm.step(step) for step in script.steps)]


def find_places(probed: KvmCaps) -> dict[str, Place]:
    """The letters of this host."""
    pmus = sorted(probed.cpus.items())
    places = {
        letter: Place(cpu=min(cpus), pmu=pmu)
        for letter, (pmu, cpus) in zip("ABC", pmus, strict=False)
    }
    covered = {cpu for cpus in probed.cpus.values() for cpu in cpus}
    if bare := os.sched_getaffinity(0) - covered:
        places["-"] = Place(cpu=min(bare), pmu=None)
    return places


def main() -> None:
    """Probe, then make all sequences."""
    wanted = sequences.from_json(sys.stdin.read())
    probed = probe_kvm_caps(scan_pmus(Sysfs()))
    places = find_places(probed)
    plain = Script(vm="1 pmu ready A", steps=("set 0 IRQ 23", "set 0 INIT", "guest 0"))
    with ProcessPoolExecutor(WORKERS) as pool:
        answers = list(pool.map(partial(drive, places=places), wanted, chunksize=8))
    document = {
        "release": os.uname().release,
        "probed": CAPS.format(probed),
        "places": {letter: [its.cpu, its.pmu] for letter, its in places.items()},
        "plain": drive(plain, places)[-1] if probed.has_vpmu else "",
        "answers": answers,
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
