import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import LiteralString

import psutil
import psycopg
import pytest
from tools.harness.cluster import Cluster, ClusterError, create_database, prefix


@pytest.fixture(scope="module")
def programs() -> Path:
    return prefix()


def temporary_directory() -> Iterator[Path]:
    # not tmp_path, which is too deep for a socket and closed to the user that root's server runs as
    directory = Path(tempfile.mkdtemp(prefix="guestd-"))
    directory.chmod(0o711)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def directory() -> Iterator[Path]:
    yield from temporary_directory()


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    yield from temporary_directory()


@pytest.fixture(scope="module")
def lasting_server(programs: Path, home: Path) -> Iterator[Cluster]:
    server = Cluster(home, prefix=programs, settings={"fsync": "off"})
    yield server
    server.stop()


@pytest.fixture
def server(lasting_server: Cluster) -> Cluster:
    """A running server in `home`; what an earlier test left in it may be there."""
    lasting_server.start()
    return lasting_server


def answer(dsn: str, question: LiteralString) -> object:
    with psycopg.connect(dsn) as connection:
        row = connection.execute(question).fetchone()
    return row and row[0]


def tell(dsn: str, statement: LiteralString) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute(statement)


def running_pid(server: Cluster) -> int:
    pid = server.pid()
    assert pid is not None
    return pid


def test_a_started_server_offers_timescaledb_on_loopback_and_on_its_socket(server: Cluster, home: Path) -> None:
    create_database(server.dsn("postgres"), "guestd")
    by_tcp = server.dsn("guestd")
    port = psycopg.conninfo.conninfo_to_dict(by_tcp)["port"]
    by_socket = f"postgresql://postgres@/guestd?host={home / 'data'}&port={port}"
    for dsn in (by_tcp, by_socket):
        assert answer(dsn, "SELECT count(*) FROM pg_extension WHERE extname = 'timescaledb'") == 1


def test_the_server_listens_on_loopback_only(server: Cluster) -> None:
    listening = [c for c in psutil.Process(running_pid(server)).net_connections("inet") if c.status == "LISTEN"]
    assert [connection.laddr.ip for connection in listening] == ["127.0.0.1"]


def test_the_server_never_runs_as_root(server: Cluster) -> None:
    assert psutil.Process(running_pid(server)).uids().real != 0


def test_starting_a_running_server_leaves_it_alone(server: Cluster) -> None:
    pid = server.pid()
    server.start()
    assert server.pid() == pid


def test_a_restarted_server_has_its_address_and_its_rows(
    server: Cluster, record_property: Callable[[str, object], None]
) -> None:
    dsn = server.dsn("postgres")
    tell(dsn, "CREATE TABLE kept AS SELECT 7 AS n")
    server.stop()
    assert server.pid() is None
    began = time.monotonic()
    server.start()
    record_property("second_start_seconds", time.monotonic() - began)
    assert server.dsn("postgres") == dsn
    assert answer(dsn, "SELECT n FROM kept") == 7


def test_a_port_that_somebody_took_meanwhile_is_replaced(server: Cluster) -> None:
    before = server.dsn("postgres")
    server.stop()
    port = int(str(psycopg.conninfo.conninfo_to_dict(before)["port"]))
    with socket.create_server(("127.0.0.1", port)):
        server.start()
        assert server.dsn("postgres") != before
        assert answer(server.dsn("postgres"), "SELECT 1") == 1


def test_a_pid_file_that_names_another_program_is_ignored_and_the_program_unharmed(server: Cluster, home: Path) -> None:
    server.stop()
    # as after a reboot: the number belongs to a program that the server's user may signal
    owner = (home / "data").stat().st_uid
    asleep = subprocess.Popen(["setpriv", f"--reuid={owner}", "sleep", "60"])
    try:
        (home / "data/postmaster.pid").write_text(f"{asleep.pid}\n{home / 'data'}\n1\n5432\n\n*\n\n")
        server.stop()
        assert server.pid() is None
        server.start()
        assert server.pid() not in (None, asleep.pid)
        assert asleep.poll() is None
    finally:
        asleep.terminate()
        asleep.wait()


