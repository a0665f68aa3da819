# SPDX-License-Identifier: Apache-2.0
"""The table of the control socket's commands and events, which validates both directions."""

import re
from collections.abc import Iterable, Mapping

from pmuctl.control.protocol.qmp_codec import Message
from pmuctl.model.event import EventSet
from pmuctl.model.event_filter import Action, EventFilter
from pmuctl.model.kvm_caps import DERIVED
from pmuctl.schema import Bool, Int, Kind, List, Maybe, Nullable, Obj, Str, Tuple
from pmuctl.value import value

VM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""The form of a VM name, which is used as a file name, an argument and a table cell."""


@value(kw_only=True)
class Command:
    """The arguments and the result of a command, and whether it changes the VM."""

    arguments: Obj
    result: Kind
    changes: bool = False


def _make_reply(members: Mapping[str, Kind | Maybe]) -> Obj:
    """Return an object that a server may extend in later versions."""
    return Obj(members, is_open=True)


NAME = Str(most=64, form=VM_NAME)
PMU_NAME = Str(most=256)
PERF_TYPE = Int(most=0x7FFFFFFF)
COUNTERS = Int(most=31)
"""PMCR_EL0.N has five bits (Arm ARM D24.5)."""
CPUS = List(Int(most=0xFFFF), least=1, most=1 << 16)
ORIGIN = Str(words=("applied", "vmm", "unknown"))
PMU_ORIGIN = Str(words=(*ORIGIN.words, DERIVED))
"""KVM chooses a PMU if none is set, but never the counters or a filter."""
WINDOW = Str(words=("open", "sealed", "none"))
FILTER: Mapping[str, Kind] = {
    "default": Str(words=("allow", "deny")),
    "except": List(Tuple((Int(most=0xFFFF), Int(least=1, most=1 << 16))), most=1 << 15),
}
VCPU_INDEX = Int(most=0xFFFF)
"""KVM_MAX_VCPU_IDS is 512 on arm64 (arch/arm64/include/asm/kvm_host.h), and 4096 on x86-64."""
VCPU = _make_reply(
    {
        "index": VCPU_INDEX,
        "tid": Nullable(Int(least=1)),
        "initialised": Bool(),
        "has-run": Bool(),
    }
)
STEPS = List(
    _make_reply({"attribute": Str(), "words": Str(), "outcome": Str(words=("done", "planned"))}),
)
FIELDS = List(
    _make_reply(
        {
            "path": Str(),
            "type": Str(words=("integer", "boolean", "string", "list", "object")),
            "required": Bool(),
            "null": Bool(),
            "least": Maybe(Int()),
            "most": Maybe(Int()),
            "words": Maybe(List(Str())),
            "form": Maybe(Str()),
            "open": Maybe(Bool()),
        }
    ),
    least=1,
)
"""The rows that Kind.describe() yields."""

COMMANDS: Mapping[str, Command] = {
    "qmp_capabilities": Command(
        arguments=Obj({"enable": Maybe(List(Str()))}), result=_make_reply({})
    ),
    "query-commands": Command(arguments=Obj({}), result=List(_make_reply({"name": Str()}))),
    "query-schema": Command(
        arguments=Obj({}),
        result=_make_reply(
            {
                "commands": List(
                    _make_reply(
                        {"name": Str(), "changes": Bool(), "arguments": FIELDS, "result": FIELDS}
                    )
                ),
                "events": List(_make_reply({"name": Str(), "data": FIELDS})),
                "errors": List(_make_reply({"class": Str()})),
            }
        ),
    ),
    "query-pmu": Command(
        arguments=Obj({}),
        result=_make_reply(
            {
                "name": NAME,
                "uuid": Nullable(Str(most=64)),
                "vmm": Str(most=64),
                "pid": Int(least=1),
                "window": WINDOW,
                "waiting": Maybe(Bool()),
                "since": Nullable(Int()),
                "by": Nullable(Str()),
                "attributes": List(Str(most=64)),
                "event-bits": Maybe(Nullable(Int(least=10, most=16))),
                "pmu": Nullable(
                    _make_reply({"name": PMU_NAME, "type": PERF_TYPE, "origin": PMU_ORIGIN})
                ),
                "counters": Nullable(_make_reply({"value": COUNTERS, "origin": ORIGIN})),
                "filter": Nullable(_make_reply({**FILTER, "origin": ORIGIN})),
                "vcpus": List(VCPU),
            }
        ),
    ),
    "pmu-apply": Command(
        arguments=Obj(
            {
                "type": PERF_TYPE,
                "name": PMU_NAME,
                "counters": Maybe(COUNTERS),
                "filter": Maybe(Obj(FILTER)),
                "cpus": Maybe(CPUS),
                "dry-run": Maybe(Bool()),
            }
        ),
        result=_make_reply(
            {"outcome": Str(words=("set", "unchanged", "planned")), "steps": STEPS}
        ),
        changes=True,
    ),
    "pmu-release": Command(
        arguments=Obj({}),
        result=_make_reply({"outcome": Str(words=("released", "unchanged"))}),
        changes=True,
    ),
}
"""Every command of the protocol. `query-commands` names those of a server, which may have more."""

EVENTS: Mapping[str, Obj] = {
    "PMU_WINDOW": _make_reply({"window": WINDOW, "by": Nullable(Str())}),
    "PMU_APPLIED": _make_reply({"steps": STEPS}),
    "PMU_REFUSED": _make_reply({"class": Str(), "desc": Str()}),
    "VM_EXITED": _make_reply({}),
}
"""Every event of the protocol. A server sends an event to all its clients."""


def describe_messages(errors: Iterable[str]) -> dict[str, object]:
    """Return the result of `query-schema`: this table as plain data, and the error classes."""
    return {
        "commands": [
            {
                "name": name,
                "changes": command.changes,
                "arguments": list(command.arguments.describe("")),
                "result": list(command.result.describe("")),
            }
            for name, command in COMMANDS.items()
        ],
        "events": [
            {"name": name, "data": list(data.describe(""))} for name, data in EVENTS.items()
        ],
        "errors": [{"class": name} for name in errors],
    }


def filter_message(event_filter: EventFilter) -> Message:
    """Return the wire form of a filter: {"default": …, "except": [[base, nevents], …]}."""
    runs = event_filter.exceptions.runs()
    return {"default": str(event_filter.default), "except": [list(run) for run in runs]}


def filter_from(message: Mapping[str, object]) -> EventFilter:
    """Return the filter of a message that the schema has already checked."""
    ranges = message["except"]
    assert isinstance(ranges, list)
    return EventFilter(Action(str(message["default"])), EventSet.of_ranges(ranges))
