"""The HTTP pages: /metrics for Prometheus, /healthz and /readyz for supervisors, a status page at /."""

from __future__ import annotations

import asyncio
import functools
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from html import escape
from http import HTTPStatus

import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware

from guestd import __version__
from guestd.core.address import format_host_port
from guestd.core.errors import ConfigError
from guestd.core.supervision import Supervisor
from guestd.core.text import escape_controls
from guestd.service.connections import REQUESTS_A_SECOND, Connections, Deadlines, Pace, listen
from guestd.service.http_auth import TooManyLogins, WebAuth
from guestd.service.metrics_page import MetricsPage, is_openmetrics
from guestd.telemetry.registry import Telemetry

log = structlog.get_logger()

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

UNAUTHORIZED = "Unauthorized\n"
BUSY = "Too many logins are being checked, try again\n"
# aiohttp's own: a header line, a field of it, the number of fields. Their sum bounds what a request may be.
HEADER_BYTES, HEADER_FIELDS = 8190, 64
# No page has a use for a request's body: what is left of one is read for so long, so that its sender sees the answer.
BODY_SECONDS = 1.0
RETRY_AFTER_SECONDS = 5
WRITE_BYTES = 256 * 1024
_PAGE = """\
<!doctype html><html lang="en"><head><meta charset="utf-8"><title>guestd</title></head><body>
<h1>guestd {version}</h1>
<p>{status}</p>
<ul>{problems}</ul>
<p><a href="metrics">/metrics</a>: metrics for Prometheus; <a href="readyz">/readyz</a>: the status above as text;
<a href="healthz">/healthz</a>: liveness.</p>
<p>Run <code>guestd doctor</code> on the host for checks and fixes.</p>
</body></html>
"""


@asynccontextmanager
async def serve_pages(
    telemetry: Telemetry,
    *,
    host: str,
    port: int,
    list_problems: Callable[[], list[str]],
    auth: WebAuth,
    supervisor: Supervisor,
    deadlines: Deadlines = Deadlines(),  # noqa: B008 -- frozen
) -> AsyncIterator[int]:
    """Serve the pages for the duration of the context; yields the port. `list_problems`: why guestd is not ready."""
    page = MetricsPage(telemetry)

    async def metrics(request: web.Request) -> web.StreamResponse:
        content = await page.get(is_openmetrics(request.headers.get("Accept", "")))
        answer = web.StreamResponse(headers={"Content-Type": content.content_type})
        answer.content_length = len(content.text)
        await answer.prepare(request)
        if request.method != "HEAD":
            # In parts, so that a reader that is slow has a part of the page in its buffer and not all of it.
            for start in range(0, len(content.text), WRITE_BYTES):
                await answer.write(content.text[start : start + WRITE_BYTES])
        return answer

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def readyz(_: web.Request) -> web.Response:
        problems = list_problems()
        lines = map(escape_controls, problems or ["ready"])
        return web.Response(text="\n".join(lines) + "\n", status=503 if problems else 200)

    async def landing(_: web.Request) -> web.Response:
        return web.Response(text=_render_landing(list_problems()), content_type="text/html")

    connections = Connections(telemetry.pages, deadlines)
    application = web.Application(
        middlewares=[_bound_answers(connections, supervisor), _require_login(auth, connections, telemetry)]
    )
    routes = {"/": landing, "/metrics": metrics, "/healthz": healthz, "/readyz": readyz}
    application.add_routes([web.get(path, handler) for path, handler in routes.items()])
    async with _serve(
        application, connections, host=host, port=port, tls=auth.tls, supervisor=supervisor
    ) as bound_port:
        yield bound_port


@asynccontextmanager
async def _serve(
    application: web.Application,
    connections: Connections,
    *,
    host: str,
    port: int,
    tls: ssl.SSLContext | None,
    supervisor: Supervisor,
) -> AsyncIterator[int]:
    runner = web.AppRunner(
        application,
        access_log=None,
        # A stranger's broken request is not worth a line; errors of our own are noted by `_bound_answers`.
        logger=_create_silent_logger(),
        # Connections has the deadlines, and no connection outlives a day of them.
        keepalive_timeout=86400,
        handler_cancellation=True,
        auto_decompress=False,
        lingering_time=BODY_SECONDS,
        max_line_size=HEADER_BYTES,
        max_field_size=HEADER_BYTES,
        max_headers=HEADER_FIELDS,
        shutdown_timeout=BODY_SECONDS,
    )
    await runner.setup()
    assert runner.server is not None
    try:
        listeners = await asyncio.to_thread(listen, host, port)
    except OSError as exc:
        raise ConfigError(
            f"telemetry: cannot listen on {format_host_port(host, port)}: {exc.strerror}"
            " (telemetry.listen_host, telemetry.listen_port)"
        ) from exc
    accepting = []
    for each in listeners:
        accept = functools.partial(connections.accept_all, each, runner.server, tls)
        supervised = supervisor.run("pages", accept, subject=str(each.getsockname()[0]))
        accepting.append(asyncio.create_task(supervised, name="pages-accept"))
    try:
        yield listeners[0].getsockname()[1]
    finally:
        for task in accepting:
            task.cancel()
        await asyncio.wait(accepting)
        for each in listeners:
            each.close()
        await runner.cleanup()
        await connections.close()


def _bound_answers(connections: Connections, supervisor: Supervisor) -> Middleware:
    """A middleware: requests have a rate, and each a deadline until its answer has been read."""
    pace = Pace(REQUESTS_A_SECOND)

    @web.middleware
    async def bound(request: web.Request, handler: Handler) -> web.StreamResponse:
        with connections.answering(connections.get(request.protocol)):
            await pace.wait_turn()
            try:
                answer = await handler(request)
            except web.HTTPException as exc:  # no such page, or another method
                answer = web.Response(status=exc.status, text=exc.text)
            except ConnectionError:
                raise
            except Exception as exc:
                supervisor.note_bug("pages", exc)
                answer = web.Response(status=500, text=f"{HTTPStatus.INTERNAL_SERVER_ERROR.phrase}\n")
            # Here and not in aiohttp, which waits for the reader without a deadline.
            await answer.prepare(request)
            await answer.write_eof()
            return answer

    return bound


def _require_login(auth: WebAuth, connections: Connections, telemetry: Telemetry) -> Middleware:
    """A middleware: where there are users, a request has the password of one."""

    @web.middleware
    async def require_login(request: web.Request, handler: Handler) -> web.StreamResponse:
        connection = connections.get(request.protocol)
        try:
            is_authorised = await auth.is_authorised(request.headers.get("Authorization", ""), connection.address)
        except TooManyLogins:
            telemetry.pages.logins_refused.labels("busy").inc()
            return web.Response(status=503, text=BUSY, headers={"Retry-After": str(RETRY_AFTER_SECONDS)})
        if not is_authorised:
            telemetry.pages.logins_refused.labels("wrong").inc()
            return web.Response(status=401, text=UNAUTHORIZED, headers={"WWW-Authenticate": 'Basic realm="guestd"'})
        connection.has_logged_in = bool(auth.users)
        return await handler(request)

    return require_login


def _create_silent_logger() -> logging.Logger:
    logger = logging.Logger("pages")
    logger.disabled = True
    return logger


def _render_landing(problems: list[str]) -> str:
    status = "Not ready:" if problems else "Ready."
    return _PAGE.format(
        version=__version__,
        status=status,
        problems="".join(f"<li>{escape(escape_controls(each))}</li>" for each in problems),
    )
