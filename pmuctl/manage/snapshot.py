# SPDX-License-Identifier: Apache-2.0
"""What a capture of a machine has: all that its VMs, their blockers and its PMUs are told from."""

from collections.abc import Iterator, Mapping
from contextlib import suppress

from pmuctl.host.captured import capture_probed, scan_captured_vms
from pmuctl.host.machine import Captured, read_kvm_access, scan_captured
from pmuctl.host.pmus import scan_pmus
from pmuctl.host.procs import Procfs
from pmuctl.host.sysfs import Sysfs
from pmuctl.manage.host import read_probed


def scan_snapshot(sysfs: Sysfs, procs: Procfs, environ: Mapping[str, str]) -> Iterator[Captured]:
    """The files of a capture: sysfs and debugfs, the processes of VMs, and what KVM does.

    KVM is tried on scratch VMs, once a boot, where this user may use it.
    """
    yield from scan_captured(sysfs)
    yield from scan_captured_vms(procs, sysfs)
    pmus = scan_pmus(sysfs)
    probed = None
    with suppress(OSError):
        access = read_kvm_access() if sysfs.is_live else None
        probed = read_probed(sysfs, pmus, environ, access)
    if probed is not None:
        yield capture_probed(probed, pmus)
