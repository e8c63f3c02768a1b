"""The hypervisor driver on libvirt's test driver: snapshots, events, actions, and calls that hang."""

import asyncio
import socket
import threading
import time
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prometheus_client import CollectorRegistry
from tools.harness.waiting import eventually

from guestd.core.errors import SourceLost
from guestd.hypervisor.blocking import BlockingCalls, NotSent
from guestd.hypervisor.connection import open_read_only, start_closing
from guestd.hypervisor.domains import Domain, DomainChannel
from guestd.hypervisor.driver import Hypervisor
from guestd.telemetry.registry import VmMetrics
from support.libvirt import AGENT_CHANNEL, domain_xml, own_connection, running, target_of, uri_of, wait_for_domain

pytestmark = pytest.mark.asyncio

# libvirt prints these names as they are; the first is then on two lines, with an apostrophe.
MALFORMED = """<interface type='bridge'><source bridge='b'/><mac address='52:54:00:00:00:01'/>
  <filterref filter="two&#10;'lines"/></interface>"""
RAW_NAME = """<interface type='bridge'><source bridge='b'/><mac address='52:54:00:00:00:02'/>
  <filterref filter="R&amp;D's &lt;best>"/></interface>"""


def of_two(directory: Path) -> Hypervisor:
    one = domain_xml("one", 1, devices=AGENT_CHANNEL.format(name="one"))
    return Hypervisor(uri_of(directory / "node.xml", [one, domain_xml("two", 2)]), VmMetrics())


async def test_domains_come_as_plain_values(tmp_path: Path) -> None:
    async with running(of_two(tmp_path)) as hypervisor:
        one, two = sorted(hypervisor.domains, key=lambda domain: domain.name)
    assert (one.name, one.uuid, one.state, one.is_active) == ("one", UUID(int=1), "running", True)
    assert one.description is not None
    assert two.description is not None
    assert (one.description.vcpus, one.description.memory_kib) == (2, 1048576)
    assert one.description.channels == (DomainChannel("org.infinibay.agent", "/run/channels/one", None),)
    assert two.description.channels == ()


async def test_a_domain_whose_xml_cannot_be_read_is_observed_with_its_state_and_as_last_read(tmp_path: Path) -> None:
    channel = AGENT_CHANNEL.format(name="one")
    async with running(of_two(tmp_path)) as hypervisor:
        connection = own_connection(hypervisor)
        before = next(domain.description for domain in hypervisor.domains if domain.name == "one")
        connection.defineXML(domain_xml("bad", 3, devices=MALFORMED))
        connection.defineXML(domain_xml("named", 4, devices=channel + RAW_NAME))
        named = await wait_for_domain(hypervisor, "named", lambda _: True)
        assert (named.problem, named.description) == (None, before)
        bad = await wait_for_domain(hypervisor, "bad", lambda _: True)
        assert (bad.uuid, bad.state, bad.is_active, bad.description) == (UUID(int=3), "shutoff", False, None)
        assert bad.problem is not None
        assert "malformed" in bad.problem
        # What was read before stays known.
        connection.lookupByName("one").destroy()
        connection.defineXML(domain_xml("one", 1, devices=channel + MALFORMED))
        one = await wait_for_domain(hypervisor, "one", lambda domain: domain.problem is not None)
        assert (one.state, one.description) == ("shutoff", before)
        connection.defineXML(domain_xml("bad", 3, devices=channel))
        repaired = await wait_for_domain(hypervisor, "bad", lambda domain: domain.problem is None)
        assert repaired.description == before


async def test_a_change_of_a_domain_is_observed_through_its_event(tmp_path: Path) -> None:
    async with running(of_two(tmp_path)) as hypervisor:
        domain = own_connection(hypervisor).lookupByName("one")
        began = time.monotonic()
        domain.suspend()
        assert (await wait_for_domain(hypervisor, "one", lambda one: one.state == "paused")).reason == "user"
        domain.resume()
        await wait_for_domain(hypervisor, "one", lambda one: one.state == "running")
        domain.destroy()
        stopped = await wait_for_domain(hypervisor, "one", lambda one: not one.is_active)
        assert (stopped.state, stopped.reason) == ("shutoff", "destroyed")
        assert began < stopped.since <= time.monotonic()
        domain.create()
        assert (await wait_for_domain(hypervisor, "one", lambda one: one.is_active)).since > stopped.since


