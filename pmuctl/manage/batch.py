# SPDX-License-Identifier: Apache-2.0
"""One action on several targets: until one fails, or on each of them."""

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from pmuctl.errors import ExitStatus, PmuctlError
from pmuctl.value import value

Target = TypeVar("Target")
Result = TypeVar("Result")


@value(kw_only=True)
class BatchResult(Generic[Result]):
    """Results and failures, in order; at most one failure unless the batch `keeps_going`."""

    done: tuple[Result, ...]
    failed: tuple[PmuctlError, ...]
    keeps_going: bool

    def raise_first(self) -> None:
        """Raise the failure that ended the batch, if one did."""
        if self.failed and not self.keeps_going:
            raise self.failed[0]

    def status(self, otherwise: ExitStatus = ExitStatus.OK) -> ExitStatus:
        """Return PARTIAL (64) if the batch went on and some succeeded, else the first failure's.

        Return `otherwise` if nothing failed.
        """
        if not self.failed:
            return otherwise
        is_partial = self.keeps_going and self.done
        return ExitStatus.PARTIAL if is_partial else self.failed[0].status


def run_each(
    targets: Iterable[Target], act: Callable[[Target], Result], *, keep_going: bool
) -> BatchResult[Result]:
    """Call `act` on each target; stop at the first PmuctlError unless `keep_going`."""
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
