"""Changes that follow each other are held like changes at once: a real store, and libvirt's test driver."""

import asyncio
from functools import partial
from pathlib import Path

import pytest

from support.vm_host import Host, add, hypervisor_with, reconciling, set_desired

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
