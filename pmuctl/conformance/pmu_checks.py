# SPDX-License-Identifier: Apache-2.0
"""A VMM's control socket held against the protocol, with the PMUs of this host."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Final

from pmuctl.conformance.peer import (
    CheckFailed,
    CheckSkipped,
    ServerUnderTest,
    TestConnection,
    conform,
    is_set,
    open_peer,
    words,
)
from pmuctl.conformance.protocol_checks import FORM_CHECKS, STREAM_CHECKS
from pmuctl.conformance.runner import ConformanceCheck, ConformanceResult, verify
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
"""The attributes of steps, as they must follow each other."""


class Trials:
    """The checks that need a PMU: `pmu` is the one to apply, or to plan with."""

    def __init__(self, pmu: Pmu | None, others: Sequence[Pmu], stack: ExitStack) -> None:
        """`stack` closes what stays open from one check to another."""
        self._pmu = pmu
        self._other = next((its for its in others if its != pmu and its.type is not None), None)
        self._stack = stack
        self._watcher: TestConnection | None = None
        self._stands: EventFilter | None = None
        """What was applied last."""

    def rehearsals(self) -> Sequence[ConformanceCheck]:
        """What is tried with dry runs only."""
        return (
            ConformanceCheck("dry-run", "A dry run changes nothing.", self._dry_run),
            ConformanceCheck(
                "dry-run-order",
                "The steps are affinity, SET_PMU, SET_NR_COUNTERS, FILTER, in this order.",
                self._dry_run_order,
            ),
            ConformanceCheck(
                "dry-run-again",
                "A dry run that is repeated has the same answer.",
                self._dry_run_again,
            ),
        )

    def applications(self) -> Sequence[ConformanceCheck]:
        """What is tried for real; the VM is released on the way."""
        return (
            ConformanceCheck(
                "apply",
                "pmu-apply sets the PMU and the filter, and query-pmu says so.",
                self._apply,
            ),
            ConformanceCheck("apply-again", "What holds already is unchanged.", self._apply_again),
            ConformanceCheck(
                "difference",
                "A filter that stands is changed by FILTER calls alone.",
                self._difference,
            ),
            ConformanceCheck(
                "other-pmu",
                "Another PMU is refused as Sealed while a filter stands.",
                self._other_pmu,
            ),
            ConformanceCheck(
                "applied-event", "Another client hears PMU_APPLIED.", self._applied_event
            ),
            ConformanceCheck("release", "pmu-release releases the VM, once.", self._release),
            ConformanceCheck(
                "window-event",
                "Another client hears PMU_WINDOW when the VM is released.",
                self._window_event,
            ),
            ConformanceCheck(
                "sealed",
                "After the release changes are refused as Sealed, and what holds is unchanged.",
                self._sealed,
            ),
        )

    def _arguments(self, state: Message, its: EventFilter, **more: object) -> Message:
        """Arguments of pmu-apply: all that this VM's kernel has."""
        if self._pmu is None or self._pmu.type is None:
            raise CheckSkipped("this host has no CPU PMU that is known")
        has = _attributes(state)
        if "SET_PMU" not in has:
            raise CheckSkipped("KVM has no SET_PMU there")
        asked: Message = {"type": self._pmu.type, "name": self._pmu.name}
        if "SET_NR_COUNTERS" in has:
            asked["counters"] = COUNTERS
        if "FILTER" in has:
            asked["filter"] = filter_message(its)
        if self._pmu.cpus:
            asked["cpus"] = list(self._pmu.cpus)
        return asked | more

    def _rehearse(self, peer: ServerUnderTest, line: TestConnection) -> tuple[Message, Message]:
        """The state of the VM, and the answer to a dry run, which may be an error."""
        peer.demand("pmu-apply")
        state = line.state()
        asked = self._arguments(state, FIRST) | {"dry-run": True}
        answer = line.request("pmu-apply", asked)
        if _class(answer) == "Pinned":  # the threads' masks are the admin's affair
            del asked["cpus"]
            answer = line.request("pmu-apply", asked)
        if _class(answer) == "NotPermitted":
            raise CheckSkipped("this user may not change the VM")
        return state, answer

    def _dry_run(self, peer: ServerUnderTest) -> None:
        with peer.ready() as line:
            before, answer = self._rehearse(peer, line)
            after = line.state()
        if before != after:
            raise CheckFailed("query-pmu does not answer the same after a dry run")
        if any(its.get("event") == "PMU_APPLIED" for its in line.events):
            raise CheckFailed("there was PMU_APPLIED for a dry run")
        if "return" in answer:
            result = _result(answer)
            if result["outcome"] == "set" or "done" in [its["outcome"] for its in result["steps"]]:
                raise CheckFailed("the answer to a dry run says that something was done")

    def _dry_run_order(self, peer: ServerUnderTest) -> None:
        with peer.ready() as line:
            state, answer = self._rehearse(peer, line)
        if state.get("window") != "open":
            raise CheckSkipped("the window is not open: there are no steps")
        if "error" in answer:
            raise CheckFailed(words(answer["error"]))
        steps = [its["attribute"] for its in _result(answer)["steps"]]
        if strange := next((its for its in steps if its not in ORDER), None):
            raise CheckFailed(f"a step is called {strange:.64}")
        if steps != sorted(steps, key=ORDER.index):
            raise CheckFailed(f"the order is {', '.join(dict.fromkeys(steps))}")
        for name, key in (("SET_PMU", "pmu"), ("FILTER", "filter")):
            if not is_set(state, key) and name in _attributes(state) and name not in steps:
                raise CheckFailed(f"there is no step {name}, and no {key} was set before")

    def _dry_run_again(self, peer: ServerUnderTest) -> None:
        with peer.ready() as line:
            _, first = self._rehearse(peer, line)
            _, second = self._rehearse(peer, line)
        if any(first.get(key) != second.get(key) for key in ("return", "error")):
            raise CheckFailed("the second answer is not the first one")

    def _apply(self, peer: ServerUnderTest) -> None:
        peer.demand("pmu-apply")
        with peer.ready() as line:
            state = line.state()
            if state.get("window") != "open":
                raise CheckFailed("the window is not open: this wants a VM that waits")
            if is_set(state, "pmu") or is_set(state, "filter"):
                raise CheckFailed(
                    "something was applied to this VM before: this wants a fresh one"
                )
            self._set(line, state, FIRST)

    def _set(self, line: TestConnection, state: Message, its: EventFilter) -> list[str]:
        """Apply it for real and see that it stands; the attributes of the steps."""
        asked = self._arguments(state, its)
        result: Any = line.ask_well("pmu-apply", asked)
        if result["outcome"] != "set":
            raise CheckFailed(f"the outcome is {result['outcome']}, not set")
        if any(step["outcome"] != "done" for step in result["steps"]):
            raise CheckFailed("a step is not done, though all was set")
        after: Any = line.ask_well("query-pmu")
        pmu, standing = after["pmu"], after["filter"]
        wanted = asked["type"], asked["name"]
        if not is_set(after, "pmu") or (pmu["type"], pmu["name"]) != wanted:
            raise CheckFailed("query-pmu does not say that the PMU was set")
        bits = after.get("event-bits") or WIDEST_BITS
        if "filter" in asked:
            if standing is None or filter_from(standing).allowed(bits) != its.allowed(bits):
                raise CheckFailed("query-pmu does not say that the filter was set")
        self._stands = its
        return [step["attribute"] for step in result["steps"]]

    def _held(self, line: TestConnection, *, filtered: bool = True) -> tuple[Message, EventFilter]:
        """The state of the VM, and the filter that stands; skips unless `apply` has passed."""
        if self._stands is None:
            raise CheckSkipped("apply has not passed")
        state = line.state()
        if filtered and "FILTER" not in _attributes(state):
            raise CheckSkipped("KVM has no FILTER there")
        return state, self._stands

    def _apply_again(self, peer: ServerUnderTest) -> None:
        with peer.ready() as line:
            state, standing = self._held(line, filtered=False)
            self._is_unchanged(line, state, standing)

    def _is_unchanged(self, line: TestConnection, state: Message, its: EventFilter) -> None:
        result = line.ask_well("pmu-apply", self._arguments(state, its))
        if (result["outcome"], result["steps"]) != ("unchanged", []):
            raise CheckFailed(f"the outcome is {result['outcome']}, not unchanged without steps")

    def _difference(self, peer: ServerUnderTest) -> None:
        with peer.ready() as line:
            state, standing = self._held(line)
            steps = self._set(line, state, _another(standing))
        if set(steps) != {"FILTER"}:
            raise CheckFailed(f"the steps are {', '.join(steps) or 'none'}")

    def _other_pmu(self, peer: ServerUnderTest) -> None:
        if self._other is None:
            raise CheckSkipped("this host has no other PMU")
        with peer.ready() as line:
            before, _ = self._held(line)
            asked: Message = {"type": self._other.type, "name": self._other.name}
            line.refused("pmu-apply", asked, as_class="Sealed")
            if line.state() != before:
                raise CheckFailed("query-pmu does not answer the same after the refusal")

    def _applied_event(self, peer: ServerUnderTest) -> None:
        with peer.ready() as line, peer.ready() as watcher:
            state, standing = self._held(line)
            self._set(line, state, _another(standing))
            conform(EVENTS["PMU_APPLIED"], watcher.event("PMU_APPLIED"), "PMU_APPLIED")

    def _release(self, peer: ServerUnderTest) -> None:
        with peer.ready() as line:
            self._held(line, filtered=False)
            watcher = self._stack.enter_context(peer.ready())
            for expected in ("released", "unchanged"):
                outcome = line.ask_well("pmu-release")["outcome"]
                if outcome != expected:
                    raise CheckFailed(f"the outcome is {outcome}, not {expected}")
            self._watcher = watcher

    def _window_event(self, peer: ServerUnderTest) -> None:
        if self._watcher is None:
            raise CheckSkipped("release has not passed")
        data = self._watcher.event("PMU_WINDOW")
        conform(EVENTS["PMU_WINDOW"], data, "PMU_WINDOW")
        if data["window"] != "sealed":
            raise CheckFailed(f"the window is {data['window']}, not sealed")

    def _sealed(self, peer: ServerUnderTest) -> None:
        if self._watcher is None:
            raise CheckSkipped("release has not passed")
        with peer.ready() as line:
            state, standing = self._held(line)
            if state.get("window") != "sealed":
                raise CheckFailed(f"the window is {state.get('window')}, not sealed")
            line.refused(
                "pmu-apply", self._arguments(state, _another(standing)), as_class="Sealed"
            )
            if (after := line.state()).get("filter") != state.get("filter"):
                raise CheckFailed("the filter was changed all the same")
            self._is_unchanged(line, after, standing)


