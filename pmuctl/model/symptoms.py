# SPDX-License-Identifier: Apache-2.0
"""Symptoms of PMU trouble: the messages of VMMs and guests, and what is behind them.

None of these messages names the PMU or the CPU. They come from kvmtool's builtin-run.c and
arm/aarch64/pmu.c, crosvm's src/crosvm/sys/linux/vcpu.rs, cloud-hypervisor's vmm/src/cpu.rs, QEMU's
accel/kvm/kvm-all.c and target/arm/kvm.c, and from users' reports.
"""

import re
from collections.abc import Sequence

from pmuctl.value import value

_WORD = re.compile(r"[a-z0-9_]+")
_FILLERS = frozenset("a an and at for in is it of on or the to with".split())


@value(kw_only=True)
class Symptom:
    """What users of `by` see (`seen`), what it `means`, how to `check` it and how to `fix` it.

    A text matches if it has all words of one entry of `words`, or only words of `by` and `seen`.
    """

    id: str
    by: str
    seen: str
    words: tuple[str, ...]
    means: str
    check: str
    fix: str


def match_symptoms(text: str) -> list[Symptom]:
    """Return the symptom that a text names by its id, or else those that it matches.

    Case does not matter. Return an empty list if the text has no word, or matches no symptom.
    """
    if named := [symptom for symptom in SYMPTOMS if symptom.id == text.strip().lower()]:
        return named
    given = _split_words(text)
    if not given:
        return []
    return [symptom for symptom in SYMPTOMS if _is_match(given, symptom)]


def _is_match(given: frozenset[str], symptom: Symptom) -> bool:
    if any(_split_words(words) <= given for words in symptom.words):
        return True
    return given <= _split_words(f"{symptom.by} {symptom.seen}")


def _split_words(text: str) -> frozenset[str]:
    """Return the words of a text in lower case, without fillers such as "the"."""
    return frozenset(_WORD.findall(text.lower())) - _FILLERS


_LEFT = (
    "a PMU was set for the VM (SET_PMU), and a vCPU's thread came onto a CPU that is not of that "
    "PMU: KVM_RUN fails with KVM_EXIT_FAIL_ENTRY, reason CPU_UNSUPPORTED (1)"
)
_CHECK, _ALIGN = "pmuctl affinity check", "pmuctl affinity align --all"
_RUN = "pmuctl run --pmu PMU -- VMM ARG..."

