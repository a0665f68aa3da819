# SPDX-License-Identifier: Apache-2.0
"""Symptoms in a guest: what its kernel, perf and Windows show.

The messages are of Linux' drivers/perf/arm_pmu_platform.c, arm_pmu_acpi.c and
drivers/firmware/psci/psci.c, of its tools/perf, and from users' reports.
"""

from collections.abc import Sequence

from pmuctl.model.symptoms.host import HostTrait
from pmuctl.model.symptoms.symptom import AFFINITY_CHECK, ALIGN, ONE_CPU, Symptom

_SHOW = "pmuctl vm show VM -o NAME,PMU,RULES"
_NOT_THE_PMU = (
    *("sampling", "overflow", "kvm cpu type", "cpu model", "pmu feature"),
    *("terminal", "option", "NO_PMU_IRQ", "perf_event_paranoid"),
)
_EVENT_REFUSED = (
    "PERF_SAYS NOT_SUPPORTED",
    "perf|simpleperf NOT_SUPPORTED",
    "guest NOT_SUPPORTED perf|count|cycles|instruction|event",
)
"""perf_event_open() failed, for the guest's kernel has no such event. An event of a PMU that
merely stands still can be opened, and reads 0 (stat_handle_error(), tools/perf/builtin-stat.c)."""

