"""The broker, the way to it and guestd fail under load by MQTT: what the broker had taken is in the tables once."""

import random
import signal
import sqlite3
from pathlib import Path
from uuid import UUID

from tools.harness.broker import DEPLOY, Broker, prefix
from tools.harness.waiting import eventually, wait_seconds

from support.broker import Load, Publisher, is_connected, known_machine, mqtt_table, started
from support.daemon import Daemon, rows
from support.faults import Reliability, count_samples, sample_line, store_closed
from support.proxy import Proxy

MACHINES = 6
# More than ten: none comes near its tenth of the spool.
MANY_MACHINES = 24


def machines_of(daemon: Daemon, count: int = MACHINES) -> list[UUID]:
    return [known_machine(daemon) for _ in range(count)]


def all_is_stored(daemon: Daemon, load: Load) -> None:
    """Wait until all that was sent is in the tables, and all that arrived has ended."""
    eventually(
        lambda: rows(daemon.dsn, 'SELECT count(*) FROM "SystemMetrics"')[0][0] >= load.count, "all is stored", 120
    )
    eventually(lambda: daemon.metric("guestd_mqtt_unacknowledged") == 0, "all is acknowledged", 60)
    eventually(lambda: daemon.metric("guestd_spool_frames") == 0, "the spool is empty", 60)


def test_after_kill_9_exactly_what_was_not_acknowledged_comes_back(
    subscribed: Daemon, broker: Broker, reliability: Reliability
) -> None:
    rounds = reliability.rounds(quick=3, full=30)
    with Publisher(broker.port) as guests, Load(guests, machines_of(subscribed)) as load:
        for _ in range(rounds):
            load.grows_by(30)
            wait_seconds(random.uniform(0, 0.5))
            subscribed.kill()
            load.grows_by(10)
            subscribed.start()
            is_connected(subscribed)
        load.finish()
        all_is_stored(subscribed, load)
    reliability.record("kill -9 of guestd, MQTT", rounds, count_samples(subscribed.dsn, load.sent))
    assert subscribed.stop() == 0


def test_sigterm_under_load_costs_nothing(subscribed: Daemon, broker: Broker, reliability: Reliability) -> None:
    rounds = reliability.rounds(quick=3, full=20)
    with Publisher(broker.port) as guests, Load(guests, machines_of(subscribed)) as load:
        for _ in range(rounds):
            load.grows_by(30)
            assert subscribed.stop() == 0
            subscribed.start()
            is_connected(subscribed)
        load.finish()
        all_is_stored(subscribed, load)
    reliability.record("SIGTERM of guestd, MQTT", rounds, count_samples(subscribed.dsn, load.sent))
    assert subscribed.stop() == 0


def test_a_broker_that_is_restarted_with_its_queue_costs_nothing(
    subscribed: Daemon, broker: Broker, reliability: Reliability
) -> None:
    rounds = reliability.rounds(quick=2, full=10)
    with Publisher(broker.port) as guests, Load(guests, machines_of(subscribed)) as load:
        for _ in range(rounds):
            load.grows_by(50)
            broker.stop()
            wait_seconds(random.uniform(0, 0.5))
            broker.start()
            is_connected(subscribed)
        load.finish()
        all_is_stored(subscribed, load)
    assert subscribed.metric("guestd_mqtt_sessions_lost_total") == 0
    reliability.record("broker restarted with its queue", rounds, count_samples(subscribed.dsn, load.sent))
    assert subscribed.stop() == 0


def test_of_a_broker_that_lost_its_queue_all_is_stored_that_arrived(
    subscribed: Daemon, broker: Broker, reliability: Reliability
) -> None:
    rounds = reliability.rounds(quick=2, full=10)
    machines = machines_of(subscribed)
    with Publisher(broker.port) as guests, Load(guests, machines) as load:
        for _ in range(rounds):
            load.grows_by(50)
            broker.kill()
            broker.forget()
            broker.start()
            is_connected(subscribed)
        load.finish()
        eventually(lambda: subscribed.metric("guestd_mqtt_unacknowledged") == 0, "all is acknowledged")
        last = known_machine(subscribed)
        guests.send(last, sample_line(0))
        arrived = 'SELECT count(*) FROM "SystemMetrics" WHERE "machineId" = %s'
        eventually(lambda: rows(subscribed.dsn, arrived, last) == [(1,)], "what came last is stored")
        eventually(lambda: subscribed.metric("guestd_spool_frames") == 0, "the spool is empty")
    done = subscribed.metric("guestd_frames_done_total", outcome="stored")
    sent = load.sent | {last: [0]}
    gap = load.count + 1 - int(done)
    reliability.record("broker killed, its queue deleted", rounds, count_samples(subscribed.dsn, sent, sender_gap=gap))
    assert subscribed.metric("guestd_mqtt_sessions_lost_total") == rounds
    assert subscribed.stop() == 0


