"""A clean end of the agent and the simulator: at the end of their work, or on SIGTERM and SIGINT."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any


async def run_until_signal(work: Coroutine[Any, Any, None]) -> bool:
    """Run `work` to its end and return True; on SIGTERM or SIGINT cancel it, wait for it and return False."""
    loop = asyncio.get_running_loop()
    task = loop.create_task(work, name="work")
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        return False
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    return True
