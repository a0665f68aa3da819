# SPDX-License-Identifier: Apache-2.0
"""What a stand-in says: a line of JSON for each thing it did, whatever its threads are."""

import ctypes
import errno
import json
import os
import threading
import time
from collections.abc import Callable, Collection
from typing import TypeVar

PR_SET_DUMPABLE = 4
PR_SET_NAME = 15

_T = TypeVar("_T")
_libc = ctypes.CDLL(None, use_errno=True)
_lock = threading.Lock()


def say(**line: object) -> None:
    """One line, whole and at once, with the time (seconds of the monotonic clock)."""
    text = json.dumps(line | {"time": time.monotonic()}) + "\n"
    with _lock:
        os.write(1, text.encode())


def call(name: str, job: Callable[[], _T], /, **about: object) -> _T:
    """Make a call and say what came of it: OK or the errno's name. Raises what it raises."""
    try:
        result = job()
    except OSError as error:
        said = errno.errorcode.get(error.errno or 0, str(error))
        say(call=name, result=said, tid=threading.get_native_id(), **about)
        raise
    say(call=name, result="OK", tid=threading.get_native_id(), **about)
    return result


class Waits:
    """Points at which to wait until standard input has a byte for each: a test says when."""

    def __init__(self, points: Collection[str] = ()) -> None:
        self._left = set(points)
        self._lock = threading.Lock()

    def at(self, point: str) -> None:
        """The first thread here says so and waits, others wait with it; later it is passed by."""
        with self._lock:
            if point in self._left:
                say(event="waits", at=point)
                os.read(0, 1)
                self._left.remove(point)


def prctl(option: int, value: int | bytes) -> None:
    """prctl(2) with one argument; raises OSError."""
    argument = value if isinstance(value, bytes) else ctypes.c_ulong(value)
    if _libc.prctl(option, argument, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def current_cpu() -> int:
    """Where the calling thread is."""
    return int(_libc.sched_getcpu())


def fork_helper() -> None:
    """Fork a process that has all descriptors of this one, and ends with it."""
    reader, writer = os.pipe()
    if pid := os.fork():
        os.close(reader)  # the other end stays open for as long as this process is there
        say(event="helper", pid=pid)
        return
    os.close(writer)
    os.read(reader, 1)
    os._exit(0)


def start_thread(name: str, job: Callable[[], None]) -> threading.Thread:
    """A thread of this name, as /proc/PID/task/TID/comm has it (15 bytes of it)."""

    def run() -> None:
        prctl(PR_SET_NAME, name.encode())
        job()

    thread = threading.Thread(target=run, name=name)
    thread.start()
    return thread


def say_status() -> None:
    """What the kernel says of tracing and seccomp, of the process and of each of its threads."""
    words = ("Seccomp", "TracerPid", "NoNewPrivs")
    threads = {}
    for tid in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{tid}/status", encoding="utf-8") as file:
                text = file.read()
        except (FileNotFoundError, ProcessLookupError):
            continue  # a vCPU thread that was joined, but is not quite gone
        lines = dict(line.split(":\t", 1) for line in text.splitlines())
        threads[int(tid)] = {word: int(lines[word]) for word in words}
    say(event="status", pid=os.getpid(), **threads[os.getpid()], threads=threads)
