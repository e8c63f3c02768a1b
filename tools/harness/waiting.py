"""Wait for a condition, with a deadline: what tests and benchmarks do instead of sleeping."""

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class NotInTime(AssertionError):
    """A condition did not become true before its deadline."""


def eventually(poll: Callable[[], T], what: str, seconds: float = 90, *, every_seconds: float = 0.02) -> T:
    """Call `poll` until it returns something true, and return that. Raises NotInTime, which names `what`."""
    deadline = time.monotonic() + seconds
    while not (found := poll()):
        if time.monotonic() > deadline:
            raise NotInTime(f"not within {seconds} s: {what}")
        time.sleep(every_seconds)
    return found


async def eventually_async(poll: Callable[[], T], what: str, seconds: float = 90) -> T:
    """The same for tests that share the event loop with what they wait for."""
    deadline = time.monotonic() + seconds
    while not (found := poll()):
        if time.monotonic() > deadline:
            raise NotInTime(f"not within {seconds} s: {what}")
        await asyncio.sleep(0.005)
    return found


def wait_seconds(seconds: float) -> None:
    """Wait a fixed time, where the passing of time is the point and there is no condition to wait for."""
    time.sleep(seconds)