def unread_bytes(port: int) -> int:
    """What the clients of a loopback port have received and not read yet."""
    connections = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(int(fields[4].split(":")[1], 16) for fields in connections if int(fields[2].split(":")[1], 16) == port)


def test_a_late_acknowledgement_acknowledges_no_message_of_the_broker_that_came_back(
    subscribed: Daemon, broker: Broker, reliability: Reliability
) -> None:
    machine_id = known_machine(subscribed)
    assert subscribed.process is not None
    disk = sqlite3.connect(subscribed.spool / "spool.db", isolation_level=None)
    with Publisher(broker.port) as guests:

        def send(numbers: range) -> None:
            for number in numbers:
                guests.send(machine_id, sample_line(number))
            guests.all_is_taken()

        disk.execute("BEGIN EXCLUSIVE")  # nothing gets to the disk
        subscribed.process.send_signal(signal.SIGSTOP)  # so that the five arrive as one batch
        send(range(5))
        size_bytes = sum(len(sample_line(number)) for number in range(5))
        eventually(lambda: unread_bytes(broker.port) > size_bytes, "the broker has passed them on")
        subscribed.process.send_signal(signal.SIGCONT)
        eventually(lambda: subscribed.metric("guestd_mqtt_messages_received_total") == 5, "five have arrived")
        broker.kill()
        broker.forget()
        broker.start()
        # The broker numbers from 1 again, and these get the numbers of the first five.
        send(range(5, 10))
        disk.execute("ROLLBACK")
        disk.close()
        eventually(lambda: subscribed.metric("guestd_mqtt_late_acknowledgements_total") == 5, "five came too late", 60)
        is_connected(subscribed)
        send(range(10, 15))
        stored = 'SELECT count(*) FROM "SystemMetrics" WHERE "uptime" >= 10'
        eventually(lambda: rows(subscribed.dsn, stored) == [(5,)], "the newest are stored", 60)
    eventually(lambda: subscribed.metric("guestd_spool_frames") == 0, "the spool is empty")
    # Of the middle five those are the broker's loss that came before guestd had subscribed again.
    (found,) = rows(subscribed.dsn, 'SELECT count(*) FROM "SystemMetrics"')
    tally = count_samples(subscribed.dsn, {machine_id: range(15)}, sender_gap=15 - found[0])
    assert rows(subscribed.dsn, 'SELECT count(*) FROM "SystemMetrics" WHERE "uptime" < 5') == [(5,)]
    reliability.record("an acknowledgement that comes after its broker's end", 1, tally)
    assert subscribed.stop() == 0


def test_a_connection_that_is_cut_at_random_bytes_costs_nothing(
    daemon: Daemon, broker: Broker, reliability: Reliability
) -> None:
    cuts = reliability.rounds(quick=5, full=30)
    with Proxy(broker.port, lambda: random.randrange(1, 30_000)) as proxy:
        daemon.more_tables = mqtt_table(broker, port=proxy.port)
        daemon.start()
        daemon.url()
        with Publisher(broker.port) as guests, Load(guests, machines_of(daemon)) as load:
            eventually(lambda: proxy.cuts >= cuts, "enough is cut", 300)
            load.finish()
            proxy.stop_cutting()
            all_is_stored(daemon, load)
        assert daemon.stop() == 0
    reliability.record("MQTT connection cut at random bytes", proxy.cuts, count_samples(daemon.dsn, load.sent))


def test_a_store_that_is_away_costs_nothing(subscribed: Daemon, broker: Broker, reliability: Reliability) -> None:
    rounds = reliability.rounds(quick=1, full=5)
    with Publisher(broker.port) as guests, Load(guests, machines_of(subscribed)) as load:
        for _ in range(rounds):
            load.grows_by(50)
            with store_closed(subscribed.dsn):
                load.grows_by(100)
                assert subscribed.metric("guestd_mqtt_connected") == 1
        load.finish()
        all_is_stored(subscribed, load)
    reliability.record("store away, MQTT", rounds, count_samples(subscribed.dsn, load.sent))
    assert subscribed.stop() == 0


