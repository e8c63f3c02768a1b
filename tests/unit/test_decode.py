"""Decoding: what is mended, what is refused by itself, what costs the frame, and what never happens."""

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from guestd.agent.hostlines import HostLine, HostLines
from guestd.agent.outbox import NO_MARK, Outbox
from guestd.core.errors import BadFrame
from guestd.wire import limits, replies, schema
from guestd.wire.decode import decode
from guestd.wire.line import KINDS, OTHER_TYPES, Header, is_whole, read_line

VECTORS = Path(__file__).with_name("vectors")
D1 = (VECTORS / "d1.wire").read_bytes().rstrip(b"\n")
D2 = (VECTORS / "d2.wire").read_bytes().rstrip(b"\n")
BOOT_ID = "0d3f3a5e-8d0b-4a55-9c0b-5d5e4a2f7c11"
NUMBERED = b'{"type":"metrics","boot_id":"%s","seq":12,"oldest":9,' % BOOT_ID.encode()


def kind_of(line: bytes) -> str:
    return read_line(line).kind


def header_of(line: bytes) -> Header | None:
    return read_line(line).header


def reason_of(payload: bytes) -> str:
    with pytest.raises(BadFrame) as caught:
        decode(payload)
    return caught.value.reason


def outcome_of(payload: bytes) -> str:
    try:
        decode(payload)
    except BadFrame as exc:
        return exc.reason
    return "decoded"


def changed(**system: Any) -> bytes:
    message = json.loads(D1)
    message["data"]["system"] |= system
    return json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode()


def command_line_of(payload: bytes) -> str | None:
    processes = decode(payload).metrics.data.system.processes
    assert processes is not None
    return processes[0].command_line


def test_a_message_of_either_dialect_needs_no_repair() -> None:
    for dialect in (D1, D2):
        decoded = decode(dialect)
        assert (decoded.refusals, decoded.repairs) == ([], [])
        assert decoded.metrics.data.system.memory.total_kb == 2097152


def test_a_message_says_which_machine_it_claims_to_be_of() -> None:
    assert decode(D1).metrics.claims() is None
    for name in (b"vm_id", b"vmId"):
        claiming = D1.replace(b'"type":"metrics"', b'"type":"metrics","%s":"b0a1"' % name)
        assert decode(claiming).metrics.claims() == "b0a1"


@pytest.mark.parametrize("digits", ["", ".1", ".123", ".123456", ".123456789"])
def test_the_claimed_time_is_passed_on_as_it_came(digits: str) -> None:
    claimed = f"2025-10-01T12:00:30{digits}+02:00"
    message = json.loads(D1) | {"timestamp": claimed}
    assert decode(json.dumps(message).encode()).metrics.timestamp == claimed


def test_a_half_without_its_whole_is_no_json() -> None:
    assert reason_of(D1[:-1]) == "json"
    assert reason_of(D1[300:]) == "json"


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'{"type":"metrics","data":{"x":['])
def test_deep_nesting_costs_the_frame_and_nothing_else(opening: bytes) -> None:
    assert reason_of(opening * 100_000) == "json"


@pytest.mark.parametrize("depth", [1, 100, 400, 600, 800, 900, 950, 990, 995, 1000, 1100, 5000])
def test_deep_nesting_in_a_wrong_entry_costs_at_most_the_frame(depth: int) -> None:
    payload = D1.replace(b'"processes":[', b'"processes":[' + b"[" * depth + b"]" * depth + b",")
    assert outcome_of(payload) in ("decoded", "json")


@pytest.mark.parametrize("digits", [20, 300, 5000])
def test_numbers_that_no_type_holds_are_left_out_or_zero(digits: int) -> None:
    number = b"9" * digits
    decoded = decode(D1.replace(b"2097152", number))
    assert decoded.metrics.data.system.memory.total_kb == 0
    assert "number_zeroed" in decoded.repairs
    assert reason_of(b'{"type":%s,"data":{}}' % number) in ("type", "shape")
    timed = decode(D1.replace(b'"2025-10-01T12:00:30.125000000+00:00"', b"1e" + number[:3]))
    assert (timed.metrics.timestamp, timed.refusals) == (None, [])