async def test_a_domain_that_is_defined_or_undefined_is_observed(tmp_path: Path) -> None:
    async with running(of_two(tmp_path)) as hypervisor:
        connection = own_connection(hypervisor)
        connection.defineXML(domain_xml("three", 3))
        three = await wait_for_domain(hypervisor, "three", lambda _: True)
        assert (three.state, three.is_active) == ("shutoff", False)
        observed = hypervisor.subscribe()
        connection.lookupByName("three").undefine()
        async with asyncio.timeout(30):
            while any(domain.name == "three" for domain in hypervisor.domains):
                await observed.wait()
                observed.clear()


async def test_every_action_changes_the_domain(tmp_path: Path) -> None:
    async with running(of_two(tmp_path)) as hypervisor:
        one = await wait_for_domain(hypervisor, "one", lambda domain: domain.state == "running")
        for act, expected in (
            (hypervisor.suspend, "paused"),
            (hypervisor.resume, "running"),
            (hypervisor.shutdown, "shutoff"),
            (hypervisor.start, "running"),
            (hypervisor.destroy, "shutoff"),
        ):
            assert await act(target_of(one)) is None
            one = await wait_for_domain(hypervisor, "one", partial(is_current_in, hypervisor, expected))


def is_current_in(hypervisor: Hypervisor, state: str, domain: Domain) -> bool:
    return domain.state == state and hypervisor.is_current(target_of(domain))


async def test_a_refused_action_returns_the_error_and_keeps_the_connection(tmp_path: Path) -> None:
    async with running(of_two(tmp_path)) as hypervisor:
        one = await wait_for_domain(hypervisor, "one", lambda domain: domain.state == "running")
        assert "already running" in str(await hypervisor.start(target_of(one)))
        assert "Domain not found" in str(await hypervisor.start(replace(target_of(one), uuid=UUID(int=9))))
        assert len(await hypervisor.observe()) == 2


async def test_libvirt_is_not_called_for_a_domain_that_is_no_longer_as_observed(tmp_path: Path) -> None:
    async with running(of_two(tmp_path)) as hypervisor:
        one = await wait_for_domain(hypervisor, "one", lambda domain: domain.state == "running")
        target = target_of(one)
        for changed in (
            replace(target, name="two"),
            replace(target, state="paused"),
            replace(target, boot=replace(target.boot, id=99)),
            replace(target, boot=replace(target.boot, event=99)),
            replace(target, boot=replace(target.boot, connection=99)),
        ):
            with pytest.raises(NotSent):
                await hypervisor.destroy(changed)
        # Started again by somebody since: another run of the same domain, in the same state.
        domain = own_connection(hypervisor).lookupByName("one")
        domain.destroy()
        domain.create()
        with pytest.raises(NotSent):
            await hypervisor.destroy(target)
        assert domain.isActive()


async def test_every_lifecycle_event_and_each_connection_begins_another_boot(tmp_path: Path) -> None:
    hypervisor = of_two(tmp_path)
    async with running(hypervisor):
        one = await wait_for_domain(hypervisor, "one", lambda domain: domain.state == "running")
        assert (await hypervisor.observe(), hypervisor.is_current(target_of(one)))[1]
        domain = own_connection(hypervisor).lookupByName("one")
        domain.suspend()
        domain.resume()
        again = await wait_for_domain(hypervisor, "one", lambda each: each.boot.event >= 2)
        assert (again.state, again.boot.id) == ("running", one.boot.id)
        assert not hypervisor.is_current(target_of(one))
        hypervisor._on_boot_event(one.uuid)  # a reboot, of which the test driver sends no event
        assert not hypervisor.is_current(target_of(again))
    async with running(hypervisor):
        assert not hypervisor.is_current(target_of(again))
        assert (await wait_for_domain(hypervisor, "one", lambda _: True)).boot.connection == 2


async def test_the_version_names_libvirt_and_its_driver(tmp_path: Path) -> None:
    async with running(of_two(tmp_path)) as hypervisor:
        version = await hypervisor.get_version()
    assert version.startswith("libvirt ")
    assert version.endswith(" TEST")


