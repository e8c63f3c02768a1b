"""How long a task has to run before it counts as healthy."""

import asyncio

from guestd.core.supervision import Supervisor
from support.clock import QuickLoop


def test_a_task_that_fails_later_than_that_each_time_stays_reported() -> None:
    supervisor = Supervisor(count_failure=lambda _: None, show_failing=lambda *_: None, healthy_seconds=1)
    reported: list[list[str]] = []

    async def run() -> None:
        has_failed_thrice = asyncio.Event()

        async def task() -> None:
            reported.append(supervisor.list_problems())
            await asyncio.sleep(20)
            reported.append(supervisor.list_problems())
            if len(reported) == 6:
                has_failed_thrice.set()
            raise LookupError("a bug")

        running = asyncio.create_task(supervisor.run("rollups", task))
        await has_failed_thrice.wait()
        running.cancel()
        await asyncio.wait([running])

    with asyncio.Runner(loop_factory=QuickLoop) as runner:
        runner.run(run())
    assert reported[:2] == [[], []]
    assert all(reported[2:])
