"""MQTT as an operator sees it: a real broker with our configuration, guestd as a process, guests that publish."""

import datetime
import json
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest
import trustme
from tools.harness.broker import Broker, prefix
from tools.harness.ports import free_port
from tools.harness.waiting import eventually, wait_seconds

from guestd.simulator import machine_ids
from support.broker import PASSWORDS, Publisher, is_connected, known_machine, mqtt_table, started
from support.daemon import Daemon, add_machine, command, environment, execute, metrics_line, rows
from support.faults import Reliability, count_fleet, sample_line


def samples(daemon: Daemon) -> int:
    return int(rows(daemon.dsn, 'SELECT count(*) FROM "SystemMetrics"')[0][0])


def test_a_message_becomes_rows_and_is_acknowledged(subscribed: Daemon, broker: Broker) -> None:
    machine_id = known_machine(subscribed)
    eventually(lambda: subscribed.page("/readyz") == (200, "ready\n"), "guestd is ready")
    with Publisher(broker.port) as guests:
        guests.send(machine_id, metrics_line())
        eventually(lambda: samples(subscribed) == 1, "one sample")
    assert rows(subscribed.dsn, 'SELECT "machineId", "name" FROM "ProcessSnapshot"') == [(machine_id, "sshd")]
    assert subscribed.metric("guestd_mqtt_messages_acknowledged_total") == 1
    assert subscribed.stop() == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"version": "5"},
        {"version": "3.1.1"},
        # The broker sends a thousand at once with 3.1.1: guestd reads no further than it wants to hold.
        {"version": "3.1.1", "receive_maximum": 3},
        {"version": "5", "unacknowledged_bytes": 2000},
    ],
    ids=str,
)
def test_what_was_published_while_guestd_was_away_is_stored(
    daemon: Daemon, broker: Broker, settings: dict[str, object]
) -> None:
    daemon.more_tables = mqtt_table(broker, **settings)
    daemon.start()
    is_connected(daemon)
    assert daemon.stop() == 0
    machine_id = add_machine(daemon.dsn)
    with Publisher(broker.port) as guests:
        for number in range(100):
            guests.send(machine_id, sample_line(number))
        guests.all_is_taken()
    daemon.start()
    eventually(lambda: samples(daemon) == 100, "all samples")
    assert daemon.metric("guestd_mqtt_sessions_lost_total") == 0
    assert daemon.stop() == 0


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_a_connection_that_is_not_read_on_because_the_spool_is_full_is_kept(
    daemon: Daemon, broker: Broker, version: str
) -> None:
    store_dsn, keepalive_seconds = daemon.dsn, 2
    daemon.more_tables = mqtt_table(
        broker, version=version, keepalive_seconds=keepalive_seconds, unacknowledged_bytes=2000
    )
    daemon.dsn, daemon.spool_max_bytes = "host=127.0.0.1 port=1 dbname=guestd", 3000
    daemon.start()
    is_connected(daemon)
    with Publisher(broker.port) as guests:
        for number in range(60):
            guests.send(add_machine(store_dsn), sample_line(number))
        guests.all_is_taken()
    eventually(lambda: daemon.metric("guestd_mqtt_unacknowledged") > 0, "messages are held")
    # A broker ends what is silent for one and a half of them.
    wait_seconds(3 * keepalive_seconds)
    assert daemon.metric("guestd_mqtt_connections_lost_total") == 0
    assert daemon.metric("guestd_mqtt_connected") == 1
    assert daemon.stop() == 0
    daemon.dsn = store_dsn
    daemon.start()
    eventually(lambda: samples(daemon) == 60, "all samples")
    assert daemon.stop() == 0


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_a_retained_message_is_ignored(daemon: Daemon, broker: Broker, version: str) -> None:
    machine_id = add_machine(daemon.dsn)
    with Publisher(broker.port) as guests:
        guests.send(machine_id, sample_line(1), retain=True)
        guests.all_is_taken()
        daemon.more_tables = mqtt_table(broker, version=version)
        daemon.start()
        is_connected(daemon)
        guests.send(machine_id, sample_line(2))
        eventually(lambda: samples(daemon) == 1, "the live one")
    assert rows(daemon.dsn, 'SELECT "uptime" FROM "SystemMetrics"') == [(2,)]
    # MQTT 5 lets us say that we do not want them.
    assert daemon.metric("guestd_mqtt_retained_ignored_total") == (0 if version == "5" else 1)
    assert daemon.stop() == 0