def test_a_number_that_no_column_holds_costs_its_entry_alone() -> None:
    decoded = decode(D1.replace(b'"id":633', b'"id":' + b"9" * 400))
    ((table, key, _),) = [(refusal.table, refusal.key, refusal.reason) for refusal in decoded.refusals]
    assert (table, key) == ("ProcessSnapshot", "9" * 100)
    assert decoded.metrics.data.system.processes == []
    assert decoded.metrics.data.system.ports


def test_what_is_kept_of_a_refused_entry_is_bounded() -> None:
    decoded = decode(changed(processes=["x" * 5000, {"id": "y" * 5000}, {"id": -1, "z" * 5000: None}]))
    assert len(decoded.refusals) == 3
    assert all(len(refusal.key or "") <= 100 and len(refusal.reason) <= 200 for refusal in decoded.refusals)


@given(st.text(st.characters(), max_size=60))
@example("\x00")
@example("\\u0000")
@example("\\\\ud800")
@example("\ud83d")
@example("\ud83d\ude00")
@example("\ude00\ud83d")
@example("\ud83d\ud83d\ude00")
@example('"{\\"type\\":\\"metrics\\",')
def test_any_text_survives_but_for_what_the_store_cannot_hold(text: str) -> None:
    expected = text.encode("utf-16", "surrogatepass").decode("utf-16", "ignore").replace("\x00", "")
    message = json.loads(D1)
    message["data"]["system"]["processes"] = [{"id": 1, "name": "a", "memory_usage_kb": 1, "command_line": text}]
    assert command_line_of(json.dumps(message).encode()) == expected


def test_an_escaped_backslash_before_u0000_is_text_and_no_repair() -> None:
    payload = D1.replace(b"cron -f", rb"a\\u0000")
    assert command_line_of(payload) == "a\\u0000"
    assert decode(payload).repairs == []


@pytest.mark.parametrize(
    "escape", [rb"\u00\u000000", rb"\u00\ud80000", rb"\ud8\u000000", rb"\u0\ude00000", rb"\u\u00000000"]
)
def test_removing_an_escape_never_makes_another(escape: bytes) -> None:
    assert reason_of(D1.replace(b"cron -f", escape)) == "json"


@pytest.mark.parametrize(
    "payload",
    [b"", b"\x00", b"\xff" * 100, b"{", D1[:-1] + b"\xff", b"NaN", b'{"type":NaN', D1.replace(b"12.5", b"NaNNaN NaN")],
)
def test_what_is_no_json_is_no_frame(payload: bytes) -> None:
    assert reason_of(payload) == "json"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (b"a\xffb", "a\ufffdb"),
        (b"caf\xe9", "caf\ufffd"),
        (b"\xed\xa0\x80", "\ufffd" * 3),
        (b"a\x00b", "ab"),
        (b"a\tb\x1bc", "a bc"),
        (b"x:NaN\xff", "x:NaN\ufffd"),
    ],
)
def test_bytes_that_no_text_may_have_are_replaced_and_the_frame_is_kept(written: bytes, read: str) -> None:
    payload = D1.replace(b"cron -f", written)
    assert command_line_of(payload) == read
    assert decode(payload).repairs == ["unreadable_value"]


NO_NUMBERS = [
    "NaN", "nan", "-nan", "NAN", "+NaN", "nan(ind)", "-nan(ind)", "Infinity", "-Infinity", "+Infinity", "inf", "-inf",
    "Inf", "INF", "-INFINITY", "1.#INF", "-1.#IND", "1.#QNAN", "1.#INF00",
]  # fmt: skip


@pytest.mark.parametrize("spelling", NO_NUMBERS)
def test_nan_and_infinity_are_null_however_they_are_spelled(spelling: str) -> None:
    for written in (spelling, f" {spelling} ", f'"{spelling}"'):
        decoded = decode(D1.replace(b"12.5", written.encode()).replace(b"5.0]", written.encode() + b"]"))
        assert decoded.metrics.data.system.cpu.usage_percent is None
        assert decoded.metrics.data.system.cpu.cores_usage == [20.0, None]
        assert decoded.refusals == []


