"""Events of guests: what becomes of each message, its bounds, and what never happens."""

import json
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestd.core.errors import BadFrame
from guestd.wire import limits
from guestd.wire.events import TYPES, Event, EventLimiter, read_event, with_repeatable_id
from guestd.wire.line import EVENTS

MACHINE, OTHER = UUID(int=1), UUID(int=2)
RECEIVED = datetime(2025, 10, 1, 12, 0, 31, 250_000, tzinfo=UTC)
BASE = {"type": "error_report", "severity": "Fatal", "error_type": "e"}


def event(payload: bytes) -> Event:
    return read_event(payload, machine_id=MACHINE, received_at=RECEIVED)


def of(**members: Any) -> Event:
    return event(json.dumps(BASE | members).encode())


def detail_of(found: Event) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(found.detail)
    return content


VECTORS = [
    (
        (b'{"type":"error_report","timestamp":"t","error_type":"DeviceLost","severity":"Temporary","retry_attempt":2,'
        b'"max_retries":5,"windows_error_code":null,"recovery_suggestion":null,"vm_id":"b0a1"}'),
        ("Temporary", "DeviceLost"),
        {"timestamp": "t", "retry_attempt": 2, "max_retries": 5, "windows_error_code": None,
         "recovery_suggestion": None, "vm_id": "b0a1"},
    ),
    (
        b'{"type":"connection_status","timestamp":"t","state":"retrying","details":"3 of 5","vm_id":"b0a1"}',
        (None, "retrying"),
        {"timestamp": "t", "details": "3 of 5", "vm_id": "b0a1"},
    ),
    (
        b'{"type":"circuit_breaker_state","state":"HalfOpen","failure_count":15,"last_failure_time":null,"timestamp":1}',
        (None, "HalfOpen"),
        {"failure_count": 15, "last_failure_time": None, "timestamp": 1},
    ),
    (
        (b'{"type":"agent_event","timestamp":"t","severity":"warning","source":"updater","message":"late",'
        b'"executionId":"x","context":{"a":[1,{"b":2}]}}'),
        ("warning", "late"),
        {"timestamp": "t", "source": "updater", "executionId": "x", "context": {"a": [1, {"b": 2}]}},
    ),
    (
        (b'{"type":"firewall_event","event_type":"connection_blocked","port":22,"protocol":"TCP","process_name":"sshd",'
        b'"process_id":1,"source_ip":"192.0.2.1","rule_name":"r","timestamp":"t"}'),
        (None, "connection_blocked"),
        {"port": 22, "protocol": "TCP", "process_name": "sshd", "process_id": 1, "source_ip": "192.0.2.1",
         "rule_name": "r", "timestamp": "t"},
    ),
    (
        b'{"type":"script_completion","execution_id":"x","exit_code":3,"stdout":"secret","stderr":"","log_file":"/l"}',
        (None, "3"),
        {"execution_id": "x", "log_file": "/l", "stdout_bytes": 8, "stderr_bytes": 2},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("payload", "told", "detail"), VECTORS, ids=lambda value: "")
def test_each_type_tells_its_severity_and_message_and_keeps_the_rest(
    payload: bytes, told: tuple[str | None, str], detail: dict[str, Any]
) -> None:
    found = event(payload)
    assert (found.machine_id, found.received_at) == (MACHINE, RECEIVED)
    assert found.type == json.loads(payload)["type"]
    assert (found.severity, found.message) == told
    assert detail_of(found) == detail


def test_every_type_of_the_wire_that_is_kept_has_its_vector_and_a_name_for_counting() -> None:
    assert {json.loads(payload)["type"] for payload, _, _ in VECTORS} == TYPES
    assert TYPES == EVENTS


def test_what_a_script_printed_is_not_kept() -> None:
    found = event(VECTORS[-1][0])
    assert "secret" not in repr(found)


def test_the_same_frame_is_the_same_event_and_another_one_is_not() -> None:
    payload = VECTORS[0][0]
    ids = {
        event(payload).id,
        event(payload).id,
        event(payload + b" ").id,
        read_event(payload, machine_id=OTHER, received_at=RECEIVED).id,
        read_event(payload, machine_id=MACHINE, received_at=RECEIVED.replace(microsecond=0)).id,
    }
    assert len(ids) == 4


def test_an_event_with_a_time_of_its_own_that_a_broker_delivers_again_is_the_same_event() -> None:
    def by_broker(payload: bytes, received_at: datetime) -> UUID:
        return with_repeatable_id(read_event(payload, machine_id=MACHINE, received_at=received_at), payload).id

    later = RECEIVED.replace(second=59)
    timed, timeless = VECTORS[0][0], b'{"type":"error_report","timestamp":null,"error_type":"e"}'
    assert by_broker(timed, RECEIVED) == by_broker(timed, later)
    assert by_broker(timeless, RECEIVED) != by_broker(timeless, later)


def test_an_event_whose_detail_is_too_long_is_known_by_its_time_all_the_same() -> None:
    members = {"timestamp": "t", **{f"m{number}": "x" * 900 for number in range(30)}}
    payload = json.dumps(BASE | members).encode()
    later = RECEIVED.replace(second=59)
    ids = {
        with_repeatable_id(read_event(payload, machine_id=MACHINE, received_at=at), payload).id
        for at in (RECEIVED, later)
    }
    assert len(ids) == 1


def test_an_event_of_more_members_than_anybody_sends_is_set_aside_and_a_long_output_is_not() -> None:
    with pytest.raises(BadFrame, match="texts") as refused:
        of(**{f"m{number}": number for number in range(2 * limits.EVENT_TEXTS)})
    assert refused.value.reason == "shape"
    assert detail_of(of(stdout='"a", "b"\n' * 100_000))["stdout_bytes"] > 1_000_000


def test_texts_lists_and_depth_are_bounded() -> None:
    found = of(severity="s" * 99, error_type="m" * 9999, text="t" * 9999, many=list(range(999)), deep=[[[[["x"]]]]])
    assert (len(found.severity or ""), len(found.message or "")) == (limits.STATE_CHARS, limits.EVENT_CHARS)
    detail = detail_of(found)
    assert len(detail["text"]) == limits.EVENT_CHARS
    assert len(detail["many"]) == limits.EVENT_MEMBERS
    assert detail["deep"] == [[[[None]]]]


def test_a_detail_that_is_too_long_all_the_same_is_left_out_with_its_size() -> None:
    found = of(**{f"m{number}": "x" * 900 for number in range(30)})
    assert detail_of(found).keys() == {"too_long_bytes"}


def test_a_member_that_is_larger_than_a_message_may_say_is_left_out() -> None:
    assert detail_of(of(context=["x" * 200] * 2000, kept=1)) == {"context": None, "kept": 1}


def test_numbers_and_texts_that_nothing_holds_are_left_out_or_put_right() -> None:
    found = event(
        b'{"type":"error_report","error_type":"a\\u0000b\\ud800c","severity":7,"big":1e400,"digits":%s,"bad":"\xff!"}'
        % (b"9" * 5000)
    )
    assert (found.severity, found.message) == ("7", "abc")
    detail = detail_of(found)
    assert detail["big"] is None
    assert detail["bad"] == "\ufffd!"


@pytest.mark.parametrize(
    "payload", [b"", b"[]", b"{}", b'{"type":"ping"}', b'{"type":"error_report"', b'{"type":["error_report"]}', b"\xff"]
)
def test_what_is_no_event_is_a_bad_frame(payload: bytes) -> None:
    with pytest.raises(BadFrame):
        event(payload)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=10), inner, max_size=5),
    max_leaves=20,
)


