# SPDX-License-Identifier: Apache-2.0
"""What the model of KVM says to the sequences that `driver` makes, in the same words."""

import errno
from collections.abc import Mapping, Sequence

from pmuctl.model.event import EventSet
from pmuctl.model.event_filter import Action, FilterRange
from pmuctl.model.kvm_caps import KvmCaps
from pmuctl.model.vpmu import Vpmu
from pmuctl.value import replace, value
from tests.fakes.kvm_model import (
    BadAction,
    Entry,
    Irqchip,
    KvmVm,
    Value,
    enter,
    get_attr,
    guest_counters,
    has_attr,
    init_vcpu,
    run,
    set_attr,
)
from tests.lab.sequences import Filter, Place, Script, Vm, is_address, parse_attr, parse_value
from tests.lab.vmm.guest import CPU_CYCLES
from tests.lab.vmm.machine import NR_IRQS

ACTIONS = {action.kernel_value(): action for action in Action}


@value(kw_only=True)
class Host:
    """A host as the driver found it; `pmceid` is what a guest reads with no filter."""

    kernel: KvmCaps
    places: Mapping[str, Place]
    pmceid: tuple[int, int] = (0, 0)


class Oracle:
    """The model in the place of one VM."""

    def __init__(self, host: Host, vm: Vm) -> None:
        self._host = host
        self._place = host.places[vm.place]
        self._vm = KvmVm(
            vpmu=Vpmu(caps=host.kernel, vcpus=()),
            irqchip=Irqchip(vm.gic),
            nr_irqs=NR_IRQS,
            is_strict=vm.feature == "strict",
        )
        self.made = "OK"
        for _ in range(vm.vcpus):
            has_pmu = vm.feature != "none"
            error, self._vm = init_vcpu(self._vm, has_pmu=has_pmu, cpu=self._place.cpu)
            if error:
                self.made = word(error)
                return

    def step(self, text: str) -> str:
        """What it answers, and go on from there."""
        match text.split():
            case ["gic", state]:
                chip = Irqchip.CREATED if state == "create" else Irqchip.READY
                self._vm = replace(self._vm, irqchip=chip)
                return "OK"
            case ["at", place]:
                self._place = self._host.places[place]
                return "OK"
            case ["child", *_]:
                return "EIO"  # whatever the state: kvm_vcpu_ioctl() looks at the process first
            case ["thread", *words]:
                return self._call(words)
            case words:
                return self._call(words)

    def _call(self, words: Sequence[str]) -> str:
        index = int(words[1])
        match list(words):
            case ["has", _, attr]:
                return word(has_attr(self._vm, index, parse_attr(attr)))
            case ["set", _, attr, *rest]:
                value = self._value(rest)
                error, self._vm = set_attr(
                    self._vm, index, parse_attr(attr), value, cpu=self._place.cpu
                )
                return word(error)
            case ["get", _, attr, *rest]:
                error, irq = get_attr(
                    self._vm, index, parse_attr(attr), writable=is_address(rest) is None
                )
                return word(error) if error else f"OK {irq}"
            case ["run", _]:
                error, self._vm = run(self._vm, index)
                return word(error)
            case ["counters", _]:
                # a register that a vCPU without a PMU does not have
                has_pmu = self._vm.vpmu.vcpus[index].has_pmu
                return f"OK {guest_counters(self._vm)}" if has_pmu else "ENOENT"
            case ["guest", _]:
                return self._guest(index)
        raise ValueError(" ".join(words))

    def _value(self, words: Sequence[str]) -> Value:
        value = parse_value(words, self._host.places)
        if not isinstance(value, Filter):
            return value
        if value.action not in ACTIONS:
            return BadAction()
        return FilterRange(value.base, value.nevents, ACTIONS[value.action])

    def _guest(self, index: int) -> str:
        error, self._vm = run(self._vm, index)
        if error:
            return word(error)
        if not self._vm.vpmu.vcpus[index].has_pmu:
            return "no PMU"
        entry = enter(self._vm, self._place.cpu)
        if entry is Entry.REFUSED:
            return f"FAIL_ENTRY 1 {self._place.cpu}"
        allowed = self._vm.vpmu.allowed
        counts = entry is Entry.COUNTS and (allowed is None or CPU_CYCLES in allowed)
        seen = [visible(allowed, n) & base for n, base in enumerate(self._host.pmceid)]
        return (
            f"{'counts' if counts else 'stands-still'} N={guest_counters(self._vm)} "
            f"PMCEID0={seen[0]:#x} PMCEID1={seen[1]:#x}"
        )


def visible(allowed: EventSet | None, register: int) -> int:
    """The bits of PMCEID<n>_EL0 that a filter leaves: 32 common events, and 32 from 0x4000."""
    if allowed is None:
        return (1 << 64) - 1
    low = 32 * register
    return allowed.mask >> low & 0xFFFFFFFF | (allowed.mask >> 0x4000 + low & 0xFFFFFFFF) << 32


def word(error: int) -> str:
    """OK, or the errno's name."""
    return errno.errorcode[error] if error else "OK"


def foretell(host: Host, script: Script) -> list[str]:
    """The answers to one sequence, as the driver gives them."""
    oracle = Oracle(host, Vm.parse(script.vm))
    if oracle.made != "OK":
        return [oracle.made]
    return ["OK", *(oracle.step(step) for step in script.steps)]


def first_difference(kernel: Sequence[str], model: Sequence[str]) -> int | None:
    """The index of the first answer that is not foretold; 0 is the making of the VM.

    Where the model knows no number, any will do.
    """
    answers = zip(kernel, model, strict=False)
    for index, (real, foretold) in enumerate(answers):
        if real != foretold and not (foretold == "OK None" and real.startswith("OK ")):
            return index
    return None if len(kernel) == len(model) else min(len(kernel), len(model))


def tell(script: Script, kernel: Sequence[str], model: Sequence[str], index: int) -> str:
    """The shortest beginning of a sequence that shows a difference, with the answers."""
    lines = [f"  {step:40} {said}" for step, said in zip(script.steps, kernel[1:], strict=False)]
    head = [f"  vm {script.vm:37} {kernel[0]}", *lines][: index + 1]
    foretold = model[index] if index < len(model) else "nothing"
    return "\n".join(head) + f"   <- the model says {foretold}"
