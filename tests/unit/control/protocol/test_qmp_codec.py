# SPDX-License-Identifier: Apache-2.0
"""The control socket's wire: how bytes are cut into messages, and errors into classes."""

import itertools
import json
import tracemalloc
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmuctl.control.protocol.qmp_codec import (
    ERROR_CLASSES,
    MESSAGE_MAX,
    NESTING_MAX,
    PEER_TEXT_MAX,
    Decoder,
    Message,
    WireError,
    encode,
    error_from,
    error_message,
)
from pmuctl.errors import PmuctlError, RefusedError, SealedError, UsageError
from tests.fakes.strategies import JSON, OBJECTS, QUICKLY


def decoded(pieces: Iterable[bytes]) -> list[Message | str]:
    """The messages of a stream that comes in these pieces, and the error that ended it."""
    decoder, found = Decoder(), list[Message | str]()
    try:
        for piece in pieces:
            decoder.feed(piece)
            while (message := decoder.next()) is not None:
                found.append(message)
    except WireError as error:
        found.append(str(error))
    return found


def refusal(data: bytes) -> str:
    """Why a stream is refused, which must be so in one piece and byte by byte."""
    whole = decoded([data])
    assert decoded(data[n : n + 1] for n in range(len(data))) == whole
    [error] = whole
    assert isinstance(error, str)
    return error


def split(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    """The data in pieces, cut at these places."""
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(places)]


@QUICKLY
@given(
    st.lists(OBJECTS), st.sampled_from(["", "\n", "\r\n \t"]), st.lists(st.integers(min_value=0))
)
def test_messages_do_not_depend_on_how_they_are_split(
    messages: list[Message], between: str, cuts: list[int]
) -> None:
    texts = (json.dumps(m, ensure_ascii=n % 2 == 0) for n, m in enumerate(messages))
    data = between.join(["", *texts, ""]).encode()
    assert decoded(split(data, cuts)) == messages


FRAGMENTS = st.sampled_from(
    [
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b"\\",
        b":",
        b",",
        b"1",
        b"NaN",
        b"\xff",
        b" ",
        b"\n",
        b'{"a":1}',
    ]
)


@QUICKLY
@given(
    st.binary() | st.lists(FRAGMENTS).map(b"".join) | st.binary().map(b'{"a":"'.__add__),
    st.lists(st.integers(min_value=0)),
)
def test_any_bytes_give_messages_or_a_wire_error_however_they_are_split(
    data: bytes, cuts: list[int]
) -> None:
    assert decoded(split(data, cuts)) == decoded([data])


@QUICKLY
@given(OBJECTS)
def test_what_is_sent_is_read_back_and_is_one_line_of_ascii(message: Message) -> None:
    sent = encode(message)
    assert sent.isascii()
    assert sent.endswith(b"\r\n")
    assert sent.count(b"\n") == 1
    assert decoded([sent]) == [message]


@pytest.mark.parametrize("data", [b"[]", b"1", b'"a"', b"null", b"}", b"x{}", b"\xef\xbb\xbf{}"])
def test_only_objects_stand_at_the_top(data: bytes) -> None:
    assert refusal(data[:1]) == "a JSON object is expected"


@pytest.mark.parametrize(
    "data",
    [
        b"{]",
        b'{"a":[}]}',
        b"{a:1}",
        b'{"a":01}',
        b'{"a":1,}',
        b'{"a":"\n"}',
        b'{"a":"\\x"}',
        b'{"a":tru}',
        b"{'a':1}",
        b"{\\}",
    ],
)
def test_what_is_no_json_is_refused(data: bytes) -> None:
    assert refusal(data).startswith("not valid JSON: ")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" * 5000])
def test_a_number_that_cannot_be_sent_back_is_refused(number: str) -> None:
    assert refusal(f'{{"id":{number}}}'.encode()).startswith("not valid JSON: ")


