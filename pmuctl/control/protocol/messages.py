# SPDX-License-Identifier: Apache-2.0
"""The messages of the control socket: one table, which validates both directions."""

import re
from collections.abc import Iterable, Mapping

from pmuctl.control.protocol.qmp_codec import Message
from pmuctl.control.protocol.schema import Bool, Int, Kind, List, Maybe, Nullable, Obj, Str, Tuple
from pmuctl.model.event import EventSet
from pmuctl.model.event_filter import Action, EventFilter
from pmuctl.model.kvm_caps import DERIVED
from pmuctl.value import value

VM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""What a VM may be called: it is a file name, an argument and a table cell."""


@value(kw_only=True)
class Command:
    """One command: its arguments, its result, and whether it changes the VM."""

    arguments: Obj
    result: Kind
    changes: bool = False


def _reply(members: Mapping[str, Kind | Maybe]) -> Obj:
    return Obj(members, is_open=True)


NAME = Str(most=64, form=VM_NAME)
PMU_NAME = Str(most=256)
PERF_TYPE = Int(most=0x7FFFFFFF)
COUNTERS = Int(most=31)
"""PMCR_EL0.N has five bits (Arm ARM D24.5)."""
CPUS = List(Int(most=0xFFFF), least=1, most=1 << 16)
ORIGIN = Str(words=("applied", "vmm", "unknown"))
PMU_ORIGIN = Str(words=(*ORIGIN.words, DERIVED))
"""KVM chooses a PMU where none is set, but no counters and no filter."""
WINDOW = Str(words=("open", "sealed", "none"))
FILTER: Mapping[str, Kind] = {
    "default": Str(words=("allow", "deny")),
    "except": List(Tuple((Int(most=0xFFFF), Int(least=1, most=1 << 16))), most=1 << 15),
}
VCPU = _reply(
    {
        "index": Int(),
        "tid": Nullable(Int(least=1)),
        "initialised": Bool(),
        "has-run": Bool(),
    }
)
STEPS = List(
    _reply({"attribute": Str(), "words": Str(), "outcome": Str(words=("done", "planned"))}),
)
FIELDS = List(
    _reply(
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
"""What describe() of a kind yields."""

COMMANDS: Mapping[str, Command] = {
    "qmp_capabilities": Command(arguments=Obj({"enable": Maybe(List(Str()))}), result=_reply({})),
    "query-commands": Command(arguments=Obj({}), result=List(_reply({"name": Str()}))),
    "query-schema": Command(
        arguments=Obj({}),
        result=_reply(
            {
                "commands": List(
                    _reply(
                        {"name": Str(), "changes": Bool(), "arguments": FIELDS, "result": FIELDS}
                    )
                ),
                "events": List(_reply({"name": Str(), "data": FIELDS})),
                "errors": List(_reply({"class": Str()})),
            }
        ),
    ),
    "query-pmu": Command(
        arguments=Obj({}),
        result=_reply(
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
                    _reply({"name": PMU_NAME, "type": PERF_TYPE, "origin": PMU_ORIGIN})
                ),
                "counters": Nullable(_reply({"value": COUNTERS, "origin": ORIGIN})),
                "filter": Nullable(_reply({**FILTER, "origin": ORIGIN})),
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
        result=_reply({"outcome": Str(words=("set", "unchanged", "planned")), "steps": STEPS}),
        changes=True,
    ),
    "pmu-release": Command(
        arguments=Obj({}),
        result=_reply({"outcome": Str(words=("released", "unchanged"))}),
        changes=True,
    ),
}
"""Every command of the socket. A server may have more: `query-commands` tells what it has."""

EVENTS: Mapping[str, Obj] = {
    "PMU_WINDOW": _reply({"window": WINDOW, "by": Nullable(Str())}),
    "PMU_APPLIED": _reply({"steps": STEPS}),
    "PMU_REFUSED": _reply({"class": Str(), "desc": Str()}),
    "VM_EXITED": _reply({}),
}
"""What a server tells all its clients, unasked."""


def describe_messages(errors: Iterable[str]) -> dict[str, object]:
    """The result of `query-schema`: this table as plain data, with these error classes."""
    return {
        "commands": [
            {
                "name": name,
                "changes": its.changes,
                "arguments": list(its.arguments.describe("")),
                "result": list(its.result.describe("")),
            }
            for name, its in COMMANDS.items()
        ],
        "events": [{"name": name, "data": list(its.describe(""))} for name, its in EVENTS.items()],
        "errors": [{"class": name} for name in errors],
    }


def filter_message(its: EventFilter) -> Message:
    """A filter as it stands on the wire: {"default": …, "except": [[base, nevents], …]}."""
    return {"default": str(its.default), "except": [list(run) for run in its.exceptions.runs()]}


def filter_from(message: Mapping[str, object]) -> EventFilter:
    """The filter of a message that the schema has checked."""
    ranges = message["except"]
    assert isinstance(ranges, list)
    return EventFilter(Action(str(message["default"])), EventSet.of_ranges(ranges))
