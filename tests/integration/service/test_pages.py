"""The HTTP pages, as Prometheus and people request them."""

import asyncio
import base64
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import bcrypt
import pytest
import trustme
from tools.harness.ports import free_port
from tools.harness.prometheus import Prometheus, promtool
from tools.harness.waiting import eventually

from guestd.core.config import Settings, TelemetrySettings
from guestd.core.errors import ConfigError
from guestd.core.supervision import Supervisor
from guestd.doctor.host import check_host
from guestd.service import http_auth
from guestd.service.http import serve_pages
from guestd.service.http_auth import WebAuth
from guestd.telemetry.registry import Telemetry
from support.daemon import Daemon, execute, metrics_line

SUPERVISOR = Supervisor(count_failure=lambda _: None, show_failing=lambda *_: None)
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
USERS = f'basic_auth_users:\n  alice: "{bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()}"\n'


def serving(auth: WebAuth | None = None, problems: Sequence[str] = ()) -> AbstractAsyncContextManager[int]:
    return serve_pages(
        Telemetry(),
        host="127.0.0.1",
        port=0,
        list_problems=lambda: list(problems),
        auth=auth or WebAuth(),
        supervisor=SUPERVISOR,
    )


async def fetch(url: str, context: ssl.SSLContext | None = None, **headers: str) -> tuple[int, str, str]:
    """Status, content type and text of a page."""

    def request() -> tuple[int, str, str]:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=headers), context=context) as answer:
                return answer.status, answer.headers["Content-Type"], answer.read().decode()
        except urllib.error.HTTPError as exc:
            return exc.code, exc.headers["Content-Type"], exc.read().decode()

    return await asyncio.to_thread(request)


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.asyncio
async def test_openmetrics_is_served_on_request() -> None:
    async with serving() as port:
        _, plain, _ = await fetch(f"http://127.0.0.1:{port}/metrics")
        _, asked, text = await fetch(f"http://127.0.0.1:{port}/metrics", Accept=OPENMETRICS)
    assert plain.startswith("text/plain")
    assert asked.startswith("application/openmetrics-text")
    assert text.endswith("# EOF\n")


@pytest.mark.asyncio
async def test_the_status_page_lists_the_problems() -> None:
    async with serving(problems=["store: <no> answer"]) as port:
        status, kind, text = await fetch(f"http://127.0.0.1:{port}/")
    assert (status, kind) == (200, "text/html; charset=utf-8")
    assert "Not ready:" in text
    assert "<li>store: &lt;no&gt; answer</li>" in text
    async with serving() as port:
        assert "Ready." in (await fetch(f"http://127.0.0.1:{port}/"))[2]


@pytest.mark.asyncio
async def test_configured_users_must_log_in(tmp_path: Path) -> None:
    (tmp_path / "web.yml").write_text(USERS)
    async with serving(http_auth.read_web_config(str(tmp_path / "web.yml"))) as port:
        url = f"http://127.0.0.1:{port}/metrics"
        right = basic("alice", "secret")
        for _ in range(2):  # the second time from the cache
            assert (await fetch(url, Authorization=right))[0] == 200
        wrong = ["", basic("alice", "wrong"), basic("bob", "secret"), basic("bob", "nobody"), "Basic !", "Bearer x"]
        assert [(await fetch(url, Authorization=each))[0] for each in wrong] == [401] * len(wrong)
        assert (await fetch(f"http://127.0.0.1:{port}/healthz"))[0] == 401


@pytest.mark.asyncio
async def test_pages_are_encrypted_with_a_configured_certificate(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "both.pem"))
    (tmp_path / "both.pem").chmod(0o600)
    (tmp_path / "web.yml").write_text("tls_server_config: {cert_file: both.pem, key_file: both.pem}\n")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    async with serving(http_auth.read_web_config(str(tmp_path / "web.yml"))) as port:
        assert (await fetch(f"https://localhost:{port}/healthz", context))[0] == 200


@pytest.mark.parametrize("listen_host", ["::1", "[::1]", "::", "127.0.0.1", "0.0.0.0", ""])
@pytest.mark.asyncio
async def test_the_doctor_finds_the_pages_wherever_they_listen(listen_host: str) -> None:
    telemetry = TelemetrySettings(listen_host=listen_host, listen_port=free_port())
    host, port = telemetry.listen_host, telemetry.listen_port
    async with serve_pages(
        Telemetry(), host=host, port=port, list_problems=list, auth=WebAuth(), supervisor=SUPERVISOR
    ):
        found = await asyncio.to_thread(lambda: list(check_host(Settings(telemetry=telemetry))))
    assert f"runs and is ready (port {port})" in [each.text for each in found if each.subject == "guestd"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("basic_auth_users: {alice: secret}\n", "alice is no bcrypt hash"),
        ("rate_limit: 1\n", "rate_limit"),
        ("tls_server_config: {cert_file: a, key_file: b}\n", "key_file .*/b: No such file"),
        ("tls_server_config: {cert_file: a}\n", "key_file"),
        (": :\n", "web_config_file"),
    ],
    ids=["a password in the clear", "an unknown key", "no certificate", "no key", "no YAML"],
)
def test_a_web_configuration_that_cannot_take_effect_is_rejected(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "web.yml").write_text(content)
    with pytest.raises(ConfigError, match=words):
        http_auth.read_web_config(str(tmp_path / "web.yml"))


@pytest.fixture
def prometheus_of(directory: Path) -> Callable[[str], Prometheus]:
    return lambda url: Prometheus(directory / "prometheus", [url.removeprefix("http://")])


def test_promtool_finds_nothing_wrong_with_the_metrics(daemon: Daemon) -> None:
    guest = daemon.guest()
    daemon.start()
    guest.write(metrics_line())
    eventually(lambda: daemon.metric("guestd_frames_done_total", outcome="stored") == 1, "the sample is stored")
    page = daemon.page("/metrics")[1]
    assert "guest_cpu_usage_ratio{" in page
    status, said = promtool("check", "metrics", text=page)
    # Names that dashboards of the platform and of exporters expect are not reported.
    ours = [line for line in said.splitlines() if line.startswith("guest")]
    assert ours == [], said
    assert status in (0, 3)


def test_a_real_prometheus_scrapes_guests_until_their_machine_is_deleted(
    daemon: Daemon, prometheus_of: Callable[[str], Prometheus]
) -> None:
    guest = daemon.guest()
    daemon.start()
    guest.write(metrics_line())
    prometheus = prometheus_of(daemon.url())
    try:
        prometheus.start()
        eventually(lambda: prometheus.query("guest_memory_total_bytes"), "the guest's gauges are scraped")
        (up,) = prometheus.query("up")
        assert up["value"][1] == "1"
        execute(daemon.dsn, 'DELETE FROM "Machine"')
        eventually(lambda: not prometheus.query("guest_memory_total_bytes"), "they are gone")
    finally:
        prometheus.stop()
