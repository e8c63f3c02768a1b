"""guestd keeps a host's filters: woken by edits, through kills of its own and of libvirtd, whatever is done by hand."""

import random
import signal
import threading
import time
from contextlib import suppress
from uuid import UUID, uuid4

import psycopg
import pytest

from guestd.filters.machine_filter import umbrella_name
from support.daemon import Daemon, eventually
from support.faults import Reliability
from support.filters import OTHER, FilterHost

libvirt = pytest.importorskip("libvirt", reason="libvirt-python is not installed: ./dev builds it where it can")
pytestmark = pytest.mark.timeout(600)
SECONDS = 90.0
RULE = "<rule action='drop' direction='in' priority='7'><all/></rule>"


class Kept:
    """A host and the guestd that keeps it."""

    def __init__(self, host: FilterHost, daemon: Daemon, attach: str) -> None:
        self.host = host
        self.daemon = daemon
        daemon.more_tables = f'[libvirt]\nuri = "{host.lab.uri}"\nhost_name = "host"\n'
        daemon.more_tables += f'[filters]\nattach = "{attach}"\ninterval_seconds = 1.0\nmost_removals_share = 1.0\n'

    def settles(self) -> None:
        eventually(self.host.is_settled, "libvirt has what the rows say", SECONDS)


@pytest.fixture
def kept(filter_host: FilterHost, daemon: Daemon) -> Kept:
    """Not started yet; interfaces are given their filters."""
    return Kept(filter_host, daemon, "enforce")


def shuffled(host: FilterHost, dice: random.Random) -> None:
    """Edit the store as several people would: rules, references, filters that come and go."""
    host.run('UPDATE "FWRule" SET "dstPortStart" = %s, "dstPortEnd" = NULL WHERE random() < 0.5 AND "protocol" = %s',
             dice.randint(1, 60000), "tcp")  # fmt: skip
    host.run('DELETE FROM "NWFilter" WHERE "name" LIKE %s AND random() < 0.5', "made %")
    for _ in range(5):
        name = f"made {uuid4()}"
        host.run('INSERT INTO "NWFilter" ("name", "internalName", "uuid") VALUES (%s, %s, gen_random_uuid())',
                 name, f"ibay-{uuid4().hex[:16]}")  # fmt: skip
        host.run(
            """INSERT INTO "FilterReference" ("sourceFilterId", "targetFilterId")
            SELECT one."id", other."id" FROM "NWFilter" AS one, "NWFilter" AS other
            WHERE one."name" = %s AND other."name" <> %s ORDER BY random() LIMIT 2""",
            name, name,
        )  # fmt: skip


def sabotaged(host: FilterHost, dice: random.Random) -> None:
    """What an operator may do by hand: redefine one of guestd's filters, and undefine one that nobody uses."""
    # Of those that have a row: what guestd has just removed would be somebody else's if it came back.
    rows = host.run('SELECT "internalName", "uuid" FROM "NWFilter" ORDER BY 1')
    (changed, uuid), (removed, _) = dice.choice(rows), dice.choice(rows)
    host.define(changed, RULE, uuid)
    with suppress(libvirt.libvirtError):  # it is in use, or not there yet
        host.undefine(removed)


def test_an_edit_reaches_libvirt_at_once_and_domains_that_come_are_protected(kept: Kept) -> None:
    host = kept.host
    kept.daemon.more_tables = kept.daemon.more_tables.replace("interval_seconds = 1.0", "interval_seconds = 3600.0")
    kept.daemon.start()
    kept.settles()
    host.edit("Use SSH service", "dstPortStart", 2)
    kept.settles()
    machine_id, name = host.machine(is_running=True)
    top = umbrella_name(machine_id)
    eventually(lambda: host.named(name) == ({top}, {top}), "its interface names its filter", SECONDS)
    host.give(machine_id, "Use Ping")
    eventually(lambda: len(host.filters()[top].references) == 1, "its filter includes its own", SECONDS)
    kept.settles()
    assert kept.daemon.metric("guestd_filters_wanted") == kept.daemon.metric("guestd_filters_in_force") == 68
    assert kept.daemon.metric("guestd_filters_pending") == 0
    assert kept.daemon.metric("guestd_filters_actions_total", action="attach", outcome="done") == 2


def test_what_is_done_by_hand_is_healed_within_a_pass_while_rows_change(kept: Kept, reliability: Reliability) -> None:
    host, dice = kept.host, random.Random(6)
    host.define(OTHER, RULE)
    foreign = {name: each for name, each in host.filters().items() if not name.startswith("ibay-")}
    host.machine(is_running=True)
    kept.daemon.start()
    kept.settles()
    rounds = reliability.rounds(quick=5, full=100)
    for _ in range(rounds):
        shuffled(host, dice)
        sabotaged(host, dice)
        kept.settles()
    assert {name: each for name, each in host.filters().items() if name in foreign} == foreign
    reliability.record_filters(
        "filters changed by hand while rows change", rounds=rounds, actions=len(host.audit()), kills=0, wrong=0
    )


