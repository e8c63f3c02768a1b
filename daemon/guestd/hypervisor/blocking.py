"""Calls that may never come back, each on a thread of its own, with a deadline.

A thread that hangs in somebody's library cannot be ended: it is given up and counted, and another takes its place, up
to a cap. Threads are daemons, so that none of them keeps guestd from ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from guestd.core.errors import SourceLost

T = TypeVar("T")


class BlockingCalls:
    """At most `at_once` calls that are waited for, and `stuck_cap` that were given up and have not come back.

    `took` is told the seconds of each call that was answered, `gave_up` of each that was not.
    """

    def __init__(
        self,
        name: str,
        *,
        at_once: int,
        stuck_cap: int,
        gave_up: Callable[[], None],
        took: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._name = name
        self._slots = asyncio.Semaphore(at_once)
        self._stuck_cap = stuck_cap
        self._gave_up = gave_up
        self._took = took
        self.stuck = 0

    async def run(self, function: Callable[[], T], *, deadline_seconds: float) -> T:
        """The result of a blocking function, or its exception; SourceLost when it does not come in time."""
        async with self._slots:
            if self.stuck >= self._stuck_cap:
                raise SourceLost(f"{self._name}: {self.stuck} calls hang, no more are made")
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
                if result.done():  # it was the call's own
                    raise
                self._gave_up()
                raise SourceLost(f"{self._name}: no answer within {deadline_seconds:g} s") from None
            finally:
                if not result.done():
                    self.stuck += 1
                    result.add_done_callback(self._came_back)
            self._took(time.perf_counter() - started)
            return answer

    def _came_back(self, result: asyncio.Future[T]) -> None:
        self.stuck -= 1
        if not result.cancelled():
            result.exception()  # nobody waits for it any more

    @staticmethod
    def _work(loop: asyncio.AbstractEventLoop, function: Callable[[], T], result: asyncio.Future[T]) -> None:
        try:
            value = function()
        except BaseException as exc:  # handed over to whoever waits, and raised there
            call_in_loop(loop, result.set_exception, exc)
        else:
            call_in_loop(loop, result.set_result, value)


def call_in_loop(loop: asyncio.AbstractEventLoop, tell: Callable[[T], None], value: T) -> None:
    """Call `tell(value)` in the loop, from any thread."""
    with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody is there to be told
        loop.call_soon_threadsafe(tell, value)