def test_a_broker_that_is_down_at_the_start_is_named_and_waited_for(daemon: Daemon, broker: Broker) -> None:
    broker.stop()
    daemon.more_tables = mqtt_table(broker)
    daemon.start()
    said = f"broker: 127.0.0.1:{broker.port}: Connection refused"
    eventually(lambda: said in daemon.page("/readyz")[1], "guestd says so")
    broker.start()
    is_connected(daemon)
    eventually(lambda: daemon.page("/readyz") == (200, "ready\n"), "guestd is ready")
    assert daemon.stop() == 0


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_a_wrong_password_is_said_with_the_settings_that_it_is_about(
    daemon: Daemon, broker: Broker, version: str
) -> None:
    broker.stop()
    file = broker.add_user("guestd", "another")
    broker.start()
    file.write_text("wrong\n")
    daemon.more_tables = mqtt_table(broker, version=version)
    daemon.start()
    eventually(lambda: "(mqtt.username, mqtt.password_file" in daemon.page("/readyz")[1], "guestd says so")
    assert daemon.metric("guestd_mqtt_connections_lost_total") >= 1
    assert daemon.stop() == 0


def test_a_subscription_that_the_broker_refuses_is_said_with_its_topic(daemon: Daemon, directory: Path) -> None:
    programs = prefix()
    plugin = next(programs.glob("usr/lib/*/mosquitto_dynamic_security.so"))
    users = directory / "users.json"
    control = [str(programs / "usr/bin/mosquitto_ctrl"), "dynsec", "init", str(users), "guestd", PASSWORDS["guestd"]]
    subprocess.run(control, check=True, capture_output=True)
    known = json.loads(users.read_text())
    del known["clients"][0]["roles"]  # it may come in, and nothing else
    users.write_text(json.dumps(known))
    broker = Broker(
        directory / "broker", prefix=programs, access=[f"plugin {plugin}", f"plugin_opt_config_file {users}"]
    )
    broker.add_user("guestd", PASSWORDS["guestd"])
    broker.start()
    try:
        daemon.more_tables = mqtt_table(broker)
        daemon.start()
        said = "the broker refuses guestd/v1/+/metrics: Not authorized"
        eventually(lambda: said in daemon.page("/readyz")[1], "guestd says so")
        assert daemon.stop() == 0
    finally:
        broker.stop()


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("5", "Session taken over (another client has our id: mqtt.client_id;"),
        ("3.1.1", "the connection was lost, each time within 120 s: does another client have our id? (mqtt.client_id;"),
    ],
)
def test_another_client_with_the_id_of_guestd_is_reported(
    daemon: Daemon, broker: Broker, version: str, words: str
) -> None:
    daemon.more_tables = mqtt_table(broker, version=version)
    daemon.start()
    is_connected(daemon)
    # Under any id: the broker names sessions by the user.
    with Publisher(broker.port, user="guestd", password=PASSWORDS["guestd"]):
        eventually(lambda: words in daemon.page("/readyz")[1], "guestd says so")
        assert daemon.metric("guestd_mqtt_sessions_taken_over_total") >= 1
    is_connected(daemon)
    assert daemon.stop() == 0


@contextmanager
def broker_with(directory: Path, *lines: str, overrides: Sequence[str] = ()) -> Iterator[Broker]:
    """A broker with more lines of its listener, and with changed settings."""
    with started(Broker(directory / "broker", prefix=prefix(), lines=lines, overrides=overrides)) as broker:
        yield broker


def test_a_broker_that_grants_qos_0_only_is_reported_and_read(daemon: Daemon, directory: Path) -> None:
    with broker_with(directory, "max_qos 0") as broker:
        daemon.more_tables = mqtt_table(broker)
        daemon.start()
        is_connected(daemon)
        assert "broker: the broker grants QoS 0 only" in daemon.page("/readyz")[1]
        assert daemon.stop() == 0


