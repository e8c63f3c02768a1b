"""The VM reconciler on a real store and libvirt's test driver: rows follow domains, domains the desired state."""

import asyncio
import json
import subprocess
from functools import partial
from pathlib import Path

import pytest

from guestd.hypervisor.domains import Graphics
from guestd.hypervisor.driver import Hypervisor
from guestd.telemetry.registry import VmMetrics
from guestd.vms.model import Claim, KeepGraphics, SetStatus
from guestd.vms.plan import SHUTOFF_DEBOUNCE_SECONDS
from guestd.vms.power import MAX_START_ATTEMPTS
from guestd.vms.reconciler import VmReconciler
from guestd.vms.store import open_vm_store
from support.daemon import command, environment, execute, rows
from support.libvirt import AGENT_CHANNEL, domain_xml, own_connection, uri_of
from support.vm_host import Host, add, events, hypervisor_with, reconciling, set_desired

pytestmark = pytest.mark.asyncio
SCREEN = "<graphics type='vnc' port='5907' autoport='no' listen='127.0.0.1'/>"


async def test_a_row_follows_its_domain_and_every_change_is_audited(dsn: str, tmp_path: Path) -> None:
    add(dsn, "one")
    async with reconciling(Host(dsn, hypervisor_with(tmp_path, "one"))) as host:
        await host.becomes("one", status="running", hostName="host", domainState="running")
        host.domain("one").suspend()
        await host.becomes("one", status="suspended", domainReason="user")
        host.domain("one").resume()
        await host.becomes("one", status="running")
        host.domain("one").destroy()
        await host.becomes("one", status="off", domainState="shutoff", domainReason="destroyed")
        host.domain("one").create()
        await host.becomes("one", status="running")
    assert [(action, reason.partition(":")[0], outcome) for action, reason, outcome in events(dsn, "one")] == [
        ("claim", "not assigned to any host", "done"),
        ("status", "off -> running", "done"),
        ("status", "running -> suspended", "done"),
        ("status", "suspended -> running", "done"),
        ("status", "running -> off", "done"),
        ("status", "off -> running", "done"),
    ]


async def test_a_reboot_does_not_flap_the_row(dsn: str, tmp_path: Path) -> None:
    add(dsn, "one", "running")
    async with reconciling(Host(dsn, hypervisor_with(tmp_path, "one"))) as host:
        host.domain("one").destroy()
        await host.becomes("one", domainState="shutoff")
        host.domain("one").create()
        await host.becomes("one", domainState="running")
        await host.another_run()
    assert [action for action, *_ in events(dsn, "one")] == ["claim"]


async def test_a_status_of_another_program_is_left_alone(dsn: str, tmp_path: Path) -> None:
    add(dsn, "one", "updating_hardware", desiredStatus="off")
    async with reconciling(Host(dsn, hypervisor_with(tmp_path, "one"))) as host:
        await host.becomes("one", domainState="running")
        await host.another_run()
        assert host.machine("one")["status"] == "updating_hardware"
        assert host.domain("one").isActive()


async def test_a_run_with_nothing_to_do_writes_nothing(dsn: str, tmp_path: Path) -> None:
    add(dsn, "one")
    async with reconciling(Host(dsn, hypervisor_with(tmp_path, "one"))) as host:
        await host.becomes("one", status="running")
        await host.another_run()
        before = rows(dsn, 'SELECT xmin::text, "updatedAt" FROM "Machine"'), host.written
        await host.another_run(3)
        assert (rows(dsn, 'SELECT xmin::text, "updatedAt" FROM "Machine"'), host.written) == before


async def test_a_changed_desired_state_is_applied_at_once_and_audited(dsn: str, tmp_path: Path) -> None:
    add(dsn, "one")
    async with reconciling(Host(dsn, hypervisor_with(tmp_path, "one"))) as host:
        await host.becomes("one", status="running")
        set_desired(dsn, "one", "suspended")
        await host.becomes("one", status="suspended")
        set_desired(dsn, "one", "running")
        await host.becomes("one", status="running")
        set_desired(dsn, "one", "off")
        await host.becomes("one", status="off")
        set_desired(dsn, "one", "running")
        await host.becomes("one", status="running")
        await host.eventually(lambda: host.count_actions("start"), "the start is counted")
    done = [(action, outcome) for action, _, outcome in events(dsn, "one") if action not in ("claim", "status")]
    assert done == [("suspend", "done"), ("resume", "done"), ("shutdown", "done"), ("start", "done")]