def test_a_number_that_is_not_whole_is_cut_and_one_out_of_bounds_is_left_out_or_zero() -> None:
    process = {"id": 7.0, "name": "a", "memory_usage_kb": -5, "parent_id": 2**40, "disk_read_bytes": 12.9}
    decoded = decode(changed(processes=[process], memory={"total_kb": 1.5, "used_kb": 2**63, "available_kb": None}))
    assert decoded.metrics.data.system.processes == [schema.ProcessD1(7, "a", 0, disk_read_bytes=12)]
    assert decoded.metrics.data.system.memory == schema.Memory(1, 0, 0)
    assert decoded.refusals == []


@pytest.mark.parametrize("digits", [1_000_000, 4_000_000])
def test_megabytes_of_digits_cost_what_few_digits_cost(digits: int) -> None:
    number = b"9" * digits
    assert decode(D1.replace(b"2097152", number)).metrics.data.system.memory.total_kb == 0
    assert len(decode(D1.replace(b'"id":633', b'"id":' + number)).refusals) == 1
    assert decode(D1.replace(b"12.5", b"0." + number)).refusals == []


def test_a_long_frame_that_is_no_json_is_not_searched_for_what_it_may_mean() -> None:
    make_readable = D1.replace(b"12.5", b"NaN")
    assert decode(make_readable).repairs == ["unreadable_value"]
    assert reason_of(make_readable.replace(b"cron -f", b"x" * limits.READABLE_BYTES)) == "json"


def test_so_many_values_that_they_can_say_nothing_cost_the_frame() -> None:
    assert reason_of(D1.replace(b"[20.0,5.0]", b"[" + b"1," * limits.VALUES + b"1]")) == "shape"


def test_a_text_of_escapes_costs_the_frame() -> None:
    assert reason_of(D1.replace(b"cron -f", rb"\u0041" * (limits.ESCAPES + 1))) == "json"
    assert reason_of(D1.replace(b"cron -f", rb"\u0041" + rb"\\" * (limits.ESCAPES + 1))) == "json"


def test_the_first_entries_of_a_list_that_is_too_long_are_kept() -> None:
    port = {"port": 1, "protocol": "tcp", "state": "LISTEN"}
    decoded = decode(changed(ports=[{**port, "pid": "x"}] + [port] * limits.SOCKETS))
    assert len(decoded.metrics.data.system.ports or ()) == limits.SOCKETS
    assert decoded.repairs == ["list_cut", "field_left_out"]


def test_entries_beyond_the_limit_of_repairs_are_refused() -> None:
    process = {"id": 1, "name": "a", "memory_usage_kb": -1}
    assert decode(changed(processes=[process] * limits.REPAIRED)).refusals == []
    more = decode(changed(processes=[process] * limits.REPAIRED, ports=[{"port": 1.0}] * 10))
    assert len(more.refusals) == 10


def test_of_a_key_that_comes_twice_the_later_counts() -> None:
    assert decode(D1.replace(b'"used_kb":', b'"used_kb":1,"used_kb":')).metrics.data.system.memory.used_kb == 524288


LISTS = [
    ("processes", "ProcessSnapshot", {"id": 1, "name": "a", "memory_usage_kb": 1}, {"id": 2, "name": "a"}, "2"),
    ("ports", "PortUsage", {"port": 1, "protocol": "tcp", "state": "LISTEN"}, {"port": 65536}, "65536"),
    ("windows_services", "WindowsService", {"name": "a"}, {"name": ["b"]}, '["b"]'),
    ("processes", "ProcessSnapshot", {"id": 1, "name": "a", "memory_usage_kb": 1}, {"name": "a"}, None),
    ("processes", "ProcessSnapshot", {"id": 1, "name": "a", "memory_usage_kb": 1}, {"id": None}, None),
    ("windows_services", "WindowsService", {"name": "a"}, None, None),
]


