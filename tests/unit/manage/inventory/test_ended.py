# SPDX-License-Identifier: Apache-2.0
"""VMs that end while they are asked."""

import subprocess
import sys
from pathlib import Path

from pmuctl.host.host import Host
from pmuctl.host.procfs import Procfs
from pmuctl.manage.inventory.lookup import list_vms
from pmuctl.manage.inventory.session import Session

DYING = """
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print(flush=True)
client = listener.accept()
os.kill(os.getpid(), 9)
"""


class WithoutOthers(Procfs):
    """The running kernel's, in which no process is seen by a scan."""

    def pids(self) -> list[int]:
        return []


def test_a_vm_that_ends_while_it_is_asked_is_left_out(tmp_path: Path) -> None:
    host = Host(environ={"PMUCTL_RUNTIME_DIR": str(tmp_path)}, uid=0, procs=WithoutOthers())
    argv = [sys.executable, "-c", DYING, str(tmp_path / "web1.sock")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert list_vms(Session(host=host, deadline=30)).vms == []
    # its socket is still there, and nobody listens
    assert [vm.state for vm in list_vms(Session(host=host, deadline=30)).vms] == ["dead"]
