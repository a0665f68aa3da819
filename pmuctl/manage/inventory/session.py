# SPDX-License-Identifier: Apache-2.0
"""How the VMs of one host are reached by one user."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pmuctl.control.client.client import Client, socket_at
from pmuctl.control.runtime.sockets import ControlSocket, SocketScan, scan_sockets
from pmuctl.host.host import Host
from pmuctl.model.vm_ref import ProcessId
from pmuctl.value import field, value

if TYPE_CHECKING:
    from pmuctl.control.client.qemu_monitor import QemuMonitor

NOBODY = -1
"""What no user's number is."""

MonitorAnswers = dict[tuple[ProcessId, frozenset[int]], "QemuMonitor | None"]
"""What the monitors of a process have said, when it had these vCPUs."""


@value(kw_only=True)
class Session:
    """The VMs of `host`, asked within `deadline` seconds each; only that of `socket` if given.

    `trace` is told every request as it is sent. `monitor_answers` are what QEMUs' own monitors
    have said: who looks again with the same session does not ask again.
    """

    host: Host
    deadline: float
    socket: Path | None = None
    trace: Callable[[str], None] = field(default=lambda _: None)
    monitor_answers: MonitorAnswers = field(default_factory=dict)

    def scan_sockets(self) -> SocketScan:
        """Return the sockets to ask: the one that was named, or all there are.

        In a captured tree they are what was captured; raises RefusedError if that is broken.
        """
        if not self.host.is_live:
            from pmuctl.manage.inventory.captured_replies import read_told

            return read_told(self.host.sysfs)
        if self.socket is not None:
            return SocketScan([socket_at(self.socket)])
        return scan_sockets(self.host.environ, self.host.uid)

    @property
    def user(self) -> int:
        """The user whose VMs go before others'; NOBODY who is here in a captured tree."""
        return self.host.uid if self.host.is_live else NOBODY

    def is_own(self, socket: ControlSocket) -> bool:
        """Return whether only root and this user can have made a socket, by its directory.

        In a captured tree this user is the one who made the capture.
        """
        return self.socket is None and socket.owner in (None, self.user)

    def client(self, socket: ControlSocket) -> Client:
        """Return a connection, not yet made, to a VM's control socket.

        Raises ValueError in a captured tree: what is here at that path is none of its sockets.
        """
        if not self.host.is_live:
            raise ValueError("a captured tree has no socket to be asked")
        return Client(socket, deadline=self.deadline, procs=self.host.procs, trace=self.trace)