def _another(its: EventFilter) -> EventFilter:
    return SECOND if its == FIRST else FIRST


def _attributes(state: Message) -> Sequence[object]:
    its = state.get("attributes")
    return its if isinstance(its, list) else ()


def _class(answer: Message) -> object:
    error = answer.get("error")
    return error["class"] if isinstance(error, dict) else None


def _result(answer: Message) -> Any:
    conform(COMMANDS["pmu-apply"].result, answer["return"], "pmu-apply")
    return answer["return"]


def check_names(*, apply: bool) -> list[str]:
    """The checks that there are, in order."""
    return [its.name for its in _checks(Trials(None, (), ExitStack()), apply=apply)]


def _checks(trials: Trials, *, apply: bool) -> Sequence[ConformanceCheck]:
    real = trials.applications() if apply else ()
    return (*FORM_CHECKS, *trials.rehearsals(), *STREAM_CHECKS, *real)


def examine(
    peer: ServerUnderTest, pmus: Sequence[Pmu], *, apply: Pmu | None = None
) -> list[ConformanceResult]:
    """Every check of a peer, with what became of it.

    It changes nothing, unless there is a PMU to `apply`: that and a filter are then applied, and
    the VM is released. Raises NotFoundError, UsageError, DeniedError or UnreachableError where
    nothing can be tried at all.
    """
    if apply is not None and apply.type is None:
        raise UsageError(f"{apply.name}: its perf type is not known")
    pmu = apply or next((its for its in pmus if its.type is not None), None)
    if pmu is not None:
        peer.rehearsal = {"type": pmu.type, "name": pmu.name, "dry-run": True}
    open_peer(peer)
    with ExitStack() as stack:
        checks = _checks(Trials(pmu, pmus, stack), apply=apply is not None)
        return list(verify(peer, checks))
