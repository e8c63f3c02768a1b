"""The HTTP pages: /metrics for Prometheus, /healthz and /readyz for supervisors, a status page at /."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from html import escape

from aiohttp import web
from prometheus_client.exposition import choose_encoder

from guestd import __version__
from guestd.core.address import format_host_port
from guestd.core.errors import ConfigError
from guestd.core.text import escape_controls
from guestd.service.http_auth import WebAuth
from guestd.telemetry.exposition import append_to_page, render
from guestd.telemetry.registry import Telemetry

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

UNAUTHORIZED = "Unauthorized\n"
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
    telemetry: Telemetry, *, host: str, port: int, list_problems: Callable[[], list[str]], auth: WebAuth
) -> AsyncIterator[int]:
    """Serve the pages for the duration of the context; yields the port. `list_problems`: why guestd is not ready."""

    async def metrics(request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))

        def render_page() -> bytes:
            families = render(telemetry.build_families(), is_openmetrics="openmetrics" in content_type)
            return append_to_page(encode(telemetry.registry), families)

        # A thousand domains have tens of thousands of samples: encoded on a thread, so that ingest is not blocked.
        return web.Response(body=await asyncio.to_thread(render_page), headers={"Content-Type": content_type})

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def readyz(_: web.Request) -> web.Response:
        problems = list_problems()
        lines = map(escape_controls, problems or ["ready"])
        return web.Response(text="\n".join(lines) + "\n", status=503 if problems else 200)

    async def landing(_: web.Request) -> web.Response:
        return web.Response(text=_render_landing(list_problems()), content_type="text/html")

    @web.middleware
    async def require_login(request: web.Request, handler: Handler) -> web.StreamResponse:
        if await auth.is_authorised(request.headers.get("Authorization", "")):
            return await handler(request)
        return web.Response(status=401, text=UNAUTHORIZED, headers={"WWW-Authenticate": 'Basic realm="guestd"'})

    application = web.Application(middlewares=[require_login])
    routes = {"/": landing, "/metrics": metrics, "/healthz": healthz, "/readyz": readyz}
    application.add_routes([web.get(path, handler) for path, handler in routes.items()])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port, ssl_context=auth.tls)
        try:
            await site.start()
        except OSError as exc:
            raise ConfigError(
                f"telemetry: cannot listen on {format_host_port(host, port)}: {exc.strerror}"
                " (telemetry.listen_host, telemetry.listen_port)"
            ) from exc
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def _render_landing(problems: list[str]) -> str:
    status = "Not ready:" if problems else "Ready."
    return _PAGE.format(
        version=__version__,
        status=status,
        problems="".join(f"<li>{escape(escape_controls(each))}</li>" for each in problems),
    )
