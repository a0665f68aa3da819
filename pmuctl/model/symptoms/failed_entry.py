# SPDX-License-Identifier: Apache-2.0
"""Symptoms of a vCPU that may not run on its CPU: KVM_EXIT_FAIL_ENTRY, as each VMM shows it.

The messages are of kvmtool's builtin-run.c, crosvm's src/crosvm/sys/linux/vcpu.rs,
cloud-hypervisor's vmm/src/cpu.rs and Dragonball's src/vcpu/vcpu_impl.rs; QEMU has none
(kvm_arch_handle_exit(), target/arm/kvm.c).
"""

from collections.abc import Sequence

from pmuctl.model.symptoms.symptom import AFFINITY_CHECK, ALIGN, ONE_CPU, Symptom
from pmuctl.model.symptoms.vmms import CLOUD_HYPERVISOR, CROSVM, KVMTOOL, QEMU

_LEFT = (
    "a PMU was set for the VM (SET_PMU), and a vCPU's thread came onto a CPU that is not of that "
    "PMU: KVM_RUN fails with KVM_EXIT_FAIL_ENTRY, reason CPU_UNSUPPORTED (1)"
)
_NOT_THE_VM = ("nfs", "ssh", "network", "docker", "kworker", "gpu", "mouse", "desktop")

FAILED_ENTRY: Sequence[Symptom] = (
    Symptom(
        id="crosvm-fail-entry",
        by="crosvm",
        seen="vcpu hw run failure: 0x1",
        words=("hw run fail", "FAIL_ENTRY crosvm"),
        unless=("OTHER_REASON",),
        vmm=CROSVM,
        general="fail-entry",
        means=f"{_LEFT}; crosvm ends the VM",
        check=AFFINITY_CHECK,
        fix="{start}",
    ),
    Symptom(
        id="kvmtool-fail-entry",
        by="kvmtool",
        seen='KVM exit reason: 9 ("KVM_EXIT_FAIL_ENTRY")',
        words=(
            "EXIT_REASON_9",
            "FAIL_ENTRY lkvm|kvmtool",
            "lkvm|kvmtool vcpu|cpu thread gone|end|exit|no",
        ),
        may=tuple(f"lkvm|kvmtool {entry}" for entry in (*ONE_CPU, "guest HANG")),
        unless=("OTHER_REASON",),
        errors=(),
        vmm=KVMTOOL,
        general="fail-entry",
        means=f"{_LEFT}; kvmtool sets the PMU of the CPU that it starts on. The thread of a vCPU "
        "that fails to enter ends: if it is vCPU 0, the VM ends with it; otherwise the rest of "
        "the VM runs on",
        check="pmuctl affinity check; pmuctl vm vcpus VM",
        fix="{start}",
    ),
    Symptom(
        id="cloud-hypervisor-fail-entry",
        by="cloud-hypervisor",
        seen="Unexpected exit reason on vcpu run: FailEntry(1, CPU)",
        words=(
            "FAIL_ENTRY unexpected exit reason run",
            "unexpected exit reason vcpu run",
            "FAIL_ENTRY cloud hypervisor",
        ),
        may=("cloud hypervisor guest HANG",),
        unless=("OTHER_REASON", "mmio", "shutdown", "hlt", "event", "exception"),
        errors=(),
        vmm=CLOUD_HYPERVISOR,
        general="fail-entry",
        means=f"{_LEFT}; cloud-hypervisor ends the vCPU's thread",
        check=AFFINITY_CHECK,
        fix="{start}",
    ),
    Symptom(
        id="fail-entry",
        by="a VMM, or a trace of KVM",
        seen="KVM_EXIT_FAIL_ENTRY, FailEntry(1, CPU), hardware_entry_failure_reason 1",
        words=(
            "FAIL_ENTRY",
            "ENTER_FAILS kvm|vcpu|exit hardware|reason|guest|kvm_run|exit",
            "cpu_unsupported",
        ),
        unless=("OTHER_REASON",),
        errors=(),
        means=f"{_LEFT}; what follows is up to {{vmm}}: most end this vCPU or the VM, some try "
        "again for ever",
        check=AFFINITY_CHECK,
        fix=f"{ALIGN}; for its next start: {{start}}",
    ),
    Symptom(
        id="qemu-spins",
        by="QEMU",
        seen="100 % CPU, silent: the guest hangs, no message, the monitor answers",
        words=(
            "qemu|vcpu|kvm HUNDRED cpu|usage|core",
            "qemu|vcpu HUNDRED",
            "guest HANG HUNDRED",
            "guest HUNDRED cpu|usage|core start|boot|startup|nothing|no|constant|forever|idle",
            "HUNDRED cpu silent|boot|booting|startup HANG|boot|silent",
            "qemu|vcpu spin",
            "QEMU_EXIT_9",
        ),
        may=(
            "guest|qemu|vcpu HANG boot|start|startup|cluster|core|pin|taskset|affinity|migration",
            "guest|qemu|vcpu HANG monitor|qmp answer|work|respond",
            "guest HUNDRED cpu|core",
        ),
        unless=(
            *(*_NOT_THE_VM, "img", "convert", "download"),
            "progress bar|disk|install|update|copy",
        ),
        errors=(),
        vmm=QEMU,
        general="fail-entry",
        means=f"{_LEFT}; QEMU takes it for an exit that it does not know, and makes KVM_RUN again "
        "at once, for ever",
        check="pmuctl doctor",
        fix=ALIGN,
    ),
)
"""Symptoms of vCPUs that fail to enter their guest."""
