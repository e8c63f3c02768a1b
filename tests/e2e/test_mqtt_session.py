"""guestd as a process and its session at a broker that lets users choose their client id."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tools.harness.broker import Broker, prefix
from tools.harness.waiting import eventually

from guestd.mqtt.session_file import FILE, make_public_name
from support.broker import Publisher, is_connected, mqtt_table
from support.daemon import REPOSITORY, Daemon, add_machine, rows
from support.faults import sample_line
from support.sessions import FREE_IDS, free_broker, leave_session


@pytest.fixture
def broker(directory: Path) -> Iterator[Broker]:
    with free_broker(directory) as broker:
        yield broker


def publish_samples(daemon: Daemon, broker: Broker, count: int) -> None:
    machine_id = add_machine(daemon.dsn)
    with Publisher(broker.port) as guests:
        for number in range(count):
            guests.send(machine_id, sample_line(number))
        guests.all_is_taken()


def is_stored(daemon: Daemon, count: int) -> None:
    eventually(lambda: rows(daemon.dsn, 'SELECT count(*) FROM "SystemMetrics"') == [(count,)], "all samples")


def test_after_an_upgrade_all_is_stored_that_was_queued_under_the_former_id(daemon: Daemon, broker: Broker) -> None:
    # As the version before, which had this id by default and no file.
    daemon.more_tables = mqtt_table(broker, client_id=make_public_name())
    daemon.start()
    is_connected(daemon)
    assert daemon.stop() == 0
    (daemon.spool / FILE).unlink()
    publish_samples(daemon, broker, 100)
    daemon.more_tables = mqtt_table(broker, client_id="")
    daemon.start()
    is_stored(daemon, 100)
    assert daemon.metric("guestd_mqtt_sessions_lost_total") == 0
    assert "client id can be guessed" in daemon.log.read_text()
    assert daemon.stop() == 0


def test_a_session_that_was_taken_while_guestd_was_away_is_counted_and_the_next_messages_are_stored(
    daemon: Daemon, broker: Broker
) -> None:
    daemon.more_tables = mqtt_table(broker, client_id="")
    daemon.start()
    is_connected(daemon)
    assert daemon.stop() == 0
    client_id = json.loads((daemon.spool / FILE).read_bytes())["client_id"]
    assert client_id not in daemon.log.read_text()
    leave_session(broker, client_id, is_clean=True)
    daemon.start()
    is_connected(daemon)
    assert daemon.metric("guestd_mqtt_sessions_lost_total") == 1
    assert "broker lost our session" in daemon.log.read_text()
    publish_samples(daemon, broker, 10)
    is_stored(daemon, 10)
    assert daemon.stop() == 0


def test_the_ids_of_a_broker_in_use_are_tied_to_users_by_the_documented_steps_without_loss(
    daemon: Daemon, directory: Path, broker: Broker
) -> None:
    """docs/how-to/mqtt.md, One session for each user: 30 messages are queued before each step."""
    daemon.more_tables = mqtt_table(broker, client_id="")
    daemon.start()
    is_connected(daemon)
    assert daemon.stop() == 0
    publish_samples(daemon, broker, 30)
    # Step 2: a user of the name of the client id, with the lines of guestd's user in the ACL.
    client_id = json.loads((daemon.spool / FILE).read_bytes())["client_id"]
    password_file = broker.add_user(client_id)
    broker.stop()
    acl = directory / "acl"
    lines = (REPOSITORY / "deploy/mosquitto/acl").read_text()
    section = lines.partition("\nuser guestd\n")[2].partition("\n\n")[0]
    acl.write_text(f"{lines}\nuser {client_id}\n{section}\n")
    acl.chmod(0o600)
    tied = Broker(broker.directory, prefix=prefix(), overrides=[FREE_IDS], access=[f"acl_file {acl}"])
    tied.start()
    daemon.more_tables = mqtt_table(tied, client_id="", username=client_id, password_file=str(password_file))
    daemon.start()
    is_stored(daemon, 30)
    assert daemon.stop() == 0
    publish_samples(daemon, tied, 30)
    # Step 3: the broker ties the ids, and guestd, which is not restarted for it, reads what was queued.
    tied.stop()
    tied.overrides = []
    tied.start()
    daemon.more_tables = mqtt_table(tied, client_id="", username=client_id, password_file=str(password_file))
    daemon.start()
    is_stored(daemon, 60)
    assert daemon.metric("guestd_mqtt_sessions_lost_total") == 0
    assert daemon.stop() == 0
    tied.stop()
