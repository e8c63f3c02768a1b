"""guestd keeps a host's filters: woken by edits, through kills of its own and of libvirtd, whatever is done by hand."""

import asyncio
import random
import signal
import time
from contextlib import suppress
from uuid import uuid4

import pytest

from fix_daemon import Daemon, eventually
from fix_faults import Reliability
from fix_filters import OTHER, FilterHost
from guestd.filters.effective import umbrella_name
from guestd.filters.wanted import asked
from guestd.filterstore import read_rows

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

    def is_settled(self) -> bool:
        """Whether libvirt has all that the rows say, and nothing else of guestd's, and the store says so."""
        rows = asyncio.run(read_rows(self.host.dsn))
        found = asked(rows)
        wanted = {**found.filters, **{each.name: each for each in found.umbrellas.values()}}
        seen = {name: each for name, each in self.host.filters().items() if name.startswith("ibay-")}
        ((waiting,),) = self.host.run('SELECT count(*) FROM "NWFilter" WHERE "flushedAt" IS NULL')
        return bool(seen == wanted and waiting == 0)

    def settles(self) -> None:
        eventually(self.is_settled, "libvirt has what the rows say", SECONDS)


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