def test_a_broker_that_retains_nothing_is_read_without_a_status(daemon: Daemon, directory: Path) -> None:
    with broker_with(directory, overrides=["retain_available false"]) as broker:
        daemon.more_tables = mqtt_table(broker)
        daemon.start()
        is_connected(daemon)
        machine_id = known_machine(daemon)
        with Publisher(broker.port) as guests:
            guests.send(machine_id, metrics_line())
            eventually(lambda: samples(daemon) == 1, "one sample")
        assert "our status is not published" in daemon.log.read_text()
        assert daemon.stop() == 0


def test_a_password_file_that_is_not_there_is_named(daemon: Daemon, broker: Broker) -> None:
    daemon.more_tables = mqtt_table(broker, password_file="/nowhere/password")
    daemon.start()
    assert daemon.process is not None
    assert daemon.process.wait(30) == 78
    assert "mqtt.password_file /nowhere/password: No such file or directory" in daemon.log.read_text()


@contextmanager
def tls_broker(directory: Path, authority: trustme.CA) -> Iterator[Broker]:
    """A broker that wants a certificate of this authority, and has one."""
    authority.cert_pem.write_to_path(directory / "ca.pem")
    own = authority.issue_cert("127.0.0.1")
    own.private_key_and_cert_chain_pem.write_to_path(directory / "broker.pem")
    lines = [
        f"cafile {directory / 'ca.pem'}",
        f"certfile {directory / 'broker.pem'}",
        f"keyfile {directory / 'broker.pem'}",
        "require_certificate true",
    ]
    with started(Broker(directory / "broker", prefix=prefix(), lines=lines)) as broker:
        yield broker


def test_tls_with_a_client_certificate(daemon: Daemon, directory: Path) -> None:
    authority = trustme.CA()
    with tls_broker(directory, authority) as broker:
        authority.issue_cert("guestd@host").private_key_and_cert_chain_pem.write_to_path(directory / "own.pem")
        (directory / "own.pem").chmod(0o600)
        own = str(directory / "own.pem")
        daemon.more_tables = mqtt_table(
            broker, tls=True, tls_ca_file=str(directory / "ca.pem"), tls_certificate_file=own, tls_key_file=own
        )
        daemon.start()
        is_connected(daemon)
        machine_id = known_machine(daemon)
        agent = subprocess.Popen(
            command(
                "guestd", "agent", "--mqtt", f"127.0.0.1:{broker.port}", "--mqtt-ca", str(directory / "ca.pem"),
                "--mqtt-cert", own, "--mqtt-key", own, "--mqtt-user", "simulator", "--mqtt-password-file",
                str(broker.directory / "simulator.password"), "--machine-id", str(machine_id), "--processes", "50",
            ),
            env=environment(),
        )  # fmt: skip
        try:
            # A message of some ten KiB: several records of TLS.
            eventually(lambda: samples(daemon) == 1, "a sample of this machine", 60)
        finally:
            agent.terminate()
            assert agent.wait(30) == 0
        assert daemon.stop() == 0


def test_a_broker_of_another_authority_is_refused_with_the_settings_that_it_is_about(
    daemon: Daemon, directory: Path
) -> None:
    with tls_broker(directory, trustme.CA()) as broker:
        trustme.CA().cert_pem.write_to_path(directory / "other.pem")
        daemon.more_tables = mqtt_table(broker, tls=True, tls_ca_file=str(directory / "other.pem"))
        daemon.start()
        eventually(lambda: "(mqtt.tls_ca_file, mqtt.host)" in daemon.page("/readyz")[1], "guestd says so")
        assert daemon.stop() == 0


def test_tls_to_a_listener_without_it_is_reported_with_the_port_as_the_possible_cause(
    daemon: Daemon, broker: Broker
) -> None:
    daemon.more_tables = mqtt_table(broker, tls=True)
    daemon.start()
    eventually(lambda: "is this port a TLS listener (usually 8883)?" in daemon.page("/readyz")[1], "guestd says so")
    assert daemon.stop() == 0


