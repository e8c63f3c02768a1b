"""The VM loop on a real store and libvirt's test driver: rows follow domains, and domains what is wanted."""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from guestd.hypervisor.connection import Hypervisor
from guestd.vms import reconciler
from guestd.vms.plan import MAX_START_ATTEMPTS, SHUTOFF_DEBOUNCE_SECONDS, VmPolicy
from guestd.vms.reconciler import VmReconciler
from guestd.vms.service import NOBODY
from support.daemon import add_machine, command, environment, eventually, execute, rows
from support.libvirt import AGENT_CHANNEL, domain_xml, own_connection, running, silent, uri_of

T = TypeVar("T")
pytestmark = pytest.mark.asyncio
# The loop has the rights that the daemon has, and no more.
WRITER = "-c role=guestd_writer"
SCREEN = "<graphics type='vnc' port='5907' autoport='no' listen='127.0.0.1'/>"


class Kept:
    """One host: domains of the test driver, and the loop that keeps their machines."""

    def __init__(self, dsn: str, hypervisor: Hypervisor, name: str = "host", **changes: Any) -> None:
        self.dsn = dsn
        self.hypervisor = hypervisor
        self.passes = 0
        self.written: list[str] = []
        self.acted: list[tuple[str, str]] = []
        self.reports: list[str] = []
        chosen: dict[str, Any] = {
            "host_id": NOBODY, "is_converging": True, "may_destroy": False, "shutdown_seconds": 1.0,
            "channel_names": ("org.infinibay.agent",),
        }  # fmt: skip
        self.loop = VmReconciler(
            hypervisor,
            dsn=make_conninfo(dsn, options=WRITER),
            host_name=name,
            rules=VmPolicy(**chosen | changes),
            counters=self._counters(),
        )

    def _counters(self) -> reconciler.Counters:
        def passed(_: float) -> None:
            self.passes += 1

        return reconciler.Counters(
            passed=passed,
            wrote=self.written.append,
            acted=lambda action, outcome: self.acted.append((action, outcome)),
            moved=lambda _: None,
            reports=lambda found: self.reports.__setitem__(slice(None), sorted(map(str, found))),
            lost=lambda: None,
        )

    def domain(self, name: str) -> Any:
        return own_connection(self.hypervisor).lookupByName(name)

    def machine(self, name: str) -> dict[str, Any]:
        """A machine's row, as MachineState shows it."""
        names = ("status", "state", "hostName", "domainState", "domainReason", "channel", "problem", "isDrifted")
        columns = ", ".join(f'"{each}"' for each in names)
        found = rows(self.dsn, f'SELECT {columns} FROM "MachineState" WHERE "internalName" = %s', name)
        return dict(zip(names, found[0], strict=True))

    async def eventually(self, look: Callable[[], T], what: str) -> T:
        """Poll without holding up the loop."""
        return await asyncio.to_thread(eventually, look, what, 60)

    async def becomes(self, name: str, **expected: Any) -> None:
        def is_so() -> bool:
            return expected.items() <= self.machine(name).items()

        try:
            await self.eventually(is_so, str(expected))
        except AssertionError:
            raise AssertionError(f"{expected} is not in {self.machine(name)}; {self.loop.error}") from None

    async def another_pass(self, count: int = 2) -> None:
        """Wait until it has looked again, from beginning to end."""
        for _ in range(count):
            wanted = self.passes + 1
            self.loop._wake.set()
            await self.eventually(partial(self._has_passed, wanted), "a pass")

    def _has_passed(self, times: int) -> bool:
        return self.passes >= times


@asynccontextmanager
async def keeping(kept: Kept) -> AsyncIterator[Kept]:
    async with running(kept.hypervisor):
        tasks = [asyncio.create_task(kept.loop.run()), asyncio.create_task(kept.loop.watch_desired_state())]
        try:
            await kept.eventually(lambda: kept.passes or kept.loop.error not in (None, "not begun yet"), "a pass")
            yield kept
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


def add(dsn: str, name: str, status: str = "off", **columns: object) -> UUID:
    """A Machine of this internalName."""
    machine_id = add_machine(dsn)
    values = {"internalName": name, "status": status} | columns
    with psycopg.connect(dsn, autocommit=True) as connection:
        for column, value in values.items():
            connection.execute(f'UPDATE "Machine" SET "{column}" = %s WHERE "id" = %s'.encode(), (value, machine_id))
    return machine_id


def libvirt_with(directory: Path, *names: str, devices: str = "") -> Hypervisor:
    domains = [domain_xml(name, number, devices=devices) for number, name in enumerate(names, 1)]
    return Hypervisor(uri_of(directory / f"{uuid4()}.xml", domains), silent())


