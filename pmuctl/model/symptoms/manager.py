# SPDX-License-Identifier: Apache-2.0
"""Symptoms that libvirt, Proxmox VE and taskset show.

The messages are of libvirt's src/util/virprocess.c and src/qemu/qemu_driver.c, of Proxmox'
qemu-server and of util-linux.
"""

from collections.abc import Sequence

from pmuctl.model.symptoms.symptom import Symptom

MANAGER: Sequence[Symptom] = (
    Symptom(
        id="affinity-refused",
        by="libvirt, taskset",
        seen="cannot set CPU affinity on process 2492: Invalid argument; "
        "failed to set pid 2492's affinity: Invalid argument",
        words=(
            "set affinity cpu|vcpu|pid|process|thread|tid|task fail|no|EINVAL|refused|error",
            "affinity EINVAL",
            "taskset|vcpupin|emulatorpin|iothreadpin EINVAL|fail",
            "sched_setaffinity|pthread_setaffinity_np|setaffinity fail|no|EINVAL|error|22",
            "set mask cpu|affinity thread|process|pid|vcpu EINVAL",
            "pin vcpu|cpu|guest|qemu EINVAL",
            "write cpuset cpu EINVAL|ERANGE|EACCES|fail|no|unable",
        ),
        unless=("irq", "session", "node", "pinctrl", "controller"),
        errors=("EINVAL", "ERANGE", "EACCES"),
        means="the kernel cuts the CPUs of a thread down to those of its cpuset cgroup, and "
        "refuses a mask of which nothing is left (EINVAL): a cgroup above the VM, such as "
        "{slice}, has none of the CPUs that were asked for (often another hook has put a "
        "cpuset there), or these CPUs are offline",
        check="grep -H . /sys/fs/cgroup/*.slice/cpuset.cpus.effective "
        "/sys/devices/system/cpu/online; cat /proc/PID/cgroup",
        fix="systemctl set-property --runtime {slice} AllowedCPUs={online}",
    ),
    Symptom(
        id="no-cpuset-controller",
        by="libvirt",
        seen="Requested operation is not valid: cgroup CPUSET controller is not mounted",
        words=(
            "cpuset controller no mounted|found|enabled|delegated|exists",
            "cpuset controller NOT_SUPPORTED",
            "cgroup|libvirt|virsh|vcpupin cpuset no mounted",
            "no cpuset controller",
        ),
        means="libvirt has no cpuset controller for its domains here: pins are masks of threads "
        "only, which anybody who may set affinity can undo, and vcpupin is refused",
        check="cat /sys/fs/cgroup/cgroup.controllers /sys/fs/cgroup/cgroup.subtree_control",
        fix="echo +cpuset >/sys/fs/cgroup/cgroup.subtree_control && "
        "systemctl try-restart libvirtd virtqemud (then start the VM anew)",
    ),
    Symptom(
        id="proxmox-start-failed",
        by="Proxmox VE",
        seen="TASK ERROR: start failed: QEMU exited with code 1",
        words=(
            "task error start fail",
            "start fail qemu exit code",
            "proxmox|pve start fail qemu|code|exit|error",
            "start fail exit code kvm|qemu command",
        ),
        means="Proxmox prints this whatever QEMU said: the cause is in the line before it",
        check="qm start VMID (prints that line)",
        fix="pmuctl doctor --symptom 'THE LINE BEFORE IT'",
        rank=-5,
    ),
)
"""Symptoms of managers and their cgroups."""
