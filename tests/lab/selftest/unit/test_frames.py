# SPDX-License-Identifier: Apache-2.0
"""Messages survive the console they share with the kernel."""

import pytest

from tests.lab import frames


def test_message_comes_back_whole() -> None:
    message = {"do": "stdin", "id": 3, "data": frames.pack(bytes(range(256)))}
    line = frames.encode(message)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert frames.decode(line[:-1]) == (b"", message)
    assert frames.unpack(message["data"]) == bytes(range(256))  # type: ignore[arg-type]


def test_console_text_is_kept_apart() -> None:
    assert frames.decode(b"[ 1.0] a message") == (b"[ 1.0] a message", None)
    line = b"[ 1.0] no line end" + frames.encode({"a": 1})[:-1]
    assert frames.decode(line) == (b"[ 1.0] no line end", {"a": 1})


@pytest.mark.parametrize("cut", [5, 12, 20])
def test_damage_is_noticed(cut: int) -> None:
    line = frames.encode({"tell": "stdout", "id": 1})[:-1]
    with pytest.raises(frames.GarbledError):
        frames.decode(line[:cut] + b"[ 1.0] text" + line[cut:])


def test_lines_are_cut_however_they_arrive() -> None:
    stream = b"one\r\ntwo\n\nthree"
    for size in range(1, len(stream)):
        splitter = frames.Splitter()
        lines = []
        for start in range(0, len(stream), size):
            lines += splitter.feed(stream[start : start + size])
        assert lines == [b"one", b"two", b""]
        assert splitter.rest == b"three"


def test_chunks_fit_a_frame_and_lose_nothing() -> None:
    data = bytes(range(256)) * 100
    pieces = list(frames.chunks(data))
    assert b"".join(pieces) == data
    assert max(map(len, pieces)) <= frames.CHUNK
    assert list(frames.chunks(b"")) == []
