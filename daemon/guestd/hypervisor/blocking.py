"""Blocking library calls, each on a thread of its own, with a deadline.

A thread that hangs in a C library cannot be cancelled. Its call is abandoned and counted, and the next call gets a new
thread, up to a cap. Threads are daemon threads, so that a hung one does not prevent guestd from exiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from guestd.core.errors import SourceLost
from guestd.telemetry.registry import VmMetrics

T = TypeVar("T")


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
        """Run a blocking function; returns its result or raises its exception, SourceLost after the deadline."""
        async with self._slots:
            if self.stuck >= self._max_stuck:
                raise SourceLost(f"{self._name}: {self.stuck} calls hang, not making more; restart libvirtd")
            loop = asyncio.get_running_loop()
            result: asyncio.Future[T] = loop.create_future()
            thread = threading.Thread(
                target=self._work, args=(loop, function, result), name=f"{self._name}-call", daemon=True
            )
            started = time.perf_counter()
            thread.start()
            try:
                async with asyncio.timeout(deadline_seconds):
                    answer = await asyncio.shield(result)
            except TimeoutError:
                if result.done():  # the function itself raised it
                    raise
                self._metrics.calls_abandoned.inc()
                raise SourceLost(f"{self._name}: no answer within {deadline_seconds:g} s") from None
            finally:
                if not result.done():
                    self.stuck += 1
                    result.add_done_callback(self._on_late_return)
            self._metrics.call_seconds.observe(time.perf_counter() - started)
            return answer

    def _on_late_return(self, result: asyncio.Future[T]) -> None:
        self.stuck -= 1
        if not result.cancelled():
            result.exception()  # retrieved, so that asyncio does not log it

    @staticmethod
    def _work(loop: asyncio.AbstractEventLoop, function: Callable[[], T], result: asyncio.Future[T]) -> None:
        try:
            value = function()
        except BaseException as exc:  # raised in the caller
            call_in_loop(loop, result.set_exception, exc)
        else:
            call_in_loop(loop, result.set_result, value)


def call_in_loop(loop: asyncio.AbstractEventLoop, callback: Callable[[T], None], value: T) -> None:
    """Call `callback(value)` in the event loop, from any thread."""
    with contextlib.suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(callback, value)
