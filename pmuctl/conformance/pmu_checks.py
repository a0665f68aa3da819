# SPDX-License-Identifier: Apache-2.0
"""The checks that need a PMU of this host, and the run of all conformance checks."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Final

from pmuctl.conformance.peer import (
    CheckFailed,
    CheckSkipped,
    ServerConnection,
    ServerUnderTest,
    check_listens,
    conform,
    describe_error,
    is_set,
)
from pmuctl.conformance.protocol_checks import BAD_INPUT_CHECKS, NORMAL_USE_CHECKS
from pmuctl.conformance.runner import ConformanceCheck, ConformanceResult, run_checks
from pmuctl.control.protocol.messages import COMMANDS, EVENTS, filter_from, filter_message
from pmuctl.control.protocol.qmp_codec import Message
from pmuctl.errors import UsageError
from pmuctl.model.event import WIDEST_BITS, EventSet
from pmuctl.model.event_filter import Action, EventFilter
from pmuctl.model.pmu import Pmu

FIRST: Final = EventFilter(Action.DENY, EventSet.of_ranges([(0x11, 1)]))
SECOND: Final = EventFilter(Action.DENY, EventSet.of_ranges([(0x08, 1), (0x11, 1)]))
COUNTERS = 1
ORDER = ("affinity", "SET_PMU", "SET_NR_COUNTERS", "FILTER")
"""The attributes of steps, in the order that the protocol requires."""


class PmuChecks:
    """The checks that need a PMU: `pmu` is the one to apply, or for dry runs."""

    def __init__(self, pmu: Pmu | None, others: Sequence[Pmu], stack: ExitStack) -> None:
        """`stack` closes the connection that stays open from one check to the next."""
        self._pmu = pmu
        self._other = next(
            (other for other in others if other != pmu and other.type is not None), None
        )
        self._stack = stack
        self._watcher: ServerConnection | None = None
        self._applied: EventFilter | None = None
        """The filter that was applied last."""

    def dry_run_checks(self) -> Sequence[ConformanceCheck]:
        """Return the checks that use only dry runs."""
        return (
            ConformanceCheck("dry-run", "A dry run changes nothing.", self._check_dry_run),
            ConformanceCheck(
                "dry-run-order",
                "The steps are affinity, SET_PMU, SET_NR_COUNTERS, FILTER, in this order.",
                self._check_dry_run_order,
            ),
            ConformanceCheck(
                "dry-run-again",
                "A dry run that is repeated has the same answer.",
                self._check_dry_run_again,
            ),
        )

    def apply_checks(self) -> Sequence[ConformanceCheck]:
        """Return the checks that apply settings; one of them releases the VM."""
        return (
            ConformanceCheck(
                "apply",
                "pmu-apply sets the PMU and the filter, and query-pmu says so.",
                self._check_apply,
            ),
            ConformanceCheck(
                "apply-again", "What holds already is unchanged.", self._check_apply_again
            ),
            ConformanceCheck(
                "difference",
                "A filter that stands is changed by FILTER calls alone.",
                self._check_difference,
            ),
            ConformanceCheck(
                "other-pmu",
                "Another PMU is refused as Sealed while a filter stands.",
                self._check_other_pmu,
            ),
            ConformanceCheck(
                "applied-event", "Another client hears PMU_APPLIED.", self._check_applied_event
            ),
            ConformanceCheck("release", "pmu-release releases the VM, once.", self._check_release),
            ConformanceCheck(
                "window-event",
                "Another client hears PMU_WINDOW when the VM is released.",
                self._check_window_event,
            ),
            ConformanceCheck(
                "sealed",
                "After the release changes are refused as Sealed, and what holds is unchanged.",
                self._check_sealed,
            ),
        )

    def _make_arguments(self, state: Message, event_filter: EventFilter) -> Message:
        """Return arguments of pmu-apply with every attribute that the VM's kernel has."""
        if self._pmu is None or self._pmu.type is None:
            raise CheckSkipped("this host has no CPU PMU that is known")
        has = _list_attributes(state)
        if "SET_PMU" not in has:
            raise CheckSkipped("KVM has no SET_PMU there")
        arguments: Message = {"type": self._pmu.type, "name": self._pmu.name}
        if "SET_NR_COUNTERS" in has:
            arguments["counters"] = COUNTERS
        if "FILTER" in has:
            arguments["filter"] = filter_message(event_filter)
        if self._pmu.cpus:
            arguments["cpus"] = list(self._pmu.cpus)
        return arguments

    def _run_dry_run(
        self, server: ServerUnderTest, connection: ServerConnection
    ) -> tuple[Message, Message]:
        """Return the state of the VM and the answer to a dry run, which may be an error."""
        server.demand("pmu-apply")
        state = connection.state()
        arguments = self._make_arguments(state, FIRST) | {"dry-run": True}
        answer = connection.request("pmu-apply", arguments)
        # the admin may have pinned the threads, which is no fault of the server
        if _find_error_class(answer) == "Pinned":
            del arguments["cpus"]
            answer = connection.request("pmu-apply", arguments)
        if _find_error_class(answer) == "NotPermitted":
            raise CheckSkipped("this user may not change the VM")
        return state, answer

    def _check_dry_run(self, server: ServerUnderTest) -> None:
        with server.ready() as connection:
            before, answer = self._run_dry_run(server, connection)
            after = connection.state()
        if before != after:
            raise CheckFailed("query-pmu does not answer the same after a dry run")
        if any(event.get("event") == "PMU_APPLIED" for event in connection.events):
            raise CheckFailed("there was PMU_APPLIED for a dry run")
        if "return" in answer:
            result = _check_result(answer)
            outcomes = [step["outcome"] for step in result["steps"]]
            if result["outcome"] == "set" or "done" in outcomes:
                raise CheckFailed("the answer to a dry run says that something was done")

    def _check_dry_run_order(self, server: ServerUnderTest) -> None:
        with server.ready() as connection:
            state, answer = self._run_dry_run(server, connection)
        if state.get("window") != "open":
            raise CheckSkipped("the window is not open: there are no steps")
        if "error" in answer:
            raise CheckFailed(describe_error(answer["error"]))
        steps = [step["attribute"] for step in _check_result(answer)["steps"]]
        if unknown := next((step for step in steps if step not in ORDER), None):
            raise CheckFailed(f"a step is called {unknown:.64}")
        if steps != sorted(steps, key=ORDER.index):
            raise CheckFailed(f"the order is {', '.join(dict.fromkeys(steps))}")
        for name, key in (("SET_PMU", "pmu"), ("FILTER", "filter")):
            if not is_set(state, key) and name in _list_attributes(state) and name not in steps:
                raise CheckFailed(f"there is no step {name}, and no {key} was set before")

    def _check_dry_run_again(self, server: ServerUnderTest) -> None:
        with server.ready() as connection:
            _, first = self._run_dry_run(server, connection)
            _, second = self._run_dry_run(server, connection)
        if any(first.get(key) != second.get(key) for key in ("return", "error")):
            raise CheckFailed("the second answer is not the first one")

    def _check_apply(self, server: ServerUnderTest) -> None:
        server.demand("pmu-apply")
        with server.ready() as connection:
            state = connection.state()
            if state.get("window") != "open":
                raise CheckFailed("the window is not open: this wants a VM that waits")
            if is_set(state, "pmu") or is_set(state, "filter"):
                raise CheckFailed(
                    "something was applied to this VM before: this wants a fresh one"
                )
            self._apply_filter(connection, state, FIRST)

    def _apply_filter(
        self, connection: ServerConnection, state: Message, event_filter: EventFilter
    ) -> list[str]:
        """Apply a filter and check that it was set. Return the attributes of the steps."""
        arguments = self._make_arguments(state, event_filter)
        result: Any = connection.ask_well("pmu-apply", arguments)
        if result["outcome"] != "set":
            raise CheckFailed(f"the outcome is {result['outcome']}, not set")
        if any(step["outcome"] != "done" for step in result["steps"]):
            raise CheckFailed("a step is not done, though all was set")
        after: Any = connection.ask_well("query-pmu")
        pmu, applied = after["pmu"], after["filter"]
        wanted = arguments["type"], arguments["name"]
        if not is_set(after, "pmu") or (pmu["type"], pmu["name"]) != wanted:
            raise CheckFailed("query-pmu does not say that the PMU was set")
        bits = after.get("event-bits") or WIDEST_BITS
        if "filter" in arguments:
            events = event_filter.allowed(bits)
            if applied is None or filter_from(applied).allowed(bits) != events:
                raise CheckFailed("query-pmu does not say that the filter was set")
        self._applied = event_filter
        return [step["attribute"] for step in result["steps"]]

    def _read_state(
        self, connection: ServerConnection, *, filtered: bool = True
    ) -> tuple[Message, EventFilter]:
        """Return the state of the VM and the filter that was applied last.

        Raise CheckSkipped if `apply` has not passed.
        """
        if self._applied is None:
            raise CheckSkipped("apply has not passed")
        state = connection.state()
        if filtered and "FILTER" not in _list_attributes(state):
            raise CheckSkipped("KVM has no FILTER there")
        return state, self._applied

    def _check_apply_again(self, server: ServerUnderTest) -> None:
        with server.ready() as connection:
            state, applied = self._read_state(connection, filtered=False)
            self._check_unchanged(connection, state, applied)

    def _check_unchanged(
        self, connection: ServerConnection, state: Message, event_filter: EventFilter
    ) -> None:
        """Raise CheckFailed unless applying the settings again changes nothing."""
        result = connection.ask_well("pmu-apply", self._make_arguments(state, event_filter))
        if (result["outcome"], result["steps"]) != ("unchanged", []):
            raise CheckFailed(f"the outcome is {result['outcome']}, not unchanged without steps")

    def _check_difference(self, server: ServerUnderTest) -> None:
        with server.ready() as connection:
            state, applied = self._read_state(connection)
            steps = self._apply_filter(connection, state, _other_filter(applied))
        if set(steps) != {"FILTER"}:
            raise CheckFailed(f"the steps are {', '.join(steps) or 'none'}")

    def _check_other_pmu(self, server: ServerUnderTest) -> None:
        if self._other is None:
            raise CheckSkipped("this host has no other PMU")
        with server.ready() as connection:
            before, _ = self._read_state(connection)
            arguments: Message = {"type": self._other.type, "name": self._other.name}
            connection.refused("pmu-apply", arguments, as_class="Sealed")
            if connection.state() != before:
                raise CheckFailed("query-pmu does not answer the same after the refusal")

    def _check_applied_event(self, server: ServerUnderTest) -> None:
        with server.ready() as connection, server.ready() as watcher:
            state, applied = self._read_state(connection)
            self._apply_filter(connection, state, _other_filter(applied))
            conform(EVENTS["PMU_APPLIED"], watcher.event("PMU_APPLIED"), "PMU_APPLIED")

    def _check_release(self, server: ServerUnderTest) -> None:
        with server.ready() as connection:
            self._read_state(connection, filtered=False)
            watcher = self._stack.enter_context(server.ready())
            for expected in ("released", "unchanged"):
                outcome = connection.ask_well("pmu-release")["outcome"]
                if outcome != expected:
                    raise CheckFailed(f"the outcome is {outcome}, not {expected}")
            self._watcher = watcher

    def _check_window_event(self, server: ServerUnderTest) -> None:
        if self._watcher is None:
            raise CheckSkipped("release has not passed")
        data = self._watcher.event("PMU_WINDOW")
        conform(EVENTS["PMU_WINDOW"], data, "PMU_WINDOW")
        if data["window"] != "sealed":
            raise CheckFailed(f"the window is {data['window']}, not sealed")

    def _check_sealed(self, server: ServerUnderTest) -> None:
        if self._watcher is None:
            raise CheckSkipped("release has not passed")
        with server.ready() as connection:
            state, applied = self._read_state(connection)
            if state.get("window") != "sealed":
                raise CheckFailed(f"the window is {state.get('window')}, not sealed")
            arguments = self._make_arguments(state, _other_filter(applied))
            connection.refused("pmu-apply", arguments, as_class="Sealed")
            if (after := connection.state()).get("filter") != state.get("filter"):
                raise CheckFailed("the filter was changed all the same")
            self._check_unchanged(connection, after, applied)


