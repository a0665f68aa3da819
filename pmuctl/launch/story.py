# SPDX-License-Identifier: Apache-2.0
"""What a supervisor tells of its VM, and what it is told in return."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from pmuctl.control.door import VcpuStatus
from pmuctl.errors import PmuctlError
from pmuctl.launch.calls import Call
from pmuctl.model.cpuset import CpuSet


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What a held VM was given before it was released.

    `calls` are for the VMs its process makes later, `last` for the one that is held; `placed`
    has the masks of threads from before they were placed, by thread id.
    """

    calls: Sequence[Call]
    last: Sequence[Call]
    cpus: CpuSet | None
    placed: Mapping[int, CpuSet]


class Story(Protocol):
    """One VM's, as far as the outside is to know it."""

    def began(self, pid: int) -> None:
        """This process makes VMs."""

    def has(self, vcpus: Sequence[VcpuStatus]) -> None:
        """These are the vCPUs of the VM made last."""

    def applied(self, words: Sequence[str]) -> None:
        """The settings were applied to a VM, by these calls."""

    def refused(self, error: PmuctlError) -> None:
        """The VM does not start."""

    def held(self) -> None:
        """The window is open, and stays so; raises PmuctlError where what was ordered fails."""

    def carry_out(self) -> None:
        """Have the calls made that wait for it."""

    def released(self) -> Release | None:
        """What to go on with once somebody has released the VM; None until then."""

    def ended(self) -> None:
        """The process is gone."""
