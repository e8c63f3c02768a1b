"""Changes that follow each other are held like changes at once: a real store, and libvirt's test driver."""

import asyncio
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from guestd.hypervisor.driver import Hypervisor, Target
from guestd.telemetry.registry import VmMetrics
from guestd.vms.guard import digest_changes
from guestd.vms.model import PowerAction
from guestd.vms.reconciler import preview_vm_plan
from support.libvirt import running
from support.vm_host import Host, add, hypervisor_with, reconciling, reconciling_connected, set_desired

pytestmark = pytest.mark.asyncio


async def test_a_program_that_sets_the_rows_one_by_one_is_held(dsn: str, tmp_path: Path) -> None:
    names = [f"vm{number:02}" for number in range(12)]
    for name in names:
        add(dsn, name)
    # Ten may change within 18 s.
    async with reconciling(Host(dsn, hypervisor_with(tmp_path, *names), most_changes_share=1.0)) as host:
        for name in names:
            await host.becomes(name, status="running")
        for number, name in enumerate(names[:10], 1):
            await asyncio.to_thread(set_desired, dsn, name, "off")
            await host.eventually(partial(has_shut_down, host, number), "it is shut down")
        for name in names[10:]:
            await asyncio.to_thread(set_desired, dsn, name, "off")
        await host.another_run(3)
        assert [text.partition(": running")[0] for text in host.reports] == [
            f"held: {name}: shutdown {name}" for name in names[10:]
        ]
        assert all(host.domain(name).isActive() for name in names[10:])


def has_shut_down(host: Host, count: int) -> bool:
    return host.count_actions("shutdown") == count


class GuestsThatStay(Hypervisor):
    """A libvirt that accepts each request to shut down, and whose guests take their time."""

    async def shutdown(self, _: Target) -> str | None:
        """Accept a request to shut down."""
        return None


async def preview_held(host: Host) -> tuple[PowerAction, ...]:
    """As guestd plan does, which is a process of its own."""
    policy = replace(host.reconciler._policy, begun={})
    return (await preview_vm_plan(host.hypervisor, dsn=host.dsn, host_name="host", policy=policy)).held


async def test_changes_in_progress_are_not_held_by_a_plan_and_not_by_the_next_guestd(dsn: str, tmp_path: Path) -> None:
    """A plan named them too: its digest was another one whenever a guest had shut down."""
    names = [f"vm{number:02}" for number in range(8)]
    for name in names:
        add(dsn, name)
    hypervisor = GuestsThatStay(hypervisor_with(tmp_path, *names).uri, VmMetrics())
    async with running(hypervisor):
        async with reconciling_connected(Host(dsn, hypervisor, shutdown_seconds=900.0)) as host:
            for name in names:
                await host.becomes(name, status="running")
            for number, name in enumerate(names[:4], 1):
                await asyncio.to_thread(set_desired, dsn, name, "off")
                await host.eventually(partial(has_shut_down, host, number), "it is asked to shut down")
            for name in names[4:]:
                await asyncio.to_thread(set_desired, dsn, name, "off")
            await host.eventually(lambda: len(host.reports) == 4, "the others are held")
            before = await preview_held(host)
            assert sorted(action.name for action in before) == names[4:]
            host.domain(names[0]).destroy()
            await host.becomes(names[0], status="off")
            assert digest_changes(await preview_held(host)) == digest_changes(before)
        # The next guestd asks those again that are left, and holds what was held.
        async with reconciling_connected(Host(dsn, hypervisor, shutdown_seconds=1.0)) as host:
            await host.eventually(lambda: host.count_actions("shutdown") >= 3, "they are asked again")
            await host.another_run()
            assert [text.partition(": shutdown")[0] for text in host.reports] == [f"held: {name}" for name in names[4:]]
            assert digest_changes(await preview_held(host)) == digest_changes(before)
