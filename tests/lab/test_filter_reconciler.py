"""guestd reconciles a host's filters: after edits, manual changes, and kills of guestd and libvirtd."""

import random
import signal
import threading
import time
from contextlib import suppress
from functools import partial
from uuid import UUID, uuid4

import psycopg
import pytest
from tools.harness.waiting import eventually

from guestd.filters.machine_filter import machine_filter_name
from support.daemon import Daemon
from support.faults import Reliability
from support.filters import OTHER, FilterHost
from support.libvirt import libvirt

pytestmark = pytest.mark.timeout(600)
SECONDS = 90.0
RULE = "<rule action='drop' direction='in' priority='7'><all/></rule>"


class ReconciledHost:
    """A host and the guestd that reconciles it."""

    def __init__(self, host: FilterHost, daemon: Daemon, attach: str) -> None:
        self.host = host
        self.daemon = daemon
        daemon.more_tables = f'[libvirt]\nuri = "{host.lab.uri}"\nhost_name = "host"\n'
        daemon.more_tables += f'[filters]\nattach = "{attach}"\ninterval_seconds = 1.0\nmost_removals_share = 1.0\n'

    def wait_until_settled(self) -> None:
        eventually(self.host.is_settled, "libvirt has the desired filters", SECONDS)


@pytest.fixture
def reconciled(filter_host: FilterHost, daemon: Daemon) -> ReconciledHost:
    """Not started yet; interfaces get their machine filters."""
    return ReconciledHost(filter_host, daemon, "enforce")


def edit_rows(host: FilterHost, dice: random.Random) -> None:
    """Edit the store as several people would: rules, references, new and deleted filters."""
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


def change_manually(host: FilterHost, dice: random.Random) -> None:
    """What an operator may do manually: redefine one of guestd's filters, and undefine another that is unused."""
    # Only filters with a row: one that guestd just removed would be foreign if it reappeared.
    rows = host.run('SELECT "internalName", "uuid" FROM "NWFilter" ORDER BY 1')
    (changed, uuid), (removed, _) = dice.choice(rows), dice.choice(rows)
    host.define(changed, RULE, uuid)
    with suppress(libvirt.libvirtError):  # it is in use, or not defined yet
        host.undefine(removed)


def test_an_edit_reaches_libvirt_at_once_and_new_domains_are_protected(reconciled: ReconciledHost) -> None:
    host = reconciled.host
    reconciled.daemon.more_tables = reconciled.daemon.more_tables.replace(
        "interval_seconds = 1.0", "interval_seconds = 3600.0"
    )
    reconciled.daemon.start()
    reconciled.wait_until_settled()
    host.edit("Use SSH service", "dstPortStart", 2)
    reconciled.wait_until_settled()
    machine_id, name = host.add_machine(is_running=True)
    top = machine_filter_name(machine_id)
    eventually(lambda: host.filters_named(name) == ({top}, {top}), "its interface names its machine filter", SECONDS)
    host.assign(machine_id, "Use Ping")
    eventually(
        lambda: len(host.filters()[top].references) == 1, "the machine filter includes the assigned one", SECONDS
    )
    reconciled.wait_until_settled()
    assert (
        reconciled.daemon.metric("guestd_filters_wanted") == reconciled.daemon.metric("guestd_filters_in_force") == 68
    )
    assert reconciled.daemon.metric("guestd_filters_pending") == 0
    assert reconciled.daemon.metric("guestd_filters_actions_total", action="attach", outcome="done") == 2


def is_one(daemon: Daemon, name: str) -> bool:
    """Whether one object is reported as unreadable."""
    return daemon.metric(name, kind="unreadable") == 1


def test_names_that_break_xml_and_a_domain_that_libvirt_does_not_print_do_not_end_guestd(
    reconciled: ReconciledHost,
) -> None:
    host, daemon = reconciled.host, reconciled.daemon
    for name in ("R&amp;D", "it&apos;s", "a&lt;b"):
        host.define(f"{OTHER} {name}", RULE)
    host.add_machine(names=f"{OTHER} R&amp;D")
    _, oversized = host.add_machine()
    xml, text = host.domain(oversized).XMLDesc(), '"' * 1_000_000
    host.libvirt.defineXML(xml.replace("<memory", f"<description>{text}</description><memory", 1))
    machine_id, good = host.add_machine(is_running=True)
    daemon.start()
    reconciled.wait_until_settled()
    for name in ("guestd_vms_reports", "guestd_filters_reports"):
        eventually(partial(is_one, daemon, name), f"{name} counts one", SECONDS)
    top = machine_filter_name(machine_id)
    eventually(lambda: host.filters_named(good) == ({top}, {top}), "its interface names its machine filter", SECONDS)
    statement = """SELECT "domainState", "problem" FROM "MachineState"
        WHERE "internalName" = %s AND "domainState" IS NOT NULL"""
    eventually(lambda: bool(host.run(statement, oversized)), "its state is stored", SECONDS)
    ((state, problem),) = host.run(statement, oversized)
    assert state == "shutoff"
    assert "libvirt does not print it" in problem
    assert daemon.ended() is None


