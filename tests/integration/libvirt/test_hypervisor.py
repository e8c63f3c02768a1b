"""The driver on libvirt's test driver: what it sees, what wakes it, what it does, and what holds it up."""

import asyncio
import socket
import threading
import time
from pathlib import Path
from uuid import UUID

import pytest

from guestd.core.errors import SourceLost
from guestd.hypervisor.blocking import BlockingCalls
from guestd.hypervisor.connection import Counters, Hypervisor
from guestd.hypervisor.domains import DomainChannel
from support.daemon import eventually
from support.libvirt import AGENT_CHANNEL, domain_xml, own_connection, running, seen, silent, uri_of

pytestmark = pytest.mark.asyncio


def of_two(directory: Path) -> Hypervisor:
    one = domain_xml("one", 1, devices=AGENT_CHANNEL.format(name="one"))
    return Hypervisor(uri_of(directory / "node.xml", [one, domain_xml("two", 2)]), silent())


async def test_domains_come_as_plain_values(tmp_path: Path) -> None:
    async with running(of_two(tmp_path)) as hypervisor:
        one, two = sorted(hypervisor.domains, key=lambda domain: domain.name)
    assert (one.name, one.uuid, one.state, one.is_active) == ("one", UUID(int=1), "running", True)
    assert (one.description.vcpus, one.description.memory_kib) == (2, 1048576)
    assert one.description.channels == (DomainChannel("org.infinibay.agent", "/run/channels/one", None),)
    assert two.description.channels == ()


async def test_what_happens_to_a_domain_is_seen_without_being_asked(tmp_path: Path) -> None:
    async with running(of_two(tmp_path)) as hypervisor:
        domain = own_connection(hypervisor).lookupByName("one")
        began = time.monotonic()
        domain.suspend()
        assert (await seen(hypervisor, "one", lambda one: one.state == "paused")).reason == "user"
        domain.resume()
        await seen(hypervisor, "one", lambda one: one.state == "running")
        domain.destroy()
        stopped = await seen(hypervisor, "one", lambda one: not one.is_active)
        assert (stopped.state, stopped.reason) == ("shutoff", "destroyed")
        assert began < stopped.since <= time.monotonic()
        domain.create()
        assert (await seen(hypervisor, "one", lambda one: one.is_active)).since > stopped.since


async def test_a_domain_that_is_defined_or_undefined_is_seen(tmp_path: Path) -> None:
    async with running(of_two(tmp_path)) as hypervisor:
        connection = own_connection(hypervisor)
        connection.defineXML(domain_xml("three", 3))
        three = await seen(hypervisor, "three", lambda _: True)
        assert (three.state, three.is_active) == ("shutoff", False)
        looked = hypervisor.subscribe()
        connection.lookupByName("three").undefine()
        async with asyncio.timeout(30):
            while any(domain.name == "three" for domain in hypervisor.domains):
                await looked.wait()
                looked.clear()


async def test_what_it_is_told_to_do_it_does(tmp_path: Path) -> None:
    async with running(of_two(tmp_path)) as hypervisor:
        one = UUID(int=1)
        assert await hypervisor.suspend(one) is None
        await seen(hypervisor, "one", lambda domain: domain.state == "paused")
        assert await hypervisor.resume(one) is None
        await seen(hypervisor, "one", lambda domain: domain.state == "running")
        assert await hypervisor.shutdown(one) is None
        await seen(hypervisor, "one", lambda domain: domain.state == "shutoff")
        assert await hypervisor.start(one) is None
        await seen(hypervisor, "one", lambda domain: domain.state == "running")
        assert await hypervisor.destroy(one) is None
        await seen(hypervisor, "one", lambda domain: domain.state == "shutoff")


async def test_what_libvirt_refuses_is_told_and_the_connection_kept(tmp_path: Path) -> None:
    async with running(of_two(tmp_path)) as hypervisor:
        assert "already running" in str(await hypervisor.start(UUID(int=1)))
        assert "Domain not found" in str(await hypervisor.start(UUID(int=9)))
        assert len(await hypervisor.observe()) == 2


