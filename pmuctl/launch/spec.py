# SPDX-License-Identifier: Apache-2.0
"""The launch spec: what `pmuctl run` has the supervisor apply to every VM that its VMM makes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pmuctl.control.protocol.messages import filter_from, filter_message
from pmuctl.control.protocol.qmp_codec import Message
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.event_filter import EventFilter
from pmuctl.value import field, value


@value(kw_only=True)
class LaunchSpec:
    """What to apply, and what to do if that fails.

    `pmu` is a PMU's perf type and name, None if the VM is to keep what KVM chooses (then there is
    no filter either). `affinity` is the CPUs that the VMM's threads are confined to until its
    vCPUs run, and its vCPU threads for good; None leaves masks alone. `attributes` and
    `event_bits` are what this kernel's KVM has. `defaults` maps the PMUs, by perf type and name,
    to their CPUs if KVM gives a VM that keeps its choice the PMU of the CPU on which
    KVM_ARM_VCPU_INIT is made; it is empty if KVM chooses otherwise, or if that is not known.
    `timeout` is how long a VMM is held before it is ended (seconds). With `best_effort` a VM
    starts even if the settings cannot be applied.
    """

    name: str
    socket: Path
    command: tuple[str, ...]
    pmu: tuple[int, str] | None = None
    filter: EventFilter | None = None
    affinity: CpuSet | None = None
    attributes: frozenset[int] = frozenset()
    event_bits: int | None = None
    defaults: Mapping[tuple[int, str], CpuSet] = field(default_factory=dict)
    hold: bool = False
    timeout: float | None = None
    best_effort: bool = False

    def encode(self) -> bytes:
        """Return the spec as one JSON text, which `decode` reads."""
        message: Message = {
            "name": self.name,
            "socket": str(self.socket),
            "command": list(self.command),
            "pmu": self.pmu and list(self.pmu),
            "filter": self.filter and filter_message(self.filter),
            "affinity": None if self.affinity is None else str(self.affinity),
            "attributes": sorted(self.attributes),
            "event-bits": self.event_bits,
            "defaults": [[*pmu, str(cpus)] for pmu, cpus in self.defaults.items()],
            "hold": self.hold,
            "timeout": self.timeout,
            "best-effort": self.best_effort,
        }
        return json.dumps(message).encode()

    @classmethod
    def decode(cls, text: bytes) -> "LaunchSpec":
        """Return the spec of a text by `encode`: it comes from this program, not from outside."""
        message: Mapping[str, Any] = json.loads(text)
        return cls(
            name=message["name"],
            socket=Path(message["socket"]),
            command=tuple(message["command"]),
            pmu=message["pmu"] and tuple(message["pmu"]),
            filter=message["filter"] and filter_from(message["filter"]),
            affinity=None if message["affinity"] is None else CpuSet.parse(message["affinity"]),
            attributes=frozenset(message["attributes"]),
            event_bits=message["event-bits"],
            defaults={
                (number, name): CpuSet.parse(cpus) for number, name, cpus in message["defaults"]
            },
            hold=message["hold"],
            timeout=message["timeout"],
            best_effort=message["best-effort"],
        )