GUEST: Sequence[Symptom] = (
    Symptom(
        id="guest-counts-nothing",
        by="perf in the guest",
        seen="<not counted>, no counts: 0 cycles in the guest",
        words=(
            "PERF_SAYS NOT_COUNTED",
            "perf NOT_COUNTED",
            "guest NOT_COUNTED",
            "NOT_COUNTED cycles|instruction|event|pmu|vcpu|cluster",
            "kvm pmu event create fail",
        ),
        may=_EVENT_REFUSED,
        unless=_NOT_THE_PMU,
        likely={HostTrait.SEVERAL_KINDS: 1, HostTrait.ONE_KIND: -2},
        means="the VM has the PMU that KVM chose, and its vCPUs run on CPUs of another one: "
        "counters stop there without an error; or its filter denies the event",
        check=f"pmuctl affinity check; {_SHOW}",
        fix=f"{ALIGN}; where PMU is not known (?): {{start}}; where RULES deny the event: give "
        "another filter at its next start",
    ),
    Symptom(
        id="windows-divide-by-zero",
        by="Windows on ARM",
        seen="divide by zero in the HAL at boot (bugcheck, blue screen)",
        words=(
            "windows DIVIDE_BY_ZERO",
            "hal DIVIDE_BY_ZERO",
            "BLUE_SCREEN DIVIDE_BY_ZERO",
            "kmode_exception_not_handled DIVIDE_BY_ZERO",
            "efi DIVIDE_BY_ZERO",
            "windows pmccntr|pmccntr_el0",
            "windows BLUE_SCREEN hal",
            "hal_initialization_failed",
        ),
        may=("windows crash|reboot|gone|BLUE_SCREEN pin|big|little|cluster",),
        unless=("python", "sql"),
        means="Windows measures time with the cycle counter, which stands still while a vCPU is "
        "on CPUs that are not of the VM's PMU",
        check=AFFINITY_CHECK,
        fix="{start}",
    ),
    Symptom(
        id="guest-has-no-pmu",
        by="the guest's kernel, or perf in it",
        seen="<not supported> cycles, no hardware counters in the guest, "
        "sys_perf_event_open: No such file or directory",
        words=(
            "guest no pmu|pmuv|perfevents",
            "guest pmu NOT_SUPPORTED",
            "guest no hw|hardware perf|perfevent|count|event",
            "sys_perf_event_open|perf_event_open|perf_event_file ENOENT|ENODEV",
            "perf|simpleperf list no hw|hardware",
            "perf list only software",
            "simpleperf no hw|hardware|NOT_SUPPORTED",
            "perfevents pmu fail probe|register",
            "armv8 pmu probe ENODEV|ENXIO",
            "perf fail open performance|hw|hardware count|event perf_event_open",
            "fail open performance counter perf_event_open",
            "no find pmu armv8_pmuv3|armv8_pmuv|armv",
            "watchdog perf event create ENOENT|ENODEV",
            "event cycles|instruction|branches NOT_SUPPORTED",
            "hwpmc|pmcstat|pmccontrol no|fail|ENXIO|ENOENT|NOT_SUPPORTED",
            *_EVENT_REFUSED,
        ),
        may=(
            "sys_perf_event_open|perf_event_open ENOTSUP",
            "watchdog perf permanently disabled",
        ),
        unless=_NOT_THE_PMU,
        likely={HostTrait.NO_VPMU: -3, HostTrait.HAS_VPMU: 1, HostTrait.ONE_KIND: 1},
        means="the guest's kernel has no such event: the VM was made without a PMU ({vmm} was not "
        "asked for one, or cannot give one), or its PMU does not have the event, or its filter "
        "denies it",
        check="pmuctl vm list -o NAME,VMM,PMU,WINDOW,RULES",
        fix="{with_pmu}",
    ),
    Symptom(
        id="guest-reads-pmu",
        by="KVM, in the host's kernel log",
        seen="Unsupported guest sys_reg access at: ... { Op0( 3), Op1( 3), CRn( 9), CRm(12), "
        "Op2( 0), func_read }",
        words=("NOT_SUPPORTED access PMU_REGISTER", "guest PMU_REGISTER"),
        rank=2,
        means="the guest uses a register of the PMU, and its VM has none: it was made without a "
        "PMU ({vmm} was not asked for one, or cannot give one), or KVM does not have this "
        "register. The guest gets an undefined instruction",
        check="pmuctl vm list -o NAME,VMM,PMU,WINDOW; pmuctl host info",
        fix="{with_pmu}",
    ),
    Symptom(
        id="no-vpmu",
        by="a VMM, or perf in the guest",
        seen="no PMU in the guest: 'pmu' feature not supported, ENODEV, no hw perfevents driver",
        words=(
            "pmu feature NOT_SUPPORTED",
            "pmu NOT_SUPPORTED kvm|host",
            "vpmu|pmuv NOT_SUPPORTED",
            "vpmu no",
            "kvm_arm_vcpu_init ENODEV",
            "vcpu init ENODEV",
            "pmu kvm_has_device_attr ENODEV|ENXIO",
            "pmu NOT_SUPPORTED vcpu",
            "fail set irq pmu ENODEV",
            "kvm_cap_arm_pmu_v3",
            "property pmu no|NOT_SUPPORTED",
            "guest no pmu",
        ),
        may=(
            "guest pmu NOT_SUPPORTED",
            "pmu kvm_set_device_attr ENODEV|ENXIO",
            "vcpu init EINVAL",
            *_EVENT_REFUSED,
        ),
        unless=(
            *("sampling", "overflow", "kvm cpu type", "terminal", "option"),
            *("affinity property", "NO_PMU_IRQ"),
            # QEMU asks for no PMU where KVM has none
            *("kvm_init_vcpu EINVAL", "kvm_arch_init_vcpu EINVAL", "qemu init vcpu EINVAL"),
        ),
        likely={HostTrait.NO_VPMU: 4, HostTrait.HAS_VPMU: -3},
        means="KVM has no vPMU here (KVM_CAP_ARM_PMU_V3): the CPUs have no PMUv3, or PMUs of "
        "different versions; or the VM was made on a CPU of no PMU (ENODEV)",
        check="pmuctl host info",
        fix="pmuctl doctor",
    ),
    Symptom(
        id="no-pmu-interrupt",
        by="the guest's kernel, or perf in it",
        seen="hw perfevents: no irqs for PMU, sampling events not supported; "
        "No ACPI PMU IRQ for CPU0",
        words=(
            "no irq pmu",
            "NO_PMU_IRQ",
            "sampling NOT_SUPPORTED pmu|perf|event|hardware",
            "sampling overflow NOT_SUPPORTED|no support",
            "perf record NOT_SUPPORTED|no|fail sampling|irq|overflow",
            "pmu overflow irq no",
            "fail request irq pmu",
            "fail request PMU_IRQ",
            "watchdog perf event create ENOTSUP",
            "sys_perf_event_open|perf_event_open ENOTSUP",
            "perf stat record work|count|run no|fail",
        ),
        errors=("ENOTSUP", "EINVAL"),
        unless=("kvm_set_device_attr", "kvm_has_device_attr", "affinity property"),
        means="the guest has a PMU that counts, but was told of no overflow interrupt of it: perf "
        "stat works, perf record (sampling) does not. Its device tree or ACPI table (MADT) has no "
        "interrupt of the PMU",
        check="perf stat -e cycles true (in the guest)",
        fix="{with_gic}; until then, in the guest: perf stat -e cycles COMMAND",
    ),
    Symptom(
        id="few-counters",
        by="the guest's kernel",
        seen="hw perfevents: enabled with armv8_pmuv3 PMU driver, 1 counters available",
        words=(
            "FEW_COUNTERS",
            "guest only|just cycle|one counter",
            "guest fewer counter",
        ),
        may=("PERF_SAYS NOT_COUNTED", "perf NOT_COUNTED event|group|multiplex"),
        means="the guest's PMU has next to no counter beside the cycle counter, which is one of "
        "those that it tells: the VM has a limit of counters, or its PMU has no more (KVM gives "
        "one on Apple's). Events that find no free counter are <not counted>",
        check="pmuctl vm show VM -o NAME,PMU,COUNTERS",
        fix="pmuctl vm set VM counters N (if its VMM has a control socket, before it runs); or "
        "start it on a PMU that has more: {start}",
    ),
    Symptom(
        id="guest-lacks-cpus",
        by="the guest's kernel",
        seen="CPU1: failed to come online; only one CPU in the guest",
        words=(*ONE_CPU, "CPUS_OFFLINE"),
        may=("psci fail boot|start cpu|vcpu",),
        unless=("default", "support", "taskset|affinity start"),
        errors=("EINVAL", "EIO", "ETIMEDOUT"),
        means="a vCPU other than 0 did not enter the guest, and the rest of the VM runs on: its "
        "thread is on a CPU that is not of the VM's PMU (KVM_EXIT_FAIL_ENTRY), or has ended, or "
        "was never started",
        check="pmuctl vm vcpus VM; pmuctl affinity check",
        fix="{start}",
    ),
)
"""Symptoms of guests whose PMU, or whose CPUs, are not as expected."""