def test_topics_that_name_no_known_machine_are_refused_and_counted(subscribed: Daemon, broker: Broker) -> None:
    known = known_machine(subscribed)
    with Publisher(broker.port) as guests:
        guests.send(uuid4(), metrics_line())
        guests.send("not-a-machine", metrics_line())
        guests.send(str(known).upper(), metrics_line())
        guests.send(known, metrics_line())
        eventually(lambda: samples(subscribed) == 1, "the one that is known")
    assert subscribed.metric("guestd_frames_refused_total", reason="unknown_machine") == 1
    assert subscribed.metric("guestd_frames_refused_total", reason="topic") == 2
    eventually(lambda: subscribed.metric("guestd_mqtt_messages_acknowledged_total") == 4, "nothing is held")
    assert subscribed.stop() == 0


def test_a_machine_that_is_not_to_be_collected_is_refused_and_the_others_are_not(
    subscribed: Daemon, broker: Broker
) -> None:
    unwanted, wanted = known_machine(subscribed), known_machine(subscribed)
    execute(subscribed.dsn, f"""UPDATE "Machine" SET "isCollected" = false WHERE "id" = '{unwanted}' """)
    with Publisher(broker.port) as guests:

        def is_refused() -> bool:
            guests.send(unwanted, metrics_line())
            return subscribed.metric("guestd_frames_refused_total", reason="not_collected") > 0

        eventually(is_refused, "it is refused, once guestd has heard of it")
        guests.send(wanted, metrics_line())
        stored = 'SELECT count(*) FROM "SystemMetrics" WHERE "machineId" = %s'
        eventually(lambda: rows(subscribed.dsn, stored, wanted) == [(1,)], "the other's sample")
    assert subscribed.stop() == 0


def test_a_payload_that_claims_another_machine_is_set_aside(subscribed: Daemon, broker: Broker) -> None:
    machine_id, other = known_machine(subscribed), known_machine(subscribed)
    line = json.loads(metrics_line()) | {"vm_id": str(other)}
    with Publisher(broker.port) as guests:
        guests.send(machine_id, json.dumps(line).encode())
        quarantined = 'SELECT "machineId", "reason" FROM "QuarantinedFrame"'
        eventually(lambda: rows(subscribed.dsn, quarantined) == [(machine_id, "identity")], "it is set aside")
    assert subscribed.stop() == 0


def test_a_message_over_the_limit_is_refused(daemon: Daemon, broker: Broker) -> None:
    daemon.more_tables = mqtt_table(broker, max_frame_bytes=2000)
    daemon.start()
    is_connected(daemon)
    machine_id = known_machine(daemon)
    with Publisher(broker.port) as guests:
        guests.send(machine_id, b"x" * 2001)
        guests.send(machine_id, metrics_line())
        eventually(lambda: samples(daemon) == 1, "the good one")
    assert daemon.metric("guestd_frames_refused_total", reason="oversize") == 1
    assert daemon.stop() == 0


def test_gaps_in_numbered_lines_are_counted_and_what_comes_twice_is_stored_once(
    subscribed: Daemon, broker: Broker
) -> None:
    machine_id, boot_id = known_machine(subscribed), uuid4()
    with Publisher(broker.port) as guests:
        for seq in (1, 2, 2, 5, 4, 5, 1, 6):
            guests.send(machine_id, sample_line(seq, boot_id, oldest=1))
        stored = 'SELECT "uptime" FROM "SystemMetrics" ORDER BY 1'
        eventually(lambda: rows(subscribed.dsn, stored) == [(1,), (2,), (4,), (5,), (6,)], "each once")
    assert subscribed.metric("guestd_mqtt_lines_missing_total") == 2
    assert subscribed.metric("guestd_frames_duplicate_total") == 3
    assert subscribed.metric("guestd_frames_refused_total") == 0
    assert subscribed.stop() == 0


