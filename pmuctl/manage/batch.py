# SPDX-License-Identifier: Apache-2.0
"""Doing the same with several things: until one fails, or with each of them."""

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from pmuctl.errors import ExitStatus, PmuctlError
from pmuctl.value import value

Target = TypeVar("Target")
Result = TypeVar("Result")


@value(kw_only=True)
class BatchResult(Generic[Result]):
    """What came of each, in order; without `keeps_going` the first failure was the last."""

    done: tuple[Result, ...]
    failed: tuple[PmuctlError, ...]
    keeps_going: bool

    def raise_first(self) -> None:
        """Raise the failure that has ended it, if one has."""
        if self.failed and not self.keeps_going:
            raise self.failed[0]

    def status(self, otherwise: ExitStatus = ExitStatus.OK) -> ExitStatus:
        """64 where it went on and some failed, the first failure's where all did."""
        if not self.failed:
            return otherwise
        is_partial = self.keeps_going and self.done
        return ExitStatus.PARTIAL if is_partial else self.failed[0].status


def run_each(
    targets: Iterable[Target], act: Callable[[Target], Result], *, keep_going: bool
) -> BatchResult[Result]:
    """Act on each of these; `keep_going` says whether also after a failure."""
    done: list[Result] = []
    failed: list[PmuctlError] = []
    for target in targets:
        try:
            done.append(act(target))
        except PmuctlError as error:
            failed.append(error)
            if not keep_going:
                break
    return BatchResult(done=tuple(done), failed=tuple(failed), keeps_going=keep_going)