async def test_the_version_names_libvirt_and_its_driver(tmp_path: Path) -> None:
    async with running(of_two(tmp_path)) as hypervisor:
        version = await hypervisor.version()
    assert version.startswith("libvirt ")
    assert version.endswith(" TEST")


async def test_a_libvirt_that_is_not_there_is_tried_again_until_it_is(tmp_path: Path) -> None:
    losses = []
    node = tmp_path / "node.xml"
    hypervisor = Hypervisor(f"test://{node}", Counters(lambda: losses.append(1), lambda: None, lambda _: None))
    told = hypervisor.subscribe()
    life = asyncio.create_task(hypervisor.run())
    try:
        async with asyncio.timeout(30):
            await told.wait()
            assert losses
            assert "node.xml" in str(hypervisor.error)
            with pytest.raises(SourceLost):
                await hypervisor.observe()
            uri_of(node, [domain_xml("one", 1)])
            while not hypervisor.domains:
                told.clear()
                await told.wait()
        assert hypervisor.error is None
    finally:
        life.cancel()
        await asyncio.wait([life])


async def test_a_libvirtd_that_never_answers_holds_up_nobody(tmp_path: Path) -> None:
    path = tmp_path / "libvirt-sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(64)
        gave_up: list[int] = []
        counters = Counters(lambda: None, lambda: gave_up.append(1), lambda _: None)
        hypervisor = Hypervisor(f"test+unix:///default?socket={path}", counters, deadline_seconds=0.2)
        told = hypervisor.subscribe()
        life = asyncio.create_task(hypervisor.run())
        async with asyncio.timeout(60):
            while not hypervisor.stuck:
                told.clear()
                await told.wait()
        assert gave_up
        assert "no answer" in str(hypervisor.error)
        life.cancel()
        await asyncio.wait([life])


class GivenUpMeanwhile(threading.Event):
    """Not set when libvirt begins to open, set when it has: whoever waited has gone between the two."""

    def is_set(self) -> bool:
        was_set = super().is_set()
        self.set()
        return was_set


async def test_a_connection_that_comes_when_it_was_given_up_is_closed(tmp_path: Path) -> None:
    async with running(of_two(tmp_path)) as hypervisor:
        with pytest.raises(SourceLost, match="connected too late"):
            hypervisor._opened(asyncio.get_running_loop(), GivenUpMeanwhile())
        assert len(await hypervisor.observe()) == 2


async def test_a_connection_that_was_given_up_before_its_turn_is_not_opened(tmp_path: Path) -> None:
    given_up = threading.Event()
    given_up.set()
    async with running(of_two(tmp_path)) as hypervisor:
        with pytest.raises(SourceLost, match="too late to open it"):
            hypervisor._opened(asyncio.get_running_loop(), given_up)
        assert len(await hypervisor.observe()) == 2


async def test_a_call_that_hangs_is_given_up_counted_and_replaced_up_to_a_cap() -> None:
    gave_up: list[int] = []
    calls = BlockingCalls("test", at_once=1, stuck_cap=2, gave_up=lambda: gave_up.append(1))
    come_back = threading.Event()
    try:
        for stuck in (1, 2):
            with pytest.raises(SourceLost, match="no answer"):
                await calls.run(come_back.wait, deadline_seconds=0.05)
            assert (calls.stuck, len(gave_up)) == (stuck, stuck)
            if stuck == 1:
                assert await calls.run(lambda: "served", deadline_seconds=30) == "served"
        with pytest.raises(SourceLost, match="2 calls hang"):
            await calls.run(lambda: "too many", deadline_seconds=30)
    finally:
        come_back.set()
    await asyncio.to_thread(eventually, lambda: calls.stuck == 0, "the calls have come back")
    assert await calls.run(lambda: "again", deadline_seconds=30) == "again"


async def test_a_calls_own_exception_reaches_whoever_waits() -> None:
    calls = BlockingCalls("test", at_once=1, stuck_cap=1, gave_up=lambda: None)

    def fails() -> None:
        raise TimeoutError("of its own")

    with pytest.raises(TimeoutError, match="of its own"):
        await calls.run(fails, deadline_seconds=30)
    assert calls.stuck == 0
