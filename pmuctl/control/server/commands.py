# SPDX-License-Identifier: Apache-2.0
"""From a request to its answer: the commands of the control socket, and who may give them."""

from collections.abc import Callable, Sequence
from contextlib import suppress

from pmuctl.control.protocol import qmp_codec
from pmuctl.control.protocol.messages import COMMANDS, Command, describe_messages, filter_from
from pmuctl.control.protocol.qmp_codec import Message
from pmuctl.control.protocol.schema import SchemaError
from pmuctl.control.server.connection import Connection
from pmuctl.control.server.pmu_state import ApplyError, PmuState
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.plan import SetAttr, Step, TargetSettings

ID_MAX = 1024
"""Bytes of JSON a request's id may have: the answer repeats it."""
STEPS_TOLD = 1000

OnChange = Callable[[str, tuple[str, ...]], None]
"""Told who made a change ("uid 0, pid 4121", as SO_PEERCRED says) and its steps in words."""

ERRORS = (*qmp_codec.ERROR_CLASSES, "CommandNotFound", "GenericError")
"""Every class of error that an answer can have."""


class CommandHandler:
    """Answers requests with the settings of one VM; events go to `tell`, as name and data."""

    def __init__(
        self,
        settings: PmuState,
        tell: Callable[[str, Message], None],
        on_change: OnChange | None = None,
    ) -> None:
        self._settings = settings
        self._tell = tell
        self._on_change = on_change
        self._commands: dict[str, Callable[[Message, Connection], object]] = {
            "query-commands": lambda *_: [{"name": name} for name in COMMANDS],
            "query-schema": lambda *_: describe_messages(ERRORS),
            "query-pmu": lambda *_: self._settings.query(),
            "pmu-apply": self._apply,
            "pmu-release": self._release,
        }

    def answer(self, request: Message, asker: Connection) -> Message:
        """The answer to one request, with `return` or `error` and the request's id."""
        tag = {"id": request["id"]} if "id" in request else {}
        if len(qmp_codec.encode(tag)) > ID_MAX:
            return _error("GenericError", f"id: its JSON is longer than {ID_MAX} bytes")
        return tag | self._outcome(request, asker)

    def _outcome(self, request: Message, asker: Connection) -> Message:
        name, arguments = request.get("execute"), request.get("arguments", {})
        if not isinstance(name, str) or set(request) - {"execute", "arguments", "id"}:
            return _error("GenericError", "a request has execute, arguments and id only")
        if not asker.is_ready and name != "qmp_capabilities":
            return _error("CommandNotFound", "qmp_capabilities is expected first")
        if asker.is_ready and name == "qmp_capabilities":
            return _error("CommandNotFound", "qmp_capabilities was given already")
        command = COMMANDS.get(name)
        if command is None:
            return _error("CommandNotFound", f"there is no command {name!a:.80}")
        try:
            command.arguments.check(arguments, "arguments")
        except SchemaError as error:
            return _error("GenericError", str(error))
        if command.changes and not asker.may_change:
            why = f"uid {asker.uid} is neither root nor the user of this VM's process"
            return _error("NotPermitted", f"{name} is not permitted", why=why)
        if name == "qmp_capabilities":
            asker.is_ready = True
            return {"return": {}}
        assert isinstance(arguments, dict)
        return self._carry_out(command, self._commands[name], arguments, asker)

    def _carry_out(
        self,
        command: Command,
        function: Callable[[Message, Connection], object],
        arguments: Message,
        asker: Connection,
    ) -> Message:
        try:
            result = function(arguments, asker)
            command.result.check(result, "return")
        except ApplyError as refused:
            self._note_change(asker, refused.applied)
            return {"error": self._refused(refused)}
        # the VM outlives what its own backend raises, SystemExit too, and the admin hears of it
        except BaseException as fault:
            return _error("GenericError", f"the VMM failed: {_words(fault)}")
        return {"return": result}

    def _apply(self, arguments: Message, asker: Connection) -> Message:
        cpus, wanted_filter = arguments.get("cpus"), arguments.get("filter")
        counters = arguments.get("counters")
        wanted = TargetSettings(
            type=int(str(arguments["type"])),
            name=str(arguments["name"]),
            counters=counters if isinstance(counters, int) else None,
            filter=filter_from(wanted_filter) if isinstance(wanted_filter, dict) else None,
            cpus=CpuSet.of(cpus) if isinstance(cpus, list) else None,
        )
        dry_run = bool(arguments.get("dry-run"))
        done = self._settings.apply(wanted, dry_run=dry_run)
        if not dry_run:
            self._note_change(asker, done)
        steps = _step_messages(done, "planned" if dry_run else "done")
        if steps and not dry_run:
            self._tell("PMU_APPLIED", {"steps": steps})
        outcome = "unchanged" if not steps else "planned" if dry_run else "set"
        return {"outcome": outcome, "steps": steps}

    def _refused(self, refused: ApplyError) -> Message:
        applied = _step_messages(refused.applied, "done")
        step = refused.step.describe() if refused.step else None
        message = qmp_codec.error_message(refused.cause, {"step": step, "applied": applied})
        if not refused.dry_run:
            self._tell("PMU_REFUSED", {"class": message["class"], "desc": message["desc"]})
        return message

    def _note_change(self, asker: Connection, steps: Sequence[Step]) -> None:
        if self._on_change is not None and steps:
            by = f"uid {asker.uid}, pid {asker.pid}"
            # it was done, whatever becomes of the note
            with suppress(Exception):
                self._on_change(by, tuple(step.describe() for step in steps))

    def _release(self, *_: object) -> Message:
        return {"outcome": "released" if self._settings.release() else "unchanged"}


def _error(name: str, desc: str, *, why: str | None = None) -> Message:
    return {"error": {"class": name, "desc": desc, "data": {"why": why, "errno": None}}}


def _words(fault: BaseException) -> str:
    text = ""
    with suppress(Exception):  # that, too, is the VMM's own code
        text = str(fault)
    words = f"{type(fault).__name__}: {text}" if text else type(fault).__name__
    # half a surrogate pair, as in a file name that is not UTF-8, cannot be sent
    return words[:1000].encode(errors="backslashreplace").decode()


def _step_messages(steps: Sequence[Step], outcome: str) -> list[Message]:
    """Steps as they are told; of very many (all of them filter ranges) the first ones only."""
    told: list[Message] = [
        {
            "attribute": step.attribute if isinstance(step, SetAttr) else "affinity",
            "words": step.describe(),
            "outcome": outcome,
        }
        for step in steps[:STEPS_TOLD]
    ]
    if more := len(steps) - len(told):
        words = f"… and {more} more FILTER ranges"
        told.append({"attribute": "FILTER", "words": words, "outcome": outcome})
    return told
