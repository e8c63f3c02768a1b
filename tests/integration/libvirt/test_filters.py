"""Filters on a real store: its rows compiled for a machine, and what guestd prints of them."""

import asyncio
import json
import subprocess
from dataclasses import replace
from typing import Any
from uuid import UUID

import psycopg
import pytest

from guestd.filters.cache import FilterCache
from guestd.filters.desired import CompiledRows, compile_rows
from guestd.filters.explain import find_machine
from guestd.filters.snapshot import FilterHostState, MachineRow
from guestd.filters.store import open_filter_store, read_store_snapshot
from gueststore.seed import Admin, seed
from support.daemon import add_machine, command, environment


class Platform:
    """A seeded store with one machine in one department."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        seed(dsn, Admin("a@example.org", "no guess at all"))
        self.machine_id = add_machine(dsn)
        ((self.department_id,),) = self.run('SELECT "id" FROM "Department"')
        self.run('UPDATE "Machine" SET "departmentId" = %s, "name" = %s', self.department_id, "web")

    def run(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), values)
            return cursor.fetchall() if cursor.description else []

    def use(self, table: str, column: str, owner: UUID, *names: str) -> None:
        self.run(
            f'INSERT INTO "{table}" ("{column}", "nwFilterId") SELECT %s, "id" FROM "NWFilter" WHERE "name" = ANY(%s)',
            owner,
            list(names),
        )

    def compile(self) -> tuple[CompiledRows, MachineRow]:
        store = asyncio.run(read_store_snapshot(self.dsn))
        return compile_rows(store), find_machine(store.machines, str(self.machine_id))

    def guestd(self, *arguments: str) -> tuple[int, list[str]]:
        started = command("guestd", *arguments)
        variables = environment() | {"GUESTD_DATABASE_DSN": self.dsn}
        done = subprocess.run(started, env=variables, capture_output=True, text=True, check=False, timeout=60)
        return done.returncode, (done.stdout + done.stderr).splitlines()


@pytest.fixture
def platform(dsn: str) -> Platform:
    return Platform(dsn)


def test_every_filter_of_the_seed_can_be_enforced(platform: Platform) -> None:
    found, _ = platform.compile()
    assert len(found.filters) == 67
    assert found.problems == {}


def test_the_states_of_a_host_are_read_as_they_were_written(platform: Platform) -> None:
    ((name, uuid),) = platform.run('SELECT "internalName", "uuid" FROM "NWFilter" LIMIT 1')
    state = FilterHostState(name, uuid, is_known=False, digest="d", is_bound=True, problem="why")

    async def write_and_read() -> list[FilterHostState]:
        async with open_filter_store(platform.dsn, name="host", uri="test:///x", version="1") as store:
            await store.begin_steps([], [(name, uuid)])
            await store.write_states([state], ())
            return await store.read_states()

    assert asyncio.run(write_and_read()) == [replace(state, is_known=True)]


def test_a_snapshot_without_edits_decodes_no_filter_again(platform: Platform) -> None:
    cache = FilterCache()
    first, second = (asyncio.run(read_store_snapshot(platform.dsn, cache)) for _ in range(2))
    assert first.filters
    assert all(one is other for one, other in zip(first.filters, second.filters, strict=True))


def test_a_machine_has_its_own_filters_its_departments_and_its_services(platform: Platform) -> None:
    platform.use("VMNWFilter", "vmId", platform.machine_id, "Use Ping")
    platform.use("DepartmentNWFilter", "departmentId", platform.department_id, "Drop All")
    platform.run('UPDATE "GlobalServiceConfig" SET "useEnabled" = TRUE WHERE "serviceId" = %s', "dns")
    platform.run(
        'INSERT INTO "VMServiceConfig" ("vmId", "serviceId", "provideEnabled") VALUES (%s, %s, TRUE)',
        platform.machine_id, "ssh",
    )  # fmt: skip
    platform.run(
        """INSERT INTO "VmPort" ("vmId", "protocol", "portStart", "portEnd", "running", "enabled", "toEnable")
        VALUES (%s, 'tcp', 8080, 8081, FALSE, FALSE, TRUE), (%s, 'tcp', 9090, 9090, TRUE, FALSE, FALSE)""",
        platform.machine_id, platform.machine_id,
    )  # fmt: skip
    found, machine = platform.compile()
    top = found.machine_filters[machine.id]
    assert {found.titles[each.target] for each in top.references} == {"Use Ping", "Drop All"}
    assert {(rule.direction, rule.protocol, rule.value("dstportstart")) for rule in top.rules} == {
        ("out", "tcp", "53"), ("in", "tcp", "22"), ("in", "tcp", "8080"), ("out", "udp", "53"),
    }  # fmt: skip


def test_clean_traffic_applies_once_the_operator_sets_the_machines_addresses(platform: Platform) -> None:
    platform.run(
        'INSERT INTO "DepartmentConfiguration" ("departmentId", "cleanTraffic") VALUES (%s, TRUE)',
        platform.department_id,
    )
    found, machine = platform.compile()
    assert {found.titles[each.target] for each in found.machine_filters[machine.id].references} == {"No MAC Spoofing"}
    assert "No IP" not in found.reports[machine.id][0]
    platform.run('UPDATE "Machine" SET "allowedIps" = %s', ["10.0.0.7"])
    found, machine = platform.compile()
    (reference,) = found.machine_filters[machine.id].references
    assert (found.titles[reference.target], reference.parameters) == ("Clean Traffic", (("IP", "10.0.0.7"),))
    assert found.reports[machine.id] == ()


def test_a_refused_rule_is_shown_with_its_column(platform: Platform) -> None:
    platform.use("VMNWFilter", "vmId", platform.machine_id, "Use Ping")
    platform.run("""UPDATE "FWRule" SET "dstPortStart" = 8 WHERE "protocol" = 'icmp'""")
    _, printed = platform.guestd("filters", "show", "web")
    assert printed[1] == "no rules: everything passes"
    assert printed[2].startswith("refused: Use Ping (ibay-")
    assert printed[2].endswith("dstPortStart: libvirt ignores it: protocol icmp has no ports, and the rule would match all its packets")  # fmt: skip  # noqa: E501 -- the sentence is tested


@pytest.mark.parametrize(
    "state",
    ['{"new": ' + "[" * 3000 + "]" * 3000 + "}", '{"new": 1e5000}', '{"new": -1e5000}', '{"new": 1e5000, "x": 1.5e-9}'],
    ids=["nested", "digits", "digits below zero", "digits and a fraction"],
)
def test_a_state_that_cannot_be_decoded_is_refused_with_its_filter_alone(platform: Platform, state: str) -> None:
    platform.run(
        """UPDATE "FWRule" SET "state" = %s::jsonb
        WHERE "nwFilterId" = (SELECT "id" FROM "NWFilter" WHERE "name" = 'Use Ping')""",
        state,
    )
    found, _ = platform.compile()
    (problems,) = found.problems.values()
    assert {each.column for each in problems} == {"state"}
    assert len(found.filters) == 66


@pytest.mark.parametrize("addresses", ["{NULL}", "{10.0.0.7,NULL}", "{{10.0.0.7,10.0.0.8}}"])
def test_what_is_no_text_in_allowed_ips_is_reported_of_its_machine_alone(platform: Platform, addresses: str) -> None:
    before, _ = platform.compile()
    platform.run('UPDATE "Machine" SET "allowedIps" = %s::text[]', addresses)
    found, machine = platform.compile()
    assert found.filters == before.filters
    (problem,) = [each for each in found.reports[machine.id] if "Machine.allowedIps: " in each]
    assert problem.endswith("is not an IP address")


def test_filters_that_include_each_other_are_shown_as_such(platform: Platform) -> None:
    ids = dict(platform.run('SELECT "name", "id" FROM "NWFilter" WHERE "name" = ANY(%s)', ["Use Ping", "Drop All"]))
    for source, target in (("Use Ping", "Drop All"), ("Drop All", "Use Ping")):
        statement = 'INSERT INTO "FilterReference" ("sourceFilterId", "targetFilterId") VALUES (%s, %s)'
        platform.run(statement, ids[source], ids[target])
    platform.use("VMNWFilter", "vmId", platform.machine_id, "Use Ping")
    for verb in (["show"], ["explain"]):
        question = ["tcp", "10.0.0.5:22", "in"] if verb == ["explain"] else []
        status, lines = platform.guestd("filters", *verb, str(platform.machine_id), *question)
        assert status == 0, lines
        assert any("includes itself" in line for line in lines)


def test_the_rules_of_a_machine_are_shown_in_the_order_in_which_they_match(platform: Platform) -> None:
    platform.use(
        "VMNWFilter", "vmId", platform.machine_id, "Drop All", "Provides SSH service", "Respond to Ping requests"
    )
    status, printed = platform.guestd("filters", "show", "web")
    assert status == 0
    assert [line.partition(" [")[0].split() for line in printed[2:]] == [
        ["200", "accept", "in", "tcp", "dstport", "22"],
        ["500", "accept", "in", "icmp"],
        ["1000", "drop", "in", "all"],
        ["1000", "drop", "out", "all"],
    ]


def test_explain_names_the_rule_that_decides(platform: Platform) -> None:
    platform.use("VMNWFilter", "vmId", platform.machine_id, "Drop All", "Provides SSH service")
    status, printed = platform.guestd("filters", "explain", "web", "tcp", "10.0.0.5:22", "in")
    assert status == 0
    assert [line.partition(":")[0] for line in printed[1:]] == [
        "first packet (in)",
        "answers (out)",
        "later packets (in)",
    ]
    assert all("passes:   200 accept in tcp dstport 22 [Provides SSH service" in line for line in printed[1:])
    _, printed = platform.guestd("filters", "explain", "web", "tcp", "10.0.0.5:443", "in")
    assert "is dropped:  1000 drop in all [Drop All" in printed[1]


def test_rules_and_decisions_are_facts_in_json(platform: Platform) -> None:
    platform.use("VMNWFilter", "vmId", platform.machine_id, "Drop All", "Provides SSH service")
    _, printed = platform.guestd("filters", "show", "web", "--json")
    shown = json.loads(printed[0])
    assert (shown["id"], shown["name"], shown["problems"]) == (str(platform.machine_id), "web", [])
    ssh = shown["rules"][0]
    assert (ssh["layer"], ssh["priority"], ssh["action"], ssh["protocol"]) == ("packets", 200, "accept", "tcp")
    assert {"name": "dstportstart", "value": "22", "is_negated": False} in ssh["matches"]
    _, printed = platform.guestd("filters", "explain", "web", "tcp", "10.0.0.5:22", "in", "--json")
    explained = json.loads(printed[0])
    assert explained["own_address"] is None
    assert [(each["packet"], each["direction"], each["verdict"]) for each in explained["packets"]] == [
        ("first packet", "in", "passes"),
        ("answers", "out", "passes"),
        ("later packets", "in", "passes"),
    ]
    assert all(each["rule"] == ssh for each in explained["packets"])


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (("show", "nobody"), 1, "0 machines are called 'nobody'"),
        (("explain", "web", "tcp", "10.0.0.5", "in"), 2, "tcp needs ADDRESS:PORT"),
        (("explain", "web", "icmp", "10.0.0", "in"), 2, "is not an IP address"),
    ],
)
def test_an_invalid_question_is_an_error(
    platform: Platform, arguments: tuple[str, ...], status: int, text: str
) -> None:
    ended, printed = platform.guestd("filters", *arguments)
    assert ended == status
    assert text in printed[-1]
