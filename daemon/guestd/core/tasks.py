"""The only place where tasks, retries and backoff are made.

Stopping is ordered: inputs first, then what drains, then the rest. A task that is meant to run for
ever and returns is an error; an exception in any task ends all of them and reaches `__main__`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import structlog

log = structlog.get_logger()

Life = Coroutine[Any, Any, None]


class UnexpectedExit(Exception):
    """A task that runs for ever came to an end: a bug."""


@dataclass(slots=True)
class Backoff:
    """Exponential, jittered, capped; begins anew after a healthy minute."""

    first_seconds: float = 0.25
    cap_seconds: float = 30.0
    healthy_seconds: float = 60.0
    failures: int = 0

    def after(self, lived_seconds: float) -> float:
        """Seconds to wait after an attempt that lived for so long."""
        if lived_seconds >= self.healthy_seconds:
            self.failures = 0
        delay_seconds = min(self.cap_seconds, self.first_seconds * float(2**self.failures))
        self.failures = min(self.failures + 1, 32)
        return delay_seconds * random.uniform(0.7, 1.3)  # noqa: S311 -- jitter, not a secret


async def retrying(
    attempt: Callable[[], Awaitable[None]],
    *,
    expected: type[Exception] | tuple[type[Exception], ...],
    backoff: Backoff,
    lost: Callable[[Exception, float], None],
) -> None:
    """Run `attempt` until it returns; after an `expected` error tell `lost` (with the seconds until the next) and wait.

    One attempt is one connection's life, so that reconnecting needs no state. Any other exception passes through.
    """
    while True:
        started = time.monotonic()
        try:
            return await attempt()
        except expected as exc:
            delay_seconds = backoff.after(time.monotonic() - started)
            lost(exc, delay_seconds)
        await asyncio.sleep(delay_seconds)


async def woken(event: asyncio.Event, seconds: float) -> None:
    """Wait for an event, but no longer than so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass


@asynccontextmanager
async def together() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group for work beside a loop; the first failure ends it and comes out as itself."""
    try:
        async with asyncio.TaskGroup() as tasks:
            yield tasks
    except ExceptionGroup as group:
        first: Exception = group
        while isinstance(first, ExceptionGroup):
            first = first.exceptions[0]
        raise first from group


async def run_until(
    stop: asyncio.Event,
    *,
    inputs: Mapping[str, Life],
    drains: Mapping[str, Life],
    background: Mapping[str, Life],
    seal: Callable[[], None],
    grace_seconds: Callable[[], float],
) -> None:
    """Run all until `stop`: then inputs are cancelled, `seal` is called, drains end by themselves within the grace.

    The grace is asked for when it begins.

    Inputs and background tasks never return by themselves, drains not before `seal`: whoever does ends all.
    """
    sealed = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        running_background = [group.create_task(_forever(life, name), name=name) for name, life in background.items()]
        running_drains = [
            group.create_task(_until_sealed(life, name, sealed), name=name) for name, life in drains.items()
        ]
        running_inputs = [group.create_task(_forever(life, name), name=name) for name, life in inputs.items()]
        # Each has begun before it may be cancelled.
        await asyncio.sleep(0)
        await stop.wait()
        await _cancelled(running_inputs)
        seal()
        sealed.set()
        _, late = await asyncio.wait(running_drains, timeout=grace_seconds())
        if late:
            log.warning("the grace period is over, the rest stays in the spool", tasks=[t.get_name() for t in late])
        await _cancelled([*late, *running_background])


async def _forever(life: Life, name: str) -> None:
    await life
    raise UnexpectedExit(name)


async def _until_sealed(life: Life, name: str, sealed: asyncio.Event) -> None:
    await life
    if not sealed.is_set():
        raise UnexpectedExit(name)


async def _cancelled(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
