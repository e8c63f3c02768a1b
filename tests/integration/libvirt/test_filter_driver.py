"""The filter driver where libvirt fails it. Against a libvirt that has filters it runs in the lab."""

import asyncio
import gc
import socket
import threading
import weakref
from pathlib import Path

import pytest
from tools.harness.waiting import eventually

from guestd.core.errors import SourceLost
from guestd.filters.cache import FilterCache
from guestd.filters.driver import FilterDriver, observe_host, print_domain
from guestd.hypervisor.connection import open_read_write
from guestd.telemetry.registry import VmMetrics
from support.libvirt import domain_xml, uri_of

pytestmark = pytest.mark.asyncio


async def test_a_snapshot_of_a_libvirtd_that_never_answers_fails_at_its_deadline(tmp_path: Path) -> None:
    path = tmp_path / "libvirt-sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(8)
        with pytest.raises(SourceLost, match="no answer within"):
            async with asyncio.timeout(30):
                await observe_host(f"test+unix:///default?socket={path}", read_deadline_seconds=0.2)


async def fail_to_observe(driver: FilterDriver) -> "weakref.finalize[[], object]":
    """Let a snapshot fail: libvirt's test driver has no filters. Returns what is alive while the connection is open."""
    try:
        async with driver.connect():
            is_closed = weakref.finalize(driver._connection, lambda: None)
            await driver.observe(FilterCache())
    except SourceLost:
        return is_closed
    raise AssertionError("libvirt's test driver has filters")


async def test_a_connection_whose_snapshot_failed_is_closed_without_the_garbage_collector() -> None:
    gc.collect()
    gc.disable()
    try:
        is_closed = await fail_to_observe(FilterDriver("test:///default", VmMetrics()))
        await asyncio.to_thread(eventually, lambda: not is_closed.alive, "the connection is closed", 10)
    finally:
        gc.enable()


async def test_a_domain_that_is_undefined_during_the_snapshot_has_no_definitions(tmp_path: Path) -> None:
    uri = uri_of(tmp_path / "node.xml", [domain_xml("one", 1)])
    connection = open_read_write(uri, threading.Event())
    stays, goes = connection.lookupByName("one"), connection.defineXML(domain_xml("two", 2))
    goes.undefine()
    found = print_domain(connection, stays)
    assert found.live
    assert found.stored
    found = print_domain(connection, goes)
    assert (found.name, found.live, found.stored) == ("two", None, None)
    connection.close()
