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
from tools.harness.waiting import eventually, eventually_async

from guestd.core.errors import SourceLost
from guestd.hypervisor.domain_stats import MAX_STUCK_CALLS, DomainStatsPoller, read_statistics
from guestd.hypervisor.domains import Domain
from guestd.hypervisor.driver import Hypervisor
from guestd.telemetry.domains import Statistics, build_families
from guestd.telemetry.exposition import render
from guestd.telemetry.registry import Telemetry, VmMetrics
from support.libvirt import domain_xml, running, target_of, uri_of

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
        await hypervisor.destroy(next(target_of(domain) for domain in hypervisor.domains if domain.name == "two"))
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


async def test_only_the_domain_whose_statistics_cannot_be_read_is_left_out(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def read(connection: Any, uuid: UUID) -> Statistics:
        if uuid == UUID(int=2):
            raise ValueError("refused by libvirt")
        if uuid == UUID(int=3):
            return {"block.0.path": b"\xff".decode()}
        if uuid == UUID(int=4):
            raise LookupError("a bug")
        return read_statistics(connection, uuid)

    uri = many_domains(tmp_path, 6)
    async with running(Hypervisor(uri, VmMetrics())) as hypervisor:
        poller = DomainStatsPoller(uri, lambda: hypervisor.domains, metrics=VmMetrics(), read=read)
        await poller.poll_once()
        assert states(poller) == dict.fromkeys(["vm1", "vm5", "vm6"], 1)
    logged = "".join(capfd.readouterr())
    assert "domain statistics incomplete in this poll" in logged
    assert logged.count("report the traceback") == 1


def many_domains(directory: Path, count: int) -> str:
    return uri_of(directory / "node.xml", [domain_xml(f"vm{number}", number) for number in range(1, count + 1)])


async def test_calls_that_hang_together_replace_the_connection_once(tmp_path: Path) -> None:
    uri = many_domains(tmp_path, 6)
    may_return = threading.Event()
    used: list[Any] = []

    def read(connection: Any, _: UUID) -> Statistics:
        is_hanging = len(used) < 4
        used.append(connection)
        if is_hanging:
            may_return.wait()
        return {"state.state": 1}

    async with running(Hypervisor(uri, VmMetrics())) as hypervisor:
        poller = DomainStatsPoller(
            uri, lambda: hypervisor.domains, metrics=VmMetrics(), read=read, deadline_seconds=0.2
        )
        try:
            await poller.poll_once()
            assert sum(timed_out(poller).values()) == 4
            # libvirtd serves five calls of a connection: the two that answered needed a new one.
            assert [used.index(connection) for connection in used] == [0, 0, 0, 0, 4, 4]
        finally:
            may_return.set()


async def test_a_poll_that_fails_ends_when_all_its_calls_have_ended(tmp_path: Path) -> None:
    uri = many_domains(tmp_path, 4)
    is_reading, may_return = threading.Event(), threading.Event()
    read_domains: list[UUID] = []

    def read(_: Any, uuid: UUID) -> Statistics:
        read_domains.append(uuid)
        if len(read_domains) == 1:
            is_reading.set()
            may_return.wait()
            return {}
        is_reading.wait()
        raise SourceLost("libvirtd has restarted")

    async with running(Hypervisor(uri, VmMetrics())) as hypervisor:
        poller = DomainStatsPoller(
            uri, lambda: hypervisor.domains, metrics=VmMetrics(), read=read, deadline_seconds=0.2
        )
        try:
            await poller.poll_once()
            assert poller.stuck == sum(timed_out(poller).values()) == 1
            assert len(read_domains) == 2
        finally:
            may_return.set()


async def test_a_domain_that_was_not_polled_because_too_many_calls_hung_is_polled_later(tmp_path: Path) -> None:
    uri = many_domains(tmp_path, MAX_STUCK_CALLS + 4)
    may_return = threading.Event()

    def read(_connection: Any, _uuid: UUID) -> Statistics:
        may_return.wait()
        return {"state.state": 1}

    async with running(Hypervisor(uri, VmMetrics())) as hypervisor:
        domains: list[Domain] = list(hypervisor.domains[:1])
        poller = DomainStatsPoller(uri, lambda: domains, metrics=VmMetrics(), read=read, deadline_seconds=0.2)
        try:
            # One alone, so that the connection has room for more calls when the cap is reached.
            await poller.poll_once()
            domains += hypervisor.domains[1:]
            await poller.poll_once()
            assert poller.stuck >= MAX_STUCK_CALLS
        finally:
            may_return.set()
        await eventually_async(lambda: poller.stuck == 0, "the calls have returned")
        await poller.poll_once()
        assert set(states(poller)) == {domain.name for domain in domains}


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
    page = telemetry.render_families(is_openmetrics=False).decode()
    assert 'libvirt_domain_info_cpu_time_seconds_total{domain="one"} 5.0\n' in page
    assert 'libvirt_domain_info_state{domain="one"} 1.0\n' in page
