"""The machine registry and a real store."""

import asyncio

import pytest
from structlog.testing import capture_logs
from tools.harness.waiting import eventually

from guestd.core.machines import MachineRegistry
from guestd.store.machines import watch_machines
from support.daemon import add_machine, execute


class CountedRegistry(MachineRegistry):
    """Counts the failed reads."""

    failures = 0

    def note_failure(self, error: str) -> None:
        self.failures += 1
        super().note_failure(error)


@pytest.mark.asyncio
async def test_machines_that_cannot_be_read_are_logged_once_and_are_a_problem_until_they_are_read(dsn: str) -> None:
    machine_id, registry = add_machine(dsn), CountedRegistry()
    execute(dsn, 'ALTER TABLE "Machine" RENAME COLUMN "isCollected" TO "renamed"')
    with capture_logs() as logs:
        watching = asyncio.create_task(watch_machines(dsn, registry))
        try:
            await asyncio.to_thread(eventually, lambda: registry.failures > 1, "a second failure")
            assert registry.attempted.is_set()
            assert registry.problem is not None
            assert "isCollected" in registry.problem
            execute(dsn, 'ALTER TABLE "Machine" RENAME COLUMN "renamed" TO "isCollected"')
            await asyncio.wait_for(registry.loaded.wait(), 30)
        finally:
            watching.cancel()
            await asyncio.wait([watching])
    assert registry.problem is None
    assert registry.get_domain_names().keys() == {machine_id}
    (entry,) = logs
    assert "isCollected" in entry["error"]
