"""TLS to the store, its password by file, and what a store that cannot be trusted is told by."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from tools.harness.cluster import Cluster, create_database, prefix
from tools.harness.waiting import eventually

from gueststore.migrations import migrate
from support.daemon import Daemon, add_machine, execute, metrics_line, rows


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def secure(authority: trustme.CA) -> Iterator[Cluster]:
    """A server with a certificate for localhost, which lets in `guestd_login` by TLS and password only."""
    directory = Path(tempfile.mkdtemp(prefix="guestd-"))
    cluster = Cluster(directory, prefix=prefix(), settings={"fsync": "off"})
    try:
        cluster.start()
        create_database(cluster.dsn("postgres"), "guestd")
        migrate(cluster.dsn("guestd"))
        certificate = authority.issue_cert("localhost")
        data = directory / "data"
        certificate.cert_chain_pems[0].write_to_path(data / "server.crt")
        certificate.private_key_pem.write_to_path(data / "server.key")
        owner = data.stat()
        for name in ("server.crt", "server.key"):
            (data / name).chmod(0o600)
            os.chown(data / name, owner.st_uid, owner.st_gid)
        rules = data / "pg_hba.conf"
        rules.write_text(
            "hostssl guestd guestd_login all scram-sha-256\n"
            + rules.read_text().replace(
                "all             all             127.0.0.1/32", "all             postgres        127.0.0.1/32"
            )
        )
        execute(
            cluster.dsn("postgres"),
            "ALTER SYSTEM SET ssl = on",
            "CREATE ROLE guestd_login LOGIN PASSWORD 'only-for-this-test' IN ROLE guestd_writer",
            "SELECT pg_reload_conf()",
        )
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(directory)


def secure_dsn(cluster: Cluster, root: Path) -> str:
    port = conninfo_to_dict(cluster.dsn("guestd"))["port"]
    return make_conninfo(
        host="localhost", hostaddr="127.0.0.1", port=port, dbname="guestd", user="guestd_login",
        sslmode="verify-full", sslrootcert=str(root),
    )  # fmt: skip


@pytest.fixture
def root(authority: trustme.CA, directory: Path) -> Path:
    path = directory / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


@pytest.fixture
def password_file(directory: Path) -> Path:
    path = directory / "password"
    path.write_text("only-for-this-test\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def distrustful(secure: Cluster, directory: Path, root: Path, password_file: Path) -> Iterator[Daemon]:
    """A guestd that wants TLS of a server that it can check."""
    daemon = Daemon(directory, secure_dsn(secure, root))
    daemon.store_lines = f'password_file = "{password_file}"\n'
    yield daemon
    if daemon.process is not None and daemon.process.poll() is None:
        daemon.kill()
    for guest in daemon.guests:
        guest.leave()


def test_samples_reach_a_store_over_tls_with_a_password_from_a_file(distrustful: Daemon, secure: Cluster) -> None:
    machine_id = add_machine(secure.dsn("guestd"))
    guest = distrustful.guest(machine_id)
    distrustful.start()
    guest.write(metrics_line())
    mine = 'SELECT count(*) FROM "SystemMetrics" WHERE "machineId" = %s'
    eventually(lambda: rows(secure.dsn("guestd"), mine, machine_id) == [(1,)], "the sample")
    how = (
        """SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = 'guestd'"""
    )
    assert rows(secure.dsn("guestd"), how) == [(True,)]
    assert "only-for-this-test" not in distrustful.log.read_text()
    assert distrustful.stop() == 0


def test_a_server_that_another_authority_vouches_for_is_refused_with_the_setting_to_look_at(
    distrustful: Daemon, root: Path
) -> None:
    trustme.CA().cert_pem.write_to_path(root)
    distrustful.start()
    eventually(lambda: "certificate" in distrustful.page("/readyz")[1], "it says why")
    status, said = distrustful.page("/readyz")
    assert status == 503
    assert "certificate verify failed" in said
    assert "sslrootcert" in said
    assert distrustful.stop() == 0


@pytest.mark.parametrize("setting", ["sslrootcert", "password_file"])
def test_a_file_that_is_not_there_ends_it_with_the_setting(
    distrustful: Daemon, root: Path, password_file: Path, setting: str
) -> None:
    (root if setting == "sslrootcert" else password_file).unlink()
    distrustful.start()
    assert distrustful.process is not None
    assert distrustful.process.wait(60) == 78
    assert setting in distrustful.log.read_text().splitlines()[-1]
