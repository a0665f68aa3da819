# SPDX-License-Identifier: Apache-2.0
"""The session of one command: the host whose VMs it queries, and how it reaches them."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pmuctl.control.client.client import Client, socket_at
from pmuctl.control.protocol.stream import ByteBudget
from pmuctl.control.runtime.sockets import ControlSocket, SocketScan, scan_sockets
from pmuctl.host.host import Host
from pmuctl.model.vm_ref import ProcessId
from pmuctl.value import field, value

if TYPE_CHECKING:
    from pmuctl.control.client.qemu_monitor import QemuMonitor

NOBODY = -1
"""A user id that no user has."""

MonitorAnswers = dict[tuple[ProcessId, frozenset[int]], "QemuMonitor | None"]
"""Replies of QEMU's own monitor, by the process and the vCPUs that it had at that time."""


@value(kw_only=True)
class Session:
    """Access to the VMs of `host`, with `deadline` seconds for each query.

    If `socket` is given, only its VM is queried. `trace` is called with every request that is
    sent. `monitor_answers` keeps the replies of QEMU monitors, so that a later look with the same
    session does not query them again, and `vm_pids` the processes that had VMs at the last look.
    """

    host: Host
    deadline: float
    socket: Path | None = None
    trace: Callable[[str], None] | None = None
    monitor_answers: MonitorAnswers = field(default_factory=dict)
    vm_pids: list[int] = field(default_factory=list)

    def find_sockets(self) -> SocketScan:
        """Return the sockets to query: the named one, or all of the host.

        In a captured tree, return the captured sockets; raise RefusedError if a file of them is
        broken.
        """
        if not self.host.is_live:
            from pmuctl.manage.inventory.captured_replies import read_captured_sockets

            return read_captured_sockets(self.host)
        if self.socket is not None:
            return SocketScan([socket_at(self.socket)])
        return scan_sockets(self.host.environ, self.host.uid)

    @property
    def user(self) -> int:
        """The user whose VMs go before those of others; NOBODY in a captured tree."""
        return self.host.uid if self.host.is_live else NOBODY

    def is_own(self, socket: ControlSocket) -> bool:
        """Return True if only root or this user can have made a socket, judged by its directory.

        In a captured tree, "this user" is the one who made the capture.
        """
        return self.socket is None and socket.speaks_for in (None, self.user)

    def client(self, socket: ControlSocket, budget: ByteBudget | None = None) -> Client:
        """Return a client for a VM's control socket; it connects when its context is entered.

        `budget` bounds what is received.
        Raise ValueError in a captured tree, whose socket paths mean nothing on this machine.
        """
        if not self.host.is_live:
            raise ValueError("a captured tree has no socket to be asked")
        return Client(
            socket,
            deadline=self.deadline,
            procs=self.host.procs,
            trace=self.trace,
            budget=budget,
        )
