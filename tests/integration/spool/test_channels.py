"""One channel, or discovery, fails with a bug: the other channels are read on."""

import asyncio
import functools
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest
from tools.harness.waiting import eventually_async

from guestd.core.machines import MachineRegistry
from guestd.core.supervision import Supervisor
from guestd.ingest.discovery import DirectoryDiscovery, DiscoveredChannels
from guestd.ingest.virtio import VirtioSource
from guestd.spool.queue import Spool
from support.daemon import Guest, metrics_line
from support.gate import gate_on

BUGGY, SOUND = UUID(int=1), UUID(int=2)


class FailingDiscovery(DirectoryDiscovery):
    """Finds the channels, and fails ever after."""

    runs = 0

    async def discover(self) -> DiscoveredChannels | None:
        self.runs += 1
        if self.runs > 1:
            raise RecursionError("a bug in discovery")
        return await super().discover()

    async def watch(self, changed: Callable[[], None]) -> None:
        changed()
        raise LookupError("a bug in watching")


def wrap(machine_id: UUID, line: bytes) -> bytes:
    if machine_id == BUGGY:
        raise LookupError("a bug in signing")
    return line


def has_more(spool: Spool, frames: int) -> bool:
    return spool.frames > frames


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", [DirectoryDiscovery, FailingDiscovery])
async def test_a_bug_in_a_channel_or_in_discovery_costs_no_other_channel(
    directory: Path, kind: type[DirectoryDiscovery]
) -> None:
    guests = [Guest(directory, machine_id) for machine_id in (BUGGY, SOUND)]
    async with gate_on(directory / "spool") as rig:
        tasks = rig.telemetry.tasks
        supervisor = Supervisor(count_failure=tasks.count_failure, show_failing=tasks.show_failing)
        registry = MachineRegistry()
        registry.attempted.set()
        source = VirtioSource(
            kind(directory, registry),
            gate=rig.gate,
            machine_registry=registry,
            metrics=rig.telemetry.channels,
            max_frame_bytes=1_000_000,
            max_partial_bytes=64 * 1024 * 1024,
            wrap=wrap,
            supervisor=supervisor,
        )
        running = asyncio.create_task(source.run())

        def count(task: str) -> float:
            return rig.telemetry.registry.get_sample_value("guestd_task_failures_total", {"task": task}) or 0

        try:
            await eventually_async(lambda: count("channel") >= 2, "the channel fails and is opened again")
            if kind is FailingDiscovery:
                await eventually_async(lambda: count("channel-discovery") >= 2, "discovery fails")
                await eventually_async(lambda: count("channel-watch") >= 2, "watching fails")
            for line in (metrics_line(), metrics_line()):
                before = rig.spool.frames
                await asyncio.to_thread(guests[1].write, line)
                await eventually_async(functools.partial(has_more, rig.spool, before), "a line is on disk")
            problems = supervisor.list_problems()
            assert f"channel of {BUGGY}: failed, retrying: LookupError: a bug in signing" in problems
            assert source.connected == 1
        finally:
            running.cancel()
            await asyncio.wait([running])
            for guest in guests:
                guest.leave()
    assert running.cancelled()
