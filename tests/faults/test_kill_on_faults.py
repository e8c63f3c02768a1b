"""guestd is killed at random moments while something else fails as well, and both sources send: all is stored once.

The order of faults follows from SEED; a failure prints what was done. `./dev faults` kills many times.
"""

import logging
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from tools.harness.broker import Broker
from tools.harness.cluster import Cluster, create_database
from tools.harness.waiting import eventually, wait_seconds

from gueststore.migrations import migrate
from support.broker import Load, Publisher, is_connected, known_machine, mqtt_table
from support.daemon import Daemon, execute, rows
from support.disk import small_disk_at
from support.faults import Fleet, Reliability, count_fleet, count_samples, fleet
from support.proxy import Proxy

log = logging.getLogger(__name__)

SEED = 16
GUESTS, MQTT_MACHINES = 5, 4
# Ten seconds of load for each kill: a start takes seconds where the machine is busy. The agents' buffers hold minutes.
LINES_PER_KILL, INTERVAL_SECONDS = 50, 0.2
STORE_CUT_BYTES, BROKER_CUT_BYTES = 200_000, 20_000
DISK_MEBIBYTES = 64


@dataclass
class Host:
    """guestd with everything that may fail around it."""

    daemon: Daemon
    cluster: Cluster
    broker: Broker
    disk: Path
    chance: random.Random
    is_store_cut: bool = False
    is_broker_cut: bool = False

    def cut_store_after(self) -> int:
        return self.chance.randrange(1, STORE_CUT_BYTES) if self.is_store_cut else sys.maxsize

    def cut_broker_after(self) -> int:
        return self.chance.randrange(1, BROKER_CUT_BYTES) if self.is_broker_cut else sys.maxsize

    def up(self) -> None:
        """Start guestd, again when it ends by itself, as systemd does."""

        def is_up() -> bool:
            if self.daemon.process is None or self.daemon.ended() is not None:
                self.daemon.start()
            return any("metrics" in line for line in self.daemon.logged())

        eventually(is_up, "guestd is up", every_seconds=0.1)

    def reads(self) -> None:
        """Wait until guestd reads both sources, so that the next kill meets a load."""
        eventually(lambda: self.daemon.metric("guestd_channels_connected") == GUESTS, "all channels are read")
        is_connected(self.daemon)


def store_is_killed(host: Host) -> Iterator[None]:
    _signal(host.cluster, signal.SIGKILL)
    yield
    host.cluster.start()


def store_is_restarted(host: Host) -> Iterator[None]:
    host.cluster.stop()
    yield
    host.cluster.start()


def store_stands_still(host: Host) -> Iterator[None]:
    _signal(host.cluster, signal.SIGSTOP)
    try:
        yield
    finally:
        _signal(host.cluster, signal.SIGCONT)


def sessions_are_ended(host: Host) -> Iterator[None]:
    ending = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'guestd'"
    execute(host.cluster.dsn("postgres"), ending)
    yield
    execute(host.cluster.dsn("postgres"), ending)


def store_connections_are_cut(host: Host) -> Iterator[None]:
    host.is_store_cut = True
    yield
    host.is_store_cut = False


def broker_is_restarted(host: Host) -> Iterator[None]:
    host.broker.stop()
    yield
    host.broker.start()


def broker_connections_are_cut(host: Host) -> Iterator[None]:
    host.is_broker_cut = True
    yield
    host.is_broker_cut = False


def disk_is_full(host: Host) -> Iterator[None]:
    with (host.disk / "filler").open("wb", buffering=0) as filler, suppress(OSError):
        while True:
            filler.write(bytes(65536))
    yield
    (host.disk / "filler").unlink()


def guestd_stands_still(host: Host) -> Iterator[None]:
    assert host.daemon.process is not None
    host.daemon.process.send_signal(signal.SIGSTOP)
    yield


def _signal(cluster: Cluster, number: signal.Signals) -> None:
    pid = cluster.pid()
    assert pid is not None
    children = [] if number is signal.SIGKILL else Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for each in (pid, *map(int, children)):
        with suppress(ProcessLookupError):
            os.kill(each, number)