def wish(dsn: str, name: str, desired: str | None) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute('UPDATE "Machine" SET "desiredStatus" = %s WHERE "internalName" = %s', (desired, name))


def events(dsn: str, name: str) -> list[tuple[Any, ...]]:
    return rows(
        dsn, 'SELECT "action", "reason", "outcome" FROM "ReconcileEvent" WHERE "name" = %s ORDER BY "occurredAt"', name
    )


async def test_a_row_follows_its_domain_and_every_change_is_written_down(dsn: str, tmp_path: Path) -> None:
    add(dsn, "one")
    async with keeping(Kept(dsn, libvirt_with(tmp_path, "one"))) as kept:
        await kept.becomes("one", status="running", hostName="host", domainState="running")
        kept.domain("one").suspend()
        await kept.becomes("one", status="suspended", domainReason="user")
        kept.domain("one").resume()
        await kept.becomes("one", status="running")
        kept.domain("one").destroy()
        await kept.becomes("one", status="off", domainState="shutoff", domainReason="destroyed")
        kept.domain("one").create()
        await kept.becomes("one", status="running")
    assert [(action, reason.partition(":")[0], outcome) for action, reason, outcome in events(dsn, "one")] == [
        ("claim", "nobody held it", "done"),
        ("status", "off -> running", "done"),
        ("status", "running -> suspended", "done"),
        ("status", "suspended -> running", "done"),
        ("status", "running -> off", "done"),
        ("status", "off -> running", "done"),
    ]


async def test_a_reboot_does_not_flap_the_row(dsn: str, tmp_path: Path) -> None:
    add(dsn, "one", "running")
    async with keeping(Kept(dsn, libvirt_with(tmp_path, "one"))) as kept:
        kept.domain("one").destroy()
        await kept.becomes("one", domainState="shutoff")
        kept.domain("one").create()
        await kept.becomes("one", domainState="running")
        await kept.another_pass()
    assert [action for action, *_ in events(dsn, "one")] == ["claim"]


async def test_a_status_of_somebody_elses_is_left_alone(dsn: str, tmp_path: Path) -> None:
    add(dsn, "one", "updating_hardware", desiredStatus="off")
    async with keeping(Kept(dsn, libvirt_with(tmp_path, "one"))) as kept:
        await kept.becomes("one", domainState="running")
        await kept.another_pass()
        assert kept.machine("one")["status"] == "updating_hardware"
        assert kept.domain("one").isActive()


async def test_a_pass_with_nothing_to_do_writes_nothing(dsn: str, tmp_path: Path) -> None:
    add(dsn, "one")
    async with keeping(Kept(dsn, libvirt_with(tmp_path, "one"))) as kept:
        await kept.becomes("one", status="running")
        await kept.another_pass()
        before = rows(dsn, 'SELECT xmin::text, "updatedAt" FROM "Machine"'), list(kept.written)
        await kept.another_pass(3)
        assert (rows(dsn, 'SELECT xmin::text, "updatedAt" FROM "Machine"'), list(kept.written)) == before


async def test_a_wish_is_brought_about_at_once_and_audited(dsn: str, tmp_path: Path) -> None:
    add(dsn, "one")
    async with keeping(Kept(dsn, libvirt_with(tmp_path, "one"))) as kept:
        await kept.becomes("one", status="running")
        wish(dsn, "one", "suspended")
        await kept.becomes("one", status="suspended")
        wish(dsn, "one", "running")
        await kept.becomes("one", status="running")
        wish(dsn, "one", "off")
        await kept.becomes("one", status="off")
        wish(dsn, "one", "running")
        await kept.becomes("one", status="running")
        await kept.eventually(lambda: ("start", "done") in kept.acted, "the start has been counted")
    done = [(action, outcome) for action, _, outcome in events(dsn, "one") if action not in ("claim", "status")]
    assert done == [("suspend", "done"), ("resume", "done"), ("shutdown", "done"), ("start", "done")]


async def test_an_observer_does_nothing_about_a_wish(dsn: str, tmp_path: Path) -> None:
    add(dsn, "one", desiredStatus="off")
    async with keeping(Kept(dsn, libvirt_with(tmp_path, "one"), is_converging=False)) as kept:
        await kept.becomes("one", status="running")
        await kept.another_pass()
        assert kept.domain("one").isActive()
        assert kept.acted == []


