"""The use of applications, with the clock as an argument."""

from __future__ import annotations

from pathlib import Path

import pytest

from guestd.agent.applications import (
    MOST_APPLICATIONS,
    ApplicationWatch,
    UsageState,
    read_usage_state,
    write_usage_state,
)
from guestd.agent.payload import Process

EDITOR = "/opt/editor/bin/editor"
START_S = 1_790_000_000.0


def process(number: int, executable: str | None, start_s: float) -> Process:
    return Process(number, 1, "x", executable, None, None, 1, "Running", int(start_s), None, None)


def facts(
    watch: ApplicationWatch, processes: list[Process], now_s: float, elapsed: float
) -> dict[str, tuple[int, int, bool]]:
    found = watch.observe(processes, now_s, elapsed)
    return {known.exe_path: (known.access_count, known.usage_minutes, known.is_active) for known in found}


def test_minutes_are_the_time_between_samples_in_which_a_process_ran() -> None:
    watch, editor = ApplicationWatch(UsageState()), process(7, EDITOR, START_S - 50)
    assert facts(watch, [editor], START_S, 0.0) == {EDITOR: (1, 0, True)}
    assert facts(watch, [editor], START_S + 90, 90.0) == {EDITOR: (1, 1, True)}
    assert facts(watch, [], START_S + 180, 90.0) == {EDITOR: (1, 1, False)}
    assert facts(watch, [editor], START_S + 270, 90.0) == {EDITOR: (1, 3, True)}


def test_two_processes_of_one_program_are_one_application_started_twice() -> None:
    watch = ApplicationWatch(UsageState())
    processes = [process(7, EDITOR, START_S - 50), process(8, EDITOR, START_S - 40)]
    assert facts(watch, processes, START_S, 60.0) == {EDITOR: (2, 1, True)}


def test_a_start_is_counted_once_even_in_the_second_of_a_sample() -> None:
    watch = ApplicationWatch(UsageState())
    watch.observe([], START_S + 0.5, 0.0)
    editor = process(7, EDITOR, START_S + 0.9)
    counts = [facts(watch, [editor], START_S + moment, 1.0)[EDITOR][0] for moment in (0.95, 2.0, 3.0)]
    assert counts == [0, 1, 1]


def test_a_process_without_an_executable_is_no_application() -> None:
    assert ApplicationWatch(UsageState()).observe([process(2, None, START_S)], START_S, 1.0) == []


def test_a_program_that_cannot_be_found_any_more_has_no_size_but_a_name() -> None:
    [application] = ApplicationWatch(UsageState()).observe([process(7, EDITOR, START_S - 50)], START_S, 0.0)
    assert (application.name, application.file_size, application.last_modified) == ("editor", None, None)
    assert application.last_access == "2026-09-21T14:13:20.000+00:00"


def test_the_longest_unused_are_forgotten_first() -> None:
    watch = ApplicationWatch(UsageState())
    watch.observe([process(1, "/old", START_S - 9)], START_S, 0.0)
    many = [process(number, f"/new/{number}", START_S) for number in range(MOST_APPLICATIONS)]
    watch.observe(many, START_S + 10, 10.0)
    assert len(watch.usage.records) == MOST_APPLICATIONS
    assert "/old" not in watch.usage.records


def test_usage_survives_a_restart_without_counting_a_start_again(tmp_path: Path) -> None:
    editor = process(7, EDITOR, START_S - 50)
    first = ApplicationWatch(UsageState())
    first.observe([editor], START_S, 0.0)
    first.observe([editor], START_S + 120, 120.0)
    write_usage_state(tmp_path / "state.json", first.usage)
    second = ApplicationWatch(read_usage_state(tmp_path / "state.json"))
    assert facts(second, [editor], START_S + 500, 0.0) == {EDITOR: (1, 2, True)}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.json"]


@pytest.mark.parametrize("content", [b"", b"{", b'{"records":[]}'])
def test_a_state_file_that_cannot_be_read_starts_from_zero(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state.json").write_bytes(content)
    assert read_usage_state(tmp_path / "state.json") == UsageState()


def test_without_a_file_the_usage_is_empty(tmp_path: Path) -> None:
    assert read_usage_state(tmp_path / "none.json") == read_usage_state(None) == UsageState()
