"""Domain statistics on libvirt's test driver, which reports little more than a state."""

import asyncio
import socket
import threading
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from tools.harness.waiting import eventually

from guestd.hypervisor.connection import Hypervisor, read_statistics
from guestd.hypervisor.domain_stats import DomainStatsPoller
from guestd.telemetry.domains import Statistics, build_families
from guestd.telemetry.exposition import render
from guestd.telemetry.registry import Telemetry, VmMetrics
from support.libvirt import domain_xml, running, uri_of

pytestmark = pytest.mark.asyncio


def shown(poller: DomainStatsPoller, name: str) -> dict[str, float]:
    page = render(poller.build_families(), is_openmetrics=False).decode()
    (family,) = [family for family in text_string_to_metric_families(page) if family.name == name]
    return {sample.labels["domain"]: sample.value for sample in family.samples}


def states(poller: DomainStatsPoller) -> dict[str, float]:
    return shown(poller, "libvirt_domain_info_state")


def timed_out(poller: DomainStatsPoller) -> dict[str, float]:
    return shown(poller, "libvirt_domain_timed_out")


async def test_every_running_domain_has_statistics(tmp_path: Path) -> None:
    uri = uri_of(tmp_path / "node.xml", [domain_xml("one", 1), domain_xml("two", 2)])
    async with running(Hypervisor(uri, VmMetrics())) as hypervisor:
        poller = DomainStatsPoller(uri, lambda: hypervisor.domains, metrics=VmMetrics())
        await poller.poll_once()
        assert states(poller) == {"one": 1, "two": 1}
        await hypervisor.destroy(next(domain.uuid for domain in hypervisor.domains if domain.name == "two"))
        await hypervisor.observe()
        await poller.poll_once()
        assert states(poller) == {"one": 1}


async def test_only_the_domain_that_hangs_is_timed_out(tmp_path: Path) -> None:
    uri = uri_of(tmp_path / "node.xml", [domain_xml("one", 1), domain_xml("two", 2)])
    may_return = threading.Event()

    def read(connection: Any, uuid: UUID) -> Statistics:
        if uuid == UUID(int=1):  # like a stopped QEMU
            may_return.wait()
        return read_statistics(connection, uuid)

    async with running(Hypervisor(uri, VmMetrics())) as hypervisor:
        registry = CollectorRegistry()
        poller = DomainStatsPoller(
            uri, lambda: hypervisor.domains, metrics=VmMetrics(registry), read=read, deadline_seconds=0.2
        )
        try:
            for _ in range(2):
                await poller.poll_once()
                assert states(poller) == {"two": 1}
                assert timed_out(poller) == {"one": 1, "two": 0}
            # It is not polled again while its call hangs.
            assert poller.stuck == registry.get_sample_value("guestd_libvirt_calls_given_up_total") == 1
        finally:
            may_return.set()
        await asyncio.to_thread(eventually, lambda: poller.stuck == 0, "the call has returned")
        await poller.poll_once()
        assert states(poller) == {"one": 1, "two": 1}


async def test_a_libvirtd_that_never_answers_yields_no_statistics(tmp_path: Path) -> None:
    path = tmp_path / "libvirt-sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(8)
        poller = DomainStatsPoller(f"test+unix:///default?socket={path}", lambda: (), metrics=VmMetrics())
        began = time.monotonic()
        await poller.poll_once()
        assert poller.stuck == 1
        assert time.monotonic() - began < 60
        assert states(poller) == {}


async def test_statistics_are_exposed_with_the_other_metrics() -> None:
    telemetry = Telemetry()
    telemetry.add_source(lambda: build_families({"one": {"state.state": 1, "cpu.time": 5 * 10**9}}, []))
    page = render(telemetry.build_families(), is_openmetrics=False).decode()
    assert 'libvirt_domain_info_cpu_time_seconds_total{domain="one"} 5.0\n' in page
    assert 'libvirt_domain_info_state{domain="one"} 1.0\n' in page
