"""A task that fails costs only itself: it is logged, counted, reported and started again."""

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from guestd.app import _note_bugs_outside_of_tasks
from guestd.core.errors import ConfigError
from guestd.core.supervision import Supervisor
from guestd.core.tasks import Backoff, TaskFunction

pytestmark = pytest.mark.asyncio
DEADLINE_SECONDS = 5
BUGS = [LookupError("a bug"), RecursionError("too deep"), MemoryError(), ExceptionGroup("", [LookupError("a bug")])]


class Supervised:
    """A supervisor, what it has counted, and how many tasks of a name fail."""

    def __init__(self, healthy_seconds: float = 1000.0) -> None:
        self.failures: Counter[str] = Counter()
        self.failing: dict[str, int] = {}
        self.supervisor = Supervisor(
            count_failure=lambda name: self.failures.update([name]),
            show_failing=self.failing.__setitem__,
            healthy_seconds=healthy_seconds,
        )

    @asynccontextmanager
    async def running(self, name: str, task: TaskFunction, **more: Any) -> AsyncIterator[asyncio.Task[None]]:
        quick = Backoff(first_seconds=0.0001, cap_seconds=0.001)
        running = asyncio.create_task(self.supervisor.run(name, task, backoff=quick, **more))
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                yield running
        finally:
            running.cancel()
            await asyncio.wait([running], timeout=DEADLINE_SECONDS)
            assert running.done()


async def until(is_so: Callable[[], bool]) -> None:
    while not is_so():  # noqa: ASYNC110 -- what is waited for sets no event
        await asyncio.sleep(0)


def failing(*errors: BaseException) -> TaskFunction:
    """A task that raises one error after the other, and then runs."""
    left = list(errors)

    async def task() -> None:
        await asyncio.sleep(0)
        if left:
            raise left.pop(0)
        await asyncio.Event().wait()

    return task


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: type(bug).__name__)
async def test_a_task_that_fails_is_started_again_counted_and_reported_with_one_traceback(bug: Exception) -> None:
    supervised = Supervised()
    with capture_logs() as logs:
        async with supervised.running("rollups", failing(*[bug] * 5)):
            await until(lambda: supervised.failures["rollups"] == 5)
            assert supervised.failing == {"rollups": 1}
            (problem,) = supervised.supervisor.list_problems()
    (entry,) = logs
    assert (entry["task"], entry["exc_info"], entry["log_level"]) == ("rollups", bug, "error")
    assert problem.startswith("rollups: failed, retrying: ")
    assert "a bug" in problem or type(bug).__name__ in problem


async def test_a_task_that_runs_long_enough_is_healthy_again() -> None:
    supervised = Supervised(healthy_seconds=0.01)
    with capture_logs() as logs:
        async with supervised.running("rollups", failing(LookupError("a bug"))):
            await until(lambda: supervised.failing.get("rollups") == 1)
            await until(lambda: supervised.failing["rollups"] == 0)
            assert supervised.supervisor.list_problems() == []
    assert logs[-1] == {"event": "task runs again", "task": "rollups", "log_level": "info"}


async def test_a_task_that_returns_is_started_again() -> None:
    supervised = Supervised()

    async def task() -> None:
        await asyncio.sleep(0)

    async with supervised.running("watchdog", task):
        await until(lambda: supervised.failures["watchdog"] == 2)
        assert supervised.supervisor.list_problems() == ["watchdog: failed, retrying: UnexpectedExit: it returned"]


async def test_a_task_may_return_when_its_work_is_done() -> None:
    supervised, is_done = Supervised(), False

    async def task() -> None:
        await asyncio.sleep(0)

    async with supervised.running("writer", task, may_return=lambda: is_done) as running:
        await until(lambda: supervised.failures["writer"] == 1)
        is_done = True
        await running
    assert supervised.supervisor.list_problems() == []


async def test_a_cancellation_from_within_a_task_is_a_failure() -> None:
    supervised = Supervised()
    async with supervised.running("mqtt", failing(asyncio.CancelledError(), asyncio.CancelledError())) as running:
        await until(lambda: supervised.failures["mqtt"] == 2)
        assert not running.done()


@pytest.mark.parametrize("ending", [None, LookupError("while closing")])
async def test_a_task_that_is_cancelled_ends_whatever_it_does_about_it(ending: Exception | None) -> None:
    supervised, has_begun = Supervised(), asyncio.Event()

    async def task() -> None:
        has_begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if ending is not None:
                raise ending from None

    async with supervised.running("mqtt", task) as running:
        await has_begun.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert supervised.failures["mqtt"] == (ending is not None)


async def test_a_task_is_cancelled_while_it_waits_for_its_next_start() -> None:
    supervised = Supervised()
    slow = Backoff(first_seconds=1000, cap_seconds=1000)
    running = asyncio.create_task(supervised.supervisor.run("mqtt", failing(LookupError()), backoff=slow))
    await until(lambda: supervised.failures["mqtt"] == 1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert supervised.failing == {"mqtt": 0}


async def test_what_makes_ingest_impossible_reaches_the_caller() -> None:
    supervised = Supervised()
    task = failing(LookupError("a bug"), ConfigError("change it"))
    async with supervised.running("writer", task, ends_with=(ConfigError,)) as running:
        with pytest.raises(ConfigError, match="change it"):
            await running
    assert supervised.failures["writer"] == 1


async def test_a_fault_of_the_configuration_ends_no_other_task() -> None:
    supervised = Supervised()
    async with supervised.running("rollups", failing(ConfigError("change it"))):
        await until(lambda: supervised.failures["rollups"] == 1)


async def test_tasks_of_one_name_are_one_problem_that_says_how_many() -> None:
    supervised = Supervised()
    with capture_logs() as logs:
        async with (
            supervised.running("channel", failing(LookupError("first")), subject="a"),
            supervised.running("channel", failing(LookupError("second")), subject="b"),
            supervised.running("channel", failing(), subject="c"),
        ):
            await until(lambda: supervised.failing.get("channel") == 2)
            assert supervised.supervisor.list_problems() == [
                "channel of a (and 1 more): failed, retrying: LookupError: first"
            ]
    assert [entry["subject"] for entry in logs] == ["a"]
    assert supervised.failing == {"channel": 0}


async def test_a_callback_that_fails_is_counted_and_its_caller_goes_on() -> None:
    supervised, seen = Supervised(), []

    def callback(value: int) -> None:
        seen.append(value)
        raise LookupError("a bug")

    guarded = supervised.supervisor.guard("callback", callback)
    with capture_logs() as logs:
        guarded(1)
        guarded(2)
    assert seen == [1, 2]
    assert supervised.failures["callback"] == 2
    assert [entry["task"] for entry in logs] == ["callback"]


async def test_what_callbacks_and_threads_raise_is_logged_and_counted() -> None:
    supervised = Supervised()
    hook = threading.excepthook

    def fail() -> None:
        raise LookupError("a bug")

    try:
        _note_bugs_outside_of_tasks(supervised.supervisor)
        with capture_logs() as logged:
            asyncio.get_running_loop().call_soon(fail)
            thread = threading.Thread(target=fail, name="a thread")
            thread.start()
            async with asyncio.timeout(DEADLINE_SECONDS):
                await until(lambda: len(supervised.failures) == 2)
            thread.join()
    finally:
        threading.excepthook = hook
    assert supervised.failures == {"callback": 1, "thread": 1}
    assert sorted((each["task"], type(each["exc_info"])) for each in logged) == [
        ("callback", LookupError),
        ("thread", LookupError),
    ]
    assert {each.get("thread") for each in logged} == {None, "a thread"}
