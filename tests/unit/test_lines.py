"""What a line is: which messages are in it, and that the same line is judged alike wherever and however it arrives."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from guestd.core.errors import BadFrame
from guestd.wire import limits
from guestd.wire.decode import decode
from guestd.wire.framing import Framer, Oversize
from guestd.wire.line import FRAGMENT, METRICS, is_whole, read_first_line, read_line, read_lines
from support.gate import marked, numbered
from support.poison import D1, D2, POISON, poisoned

D1_LINE = json.dumps(D1, separators=(",", ":"), ensure_ascii=False).encode()
D2_LINE = json.dumps(D2, separators=(",", ":"), ensure_ascii=False).encode()
MARK_OF_UTF8 = b"\xef\xbb\xbf"
EVENT = b'{"type":"error_report","error_type":"e","timestamp":1}'
PING = b'{"type":"ping"}'
# What stands between messages where the line end was lost, or was never written.
SEPARATORS = [b"", b" ", b"\t\t", b"\0", b"\x1e", b"\n", b"\r\n", b"\r", MARK_OF_UTF8, b" \0\x1e" + MARK_OF_UTF8]


def payloads(line: bytes) -> list[bytes | None]:
    return [message.payload for message in read_lines(line)]


def kinds(line: bytes) -> list[str]:
    return [message.kind for message in read_lines(line)]


def reason_of(payload: bytes) -> str | None:
    """Why a frame is quarantined; None when it is stored."""
    try:
        decode(payload)
    except BadFrame as exc:
        return exc.reason
    return None


def is_judged_alike(line: bytes) -> bool:
    """Whether a line is the same messages as the first of a connection, and as any later one."""
    return read_first_line(line) == read_lines(line)


@pytest.mark.parametrize("name", POISON)
def test_a_poisoned_message_is_judged_alike_as_a_first_line_and_as_a_later_one(name: str) -> None:
    for path, payload in poisoned(name):
        assert is_judged_alike(payload), path
        assert payloads(payload) == [payload], path


@pytest.mark.parametrize("name", POISON)
def test_a_message_is_whole_exactly_when_decoding_can_read_it(name: str) -> None:
    for path, payload in poisoned(name):
        assert is_whole(payload) == (reason_of(payload) != "json"), path


NOT_JSON = [
    b'{"type":"metrics","data":{},}', b"{'type':'metrics'}", b'{"type":"metrics","data":{}/* x */}', b"{type:1}",
    b'{"type":"metrics","x":01}', b'{"type":"metrics","x":+1}', b'{"type":"metrics","x":.5}', b'{"type":"metrics"',
    b'{"type":"metrics","x":0x10}', b'{"type":"metrics","x":True}', b'{"type":"metrics"}}', b"{}[]", b"{",
    b'{"type":"metrics","x":"\\x41"}', b'{"type":"metrics","x":"\\u12"}', b'{"a":' * 100_000, b'{"type":"metrics"} x',
]  # fmt: skip


@pytest.mark.parametrize("line", NOT_JSON)
def test_what_begins_as_a_message_and_is_no_json_is_kept_in_the_quarantine_wherever_it_stands(line: bytes) -> None:
    assert is_judged_alike(line)
    assert payloads(line) == [line]
    assert reason_of(line) == "json"


@pytest.mark.parametrize("value", [b"[]", b"[{}]", b"5", b'"x"', b"null", b"[NaN]"])
def test_a_value_that_is_no_object_is_judged_alike_too(value: bytes) -> None:
    assert is_judged_alike(value)
    assert reason_of(value) == "shape"


@pytest.mark.parametrize(
    "spoilt", [b"NaN", b"-Infinity", b"1.#IND", b'"\x1b\x00"', b'"caf\xe9"', rb'"\ud83d"', b"1e400"]
)
@pytest.mark.parametrize("place", [40, 41, 400])
def test_only_the_rest_of_a_line_is_dropped_from_the_start_of_a_connection(spoilt: bytes, place: int) -> None:
    line = D1_LINE.replace(b"12.5", spoilt)
    (message,) = read_first_line(line)
    assert (message.kind, message.payload) == (METRICS, line)
    (rest,) = read_first_line(line[place:])
    assert rest.kind == FRAGMENT
    # Elsewhere such a line is a broken message.
    assert kinds(line[place:]) == [METRICS]
    assert [each.kind for each in read_first_line(line[place:] + line)] == [FRAGMENT, METRICS]


@given(st.integers(1, len(D1_LINE) - 1))
def test_a_part_of_a_message_is_not_whole(place: int) -> None:
    assert not is_whole(D1_LINE[place:])
    assert not is_whole(D1_LINE[:place])


def test_a_first_line_over_the_limit_is_counted_as_any_other() -> None:
    line = Oversize(b'x":1}', 5_000_000)
    assert read_first_line(line) == read_lines(line)


def test_a_message_with_too_many_escapes_is_whole_and_what_is_left_of_it_is_not() -> None:
    line = b'{"type":"metrics","x":"' + rb"\u0041" * (limits.ESCAPES + 1) + b'"}'
    assert is_whole(line)
    assert not is_whole(line[:-1])
    assert is_judged_alike(line)


def test_many_messages_in_a_line_are_lines_of_their_own() -> None:
    messages = [numbered(1), PING, D1_LINE, EVENT, marked(2, "0", "a")]
    lines = read_lines(b"".join(messages))
    assert lines == [read_line(message) for message in messages]
    assert [line.header and line.header.seq for line in lines] == [1, None, None, None, 2]


@pytest.mark.parametrize("separator", SEPARATORS)
def test_what_stands_around_messages_belongs_to_none(separator: bytes) -> None:
    line = separator + D1_LINE + separator + numbered(1) + separator
    assert payloads(line) == [D1_LINE, numbered(1)]
    assert is_judged_alike(line)


@given(st.integers(1, len(D1_LINE) - 1), st.integers(len(b'{"type":"metrics"'), len(D1_LINE) - 1))
def test_the_half_of_a_message_that_was_sent_again_is_a_fragment(first: int, second: int) -> None:
    for halves in ([D1_LINE[:first]], [D1_LINE[:first], D1_LINE[:second]]):
        line = b"".join(halves) + D1_LINE
        *fragments, message = read_lines(line)
        assert (message.kind, message.payload) == (METRICS, D1_LINE)
        assert {fragment.kind for fragment in fragments} == {FRAGMENT}


def test_a_half_may_be_cut_within_a_character_and_within_an_escape() -> None:
    line = D1_LINE.replace(b"cron -f", "\u00e9".encode() + rb"\ud83d\u0000")
    for end in (line.index(b"\xc3") + 1, line.index(b"\\u") + 3):
        assert [message.kind for message in read_lines(line[:end] + line)] == [FRAGMENT, METRICS]


def test_a_half_that_was_not_sent_again_is_kept_as_a_line_of_its_own() -> None:
    half = D1_LINE[:300]
    assert payloads(half + D2_LINE) == [half, D2_LINE]
    assert payloads(D2_LINE + half) == [D2_LINE, half]
    assert reason_of(half) == "json"


def test_the_half_of_a_numbered_line_is_requested_again_though_another_message_follows_it() -> None:
    first, second = read_lines(marked(1, "0", "a")[:-4] + PING)
    assert first.header is not None
    assert (first.header.seq, first.kind, second.kind) == (1, METRICS, "ping")


def test_a_message_behind_something_else_keeps_its_number() -> None:
    for before in (PING, D1_LINE, D1_LINE[:300], b"x", numbered(1)[:20]):
        assert read_lines(before + numbered(1))[-1] == read_line(numbered(1))


def test_objects_with_a_type_inside_a_message_do_not_begin_another() -> None:
    inner = b",".join([b'{"type":"disk"}'] * 20)
    line = D1_LINE.replace(b'"data":', b'"future":[%s],"data":' % inner)
    for whole in (line, line.replace(b"12.5", b"NaN")):
        assert payloads(whole) == [whole]
    few = D1_LINE.replace(b'"data":', b'"future":[%s],"data":' % inner[:95])
    assert payloads(few + D2_LINE)[-1] == D2_LINE
    assert payloads(D2_LINE + few) == [D2_LINE, few]
    report = b'{"type":"error_report","context":{"type":"metrics"},"x":NaN}'
    assert [(each.kind, each.payload) for each in read_lines(report)] == [("error_report", report)]


def test_messages_in_a_text_are_text() -> None:
    line = json.dumps({"type": "agent_event", "message": (PING + D1_LINE).decode()}).encode()
    assert payloads(line) == [line]


def test_the_messages_that_are_separated_in_a_line_are_bounded_and_the_others_are_kept_together() -> None:
    for count in (limits.MESSAGES + 2, limits.MESSAGES + 3, 1000):
        messages = [b'{"type":"metrics","sample":%d}' % number for number in range(count)]
        *found, others = payloads(b"".join(messages))
        assert found == messages[: limits.MESSAGES]
        assert others == b"".join(messages[limits.MESSAGES :])
    pings = read_lines(PING * 1000)
    # A part that is quarantined: no message in it is taken for all.
    assert pings[-1].kind == METRICS
    assert reason_of(pings[-1].payload or b"") == "json"


def test_the_search_for_messages_in_a_broken_line_is_bounded_by_its_length() -> None:
    opening = b'{"type":"metrics","a":'
    assert payloads(opening * 10 + PING) == [opening * 10, PING]
    # To find the last message, 9 MB would be read.
    assert payloads(opening * 900 + PING) == [opening * 900 + PING]


TYPED = D1_LINE.replace(b'"data":', b'"future":[%s],"data":' % b",".join([b'{"type":"disk"}', PING, EVENT] * 4))
OTHER_FORMS = [
    b'{"timestamp":1,"metrics":{}}', b'{"system_metrics":{}}', b'{"data":{"x":[{"type":"ping"}]},"type":"metrics"}',
    b'{ "type": "metrics","data":{}}', b'{"data":{"x":NaN},"type":"metrics"}', b'{"data":{"x":"\xff\0\x1b"}}',
    rb'{"data":{"x":"\ud83d\u0000"}}', b'{"a":-Infinity,"b":[1.#QNAN]}', b'{"data":{"x":"a}{{\r{b"}}',
]  # fmt: skip


@pytest.mark.parametrize("message", [TYPED, *OTHER_FORMS])
@pytest.mark.parametrize("separator", SEPARATORS)
def test_messages_of_any_form_are_separated(message: bytes, separator: bytes) -> None:
    for line in ([message, message], [PING, message], [message, numbered(1)], [EVENT, message, D2_LINE]):
        assert payloads(separator.join(line)) == line
        assert is_judged_alike(separator.join(line))


@pytest.mark.parametrize("broken", [TYPED[:-1] + b",}", TYPED[:-1], TYPED.replace(b"},{", b"}{", 1), b"x" + TYPED[:-1]])
def test_objects_with_a_type_in_a_broken_message_are_no_messages(broken: bytes) -> None:
    assert payloads(broken) == [broken]
    assert kinds(broken) == [METRICS]
    assert is_judged_alike(broken) or not broken.startswith(b"{")


def test_the_half_of_a_message_with_typed_objects_is_known_by_the_whole_one_behind_it() -> None:
    for end in range(1, len(TYPED), 7):
        found = read_lines(TYPED[:end] + TYPED)
        assert (found[0].kind, found[-1].payload) == (FRAGMENT, TYPED)


@pytest.mark.parametrize("line", [b"", b" ", b"\r\n", b"\0", MARK_OF_UTF8])
def test_a_blank_line_contains_no_message(line: bytes) -> None:
    assert read_lines(line) == read_first_line(line) == []


def test_what_is_searched_of_a_line_is_bounded() -> None:
    for line in (b'{"type":"ping",' * 200_000, b'{"type":"ping","x":' * 200_000, b'{"type":"ping"},' * 200_000):
        assert payloads(line) == [line]
        assert kinds(line) == [METRICS]


def test_an_array_of_messages_is_one_value_of_a_wrong_shape() -> None:
    line = b"[" + D1_LINE + b"," + D2_LINE + b"]"
    assert payloads(line) == [line]
    assert reason_of(line) == "shape"


TO_REPAIR = [D1_LINE.replace(b"12.5", b"NaN"), D2_LINE.replace(b"sshd -D", b"\x00\xff")]
WHOLE = st.sampled_from([D1_LINE, D2_LINE, *TO_REPAIR, numbered(1), EVENT, PING, TYPED, *OTHER_FORMS])
STRAYS = st.sampled_from([b"x", b"]}}", b'"a":1}', b",", b"{", b"[[", b"\xff\xfe", b'{"type":'])
PARTS = st.one_of(
    WHOLE.map(lambda message: (True, message)),
    st.tuples(WHOLE, st.integers(1, 2000)).map(lambda cut: (False, cut[0][: min(cut[1], len(cut[0]) - 1)])),
    STRAYS.map(lambda stray: (False, stray)),
)


@given(st.lists(st.tuples(PARTS, st.sampled_from(SEPARATORS)), min_size=1, max_size=limits.MESSAGES // 2))
@example([((False, b'{"type":"metrics","data":'), b""), ((True, D1_LINE), b"")])
@example([((True, TYPED), b""), ((False, b"x"), b""), ((True, EVENT), b"")])
def test_no_message_of_a_line_is_lost_whatever_stands_around_it(parts: list[tuple[tuple[bool, bytes], bytes]]) -> None:
    """Each whole message is a line of its own, or within a part that is kept: in the quarantine, at the worst."""
    line = b"".join(separator + part for (_, part), separator in parts)
    kept = [(each.kind, each.payload or b"") for each in read_lines(line) if each.kind != FRAGMENT]
    for (is_message, part), _ in parts:
        if is_message:
            assert any(part in payload for _, payload in kept)
            kinds_of_it = {kind for kind, payload in kept if part == payload}
            assert kinds_of_it <= {read_line(part).kind}
            assert kinds_of_it or any(reason_of(payload) for _, payload in kept if part in payload)


@given(st.lists(st.tuples(WHOLE, st.sampled_from(SEPARATORS)), min_size=1, max_size=limits.MESSAGES))
def test_messages_that_follow_each_other_are_all_taken(messages: list[tuple[bytes, bytes]]) -> None:
    line = b"".join(message + separator for message, separator in messages)
    assert payloads(line) == [message for message, _ in messages]
    framed = [each for part in Framer(10_000_000).feed(line + b"\n") for each in read_lines(part)]
    assert [each.payload for each in framed] == [message for message, _ in messages]


@pytest.mark.parametrize("line", [D1_LINE, D2_LINE, EVENT, numbered(1), b'{"data":{},"type":"metrics"}', b"[]"])
@pytest.mark.parametrize("before", [MARK_OF_UTF8, b"\x1e", b"\0\0", b" \t", b" " + MARK_OF_UTF8 + b" "])
def test_a_byte_order_mark_or_white_space_before_a_message_changes_nothing(before: bytes, line: bytes) -> None:
    assert read_lines(before + line) == read_lines(line) == read_first_line(before + line)


def test_a_byte_order_mark_before_a_line_over_the_limit_does_not_hide_its_number() -> None:
    head = numbered(1)[:-1]
    assert read_lines(Oversize(MARK_OF_UTF8 + head, 5_000_000)) == read_lines(Oversize(head, 5_000_000))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_in_another_encoding_are_quarantined_with_their_reason(encoding: str, end: str) -> None:
    stream = "".join(f"{line.decode()}{end}" for line in (D1_LINE, D2_LINE, D1_LINE)).encode(encoding)
    lines = Framer(100_000).feed(stream)
    for line in lines:
        (message,) = read_lines(line)
        assert read_first_line(line) == [message]
        with pytest.raises(BadFrame, match="must write UTF-8") as refused:
            decode(message.payload or b"")
        assert refused.value.reason == "json"
    assert len(lines) == 3
