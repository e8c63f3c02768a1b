"""`guestd doctor` finds each injected fault and names its fix, with real servers."""

import asyncio
import json
import os
import pty
import socket
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import bcrypt
import psycopg
import pytest
import trustme
from psycopg.conninfo import make_conninfo
from tools.harness.broker import Broker, prefix
from tools.harness.ports import free_port
from tools.harness.waiting import eventually

from guestd import doctor
from guestd.agent.outbox import LINE_LIMIT_BYTES
from guestd.core.broker import count_packet_bytes
from guestd.core.config import load_settings
from guestd.core.errors import ConfigError
from guestd.core.machines import RegisteredMachine
from guestd.doctor import Finding
from guestd.doctor.host import _check_descriptors
from guestd.doctor.machines import check_agents, check_domains, explain_libvirt_error
from guestd.doctor.store import check_clock, check_store, explain_unavailable
from guestd.hypervisor.domains import Domain, DomainChannel, DomainDescription
from support.broker import Publisher, started
from support.daemon import Daemon, add_machine, command, environment, execute, rows


@dataclass
class World:
    """A host without faults, until a test injects one."""

    directory: Path
    dsn: str
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    ending: ExitStack = field(default_factory=ExitStack)

    def set(self, table: str, **keys: Any) -> None:
        self.tables.setdefault(table, {}).update(keys)

    def file(self, name: str, content: str = "secret\n", mode: int = 0o600) -> str:
        path = self.directory / name
        path.write_text(content)
        path.chmod(mode)
        return str(path)

    def configuration(self) -> Path:
        # JSON's texts, numbers and truths are TOML's.
        lines = [
            line
            for table, keys in self.tables.items()
            for line in (f"[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items()))
        ]
        path = self.directory / "guestd.toml"
        path.write_text("\n".join(lines) + "\n")
        return path

    def spool_file(self) -> Path:
        return self.directory / "spool" / "spool.db"


@pytest.fixture
def world(directory: Path, dsn: str) -> Iterator[World]:
    for name in ("spool", "channels"):
        (directory / name).mkdir()
    world = World(directory, dsn)
    world.set("store", dsn=dsn)
    world.set("spool", directory=str(directory / "spool"), max_bytes=2**20)
    world.set("virtio", directory=str(directory / "channels"))
    world.set("telemetry", listen_port=free_port())
    with world.ending:
        yield world


def dsn_with(world: World, **parts: Any) -> None:
    world.set("store", dsn=make_conninfo(world.dsn, **parts))


def long_paths(world: World) -> None:
    world.set("spool", directory="/" + 500 * "x")


def no_spool(world: World) -> None:
    (world.directory / "spool").rmdir()


def damaged_spool(world: World) -> None:
    world.spool_file().write_bytes(b"no database at all" * 1000)


def full_spool(world: World) -> None:
    with closing(sqlite3.connect(world.spool_file())) as connection, connection:
        connection.execute("CREATE TABLE identity (spool_id)")
        connection.execute("CREATE TABLE frame (seq INTEGER PRIMARY KEY, payload)")
        connection.execute("INSERT INTO frame (payload) VALUES (zeroblob(1000000))")


def kept_damaged_spool(world: World) -> None:
    (world.directory / "spool" / "spool.db.damaged-20260101T000000").write_bytes(b"")


def no_rights(world: World) -> None:
    role = f"nobody_{uuid4().hex[:8]}"
    execute(world.dsn, f"CREATE ROLE {role} LOGIN")
    dsn_with(world, user=role)


def reader_only(world: World) -> None:
    role = f"reader_{uuid4().hex[:8]}"
    execute(world.dsn, f"CREATE ROLE {role} LOGIN IN ROLE guestd_reader, guestd_writer")
    execute(world.dsn, 'REVOKE INSERT ON "PortUsage" FROM guestd_writer')
    dsn_with(world, user=role)


def read_only(world: World) -> None:
    name = world.dsn.rpartition("/")[2]
    execute(world.dsn, f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')


def older_schema(world: World) -> None:
    execute(world.dsn, 'DELETE FROM "SchemaMigration" WHERE "number" > 3')


def newer_schema(world: World) -> None:
    execute(world.dsn, 'UPDATE "SchemaMigration" SET "compat" = 9999')


def drifted(world: World) -> None:
    execute(world.dsn, 'ALTER TABLE "Machine" ADD COLUMN "mine" text')


def grows_for_ever(world: World) -> None:
    execute(world.dsn, """DELETE FROM "RetentionSetting" WHERE "relation" = 'PortUsage'""")


def not_rolled_up(world: World) -> None:
    execute(
        world.dsn,
        """INSERT INTO "RollupPending" ("unit", "bucket", "machineId")
        VALUES ('minute', now() - INTERVAL '4 hours', gen_random_uuid())""",
    )


def without_extension(world: World) -> None:
    dsn_with(world, dbname="postgres")


def quarantined(world: World) -> None:
    execute(
        world.dsn,
        'INSERT INTO "QuarantinedFrame" ("spoolId", "seq", "machineId", "receivedAt", "reason", "detail", "payload") '
        "VALUES (gen_random_uuid(), 1, NULL, now(), 'json', '', '')",
    )


def unknown_socket(world: World) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(world.directory / "channels" / f"{uuid4()}.socket"))


def other_program(world: World) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"somebody else")

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", world.tables["telemetry"]["listen_port"]), Other)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    for end in (server.server_close, thread.join, server.shutdown):
        world.ending.callback(end)


