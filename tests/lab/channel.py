# SPDX-License-Identifier: Apache-2.0
"""The outer end of the serial console: QEMU's process, and frames to and from the agent."""

import collections
import subprocess
import threading
import time
from collections.abc import Callable, Sequence

from tests.lab import frames
from tests.lab.errors import LabError
from tests.lab.monitor import Monitor

PATIENCE = 120.0
"""Seconds for anything to happen in a lab: many times what it takes, on a machine that others
load as well, so that only what hangs takes longer."""
TAIL_LINES = 60

Receiver = Callable[[frames.Message], None]


class Channel:
    """A QEMU with its console on a pipe; `close` leaves nothing of it behind.

    `changed` is notified whenever a message came or QEMU ended; receivers are called with it held.
    """

    def __init__(
        self, command: Sequence[str], *, pass_fds: Sequence[int], echo: Callable[[str], None]
    ) -> None:
        self.changed = threading.Condition()
        self._echo = echo
        self._receivers: dict[int, Receiver] = {}
        self._tail: collections.deque[str] = collections.deque(maxlen=TAIL_LINES)
        self._ready = False
        self._sent = 0
        self._acknowledged = 0
        self._next_number = 0
        self._ended: str | None = None
        self._sending = threading.Lock()
        self._monitor = Monitor()
        self._is_paused = False
        self._pausing = threading.Lock()
        # QEMU dies with this process, however this one ends.
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command, *self._monitor.options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[*pass_fds, self._monitor.inner.fileno()],
            start_new_session=True,
            bufsize=0,
        )
        self._monitor.inner.close()
        self._reader = threading.Thread(target=self._read, name="lab console", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """QEMU's process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it can still be talked to."""
        return self._ended is None

    def wait_ready(self, timeout: float) -> None:
        """Until the agent says that it is there."""
        if not self.wait_for(lambda: self._ready, timeout):
            raise self.error(f"did not boot within {timeout:g} s")

    def pause(self) -> None:
        """Stop the emulated host with its clock, until it is talked to or waited for again.

        One that idles takes CPU from the one at work.
        """
        self._set_paused(paused=True)

    def _set_paused(self, *, paused: bool) -> None:
        with self._pausing:
            if self._is_paused == paused or not self.alive:
                return
            self._is_paused = paused
            try:
                self._monitor.execute("stop" if paused else "cont")
            except LabError as error:
                # nobody knows whether it runs: it is of no use any more
                with self.changed:
                    self._ended = self._ended or str(error)
                    self.changed.notify_all()

    def open(self, receiver: Receiver) -> int:
        """A new request number, whose answers go to this receiver."""
        with self.changed:
            self._next_number += 1
            self._receivers[self._next_number] = receiver
            return self._next_number

    def drop(self, number: int) -> None:
        """Answers to this request are of no interest any more."""
        with self.changed:
            self._receivers.pop(number, None)

    def send(self, **message: object) -> None:
        """Send one message, and wait until it was read: the tty has no flow control."""
        line = memoryview(frames.encode(message))
        if len(line) > frames.LONGEST:
            raise ValueError(f"{len(line)} bytes at once: arguments or environment too long")
        with self._sending:
            with self.changed:
                self._check()
                self._sent += 1
            self._set_paused(paused=False)
            assert self._process.stdin
            try:
                while line:
                    line = line[self._process.stdin.write(line) :]
            except OSError as error:
                raise self.error(f"QEMU does not read its console: {error}") from error
            if not self.wait_for(lambda: self._acknowledged >= self._sent, PATIENCE):
                raise self.error(f"no answer within {PATIENCE:g} s")

    def wait_for(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        """Whether it came true in time; LabError when the lab ends before."""
        self._set_paused(paused=False)
        deadline = None if timeout is None else time.monotonic() + timeout
        with self.changed:
            while not condition():
                self._check()
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return False
                self.changed.wait(left)
        return True

    def tail(self) -> str:
        """The console's last lines."""
        with self.changed:
            return "\n".join(self._tail)

    def error(self, why: str) -> LabError:
        """What went wrong, with the console's last lines."""
        tail = self.tail()
        return LabError(f"{why}\nthe console's last lines:\n{tail}" if tail else why)

    def close(self) -> None:
        """End QEMU; may be called again."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        self._monitor.close()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()

    def _check(self) -> None:
        if self._ended is not None:
            raise self.error(self._ended)

    def _read(self) -> None:
        assert self._process.stdout
        splitter = frames.Splitter()
        ended = None
        while ended is None and (data := self._process.stdout.read(65536)):
            for line in splitter.feed(data):
                try:
                    text, message = frames.decode(line)
                except frames.GarbledError as error:
                    ended = f"a damaged frame came from the lab: {error}"
                    break
                self._take(text.decode(errors="replace"), message)
        if ended is None:
            if splitter.rest:
                self._take(splitter.rest.decode(errors="replace"), None)
            ended = f"QEMU ended with status {self._process.wait()}"
        with self.changed:
            self._ended = ended
            self.changed.notify_all()

    def _take(self, text: str, message: frames.Message | None) -> None:
        with self.changed:
            if text:
                self._tail.append(text)
                self._echo(text)
            if message is None:
                return
            match message["tell"]:
                case "ready":
                    self._ready = True
                case "acknowledged":
                    self._acknowledged = message["count"]
                case _:
                    if receiver := self._receivers.get(message["id"]):
                        receiver(message)
            self.changed.notify_all()
