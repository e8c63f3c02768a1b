"""Statistics of domains on libvirt's test driver, which has a state for each and little else."""

import asyncio
import socket
import threading
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prometheus_client.parser import text_string_to_metric_families

from guestd.hypervisor.connection import Hypervisor, read_statistics
from guestd.hypervisor.domain_stats import DomainStatsPoller
from guestd.telemetry.domains import Statistics, families
from guestd.telemetry.exposition import rendered
from guestd.telemetry.registry import Telemetry
from support.daemon import eventually
from support.libvirt import domain_xml, running, silent, uri_of

pytestmark = pytest.mark.asyncio


def shown(sampler: DomainStatsPoller, name: str) -> dict[str, float]:
    page = rendered(sampler.families(), is_openmetrics=False).decode()
    (family,) = [family for family in text_string_to_metric_families(page) if family.name == name]
    return {sample.labels["domain"]: sample.value for sample in family.samples}


def states(sampler: DomainStatsPoller) -> dict[str, float]:
    return shown(sampler, "libvirt_domain_info_state")


def timed_out(sampler: DomainStatsPoller) -> dict[str, float]:
    return shown(sampler, "libvirt_domain_timed_out")


async def test_every_running_domain_has_figures(tmp_path: Path) -> None:
    uri = uri_of(tmp_path / "node.xml", [domain_xml("one", 1), domain_xml("two", 2)])
    async with running(Hypervisor(uri, silent())) as hypervisor:
        sampler = DomainStatsPoller(uri, lambda: hypervisor.domains, gave_up=lambda: None)
        await sampler.round()
        assert states(sampler) == {"one": 1, "two": 1}
        await hypervisor.destroy(next(domain.uuid for domain in hypervisor.domains if domain.name == "two"))
        await hypervisor.observe()
        await sampler.round()
        assert states(sampler) == {"one": 1}


async def test_a_domain_that_hangs_is_timed_out_alone(tmp_path: Path) -> None:
    uri = uri_of(tmp_path / "node.xml", [domain_xml("one", 1), domain_xml("two", 2)])
    come_back = threading.Event()

    def read(connection: Any, uuid: UUID) -> Statistics:
        if uuid == UUID(int=1):  # as a QEMU that is stopped makes libvirt do
            come_back.wait()
        return read_statistics(connection, uuid)

    async with running(Hypervisor(uri, silent())) as hypervisor:
        gave_up: list[int] = []
        sampler = DomainStatsPoller(
            uri, lambda: hypervisor.domains, gave_up=lambda: gave_up.append(1), read=read, deadline_seconds=0.2
        )
        try:
            for _ in range(2):
                await sampler.round()
                assert states(sampler) == {"two": 1}
                assert timed_out(sampler) == {"one": 1, "two": 0}
            # It is not asked again while its call hangs.
            assert (gave_up, sampler.stuck) == ([1], 1)
        finally:
            come_back.set()
        await asyncio.to_thread(eventually, lambda: sampler.stuck == 0, "the call has come back")
        await sampler.round()
        assert states(sampler) == {"one": 1, "two": 1}


async def test_a_libvirtd_that_never_answers_leaves_no_figures_and_ends(tmp_path: Path) -> None:
    path = tmp_path / "libvirt-sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(8)
        sampler = DomainStatsPoller(f"test+unix:///default?socket={path}", lambda: (), gave_up=lambda: None)
        began = time.monotonic()
        await sampler.round()
        assert sampler.stuck == 1
        assert time.monotonic() - began < 60
        assert states(sampler) == {}


async def test_figures_are_served_with_the_rest() -> None:
    telemetry = Telemetry()
    telemetry.vms.show(lambda: families({"one": {"state.state": 1, "cpu.time": 5 * 10**9}}, []))
    page = rendered(telemetry.vms.families(), is_openmetrics=False).decode()
    assert 'libvirt_domain_info_cpu_time_seconds_total{domain="one"} 5.0\n' in page
    assert 'libvirt_domain_info_state{domain="one"} 1.0\n' in page