def settings_of(**tables: dict[str, Any]) -> Callable[[World], None]:
    def change(world: World) -> None:
        for table, keys in tables.items():
            world.set(table, **keys)

    return change


def open_secret(world: World) -> None:
    world.set("virtio", master_secret_file=world.file("master", mode=0o644))


def empty_secret(world: World) -> None:
    world.set("virtio", master_secret_file=world.file("master", "\n"))


def bad_authority(world: World) -> None:
    world.set("mqtt", host="127.0.0.1", tls=True, tls_ca_file=world.file("ca.pem", "not a certificate"))


# fault: (how it is injected, the subject of its finding, part of the text, part of the fix)
FAULTS: dict[str, tuple[Callable[[World], None], str, str, str]] = {
    "an unknown key": (settings_of(spool={"max_byte": 1}), "configuration", "max_byte", "remove the key"),
    "an invalid DSN": (settings_of(store={"dsn": "host"}), "configuration", "store.dsn", "correct it"),
    "a world-readable secret": (open_secret, "configuration", "world-readable", "chmod o-rwx"),
    "an empty secret": (empty_secret, "configuration", "first line is empty", "first line"),
    "a missing secret": (
        settings_of(virtio={"master_secret_file": "/nowhere/it"}), "configuration", "/nowhere/it", "create the file",
    ),
    "an invalid CA": (bad_authority, "configuration", "mqtt.tls_ca_file", "correct it"),
    "libvirt's channels without libvirt": (
        settings_of(virtio={"discovery": "libvirt"}), "configuration", "libvirt.uri is empty", "qemu:///system",
    ),
    "no spool directory": (no_spool, "spool", "does not exist", "install -d"),
    "a damaged spool": (damaged_spool, "spool", "is damaged", "restart guestd"),
    "a spool that is nearly full": (full_spool, "spool", "wait for the store", "restore the store"),
    "a kept damaged spool": (kept_damaged_spool, "spool", "damaged spool files", "keep the files"),
    "a disk too small": (settings_of(spool={"max_bytes": 2**50}), "disk", "bytes are free", "spool.max_bytes below"),
    "a spool in memory": (settings_of(spool={"directory": "/dev/shm"}), "spool", "is in memory", "spool.directory"),
    "no channel directory": (
        settings_of(virtio={"directory": "/nowhere"}), "channels", "does not exist", "virtio.discovery",
    ),
    "a socket of no machine": (unknown_socket, "machines", "does not know", "add the Machine"),
    "an occupied port": (other_program, "port", "another program", "telemetry.listen_port"),
    "guestd does not run": (settings_of(), "guestd", "does not run", "systemctl start guestd"),
    "metrics open to networks": (settings_of(telemetry={"listen_host": "0.0.0.0"}), "telemetry", "network", "listen"),
    "a port that changes": (settings_of(telemetry={"listen_port": 0}), "telemetry", "another port", "9478"),
    "no store": (lambda world: dsn_with(world, port=free_port()), "store", "refused", "start PostgreSQL"),
    "no such database": (lambda world: dsn_with(world, dbname="nothing"), "store", "does not exist", "createdb"),
    "no such user": (lambda world: dsn_with(world, user="stranger"), "store", "stranger", "CREATE ROLE"),
    "a store that takes no writes": (read_only, "store", "read-only", "default_transaction_read_only"),
    "no TimescaleDB": (without_extension, "extension", "no TimescaleDB", "CREATE EXTENSION"),
    "a schema that is behind": (older_schema, "schema", "this program needs", "gueststore migrate"),
    "a schema that is ahead": (newer_schema, "schema", "newer", "install"),
    "a series without retention": (grows_for_ever, "store", "PortUsage has no row in RetentionSetting", "runbook"),
    "roll-ups that are behind": (not_rolled_up, "roll-ups", "SystemMetricsMinute", "start a guestd"),
    "a schema that drifted": (drifted, "schema", "mine", "gueststore check"),
    "a user without rights": (no_rights, "rights", "permission denied", "GRANT guestd_writer"),
    "a right that is missing": (reader_only, "rights", "PortUsage", "GRANT guestd_writer"),
    "quarantined frames": (quarantined, "quarantine", "1 frames are quarantined", "guestd quarantine list"),
    "a path that cannot be examined": (long_paths, "spool", "File name too long", "correct the setting"),
    "no broker": (
        lambda world: world.set("mqtt", host="127.0.0.1", port=free_port()), "broker", "refused", "mosquitto",
    ),
    "no libvirt": (
        settings_of(libvirt={"uri": "qemu:///system?socket=/nowhere"}), "libvirt", "", "libvirt",
    ),
}  # fmt: skip


