"""The use of applications, with the clock as an argument."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from guestd.agent.applications import MOST_APPLICATIONS, ApplicationWatch
from guestd.agent.payload import Process
from guestd.agent.usage_state import (
    LATEST_SECONDS,
    LONGEST_STATE_BYTES,
    MOST_SECONDS,
    MOST_STARTS,
    UsageRecord,
    UsageState,
    read_usage_state,
    write_usage_state,
)
from guestd.wire.decode import decode

EDITOR = "/opt/editor/bin/editor"
START_S = 1_790_000_000.0


def process(number: int, executable: str | None, start_s: float) -> Process:
    return Process(number, 1, "x", executable, None, None, 1, "Running", int(start_s), None, None)


def facts(
    watch: ApplicationWatch, processes: list[Process], now_s: float, elapsed: float
) -> dict[str, tuple[int, int, bool]]:
    found = watch.observe(processes, {}, now_s, elapsed)
    return {known.exe_path: (known.access_count, known.usage_minutes, known.is_active) for known in found}


def test_minutes_are_the_time_between_samples_in_which_a_process_ran() -> None:
    watch, editor = ApplicationWatch(UsageState({})), process(7, EDITOR, START_S - 50)
    assert facts(watch, [editor], START_S, 0.0) == {EDITOR: (1, 0, True)}
    assert facts(watch, [editor], START_S + 90, 90.0) == {EDITOR: (1, 1, True)}
    assert facts(watch, [], START_S + 180, 90.0) == {EDITOR: (1, 1, False)}
    assert facts(watch, [editor], START_S + 270, 90.0) == {EDITOR: (1, 3, True)}


def test_two_processes_of_one_program_are_one_application_started_twice() -> None:
    watch = ApplicationWatch(UsageState({}))
    processes = [process(7, EDITOR, START_S - 50), process(8, EDITOR, START_S - 40)]
    assert facts(watch, processes, START_S, 60.0) == {EDITOR: (2, 1, True)}


def test_a_start_is_counted_once_even_in_the_second_of_a_sample() -> None:
    watch = ApplicationWatch(UsageState({}))
    watch.observe([], {}, START_S + 0.5, 0.0)
    editor = process(7, EDITOR, START_S + 0.9)
    counts = [facts(watch, [editor], START_S + moment, 1.0)[EDITOR][0] for moment in (0.95, 2.0, 3.0)]
    assert counts == [0, 1, 1]


def test_a_process_without_an_executable_is_no_application() -> None:
    assert ApplicationWatch(UsageState({})).observe([process(2, None, START_S)], {}, START_S, 1.0) == []


def test_a_file_is_examined_if_the_kernel_named_it_when_the_program_last_ran(tmp_path: Path) -> None:
    watch, editor = ApplicationWatch(UsageState({})), process(7, EDITOR, START_S)
    for programs, files in [({}, set()), ({EDITOR: True}, {EDITOR}), ({}, {EDITOR}), ({EDITOR: False}, set())]:
        watch.observe([editor], programs, START_S, 1.0)
        assert watch.list_files() == files
        write_usage_state(tmp_path / "state.json", watch.encode())
        assert ApplicationWatch(read_usage_state(tmp_path / "state.json")).list_files() == files


def test_a_program_that_cannot_be_found_any_more_has_no_size_but_a_name() -> None:
    [application] = ApplicationWatch(UsageState({})).observe([process(7, EDITOR, START_S - 50)], {}, START_S, 0.0)
    assert (application.name, application.file_size, application.last_modified) == ("editor", None, None)
    assert application.last_access == "2026-09-21T14:13:20.000+00:00"


def test_the_longest_unused_are_forgotten_first() -> None:
    watch = ApplicationWatch(UsageState({}))
    watch.observe([process(1, "/old", START_S - 9)], {}, START_S, 0.0)
    many = [process(number, f"/new/{number}", START_S) for number in range(MOST_APPLICATIONS)]
    watch.observe(many, {}, START_S + 10, 10.0)
    assert len(watch.usage.records) == MOST_APPLICATIONS
    assert "/old" not in watch.usage.records


def test_usage_survives_a_restart_without_counting_a_start_again(tmp_path: Path) -> None:
    editor = process(7, EDITOR, START_S - 50)
    first = ApplicationWatch(UsageState({}))
    first.observe([editor], {}, START_S, 0.0)
    first.observe([editor], {}, START_S + 120, 120.0)
    write_usage_state(tmp_path / "state.json", first.encode())
    second = ApplicationWatch(read_usage_state(tmp_path / "state.json"))
    assert facts(second, [editor], START_S + 500, 0.0) == {EDITOR: (1, 2, True)}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.json"]


def test_a_clock_that_is_not_set_yet_changes_neither_starts_nor_times(tmp_path: Path) -> None:
    first = ApplicationWatch(UsageState({}))
    first.observe([process(7, EDITOR, START_S - 50)], {}, START_S, 0.0)
    write_usage_state(tmp_path / "state.json", first.encode())
    second = ApplicationWatch(read_usage_state(tmp_path / "state.json"))
    assert second.usage == first.usage
    assert facts(second, [process(7, EDITOR, 1.0)], 100.0, 60.0) == {EDITOR: (1, 1, True)}
    assert (second.usage.records[EDITOR].last_access, second.usage.observed_at) == (START_S, START_S)
    assert facts(second, [process(7, EDITOR, START_S - 50)], START_S + 86_400, 60.0) == {EDITOR: (1, 2, True)}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"{}",
        b"null",
        b"[]",
        b'{"a":"another program\'s"}',
        b'{"a":"caf\xe9"}',
        b'{"looked_at":1790000000}',
        b'{"records":[]}',
        b'{"records":null}',
        b'{"records":"all"}',
        b"[" * 100_000,
        b" " * LONGEST_STATE_BYTES + b"{}",
    ],
)
def test_a_state_file_that_cannot_be_read_starts_from_zero_and_is_kept(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state.json").write_bytes(content)
    with capture_logs() as logs:
        assert read_usage_state(tmp_path / "state.json").records == {}
    assert [(log["log_level"], log["event"].partition(":")[0]) for log in logs] == [("warning", "state file damaged")]
    assert (tmp_path / "state.json.damaged").read_bytes() == content
    assert not (tmp_path / "state.json").exists()


def test_bytes_that_are_not_utf8_in_a_field_of_a_later_agent_leave_the_records_and_the_file_is_kept(
    tmp_path: Path,
) -> None:
    content = b'{"records":{"/good":{"seconds":60,"starts":2,"last_access":7}},"later":"caf\xe9"}'
    (tmp_path / "state.json").write_bytes(content)
    assert read_usage_state(tmp_path / "state.json").records == {"/good": UsageRecord(60.0, 2, 7.0)}
    assert (tmp_path / "state.json.damaged").read_bytes() == content


def test_only_a_damaged_record_is_lost(tmp_path: Path) -> None:
    content = (
        b'{"records":{"/caf\xe9":{"seconds":9,"starts":1,"last_access":5},"/bad":{"seconds":"x"},"/worse":7,'
        b'"/good":{"seconds":60,"starts":2,"last_access":7}},"looked_at":null}'
    )
    (tmp_path / "state.json").write_bytes(content)
    usage = read_usage_state(tmp_path / "state.json")
    assert usage.records == {"/caf\ufffd": UsageRecord(9.0, 1, 5.0), "/good": UsageRecord(60.0, 2, 7.0)}
    assert (tmp_path / "state.json.damaged").read_bytes() == content


@pytest.mark.parametrize(
    ("record", "read"),
    [
        ('{"last_access":1e18}', UsageRecord(0.0, 0, LATEST_SECONDS)),
        ('{"last_access":-1e18,"seconds":-5,"starts":-7}', UsageRecord(0.0, 0, 0.0)),
        ('{"seconds":1e300,"starts":9007199254740993}', UsageRecord(MOST_SECONDS, MOST_STARTS, 0.0)),
    ],
)
def test_a_value_that_no_agent_writes_is_bounded(tmp_path: Path, record: str, read: UsageRecord) -> None:
    (tmp_path / "state.json").write_text(f'{{"records":{{"/x":{record}}},"looked_at":1e18}}')
    assert read_usage_state(tmp_path / "state.json") == UsageState({"/x": read}, LATEST_SECONDS)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
RECORDS = st.fixed_dictionaries({}, optional={"seconds": JSON, "starts": JSON, "last_access": JSON})
STATES = st.fixed_dictionaries(
    {}, optional={"records": JSON | st.dictionaries(st.text(max_size=5), JSON | RECORDS), "looked_at": JSON}
)


@given(
    st.binary()
    | st.builds(lambda state: json.dumps(state).encode(), STATES | JSON)
    | st.builds(
        lambda state, at, byte: cut_in(json.dumps(state).encode(), at, byte), STATES, st.integers(0), st.binary()
    )
)
def test_any_bytes_in_the_state_file_give_a_message_that_can_be_stored(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "state.json")
        path.write_bytes(content)
        watch = ApplicationWatch(read_usage_state(path))
        applications = watch.observe([process(7, EDITOR, START_S - 50)], {}, START_S + 60, 60.0)
        write_usage_state(path, watch.encode())
        assert read_usage_state(path) == watch.usage
    encoded = msgspec.json.encode({"data": {"system": SYSTEM, "applications": applications}, "type": "metrics"})
    decoded = decode(encoded)
    assert (decoded.refusals, decoded.repairs) == ([], [])
    assert all(app.last_access is not None for app in decoded.metrics.data.applications or [])


SYSTEM = {"cpu": {}, "memory": {"total_kb": 1, "used_kb": 1, "available_kb": 0}}


def cut_in(content: bytes, at: int, bytes_there: bytes) -> bytes:
    """The content with other bytes somewhere."""
    at %= len(content) + 1
    return content[:at] + bytes_there + content[at + len(bytes_there) :]


def test_without_a_file_the_usage_is_empty(tmp_path: Path) -> None:
    assert read_usage_state(tmp_path / "none.json") == UsageState({})


def test_a_disk_that_is_full_keeps_the_old_state(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_bytes(b"{}")
    (tmp_path / "state.json.new").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        write_usage_state(tmp_path / "state.json", b'{"records":{}}')
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("state.json", b"{}")]
