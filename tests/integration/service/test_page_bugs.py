"""A page that fails costs only its answer, and accepting goes on: logged with the traceback, and counted."""

import asyncio
import urllib.error
import urllib.request
from collections import Counter
from functools import partial

import pytest
from structlog.testing import capture_logs

from guestd.core.supervision import Supervisor
from guestd.core.tasks import Backoff
from guestd.service.connections import Connections, Deadlines, listen
from guestd.service.http import serve_pages
from guestd.service.http_auth import WebAuth
from guestd.telemetry.registry import PageMetrics, Telemetry

pytestmark = pytest.mark.asyncio
DEADLINE_SECONDS = 20


def get(port: int, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=DEADLINE_SECONDS) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as exc:
        return exc.code


async def test_a_page_that_fails_is_logged_with_its_traceback_and_counted_and_the_others_are_served() -> None:
    failures = Counter[str]()

    def list_problems() -> list[str]:
        raise LookupError("a bug")

    supervisor = Supervisor(count_failure=lambda name: failures.update([name]), show_failing=lambda *_: None)
    pages = serve_pages(
        Telemetry(), host="127.0.0.1", port=0, list_problems=list_problems, auth=WebAuth(), supervisor=supervisor
    )
    with capture_logs() as logged:
        async with pages as port:
            paths = ("/readyz", "/readyz", "/", "/metrics", "/healthz")
            assert [await asyncio.to_thread(get, port, path) for path in paths] == [500, 500, 500, 200, 200]
    assert failures["pages"] == 3
    # Once a minute for a line of code.
    (line,) = [each for each in logged if "report the traceback" in each["event"]]
    assert (line["task"], type(line["exc_info"])) == ("pages", LookupError)


async def test_after_a_bug_in_accepting_one_the_next_connections_are_accepted() -> None:
    created = 0
    served = asyncio.Event()

    class Greeter(asyncio.Protocol):
        def connection_made(self, _: asyncio.BaseTransport) -> None:
            served.set()

    def create_protocol() -> asyncio.BaseProtocol:
        nonlocal created
        created += 1
        if created == 1:
            raise LookupError("a bug")
        return Greeter()

    failures = Counter[str]()
    supervisor = Supervisor(count_failure=lambda name: failures.update([name]), show_failing=lambda *_: None)
    (listener,) = listen("127.0.0.1", 0)
    connections = Connections(PageMetrics(), Deadlines())
    accept = partial(connections.accept_all, listener, create_protocol, None)
    accepting = asyncio.create_task(supervisor.run("pages", accept, backoff=Backoff(first_seconds=0.01)))
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            for expected in (1, 2):
                _, writer = await asyncio.open_connection(*listener.getsockname())
                while created < expected:  # noqa: ASYNC110 -- what is waited for sets no event
                    await asyncio.sleep(0.01)
                writer.close()
            await served.wait()
    finally:
        accepting.cancel()
        await asyncio.wait([accepting])
        await connections.close()
        listener.close()
    assert failures["pages"] == 1