def findings(world: World) -> list[Finding]:
    """The findings of the doctor."""
    try:
        return doctor.run_checks(load_settings(world.configuration()))
    except ConfigError as exc:
        return [doctor.explain_config_error(str(exc))]


def run(verb: str, world: World, *words: str) -> tuple[int, str]:
    """Exit status and output of the program."""
    done = subprocess.run(
        command("guestd", verb, "--config", str(world.configuration()), *words),
        capture_output=True, text=True, env=environment(), timeout=100, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_at_least_twenty_faults_are_injected() -> None:
    assert len(FAULTS) >= 20


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_its_fix_is_named(world: World, name: str) -> None:
    inject, subject, text, fix = FAULTS[name]
    inject(world)
    found = findings(world)
    named = [each for each in found if each.subject == subject and text in each.text and fix in each.fix]
    assert named, found
    assert all(each.level != "ok" for each in named)


@pytest.mark.asyncio
async def test_the_event_loop_runs_on_while_the_store_is_checked(dsn: str) -> None:
    async def check() -> list[Finding]:
        return [finding async for finding in check_store(make_conninfo(dsn, options="-c lock_timeout=10s"))]

    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with psycopg.connect(dsn) as holder:
        # The health checks read it.
        holder.execute('LOCK TABLE "RollupPending" IN ACCESS EXCLUSIVE MODE')
        checking = asyncio.create_task(check())
        await asyncio.to_thread(eventually, lambda: rows(dsn, waiting) == [(1,)], "the checks wait for the lock")
        assert not checking.done()
    assert "roll-ups" in [finding.subject for finding in await checking]


def test_a_host_without_faults_has_nothing_to_fix(world: World, daemon: Daemon) -> None:
    daemon.port = world.tables["telemetry"]["listen_port"]
    daemon.start()
    eventually(lambda: daemon.page("/readyz")[0] == 200, "guestd is ready")
    world.set("spool", directory=str(daemon.spool))
    found = findings(world)
    # Tests may run as root, and keep their spool in memory or on a disk that is nearly full.
    odd = [each for each in found if each.level != "ok" and each.subject not in ("rights", "disk")]
    assert [each for each in odd if "in memory" not in each.text] == []
    assert {"configuration", "spool", "store", "schema", "clock", "edition", "roll-ups", "guestd"} <= {
        each.subject for each in found
    }


def test_a_guestd_whose_pages_require_a_login_is_recognised(world: World, daemon: Daemon) -> None:
    authority = trustme.CA()
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(world.directory / "both.pem"))
    (world.directory / "both.pem").chmod(0o600)
    users = f'basic_auth_users: {{alice: "{bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()}"}}\n'
    file = world.file("web.yml", f"tls_server_config: {{cert_file: both.pem, key_file: both.pem}}\n{users}")
    world.set("telemetry", web_config_file=file)
    daemon.port = world.tables["telemetry"]["listen_port"]
    daemon.telemetry_lines = f'web_config_file = "{file}"\n'
    daemon.start()
    daemon.url()
    assert any(each.subject == "guestd" and "require a login" in each.text for each in findings(world))


