# SPDX-License-Identifier: Apache-2.0
"""The program of a process that has a VM, as the process itself tells it."""

from collections.abc import Sequence

from pmuctl.host.procfs import Procfs
from pmuctl.model.vmm.identity import VmmIdentity, VmmKind, identify, kind_of_threads, names_vmm

THREADS_MAX = 256
"""The threads whose names are read of a program that is not known."""


def read_program(procs: Procfs, pid: int) -> tuple[tuple[str, ...], str]:
    """Return the command line of a process and the name of its main thread.

    The name is read only if the command line names no VMM; otherwise it is empty.
    """
    argv = procs.command_line(pid)
    return argv, "" if names_vmm(argv) else procs.comm(pid, pid)


def identify_program(procs: Procfs, pid: int, argv: Sequence[str], comm: str) -> VmmIdentity:
    """Identify a VMM by what `read_program` has returned for its process, or else by its threads.

    kvmtool names a VM after its process id, which in a container is another one than here.
    """
    identity = identify(argv, comm)
    if identity.kind is None:
        tids = sorted(procs.threads(pid))[:THREADS_MAX]
        kind = kind_of_threads(procs.comm(pid, tid) for tid in tids)
        identity = identify(argv, comm, kind=kind)
    if identity.kind is VmmKind.KVMTOOL and identity.name is None:
        return identify(argv, comm, pid=procs.namespace_pid(pid), kind=VmmKind.KVMTOOL)
    return identity
