"""Blocking library calls, each on a thread of its own, with a deadline.

A thread that hangs in a C library cannot be cancelled. Its call is abandoned and counted, and the next call gets a new
thread, up to a cap. Threads are daemon threads, so that a hung one does not prevent guestd from exiting.

The error of a call holds the frames of the call, and so the connection that it used. Whoever drops the last reference
closes the connection, which blocks. So the error must not be part of a reference cycle, which only the garbage
collector frees, on whatever thread; and the error of an abandoned call is dropped by its own thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import asynccontextmanager
from typing import TypeVar

from guestd.core.errors import SourceLost
from guestd.core.tasks import wait_for_event
from guestd.telemetry.registry import VmMetrics

T = TypeVar("T")


class NotSent(SourceLost):
    """The call was not made."""


class TooManyStuck(NotSent):
    """Too many abandoned calls still hang."""


class BlockingCalls:
    """Runs at most `max_concurrent` calls, and refuses new ones while `max_stuck` abandoned calls still hang."""

    def __init__(
        self,
        name: str,
        *,
        max_concurrent: int,
        max_stuck: int,
        metrics: VmMetrics,
    ) -> None:
        self._name = name
        self._slots = asyncio.Semaphore(max_concurrent)
        self._max_stuck = max_stuck
        self._metrics = metrics
        self.stuck = 0
        """Abandoned calls that have not returned."""

    async def run(self, function: Callable[[], T], *, deadline_seconds: float) -> T:
        """Run a blocking function in a slot; returns and raises what `run_in_slot` does."""
        async with self.slot():
            try:
                return await self.run_in_slot(function, deadline_seconds=deadline_seconds)
            finally:
                del function  # as in `run_in_slot`

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for one of the places for calls, and hold it."""
        async with self._slots:
            yield

    async def run_in_slot(self, function: Callable[[], T], *, deadline_seconds: float) -> T:
        """Run a blocking function while the caller holds a slot; returns its result or raises its exception.

        Raises SourceLost after the deadline, and TooManyStuck, without calling the function, at the cap.
        """
        if self.stuck >= self._max_stuck:
            raise TooManyStuck(f"{self._name}: {self.stuck} calls hang, not making more; restart libvirtd")
        # Thread-safe: either the thread sets the outcome or this side cancels it, never both.
        outcome: Future[T] = Future()
        returned = asyncio.Event()
        started = time.perf_counter()
        threading.Thread(
            target=self._work,
            args=(asyncio.get_running_loop(), function, outcome, returned),
            name=f"{self._name}-call",
            daemon=True,
        ).start()
        try:
            await self._wait(outcome, returned, deadline_seconds)
            result = outcome.result()
        finally:
            # An error's traceback holds this frame; the frame must not hold the error.
            del function, outcome
        self._metrics.call_seconds.observe(time.perf_counter() - started)
        return result

    async def _wait(self, outcome: Future[T], returned: asyncio.Event, deadline_seconds: float) -> None:
        try:
            await wait_for_event(returned, deadline_seconds)
        finally:
            is_abandoned = outcome.cancel()
            if is_abandoned:
                self.stuck += 1
        if is_abandoned:
            self._metrics.calls_abandoned.inc()
            raise SourceLost(f"{self._name}: no answer within {deadline_seconds:g} s")

    def _work(
        self,
        loop: asyncio.AbstractEventLoop,
        function: Callable[[], T],
        outcome: Future[T],
        returned: asyncio.Event,
    ) -> None:
        on_return = returned.set
        try:
            _set_outcome(function, outcome)
        except InvalidStateError:  # the call was abandoned
            on_return = self._on_late_return
        finally:
            # As in `run`.
            del function, outcome
        call_in_loop(loop, on_return)

    def _on_late_return(self) -> None:
        self.stuck -= 1


def _set_outcome(function: Callable[[], T], outcome: Future[T]) -> None:
    """Run the function; raises InvalidStateError if nobody waits for the outcome."""
    try:
        result = function()
    except BaseException as exc:  # raised in the caller
        outcome.set_exception(exc)
    else:
        outcome.set_result(result)
    finally:
        del function, outcome


def call_in_loop(loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *values: object) -> None:
    """Call `callback(*values)` in the event loop, from any thread."""
    with contextlib.suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(callback, *values)