@pytest.mark.parametrize(
    "text", [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2"]
)
def test_invalid_utf8_is_refused(text: bytes) -> None:
    assert refusal(b'{"a":"' + text + b'"}').startswith("not valid JSON: ")


@pytest.mark.parametrize(
    "text", [rb'{"a":"\ud800"}', rb'{"\udfff":1}', rb'{"a":["\udc00\ud800"]}', rb'{"a":"\uDBFFx"}']
)
def test_half_a_surrogate_pair_is_refused(text: bytes) -> None:
    assert refusal(text).startswith("not valid JSON: ")


def test_a_whole_surrogate_pair_is_one_character() -> None:
    assert decoded([rb'{"a":"\ud83d\ude00","b":"\\ud800"}']) == [
        {"a": "\U0001f600", "b": r"\ud800"}
    ]


@pytest.mark.parametrize("data", [b'{"a":1,"a":1}', b'{"x":[{"a":1,"\\u0061":2}]}'])
def test_a_member_given_twice_is_refused(data: bytes) -> None:
    assert refusal(data) == "not valid JSON: a member is given twice"


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_nesting_is_bounded(opening: str, closing: str) -> None:
    def nested(depth: int) -> bytes:
        inner = depth - 1
        return ('{"a":' + opening * inner + "1" + closing * inner + "}").encode()

    assert len(decoded([nested(NESTING_MAX)])) == 1
    assert isinstance(decoded([nested(NESTING_MAX)])[0], dict)
    assert refusal(nested(NESTING_MAX + 1)) == "nesting over 32"


def test_brackets_inside_texts_count_for_nothing() -> None:
    message: Message = {"a": '}]{[\\"' * 100, "b": "\\"}
    assert refusal_free(json.dumps(message).encode()) == [message]


def refusal_free(data: bytes) -> list[Message | str]:
    assert decoded(data[n : n + 1] for n in range(len(data))) == decoded([data])
    return decoded([data])


def of_size(size: int) -> bytes:
    return b'{"a":"' + b"x" * (size - 8) + b'"}'


@pytest.mark.parametrize("piece", [1 << 12, 1 << 16, 1 << 22])
@pytest.mark.parametrize("before", [b"", b" \r\n", b"{}"])
def test_a_message_has_a_mebibyte_at_most(piece: int, before: bytes) -> None:
    def in_pieces(data: bytes) -> list[Message | str]:
        return decoded(data[n : n + piece] for n in range(0, len(data), piece))

    assert isinstance(in_pieces(before + of_size(MESSAGE_MAX))[-1], dict)
    assert in_pieces(before + of_size(MESSAGE_MAX + 1))[-1] == "a message over 1048576 bytes"


def test_a_message_without_end_is_refused_in_bounded_memory() -> None:
    decoder = Decoder()
    piece = b"x" * (1 << 16)
    tracemalloc.start()
    try:
        decoder.feed(b'{"a":"')
        for _ in range(MESSAGE_MAX // len(piece) - 1):
            decoder.feed(piece)
            assert decoder.next() is None
        decoder.feed(piece)
        with pytest.raises(WireError, match="a message over"):
            decoder.next()
        assert tracemalloc.get_traced_memory()[1] < 4 * MESSAGE_MAX
    finally:
        tracemalloc.stop()


def test_space_between_messages_is_not_kept() -> None:
    decoder = Decoder()
    tracemalloc.start()
    try:
        for _ in range(100):
            decoder.feed(b" \t\r\n" * (1 << 14))
            assert decoder.next() is None
            assert not decoder.is_inside
        assert tracemalloc.get_traced_memory()[1] < MESSAGE_MAX
    finally:
        tracemalloc.stop()


def test_a_decoder_knows_whether_it_is_inside_a_message() -> None:
    decoder = Decoder()
    assert not decoder.is_inside
    decoder.feed(b'{} {"a":')
    assert decoder.next() == {}
    assert decoder.next() is None
    assert decoder.is_inside
    decoder.feed(b"1}")
    assert decoder.next() == {"a": 1}
    assert decoder.next() is None
    assert not decoder.is_inside


@pytest.mark.parametrize(("name", "cls"), ERROR_CLASSES.items())
def test_an_error_keeps_its_class_on_the_wire(name: str, cls: type[PmuctlError]) -> None:
    sent = error_message(cls("words", why="because", errno="EBUSY"), {"applied": []})
    assert sent["class"] == name
    error = error_from(sent, subject="web1")
    assert type(error) is cls
    assert (error.message, error.why, error.errno) == ("words", "because", "EBUSY")
    assert (error.subject, error.applied) == ("web1", ())


def test_what_was_applied_before_comes_along() -> None:
    steps = [{"words": "SET_PMU", "outcome": "done"}, {"words": "FILTER", "outcome": "done"}]
    sent = error_message(SealedError("words"), {"applied": steps})
    assert error_from(sent, subject="web1").applied == ("SET_PMU", "FILTER")


@QUICKLY
@given(JSON, JSON, JSON, JSON, JSON)
def test_an_error_of_any_form_is_an_error(
    name: object, desc: object, why: object, number: object, applied: object
) -> None:
    data = {"why": why, "errno": number, "applied": applied}
    error = error_from({"class": name, "desc": desc, "data": data}, subject="web1")
    assert isinstance(error.message, str)
    assert error.why is None or isinstance(error.why, str)
    assert all(isinstance(words, str) for words in error.applied or ())


@pytest.mark.parametrize("data", [None, [], "x", 1, {"errno": ["EBUSY"]}, {"errno": "\x1b[31m"}])
def test_members_of_an_error_that_are_not_what_they_should_be_are_passed_over(
    data: object,
) -> None:
    error = error_from({"class": {}, "desc": None, "data": data}, subject="web1")
    assert type(error) is RefusedError
    assert (error.message, error.why, error.errno) == ("no reason was given", None, None)


def test_long_words_of_a_peer_are_cut() -> None:
    words = "x" * (PEER_TEXT_MAX + 1)
    sent: Message = {
        "class": "OutOfRange",
        "desc": words,
        "data": {"why": words, "applied": [{"words": words}, {"words": 1}, 1]},
    }
    error = error_from(sent, subject="web1")
    assert type(error) is UsageError
    assert error.message == error.why == words[:PEER_TEXT_MAX]
    assert error.applied == (words[:PEER_TEXT_MAX],)
