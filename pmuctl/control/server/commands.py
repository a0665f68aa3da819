# SPDX-License-Identifier: Apache-2.0
"""The handler of requests: the commands of the control socket, and their permissions."""

from collections.abc import Callable, Sequence
from contextlib import suppress

from pmuctl.control.protocol import qmp_codec
from pmuctl.control.protocol.messages import COMMANDS, Command, describe_messages, filter_from
from pmuctl.control.protocol.qmp_codec import Message
from pmuctl.control.server.connection import Connection
from pmuctl.control.server.pmu_state import ApplyError, PmuState
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.plan import SetAttr, Step, TargetSettings
from pmuctl.schema import SchemaError

ID_MAX = 1024
"""Bytes of JSON that the id of a request may have, because the answer repeats it."""
STEPS_TOLD = 1000
"""Steps that an answer lists."""

OnChange = Callable[[str, tuple[str, ...]], None]
"""Called with who made a change ("uid 0, pid 4121", from SO_PEERCRED) and its steps as texts."""

ERRORS = (*qmp_codec.ERROR_CLASSES, "CommandNotFound", "GenericError")
"""Every class of error in answers."""


class CommandHandler:
    """The handler of requests to one VM; it passes each event to `send_event` as name and data."""

    def __init__(
        self,
        pmu_state: PmuState,
        send_event: Callable[[str, Message], None],
        on_change: OnChange | None = None,
    ) -> None:
        self._pmu_state = pmu_state
        self._send_event = send_event
        self._on_change = on_change
        self._commands: dict[str, Callable[[Message, Connection], object]] = {
            "query-commands": lambda *_: [{"name": name} for name in COMMANDS],
            "query-schema": lambda *_: describe_messages(ERRORS),
            "query-pmu": lambda *_: self._pmu_state.query(),
            "pmu-apply": self._apply_settings,
            "pmu-release": self._release_vm,
        }

    def answer(self, request: Message, client: Connection) -> Message:
        """Return the answer to one request, with `return` or `error` and the request's id."""
        tag = {"id": request["id"]} if "id" in request else {}
        if len(qmp_codec.encode(tag)) > ID_MAX:
            return _make_error("GenericError", f"id: its JSON is longer than {ID_MAX} bytes")
        return tag | self._handle_request(request, client)

    def _handle_request(self, request: Message, client: Connection) -> Message:
        name, arguments = request.get("execute"), request.get("arguments", {})
        if not isinstance(name, str) or set(request) - {"execute", "arguments", "id"}:
            return _make_error("GenericError", "a request has execute, arguments and id only")
        if not client.is_ready and name != "qmp_capabilities":
            return _make_error("CommandNotFound", "qmp_capabilities is expected first")
        if client.is_ready and name == "qmp_capabilities":
            return _make_error("CommandNotFound", "qmp_capabilities was given already")
        command = COMMANDS.get(name)
        if command is None:
            return _make_error("CommandNotFound", f"there is no command {name!a:.80}")
        try:
            command.arguments.check(arguments, "arguments")
        except SchemaError as error:
            return _make_error("GenericError", str(error))
        if command.changes and not client.may_change:
            why = f"uid {client.uid} is neither root nor the user of this VM's process"
            return _make_error("NotPermitted", f"{name} is not permitted", why=why)
        if name == "qmp_capabilities":
            client.is_ready = True
            return {"return": {}}
        assert isinstance(arguments, dict)
        return self._run_command(command, self._commands[name], arguments, client)

    def _run_command(
        self,
        command: Command,
        function: Callable[[Message, Connection], object],
        arguments: Message,
        client: Connection,
    ) -> Message:
        try:
            result = function(arguments, client)
            command.result.check(result, "return")
        except ApplyError as refused:
            self._notify_change(client, [step.describe() for step in refused.applied])
            return {"error": self._report_refusal(refused)}
        # an exception of the backend, SystemExit too, must not end the VM, so the client gets it
        except BaseException as fault:
            return _make_error("GenericError", f"the VMM failed: {_describe_fault(fault)}")
        return {"return": result}

    def _apply_settings(self, arguments: Message, client: Connection) -> Message:
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
        cpus_before = self._pmu_state.cpus
        done = self._pmu_state.apply(wanted, dry_run=dry_run)
        if not dry_run:
            descriptions = [step.describe() for step in done]
            if not done and self._pmu_state.cpus != cpus_before:
                # threads that are not known yet are put there later
                descriptions.append(f"vCPU threads to be kept on {self._pmu_state.cpus}")
            self._notify_change(client, descriptions)
        steps = _step_messages(done, "planned" if dry_run else "done")
        if steps and not dry_run:
            self._send_event("PMU_APPLIED", {"steps": steps})
        outcome = "unchanged" if not steps else "planned" if dry_run else "set"
        return {"outcome": outcome, "steps": steps}

    def _report_refusal(self, refused: ApplyError) -> Message:
        applied = _step_messages(refused.applied, "done")
        step = refused.step.describe() if refused.step else None
        message = qmp_codec.error_message(refused.cause, {"step": step, "applied": applied})
        if not refused.dry_run:
            self._send_event("PMU_REFUSED", {"class": message["class"], "desc": message["desc"]})
        return message

    def _notify_change(self, client: Connection, descriptions: Sequence[str]) -> None:
        if self._on_change is not None and descriptions:
            by = f"uid {client.uid}, pid {client.pid}"
            # the change is done, whatever the callback raises
            with suppress(Exception):
                self._on_change(by, tuple(descriptions))

    def _release_vm(self, *_: object) -> Message:
        return {"outcome": "released" if self._pmu_state.release() else "unchanged"}


def _make_error(name: str, desc: str, *, why: str | None = None) -> Message:
    return {"error": {"class": name, "desc": desc, "data": {"why": why, "errno": None}}}


def _describe_fault(fault: BaseException) -> str:
    text = ""
    with suppress(Exception):  # __str__ is the VMM's own code, too
        text = str(fault)
    text = f"{type(fault).__name__}: {text}" if text else type(fault).__name__
    # half a surrogate pair, as in a file name that is not UTF-8, cannot be sent
    return text[:1000].encode(errors="backslashreplace").decode()


def _step_messages(steps: Sequence[Step], outcome: str) -> list[Message]:
    """Return the messages of steps: of many (which are all filter ranges) only the first ones."""
    messages: list[Message] = [
        {
            "attribute": step.attribute if isinstance(step, SetAttr) else "affinity",
            "words": step.describe(),
            "outcome": outcome,
        }
        for step in steps[:STEPS_TOLD]
    ]
    if more := len(steps) - len(messages):
        words = f"… and {more} more FILTER ranges"
        messages.append({"attribute": "FILTER", "words": words, "outcome": outcome})
    return messages
