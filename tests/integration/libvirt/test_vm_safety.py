"""No VM loses power and none is started twice by mistake: a real store, libvirt's test driver, and calls that fail."""

import asyncio
import re
import subprocess
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from guestd.core.errors import SourceLost
from guestd.hypervisor.driver import Hypervisor, Target
from guestd.telemetry.registry import VmMetrics
from support.daemon import command, environment, execute, rows
from support.libvirt import domain_xml, own_connection, uri_of
from support.vm_host import Host, add, events, hypervisor_with, reconciling, set_desired

pytestmark = pytest.mark.asyncio
# The test driver's way to have a domain that is off, for a reason that it does not report.
OFF = "<domain xmlns:test='http://libvirt.org/schemas/domain/test/1.0' type='test'><test:runstate>5</test:runstate>"


class GuestThatStays(Hypervisor):
    """A libvirt whose guests ignore the request to shut down; `answer` is what it says of the request."""

    answer: str | Exception | None = None
    asked = 0

    async def shutdown(self, *_: Any) -> str | None:
        """Answer a request to shut down."""
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def guest_that_stays(directory: Path, answer: str | Exception | None) -> GuestThatStays:
    found = GuestThatStays(hypervisor_with(directory, "one").uri, VmMetrics())
    found.answer = answer
    return found


def list_actions(dsn: str, name: str = "one") -> list[tuple[str, str]]:
    return [(action, outcome) for action, _, outcome in events(dsn, name) if action not in ("claim", "status")]


@pytest.mark.parametrize("answer", ["libvirt refuses", SourceLost("no answer within 60 s")])
async def test_a_guest_is_not_destroyed_while_no_request_to_shut_down_was_accepted(
    dsn: str, tmp_path: Path, answer: str | Exception
) -> None:
    add(dsn, "one")
    hypervisor = guest_that_stays(tmp_path, answer)
    async with reconciling(Host(dsn, hypervisor, may_destroy=True)) as host:
        await host.becomes("one", status="running")
        set_desired(dsn, "one", "off")
        await host.eventually(lambda: len(list_actions(dsn)) > 2, "it is asked again and again")
        assert {action for action, _ in list_actions(dsn)} == {"shutdown"}
        assert host.domain("one").isActive()
        await host.eventually(lambda: host.machine("one")["problem"], "the reason is stored")
        assert str(answer) in host.machine("one")["problem"]
        # From its first accepted request on it has its time.
        hypervisor.answer = None
        await host.becomes("one", domainState="shutoff", domainReason="destroyed")
    assert list_actions(dsn)[-2:] == [("shutdown", "done"), ("destroy", "done")]


async def test_a_guest_that_was_started_again_in_between_is_asked_again(dsn: str, tmp_path: Path) -> None:
    add(dsn, "one")
    hypervisor = guest_that_stays(tmp_path, None)
    async with reconciling(Host(dsn, hypervisor, may_destroy=True, shutdown_seconds=2.0)) as host:
        await host.becomes("one", status="running")
        set_desired(dsn, "one", "off")
        await host.eventually(lambda: ("shutdown", "done") in list_actions(dsn), "it is asked")
        host.domain("one").destroy()
        host.domain("one").create()
        await host.eventually(lambda: ("destroy", "done") in list_actions(dsn), "it is destroyed at last")
    assert list_actions(dsn) == [("shutdown", "done"), ("shutdown", "done"), ("destroy", "done")]


async def test_a_guest_that_an_earlier_guestd_asked_is_asked_again(dsn: str, tmp_path: Path) -> None:
    add(dsn, "one")
    first = guest_that_stays(tmp_path, None)
    async with reconciling(Host(dsn, first, may_destroy=True, shutdown_seconds=60.0)) as host:
        await host.becomes("one", status="running")
        set_desired(dsn, "one", "off")
        await host.eventually(lambda: ("shutdown", "done") in list_actions(dsn), "it is asked")
    second = GuestThatStays(first.uri, VmMetrics())
    async with reconciling(Host(dsn, second, may_destroy=True, shutdown_seconds=1.0)) as host:
        await host.eventually(lambda: ("destroy", "done") in list_actions(dsn), "it is destroyed at last")
    assert second.asked == 1