@given(st.sampled_from(sorted(TYPES)), st.dictionaries(st.text(max_size=20), JSON, max_size=20))
def test_whatever_an_event_tells_its_row_is_within_bounds(name: str, members: dict[str, Any]) -> None:
    payload = json.dumps({**members, "type": name}, allow_nan=True).encode()
    try:
        found = event(payload)
    except BadFrame:
        return
    assert len(found.detail.encode()) <= limits.EVENT_BYTES
    assert isinstance(json.loads(found.detail), dict)
    assert "\x00" not in f"{found.severity}{found.message}"
    assert "\\u0000" not in found.detail.replace("\\\\", "")


@given(st.binary(max_size=300))
def test_no_bytes_make_an_event_fail_otherwise_than_by_a_bad_frame(payload: bytes) -> None:
    for content in (payload, b'{"type":"error_report","error_type":"' + payload):
        with suppress(BadFrame):
            event(content)


def test_a_machine_may_tell_so_much_in_a_minute_and_others_do_not_pay_for_it() -> None:
    limiter = EventLimiter(events_a_minute=2)
    assert [limiter.admit(MACHINE, 60_000) for _ in range(4)] == [True, True, False, False]
    assert limiter.admit(OTHER, 60_001)
    assert limiter.admit(MACHINE, 120_000)
    # A clock that is put back begins another minute.
    assert limiter.admit(MACHINE, 0)
    assert limiter._counts.keys() == {MACHINE}


def test_a_name_that_is_no_utf8_is_mended_with_the_rest_of_its_event() -> None:
    found = event(b'{"type":"error_report","severity":"Fatal","na\xffme":"v\xfe","error_type":"e"}')
    assert (found.severity, detail_of(found)) == ("Fatal", {"na\ufffdme": "v\ufffd"})