def test_manual_changes_are_repaired_within_a_run_while_rows_change(
    reconciled: ReconciledHost, reliability: Reliability
) -> None:
    host, dice = reconciled.host, random.Random(6)
    host.define(OTHER, RULE)
    foreign = {name: each for name, each in host.filters().items() if not name.startswith("ibay-")}
    host.add_machine(is_running=True)
    reconciled.daemon.start()
    reconciled.wait_until_settled()
    rounds = reliability.rounds(quick=5, full=100)
    for _ in range(rounds):
        edit_rows(host, dice)
        change_manually(host, dice)
        reconciled.wait_until_settled()
    assert {name: each for name, each in host.filters().items() if name in foreign} == foreign
    reliability.record_filters(
        "filters changed manually while rows change", rounds=rounds, actions=len(host.audit()), kills=0, wrong=0
    )


def edit_repeatedly(host: FilterHost, machine_id: UUID, dice: random.Random, refused: list[Exception]) -> None:
    """Ten edits by one person, of their own filters and of others'."""
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


def test_concurrent_edits_by_several_people_all_reach_libvirt(
    reconciled: ReconciledHost, reliability: Reliability
) -> None:
    host = reconciled.host
    host.define(OTHER, RULE)
    foreign = {name: each for name, each in host.filters().items() if not name.startswith("ibay-")}
    machine_id, name = host.add_machine(is_running=True)
    host.run('UPDATE "Machine" SET "allowedIps" = %s', ["10.9.0.2", "fd00::2"])
    reconciled.daemon.start()
    reconciled.wait_until_settled()
    rounds, refused = reliability.rounds(quick=2, full=30), list[Exception]()
    for number in range(rounds):
        people = [
            threading.Thread(
                target=edit_repeatedly, args=(host, machine_id, random.Random(f"{number} {each}"), refused)
            )
            for each in range(3)
        ]
        for each in people:
            each.start()
        for each in people:
            each.join()
        host.run('DELETE FROM "NWFilter" WHERE "name" LIKE %s AND random() < 0.5', "made %")
        reconciled.wait_until_settled()
    assert len(refused) < 30 * rounds  # the other edits were committed
    assert {name: each for name, each in host.filters().items() if name in foreign} == foreign
    top = machine_filter_name(machine_id)
    assert (host.filters_named(name), host.bindings()[host.port(name)]) == (({top}, {top}), top)
    reliability.record_filters(
        "three people edit filters at once", rounds=rounds, actions=len(host.audit()), kills=0, wrong=0
    )


@pytest.mark.parametrize("who", ["guestd", "libvirtd"])
def test_after_a_kill_between_any_two_steps_the_rows_are_in_force(
    reconciled: ReconciledHost, reliability: Reliability, who: str
) -> None:
    host, dice = reconciled.host, random.Random(who)
    _, name = host.add_machine(is_running=True)
    reconciled.daemon.start()
    reconciled.wait_until_settled()
    kills = reliability.rounds(quick=3, full=30)
    for _ in range(kills):
        steps = len(host.audit())
        edit_rows(host, dice)
        eventually(lambda: len(host.audit()) > steps, "a step has begun", SECONDS)  # noqa: B023 -- called at once
        # Anywhere in the run, which takes about that long.
        time.sleep(dice.uniform(0.0, 0.2))
        if who == "guestd":
            reconciled.daemon.kill()
            change_manually(host, dice)
            reconciled.daemon.start()
        else:
            host.lab.stop_libvirtd(signal.SIGKILL)
            host.lab.start_libvirtd()
            host.reconnect()
    reconciled.wait_until_settled()
    assert host.domain(name).isActive()
    assert set(host.bindings().values()) <= host.own()
    reliability.record_filters(
        f"kill -9 of {who} while filters change", rounds=1, actions=len(host.audit()), kills=kills, wrong=0
    )
