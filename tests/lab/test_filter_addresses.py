"""A machine's bad address costs that machine only: the filters that it shares with others are in force for them."""

import asyncio
import signal
from uuid import UUID, uuid4

import pytest
from tools.harness.waiting import eventually

from guestd.core.errors import SourceLost
from guestd.filters.driver import FilterDriver
from guestd.filters.machine_filter import machine_filter_name
from guestd.filters.model import Filter, Rule
from guestd.telemetry.registry import VmMetrics
from support.filter_rows import filter_row, rule_row
from support.filters import ENFORCE, FilterHost

pytestmark = pytest.mark.timeout(600)

SHARED = filter_row(
    rule_row(id=UUID(int=30), action="drop", dst_port_start=81),
    id=UUID(int=21), uuid=UUID(int=21), internal_name="ibay-shared", name="shared", chain="root", priority=5,
)  # fmt: skip
ADD_RULE = """INSERT INTO "FWRule"
    ("nwFilterId", "action", "direction", "priority", "protocol", "ipVersion", "srcIpAddr")
    VALUES (%s, 'return', 'out', 100, 'all', 'ipv6', '$IPV6')"""


def allow(host: FilterHost, machine_id: UUID, *addresses: str) -> None:
    host.run('UPDATE "Machine" SET "allowedIps" = %s WHERE "id" = %s', list(addresses), machine_id)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("fe80::1%eth0", "has a zone"),
        ("fd00::9/128", "is not an IP address"),
        ("ff02::1", "is not the address of one machine"),
    ],
)
def test_a_bad_address_affects_only_its_machine(filter_host: FilterHost, bad: str, reason: str) -> None:
    good_id, good = filter_host.add_machine(is_running=True)
    bad_id, other = filter_host.add_machine(is_running=True)
    filter_host.store([SHARED])
    for machine_id, address in ((good_id, "fd00::2"), (bad_id, bad)):
        allow(filter_host, machine_id, address)
        filter_host.assign(machine_id, "shared")
    filter_host.reconcile(ENFORCE)
    # The filter that both running machines include needs an address from now on.
    filter_host.run(ADD_RULE, SHARED.id)
    result = filter_host.reconcile(ENFORCE)
    assert {outcome for _, outcome in result.steps} == {"done"}
    assert result.in_force == result.desired
    assert {report.kind for report in result.reports} == {"unenforceable"}
    assert any(bad in report.text and reason in report.text for report in result.reports)
    assert filter_host.bindings()[filter_host.port(good)] == machine_filter_name(good_id)
    rules = filter_host.lab.run("ip6tables", "-S", f"FI-{filter_host.port(good)}")
    assert "fd00::2" in rules
    assert "--dport 81" in filter_host.lab.run("iptables", "-S", f"FO-{filter_host.port(good)}")
    assert filter_host.read_row("shared")[1] is None
    _, printed = filter_host.guestd("filters", "show", str(bad_id))
    assert any(line.startswith("not enforced:") and bad in line and reason in line for line in printed), printed
    assert filter_host.reconcile(ENFORCE).steps == ()
    # Corrected, it is enforced there, too.
    allow(filter_host, bad_id, "fd00::3")
    assert {outcome for _, outcome in filter_host.reconcile(ENFORCE).steps} == {"done"}
    assert "fd00::3" in filter_host.lab.run("ip6tables", "-S", f"FI-{filter_host.port(other)}")


def test_what_libvirt_refuses_is_shown_at_the_first_failure_and_affects_only_those_that_use_it(
    filter_host: FilterHost,
) -> None:
    good_id, good = filter_host.add_machine(is_running=True)
    taken_id, _ = filter_host.add_machine(is_running=True)
    filter_host.store([SHARED])
    filter_host.assign(good_id, "shared")
    filter_host.define(machine_filter_name(taken_id), "")  # by hand, with another uuid
    result = filter_host.reconcile(ENFORCE)
    assert filter_host.bindings() == {filter_host.port(good): machine_filter_name(good_id)}
    assert result.in_force == result.desired - 1
    _, printed = filter_host.guestd("filters", "show", str(taken_id))
    assert any(line.startswith("failed: of machine m (ibay-") and "did not define" in line for line in printed), printed
    _, printed = filter_host.guestd("filters", "show", str(good_id))
    assert not [line for line in printed if line.startswith("failed:")]


@pytest.mark.parametrize(("rules", "used"), [(1, 256), (20, 50)])
def test_a_machine_with_as_many_addresses_as_there_may_be_is_filtered_in_time(
    filter_host: FilterHost, rules: int, used: int
) -> None:
    machine_id, name = filter_host.add_machine(is_running=True)
    allow(filter_host, machine_id, *(f"10.9.{number // 250}.{number % 250 + 1}" for number in range(3000)))
    many = [
        rule_row(id=UUID(int=31 + number), protocol="tcp", action="return", direction="out", src_ip_addr="$IP",
                 dst_port_start=number + 1)
        for number in range(rules)
    ]  # fmt: skip
    row = filter_row(*many, id=UUID(int=22), uuid=UUID(int=22), internal_name="ibay-many", name="many", chain="root")
    filter_host.store([row])
    filter_host.assign(machine_id, "many")
    result = filter_host.reconcile(ENFORCE)
    assert {outcome for _, outcome in result.steps} == {"done"}
    reports = [report.text for report in result.reports if report.kind == "unenforceable"]
    assert reports[0] == "it has 3000 IPv4 addresses: only the first 256 are used"
    assert [f"only the first {used} of its 256 addresses are used" in report for report in reports[1:]] == (
        [] if used == 256 else [True]
    )
    port = filter_host.port(name)
    assert filter_host.bindings()[port] == machine_filter_name(machine_id)
    assert filter_host.lab.run("iptables", "-S", f"FI-{port}").count("--dport") == rules * used


def test_a_change_that_libvirtd_does_not_answer_ends_the_run_and_is_made_all_the_same(filter_host: FilterHost) -> None:
    definition = Filter("ibay-late", uuid4(), "root", 0, (Rule("drop", "in", 500, "tcp"),))

    async def define() -> None:
        driver = FilterDriver(filter_host.lab.uri, VmMetrics(), change_deadline_seconds=0.5)
        async with driver.connect():
            filter_host.lab.signal_libvirtd(signal.SIGSTOP)
            await driver.define(definition)

    try:
        with pytest.raises(SourceLost, match=r"no answer within 0\.5 s"):
            asyncio.run(define())
    finally:
        filter_host.lab.signal_libvirtd(signal.SIGCONT)
    eventually(lambda: filter_host.filters().get("ibay-late") == definition, "libvirt has made the change", 30)