@asynccontextmanager
async def shutdown_that_waits(host: Host) -> AsyncIterator[None]:
    """The shutdown of machine `one` waits while other actions have all places; afterwards its turn comes."""
    places = host.hypervisor._actions._slots
    for _ in range(4):
        await places.acquire()
    set_desired(host.dsn, "one", "off")
    await host.eventually(lambda: host.reconciler._acting, "the shutdown waits for its turn")
    yield
    for _ in range(4):
        places.release()
    await host.eventually(lambda: not host.reconciler._acting, "its turn has come")


async def test_an_action_that_waited_for_its_turn_is_not_sent_when_it_is_no_longer_desired(
    dsn: str, tmp_path: Path
) -> None:
    add(dsn, "one", desiredStatus="running")
    async with reconciling(Host(dsn, hypervisor_with(tmp_path, "one"))) as host:
        await host.becomes("one", status="running")
        async with shutdown_that_waits(host):
            set_desired(dsn, "one", "running")
        await host.another_run()
        assert host.domain("one").isActive()
    assert list_actions(dsn) == []


@pytest.mark.parametrize("change", ["\"status\" = 'updating_hardware'", "\"internalName\" = 'two'"])
async def test_an_action_is_not_sent_when_another_program_works_on_the_machine_or_the_row_has_another_domain(
    dsn: str, tmp_path: Path, change: str
) -> None:
    add(dsn, "one", desiredStatus="running")
    async with reconciling(Host(dsn, hypervisor_with(tmp_path, "one"))) as host:
        await host.becomes("one", status="running")
        async with shutdown_that_waits(host):
            execute(dsn, f'UPDATE "Machine" SET {change}')
        assert host.domain("one").isActive()
    assert list_actions(dsn) == []


class HungLookup:
    """libvirt's connection, of which lookups wait: a libvirtd that is stopped."""

    def __init__(self, connection: Any, may_answer: threading.Event) -> None:
        self._connection = connection
        self._may_answer = may_answer

    def lookupByUUID(self, uuid: bytes) -> Any:  # noqa: N802 -- libvirt's name
        """Look a domain up, at last."""
        self._may_answer.wait()
        return self._connection.lookupByUUID(uuid)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


async def test_an_action_that_libvirt_has_not_received_in_time_is_not_sent_when_libvirt_answers_at_last(
    dsn: str, tmp_path: Path
) -> None:
    add(dsn, "one", desiredStatus="running")
    async with reconciling(Host(dsn, hypervisor_with(tmp_path, "one"), send_seconds=0.5)) as host:
        await host.becomes("one", status="running")
        may_answer = threading.Event()
        host.hypervisor._connection = HungLookup(own_connection(host.hypervisor), may_answer)
        set_desired(dsn, "one", "off")
        await host.eventually(lambda: list_actions(dsn), "libvirt is called")
        set_desired(dsn, "one", "running")
        given_up = time.monotonic() + 1.0
        await host.eventually(lambda: time.monotonic() > given_up, "the time to send it is over")
        may_answer.set()
        await host.eventually(lambda: not host.reconciler._acting, "libvirt has answered")
        assert host.domain("one").isActive()
    assert [(action, outcome[:9]) for action, outcome in list_actions(dsn)] == [("shutdown", "not_sent:")]


