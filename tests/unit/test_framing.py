"""Framing: lines out of any stream of bytes, however it is cut, within bounded memory."""

import itertools
import re
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestd.wire.framing import BLANK, HEAD_BYTES, Framer, Oversize

LIMIT_BYTES = 300
END = rb"\n|(?<=\})\r(?=\{\")"
STREAMS = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.sampled_from(
            [b"\n", b"\r", b"\r\n", b" \n", b"\0\n", b"}", b'{"a":{}}\r', b'{"', b"{", b"{}\n", "é\n".encode()]
        ),
        st.integers(0, 700).map(lambda size: b"x" * size),
    ),
    max_size=12,
).map(b"".join)


def lines_of(*chunks: bytes, limit_bytes: int = LIMIT_BYTES) -> list[bytes | Oversize]:
    framer = Framer(limit_bytes)
    return [line for chunk in chunks for line in framer.feed(chunk)]


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[begin:end] for begin, end in itertools.pairwise(edges)]


@given(STREAMS, st.lists(st.integers(0, 10_000), max_size=8))
def test_lines_do_not_depend_on_how_the_stream_is_cut(stream: bytes, places: list[int]) -> None:
    assert lines_of(*cut(stream, places)) == lines_of(stream)


@given(STREAMS)
def test_one_byte_at_a_time_gives_the_lines_of_the_whole(stream: bytes) -> None:
    assert lines_of(*(stream[place : place + 1] for place in range(len(stream)))) == lines_of(stream)


@given(STREAMS)
def test_lines_are_what_stands_between_line_ends(stream: bytes) -> None:
    expected = [
        line if len(line) <= LIMIT_BYTES else Oversize(line[:HEAD_BYTES], len(line))
        for line in re.split(END, stream)[:-1]
        if len(line) > LIMIT_BYTES or line.strip(BLANK)
    ]
    assert lines_of(stream) == expected


@given(STREAMS)
def test_the_bytes_of_a_begun_line_are_pending(stream: bytes) -> None:
    framer = Framer(LIMIT_BYTES)
    framer.feed(stream)
    assert framer.pending_bytes == len(re.split(END, stream)[-1])


def test_a_line_of_exactly_the_limit_is_kept_and_one_byte_more_is_not() -> None:
    for limit_bytes in (10, HEAD_BYTES, 1000):
        line = b"x" * limit_bytes
        assert lines_of(line, b"\n", limit_bytes=limit_bytes) == [line]
        more = line + b"x"
        assert lines_of(more, b"\n", limit_bytes=limit_bytes) == [Oversize(more[:HEAD_BYTES], limit_bytes + 1)]


def test_an_oversize_line_is_reported_with_its_size_and_head_and_the_next_line_is_intact() -> None:
    head = b'{"type":"metrics","boot_id":"b","seq":1,'
    line = head + b"x" * 5000
    assert lines_of(line, b"y" * 70, b"\n{}\n") == [Oversize((line + b"y" * 70)[:HEAD_BYTES], len(line) + 70), b"{}"]


def test_a_line_that_never_ends_is_not_held_in_memory() -> None:
    framer, chunk = Framer(LIMIT_BYTES), b"x" * 65_536
    tracemalloc.start()
    try:
        for _ in range(200):
            assert framer.feed(chunk) == []
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # A feed holds the chunk that it was given once more, never the sum of them (13 MB).
    assert peak_bytes < 3 * len(chunk)
    assert framer.pending_bytes == 200 * len(chunk)


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_a_message_may_end_as_any_system_ends_a_line(end: bytes) -> None:
    first, second = b'{"type":"ping"}', b'{"data":{}}'
    for chunks in ([first, end, second + end], [first[:-1], b"}" + end + b"{", second[1:] + end]):
        assert [line.rstrip(b"\r") for line in lines_of(*chunks, b"\n") if isinstance(line, bytes)] == [first, second]


def test_a_stream_with_no_line_end_but_a_carriage_return_continues_and_keeps_only_its_last_message() -> None:
    message = b'{"type":"metrics","data":{}}\r'
    framer = Framer(LIMIT_BYTES)
    assert [len(framer.feed(message)) for _ in range(100)] == [0] + [1] * 99
    assert framer.pending_bytes == len(message)


@pytest.mark.parametrize("text", [b"a {{b}}\r c", b"{{a}}\r{{b}}", b"}\r", b"}\r{ ", b"}}\r\r{ }\r x{"])
def test_a_carriage_return_within_a_text_is_left_to_the_decoder(text: bytes) -> None:
    line = b'{"type":"metrics","x":"%s"}' % text
    assert lines_of(line + b"\r\n{}\r\n") == [line + b"\r", b"{}\r"]
    assert lines_of(*(line[place : place + 1] for place in range(len(line))), b"\n") == [line]


@pytest.mark.parametrize("blank", [b"\n", b" \n", b"\r\n", b"\0\t\n\n", b"\xef\xbb\xbf\n"])
def test_blank_lines_between_lines_are_passed_over_however_many(blank: bytes) -> None:
    assert lines_of(b"{}\n" + blank * 500 + b" {}\n" + blank * 500) == [b"{}", b" {}"]
    framer = Framer(LIMIT_BYTES)
    assert [framer.feed(blank) for _ in range(500)] == [[]] * 500


def test_lines_of_nothing_that_belongs_to_a_message_are_left_out() -> None:
    assert lines_of(b"\n\r\n \t\n{}\n\0\n\x1e\n\xef\xbb\xbf\r\n[]\n") == [b"{}", b"[]"]


def test_a_line_without_a_newline_is_not_given_out() -> None:
    assert lines_of(b'{"type":"metrics"}') == []


def test_a_character_cut_in_two_by_the_channel_is_whole_again() -> None:
    text = '{"name":"naïve"}'.encode()
    middle = text.index("ï".encode()) + 1
    assert lines_of(text[:middle], text[middle:] + b"\n") == [text]


@pytest.mark.parametrize("text", [b"{}", b'{"a":{}}', b'{"a":{}}\r', b"half of a lin", b" "])
@pytest.mark.parametrize("chunk_bytes", [1, 2, 100])
def test_what_is_left_without_a_line_end_is_taken_whole_and_once(text: bytes, chunk_bytes: int) -> None:
    framer = Framer(50)
    sent = b"first\n" + text
    lines = [
        line for begin in range(0, len(sent), chunk_bytes) for line in framer.feed(sent[begin : begin + chunk_bytes])
    ]
    assert lines == [b"first"]
    assert framer.take_rest() == (text if text.strip() else None)
    assert (framer.take_rest(), framer.pending_bytes) == (None, 0)
    assert framer.feed(b"x" * 60) == []
    assert framer.take_rest() == Oversize(b"x" * 60, 60)
