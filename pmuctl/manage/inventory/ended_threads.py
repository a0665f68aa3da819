# SPDX-License-Identifier: Apache-2.0
"""vCPUs without a supervisor that have run and whose threads have ended, if that is certain.

It is not if the thread of a vCPU is only not found: VMMs that can unplug vCPUs (QEMU,
cloud-hypervisor) keep the descriptors of those that have no thread any more, or not yet.
"""

from collections.abc import Collection, Mapping

from pmuctl.host.kvm.fds import KvmProcess
from pmuctl.host.procfs import Procfs
from pmuctl.model.vmm.identity import VmmIdentity, VmmKind, vcpu_of_thread

MAY_UNPLUG = (None, VmmKind.QEMU, VmmKind.CLOUD_HYPERVISOR)
"""VMMs, and those not known, whose vCPUs may have run and be unplugged."""


def find_dead_vcpus(
    procs: Procfs,
    kvm_process: KvmProcess,
    identity: VmmIdentity,
    tids: Collection[int],
    last_tids: Mapping[int, int],
) -> frozenset[int]:
    """Return the numbers of such vCPUs of a process with one VM.

    `tids` are the threads of the process, `last_tids` those that ran each vCPU last, by debugfs.
    """
    if identity.kind in MAY_UNPLUG:
        return frozenset()
    pid, open_vcpus = kvm_process.pid, frozenset(kvm_process.vcpus.values())
    # debugfs has the ids of the host's pid namespace, which these need not be
    is_same_namespace = any(tid in tids for tid in last_tids.values())
    dead = {
        index
        for index, tid in last_tids.items()
        if is_same_namespace and tid not in tids and procs.thread_stat(pid, tid) is None
    }
    if identity.kind is VmmKind.KVMTOOL:
        dead |= _find_ended_kvmtool_threads(procs, pid, tids, open_vcpus)
    return frozenset(dead & open_vcpus)


def _find_ended_kvmtool_threads(
    procs: Procfs, pid: int, tids: Collection[int], indices: Collection[int]
) -> set[int]:
    """Return the vCPUs of kvmtool that lack a thread, while one of a higher number is there.

    It starts the threads of its vCPUs in order, unplugs none, and each makes KVM_RUN until it
    ends (kvm_cmd_run_work() in builtin-run.c, kvm_cpu__start() in kvm-cpu.c). A thread takes its
    name when it starts; until then it has that of the main thread.
    """
    names = {tid: procs.comm(pid, tid) for tid in tids}
    own = names.get(pid)
    has_unnamed = any(tid != pid and name in (own, "") for tid, name in names.items())
    named = {index for name in names.values() if (index := vcpu_of_thread(name)) is not None}
    if has_unnamed or 0 not in named:
        return set()
    return {index for index in indices if index not in named and index < max(named)}