def _other_filter(event_filter: EventFilter) -> EventFilter:
    return SECOND if event_filter == FIRST else FIRST


def _list_attributes(state: Message) -> Sequence[object]:
    attributes = state.get("attributes")
    return attributes if isinstance(attributes, list) else ()


def _find_error_class(answer: Message) -> object:
    error = answer.get("error")
    return error["class"] if isinstance(error, dict) else None


def _check_result(answer: Message) -> Any:
    conform(COMMANDS["pmu-apply"].result, answer["return"], "pmu-apply")
    return answer["return"]


def check_names(*, apply: bool) -> list[str]:
    """Return the names of all checks, in order."""
    checks = _collect_checks(PmuChecks(None, (), ExitStack()), apply=apply)
    return [check.name for check in checks]


def _collect_checks(pmu_checks: PmuChecks, *, apply: bool) -> Sequence[ConformanceCheck]:
    apply_checks = pmu_checks.apply_checks() if apply else ()
    return (*NORMAL_USE_CHECKS, *pmu_checks.dry_run_checks(), *BAD_INPUT_CHECKS, *apply_checks)


def examine(
    server: ServerUnderTest, pmus: Sequence[Pmu], *, apply: Pmu | None = None
) -> list[ConformanceResult]:
    """Run every check of a server and return their results.

    Without a PMU to `apply` nothing is changed. With one, that PMU and a filter are applied and
    the VM is released. Raise NotFoundError, UsageError, DeniedError or UnreachableError if no
    check can be run.
    """
    if apply is not None and apply.type is None:
        raise UsageError(f"{apply.name}: its perf type is not known")
    pmu = apply or next((known for known in pmus if known.type is not None), None)
    if pmu is not None:
        server.dry_run_args = {"type": pmu.type, "name": pmu.name, "dry-run": True}
    check_listens(server)
    with ExitStack() as stack:
        checks = _collect_checks(PmuChecks(pmu, pmus, stack), apply=apply is not None)
        return list(run_checks(server, checks))
