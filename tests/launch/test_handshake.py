# SPDX-License-Identifier: Apache-2.0
"""What goes over the launcher's socket, and what is said on a standard error."""

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmuctl.errors import RefusedError
from pmuctl.launch import handshake
from pmuctl.launch.vmm_stderr import VmmStderr

Pair = tuple[socket.socket, socket.socket]
ERROR = RefusedError("it was refused", subject="web1", why="so", fix="do\udcff", now="nothing")
SAID = "error: web1: it was refused\n  why: so\n  now: nothing\n  fix: do\\udcff\n"


@pytest.fixture
def pair() -> Iterator[Pair]:
    here, there = socket.socketpair()
    with here, there:
        here.settimeout(10)
        there.settimeout(10)
        yield here, there


@pytest.mark.parametrize("text", [b"", b"x", b"\0" * 7, os.urandom(3_000_000)], ids=len)
def test_texts_of_any_length(pair: Pair, text: bytes) -> None:
    here, there = pair
    sending = threading.Thread(target=handshake.send_message, args=(here, text))
    sending.start()
    assert handshake.recv_message(there) == (text, None)
    sending.join()


def test_texts_do_not_run_into_each_other(pair: Pair) -> None:
    here, there = pair
    for text in (b"one", b"", b"three"):
        handshake.send_message(here, text)
    assert [handshake.recv_message(there)[0] for _ in range(3)] == [b"one", b"", b"three"]


@pytest.mark.parametrize("text", [b"", b"with it"])
def test_a_descriptor_goes_with_its_text(pair: Pair, text: bytes) -> None:
    here, there = pair
    read, write = os.pipe()
    handshake.send_message(here, text, write)
    handshake.send_message(here, b"next")
    os.close(write)
    received, fd = handshake.recv_message(there)
    assert received == text
    assert fd is not None
    os.write(fd, b"through")
    os.close(fd)
    assert os.read(read, 10) == b"through"
    os.close(read)
    assert handshake.recv_message(there) == (b"next", None)


@pytest.mark.parametrize("part", [b"", b"\5\0", b"\5\0\0\0", b"\5\0\0\0abc"])
def test_an_end_in_the_middle_is_an_end(pair: Pair, part: bytes) -> None:
    here, there = pair
    here.sendall(part)
    here.close()
    with pytest.raises(EOFError):
        handshake.recv_message(there)


def test_it_is_an_error_to_send_to_nobody(pair: Pair) -> None:
    here, there = pair
    there.close()
    with pytest.raises(ConnectionError):
        handshake.send_message(here, b"x")


def test_a_voice_says_an_error_as_pmuctl_does() -> None:
    read, write = os.pipe()
    VmmStderr(write).write_error(ERROR, os.getpid())
    assert os.read(read, 1000).decode() == SAID
    os.close(read)
    os.close(write)


def test_a_voice_warns() -> None:
    read, write = os.pipe()
    VmmStderr(write).write_error(RefusedError("no"), os.getpid(), word="warning")
    assert os.read(read, 1000) == b"warning: no\n"
    os.close(read)
    os.close(write)


def test_a_voice_speaks_into_a_socket(pair: Pair) -> None:
    here, there = pair
    VmmStderr(here.fileno()).write_error(ERROR, os.getpid())
    assert there.recv(1000).decode() == SAID


def test_a_closed_voice_keeps_nothing_open_and_borrows_that_of_the_vmm() -> None:
    read, write = os.pipe()
    voice = VmmStderr(write)
    voice.close()
    voice.close()
    assert os.read(read, 1) == b""  # the only writer is gone
    os.close(read)
    mine = os.fstat(2)
    before = len(list(Path("/proc/self/fd").iterdir()))
    copy = os.dup(2)
    read, write = os.pipe()
    os.dup2(write, 2)
    try:
        voice.write_error(ERROR, os.getpid())
    finally:
        os.dup2(copy, 2)
        os.close(copy)
        os.close(write)
    assert os.read(read, 1000).decode() == SAID
    os.close(read)
    assert os.path.samestat(os.fstat(2), mine)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_nobody_hears_what_is_said_to_the_dead() -> None:
    VmmStderr(-1).write_error(ERROR, 2**22 + 1)
    read, write = os.pipe()
    os.close(read)
    VmmStderr(write).write_error(ERROR, os.getpid())  # EPIPE
    os.close(write)