async def test_a_start_that_libvirt_has_not_received_is_not_taken_for_one_that_may_have_happened(
    dsn: str, tmp_path: Path
) -> None:
    add(dsn, "one")
    hypervisor = hypervisor_that_is_off(tmp_path / "node.xml")
    async with reconciling(Host(dsn, hypervisor, send_seconds=0.5)) as host:
        await host.becomes("one", domainState="shutoff")
        connection, may_answer = own_connection(hypervisor), threading.Event()
        hypervisor._connection = HungLookup(connection, may_answer)
        set_desired(dsn, "one", "running")
        await host.eventually(lambda: list_actions(dsn)[:1] and list_actions(dsn)[0][1] != "begun", "it is given up")
        assert "not_sent: " in list_actions(dsn)[0][1]
        assert "libvirt did not answer in time" in list_actions(dsn)[0][1]
        await host.eventually(partial(has_no_lease, dsn), "its lease is given back")
        hypervisor._connection = connection
        may_answer.set()
        await host.becomes("one", status="running", problem=None)


async def test_nothing_is_done_while_somebody_changes_the_row(dsn: str, tmp_path: Path) -> None:
    add(dsn, "one", desiredStatus="running")
    async with reconciling(Host(dsn, hypervisor_with(tmp_path, "one"))) as host:
        await host.becomes("one", status="running")
        with psycopg.connect(dsn) as connection:
            connection.execute("""UPDATE "Machine" SET "name" = 'x' WHERE "internalName" = 'one'""")
            host.domain("one").destroy()
            await host.eventually(lambda: host.machine("one")["domainState"] == "shutoff", "it is off")
            await host.another_run(3)
            assert list_actions(dsn) == []
        await host.becomes("one", domainState="running")


def hypervisor_that_is_off(file: Path) -> Hypervisor:
    """The same libvirt after its restart: it has the definition, and has forgotten how the domain ended."""
    uri_of(file, [domain_xml("one", 1).replace("<domain type='test'>", OFF)])
    return Hypervisor(f"test://{file}", VmMetrics())


async def test_a_machine_that_may_have_been_migrated_away_is_not_started_by_its_old_host(
    dsn: str, tmp_path: Path
) -> None:
    add(dsn, "one", desiredStatus="running")
    first = hypervisor_with(tmp_path, "one")
    async with reconciling(Host(dsn, first)) as host:
        await host.becomes("one", status="running")
    # Nobody of guestd sees how it is migrated; the libvirtd is restarted.
    second = hypervisor_that_is_off(Path(first.uri.removeprefix("test://")))
    async with reconciling(Host(dsn, second)) as host:
        await host.becomes("one", status="off", domainReason="unknown")
        await host.another_run(3)
        assert "may have been migrated" in host.machine("one")["problem"]
        assert not host.has_acted
        assert not host.domain("one").isActive()
        # As docs/vms.md says, where it is certain that it runs nowhere.
        execute(dsn, 'DELETE FROM "MachineLease"', "NOTIFY guestd_wish")
        await host.becomes("one", status="running", problem=None)


async def test_a_host_whose_last_report_is_in_the_future_counts_as_one_that_does_not_report(
    dsn: str, tmp_path: Path
) -> None:
    add(dsn, "one", desiredStatus="running")
    first = hypervisor_with(tmp_path, "one")
    async with reconciling(Host(dsn, first)) as host:
        await host.becomes("one", status="running")
    # The server's clock was set back since the other host has reported.
    values = """('there', 'test:///there', '1', now() + INTERVAL '1 hour')"""
    execute(dsn, f'INSERT INTO "Host" ("name", "uri", "version", "reportedAt") VALUES {values}')
    # This host was restarted.
    second = hypervisor_that_is_off(Path(first.uri.removeprefix("test://")))
    async with reconciling(Host(dsn, second, host_boot="boot 2")) as host:
        await host.becomes("one", status="off", domainReason="unknown")
        await host.eventually(lambda: host.machine("one")["problem"], "it is not started")
        assert "may run on a host that does not report: there" in host.machine("one")["problem"]