# Faults of one group are not made at the same time.
GROUPS: tuple[tuple[Callable[[Host], Iterator[None]], ...], ...] = (
    (store_is_killed, store_is_restarted, store_stands_still, sessions_are_ended, store_connections_are_cut),
    (broker_is_restarted, broker_connections_are_cut),
    (disk_is_full,),
    (guestd_stands_still,),
)


def choose_faults(chance: random.Random, kills: int) -> Iterator[list[Callable[[Host], Iterator[None]]]]:
    """For each kill one or two faults; every fault comes before one comes again as the first."""
    firsts: list[tuple[int, Callable[[Host], Iterator[None]]]] = []
    for _ in range(kills):
        if not firsts:
            firsts = [(group, fault) for group, faults in enumerate(GROUPS) for fault in faults]
            chance.shuffle(firsts)
        group, fault = firsts.pop()
        others = [each for place, faults in enumerate(GROUPS) for each in faults if place != group]
        yield [fault, chance.choice(others)] if chance.random() < 0.5 else [fault]


def kill_in_fault(host: Host, faults: list[Callable[[Host], Iterator[None]]], load: Fleet) -> None:
    """Make the faults, kill guestd within them, and start it within them or behind them."""
    chance = host.chance
    log.warning("kill within %s", [fault.__name__ for fault in faults])
    host.reads()
    wait_seconds(chance.uniform(0, 1))
    assert load.is_writing()
    with ExitStack() as lasting:
        for fault in faults:
            lasting.enter_context(contextmanager(fault)(host))
        wait_seconds(chance.uniform(0, 1.5))
        host.daemon.kill()
        if chance.random() < 0.5:
            host.daemon.start()
            wait_seconds(chance.uniform(0, 1.5))
    host.up()


@pytest.fixture
def host(own_cluster: Cluster, broker: Broker, directory: Path) -> Iterator[Host]:
    """guestd on a server of its own, by ways that can be cut, with its spool on a small disk."""
    create_database(own_cluster.dsn("postgres"), "guestd")
    migrate(own_cluster.dsn("guestd"))
    disk = directory / "disk"
    disk.mkdir()
    daemon = Daemon(directory, own_cluster.dsn("guestd"))
    daemon.spool = disk / "spool"
    host = Host(daemon, own_cluster, broker, disk, random.Random(SEED))
    store_port = int(str(conninfo_to_dict(own_cluster.dsn("guestd"))["port"]))
    with (
        small_disk_at(disk, DISK_MEBIBYTES),
        Proxy(store_port, host.cut_store_after) as store_way,
        Proxy(broker.port, host.cut_broker_after) as broker_way,
    ):
        daemon.dsn = make_conninfo(own_cluster.dsn("guestd"), port=store_way.port)
        daemon.more_tables = mqtt_table(broker, port=broker_way.port)
        try:
            yield host
        finally:
            if daemon.process is not None and daemon.ended() is None:
                daemon.kill()


def test_kills_on_top_of_other_faults_lose_and_double_nothing_of_either_source(
    host: Host, reliability: Reliability
) -> None:
    kills = reliability.rounds(quick=3, full=32)
    daemon, dsn = host.daemon, host.cluster.dsn("guestd")
    host.up()
    is_connected(daemon)
    machines = [known_machine(daemon) for _ in range(MQTT_MACHINES)]
    with (
        Publisher(host.broker.port) as publisher,
        fleet(daemon, count=kills * LINES_PER_KILL, guests=GUESTS, interval_seconds=INTERVAL_SECONDS) as load,
        Load(publisher, machines, per_second=100) as mqtt_load,
    ):
        for faults in choose_faults(host.chance, kills):
            kill_in_fault(host, faults, load)
        mqtt_load.finish()
        load.finish(daemon)
        stored = 'SELECT count(*) FROM "SystemMetrics" WHERE "machineId" = ANY(%s)'
        eventually(lambda: rows(dsn, stored, machines)[0][0] >= mqtt_load.count, "all of MQTT is stored", 120)
        eventually(lambda: daemon.metric("guestd_mqtt_unacknowledged") == 0, "all is acknowledged")
        eventually(lambda: daemon.metric("guestd_spool_frames") == 0, "the spool is empty")
    assert daemon.stop() == 0
    tally = count_fleet(dsn, load.manifest) + count_samples(dsn, mqtt_load.sent)
    reliability.record("kill -9 of guestd on top of other faults, virtio-serial and MQTT at once", kills, tally)