async def test_observe_mode_ignores_the_desired_state(dsn: str, tmp_path: Path) -> None:
    add(dsn, "one", desiredStatus="off")
    async with reconciling(Host(dsn, hypervisor_with(tmp_path, "one"), is_converging=False)) as host:
        await host.becomes("one", status="running")
        await host.another_run()
        assert host.domain("one").isActive()
        assert not host.has_acted


async def test_facts_are_stored_and_drift_is_reported(dsn: str, tmp_path: Path) -> None:
    machine_id = add(dsn, "one", cpuCores=4, ramGB=1)
    hypervisor = hypervisor_with(tmp_path, "one", devices=SCREEN + AGENT_CHANNEL.format(name="one"))
    async with reconciling(Host(dsn, hypervisor)) as host:
        await host.becomes("one", channel="disconnected", isDrifted=True)
        await host.eventually(lambda: host.reports, "a report")
        assert host.reports == ["drift: one: cpuCores is 4, the domain has 2 vCPUs"]
        screen = 'SELECT "graphicProtocol", "graphicPort", "graphicHost" FROM "MachineConfiguration"'
        assert rows(dsn, screen) == [("vnc", 5907, "127.0.0.1")]
        host.domain("one").destroy()
        await host.eventually(lambda: rows(dsn, screen) == [("vnc", -1, None)], "the screen is gone")
    assert rows(dsn, 'SELECT "cpuCores", "id" FROM "Machine"') == [(4, machine_id)]


async def test_a_domain_without_row_and_a_row_without_domain_are_reported_and_left_alone(
    dsn: str, tmp_path: Path
) -> None:
    add(dsn, "one")
    async with reconciling(Host(dsn, hypervisor_with(tmp_path, "one", "two"))) as host:
        await host.becomes("one", status="running")
        await host.eventually(lambda: host.reports, "a report")
        assert host.reports == ["unmatched: two: no Machine has this domain name as its internalName"]
        host.domain("one").destroy()
        host.domain("one").undefine()
        await host.becomes("one", domainState="missing", domainReason="destroyed", status="off")
        assert host.machine("one")["problem"] == "assigned to this host, which has no domain of that name"
        assert host.domain("two").isActive()


async def test_a_transient_domain_that_is_destroyed_is_off_and_runs_when_it_is_created_again(
    dsn: str, tmp_path: Path
) -> None:
    add(dsn, "one", desiredStatus="running")
    async with reconciling(Host(dsn, hypervisor_with(tmp_path, "two"))) as host:
        connection = own_connection(host.hypervisor)
        connection.createXML(domain_xml("one", 7), 0)
        await host.becomes("one", status="running", domainState="running")
        host.domain("one").destroy()
        await host.becomes("one", status="off", domainState="missing", domainReason="destroyed")
        assert "cannot be started until it is defined" in host.machine("one")["problem"]
        connection.createXML(domain_xml("one", 7), 0)
        await host.becomes("one", status="running", domainState="running", problem=None)
        assert not host.has_acted
    assert [reason for action, reason, _ in events(dsn, "one") if action == "status"][-2:] == [
        "running -> off: domain is gone (destroyed)",
        "off -> running: domain is running (booted)",
    ]


async def test_a_transient_domain_that_is_created_again_at_once_does_not_flap_the_row(dsn: str, tmp_path: Path) -> None:
    add(dsn, "one", "running")
    async with reconciling(Host(dsn, hypervisor_with(tmp_path, "two"))) as host:
        connection = own_connection(host.hypervisor)
        connection.createXML(domain_xml("one", 7), 0)
        await host.becomes("one", domainState="running")
        host.domain("one").destroy()
        await host.becomes("one", domainState="missing")
        connection.createXML(domain_xml("one", 7), 0)
        await host.becomes("one", domainState="running")
        await host.another_run()
    assert [action for action, *_ in events(dsn, "one")] == ["claim"]


async def test_nothing_is_off_while_libvirt_does_not_answer(dsn: str, tmp_path: Path) -> None:
    add(dsn, "one", "running")
    async with reconciling(Host(dsn, hypervisor_with(tmp_path, "two"))) as host:
        own_connection(host.hypervisor).createXML(domain_xml("one", 7), 0)
        await host.becomes("one", domainState="running")
        # A transient domain of the test driver ends with its connection: nothing reports how.
        host.hypervisor._on_close_event(own_connection(host.hypervisor))
        await host.becomes("one", domainState="missing", domainReason="unknown")
        assert host.machine("one")["status"] == "running"
        assert host.reconciler._absences