async def test_a_machine_that_runs_on_another_host_is_not_started_when_its_row_is_moved(
    dsn: str, tmp_path: Path
) -> None:
    add(dsn, "one", desiredStatus="running")
    there = Host(dsn, hypervisor_with(tmp_path, "one"), name="there")
    here = Host(dsn, hypervisor_that_is_off(tmp_path / "here.xml"), name="here")
    async with reconciling(there):
        await there.becomes("one", status="running", hostName="there")
        async with reconciling(here):
            execute(dsn, """UPDATE "Machine" SET "hostId" = (SELECT "id" FROM "Host" WHERE "name" = 'here')""")
            await here.another_run(3)
            assert not here.domain("one").isActive()
            assert not here.has_acted
            # It ends there, and is then started here.
            await here.becomes("one", hostName="here")
            there.domain("one").destroy()
            await here.becomes("one", domainState="running", hostName="here")
    assert list_actions(dsn) == [("start", "done")]


async def test_nothing_is_started_soon_after_the_store_was_lost(dsn: str, tmp_path: Path) -> None:
    add(dsn, "one")
    async with reconciling(Host(dsn, hypervisor_with(tmp_path, "one"), settle_seconds=3600.0)) as host:
        await host.becomes("one", status="running")
        host.domain("one").destroy()
        await host.becomes("one", status="off")
        set_desired(dsn, "one", "running")
        await host.another_run(3)
        assert not host.has_acted


async def test_a_machine_that_was_just_claimed_is_not_started_at_once(dsn: str, tmp_path: Path) -> None:
    host = Host(dsn, hypervisor_that_is_off(tmp_path / "node.xml"), settle_seconds=5.0)
    async with reconciling(host):
        await host.eventually(lambda: time.monotonic() > host.reconciler._policy.starts_from, "it may start machines")
        add(dsn, "one", desiredStatus="running")
        await host.becomes("one", domainState="running")
    waited = rows(
        dsn,
        """SELECT extract(epoch FROM max("occurredAt") FILTER (WHERE "action" = 'start')
        - min("occurredAt") FILTER (WHERE "action" = 'claim'))::float FROM "ReconcileEvent" """,
    )
    assert waited[0][0] >= 4.9


async def test_another_domain_under_the_machines_name_is_reported_and_not_powered(dsn: str, tmp_path: Path) -> None:
    add(dsn, "one", desiredStatus="running")
    async with reconciling(Host(dsn, hypervisor_with(tmp_path, "one"))) as host:
        await host.becomes("one", status="running")
        host.domain("one").destroy()
        host.domain("one").undefine()
        own_connection(host.hypervisor).defineXML(domain_xml("one", 77))
        await host.eventually(lambda: any(text.startswith("replaced: one") for text in host.reports), "it is reported")
        await host.becomes("one", domainState="missing", status="off")
        await host.another_run(3)
        assert not host.has_acted
        # As docs/vms.md says, where it is the machine's domain now.
        accept = ('UPDATE "MachineDomain" SET "domainUuid" = NULL', 'DELETE FROM "MachineLease"', "NOTIFY guestd_wish")
        execute(dsn, *accept)
        await host.becomes("one", domainState="running", problem=None)
    assert rows(dsn, 'SELECT "domainUuid" FROM "MachineDomain"') == [(UUID(int=77),)]