def test_a_time_from_before_the_brokers_queue_is_kept(subscribed: Daemon, broker: Broker) -> None:
    machine_id = known_machine(subscribed)
    an_hour_ago = datetime.datetime.now(datetime.UTC).replace(microsecond=0) - datetime.timedelta(hours=1)
    with Publisher(broker.port) as guests:
        guests.send(machine_id, metrics_line(an_hour_ago.isoformat()))
        eventually(lambda: samples(subscribed) == 1, "one sample")
    assert rows(subscribed.dsn, 'SELECT "timestamp" FROM "SystemMetrics"') == [(an_hour_ago,)]
    assert subscribed.stop() == 0


def test_guests_say_that_they_are_there_and_their_last_will_that_they_are_gone(
    subscribed: Daemon, broker: Broker
) -> None:
    machine_id = known_machine(subscribed)
    agent = subprocess.Popen(
        command(
            "guestd", "agent", "--mqtt", f"127.0.0.1:{broker.port}", "--mqtt-user", "simulator",
            "--mqtt-password-file", str(broker.directory / "simulator.password"), "--machine-id", str(machine_id),
        ),
        env=environment(),
    )  # fmt: skip
    try:
        eventually(lambda: subscribed.metric("guestd_mqtt_guests_online") == 1, "it is there", 60)
        eventually(lambda: samples(subscribed) == 1, "its sample", 60)
    finally:
        agent.send_signal(signal.SIGKILL)
        agent.wait()
    eventually(lambda: subscribed.metric("guestd_mqtt_guests_online") == 0, "it is gone", 60)
    assert subscribed.stop() == 0


def test_a_guest_may_write_its_own_topic_only(subscribed: Daemon, broker: Broker) -> None:
    mine, others = known_machine(subscribed), known_machine(subscribed)
    broker.stop()
    broker.add_user(str(mine), "secret")
    broker.start()
    is_connected(subscribed)
    with Publisher(broker.port, user=str(mine), password="secret") as guest:
        guest.send(others, metrics_line())
        guest.send(mine, metrics_line())
        eventually(lambda: samples(subscribed) == 1, "its own")
    assert rows(subscribed.dsn, 'SELECT "machineId" FROM "SystemMetrics"') == [(mine,)]
    assert subscribed.stop() == 0


def test_what_the_broker_drops_is_shown(subscribed: Daemon, broker: Broker) -> None:
    machine_id = known_machine(subscribed)
    with Publisher(broker.port) as guests:
        # More than the largest packet that guestd takes: the broker keeps it from us.
        guests.send(machine_id, b"x" * (8 * 1024 * 1024))
        eventually(lambda: subscribed.metric("guestd_mqtt_broker_dropped_messages") >= 0, "it is shown", 30)
    assert subscribed.stop() == 0


def test_a_simulated_fleet_publishes_and_its_manifest_says_what_the_broker_has_taken(
    daemon: Daemon, broker: Broker, reliability: Reliability
) -> None:
    for machine_id in machine_ids(20, seed=1):
        add_machine(daemon.dsn, machine_id)
    manifest = daemon.directory / "manifest.jsonl"
    fleet = subprocess.Popen(
        command(
            "guestd", "simulate", "--mqtt", f"127.0.0.1:{broker.port}", "--mqtt-user", "simulator",
            "--mqtt-password-file", str(broker.directory / "simulator.password"), "--guests", "20",
            "--interval", "0.05", "--processes", "5", "--count", "50", "--manifest", str(manifest),
        ),
        env=environment(),
    )  # fmt: skip
    try:
        # Nobody has ever subscribed: the broker takes nothing for anybody, and says so.
        daemon.more_tables = mqtt_table(broker)
        daemon.start()
        is_connected(daemon)
        assert fleet.wait(100) == 0
        eventually(lambda: samples(daemon) == 1000, "all samples", 60)
    finally:
        fleet.kill()
        fleet.wait()
    eventually(lambda: daemon.metric("guestd_spool_frames") == 0, "the spool is empty")
    reliability.record("a fleet that publishes before anybody has subscribed", 1, count_fleet(daemon.dsn, manifest))
    assert daemon.stop() == 0


def test_an_agent_without_a_machine_id_is_told_what_is_missing() -> None:
    said = subprocess.run(
        command("guestd", "agent", "--mqtt", f"127.0.0.1:{free_port()}"),
        env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert said.returncode == 78
    assert "--machine-id" in said.stderr