async def test_a_machine_that_crashes_is_started_again_and_each_start_is_audited(dsn: str, tmp_path: Path) -> None:
    add(dsn, "one")
    async with reconciling(Host(dsn, hypervisor_with(tmp_path, "one"))) as host:
        await host.becomes("one", status="running")
        set_desired(dsn, "one", "running")
        for starts in (1, 2):
            host.domain("one").destroy()
            await host.eventually(partial(has_started, host, starts), "a start")
            await host.becomes("one", domainState="running")
        # The growing delays and the final give-up are tested in tests/unit/test_vm_plan.py.
    assert len([event for event in events(dsn, "one") if event[0] == "start"]) == 2


async def test_failed_attempts_are_known_to_the_next_guestd(dsn: str, tmp_path: Path) -> None:
    machine_id = add(dsn, "one", desiredStatus="running")
    first = Host(dsn, hypervisor_with(tmp_path, "one"))
    async with reconciling(first):
        await first.becomes("one", status="running")
    execute(
        dsn,
        f"""INSERT INTO "ReconcileEvent"
        ("machineId", "name", "action", "reason", "outcome", "desired", "attempt")
        VALUES ('{machine_id}', 'one', 'start', 'why', 'done', 'running', {MAX_START_ATTEMPTS})""",
    )
    second = Host(dsn, Hypervisor(first.hypervisor.uri, VmMetrics()))
    async with reconciling(second):
        second.domain("one").destroy()
        await second.eventually(lambda: second.machine("one")["problem"], "it is given up with a reason")
        assert "never ran for 10 minutes" in second.machine("one")["problem"]
        assert not second.has_acted
        set_desired(dsn, "one", "off")
        await second.becomes("one", problem=None)
        set_desired(dsn, "one", "running")
        await second.eventually(partial(has_started, second, 1), "it is started after the desired state was set again")
    attempts = 'SELECT "attempt" FROM "ReconcileEvent" WHERE "action" = \'start\' ORDER BY "occurredAt"'
    assert rows(dsn, attempts) == [(MAX_START_ATTEMPTS,), (1,)]


async def test_a_start_that_the_store_did_not_let_begin_is_no_attempt(dsn: str, tmp_path: Path) -> None:
    add(dsn, "one")
    async with reconciling(Host(dsn, hypervisor_with(tmp_path, "one"))) as host:
        await host.becomes("one", status="running")
        host.domain("one").destroy()
        await host.becomes("one", status="off")
        execute(dsn, 'REVOKE INSERT ON "ReconcileEvent" FROM guestd_writer')
        set_desired(dsn, "one", "running")
        await host.eventually(lambda: host.lost > 1, "the store refuses the audit row of the start, twice")
        execute(dsn, 'GRANT INSERT ON "ReconcileEvent" TO guestd_writer')
        await host.becomes("one", status="running")
    assert rows(dsn, 'SELECT "attempt" FROM "ReconcileEvent" WHERE "action" = \'start\'') == [(1,)]


async def test_only_writes_that_changed_a_row_are_reported_as_written(dsn: str, tmp_path: Path) -> None:
    machine_id = add(dsn, "one", "running")
    async with open_vm_store(dsn, name="host", uri="test:///x", version="1") as store:
        claim = Claim(machine_id, "one", None, "not assigned to any host")
        late = SetStatus(machine_id, "one", "off", "suspended", "another program has set running since")
        console = KeepGraphics(machine_id, "one", Graphics("vnc", 5900, None))
        assert await store.write([late, console, claim]) == ([claim, console], [])
    assert [action for action, *_ in events(dsn, "one")] == ["claim"]


async def test_attempts_that_succeeded_are_forgotten(dsn: str, tmp_path: Path) -> None:
    machine_id = add(dsn, "one", desiredStatus="running")
    first = Host(dsn, hypervisor_with(tmp_path, "one"))
    async with reconciling(first):
        await first.becomes("one", status="running")
    execute(
        dsn,
        f"""INSERT INTO "ReconcileEvent"
        ("occurredAt", "machineId", "name", "action", "reason", "outcome", "desired", "attempt")
        VALUES (now() - INTERVAL '1 hour', '{machine_id}', 'one', 'start', 'why', 'done', 'running', 9)""",
        """UPDATE "MachineDomain" SET "changedAt" = now() - INTERVAL '11 minutes'""",
    )
    second = Host(dsn, Hypervisor(first.hypervisor.uri, VmMetrics()))
    async with reconciling(second):
        second.domain("one").destroy()
        await second.eventually(partial(has_started, second, 1), "it is started as if for the first time")


