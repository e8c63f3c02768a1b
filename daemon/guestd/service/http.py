"""guestd's pages: /metrics for Prometheus, /healthz and /readyz for supervisors, / for people."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from html import escape

from aiohttp import web
from prometheus_client.exposition import choose_encoder

from guestd import __version__
from guestd.core.errors import ConfigError
from guestd.service.http_auth import WebAuth
from guestd.telemetry.exposition import joined, rendered
from guestd.telemetry.registry import Telemetry

Problems = Callable[[], list[str]]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_PAGE = """\
<!doctype html><html lang="en"><head><meta charset="utf-8"><title>guestd</title></head><body>
<h1>guestd {version}</h1>
<p>{verdict}</p>
<ul>{problems}</ul>
<p><a href="metrics">/metrics</a> for Prometheus; <a href="readyz">/readyz</a> says the above to programs;
<a href="healthz">/healthz</a> says that it is alive.</p>
<p><code>guestd doctor</code> on the host names the fix of what is wrong.</p>
</body></html>
"""


@asynccontextmanager
async def serve_pages(
    telemetry: Telemetry, *, host: str, port: int, problems: Problems, protection: WebAuth
) -> AsyncIterator[int]:
    """Serve the pages while in the context; gives the port. `problems` says why guestd is not ready."""

    async def metrics(request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))

        def written() -> bytes:
            families = rendered(telemetry.vms.families(), is_openmetrics="openmetrics" in content_type)
            return joined(encode(telemetry.registry), families)

        # A thousand domains have tens of thousands of samples: on a thread, so that ingest goes on meanwhile.
        return web.Response(body=await asyncio.to_thread(written), headers={"Content-Type": content_type})

    async def alive(_: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def ready(_: web.Request) -> web.Response:
        found = problems()
        return web.Response(text="\n".join(found or ["ready"]) + "\n", status=503 if found else 200)

    async def landing(_: web.Request) -> web.Response:
        return web.Response(text=_render_landing(problems()), content_type="text/html")

    @web.middleware
    async def admitted(request: web.Request, handler: Handler) -> web.StreamResponse:
        if await protection.is_authorised(request.headers.get("Authorization", "")):
            return await handler(request)
        return web.Response(status=401, text="who are you?\n", headers={"WWW-Authenticate": 'Basic realm="guestd"'})

    application = web.Application(middlewares=[admitted])
    routes = {"/": landing, "/metrics": metrics, "/healthz": alive, "/readyz": ready}
    application.add_routes([web.get(path, handler) for path, handler in routes.items()])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port, ssl_context=protection.tls)
        try:
            await site.start()
        except OSError as exc:
            raise ConfigError(f"telemetry: cannot listen on {host} port {port}: {exc.strerror}") from exc
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def _render_landing(problems: list[str]) -> str:
    verdict = "What is wrong:" if problems else "All is well: guests are read, and what they say is stored."
    return _PAGE.format(
        version=__version__, verdict=verdict, problems="".join(f"<li>{escape(each)}</li>" for each in problems)
    )