def test_an_empty_pid_file_is_ignored(server: Cluster, home: Path) -> None:
    server.stop()
    (home / "data/postmaster.pid").write_text("")
    server.start()
    assert answer(server.dsn("postgres"), "SELECT 1") == 1


def test_a_killed_server_starts_again_with_what_was_committed(server: Cluster) -> None:
    tell(server.dsn("postgres"), "CREATE TABLE committed AS SELECT 7 AS n")
    with psycopg.connect(server.dsn("postgres")):  # a session that outlives its server for a moment
        os.kill(running_pid(server), signal.SIGKILL)
        server.start()
    assert answer(server.dsn("postgres"), "SELECT n FROM committed") == 7


def test_an_erased_server_starts_empty(server: Cluster) -> None:
    create_database(server.dsn("postgres"), "guestd")
    server.erase()
    assert server.pid() is None
    server.start()
    assert answer(server.dsn("postgres"), "SELECT count(*) FROM pg_database WHERE datname = 'guestd'") == 0


def test_an_interrupted_initdb_is_done_again(programs: Path, directory: Path) -> None:
    (directory / "data.unfinished").mkdir()
    (directory / "data.unfinished/PG_VERSION").write_text("17\n")
    server = Cluster(directory, prefix=programs, settings={"fsync": "off"})
    server.start()
    try:
        assert answer(server.dsn("postgres"), "SELECT 1") == 1
    finally:
        server.stop()


def test_two_servers_run_at_once_on_different_ports(
    server: Cluster, programs: Path, home: Path, directory: Path
) -> None:
    other = Cluster(directory, prefix=programs, settings={"fsync": "off"})
    other.start()
    try:
        assert server.dsn("postgres") != other.dsn("postgres")
        assert answer(server.dsn("postgres"), "SHOW data_directory") == str(home / "data")
        assert answer(other.dsn("postgres"), "SHOW data_directory") == str(directory / "data")
    finally:
        other.stop()


def test_many_who_start_the_same_server_at_once_share_one(programs: Path, directory: Path) -> None:
    server = Cluster(directory, prefix=programs, settings={"fsync": "off"})

    def up(_: int) -> int | None:
        server.start()
        create_database(server.dsn("postgres"), "guestd")
        return server.pid()

    try:
        with ThreadPoolExecutor(4) as people:
            pids = set(people.map(up, range(4)))
        assert len(pids) == 1
        assert None not in pids
    finally:
        server.stop()


def test_a_server_that_cannot_start_says_why(server: Cluster, programs: Path, home: Path) -> None:
    server.stop()
    with pytest.raises(ClusterError, match="no_such_setting"):
        Cluster(home, prefix=programs, settings={"no_such_setting": "1"}).start()


def test_a_path_that_is_too_long_for_a_socket_is_refused_by_that_name(programs: Path, directory: Path) -> None:
    with pytest.raises(ClusterError, match="too long a path for a unix socket"):
        Cluster(directory / ("d" * 100), prefix=programs).start()


def test_root_is_told_which_directory_is_closed_to_the_user_of_its_server(programs: Path, directory: Path) -> None:
    closed = directory / "closed"
    closed.mkdir(mode=0o700)
    server = Cluster(closed / "store", prefix=programs, settings={"fsync": "off"})
    # only root's server runs as somebody else; everybody else's own directories are open to them
    told: AbstractContextManager[object] = nullcontext()
    if os.geteuid() == 0:
        told = pytest.raises(ClusterError, match=f"{pwd.getpwnam('nobody').pw_name}, who may not enter {closed}")
    with told:
        server.start()
    server.stop()


def test_every_test_gets_a_migrated_database_of_its_own(dsn: str) -> None:
    assert answer(dsn, """SELECT count(*) FROM "Machine" """) == 0


def test_an_empty_database_can_have_the_extension_and_has_not(empty_dsn: str) -> None:
    assert answer(empty_dsn, "SELECT count(*) FROM pg_extension WHERE extname = 'timescaledb'") == 0
    tell(empty_dsn, "CREATE EXTENSION timescaledb")