async def test_facts_are_kept_and_drift_is_shown(dsn: str, tmp_path: Path) -> None:
    machine_id = add(dsn, "one", cpuCores=4, ramGB=1)
    hypervisor = libvirt_with(tmp_path, "one", devices=SCREEN + AGENT_CHANNEL.format(name="one"))
    async with keeping(Kept(dsn, hypervisor)) as kept:
        await kept.becomes("one", channel="disconnected", isDrifted=True)
        await kept.eventually(lambda: kept.reports, "a report")
        assert kept.reports == ["drift: one: cpuCores is 4, the domain has 2 vCPUs"]
        screen = 'SELECT "graphicProtocol", "graphicPort", "graphicHost" FROM "MachineConfiguration"'
        assert rows(dsn, screen) == [("vnc", 5907, "127.0.0.1")]
        kept.domain("one").destroy()
        await kept.eventually(lambda: rows(dsn, screen) == [("vnc", -1, None)], "the screen is gone")
    assert rows(dsn, 'SELECT "cpuCores", "id" FROM "Machine"') == [(4, machine_id)]


async def test_what_has_no_counterpart_is_reported_and_left_alone(dsn: str, tmp_path: Path) -> None:
    add(dsn, "one")
    async with keeping(Kept(dsn, libvirt_with(tmp_path, "one", "two"))) as kept:
        await kept.becomes("one", status="running")
        await kept.eventually(lambda: kept.reports, "a report")
        assert kept.reports == ["unmatched: two: a domain without a Machine of that internalName"]
        kept.domain("one").destroy()
        kept.domain("one").undefine()
        await kept.becomes("one", domainState="missing", status="running")
        assert kept.machine("one")["problem"] == "held by this host, which has no domain of that name"
        assert kept.domain("two").isActive()


async def test_a_machine_that_crashes_is_started_again_and_each_start_is_audited(dsn: str, tmp_path: Path) -> None:
    add(dsn, "one")
    async with keeping(Kept(dsn, libvirt_with(tmp_path, "one"))) as kept:
        await kept.becomes("one", status="running")
        wish(dsn, "one", "running")
        for starts in (1, 2):
            kept.domain("one").destroy()
            await kept.eventually(partial(has_started, kept, starts), "a start")
            await kept.becomes("one", domainState="running")
        # That the waits grow, and that it is left in the end, is in tests/unit/test_vm_plan.py.
    assert len([event for event in events(dsn, "one") if event[0] == "start"]) == 2


async def test_what_was_tried_in_vain_is_known_to_the_next_guestd(dsn: str, tmp_path: Path) -> None:
    machine_id = add(dsn, "one", desiredStatus="running")
    first = Kept(dsn, libvirt_with(tmp_path, "one"))
    async with keeping(first):
        await first.becomes("one", status="running")
    execute(
        dsn,
        f"""INSERT INTO "ReconcileEvent"
        ("machineId", "name", "action", "reason", "outcome", "desired", "attempt")
        VALUES ('{machine_id}', 'one', 'start', 'why', 'done', 'running', {MAX_START_ATTEMPTS})""",
    )
    second = Kept(dsn, Hypervisor(first.hypervisor.uri, silent()))
    async with keeping(second):
        second.domain("one").destroy()
        await second.eventually(lambda: second.machine("one")["problem"], "it is left with a reason")
        assert "it did not stay" in second.machine("one")["problem"]
        assert second.acted == []
        wish(dsn, "one", "off")
        await second.becomes("one", problem=None)
        wish(dsn, "one", "running")
        await second.eventually(partial(has_started, second, 1), "wanted anew, it is started")
    attempts = 'SELECT "attempt" FROM "ReconcileEvent" WHERE "action" = \'start\' ORDER BY "occurredAt"'
    assert rows(dsn, attempts) == [(MAX_START_ATTEMPTS,), (1,)]


async def test_what_helped_for_long_enough_is_forgotten(dsn: str, tmp_path: Path) -> None:
    machine_id = add(dsn, "one", desiredStatus="running")
    first = Kept(dsn, libvirt_with(tmp_path, "one"))
    async with keeping(first):
        await first.becomes("one", status="running")
    execute(
        dsn,
        f"""INSERT INTO "ReconcileEvent"
        ("occurredAt", "machineId", "name", "action", "reason", "outcome", "desired", "attempt")
        VALUES (now() - INTERVAL '1 hour', '{machine_id}', 'one', 'start', 'why', 'done', 'running', 9)""",
        """UPDATE "MachineDomain" SET "changedAt" = now() - INTERVAL '11 minutes'""",
    )
    second = Kept(dsn, Hypervisor(first.hypervisor.uri, silent()))
    async with keeping(second):
        second.domain("one").destroy()
        await second.eventually(partial(has_started, second, 1), "it is started as if for the first time")