def edited(host: FilterHost, machine_id: UUID, dice: random.Random, refused: list[Exception]) -> None:
    """Ten edits of one person, who has some filters of his own, and edits and includes everybody's."""
    whose = f"made by {dice.random()}"
    for _ in range(10):
        with psycopg.connect(host.dsn) as connection:
            try:
                connection.execute(
                    """UPDATE "FWRule" SET "dstPortStart" = %s, "dstPortEnd" = NULL, "priority" = %s
                    WHERE "protocol" = 'tcp' AND random() < 0.05""",
                    (dice.randint(1, 60000), dice.randint(-1000, 1000)),
                )
                connection.execute('DELETE FROM "NWFilter" WHERE "name" LIKE %s AND random() < 0.5', (f"{whose}%",))
                connection.execute('DELETE FROM "VMNWFilter" WHERE random() < 0.2')
                made = uuid4()
                connection.execute(
                    """INSERT INTO "NWFilter" ("id", "name", "internalName", "uuid")
                    VALUES (%s, %s, %s, gen_random_uuid())""",
                    (made, f"{whose} {made}", f"ibay-{made.hex[:16]}"),
                )
                connection.execute(
                    """INSERT INTO "FilterReference" ("sourceFilterId", "targetFilterId")
                    SELECT %s, "id" FROM "NWFilter" WHERE "id" <> %s ORDER BY random() LIMIT 2""",
                    (made, made),
                )
                connection.execute(
                    'INSERT INTO "VMNWFilter" ("vmId", "nwFilterId") VALUES (%s, %s)', (machine_id, made)
                )
            except (psycopg.errors.DeadlockDetected, psycopg.errors.ForeignKeyViolation) as exc:
                connection.rollback()
                refused.append(exc)


def test_several_who_edit_at_once_are_followed_to_what_their_rows_say_in_the_end(
    kept: Kept, reliability: Reliability
) -> None:
    host = kept.host
    host.define(OTHER, RULE)
    foreign = {name: each for name, each in host.filters().items() if not name.startswith("ibay-")}
    machine_id, name = host.machine(is_running=True)
    host.run('UPDATE "Machine" SET "allowedIps" = %s', ["10.9.0.2", "fd00::2"])
    kept.daemon.start()
    kept.settles()
    rounds, refused = reliability.rounds(quick=2, full=30), list[Exception]()
    for number in range(rounds):
        people = [
            threading.Thread(target=edited, args=(host, machine_id, random.Random(f"{number} {each}"), refused))
            for each in range(3)
        ]
        for each in people:
            each.start()
        for each in people:
            each.join()
        host.run('DELETE FROM "NWFilter" WHERE "name" LIKE %s AND random() < 0.5', "made %")
        kept.settles()
    assert len(refused) < 30 * rounds  # the rest was made
    assert {name: each for name, each in host.filters().items() if name in foreign} == foreign
    top = umbrella_name(machine_id)
    assert (host.named(name), host.bindings()[host.port(name)]) == (({top}, {top}), top)
    reliability.record_filters(
        "three people edit filters at once", rounds=rounds, actions=len(host.audit()), kills=0, wrong=0
    )


@pytest.mark.parametrize("who", ["guestd", "libvirtd"])
def test_a_kill_between_any_two_steps_is_followed_by_what_the_rows_say(
    kept: Kept, reliability: Reliability, who: str
) -> None:
    host, dice = kept.host, random.Random(who)
    _, name = host.machine(is_running=True)
    kept.daemon.start()
    kept.settles()
    kills = reliability.rounds(quick=3, full=30)
    for _ in range(kills):
        steps = len(host.audit())
        shuffled(host, dice)
        eventually(lambda: len(host.audit()) > steps, "a step has begun", SECONDS)  # noqa: B023 -- called at once
        # Somewhere in the pass; it takes about so long.
        time.sleep(dice.uniform(0.0, 0.2))
        if who == "guestd":
            kept.daemon.kill()
            sabotaged(host, dice)
            kept.daemon.start()
        else:
            host.lab.stop_libvirtd(signal.SIGKILL)
            host.lab.start_libvirtd()
            host.reconnect()
    kept.settles()
    assert host.domain(name).isActive()
    assert set(host.bindings().values()) <= host.own()
    reliability.record_filters(
        f"kill -9 of {who} while filters change", rounds=1, actions=len(host.audit()), kills=kills, wrong=0
    )