@pytest.mark.parametrize(("name", "table", "good", "bad", "key"), LISTS)
def test_one_bad_entry_of_a_list_is_refused_alone(
    name: str, table: str, good: dict[str, Any], bad: dict[str, Any] | None, key: str | None
) -> None:
    decoded = decode(changed(**{name: [good, bad, good]}))
    assert [(refusal.table, refusal.key) for refusal in decoded.refusals] == [(table, key)]
    assert len(getattr(decoded.metrics.data.system, name)) == 2


def test_a_frame_of_wrong_entries_and_little_else_is_refused_as_a_whole() -> None:
    assert len(decode(changed(processes=[None] * 600, ports=[None] * 400)).refusals) == 1000
    assert reason_of(changed(processes=[None] * 600, ports=[None] * 401)) == "shape"


def test_a_list_that_is_none_costs_the_frame() -> None:
    assert reason_of(changed(processes={"id": 1})) == "shape"


def test_other_messages_are_named_by_their_type() -> None:
    assert reason_of(b'{"type":"keep_alive","sequence_number":1}') == "type"
    assert reason_of(b'{"type":"keep_alive","data":{"system":{"cpu":{},"memory":{}}}}') == "type"
    assert reason_of(D1.replace(b'"type":"metrics",', b"")) == "type"
    assert reason_of(b'{"type":"metrics"}') == "shape"


def test_a_known_type_is_seen_without_decoding() -> None:
    for name in OTHER_TYPES:
        assert kind_of(b'{"type":"%s","timestamp":1}' % name.encode()) == name
        assert kind_of(b' { "type" : "%s"' % name.encode()) == name


@pytest.mark.parametrize("name", ["metrics", "keep_alive\\u0000", ""])
def test_what_may_be_metrics_is_left_to_the_decoder(name: str) -> None:
    assert kind_of(b'{"type":"%s"}' % name.encode()) == "metrics"


@pytest.mark.parametrize("name", ["handshake", "keep_alive2", "KEEP_ALIVE", "Metrics", "\u00e9", "a.b c"])
def test_every_type_that_nobody_knows_has_one_name(name: str) -> None:
    assert kind_of(b'{"type":"%s"}' % name.encode()) == "unknown"


@given(st.binary(max_size=60))
def test_whatever_the_type_its_name_is_one_of_few(name: bytes) -> None:
    assert kind_of(b'{"type":"' + name) in KINDS


def test_the_answer_to_a_command_is_known_though_it_has_no_type() -> None:
    assert kind_of(b'{"id":"c-9","success":false,"exit_code":1}') == "response"
    assert kind_of(b'{"id":"c-9","name":"x"}') == "metrics"


def test_the_header_of_a_numbered_line_is_read() -> None:
    assert header_of(NUMBERED + b'"timestamp"') == Header(BOOT_ID, 12, 9)
    assert header_of(NUMBERED[:-1] + b"}") == Header(BOOT_ID, 12, 9)


@pytest.mark.parametrize(
    ("part", "other"),
    [
        (b'{"type"', b' {"type"'),
        (b'"type":', b'"type": '),
        (b"metrics", b"Metrics"),
        (b'"boot_id"', b'"bootId"'),
        (BOOT_ID.encode(), BOOT_ID.upper().encode()),
        (BOOT_ID.encode(), BOOT_ID.encode()[:-1]),
        (BOOT_ID.encode(), BOOT_ID.replace("-", "").encode()),
        (b'"seq":12', b'"seq":"12"'),
        (b'"seq":12', b'"seq":8'),
        (b'"seq":12', b'"seq":-12'),
        (b'"seq":12', b'"seq":012'),
        (b'"seq":12', b'"seq":12.0'),
        (b'"seq":12', b'"seq":1000000000000000000'),
        (b'"seq":12,"oldest":9', b'"seq":0,"oldest":0'),
        (b'"oldest":9', b'"oldest":0'),
        (b'"oldest":9', b'"oldest":13'),
        (b'"seq":12,"oldest":9', b'"oldest":9,"seq":12'),
        (b'"seq":12', b'"x":1,"seq":12'),
        (b'"oldest":9,', b'"oldest":9'),
        (b'"oldest":9,', b""),
    ],
)
def test_a_line_that_begins_otherwise_is_not_numbered(part: bytes, other: bytes) -> None:
    assert part in NUMBERED
    assert header_of(NUMBERED.replace(part, other)) is None


