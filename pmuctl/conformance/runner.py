# SPDX-License-Identifier: Apache-2.0
"""The runner of conformance checks: one after another, each with a result."""

from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum

from pmuctl.conformance.peer import RECEIVED_MAX, CheckFailed, CheckSkipped, ServerUnderTest
from pmuctl.control.protocol.qmp_codec import PEER_TEXT_MAX, WireError
from pmuctl.control.protocol.stream import OverBudgetError
from pmuctl.value import value


class Verdict(StrEnum):
    """Whether a check passed."""

    PASS = "pass"
    FAIL = "fail"
    SKIP = "skip"


@value
class ConformanceCheck:
    """One rule: a stable name, a sentence, and a function that raises CheckFailed or CheckSkipped.

    If a check that is `needed` fails, no other check can be run.
    """

    name: str
    rule: str
    run: Callable[[ServerUnderTest], None]
    needed: bool = False


@value(kw_only=True)
class ConformanceResult:
    """The verdict of one check, and the reason if it did not pass."""

    check: ConformanceCheck
    verdict: Verdict
    detail: str | None = None


def run_checks(
    server: ServerUnderTest, checks: Sequence[ConformanceCheck]
) -> Iterator[ConformanceResult]:
    """Run the checks in order. Yield a result for each, whatever the server does."""
    lost: str | None = None
    for check in checks:
        if lost is not None:
            yield ConformanceResult(check=check, verdict=Verdict.SKIP, detail=lost)
            continue
        server.begin()
        outcome, detail = _run_check(server, check)
        yield ConformanceResult(check=check, verdict=outcome, detail=detail)
        if outcome is Verdict.FAIL:
            if check.needed:
                lost = f"nothing can be asked: {check.name} has failed"
            elif server.is_gone():
                lost = f"nobody listens there any more since {check.name}"


def _run_check(server: ServerUnderTest, check: ConformanceCheck) -> tuple[Verdict, str | None]:
    try:
        check.run(server)
    except CheckSkipped as skipped:
        return Verdict.SKIP, str(skipped)
    except CheckFailed as failed:
        return Verdict.FAIL, str(failed)[:PEER_TEXT_MAX]
    except TimeoutError:
        return Verdict.FAIL, f"no answer in {server.deadline:g} s"
    except EOFError:
        return Verdict.FAIL, "the connection was closed"
    except WireError as error:
        return Verdict.FAIL, f"what it sends is no message: {error}"
    except OverBudgetError:
        return Verdict.FAIL, f"it sends more than {RECEIVED_MAX} bytes"
    except OSError as error:
        return Verdict.FAIL, error.strerror or str(error)
    return Verdict.PASS, None