async def test_a_change_of_all_machines_is_held_until_exactly_it_is_confirmed(dsn: str, tmp_path: Path) -> None:
    names = [f"vm{number}" for number in range(4)]
    for name in names:
        add(dsn, name)
    file = tmp_path / "guestd.toml"

    def run(*arguments: str) -> tuple[int, str]:
        started = command("guestd", *arguments, "--config", str(file))
        done = subprocess.run(started, env=environment(), capture_output=True, text=True, check=False)
        return done.returncode, done.stdout

    hypervisor = hypervisor_with(tmp_path, *names)
    file.write_text(
        f'[store]\ndsn = "{dsn}"\n[libvirt]\nuri = "{hypervisor.uri}"\nvms = "converge"\nhost_name = "host"\n'
    )
    async with reconciling(Host(dsn, hypervisor)) as host:
        for name in names:
            await host.becomes(name, status="running")
        execute(dsn, """UPDATE "Machine" SET "desiredStatus" = 'off'""")
        held = [f"held: {name}: shutdown {name}" for name in names]
        await host.eventually(lambda: [text.partition(": running")[0] for text in host.reports] == held, "held")
        await host.another_run(3)
        assert all(host.domain(name).isActive() for name in names)
        assert host._registry.get_sample_value("guestd_vms_reports", {"kind": "held"}) == 4
        _, shown = await asyncio.to_thread(run, "plan")
        found = re.search(r"4 changes of VMs are held; to confirm exactly these: guestd apply --vms (\w+)", shown)
        assert found is not None, shown
        # The desired state of one changes: what was shown is no longer what is held.
        set_desired(dsn, "vm0", "suspended")
        status, answer = await asyncio.to_thread(run, "apply", "--vms", found[1])
        assert (status, "nothing confirmed" in answer) == (1, True)
        await host.another_run()
        assert not host.has_acted
        set_desired(dsn, "vm0", None)
        _, shown = await asyncio.to_thread(run, "plan")
        (digest,) = re.findall(r"--vms (\w+)", shown)
        status, answer = await asyncio.to_thread(run, "apply", "--vms", digest)
        assert (status, answer.count("confirmed: shutdown")) == (0, 3)
        for name in names[1:]:
            await host.becomes(name, status="off")
        assert host.domain("vm0").isActive()


async def test_changes_that_are_held_are_dropped_when_the_rows_are_set_back_one_by_one(
    dsn: str, tmp_path: Path
) -> None:
    names = [f"vm{number}" for number in range(6)]
    for name in names:
        add(dsn, name, desiredStatus="running")
    first = hypervisor_with(tmp_path, *names)
    async with reconciling(Host(dsn, first)) as host:
        for name in names:
            await host.becomes(name, status="running")
        execute(dsn, """UPDATE "Machine" SET "desiredStatus" = 'off'""")
        await host.eventually(lambda: sum(text.startswith("held") for text in host.reports) == 6, "all are held")
        for name in names[:3]:
            await asyncio.to_thread(set_desired, dsn, name, "running")
        await host.another_run()
        assert sum(text.startswith("held") for text in host.reports) == 3
        assert not host.has_acted
    # The next guestd knows it, too.
    async with reconciling(Host(dsn, Hypervisor(first.uri, VmMetrics()))) as host:
        for name in names[3:]:
            await asyncio.to_thread(set_desired, dsn, name, "running")
            await host.another_run()
        assert not host.has_acted
        assert not host.reports


async def test_two_hosts_that_plan_a_start_at_once_start_a_machine_once(dsn: str, tmp_path: Path) -> None:
    add(dsn, "one")
    hosts = [Host(dsn, hypervisor_that_is_off(tmp_path / f"{name}.xml"), name=name) for name in ("a", "b")]
    move = 'UPDATE "Machine" SET "hostId" = (SELECT "id" FROM "Host" ORDER BY random() LIMIT 1)'
    async with reconciling(hosts[0]), reconciling(hosts[1]):
        for _ in range(4):
            # On a thread: the reconcilers in this loop may hold the row.
            await asyncio.to_thread(execute, dsn, move, """UPDATE "Machine" SET "desiredStatus" = 'running'""")
            await asyncio.to_thread(execute, dsn, move)
            await hosts[0].eventually(partial(count_active, hosts), "it is started")
            await asyncio.to_thread(execute, dsn, move)
            for host in hosts:
                await host.another_run()
            assert count_active(hosts) == 1
            await asyncio.to_thread(execute, dsn, 'UPDATE "Machine" SET "desiredStatus" = NULL')
            for host in hosts:
                if host.domain("one").isActive():
                    host.domain("one").destroy()
            await hosts[0].eventually(partial(has_no_lease, dsn), "nobody has its lease")


