"""Retry, backoff, and the order in which tasks start and stop.

Stopping is ordered: first the inputs, then the drains, then the background tasks. A task that should never return and
does is an error. An exception in any task ends all of them and reaches `__main__`; `guestd.core.supervision` lets none
through but those that make ingest impossible.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import structlog

from guestd.core.errors import RowsRejected, SourceLost, StoreUnavailable

log = structlog.get_logger()

TaskCoroutine = Coroutine[Any, Any, None]
TaskFunction = Callable[[], TaskCoroutine]
# Longer than any backoff.
REPEAT_SECONDS = 300.0
# Failures of a peer, not of guestd: callers retry them.
RETRIED = (SourceLost, StoreUnavailable, RowsRejected)


class UnexpectedExit(Exception):
    """A task that should never return has returned: a bug."""


@dataclass(slots=True)
class Backoff:
    """Exponential delays with jitter and a cap; reset after a healthy minute."""

    first_seconds: float = 0.25
    cap_seconds: float = 30.0
    healthy_seconds: float = 60.0
    failures: int = 0

    def next_delay_seconds(self, lived_seconds: float) -> float:
        """Seconds to wait after an attempt that lasted `lived_seconds`."""
        if lived_seconds >= self.healthy_seconds:
            self.failures = 0
        delay_seconds = min(self.cap_seconds, self.first_seconds * float(2**self.failures))
        self.failures = min(self.failures + 1, 32)
        return delay_seconds * random.uniform(0.7, 1.3)  # noqa: S311 -- jitter, not a secret


async def run_with_retry(
    attempt: Callable[[], Awaitable[None]],
    *,
    expected: type[Exception] | tuple[type[Exception], ...],
    backoff: Backoff,
    on_failure: Callable[[Exception, float], None],
) -> None:
    """Run `attempt` until it returns. After an `expected` error call `on_failure(error, delay_seconds)`, wait, repeat.

    One attempt is the lifetime of one connection, so reconnecting needs no state. Other exceptions propagate, in guestd
    to the supervisor, which logs their tracebacks (`guestd.core.supervision`).
    """
    while True:
        started = time.monotonic()
        try:
            return await attempt()
        except expected as exc:
            delay_seconds = backoff.next_delay_seconds(time.monotonic() - started)
            on_failure(exc, delay_seconds)
        await asyncio.sleep(delay_seconds)


def warn_once(event: str, **details: str) -> Callable[[Exception, float], None]:
    """An `on_failure` of `run_with_retry` that logs an error once, until another one occurs.

    An error that has not occurred for REPEAT_SECONDS is logged again: in between an attempt has succeeded, or taken
    long to fail.
    """
    last_error, last_at = "", float("-inf")

    def on_failure(exc: Exception, _: float) -> None:
        nonlocal last_error, last_at
        error, now = str(exc), time.monotonic()
        if error != last_error or now - last_at > REPEAT_SECONDS:
            log.warning(event, error=error, **details)
        last_error, last_at = error, now

    return on_failure


async def wait_for_event(event: asyncio.Event, timeout_seconds: float | None) -> None:
    """Wait until the event is set, at most `timeout_seconds`; None: however long it takes."""
    try:
        async with asyncio.timeout(timeout_seconds):
            await event.wait()
    except TimeoutError:
        pass


@asynccontextmanager
async def unwrapping_task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group that raises one failure itself instead of an exception group: a bug if there is one, else the first.

    Beside a lost connection, which the caller retries, a bug would otherwise never be seen.
    """
    try:
        async with asyncio.TaskGroup() as tasks:
            yield tasks
    except ExceptionGroup as group:
        failures = list(_list_leaves(group))
        raise next((each for each in failures if not isinstance(each, RETRIED)), failures[0]) from group


def _list_leaves(group: ExceptionGroup[Exception]) -> Iterator[Exception]:
    for each in group.exceptions:
        if isinstance(each, ExceptionGroup):
            yield from _list_leaves(each)
        else:
            yield each


async def run_until(
    stop: asyncio.Event,
    *,
    inputs: Mapping[str, TaskCoroutine],
    drains: Mapping[str, TaskCoroutine],
    background: Mapping[str, TaskCoroutine],
    seal: Callable[[], None],
    grace_seconds: Callable[[], float],
) -> None:
    """Run all tasks until `stop`. Then cancel the inputs, call `seal`, and give the drains `grace_seconds` to finish.

    `grace_seconds` is called when the grace period begins. Inputs and background tasks must never return, drains not
    before `seal`: a task that does so raises UnexpectedExit and ends all.
    """
    sealed = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        running_background = [
            group.create_task(_run_forever(coroutine, name), name=name) for name, coroutine in background.items()
        ]
        running_drains = [
            group.create_task(_run_until_sealed(coroutine, name, sealed), name=name)
            for name, coroutine in drains.items()
        ]
        running_inputs = [
            group.create_task(_run_forever(coroutine, name), name=name) for name, coroutine in inputs.items()
        ]
        # Every task starts before any can be cancelled.
        await asyncio.sleep(0)
        await stop.wait()
        await _cancel_all(running_inputs)
        seal()
        sealed.set()
        _, late = await asyncio.wait(running_drains, timeout=grace_seconds())
        if late:
            log.warning(
                "grace period over, unwritten frames stay in the spool for the next start",
                tasks=[t.get_name() for t in late],
            )
        await _cancel_all([*late, *running_background])


async def _run_forever(coroutine: TaskCoroutine, name: str) -> None:
    await coroutine
    raise UnexpectedExit(name)


async def _run_until_sealed(coroutine: TaskCoroutine, name: str, sealed: asyncio.Event) -> None:
    await coroutine
    if not sealed.is_set():
        raise UnexpectedExit(name)


async def _cancel_all(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
