# SPDX-License-Identifier: Apache-2.0
"""The program of a process that has a VM, as the process itself tells it."""

from pmuctl.host.procfs import Procfs
from pmuctl.model.vmm_identity import names_vmm


def read_program(procs: Procfs, pid: int) -> tuple[tuple[str, ...], str]:
    """Return the command line of a process and the name of its main thread.

    The name is read only if the command line names no VMM; otherwise it is empty.
    """
    argv = procs.command_line(pid)
    return argv, "" if names_vmm(argv) else procs.comm(pid, pid)
