# SPDX-License-Identifier: Apache-2.0
"""Checks of a peer of the control socket, one after another, and what became of each."""

from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum

from pmuctl.conformance.peer import CheckFailed, CheckSkipped, ServerUnderTest
from pmuctl.control.protocol.qmp_codec import PEER_TEXT_MAX, WireError
from pmuctl.value import value


class Verdict(StrEnum):
    """What became of a check."""

    PASS = "pass"
    FAIL = "fail"
    SKIP = "skip"


@value
class ConformanceCheck:
    """One rule: its stable name, a sentence, and what tries it, raising Fault or Skipped.

    Without one that is `needed` nothing else can be tried.
    """

    name: str
    rule: str
    run: Callable[[ServerUnderTest], None]
    needed: bool = False


@value(kw_only=True)
class ConformanceResult:
    """What became of one check, and why if it did not pass."""

    check: ConformanceCheck
    outcome: Verdict
    detail: str | None = None


def verify(
    peer: ServerUnderTest, checks: Sequence[ConformanceCheck]
) -> Iterator[ConformanceResult]:
    """Make the checks, in order; whatever the peer does, each has a finding."""
    lost: str | None = None
    for check in checks:
        if lost is not None:
            yield ConformanceResult(check=check, outcome=Verdict.SKIP, detail=lost)
            continue
        peer.begin()
        outcome, detail = _try(peer, check)
        yield ConformanceResult(check=check, outcome=outcome, detail=detail)
        if outcome is Verdict.FAIL:
            if check.needed:
                lost = f"nothing can be asked: {check.name} has failed"
            elif peer.is_gone():
                lost = f"nobody listens there any more since {check.name}"


def _try(peer: ServerUnderTest, check: ConformanceCheck) -> tuple[Verdict, str | None]:
    try:
        check.run(peer)
    except CheckSkipped as skipped:
        return Verdict.SKIP, str(skipped)
    except CheckFailed as fault:
        return Verdict.FAIL, str(fault)[:PEER_TEXT_MAX]
    except TimeoutError:
        return Verdict.FAIL, f"no answer in {peer.deadline:g} s"
    except EOFError:
        return Verdict.FAIL, "the connection was closed"
    except WireError as error:
        return Verdict.FAIL, f"what it sends is no message: {error}"
    except OSError as error:
        return Verdict.FAIL, error.strerror or str(error)
    return Verdict.PASS, None
