# SPDX-License-Identifier: Apache-2.0
"""What can go wrong with the lab, and with a command in it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a command in the lab left behind; `status` is -N when signal N ended it."""

    args: tuple[str, ...]
    status: int
    stdout: str
    stderr: str


class LabError(Exception):
    """The lab itself failed: it could not be built, did not boot, died or stopped answering."""


class NoKernelError(LabError):
    """The archive has no kernel of this series: old ones go as new ones come."""


class CommandFailedError(Exception):
    """A command that was to be checked ended with another status than 0."""

    def __init__(self, result: Result) -> None:
        super().__init__(
            f"{' '.join(result.args)}: status {result.status}\n{result.stdout}{result.stderr}"
        )
        self.result = result


class CommandTimeoutError(Exception):
    """A command did not end, or did not say what was waited for, in time."""

    def __init__(self, args: tuple[str, ...], timeout: float, output: str) -> None:
        super().__init__(f"{' '.join(args)}: not within {timeout:g} s; so far:\n{output}")
        self.output = output