def has_no_lease(dsn: str) -> bool:
    return rows(dsn, 'SELECT 1 FROM "MachineLease"') == []


def count_active(hosts: list[Host]) -> int:
    return sum(host.domain("one").isActive() for host in hosts)


async def test_the_store_keeps_when_a_desired_state_began(dsn: str) -> None:
    add(dsn, "one")
    read = partial(rows, dsn, 'SELECT "desiredSince" FROM "Machine"')
    assert read() == [(None,)]
    set_desired(dsn, "one", "off")
    first = read()
    set_desired(dsn, "one", "off")
    execute(dsn, """UPDATE "Machine" SET "status" = 'running', "desiredSince" = now() - INTERVAL '1 day'""")
    assert read() == first
    for desired in ("running", None, "off"):
        set_desired(dsn, "one", desired)
        assert read() > first
        first = read()


async def test_the_writer_cannot_change_when_a_desired_state_began(dsn: str) -> None:
    add(dsn, "one")
    with psycopg.connect(make_conninfo(dsn, options="-c role=guestd_writer")) as connection:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute('UPDATE "Machine" SET "desiredSince" = now()')
        connection.rollback()
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute('UPDATE "Machine" SET "desiredStatus" = NULL')


async def test_a_host_that_has_leases_cannot_be_deleted(dsn: str, tmp_path: Path) -> None:
    add(dsn, "one")
    async with reconciling(Host(dsn, hypervisor_with(tmp_path, "one"))) as host:
        await host.becomes("one", status="running")
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        execute(dsn, 'DELETE FROM "Host"')


class SnapshotDuringStart(Hypervisor):
    """A libvirt of which a snapshot is taken just before it boots a domain: an event of another domain asked for it."""

    async def start(self, target: Target) -> str | None:
        """Boot a domain that the last snapshot still shows as off."""
        await self.observe()
        own_connection(self).lookupByUUID(target.uuid.bytes).create()
        return None


async def test_a_start_keeps_its_lease_where_the_snapshot_is_older_than_the_start(dsn: str, tmp_path: Path) -> None:
    add(dsn, "one")
    async with reconciling(Host(dsn, SnapshotDuringStart(hypervisor_with(tmp_path, "one").uri, VmMetrics()))) as host:
        await host.becomes("one", status="running")
        host.domain("one").destroy()
        await host.becomes("one", status="off", domainReason="destroyed")
        assert host.count_written("DropLease") == 1
        set_desired(dsn, "one", "running")
        await host.becomes("one", status="running")
        assert host.count_actions("start") == 1
        assert host.count_written("DropLease") == 1


class StartThatHangs(Hypervisor):
    """A libvirt that does not answer when it is asked to boot a domain."""

    answers = threading.Event()

    async def start(self, target: Target) -> str | None:
        """Give up a call that may boot the domain yet."""
        await self._actions.run_in_slot(self.answers.wait, deadline_seconds=0.1)
        return None


async def test_a_start_that_may_take_effect_yet_keeps_its_lease(dsn: str, tmp_path: Path) -> None:
    add(dsn, "one")
    hypervisor = StartThatHangs(hypervisor_with(tmp_path, "one").uri, VmMetrics())
    async with reconciling(Host(dsn, hypervisor)) as host:
        await host.becomes("one", status="running")
        host.domain("one").destroy()
        await host.becomes("one", status="off", domainReason="destroyed")
        try:
            set_desired(dsn, "one", "running")
            await host.eventually(lambda: host.count_actions("start", "no_answer"), "it is asked")
            await host.another_run(3)
            assert host.count_written("DropLease") == 1
        finally:
            hypervisor.answers.set()
        await host.eventually(lambda: host.count_written("DropLease") > 1, "it has not been started")