@given(st.binary(max_size=200))
def test_what_begins_otherwise_is_never_numbered(line: bytes) -> None:
    assert header_of(line) is None
    assert header_of(line + NUMBERED) is None or not line


def test_the_agent_and_the_daemon_agree_on_answers() -> None:
    boot_id = str(uuid4())
    said = {
        replies.ack(boot_id, 12, None): HostLine("ack", boot_id, 12),
        replies.ack(boot_id, 12, "0123456789abcdef"): HostLine("ack", boot_id, 12, "0123456789abcdef"),
        replies.resend(boot_id, 8, None): HostLine("ack", boot_id, 8, resend=True),
        replies.resend(boot_id, 8, "0123456789abcdef"): HostLine("ack", boot_id, 8, "0123456789abcdef", resend=True),
    }
    for line, heard in said.items():
        assert HostLines().feed(line + b"\n") == [heard]


def test_the_agent_and_the_daemon_agree_on_headers() -> None:
    outbox = Outbox(BOOT_ID, 1000)
    outbox.add(b'{"timestamp":"t"}', 0.0)
    line = outbox.next_line(0.0)
    assert line is not None
    found = header_of(line)
    assert found is not None
    assert found == Header(BOOT_ID, 1, 1, NO_MARK, found.mark)
    assert found.mark == json.loads(line)["mark"]


@pytest.mark.parametrize(
    "part", [b',"after":"0123456789abcdef"', b',"mark":"0123456789abcdef"', b',"after":"","mark":""']
)
def test_half_a_pair_of_marks_is_none(part: bytes) -> None:
    assert header_of(NUMBERED[:-1] + part + b",") == Header(BOOT_ID, 12, 9)


OUTCOMES = ("decoded", "json", "shape", "type")
# Bytes that have to do with the format, for a search that gets past the first character.
PIECES = st.sampled_from(
    [
        b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\", b"\\u", b"\\u0000", b"\\ud83d", b"null", b"1e999", b"-1",
        b"9" * 5000, b'{"type":"metrics",', b'"data":', b'"system":', b'"processes":[', b'"id":', b'"type":',
        D1[:200], D1,
    ]
)  # fmt: skip


@given(st.one_of(st.binary(max_size=300), st.lists(PIECES, max_size=20).map(b"".join)))
def test_no_bytes_make_decoding_fail_otherwise_than_by_a_bad_frame(payload: bytes) -> None:
    kind_of(payload)
    assert (outcome := outcome_of(payload)) in OUTCOMES
    assert is_whole(payload) == (outcome != "json")


@given(st.integers(0, len(D2)), st.integers(0, 40), st.one_of(st.binary(max_size=8), PIECES))
def test_no_edit_of_a_message_makes_decoding_fail_otherwise_than_by_a_bad_frame(
    place: int, removed: int, inserted: bytes
) -> None:
    payload = D2[:place] + inserted + D2[place + removed :]
    assert (outcome := outcome_of(payload)) in OUTCOMES
    assert is_whole(payload) == (outcome != "json")


JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=5)
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)
PLACES = [
    "type", "timestamp", "boot_id", "vmId", "data", "data.system", "data.processes", "data.applications", "data.ports",
    "data.system.cpu", "data.system.memory", "data.system.disk", "data.system.network", "data.system.processes",
    "data.system.memory.total_kb",
]  # fmt: skip


@given(st.sampled_from(PLACES), JSON)
def test_any_value_in_any_place_costs_at_most_the_frame(place: str, value: object) -> None:
    message = json.loads(D1)
    *parents, last = place.split(".")
    inner = message
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    assert outcome_of(json.dumps(message).encode()) in OUTCOMES
