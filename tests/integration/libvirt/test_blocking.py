"""Who drops what a blocking call leaves: its error, and with it the connection that the call used."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tools.harness.waiting import eventually

from guestd.core.errors import SourceLost
from guestd.hypervisor.blocking import BlockingCalls
from guestd.hypervisor.connection import open_read_only, start_closing
from guestd.telemetry.registry import VmMetrics
from support.libvirt import domain_xml, libvirt, uri_of

pytestmark = pytest.mark.asyncio


@pytest.fixture
def without_garbage_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def make_calls() -> BlockingCalls:
    return BlockingCalls("test", max_concurrent=1, max_stuck=1, metrics=VmMetrics())


async def look_up_nobody(connection: Any) -> bool:
    """Make a call that fails."""
    try:
        await make_calls().run(lambda: connection.lookupByName("nobody"), deadline_seconds=30)
    except libvirt.libvirtError:
        return True
    return False


@pytest.mark.usefixtures("without_garbage_collector")
async def test_a_connection_whose_call_failed_is_closed(tmp_path: Path) -> None:
    connection = open_read_only(uri_of(tmp_path / "node.xml", [domain_xml("one", 1)]), threading.Event())
    is_closed = weakref.finalize(connection, lambda: None)
    assert await look_up_nobody(connection)
    start_closing(connection)
    del connection
    await asyncio.to_thread(eventually, lambda: not is_closed.alive, "the connection is closed", 10)


@pytest.mark.usefixtures("without_garbage_collector")
async def test_the_error_of_an_abandoned_call_is_dropped_by_its_own_thread() -> None:
    may_return, dropped_by = threading.Event(), list[str]()

    class Connection:
        def __del__(self) -> None:
            dropped_by.append(threading.current_thread().name)

    def fail_late() -> None:
        connection = Connection()
        may_return.wait()
        raise OSError(f"{connection} is lost")

    calls = make_calls()
    with pytest.raises(SourceLost, match="no answer"):
        await calls.run(fail_late, deadline_seconds=0.05)
    may_return.set()
    await asyncio.to_thread(eventually, lambda: calls.stuck == 0, "the call has returned")
    assert dropped_by == ["test-call"]


def join_call() -> None:
    for thread in threading.enumerate():
        if thread.name == "test-call":
            thread.join()


async def test_an_answer_that_arrives_with_the_deadline_is_returned() -> None:
    calls = make_calls()
    answer = asyncio.create_task(calls.run(lambda: "just in time", deadline_seconds=0))
    # The loop goes on when the call has returned, and finds both.
    asyncio.get_running_loop().call_soon(join_call)
    assert await answer == "just in time"
    assert calls.stuck == 0