def test_a_full_spool_leaves_the_rest_with_the_broker_and_it_goes_on_by_itself(
    daemon: Daemon, broker: Broker, reliability: Reliability
) -> None:
    daemon.spool_max_bytes = 60_000
    daemon.more_tables = mqtt_table(broker)
    daemon.start()
    is_connected(daemon)
    machines = machines_of(daemon, MANY_MACHINES)
    with Publisher(broker.port) as guests, Load(guests, machines, per_second=500) as load:
        with store_closed(daemon.dsn):
            eventually(lambda: "when it is full" in daemon.page("/readyz")[1], "/readyz reports a full spool", 60)
            load.grows_by(500)
            assert daemon.metric("guestd_mqtt_unacknowledged") > 0
        load.finish()
        all_is_stored(daemon, load)
    assert daemon.metric("guestd_frames_refused_total") == 0
    reliability.record("spool full, MQTT", 1, count_samples(daemon.dsn, load.sent))
    assert daemon.stop() == 0


def test_a_machine_that_fills_its_share_is_refused_and_the_others_go_on(
    daemon: Daemon, broker: Broker, reliability: Reliability
) -> None:
    daemon.spool_max_bytes = 2_000_000
    daemon.more_tables = mqtt_table(broker)
    daemon.start()
    is_connected(daemon)
    flood, good = machines_of(daemon, 2)
    samples = range(1, 501)
    with Publisher(broker.port) as guests:
        with store_closed(daemon.dsn):
            for number in samples:
                guests.send(flood, sample_line(number))
            for number in range(1, 11):
                guests.send(good, sample_line(number))
            eventually(
                lambda: daemon.metric("guestd_mqtt_messages_acknowledged_total") == len(samples) + 10,
                "no machine delays another",
            )
            refused = int(daemon.metric("guestd_frames_refused_total", reason="share"))
        eventually(lambda: daemon.metric("guestd_frames_done_total", outcome="stored") == 510 - refused, "the rest", 60)
    assert refused > 0
    assert rows(daemon.dsn, 'SELECT count(*) FROM "SystemMetrics" WHERE "machineId" = %s', good) == [(10,)]
    tally = count_samples(daemon.dsn, {flood: samples, good: range(1, 11)}, refused=refused)
    reliability.record("one machine fills its share, MQTT", 1, tally)
    assert daemon.stop() == 0


def with_second_daemon(directory: Path) -> Broker:
    """A broker with a second user who may do what guestd may: a user has one session."""
    acl, shipped = directory / "acl", (DEPLOY / "acl").read_text()
    lines = shipped.partition("user guestd\n")[2].partition("\n\n")[0]
    acl.write_text(f"{shipped}\nuser guestd-2\n{lines}\n")
    acl.chmod(0o600)
    broker = Broker(directory / "broker", prefix=prefix(), access=[f"acl_file {acl}"])
    broker.add_user("guestd-2")
    return broker


def test_two_daemons_of_a_shared_group_divide_the_messages_whatever_becomes_of_one(
    daemon: Daemon, directory: Path, reliability: Reliability
) -> None:
    rounds = reliability.rounds(quick=2, full=10)
    other_home = daemon.directory / "other"
    other_home.mkdir()
    other = Daemon(other_home, daemon.dsn)
    try:
        with started(with_second_daemon(directory)) as broker:
            for user, each in (("guestd", daemon), ("guestd-2", other)):
                password_file = str(broker.directory / f"{user}.password")
                each.more_tables = mqtt_table(
                    broker, username=user, password_file=password_file, shared_group="5d1f3a60c2"
                )
                each.start()
                is_connected(each)
            with Publisher(broker.port) as guests, Load(guests, machines_of(daemon)) as load:
                for _ in range(rounds):
                    load.grows_by(60)
                    daemon.kill()
                    load.grows_by(20)
                    daemon.start()
                    is_connected(daemon)
                load.finish()
                all_is_stored(daemon, load)
                all_is_stored(other, load)
            assert other.metric("guestd_frames_accepted_total") > 0
            assert other.metric("guestd_mqtt_lines_missing_total") == 0
            assert other.stop() == 0
    finally:
        if other.process is not None and other.process.poll() is None:
            other.kill()
    reliability.record("one of two daemons of a shared group killed", rounds, count_samples(daemon.dsn, load.sent))
    assert daemon.stop() == 0