def has_started(host: Host, times: int) -> bool:
    return host.count_actions("start") >= times


async def test_a_migrated_machine_is_reassigned_and_the_old_host_does_not_write_it(dsn: str, tmp_path: Path) -> None:
    add(dsn, "one", "running")
    old = Host(dsn, hypervisor_with(tmp_path, "one"), name="old")
    new = Host(dsn, hypervisor_with(tmp_path), name="new")
    async with reconciling(old), reconciling(new):
        await old.becomes("one", hostName="old")
        # The test driver cannot migrate: the domain ends on one host and appears, active, on the other.
        old.domain("one").destroy()
        own_connection(new.hypervisor).createXML(domain_xml("one", 1))
        await new.becomes("one", hostName="new", domainState="running", status="running")
        await old.another_run()
        await old.becomes("one", hostName="new", status="running")
    assert [action for action, *_ in events(dsn, "one")] == ["claim", "claim"]


async def test_the_machines_of_a_dead_host_are_unknown_and_keep_their_status(dsn: str, tmp_path: Path) -> None:
    add(dsn, "one")
    async with reconciling(Host(dsn, hypervisor_with(tmp_path, "one"))) as host:
        await host.becomes("one", status="running", state="running")
    execute(dsn, """UPDATE "Host" SET "lastSeen" = now() - INTERVAL '61 seconds'""")
    await host.becomes("one", status="running", state="unknown")


async def test_a_second_guestd_on_one_host_refuses(dsn: str, tmp_path: Path) -> None:
    hypervisor = hypervisor_with(tmp_path, "one")
    add(dsn, "one")
    async with reconciling(Host(dsn, hypervisor)) as first:
        await first.becomes("one", status="running")
        second = VmReconciler(
            hypervisor, dsn=dsn, host_name="host", policy=first.reconciler._policy, metrics=VmMetrics()
        )  # fmt: skip
        task = asyncio.create_task(second.run())
        try:
            await first.eventually(lambda: "another guestd manages" in str(second.error), "the second refuses")
        finally:
            task.cancel()
            await asyncio.wait([task])


async def test_the_reconciler_continues_after_the_store_was_lost(dsn: str, tmp_path: Path) -> None:
    add(dsn, "one")
    async with reconciling(Host(dsn, hypervisor_with(tmp_path, "one"))) as host:
        await host.becomes("one", status="running")
        execute(dsn, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'guestd'")
        host.domain("one").suspend()
        await host.becomes("one", status="suspended")


async def test_guestd_plan_prints_the_plan_and_changes_nothing(dsn: str, tmp_path: Path) -> None:
    add(dsn, "one", desiredStatus="suspended")
    uri = uri_of(tmp_path / "node.xml", [domain_xml("one", 1), domain_xml("two", 2)])
    file = tmp_path / "guestd.toml"
    file.write_text(f'[store]\ndsn = "{dsn}"\n[libvirt]\nuri = "{uri}"\nvms = "converge"\nhost_name = "h"\n')

    def shown(*arguments: str) -> str:
        started = command("guestd", "plan", "--config", str(file), *arguments)
        return subprocess.run(started, env=environment(), capture_output=True, text=True, check=True).stdout

    plan = await asyncio.to_thread(shown)
    assert plan.splitlines() == [
        "claim one: not assigned to any host",
        "lease of one: taken, its domain is active here",
        "status of one: off -> running: domain is running (unknown)",
        "facts of one: running (unknown), no problem",
        "unmatched: two: no Machine has this domain name as its internalName",
    ]
    kinds = [each["step"] for each in json.loads(await asyncio.to_thread(shown, "--json"))]
    assert kinds == ["Claim", "TakeLease", "SetStatus", "KeepFacts", "Report"]
    assert rows(dsn, 'SELECT count(*) FROM "Host"') == [(0,)]
    assert rows(dsn, 'SELECT "status", "hostId" FROM "Machine"') == [("off", None)]


async def test_shutoff_is_debounced(dsn: str, tmp_path: Path) -> None:
    add(dsn, "one", "running")
    async with reconciling(Host(dsn, hypervisor_with(tmp_path, "one"))) as host:
        host.domain("one").destroy()
        await host.becomes("one", status="off")
        found = rows(
            dsn,
            """SELECT extract(epoch FROM event."occurredAt" - seen."changedAt")::float
            FROM "ReconcileEvent" AS event, "MachineDomain" AS seen WHERE event."action" = 'status'""",
        )
    assert found[0][0] > SHUTOFF_DEBOUNCE_SECONDS - 1
