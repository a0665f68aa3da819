# SPDX-License-Identifier: Apache-2.0
"""A process in the lab, seen from outside."""

import re
import signal as signals
import time
from collections.abc import Iterator, Mapping, Sequence

from tests.lab import frames
from tests.lab.channel import PATIENCE, Channel
from tests.lab.errors import CommandTimeoutError, LabError, Result


class Job:
    """A process started in the lab; it may outlast this object."""

    def __init__(
        self,
        channel: Channel,
        args: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        cwd: str | None = None,
        preloaded: bool = False,
    ) -> None:
        self.args = tuple(args)
        self.pid = 0
        self._channel = channel
        self._pieces: list[tuple[str, bytes]] = []
        self._status: int | None = None
        self._error: OSError | None = None
        self._number = channel.open(self._receive)
        channel.send(
            do="start",
            id=self._number,
            args=self.args,
            env=dict(env or {}),
            user=user,
            cwd=cwd,
            preloaded=preloaded,
        )
        if not channel.wait_for(lambda: bool(self.pid or self._error), PATIENCE):
            raise channel.error(f"{self.args[0]} was not started within {PATIENCE:g} s")
        if self._error:
            raise self._error

    @property
    def status(self) -> int | None:
        """Its exit status, once it has ended; -N when signal N ended it."""
        return self._status

    def send(self, data: bytes) -> None:
        """More for its standard input."""
        for chunk in frames.chunks(data):
            self._channel.send(do="stdin", id=self._number, data=frames.pack(chunk))

    def end_input(self) -> None:
        """Its standard input ends after what it was sent."""
        self._channel.send(do="end-stdin", id=self._number)

    def kill(self, signal: int = signals.SIGTERM) -> None:
        """Signal its process group."""
        self._channel.send(do="kill", id=self._number, signal=int(signal))

    def output(self) -> str:
        """All it has said so far, standard output and error as they came."""
        return self.raw("stdout", "stderr").decode(errors="replace")

    def raw(self, *streams: str) -> bytes:
        """All it has said so far on these streams."""
        with self._channel.changed:
            return b"".join(data for name, data in self._pieces if name in streams)

    def result(self) -> Result:
        """What it left behind; only once it has ended."""
        if self._status is None:
            raise LabError(f"{self.args[0]} has not ended")
        stdout, stderr = (self.raw(s).decode(errors="replace") for s in ("stdout", "stderr"))
        return Result(args=self.args, status=self._status, stdout=stdout, stderr=stderr)

    def wait(self, timeout: float = PATIENCE) -> Result:
        """Until it has ended."""
        if not self._channel.wait_for(lambda: self._status is not None, timeout):
            raise CommandTimeoutError(self.args, timeout, self.output())
        return self.result()

    def wait_for(self, regex: str, timeout: float = PATIENCE) -> re.Match[str]:
        """Until its output has this; raises as soon as it ends without."""
        match = None

        def seen() -> bool:
            nonlocal match
            match = re.search(regex, self.output(), re.MULTILINE)
            return match is not None or self._status is not None

        if not self._channel.wait_for(seen, timeout) or match is None:
            raise CommandTimeoutError(self.args, timeout, self.output())
        return match

    def stream(self, timeout: float) -> Iterator[tuple[str, bytes]]:
        """Its output as it comes, as (stream, data), until it has ended."""
        deadline = time.monotonic() + timeout
        shown = 0

        def more() -> bool:
            return len(self._pieces) > shown or self._status is not None

        while True:
            if not self._channel.wait_for(more, deadline - time.monotonic()):
                raise CommandTimeoutError(self.args, timeout, self.output())
            with self._channel.changed:
                new, ended = self._pieces[shown:], self._status is not None
            yield from new
            shown += len(new)
            if ended:
                return

    def _receive(self, message: frames.Message) -> None:
        match message["tell"]:
            case "started":
                self.pid = message["pid"]
            case "exit":
                self._status = message["status"]
            case "failed":
                self._error = failure(message)
            case stream:
                self._pieces.append((stream, frames.unpack(message["data"])))


def failure(message: frames.Message) -> OSError:
    """The error the agent met, as it would be here."""
    if message["errno"] is None:
        return OSError(message["why"])
    return OSError(message["errno"], message["why"], message["subject"])
