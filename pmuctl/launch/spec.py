# SPDX-License-Identifier: Apache-2.0
"""The launch spec: what `pmuctl run` has the supervisor apply to every VM that its VMM makes."""

import json
from collections.abc import Mapping
from pathlib import Path

from pmuctl.control.protocol.messages import FILTER, filter_from, filter_message
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.event_filter import EventFilter
from pmuctl.schema import AnyValue, Bool, Int, List, Nullable, NumberMap, Obj, Str, Struct, Tuple
from pmuctl.value import field, value


@value(kw_only=True)
class LaunchSpec:
    """What to apply, and what to do if that fails.

    `pmu` is a PMU's perf type and name, None if the VM is to keep what KVM chooses (then there is
    no filter either). `affinity` is the CPUs that the VMM's threads are confined to until its
    vCPUs run, and its vCPU threads for good; None leaves masks alone. `names_cpus` says that
    the user named them, whether or not there is a PMU. `attributes`, `event_bits`
    and `event_bits_of` are what this kernel's KVM has, as in KvmCaps. `defaults` maps the PMUs,
    by perf type and name, to their CPUs if KVM gives a VM that keeps its choice the PMU of the
    CPU on which KVM_ARM_VCPU_INIT is made; it is empty if KVM chooses otherwise, or if that is
    not known.
    `timeout` is how long a VMM is held before it is ended (seconds). With `best_effort` a VM
    starts even if the settings cannot be applied.
    """

    name: str
    socket: Path
    command: tuple[str, ...]
    pmu: tuple[int, str] | None = None
    filter: EventFilter | None = None
    affinity: CpuSet | None = None
    names_cpus: bool = False
    attributes: frozenset[int] = frozenset()
    event_bits: int | None = None
    event_bits_of: Mapping[int, int] = field(default_factory=dict)
    defaults: Mapping[tuple[int, str], CpuSet] = field(default_factory=dict)
    hold: bool = False
    timeout: float | None = None
    best_effort: bool = False

    @property
    def has_settings(self) -> bool:
        """Whether there is anything to do for a VM."""
        return self.pmu is not None or self.affinity is not None or self.hold

    def encode(self) -> bytes:
        """Return the spec as one JSON text, which `decode` reads."""
        return json.dumps(_FORM.format(self)).encode()

    @classmethod
    def decode(cls, text: bytes) -> "LaunchSpec":
        """Return the spec of a text by `encode`: it comes from this program, not from outside."""
        # not checked: arguments may be long, and need not be UTF-8
        spec: LaunchSpec = _FORM.parse(json.loads(text))
        return spec


_FORM = Struct(
    {
        "name": Str(),
        "socket": Str(make=Path, unmake=str),
        "command": List(Str(), make=tuple),
        "pmu": Nullable(Tuple((Int(), Str()), make=tuple)),
        "filter": Nullable(Obj(FILTER, make=filter_from, unmake=filter_message)),
        "affinity": Nullable(Str(make=CpuSet.parse, unmake=str)),
        "names-cpus": Bool(),
        "attributes": List(Int(), make=frozenset, unmake=sorted),
        "event-bits": Nullable(Int()),
        "event-bits-of": NumberMap(Int()),
        "defaults": List(
            Tuple((Int(), Str(), Str(make=CpuSet.parse, unmake=str))),
            make=lambda rows: {(type, name): cpus for type, name, cpus in rows},
            unmake=lambda defaults: [(*pmu, cpus) for pmu, cpus in defaults.items()],
        ),
        "hold": Bool(),
        "timeout": AnyValue(),
        "best-effort": Bool(),
    },
    cls=LaunchSpec,
)
"""The form of a spec as JSON."""
