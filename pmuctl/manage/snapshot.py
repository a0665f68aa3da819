# SPDX-License-Identifier: Apache-2.0
"""The contents of a capture: every file that the state of VMs, blockers and PMUs is read from."""

from collections.abc import Iterator
from contextlib import suppress

from pmuctl.control.runtime.sockets import ControlSocket
from pmuctl.host.captured_procfs import capture_probed, scan_captured_vms
from pmuctl.host.pmus import scan_pmus
from pmuctl.host.snapshot_files import Captured, scan_captured
from pmuctl.manage.host_info import read_host_kvm_caps
from pmuctl.manage.inventory.captured_replies import capture_replies, to_text
from pmuctl.manage.inventory.poller import ask_sockets
from pmuctl.manage.inventory.replies import Reply, VmReply
from pmuctl.manage.inventory.session import Session
from pmuctl.model.vm_ref import ProcessId
from pmuctl.value import replace


def scan_snapshot(session: Session) -> Iterator[Captured]:
    """Yield the files of a capture.

    They are those of sysfs and debugfs, the replies of control sockets, the /proc files of
    processes with VMs, and what KVM does. KVM is probed on scratch VMs, once a boot, if this user
    may use it. Raise RefusedError if the session's tree is a capture that is broken.
    """
    host, sysfs = session.host, session.host.sysfs
    sockets = session.find_sockets()
    replies = ask_sockets(session, sockets.sockets, _capture_reply)
    yield from scan_captured(sysfs)
    yield from capture_replies((text for text, _ in replies), sockets.left_out)
    yield from scan_captured_vms(host.procs, sysfs, filter(None, (vmm for _, vmm in replies)))
    pmus = scan_pmus(sysfs)
    caps = None
    with suppress(OSError):
        access = host.kvm.access() if host.kvm else None
        caps = read_host_kvm_caps(host, pmus, access)
    if caps is not None:
        yield capture_probed(caps, pmus)


def _capture_reply(
    session: Session, socket: ControlSocket, reply: Reply
) -> tuple[str, ProcessId | None]:
    """Return the text of a reply's file, and the process of the VMM that gave it."""
    socket = replace(socket, speaks_for=None) if session.is_own(socket) else socket
    vmm = reply.vmm.process if isinstance(reply, VmReply) else None
    return to_text(socket, reply), vmm