async def test_a_missing_libvirt_is_retried_until_it_appears(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    node = tmp_path / "node.xml"
    hypervisor = Hypervisor(f"test://{node}", VmMetrics(registry))
    notified = hypervisor.subscribe()
    task = asyncio.create_task(hypervisor.run())
    try:
        async with asyncio.timeout(30):
            await notified.wait()
            assert registry.get_sample_value("guestd_libvirt_lost_total")
            assert "node.xml" in str(hypervisor.error)
            with pytest.raises(SourceLost):
                await hypervisor.observe()
            uri_of(node, [domain_xml("one", 1)])
            while not hypervisor.domains:
                notified.clear()
                await notified.wait()
        assert hypervisor.error is None
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_a_libvirtd_that_never_answers_does_not_block(tmp_path: Path) -> None:
    path = tmp_path / "libvirt-sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(64)
        registry = CollectorRegistry()
        uri = f"test+unix:///default?socket={path}"
        hypervisor = Hypervisor(uri, VmMetrics(registry), deadline_seconds=0.2)
        notified = hypervisor.subscribe()
        task = asyncio.create_task(hypervisor.run())
        async with asyncio.timeout(60):
            while not hypervisor.stuck:
                notified.clear()
                await notified.wait()
        assert registry.get_sample_value("guestd_libvirt_calls_given_up_total")
        assert "no answer" in str(hypervisor.error)
        task.cancel()
        await asyncio.wait([task])


class AbandonedMeanwhile(threading.Event):
    """Not set when libvirt begins to open, set afterwards: the caller gave up in between."""

    def is_set(self) -> bool:
        was_set = super().is_set()
        self.set()
        return was_set


async def test_a_connection_that_opens_after_it_was_abandoned_is_closed(tmp_path: Path) -> None:
    async with running(of_two(tmp_path)) as hypervisor:
        with pytest.raises(SourceLost, match="connected after the deadline"):
            hypervisor._open(asyncio.get_running_loop(), AbandonedMeanwhile())
        assert len(await hypervisor.observe()) == 2


async def test_a_connection_that_was_abandoned_while_waiting_is_not_opened(tmp_path: Path) -> None:
    abandoned = threading.Event()
    abandoned.set()
    async with running(of_two(tmp_path)) as hypervisor:
        with pytest.raises(SourceLost, match="abandoned while it waited"):
            hypervisor._open(asyncio.get_running_loop(), abandoned)
        assert len(await hypervisor.observe()) == 2


async def test_a_connection_is_closed_only_after_the_call_that_still_uses_it(tmp_path: Path) -> None:
    may_return = threading.Event()
    found: list[Any] = []

    def call(connection: Any) -> None:
        may_return.wait()
        found.extend(connection.listAllDomains())

    connection = open_read_only(uri_of(tmp_path / "node.xml", [domain_xml("one", 1)]), threading.Event())
    is_closed = weakref.finalize(connection, lambda: None)
    hanging = threading.Thread(target=call, args=(connection,))
    hanging.start()
    start_closing(connection)
    del connection
    await asyncio.to_thread(join_all, "libvirt-close")
    assert is_closed.alive
    may_return.set()
    await asyncio.to_thread(hanging.join)
    assert len(found) == 1
    found.clear()
    eventually(lambda: not is_closed.alive, "the connection is closed")


def join_all(name: str) -> None:
    for thread in threading.enumerate():
        if thread.name == name:
            thread.join()


async def test_a_call_that_hangs_is_abandoned_counted_and_replaced_up_to_a_cap() -> None:
    registry = CollectorRegistry()
    calls = BlockingCalls("test", max_concurrent=1, max_stuck=2, metrics=VmMetrics(registry))
    come_back = threading.Event()
    try:
        for stuck in (1, 2):
            with pytest.raises(SourceLost, match="no answer"):
                await calls.run(come_back.wait, deadline_seconds=0.05)
            assert calls.stuck == registry.get_sample_value("guestd_libvirt_calls_given_up_total") == stuck
            if stuck == 1:
                assert await calls.run(lambda: "served", deadline_seconds=30) == "served"
        with pytest.raises(SourceLost, match="2 calls hang"):
            await calls.run(lambda: "too many", deadline_seconds=30)
    finally:
        come_back.set()
    await asyncio.to_thread(eventually, lambda: calls.stuck == 0, "the calls have come back")
    assert await calls.run(lambda: "again", deadline_seconds=30) == "again"


async def test_a_calls_own_exception_reaches_the_caller() -> None:
    calls = BlockingCalls("test", max_concurrent=1, max_stuck=1, metrics=VmMetrics())

    def fails() -> None:
        raise TimeoutError("of its own")

    with pytest.raises(TimeoutError, match="of its own"):
        await calls.run(fails, deadline_seconds=30)
    assert calls.stuck == 0
