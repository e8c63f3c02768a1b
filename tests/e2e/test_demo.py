"""`./dev demo`, as a newcomer types it."""

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import psutil
import psycopg
import pytest
from tools.harness.cluster import prefix
from tools.harness.waiting import eventually

from support.store import Server

ROOT = Path(__file__).parents[2]
DEADLINE_SECONDS = 60


@dataclass(frozen=True)
class Place:
    """A cache of a test's own, with what the real one has downloaded, and a directory for temporary files."""

    cache: Path
    temporary: Path

    def start(self, *arguments: str, server: str | None = None) -> subprocess.Popen[str]:
        """Start `./dev demo` on its own store, or on a server."""
        environment = {name: value for name, value in os.environ.items() if name != "GUESTD_DATABASE_DSN"}
        environment |= {"GUESTD_CACHE": str(self.cache), "TMPDIR": str(self.temporary)}
        environment |= {"GUESTD_DATABASE_DSN": server} if server else {}
        return subprocess.Popen(
            [ROOT / "dev", "demo", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, server: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        with self.start(*arguments, server=server) as demo:
            said, complained = demo.communicate(timeout=DEADLINE_SECONDS)
        return subprocess.CompletedProcess(arguments, demo.returncode, said, complained)

    def running(self) -> list[str]:
        """The command lines of all that a demo started here and that still runs."""
        return [" ".join(process.cmdline()) for process in psutil.process_iter() if self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.status() != psutil.STATUS_ZOMBIE and process.environ().get("GUESTD_CACHE") == str(self.cache)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return False

    def leftovers(self) -> list[str]:
        """What a demo left in the directory of temporary files, and its record of what runs."""
        return [path.name for path in (*self.temporary.iterdir(), *self.cache.glob("demo.json"))]

    def pid(self, name: str) -> int:
        """The process id of a part of the demo that runs, 0 while there is none."""
        try:
            state = json.loads((self.cache / "demo.json").read_bytes())
        except FileNotFoundError:
            return 0
        return next((int(process["pid"]) for process in state["processes"] if process["name"] == name), 0)


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    directory = Path(tempfile.mkdtemp(prefix="g-"))
    directory.chmod(0o755)
    place = Place(directory / "c", directory / "t")
    place.cache.mkdir()
    place.temporary.mkdir()
    for fetched in (stamp.parent for stamp in prefix().parent.glob("*/stamp")):
        (place.cache / fetched.name).mkdir()
        for entry in fetched.iterdir():
            if entry.name != "stamp":
                (place.cache / fetched.name / entry.name).symlink_to(entry)
        (place.cache / fetched.name / "stamp").write_text(f"{place.cache / fetched.name}\n")
    yield place
    place.run("--stop")
    shutil.rmtree(directory)


def databases(server: Server) -> list[str]:
    with psycopg.connect(server.dsn("postgres")) as connection:
        return [name for (name,) in connection.execute("SELECT datname FROM pg_database WHERE datname LIKE '%demo%'")]


def test_it_stores_what_guests_and_this_machine_report_says_so_and_leaves_nothing_behind(place: Place) -> None:
    done = place.run("--seconds", "3", "--guests", "5")
    assert done.returncode == 0, done.stderr
    rows = {name: int(number.replace(",", "")) for name, number in re.findall(r"^  (\w+) +([\d,]+)", done.stdout, re.M)}
    for table in ("SystemMetrics", "ProcessSnapshot", "PortUsage", "ApplicationUsageHistory", "ApplicationUsage"):
        assert rows[table] > 0
    assert f" of {psutil.cpu_count()} cores" in done.stdout
    assert f" of {psutil.virtual_memory().total / 2**30:.1f} GiB in use\n" in done.stdout
    assert " GiB in use on /" in done.stdout
    busiest = re.findall(r"^ +(\d+) +([\d.]+) +([\d,.]+) M  \S", done.stdout, re.M)
    assert len(busiest) > 1
    assert all(float(above[1]) >= float(below[1]) for above, below in pairwise(busiest))
    accepted, stored, quarantined = re.findall(
        r"([\d,]+) frames accepted, ([\d,]+) stored, (\d+) quarantined", done.stdout
    )[0]
    assert (accepted, quarantined) == (stored, "0")
    assert place.running() == []
    assert place.leftovers() == []


def test_a_kept_demo_can_be_looked_at_until_it_is_stopped(place: Place) -> None:
    kept = place.run("--seconds", "1", "--guests", "2", "--keep")
    assert kept.returncode == 0, kept.stderr
    psql, curl = re.findall(r"^    (\S*psql .*|curl .*)$", kept.stdout, re.M)
    count = f"""{psql} -Atc 'SELECT count(*) FROM "SystemMetrics"'"""
    seen = int(subprocess.check_output(count, shell=True))
    eventually(lambda: int(subprocess.check_output(count, shell=True)) > seen, "more samples arrive")
    with urllib.request.urlopen(curl.removeprefix("curl "), timeout=10) as page:
        assert "guestd_frames_accepted_total" in page.read().decode()
    stopped = place.run("--stop")
    assert stopped.returncode == 0, stopped.stderr
    assert place.running() == []
    assert place.leftovers() == []
    assert "nothing to stop" in place.run("--stop").stdout


def test_on_a_server_of_your_own_its_database_is_gone_afterwards(place: Place, cluster: Server) -> None:
    done = place.run("--seconds", "1", "--guests", "2", server=cluster.dsn("postgres"))
    assert done.returncode == 0, done.stderr
    assert databases(cluster) == []
    assert place.running() == []


@pytest.mark.parametrize("server", ["host=127.0.0.1 port=9", "rubbish"])
def test_a_server_that_cannot_be_used_ends_it_with_the_reason(place: Place, server: str) -> None:
    done = place.run(server=server)
    assert done.returncode == 1
    assert re.search(r"^demo: .*(Connection refused|rubbish)", done.stderr, re.M)
    assert place.running() == []
    assert place.leftovers() == []


def test_a_part_that_dies_ends_it_at_once_with_the_end_of_its_log(place: Place, cluster: Server) -> None:
    with place.start("--seconds", "600", "--guests", "2", server=cluster.dsn("postgres")) as demo:
        eventually(lambda: place.pid("guestd"), "guestd is started")
        eventually(lambda: databases(cluster), "the database is made")
        os.kill(place.pid("guestd"), signal.SIGKILL)
        _, complained = demo.communicate(timeout=DEADLINE_SECONDS)
    assert demo.returncode == 1
    assert "demo: guestd stopped unexpectedly" in complained
    assert "log" in complained
    assert databases(cluster) == []
    assert place.running() == []
    assert place.leftovers() == []


def test_ctrl_c_stops_everything_and_meanwhile_there_can_be_no_second_demo(place: Place, cluster: Server) -> None:
    with place.start("--seconds", "600", "--guests", "2", server=cluster.dsn("postgres")) as demo:
        eventually(lambda: place.pid("guestd"), "guestd is started")
        second = place.run(server=cluster.dsn("postgres"))
        assert (second.returncode, second.stdout) == (1, "")
        assert "another ./dev demo is running" in second.stderr
        demo.send_signal(signal.SIGINT)
        _, complained = demo.communicate(timeout=DEADLINE_SECONDS)
    assert demo.returncode == 130
    assert complained.endswith("demo: interrupted; everything is stopped\n")
    assert databases(cluster) == []
    assert place.running() == []
    assert place.leftovers() == []


def test_what_a_killed_demo_left_running_is_ended_by_the_next_one(place: Place, cluster: Server) -> None:
    with place.start("--seconds", "600", "--guests", "2", server=cluster.dsn("postgres")) as demo:
        eventually(lambda: place.pid("guestd"), "guestd is started")
        demo.kill()
    assert place.running() != []
    done = place.run("--stop")
    assert done.returncode == 0, done.stderr
    assert databases(cluster) == []
    assert place.running() == []
    assert place.leftovers() == []
