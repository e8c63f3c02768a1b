"""Tasks, their order of ending, and retries."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from guestd.core.errors import RowsRejected, SourceLost, StoreUnavailable
from guestd.core.tasks import (
    Backoff,
    TaskCoroutine,
    UnexpectedExit,
    run_until,
    run_with_retry,
    unwrapping_task_group,
    warn_once,
)

DEADLINE_SECONDS = 5
JITTER = (0.7, 1.3)


async def never_returning(diary: list[str], name: str) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        # Ending takes a moment, as closing a connection does.
        await asyncio.sleep(0)
        diary.append(f"{name} ended")


async def failing() -> None:
    await asyncio.sleep(0)
    raise LookupError("a bug")


async def returning() -> None:
    await asyncio.sleep(0)


@asynccontextmanager
async def running(coroutine: Coroutine[Any, Any, None]) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(coroutine)
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Daemon:
    """The arguments of `run_until`: a drain that ends after the seal, and a diary of the order in which tasks end."""

    def __init__(self, grace_seconds: float = DEADLINE_SECONDS) -> None:
        self.diary: list[str] = []
        self.stop = asyncio.Event()
        self.sealed = asyncio.Event()
        self.grace_seconds = grace_seconds

    async def drain(self) -> None:
        try:
            await self.sealed.wait()
        finally:
            self.diary.append("drain ended")

    def seal(self) -> None:
        self.diary.append("sealed")
        self.sealed.set()

    async def run(self, **more: dict[str, TaskCoroutine]) -> None:
        await run_until(
            self.stop,
            inputs={"input": never_returning(self.diary, "input")} | more.get("inputs", {}),
            drains={"drain": self.drain()} | more.get("drains", {}),
            background={"background": never_returning(self.diary, "background")} | more.get("background", {}),
            seal=self.seal,
            grace_seconds=lambda: self.grace_seconds,
        )


@pytest.mark.asyncio
async def test_stopping_ends_inputs_then_drains_then_background_tasks() -> None:
    daemon = Daemon()
    async with running(daemon.run()) as task:
        await asyncio.sleep(0.001)
        assert daemon.diary == []
        daemon.stop.set()
        await task
    assert daemon.diary == ["input ended", "sealed", "drain ended", "background ended"]


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", ["inputs", "drains", "background"])
async def test_a_bug_in_any_task_ends_all_and_reaches_the_caller(kind: str) -> None:
    daemon = Daemon()
    async with running(daemon.run(**{kind: {"buggy": failing()}})) as task:
        with pytest.raises(ExceptionGroup) as caught:
            await task
    assert [str(exc) for exc in caught.value.exceptions] == ["a bug"]
    assert sorted(daemon.diary) == ["background ended", "drain ended", "input ended"]


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", ["inputs", "background"])
async def test_an_eternal_task_that_returns_is_an_error_with_its_name(kind: str) -> None:
    daemon = Daemon()
    async with running(daemon.run(**{kind: {"quitter": returning()}})) as task:
        with pytest.raises(ExceptionGroup) as caught:
            await task
    (exc,) = caught.value.exceptions
    assert isinstance(exc, UnexpectedExit)
    assert str(exc) == "quitter"


@pytest.mark.asyncio
async def test_the_grace_period_is_read_when_it_begins() -> None:
    daemon = Daemon()
    async with running(daemon.run(drains={"hung": never_returning(daemon.diary, "hung")})) as task:
        await asyncio.sleep(0.001)
        daemon.grace_seconds = 0.01
        daemon.stop.set()
        await task
    assert "hung ended" in daemon.diary


@pytest.mark.asyncio
async def test_a_drain_that_hangs_is_cancelled_after_the_grace_period_and_logged() -> None:
    daemon = Daemon(grace_seconds=0.01)
    with capture_logs() as logs:
        async with running(daemon.run(drains={"hung": never_returning(daemon.diary, "hung")})) as task:
            await asyncio.sleep(0.001)
            daemon.stop.set()
            await task
    assert [entry["tasks"] for entry in logs] == [["hung"]]
    assert daemon.diary.index("drain ended") < daemon.diary.index("hung ended")


@pytest.mark.asyncio
async def test_an_input_that_fails_while_it_is_stopped_is_reported_and_nothing_hangs() -> None:
    async def clumsy() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise LookupError("while closing")

    daemon = Daemon()
    async with running(daemon.run(inputs={"clumsy": clumsy()})) as task:
        await asyncio.sleep(0.001)
        daemon.stop.set()
        with pytest.raises(ExceptionGroup) as caught:
            await task
    assert [str(exc) for exc in caught.value.exceptions] == ["while closing"]
    assert "background ended" in daemon.diary


@pytest.mark.asyncio
async def test_cancelling_from_outside_ends_all() -> None:
    daemon = Daemon()
    async with running(daemon.run()) as task:
        await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert sorted(daemon.diary) == ["background ended", "drain ended", "input ended"]


def quick() -> Backoff:
    return Backoff(first_seconds=0.0001, cap_seconds=0.001)


def attempts(outcomes: list[Exception | None]) -> Callable[[], Coroutine[Any, Any, None]]:
    async def attempt() -> None:
        outcome = outcomes.pop(0)
        if outcome is not None:
            raise outcome

    return attempt


@pytest.mark.asyncio
async def test_an_expected_error_is_retried_until_the_attempt_returns() -> None:
    outcomes: list[Exception | None] = [SourceLost("one"), SourceLost("two"), None, SourceLost("never")]
    reported: list[str] = []
    async with asyncio.timeout(DEADLINE_SECONDS):
        await run_with_retry(
            attempts(outcomes),
            expected=SourceLost,
            backoff=quick(),
            on_failure=lambda exc, _: reported.append(str(exc)),
        )
    assert reported == ["one", "two"]
    assert len(outcomes) == 1


@pytest.mark.asyncio
async def test_an_unexpected_error_is_raised_at_once() -> None:
    reported: list[Exception] = []
    with pytest.raises(LookupError):
        await run_with_retry(
            attempts([LookupError()]),
            expected=SourceLost,
            backoff=quick(),
            on_failure=lambda exc, _: reported.append(exc),
        )
    assert reported == []


@pytest.mark.asyncio
async def test_the_delay_is_passed_to_on_failure_and_grows() -> None:
    reported: list[float] = []
    losses: list[Exception | None] = [SourceLost("")] * 4
    async with asyncio.timeout(DEADLINE_SECONDS):
        await run_with_retry(
            attempts([*losses, None]),
            expected=SourceLost,
            backoff=Backoff(first_seconds=0.0001, cap_seconds=10),
            on_failure=lambda _, seconds: reported.append(seconds),
        )
    for number, seconds in enumerate(reported):
        assert 0.0001 * 2**number * JITTER[0] <= seconds <= 0.0001 * 2**number * JITTER[1]


@pytest.mark.asyncio
async def test_a_healthy_attempt_is_retried_after_the_first_delay() -> None:
    reported: list[float] = []
    losses: list[Exception | None] = [SourceLost("")] * 6
    async with asyncio.timeout(DEADLINE_SECONDS):
        await run_with_retry(
            attempts([*losses, None]),
            expected=SourceLost,
            # Every attempt is healthy.
            backoff=Backoff(first_seconds=0.0001, cap_seconds=10, healthy_seconds=0),
            on_failure=lambda _, seconds: reported.append(seconds),
        )
    assert max(reported) <= 0.0001 * JITTER[1]


@pytest.mark.asyncio
async def test_cancelling_while_waiting_for_the_next_attempt_ends_it() -> None:
    reported = asyncio.Event()
    backoff = Backoff(first_seconds=1000, cap_seconds=1000)
    coroutine = run_with_retry(
        attempts([SourceLost("")]), expected=SourceLost, backoff=backoff, on_failure=lambda *_: reported.set()
    )
    async with running(coroutine) as task:
        await reported.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@given(st.lists(st.floats(0, 59.9), min_size=1, max_size=60))
def test_the_delay_doubles_up_to_its_cap_with_jitter(durations: list[float]) -> None:
    backoff = Backoff(first_seconds=0.25, cap_seconds=30)
    for number, lived_seconds in enumerate(durations):
        plain = min(30.0, 0.25 * 2.0**number)
        assert plain * JITTER[0] <= backoff.next_delay_seconds(lived_seconds) <= plain * JITTER[1]


def test_a_healthy_minute_resets_the_delay() -> None:
    backoff = Backoff(first_seconds=0.25, cap_seconds=30)
    for _ in range(100):
        backoff.next_delay_seconds(0)
    assert backoff.next_delay_seconds(59.9) >= 30 * JITTER[0]
    assert backoff.next_delay_seconds(60) <= 0.25 * JITTER[1]
    assert backoff.next_delay_seconds(0) <= 0.5 * JITTER[1]


@pytest.mark.asyncio
async def test_a_drain_that_returns_before_the_seal_is_an_error() -> None:
    daemon = Daemon()
    async with running(daemon.run(drains={"writer": returning()})) as task:
        with pytest.raises(ExceptionGroup) as failure:
            await task
    assert failure.group_contains(UnexpectedExit, match="writer")


@pytest.mark.asyncio
async def test_a_stop_that_came_before_the_start_ends_everything_in_order() -> None:
    daemon = Daemon()
    daemon.stop.set()
    async with running(daemon.run()) as task:
        await task
    assert daemon.diary == ["input ended", "sealed", "drain ended", "background ended"]


async def failing_together(*failures: Exception) -> None:
    async def fail(exc: Exception) -> None:
        raise exc

    async with unwrapping_task_group() as tasks:
        for exc in failures:
            tasks.create_task(fail(exc))


@pytest.mark.asyncio
@pytest.mark.parametrize("expected", [SourceLost("lost"), StoreUnavailable("away"), RowsRejected("never")])
async def test_a_bug_beside_an_error_that_is_retried_is_the_one_that_is_raised(expected: Exception) -> None:
    with pytest.raises(LookupError, match="a bug"):
        await failing_together(expected, LookupError("a bug"))


@pytest.mark.asyncio
async def test_of_errors_that_are_all_retried_the_first_is_raised() -> None:
    with pytest.raises(SourceLost, match="one"):
        await failing_together(SourceLost("one"), StoreUnavailable("two"))


def test_an_error_that_is_retried_is_logged_again_only_when_it_changes() -> None:
    with capture_logs() as logs:
        on_failure = warn_once("store lost", host="one")
        for error in ("refused", "refused", "no route", "refused"):
            on_failure(StoreUnavailable(error), 0.25)
    assert [(entry["event"], entry["host"], entry["error"]) for entry in logs] == [
        ("store lost", "one", "refused"),
        ("store lost", "one", "no route"),
        ("store lost", "one", "refused"),
    ]