def test_the_problems_of_a_running_guestd_are_findings(world: World, daemon: Daemon) -> None:
    daemon.port = world.tables["telemetry"]["listen_port"]
    daemon.dsn = make_conninfo(daemon.dsn, port=free_port())
    daemon.start()
    daemon.url()
    assert any(each.subject == "guestd" and "store" in each.text for each in findings(world))


@pytest.fixture
def strict_broker(directory: Path) -> Iterator[Broker]:
    """A broker whose ACL gives guestd nothing to read."""
    broker = Broker(directory / "strict", prefix=prefix(), access=[f"acl_file {directory / 'acl'}"])
    (directory / "acl").write_text("user guestd\ntopic write guestd/v1/host/+/status\n")
    (directory / "acl").chmod(0o644)
    with started(broker):
        yield broker


def use_broker(world: World, broker: Broker, **keys: Any) -> None:
    password = {"username": "guestd", "password_file": str(broker.directory / "guestd.password")}
    world.set("mqtt", host="127.0.0.1", port=broker.port, **(password | keys))


def find_in_broker(world: World, broker: Broker) -> list[Finding]:
    """The findings on the broker alone."""
    use_broker(world, broker)
    return [each for each in findings(world) if each.subject == "broker"]


def test_an_acl_that_forbids_reading_is_found(world: World, strict_broker: Broker) -> None:
    use_broker(world, strict_broker)
    found = {each.subject: each for each in findings(world) if each.level == "warning"}
    assert "topic read guestd/v1/+/metrics" in found["acl"].fix
    assert "topic read $SYS/broker/publish/messages/dropped" in found["drops"].fix


def test_limits_of_the_broker_are_found(world: World, directory: Path) -> None:
    small = ["max_packet_size 20000"]
    with started(Broker(directory / "limited", prefix=prefix(), lines=["max_qos 0"], overrides=small)) as broker:
        found = find_in_broker(world, broker)
    assert [each.level for each in found] == ["ok", "fault", "warning"]
    assert "max_qos" in found[1].fix
    assert "max_packet_size" in found[2].fix
    assert "20000 bytes" in found[2].text


@pytest.mark.parametrize(("margin_bytes", "levels"), [(0, ["ok"]), (-100, ["ok", "warning"])])
def test_a_broker_that_takes_the_longest_line_of_an_agent_is_large_enough(
    world: World, directory: Path, margin_bytes: int, levels: list[str]
) -> None:
    most_bytes = count_packet_bytes("guestd/v1/6a1f0d5c-2b1e-4b62-9a52-8a3c1f5e7d90/metrics", LINE_LIMIT_BYTES)
    limit = [f"max_packet_size {most_bytes + margin_bytes}"]
    with started(Broker(directory / "limited", prefix=prefix(), overrides=limit)) as broker:
        found = find_in_broker(world, broker)
    assert [each.level for each in found] == levels
    assert found[-1].fix.startswith(f"set max_packet_size in mosquitto.conf to {most_bytes}") == (margin_bytes < 0)


def test_a_wrong_password_at_the_broker_is_found(world: World, broker: Broker) -> None:
    use_broker(world, broker, password_file=world.file("wrong"))
    (found,) = [each for each in findings(world) if each.subject == "broker"]
    assert found.level == "fault"
    assert "mqtt.password_file" in found.fix


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_a_working_broker_is_ok_and_unchanged(world: World, broker: Broker, version: str) -> None:
    use_broker(world, broker, version=version)
    with Publisher(broker.port) as publisher:
        publisher.send(add_machine(world.dsn), b"online", kind="status", retain=True)
        publisher.all_is_taken()
        assert {each.level for each in findings(world) if each.subject in ("broker", "acl", "drops")} == {"ok"}


