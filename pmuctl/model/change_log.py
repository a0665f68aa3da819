# SPDX-License-Identifier: Apache-2.0
"""The changes that a command has made and not yet told, for the error that may end it."""

from collections.abc import Iterable

from pmuctl.errors import NOTHING_CHANGED, PmuctlError


class ChangeLog:
    """The steps that a command has taken, by VM and in order.

    Whatever ends the command before it has written its results, the error that is printed then
    says what stands (`complete`). A step is added before it is taken: what is interrupted is told
    rather than not.
    """

    def __init__(self) -> None:
        self._steps: dict[str, list[str]] = {}

    def add(self, vm: str, steps: Iterable[str]) -> None:
        """Add steps of a VM."""
        if new := list(steps):
            self._steps.setdefault(vm, []).extend(new)

    def remove(self, vm: str, step: str) -> None:
        """Remove a step of a VM that was not taken, or was undone."""
        steps = self._steps[vm]
        steps.remove(step)
        if not steps:
            del self._steps[vm]

    def clear(self) -> None:
        """Forget the steps: they have been told."""
        self._steps.clear()

    def complete(self, error: PmuctlError | None) -> PmuctlError | None:
        """Tell all steps in the `now` of an error, and forget them; return that error.

        Without one, return an error that has them, None if there is nothing to tell. An error
        that tells the state of its own VM is believed.
        """
        tells_own = error is not None and error.now not in (None, NOTHING_CHANGED)
        steps = [
            f"{vm}: {step}"
            for vm, taken in self._steps.items()
            for step in taken
            if not (tells_own and error is not None and vm == error.subject)
        ]
        self.clear()
        if not steps:
            return error
        if error is None:
            error = PmuctlError("stopped before the result of a change was written")
        now = f"done: {'; '.join(steps)}"
        error.now = f"{now}; {error.now}" if tells_own else now
        return error
