"""MQTT as an operator sees it: a real broker with our configuration, guestd as a process, guests that publish."""

from tools.broker import Broker

from fix_broker import Publisher
from fix_daemon import Daemon, add_machine, eventually, metrics_line, rows


def _samples(daemon: Daemon) -> int:
    return int(rows(daemon.dsn, 'SELECT count(*) FROM "SystemMetrics"')[0][0])


def test_a_message_becomes_rows_and_is_acknowledged(subscribed: Daemon, broker: Broker) -> None:
    machine_id = add_machine(subscribed.dsn)
    eventually(lambda: subscribed.page("/readyz") == (200, "ready\n"), "guestd is ready")
    with Publisher(broker.port) as guests:
        guests.send(machine_id, metrics_line())
        eventually(lambda: _samples(subscribed) == 1, "one sample")
    assert rows(subscribed.dsn, 'SELECT "machineId", "name" FROM "ProcessSnapshot"') == [(machine_id, "sshd")]
    assert subscribed.metric("guestd_mqtt_messages_acknowledged_total") == 1
    assert subscribed.stop() == 0