def domain(name: str, *channels: DomainChannel) -> Domain:
    return Domain(uuid4(), name, "running", "booted", True, 0, DomainDescription(1, 1, None, channels))


AGENT = "org.infinibay.agent"


@pytest.mark.parametrize(
    ("seen", "subject", "fix"),
    [
        (domain("stranger", DomainChannel(AGENT, "/nowhere", True)), "machines", "internalName"),
        (domain("known"), "channels", "attach-device"),
        (domain("known", DomainChannel(AGENT, "/nowhere", False)), "agents", "start the agent"),
        (domain("known", DomainChannel(AGENT, "/nowhere", True)), "channels", "restart the domain"),
    ],
    ids=["a domain of no machine", "a domain without a channel", "no agent in the guest", "a socket that is gone"],
)
def test_a_fault_of_a_domain_is_found(seen: Domain, subject: str, fix: str) -> None:
    found = check_domains([seen], [RegisteredMachine(uuid4(), "known")], [AGENT])
    assert [each.subject for each in found if fix in each.fix] == [subject]


@pytest.mark.parametrize(
    ("found", "fix"),
    [
        (check_clock(30), "NTP"),
        (check_clock(-30), "NTP"),
        (explain_unavailable('FATAL: password authentication failed for user "guestd"'), "store.password_file"),
        (explain_unavailable("FATAL: sorry, too many clients already"), "max_connections"),
        (explain_unavailable("certificate verify failed"), "sslrootcert"),
        (explain_libvirt_error("qemu:///system", "Permission denied"), "usermod -aG libvirt"),
        (explain_libvirt_error("qemu:///system", "Failed to find user record for uid '996'"), "useradd"),
        (next(_check_descriptors(1024)), "LimitNOFILE"),
    ],
    ids=lambda value: value.text if isinstance(value, Finding) else "",
)
def test_a_fault_that_cannot_be_injected_here_has_its_fix(found: Finding, fix: str) -> None:
    assert found.level != "ok"
    assert fix in found.fix


def test_agents_are_counted_by_dialect() -> None:
    page = 'guest_agent_info{machine="a",dialect="numbered"} 1.0\nguest_agent_info{machine="b",dialect="plain"} 1.0\n'
    (found,) = check_agents(page * 2)
    assert found.text == "2 speak numbered, 2 speak plain"


def test_one_line_is_printed_for_each_finding(world: World) -> None:
    status, said = run("doctor", world)
    assert status == 0
    assert len(said.splitlines()) == len(findings(world))
    assert any(line.startswith("warning  guestd") and "-> systemctl start" in line for line in said.splitlines())


def test_only_a_terminal_gets_colours(world: World) -> None:
    master, terminal = pty.openpty()
    arguments = command("guestd", "check", "--config", str(world.configuration()))
    try:
        subprocess.run(arguments, stdout=terminal, env=environment(), timeout=100, check=True)
        shown = os.read(master, 65536)
    finally:
        os.close(terminal)
        os.close(master)
    assert shown.startswith(b"\x1b[32mok")
    assert "\x1b" not in run("check", world)[1]


def test_json_is_printed_and_a_fault_is_an_exit_status(world: World) -> None:
    no_spool(world)
    status, said = run("doctor", world, "--json")
    assert status == 1
    assert {each["subject"] for each in json.loads(said) if each["level"] == "fault"} == {"spool"}


def test_an_invalid_configuration_is_a_fault(world: World) -> None:
    world.set("spool", max_byte=1)
    status, said = run("doctor", world)
    assert status == 1
    assert said.startswith("fault")
    assert len(said.splitlines()) == 1


def test_check_validates_the_configuration_and_starts_nothing(world: World) -> None:
    assert run("check", world) == (0, "ok       configuration  every setting is valid\n")
    open_secret(world)
    status, said = run("check", world)
    assert status == 78
    assert "chmod o-rwx" in said
    assert not any((world.directory / "spool").iterdir())
