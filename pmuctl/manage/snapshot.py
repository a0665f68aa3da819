# SPDX-License-Identifier: Apache-2.0
"""What a capture of a machine has: all that its VMs, their blockers and its PMUs are told from."""

from collections.abc import Iterator
from contextlib import suppress

from pmuctl.host.captured_procfs import capture_probed, scan_captured_vms
from pmuctl.host.pmus import scan_pmus
from pmuctl.host.snapshot_files import Captured, scan_captured
from pmuctl.manage.host_info import read_probed
from pmuctl.manage.inventory.captured_replies import capture_told
from pmuctl.manage.inventory.poller import ask_sockets
from pmuctl.manage.inventory.replies import VmReply
from pmuctl.manage.inventory.session import Session
from pmuctl.value import replace


def scan_snapshot(session: Session) -> Iterator[Captured]:
    """The files of a capture: sysfs and debugfs, what control sockets tell, the processes of VMs,
    and what KVM does.

    KVM is tried on scratch VMs, once a boot, where this user may use it. Raises RefusedError where
    a tree is captured that is none.
    """
    host, sysfs = session.host, session.host.sysfs
    sockets = session.scan_sockets()
    told = ask_sockets(session, sockets.entries)
    yield from scan_captured(sysfs)
    entries = [
        replace(entry, owner=None) if session.is_own(entry) else entry for entry in sockets.entries
    ]
    yield from capture_told(list(zip(entries, told, strict=True)), sockets.left_out)
    vmms = (its.vmm.process for its in told if isinstance(its, VmReply))
    yield from scan_captured_vms(host.procs, sysfs, filter(None, vmms))
    pmus = scan_pmus(sysfs)
    probed = None
    with suppress(OSError):
        access = host.kvm.access() if host.kvm else None
        probed = read_probed(host, pmus, access)
    if probed is not None:
        yield capture_probed(probed, pmus)
