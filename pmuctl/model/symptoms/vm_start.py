# SPDX-License-Identifier: Apache-2.0
"""Symptoms of a VM that does not start, or does not resume: what VMMs print then.

The messages are of kvmtool's arm/aarch64/pmu.c, of QEMU's accel/kvm/kvm-all.c, target/arm/kvm.c
and target/arm/machine.c, and of rust-vmm's kvm-ioctls.
"""

from collections.abc import Sequence

from pmuctl.model.symptoms.host import HostTrait
from pmuctl.model.symptoms.symptom import ONE_CPU, SECOND_CPU_FAILS, Symptom
from pmuctl.model.symptoms.vmms import KVMTOOL, QEMU

_NO_REGISTERS = (
    "kvm_init_vcpu",
    "kvm_arch_init_vcpu",
    "kvm_arm_vcpu_init fail|EINVAL",
    "qemu fail|EINVAL init vcpu",
    "retrieve host cpu feature",
)
_PUT_REGISTERS = ("put register fail|EINVAL|init|reset", "kvm_arch_put_registers")
_OTHER_MODEL = "kvm NOT_SUPPORTED guest cpu type"
"""QEMU says that it was given the model of another core: no other cause is behind it."""
_MOVED = "migration|restore|resume|snapshot|loadvm|incoming"
_SEVERAL_KINDS_LAST = {HostTrait.ONE_KIND: -14, HostTrait.SEVERAL_KINDS: 1}

