"""./dev bench strangers: what strangers at the pages cost ingest, scrapes and new guests.

The pages have users. Prometheus scrapes every second with the right password, and simulated guests report. Then so many
strangers log in with wrong passwords, each again as soon as it has its answer, on a new connection. Each stranger has
an address of its own, or with `--one-address` all have Prometheus' address.
"""

import argparse
import base64
import http.client
import multiprocessing
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bcrypt
import psycopg
from tools.bench.daemon import guestd, usage
from tools.bench.fleet import fleet, line_to_row_seconds
from tools.bench.server import own_store
from tools.bench.suite import print_row, quantile, run
from tools.harness.waiting import eventually, wait_seconds

PASSWORD = "of-prometheus"
FRESH = 10
ANSWER_SECONDS = 60.0


def main() -> None:
    """Measure without strangers and with them."""
    run(__doc__, _add_options, _measure)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--guests", type=int, default=50, help="simulated guests, each a message a second")
    parser.add_argument("--strangers", type=int, default=100, help="strangers with wrong passwords")
    parser.add_argument("--seconds", type=float, default=60, help="how long each state is measured")
    parser.add_argument("--one-address", action="store_true", help="the strangers have Prometheus' address")


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    rows = {}
    with own_store(arguments.guests, track_commit_timestamp="on") as (dsn, directory):
        channels = directory / "c"
        channels.mkdir()
        hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(10)).decode()
        (directory / "web.yml").write_text(f'basic_auth_users: {{prometheus: "{hashed}"}}\n')
        pages = f'web_config_file = "{directory / "web.yml"}"\n'
        with (
            fleet(channels, arguments.guests, interval_seconds=1, processes=20),
            guestd(dsn, channels, pages) as (pid, url),
        ):
            port = int(url.split(":")[2].partition("/")[0])
            counted = 'SELECT count(DISTINCT "machineId") FROM "SystemMetrics"'
            eventually(lambda: _number(dsn, counted) == arguments.guests, "all guests are stored", 120)
            names = ("scrape p50", "scrape max", "failed", "channel p50", "channel max", "ingest p50", "p99", "cores")
            print_row("", names)
            for name, strangers in (("quiet", 0), ("strangers", arguments.strangers)):
                with _logging_in(port, strangers, own_addresses=not arguments.one_address) as answers:
                    rows[name] = _measured(pid, port, dsn, channels, arguments.seconds)
                print_row(name, rows[name].values())
            print("answers to strangers:", dict(answers))
    return {"rows": rows, "answers": dict(answers)}


def _number(dsn: str, statement: str) -> int:
    with psycopg.connect(dsn) as connection:
        row = connection.execute(statement.encode()).fetchone()
    assert row is not None
    return int(row[0])


@dataclass
class _Scrapes:
    seconds: list[float] = field(default_factory=list)
    failed: int = 0


def _measured(pid: int, port: int, dsn: str, channels: Path, seconds: float) -> dict[str, float]:
    scrapes, stop = _Scrapes(), threading.Event()
    scraper = threading.Thread(target=_scrape, args=(port, scrapes, stop))
    began = time.time()
    scraper.start()
    with usage(pid) as used:
        fresh = _connect_fresh_channels(dsn, channels)
        wait_seconds(max(0.0, seconds - (time.time() - began)))
    ended = time.time()
    stop.set()
    scraper.join()
    wait_seconds(2)  # the last lines are stored
    median, p99, _ = line_to_row_seconds(dsn, began, ended)
    return {
        "scrape_p50_seconds": quantile(scrapes.seconds, 0.5),
        "scrape_max_seconds": max(scrapes.seconds),
        "scrapes_failed": float(scrapes.failed),
        "channel_p50_seconds": quantile(fresh, 0.5),
        "channel_max_seconds": max(fresh),
        "ingest_p50_seconds": median,
        "ingest_p99_seconds": p99,
        "cores": used.cores,
    }


def _scrape(port: int, scrapes: _Scrapes, stop: threading.Event) -> None:
    right = {"Authorization": _basic("prometheus", PASSWORD)}
    while not stop.wait(1):
        began = time.monotonic()
        try:
            status = _fetch(port, right, "127.0.0.1")
        except (OSError, http.client.HTTPException):
            status = 0
        scrapes.seconds.append(time.monotonic() - began)
        scrapes.failed += status != http.client.OK


def _fetch(port: int, headers: dict[str, str], source: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS, source_address=(source, 0))
    try:
        connection.request("GET", "/metrics", headers=headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def _connect_fresh_channels(dsn: str, channels: Path) -> list[float]:
    """Seconds from a new machine's socket to guestd's connection, one machine after another."""
    seconds = []
    for _ in range(FRESH):
        machine_id = uuid.uuid4()
        with psycopg.connect(dsn) as connection:
            connection.execute(
                """INSERT INTO "Machine" ("id", "name", "internalName", "status", "templateId", "os")
                SELECT %s, 'fresh', %s, 'running', "id", 'linux' FROM "MachineTemplate" LIMIT 1""",
                [machine_id, str(machine_id)],
            )
        wait_seconds(2)  # guestd has been notified of the row
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(channels / f"{machine_id}.socket"))
            listener.listen(1)
            began = time.monotonic()
            listener.settimeout(120)
            listener.accept()[0].close()
            seconds.append(time.monotonic() - began)
        (channels / f"{machine_id}.socket").unlink()
    return seconds


@contextmanager
def _logging_in(port: int, strangers: int, *, own_addresses: bool) -> Iterator[Counter[str]]:
    """Strangers, in a process of their own; their answers by status, complete after the block."""
    answers: Counter[str] = Counter()
    if not strangers:
        yield answers
        return
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=_be_strangers, args=(port, strangers, own_addresses, theirs), daemon=True)
    process.start()
    try:
        yield answers
        ours.send(None)
        answers.update(ours.recv())
    finally:
        process.kill()
        process.join()


def _be_strangers(port: int, strangers: int, own_addresses: bool, pipe: Any) -> None:
    answers: Counter[str] = Counter()

    def log_in(number: int) -> None:
        source = f"127.0.1.{number + 1}" if own_addresses else "127.0.0.1"
        while True:
            try:
                status = str(_fetch(port, {"Authorization": _basic("prometheus", f"wrong {number}")}, source))
            except (OSError, http.client.HTTPException):
                status = "closed"
            answers[status] += 1

    for number in range(strangers):
        threading.Thread(target=log_in, args=(number,), daemon=True).start()
    pipe.recv()
    pipe.send(dict(answers))


if __name__ == "__main__":
    main()