def has_started(kept: Kept, times: int) -> bool:
    return kept.acted.count(("start", "done")) >= times


async def test_a_migrated_machine_changes_hands_and_the_host_it_left_does_not_write_of_it(
    dsn: str, tmp_path: Path
) -> None:
    add(dsn, "one", "running")
    old = Kept(dsn, libvirt_with(tmp_path, "one"), name="old")
    new = Kept(dsn, libvirt_with(tmp_path, "other"), name="new")
    async with keeping(old), keeping(new):
        await old.becomes("one", hostName="old")
        # The test driver cannot migrate: the domain ends on one host and appears, active, on the other.
        old.domain("one").destroy()
        own_connection(new.hypervisor).createXML(domain_xml("one", 9))
        await new.becomes("one", hostName="new", domainState="running", status="running")
        await old.another_pass()
        await old.becomes("one", hostName="new", status="running")
    assert [action for action, *_ in events(dsn, "one")] == ["claim", "claim"]


async def test_a_host_that_dies_leaves_its_machines_unknown_and_their_status_alone(dsn: str, tmp_path: Path) -> None:
    add(dsn, "one")
    async with keeping(Kept(dsn, libvirt_with(tmp_path, "one"))) as kept:
        await kept.becomes("one", status="running", state="running")
    execute(dsn, """UPDATE "Host" SET "lastSeen" = now() - INTERVAL '61 seconds'""")
    await kept.becomes("one", status="running", state="unknown")


async def test_a_second_guestd_on_one_host_refuses(dsn: str, tmp_path: Path) -> None:
    hypervisor = libvirt_with(tmp_path, "one")
    add(dsn, "one")
    async with keeping(Kept(dsn, hypervisor)) as first:
        await first.becomes("one", status="running")
        second = VmReconciler(
            hypervisor, dsn=dsn, host_name="host", rules=first.loop._rules, counters=first._counters()
        )  # fmt: skip
        task = asyncio.create_task(second.run())
        try:
            await first.eventually(lambda: "another guestd keeps" in str(second.error), "the second refuses")
        finally:
            task.cancel()
            await asyncio.wait([task])


async def test_a_store_that_goes_away_and_comes_back_finds_the_loop_again(dsn: str, tmp_path: Path) -> None:
    add(dsn, "one")
    async with keeping(Kept(dsn, libvirt_with(tmp_path, "one"))) as kept:
        await kept.becomes("one", status="running")
        execute(dsn, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'guestd'")
        kept.domain("one").suspend()
        await kept.becomes("one", status="suspended")


async def test_the_plan_is_shown_and_nothing_is_done(dsn: str, tmp_path: Path) -> None:
    add(dsn, "one", desiredStatus="suspended")
    uri = uri_of(tmp_path / "node.xml", [domain_xml("one", 1), domain_xml("two", 2)])
    file = tmp_path / "guestd.toml"
    file.write_text(f'[store]\ndsn = "{dsn}"\n[libvirt]\nuri = "{uri}"\nvms = "converge"\nhost_name = "h"\n')

    def shown(*arguments: str) -> str:
        started = command("guestd", "plan", "--config", str(file), *arguments)
        return subprocess.run(started, env=environment(), capture_output=True, text=True, check=True).stdout

    plan = await asyncio.to_thread(shown)
    assert plan.splitlines() == [
        "claim one: nobody held it",
        "status of one: off -> running: its domain is running (unknown)",
        "facts of one: running (unknown), no problem",
        "unmatched: two: a domain without a Machine of that internalName",
    ]
    kinds = [each["step"] for each in json.loads(await asyncio.to_thread(shown, "--json"))]
    assert kinds == ["Claim", "SetStatus", "KeepFacts", "Report"]
    assert rows(dsn, 'SELECT count(*) FROM "Host"') == [(0,)]
    assert rows(dsn, 'SELECT "status", "hostId" FROM "Machine"') == [("off", None)]


async def test_off_is_believed_when_it_has_lasted(dsn: str, tmp_path: Path) -> None:
    add(dsn, "one", "running")
    async with keeping(Kept(dsn, libvirt_with(tmp_path, "one"))) as kept:
        kept.domain("one").destroy()
        await kept.becomes("one", status="off")
        found = rows(
            dsn,
            """SELECT extract(epoch FROM event."occurredAt" - seen."changedAt")::float
            FROM "ReconcileEvent" AS event, "MachineDomain" AS seen WHERE event."action" = 'status'""",
        )
    assert found[0][0] > SHUTOFF_DEBOUNCE_SECONDS - 1
