"""guestd's pages, as Prometheus and people ask for them."""

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
from tools.harness.prometheus import Prometheus, promtool

from guestd.core.errors import ConfigError
from guestd.service import http_auth
from guestd.service.http import serve_pages
from guestd.service.http_auth import WebAuth
from guestd.telemetry.registry import Telemetry
from support.daemon import Daemon, eventually, execute, metrics_line

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
USERS = f'basic_auth_users:\n  alice: "{bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()}"\n'


def serving(protection: WebAuth | None = None, problems: Sequence[str] = ()) -> AbstractAsyncContextManager[int]:
    return serve_pages(
        Telemetry(), host="127.0.0.1", port=0, problems=lambda: list(problems), protection=protection or WebAuth()
    )


async def got(url: str, context: ssl.SSLContext | None = None, **headers: str) -> tuple[int, str, str]:
    """Status, content type and text of a page."""

    def ask() -> tuple[int, str, str]:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=headers), context=context) as answer:
                return answer.status, answer.headers["Content-Type"], answer.read().decode()
        except urllib.error.HTTPError as exc:
            return exc.code, exc.headers["Content-Type"], exc.read().decode()

    return await asyncio.to_thread(ask)


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.asyncio
async def test_openmetrics_is_given_to_those_who_ask_for_it() -> None:
    async with serving() as port:
        _, plain, _ = await got(f"http://127.0.0.1:{port}/metrics")
        _, asked, text = await got(f"http://127.0.0.1:{port}/metrics", Accept=OPENMETRICS)
    assert plain.startswith("text/plain")
    assert asked.startswith("application/openmetrics-text")
    assert text.endswith("# EOF\n")


@pytest.mark.asyncio
async def test_the_first_page_says_in_plain_words_what_is_wrong() -> None:
    async with serving(problems=["store: <no> answer"]) as port:
        status, kind, text = await got(f"http://127.0.0.1:{port}/")
    assert (status, kind) == (200, "text/html; charset=utf-8")
    assert "What is wrong:" in text
    assert "<li>store: &lt;no&gt; answer</li>" in text
    async with serving() as port:
        assert "All is well" in (await got(f"http://127.0.0.1:{port}/"))[2]


@pytest.mark.asyncio
async def test_pages_are_for_users_where_users_are_named(tmp_path: Path) -> None:
    (tmp_path / "web.yml").write_text(USERS)
    async with serving(http_auth.read_web_config(str(tmp_path / "web.yml"))) as port:
        url = f"http://127.0.0.1:{port}/metrics"
        right = basic("alice", "secret")
        for _ in range(2):  # the second time it is remembered
            assert (await got(url, Authorization=right))[0] == 200
        wrong = ["", basic("alice", "wrong"), basic("bob", "secret"), basic("bob", "nobody"), "Basic !", "Bearer x"]
        assert [(await got(url, Authorization=each))[0] for each in wrong] == [401] * len(wrong)
        assert (await got(f"http://127.0.0.1:{port}/healthz"))[0] == 401


@pytest.mark.asyncio
async def test_pages_are_encrypted_where_a_certificate_is_named(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "both.pem"))
    (tmp_path / "web.yml").write_text("tls_server_config: {cert_file: both.pem, key_file: both.pem}\n")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    async with serving(http_auth.read_web_config(str(tmp_path / "web.yml"))) as port:
        assert (await got(f"https://localhost:{port}/healthz", context))[0] == 200


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("basic_auth_users: {alice: secret}\n", "alice is no bcrypt hash"),
        ("rate_limit: 1\n", "rate_limit"),
        ("tls_server_config: {cert_file: a, key_file: b}\n", "certificates"),
        ("tls_server_config: {cert_file: a}\n", "key_file"),
        (": :\n", "web_config_file"),
    ],
    ids=["a password in the clear", "an unknown key", "no certificate", "no key", "no YAML"],
)
def test_a_protection_that_would_not_be_there_is_refused(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "web.yml").write_text(content)
    with pytest.raises(ConfigError, match=words):
        http_auth.read_web_config(str(tmp_path / "web.yml"))


@pytest.fixture
def prometheus_of(directory: Path) -> Callable[[str], Prometheus]:
    return lambda url: Prometheus(directory / "prometheus", [url.removeprefix("http://")])


def test_promtool_has_nothing_to_say_against_what_is_served(daemon: Daemon) -> None:
    guest = daemon.guest()
    daemon.start()
    guest.write(metrics_line())
    eventually(lambda: daemon.metric("guestd_frames_done_total", outcome="stored") == 1, "the sample is stored")
    page = daemon.page("/metrics")[1]
    assert "guest_cpu_usage_ratio{" in page
    status, said = promtool("check", "metrics", text=page)
    # What the platform's and the exporters' dashboards are used to is not to be renamed.
    ours = [line for line in said.splitlines() if line.startswith("guest")]
    assert ours == [], said
    assert status in (0, 3)


def test_a_real_prometheus_reads_guests_and_they_go_with_their_machine(
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
        eventually(lambda: not prometheus.query("guest_memory_total_bytes"), "they have gone")
    finally:
        prometheus.stop()
