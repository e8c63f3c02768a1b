"""Strangers at the pages: who says nothing, says it slowly, never reads, or asks for what is no page."""

import asyncio
import contextlib
import functools
import os
import shutil
import socket
import ssl
import stat
import subprocess
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, ParamSpec

import bcrypt
import pytest
import trustme
import uvloop

from guestd.core.supervision import Supervisor
from guestd.service import http_auth
from guestd.service.connections import MAX_CONNECTIONS, Deadlines
from guestd.service.http import serve_pages
from guestd.service.http_auth import MAX_CHECKS, MAX_CHECKS_OF_ADDRESS, PasswordChecks, TooManyLogins, WebAuth
from guestd.telemetry.exposition import Family
from guestd.telemetry.registry import Telemetry

P = ParamSpec("P")
SHORT = Deadlines(first_request_seconds=0.3, answer_seconds=0.3, idle_seconds=0.3)
# What ends a connection before its answer is something else, for these are longer than a test.
LONG = Deadlines(first_request_seconds=600, answer_seconds=600, idle_seconds=0.5)
NEVER = Deadlines(first_request_seconds=600, answer_seconds=600, idle_seconds=600)
GET = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
LAST_GET = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
PAGE_BYTES = 10_000_000


def on_uvloop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test on the event loop of the daemon, which has transports of its own."""

    @functools.wraps(test)
    def run(*arguments: P.args, **named: P.kwargs) -> None:
        uvloop.run(test(*arguments, **named))

    return run


@pytest.fixture
def tls(tmp_path: Path) -> WebAuth:
    authority = trustme.CA()
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "both.pem"))
    (tmp_path / "both.pem").chmod(0o600)
    (tmp_path / "web.yml").write_text("tls_server_config: {cert_file: both.pem, key_file: both.pem}\n")
    return http_auth.read_web_config(str(tmp_path / "web.yml"))


@contextlib.asynccontextmanager
async def serving(
    deadlines: Deadlines = LONG, auth: WebAuth | None = None, telemetry: Telemetry | None = None
) -> AsyncIterator[int]:
    """Pages that have ended all connections at the end."""
    before = count_sockets()
    async with serve_pages(
        telemetry or Telemetry(),
        host="127.0.0.1",
        port=0,
        list_problems=list,
        auth=auth or WebAuth(),
        supervisor=Supervisor(count_failure=lambda _: None, show_failing=lambda *_: None),
        deadlines=deadlines,
    ) as port:
        yield port
    await becomes(lambda: count_sockets() <= before)


async def becomes(is_so: Callable[[], bool]) -> None:
    """Wait until it is so, and let the event loop run meanwhile."""
    async with asyncio.timeout(60):
        while not is_so():  # noqa: ASYNC110 -- of what is not in this process there is no event
            await asyncio.sleep(0.01)


def count_sockets() -> int:
    """Open sockets of this process."""
    numbers = [int(each.name) for each in Path("/proc/self/fd").iterdir()]
    return sum(is_socket(each) for each in numbers)


def is_socket(number: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(number).st_mode)
    except OSError:  # that of the directory itself
        return False


async def connect(port: int, source: str = "127.0.0.1") -> tuple[StreamReader, StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))


async def read_to_end(reader: StreamReader) -> bytes:
    """What comes until the connection has ended, in whatever way."""
    content = b""
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(60):
            while some := await reader.read(65536):
                content += some
    return content


async def say(port: int, request: bytes) -> bytes:
    """All that is answered to bytes, until the connection is ended."""
    reader, writer = await connect(port)
    writer.write(request)
    answer = await read_to_end(reader)
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    return answer


async def drip(writer: StreamWriter, content: bytes) -> None:
    """Write a byte at a time until the connection ends."""
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(60):
            while not writer.is_closing():
                writer.write(content)
                await writer.drain()
                await asyncio.sleep(0.02)


@pytest.mark.parametrize("with_tls", [False, True], ids=["plain", "TLS"])
@on_uvloop
async def test_who_connects_and_says_nothing_is_disconnected(with_tls: bool, tls: WebAuth) -> None:
    async with serving(SHORT, tls if with_tls else None) as port:
        reader, writer = await connect(port)
        assert await read_to_end(reader) == b""
        writer.close()


@pytest.mark.parametrize("with_tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize(
    "request_part",
    [
        b"G",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nX-Long: ",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999\r\n\r\n",
    ],
    ids=["request line", "header", "body"],
)
@on_uvloop
async def test_who_says_it_slowly_is_disconnected(request_part: bytes, with_tls: bool, tls: WebAuth) -> None:
    context = ssl.create_default_context() if with_tls else None
    if context is not None:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    async with serving(SHORT, tls if with_tls else None) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        writer.write(request_part)
        dripping = asyncio.create_task(drip(writer, b"a"))
        answer = await read_to_end(reader)
        assert answer[9:12] in (b"", b"400", b"405")
        writer.transport.abort()
        await dripping


@on_uvloop
async def test_an_idle_connection_ends_after_its_answer_and_not_before() -> None:
    async with serving(SHORT) as port:
        reader, writer = await connect(port)
        for _ in range(2):
            writer.write(GET)
            assert b"alive" in await reader.readuntil(b"alive\n")
        assert await read_to_end(reader) == b""
        writer.close()


@on_uvloop
async def test_who_never_reads_a_long_page_is_disconnected_and_others_are_answered() -> None:
    telemetry = Telemetry()
    labels = [("x" * 1000 + str(number),) for number in range(PAGE_BYTES // 1000)]
    telemetry.add_source(lambda: [Family("guest_long", "Long.", False, ("name",), [(each, 1.0) for each in labels])])
    async with serving(Deadlines(answer_seconds=3), telemetry=telemetry) as port:
        with socket.create_connection(("127.0.0.1", port)) as reader:
            reader.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
            while not telemetry.pages.closed.labels("deadline")._value.get():
                assert b"alive" in await say(port, LAST_GET)
            # What the kernel had taken for it; the page is longer.
            assert len(await asyncio.to_thread(receive_all, reader)) < PAGE_BYTES


def receive_all(connection: socket.socket) -> bytes:
    content = b""
    with contextlib.suppress(ConnectionError):
        while some := connection.recv(65536):
            content += some
    return content


@on_uvloop
async def test_a_connection_over_the_maximum_takes_the_place_of_a_silent_one() -> None:
    telemetry = Telemetry()
    async with serving(NEVER, telemetry=telemetry) as port:
        ours, our_writer = await connect(port)
        our_writer.write(GET)
        await ours.readuntil(b"alive\n")
        silent = [await connect(port, "127.0.0.2") for _ in range(3 * MAX_CONNECTIONS)]
        assert b"alive" in await say(port, LAST_GET)
        our_writer.write(GET)
        assert b"alive" in await ours.readuntil(b"alive\n")
        assert telemetry.pages.closed.labels("replaced")._value.get() > MAX_CONNECTIONS
        assert count_sockets() < 3 * MAX_CONNECTIONS + MAX_CONNECTIONS + 30
        for _, writer in silent:
            writer.transport.abort()
        our_writer.close()


OVERSIZE = b"GET /healthz HTTP/1.1\r\nHost: a\r\n"
REFUSED = {
    "random bytes": b"\x00\xff\x16\x03\x01" * 100 + b"\r\n\r\n",
    "TLS on a plain port": bytes.fromhex("1603010200010001fc0303") + b"\x01" * 200,
    "a long request line": b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n",
    "a long field": OVERSIZE + b"X: " + b"a" * 20_000 + b"\r\n\r\n",
    "many fields": OVERSIZE + b"".join(b"X%d: 1\r\n" % number for number in range(1000)) + b"\r\n",
    "two lengths": OVERSIZE + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "a length and chunks": OVERSIZE + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "an odd transfer coding": OVERSIZE + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "a field without a name": OVERSIZE + b": value\r\n\r\n",
    "a space before the colon": OVERSIZE + b"Content-Length : 4\r\n\r\nabcd",
}


@pytest.mark.parametrize("request_bytes", REFUSED.values(), ids=REFUSED)
@on_uvloop
async def test_what_is_no_request_is_refused_without_a_line_in_the_log(
    request_bytes: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    async with serving() as port:
        for _ in range(10):
            answer = await say(port, request_bytes)
            assert answer == b"" or answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 ")), answer[:200]
            assert answer.count(b"HTTP/1.") <= 1
        assert b"alive" in await say(port, LAST_GET)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01" + b"\xff" * 600, b""])
@on_uvloop
async def test_what_is_no_handshake_is_refused_without_a_line_in_the_log(
    said: bytes, tls: WebAuth, capfd: pytest.CaptureFixture[str]
) -> None:
    async with serving(SHORT, tls) as port:
        for _ in range(10):
            assert b"HTTP" not in await say(port, said)
    assert capfd.readouterr().err == ""


OTHER_METHODS = ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "PROPFIND"]


@pytest.mark.parametrize("method", OTHER_METHODS)
@on_uvloop
async def test_other_methods_are_refused(method: str, capfd: pytest.CaptureFixture[str]) -> None:
    target = "a:1" if method == "CONNECT" else "/metrics"
    async with serving() as port:
        answer = await say(port, f"{method} {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        assert answer[9:12] in (b"400", b"404", b"405"), answer
        assert b"alive" in await say(port, LAST_GET)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("target", ["/..", "//", "/%2e%2e/etc/passwd", "/metrics/", "/\xff", "http://b/metrics2", "*"])
@on_uvloop
async def test_other_paths_are_no_pages(target: str, capfd: pytest.CaptureFixture[str]) -> None:
    async with serving() as port:
        answer = await say(port, f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode("latin-1"))
        assert answer[9:12] in (b"400", b"404"), answer
    assert capfd.readouterr().err == ""


@on_uvloop
async def test_a_body_is_not_another_request() -> None:
    inner = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"
    async with serving() as port:
        answer = await say(port, OVERSIZE + b"Content-Length: %d\r\n\r\n" % len(inner) + inner)
    assert answer.count(b"HTTP/1.1 ") == 1


@on_uvloop
async def test_head_has_the_length_of_the_page_and_no_page() -> None:
    async with serving() as port:
        answer = await say(port, b"HEAD /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
    header, _, body = answer.partition(b"\r\n\r\n")
    assert header.startswith(b"HTTP/1.1 200 ")
    assert b"Content-Length: " in header
    assert body == b""


@pytest.mark.parametrize(
    "accept", ["application/openmetrics-text; version=x", "text/plain; version=" + "9" * 5000], ids=["text", "digits"]
)
@on_uvloop
async def test_an_odd_accept_field_gets_a_page(accept: str, capfd: pytest.CaptureFixture[str]) -> None:
    async with serving() as port:
        answer = await say(port, f"GET /metrics HTTP/1.1\r\nHost: a\r\nAccept: {accept}\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(shutil.which("openssl") is None, reason="this host has no openssl")
@on_uvloop
async def test_a_client_cannot_renegotiate(tls: WebAuth) -> None:
    async with serving(auth=tls) as port:
        client = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-tls1_2", "-legacy_renegotiation"]

        def renegotiate() -> str:
            done = subprocess.run(client, input=b"R\n", capture_output=True, timeout=60, check=False)
            return (done.stdout + done.stderr).decode(errors="replace")

        said = await asyncio.to_thread(renegotiate)
    assert "RENEGOTIATING" in said
    assert "no renegotiation" in said


# Of the lowest cost: what waits has been counted before the first check ends, however long it takes.
HASHED = bcrypt.hashpw(b"secret", bcrypt.gensalt(4))


async def outcomes(check: Callable[[int], "asyncio.Future[bool]"], number: int) -> tuple[int, int]:
    """How many of so many checks at once were made, and how many were refused."""
    answers = await asyncio.gather(*(check(each) for each in range(number)), return_exceptions=True)
    refused = sum(isinstance(each, TooManyLogins) for each in answers)
    assert sum(each is False for each in answers) == number - refused
    return number - refused, refused


@on_uvloop
async def test_few_passwords_wait_for_their_check_and_of_one_address_fewer() -> None:
    checks = PasswordChecks()

    def check(number: int, address: str) -> "asyncio.Future[bool]":
        return asyncio.ensure_future(checks.check(b"wrong %d" % number, HASHED, address))

    assert await outcomes(lambda number: check(number, f"10.0.0.{number}"), 100) == (MAX_CHECKS, 100 - MAX_CHECKS)
    assert await outcomes(lambda number: check(number, "10.0.0.1"), 100) == (
        MAX_CHECKS_OF_ADDRESS,
        100 - MAX_CHECKS_OF_ADDRESS,
    )
    assert await checks.check(b"secret", HASHED, "10.0.0.1")
