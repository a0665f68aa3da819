# SPDX-License-Identifier: Apache-2.0
"""A tracer meets more threads than it can take: it neither waits for ever nor forgets one."""

import subprocess
import time

import pytest

from pmuctl.host.procfs import Procfs
from pmuctl.launch.failures import not_stopped
from pmuctl.launch.trace.arch import native_arch
from pmuctl.launch.trace.tracer import STOPS_AT_ONCE, Tracer
from pmuctl.value import field, value
from tests.fakes.peers import PATIENCE
from tests.launch.native import need, no_gate


@value
class Endless(Procfs):
    """A process that has one more thread whenever one looks: here they are processes."""

    made: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def threads(self, pid: int) -> frozenset[int]:
        self.made.append(subprocess.Popen(("sleep", str(6 * PATIENCE))))
        return frozenset(its.pid for its in self.made)


def test_threads_without_end_are_not_followed_for_ever() -> None:
    need(no_gate())
    procs = Endless()
    began = time.monotonic()
    try:
        with pytest.raises(TimeoutError) as raised:
            Tracer(native_arch(), procs, patience=0.1).follow_all(1)
    finally:
        for its in procs.made:
            its.kill()
            its.wait()
    assert time.monotonic() - began < PATIENCE
    error = not_stopped(raised.value)
    assert error.message == "the VMM's threads cannot be followed"
    assert error.why == "they make others without end"


class Youngest(Tracer):
    """To whom the kernel tells only of the youngest, which stops again and again."""

    def take_stop(self, which: int = -1, flags: int = 0) -> bool:
        self.asked.append(which)
        return which in (-1, max(self.threads))

    asked: list[int]


def test_the_oldest_have_their_turns_where_the_youngest_never_end() -> None:
    its = Youngest(native_arch(), Procfs())
    its.asked = []
    its.threads = dict.fromkeys(range(1, 1000), None)  # type: ignore[assignment]
    assert its.take_stops()
    assert its.asked == [*[-1] * STOPS_AT_ONCE, *range(1, STOPS_AT_ONCE + 1)]