SYMPTOMS: Sequence[Symptom] = (
    Symptom(
        id="crosvm-fail-entry",
        by="crosvm",
        seen="vcpu hw run failure: 0x1",
        words=("hw run failure 0x1", "vcpu hw run failure"),
        means=f"{_LEFT}; crosvm ends the VM",
        check=_CHECK,
        fix=_RUN,
    ),
    Symptom(
        id="kvmtool-fail-entry",
        by="kvmtool",
        seen='KVM exit reason: 9 ("KVM_EXIT_FAIL_ENTRY")',
        words=("kvm_exit_fail_entry", "kvm exit reason 9", "fail entry"),
        means=f"{_LEFT}; kvmtool sets the PMU of the CPU that it starts on, and ends the VM",
        check=_CHECK,
        fix="pmuctl run --pmu PMU -- lkvm run --pmu ARG...",
    ),
    Symptom(
        id="cloud-hypervisor-fail-entry",
        by="cloud-hypervisor",
        seen="Unexpected exit reason on vcpu run: FailEntry(1, CPU)",
        words=("failentry", "unexpected exit reason vcpu run"),
        means=f"{_LEFT}; cloud-hypervisor ends the vCPU's thread",
        check=_CHECK,
        fix=_RUN,
    ),
    Symptom(
        id="qemu-spins",
        by="QEMU",
        seen="100 % CPU, silent: the guest hangs, no message, the monitor answers",
        words=(
            "spins",
            "guest hangs",
            "qemu 100 cpu",
            "qemu 100 silent",
            "qemu spins",
            "qemu hangs 100",
            "100 cpu silent",
        ),
        means=f"{_LEFT}; QEMU takes it for an exit that it does not know, and makes KVM_RUN again "
        "at once, for ever",
        check="pmuctl doctor",
        fix=_ALIGN,
    ),
    Symptom(
        id="kvmtool-pmu-busy",
        by="kvmtool",
        seen="PMU KVM_SET_DEVICE_ATTR: Device or resource busy",
        words=(
            "pmu kvm_set_device_attr busy",
            "kvm_set_device_attr device resource busy",
            "ebusy",
        ),
        means="kvmtool sets the PMU of its own CPU, and the VM has another one with an event "
        "filter already: after a filter KVM takes no other PMU (EBUSY)",
        check="pmuctl vm list",
        fix="pmuctl run --pmu PMU -- taskset -c CPUS lkvm run --pmu ARG...",
    ),
    Symptom(
        id="qemu-init-vcpu",
        by="QEMU",
        seen="kvm_init_vcpu: kvm_arch_init_vcpu failed (0): Invalid argument",
        words=(
            "kvm_init_vcpu invalid argument",
            "kvm_arch_init_vcpu invalid argument",
            "kvm_init_vcpu failed",
        ),
        means="on a host with several kinds of core the vCPUs of one VM were made on different "
        "ones, and their registers (CCSIDR, ID registers) do not fit (EINVAL); it is no fault of "
        "the PMU, but one cluster from the start on is the cure of both",
        check="pmuctl pmu cpus",
        fix="pmuctl run --pmu PMU -- qemu-system-aarch64 ARG...",
    ),
    Symptom(
        id="guest-counts-nothing",
        by="perf in the guest",
        seen="<not counted> <not supported>, no counts: 0 cycles in the guest",
        words=(
            "perf not counted",
            "not counted guest",
            "not supported guest",
            "perf not supported",
            "perf no counts",
            "no counts guest",
            "counters 0 guest",
            "counts nothing",
            "counters zero",
            "counters stop",
            "perf stat 0",
        ),
        means="the VM has the PMU that KVM chose, and its vCPUs run on CPUs of another one: "
        "counters stop there without an error; or its filter denies the event",
        check="pmuctl affinity check; pmuctl vm show VM -o NAME,PMU,RULES",
        fix="pmuctl affinity align --all; where PMU is not known (?): start the VM with "
        f"{_RUN}; where RULES deny the event: give another filter at its next start",
    ),
    Symptom(
        id="windows-divide-by-zero",
        by="Windows on ARM",
        seen="divide by zero in the HAL at boot (bugcheck)",
        words=(
            "windows divide zero",
            "hal divide zero",
            "divide zero hal",
            "divide by zero windows",
        ),
        means="Windows measures time with the cycle counter, which stands still while a vCPU is "
        "on CPUs that are not of the VM's PMU",
        check=_CHECK,
        fix="pmuctl run --pmu PMU -- qemu-system-aarch64 ARG...",
    ),
    Symptom(
        id="supervisor-gone",
        by="a VMM under pmuctl run",
        seen="KVM_CREATE_VCPU: Function not implemented (ENOSYS)",
        words=(
            "kvm_create_vcpu function not implemented",
            "enosys",
            "create_vcpu not implemented",
        ),
        means="its supervisor was ended: the VM runs on, but its process can make no further vCPU "
        "until it is started anew",
        check="pmuctl vm list",
        fix=_RUN,
    ),
    Symptom(
        id="run-ended",
        by="a VMM under pmuctl run",
        seen="exit status 125, code=exited, status=125",
        words=("exit status 125", "exited status 125"),
        means="its settings could not be applied, so the VM was not started; most often the VMM "
        "was not asked for a PMU (QEMU: -cpu host,pmu=on; kvmtool: --pmu)",
        check="pmuctl vm show VM",
        fix="pmuctl run -v --pmu PMU -- VMM ARG...",
    ),
    Symptom(
        id="no-vpmu",
        by="QEMU, cloud-hypervisor, perf in the guest",
        seen="no PMU in the guest: 'pmu' feature not supported, ENODEV, no hw perfevents driver",
        words=(
            "pmu feature not supported",
            "no pmu guest",
            "pmu not supported kvm",
            "kvm_arm_vcpu_init no such device",
        ),
        means="KVM has no vPMU here (KVM_CAP_ARM_PMU_V3): the CPUs have no PMUv3, or PMUs of "
        "different versions; or the VM was made on a CPU of no PMU (ENODEV)",
        check="pmuctl host info",
        fix="pmuctl doctor",
    ),
)
"""The known symptoms, in the order in which they are listed."""
