"""Calls that hang: abandoned at their deadline, not made again before they have returned, and bounded."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
from tools.harness.waiting import eventually

from guestd.agent.deadlines import MOST_HANGING, MOST_NEW_HANGING, Deadlines, NoAnswer
from guestd.agent.parts import LOG_SECONDS, SAMPLE_SECONDS, Parts

# For calls that hang, and for those that return.
SHORT_SECONDS = 0.05
LONG_SECONDS = 30.0


class Hanging:
    """Readers of numbers; those of `hangs` do not return before `release`."""

    def __init__(self) -> None:
        self.hangs: set[int] = set()
        self.read_numbers: list[int] = []
        self._released = threading.Event()

    def read(self, number: int) -> int:
        self.read_numbers.append(number)
        if number in self.hangs:
            self._released.wait()
        if number < 0:
            raise ValueError("below zero")
        return 10 * number

    def release(self) -> None:
        self._released.set()


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    hanging = Hanging()
    yield hanging
    hanging.release()


def outcomes(
    deadlines: Deadlines, numbers: list[int], read: Callable[[int], int], seconds: float = SHORT_SECONDS
) -> dict[int, int | str]:
    found = deadlines.each("kind", numbers, read, seconds)
    return {key: type(value).__name__ if isinstance(value, Exception) else value for key, value in found.items()}


def test_each_key_fails_alone(hanging: Hanging) -> None:
    hanging.hangs = {2}
    deadlines = Deadlines()
    assert outcomes(deadlines, [2], hanging.read) == {2: "NoAnswer"}
    found = outcomes(deadlines, [1, 2, -3, 4], hanging.read, LONG_SECONDS)
    assert found == {1: 10, 2: "NoAnswer", -3: "ValueError", 4: 40}


def test_reading_continues_after_a_call_that_hangs(hanging: Hanging) -> None:
    hanging.hangs = {2}
    # Three times the deadline of the others: a call that returns has half a second.
    found = outcomes(Deadlines(), [1, 2, 3], hanging.read, 0.5)
    assert found == {1: 10, 2: "NoAnswer", 3: 30}


def test_a_call_that_hangs_is_made_again_when_it_has_returned(hanging: Hanging) -> None:
    hanging.hangs = {2}
    deadlines = Deadlines()
    assert outcomes(deadlines, [2], hanging.read) == {2: "NoAnswer"}
    for _ in range(2):
        assert outcomes(deadlines, [1, 2], hanging.read, LONG_SECONDS) == {1: 10, 2: "NoAnswer"}
    assert hanging.read_numbers == [2, 1, 1]
    hanging.release()
    eventually(lambda: deadlines.hanging("kind") == 0, "it returns", 10)
    assert outcomes(deadlines, [1, 2], hanging.read, LONG_SECONDS) == {1: 10, 2: 20}


def test_keys_of_a_group_hang_together_and_those_of_another_are_read(hanging: Hanging) -> None:
    hanging.hangs = {1}
    deadlines = Deadlines()
    deadlines.each("kind", [1], hanging.read, SHORT_SECONDS, group=lambda number: number % 10)
    found = deadlines.each("kind", [1, 11, 21, 2], hanging.read, LONG_SECONDS, group=lambda number: number % 10)
    assert [key for key, value in found.items() if isinstance(value, NoAnswer)] == [1, 11, 21]
    assert hanging.read_numbers == [1, 2]


def test_calls_that_hang_are_bounded_in_one_run_and_in_all(hanging: Hanging) -> None:
    numbers = list(range(2 * MOST_HANGING))
    hanging.hangs = set(numbers)
    deadlines = Deadlines()
    for run in range(1, 2 + MOST_HANGING // MOST_NEW_HANGING):
        assert set(outcomes(deadlines, numbers, hanging.read).values()) == {"NoAnswer"}
        assert deadlines.hanging("kind") == min(run * MOST_NEW_HANGING, MOST_HANGING)


def test_one_call_gives_its_result_its_exception_or_no_answer(hanging: Hanging) -> None:
    deadlines = Deadlines()
    assert deadlines.call("kind", lambda: hanging.read(1), LONG_SECONDS) == 10
    with pytest.raises(ValueError, match="below zero"):
        deadlines.call("kind", lambda: hanging.read(-1), LONG_SECONDS)
    hanging.hangs = {2}
    with pytest.raises(NoAnswer, match="no answer within"):
        deadlines.call("kind", lambda: hanging.read(2), SHORT_SECONDS)
    with pytest.raises(NoAnswer, match="an earlier call has not returned"):
        deadlines.call("kind", lambda: hanging.read(1), SHORT_SECONDS)
    assert deadlines.call("other kind", lambda: hanging.read(1), LONG_SECONDS) == 10


def fail(reason: str) -> None:
    raise ValueError(reason)


def test_a_part_that_fails_is_named_in_its_sample_only_and_logged_once(capsys: pytest.CaptureFixture[str]) -> None:
    now_seconds = 0.0
    parts = Parts(Deadlines(), lambda: now_seconds)
    for reason in ("odd", "odd", "odd", "very odd", "very odd"):
        assert parts.read("disks", lambda reason=reason: fail(reason), None) is None  # type: ignore[misc]
        assert parts.read("cpu", lambda: 7, 0) == 7
        assert [(each.part, each.reason) for each in parts.end_sample()] == [("disks", f"ValueError: {reason}")]
        now_seconds += 0.4 * LOG_SECONDS
    assert parts.read("disks", lambda: 3, 0) == 3
    assert parts.end_sample() == []
    logged = capsys.readouterr().out
    assert logged.count("part of the sample failed") == 2
    assert logged.count("very odd") == 1
    assert logged.count("part of the sample is read again") == 1
    assert "failed_samples=5" in logged


def test_a_part_that_fails_now_and_then_is_logged_as_often_as_one_that_always_does(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now_seconds = 0.0
    parts = Parts(Deadlines(), lambda: now_seconds)
    for number in range(100):
        if number % 2 == 0:
            parts.fail("disks", f"odd {number}")
        parts.end_sample()
        now_seconds += LOG_SECONDS / 50
    logged = capsys.readouterr().out
    assert logged.count("part of the sample failed") == logged.count("part of the sample is read again") == 2


def test_a_sample_that_takes_too_long_is_given_without_the_parts_that_are_left() -> None:
    now_seconds = 0.0
    parts = Parts(Deadlines(), lambda: now_seconds)
    assert parts.read("cpu", lambda: 7, 0) == 7
    now_seconds += SAMPLE_SECONDS
    assert parts.read("disks", lambda: 7, 0) == 0
    assert parts.read_each("files", [1], lambda number: number, LONG_SECONDS) == {}
    assert [each.part for each in parts.end_sample()] == ["disks", "files"]
    assert parts.read("disks", lambda: 7, 0) == 7


def test_without_a_thread_for_it_a_call_is_not_made() -> None:
    program = """
import resource, threading
from guestd.agent.deadlines import Deadlines, NoAnswer
threading.stack_size(2**30)
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
try:
    Deadlines().call("file", lambda: 7, 30.0)
except NoAnswer as exc:
    print(exc)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("no call was made: can't start new thread\n", "")


def test_a_part_of_many_is_named_with_the_first_that_failed() -> None:
    parts = Parts(Deadlines())
    assert parts.read_each("files", [1, -2, -3], Hanging().read, LONG_SECONDS) == {1: 10}
    [failed] = parts.end_sample()
    assert failed.reason == "2 of 3, the first is -2: ValueError: below zero"