VM_START: Sequence[Symptom] = (
    Symptom(
        id="kvmtool-pmu-busy",
        by="kvmtool",
        seen="PMU KVM_SET_DEVICE_ATTR: Device or resource busy",
        words=("pmu EBUSY set|lkvm|kvmtool",),
        unless=("fail irq", "filter", "kvm_arm_vcpu_pmu_v3_set_pmu|set_pmu"),
        errors=("EBUSY",),
        vmm=KVMTOOL,
        general="pmu-busy",
        means="kvmtool sets the PMU of its own CPU, and the VM has another one with an event "
        "filter already: after a filter KVM takes no other PMU (EBUSY)",
        check="pmuctl vm list",
        fix="pmuctl run --pmu {pmu} -- taskset -c {cpus} lkvm run --pmu ARG...",
    ),
    Symptom(
        id="pmu-busy",
        by="a VMM",
        seen="KVM_SET_DEVICE_ATTR of the PMU: Device or resource busy",
        words=(
            "kvm_set_device_attr|kvm_device_access EBUSY",
            "pmu EBUSY set|irq|init|fail|vcpu|filter",
            "KVM_SAYS EBUSY",
        ),
        errors=("EBUSY",),
        means="KVM changes no PMU, filter or interrupt of a vCPU whose PMU is initialised, nor of "
        "a VM that has run, and takes no other PMU after a filter (EBUSY): {vmm} sets what is set",
        check="pmuctl vm list",
        fix="pmuctl run -v --pmu {pmu} -- {command}",
    ),
    Symptom(
        id="qemu-init-vcpu",
        by="QEMU",
        seen="kvm_init_vcpu: kvm_arch_init_vcpu failed (0): Invalid argument; "
        "Failed to put registers after init: Invalid argument",
        words=(*_NO_REGISTERS, *_PUT_REGISTERS, *(f"qemu {each}" for each in SECOND_CPU_FAILS)),
        may=tuple(f"qemu {entry}" for entry in ONE_CPU),
        unless=(_OTHER_MODEL,),
        errors=("EINVAL",),
        vmm=QEMU,
        general="several-core-kinds",
        likely=_SEVERAL_KINDS_LAST,
        means="on a host with several kinds of core the vCPUs of one VM were made on different "
        "ones, and their registers (CCSIDR before Linux 6.3, ID registers) do not fit (EINVAL); "
        "it is no fault of the PMU, but one cluster from the start on is the cure of both",
        check="pmuctl pmu cpus",
        fix="{start}",
    ),
    Symptom(
        id="several-core-kinds",
        by="a VMM, or the guest's kernel",
        seen="psci: failed to boot CPU1 (-22); a vCPU cannot be initialised: Invalid argument",
        words=(
            *SECOND_CPU_FAILS,
            "vcpu init EINVAL",
            "vcpu create|configure|make EINVAL",
            "kvm_arm_vcpu_init|vcpu_init fail|EINVAL",
            "vcpu fail init",
            "NO_TARGET",
            "guest only|need taskset|affinity start",
        ),
        may=(
            *ONE_CPU,
            "guest|qemu only|need taskset|affinity boot|work",
            "qemu only|need taskset|affinity start",
            "guest HANG HUNDRED boot|start|startup",
            "guest HUNDRED cpu boot|start|startup",
        ),
        unless=(_OTHER_MODEL,),
        errors=("EINVAL",),
        likely=_SEVERAL_KINDS_LAST,
        means="on a host with several kinds of core the vCPUs of one VM were made on different "
        "ones, and their registers (CCSIDR before Linux 6.3, ID registers) do not fit (EINVAL); "
        "the VM does not start, or the guest does not get all of its CPUs. One cluster from the "
        "start on is the cure",
        check="pmuctl pmu cpus",
        fix="{start}",
    ),
    Symptom(
        id="cache-registers",
        by="a VMM, or the guest's kernel",
        seen="KVM_SET_ONE_REG of CCSIDR: Invalid argument (Linux before 6.3)",
        words=("ccsidr", *_PUT_REGISTERS, *SECOND_CPU_FAILS, "kvm_set_one_reg EINVAL"),
        may=(*_NO_REGISTERS, "vcpu init EINVAL", *ONE_CPU),
        unless=(_OTHER_MODEL,),
        errors=("EINVAL",),
        likely={
            HostTrait.HOST_CCSIDR: 4,
            HostTrait.EMULATED_CCSIDR: -3,
            HostTrait.ONE_KIND: -7,
        },
        means="KVM of Linux before 6.3 (many vendor kernels of boards) shows a guest the cache "
        "registers (CCSIDR) of the CPU that it is on. They differ between clusters, and a vCPU "
        "that came onto another one cannot be given those read before (EINVAL). One cluster from "
        "the start on, or Linux 6.3, is the cure",
        check="uname -r; pmuctl pmu cpus",
        fix="{start}",
    ),
    Symptom(
        id="qemu-cpu-model",
        by="QEMU",
        seen="KVM is not supported for this guest CPU type; "
        "kvm_init_vcpu: kvm_arch_init_vcpu failed (0): Invalid argument",
        words=(
            "kvm NOT_SUPPORTED guest cpu",
            "cpu type|model NOT_SUPPORTED kvm|qemu",
            *_NO_REGISTERS,
        ),
        may=_PUT_REGISTERS,
        unless=("passthrough",),
        errors=("EINVAL",),
        vmm=QEMU,
        means="the CPU model is not host (or max): KVM on arm64 runs no other core than that of "
        "the host, and -cpu is missing or names one. The VM did not start; it is no fault of the "
        "PMU",
        check="pmuctl host info",
        fix="qemu-system-aarch64 -cpu host ARG... (libvirt: <cpu mode='host-passthrough'/>; "
        "Proxmox: qm set VMID --cpu host)",
    ),
    Symptom(
        id="qemu-without-kvm",
        by="QEMU",
        seen="unable to find CPU model 'host'",
        words=(
            "fail find cpu model host",
            "host cpu type|model kvm hvf|only|require",
            "cpu mode host passthrough NOT_SUPPORTED",
            "kvm invalid accelerator",
        ),
        vmm=QEMU,
        means="-cpu host is the core of this machine, which only KVM can give: QEMU runs without "
        "KVM (no -accel kvm, no access to /dev/kvm, or built for another machine), and what it "
        "emulates itself has no PMU of the host",
        check="pmuctl host info",
        fix="qemu-system-aarch64 -accel kvm -cpu host ARG... (libvirt: <domain type='kvm'>)",
    ),
    Symptom(
        id="pmu-interrupt-refused",
        by="a VMM",
        seen="PMU: KVM_SET_DEVICE_ATTR: Invalid argument; failed to set irq for PMU",
        words=(
            "fail set irq pmu|qemu",
            "pmu kvm_set_device_attr EINVAL|ENODEV|ENXIO|fail",
            "pmu irq EINVAL",
            "fail init pmu",
            "vmboot init pmu",
            "pmu init|create EINVAL|ENXIO|ENODEV",
        ),
        unless=("affinity", "vfio", "smp_affinity"),
        errors=("EINVAL", "ENODEV", "ENXIO"),
        likely={HostTrait.NO_VPMU: -3},
        means="KVM has no interrupt for the guest's PMU: the virtual interrupt controller is not "
        "KVM's, or not of the host's GIC version (a GICv2 on a GICv3 host), or it is not ready",
        check="dmesg | grep -i gic",
        fix="{with_gic}",
    ),
    Symptom(
        id="pmu-not-initialised",
        by="a VMM",
        seen="error: kvm run failed Invalid argument",
        words=(
            "kvm run fail",
            "kvm_run EINVAL|fail",
            "vcpu run EINVAL",
            "vcpu unknown error EINVAL",
            "fail run|start vcpu EINVAL",
        ),
        unless=("FAIL_ENTRY", "unexpected", "restore|snapshot"),
        errors=("EINVAL",),
        means="KVM_RUN refuses a vCPU that has the feature PMU_V3 while {vmm} has not initialised "
        "its PMU (KVM_ARM_VCPU_PMU_V3_INIT), or has given it no valid interrupt (EINVAL): {vmm} "
        "asks for a PMU that it does not know how to set up",
        check="pmuctl vm show VM",
        fix="{without_pmu}",
    ),
    Symptom(
        id="migration-registers",
        by="a VMM",
        seen="Failed to load cpu:cpreg_vmstate_array_len; "
        "error while loading state for instance 0x0 of device 'cpu'",
        words=(
            "cpreg_vmstate_array_len",
            "cpreg",
            "load state DEVICE_CPU",
            "expecting positive value load|cpreg|fail",
            f"{_MOVED} fail|EINVAL|differ|no|mismatch register cpu|vcpu|host|guest|kernel|kvm",
            f"{_MOVED} fail|EINVAL|differ|no|mismatch pmu|vpmu",
            "no|fail set register op0|op",
            "LOAD_OF_MIGRATION EPERM",
            "post load hook fail cpu",
            f"{_MOVED} pmcr",
            "pmcr differ|mismatch|set",
        ),
        may=_PUT_REGISTERS,
        unless=("OTHER_DEVICE",),
        means="the two hosts, or the two kernels of one, do not give a vCPU the same registers: "
        "most often one has a vPMU and the other has none, so that the PMU registers are missing",
        check="pmuctl host info (on both hosts, or before and after the change of kernel)",
        fix="start the VM on both with the same PMU, or without one: {without_pmu}",
    ),
    Symptom(
        id="supervisor-gone",
        by="a VMM under pmuctl run",
        seen="KVM_CREATE_VCPU: Function not implemented (ENOSYS)",
        words=(
            "vcpu ENOSYS",
            "pmuctl ENOSYS",
            "kvm_create_vcpu fail",
            "kvm_get_vcpu fail",
            "supervisor gone|end",
        ),
        errors=("ENOSYS",),
        unless=("supervisord",),
        means="its supervisor was ended: the VM runs on, but its process can make no further vCPU "
        "until it is started anew",
        check="pmuctl vm list",
        fix="{start}",
    ),
    Symptom(
        id="run-ended",
        by="a VMM under pmuctl run",
        seen="exit status 125, code=exited, status=125",
        words=("STATUS_125 status", "STATUS_125 pmuctl|qemu|guest|vmm|lkvm|crosvm|hypervisor"),
        unless=("docker", "podman", "container", "bisect", "kubectl", "compose"),
        means="its settings could not be applied, so the VM was not started; most often its VMM "
        "was not asked for a PMU",
        check="pmuctl vm show VM",
        fix="pmuctl run -v --pmu {pmu} -- {with_pmu}",
    ),
)
"""Symptoms of VMs that do not start."""
