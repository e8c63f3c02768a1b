"""Passes over a host's filters on a real libvirt: what the rows say is in force, and stays so."""

from uuid import UUID

import pytest

from guestd.filters.diff import Allowed
from guestd.filters.kernel import KernelRules
from guestd.filters.machine_filter import umbrella_name
from guestd.filters.model import Reference
from guestd.filters.plan import Define, Guard
from support.faults import Reliability
from support.filter_rows import filter_row, rule_row
from support.filters import ENFORCE, FilterHost

pytestmark = pytest.mark.timeout(600)
SSH = "Use SSH service"
RULE = "<rule action='drop' direction='in' priority='7'><all/></rule>"
TAKE = Allowed(Guard(20, 0.5), "enforce", is_taking=True)


def test_every_filter_of_the_store_is_put_into_libvirt_once_and_read_back(filter_host: FilterHost) -> None:
    machine_id, _ = filter_host.machine()
    before = {name: each for name, each in filter_host.filters().items() if not name.startswith("ibay-")}
    first = filter_host.passed()
    assert (first.wanted, first.in_force, len(first.done), first.held) == (68, 68, 68, None)
    assert umbrella_name(machine_id) in filter_host.own()
    assert filter_host.run('SELECT count(*) FROM "NWFilter" WHERE "flushedAt" IS NULL OR "problem" IS NOT NULL') == [
        (0,)
    ]
    assert filter_host.audit() == [("define", "done")] * 68
    again = filter_host.passed()
    assert (again.in_force, again.done) == (68, ())
    assert {name: each for name, each in filter_host.filters().items() if name in before} == before


def test_an_edited_rule_defines_its_filter_alone(filter_host: FilterHost) -> None:
    filter_host.passed()
    (before, _), (other, _) = filter_host.row(SSH), filter_host.row("Use Ping")
    filter_host.edit(SSH, "dstPortStart", 2)
    outcome = filter_host.passed()
    assert [action.definition.name for action, _ in outcome.done if isinstance(action, Define)] == [
        filter_host.internal(SSH)
    ]
    assert (outcome.in_force, outcome.drifted) == (67, 0)
    assert filter_host.row(SSH)[0] > before
    assert filter_host.row("Use Ping")[0] == other


def test_what_is_done_by_hand_is_put_right_by_the_next_pass_and_counted_as_drift(filter_host: FilterHost) -> None:
    filter_host.define("other", RULE)
    filter_host.passed()
    changed, removed, again = (filter_host.internal(name) for name in (SSH, "Use Ping", "Use HTTP service"))
    filter_host.define(changed, RULE, filter_host.filters()[changed].uuid)
    filter_host.undefine(removed)
    filter_host.undefine(again)
    filter_host.define(again, RULE)  # under another uuid
    outcome = filter_host.passed()
    # The name that somebody took is his: it is told, and not taken back.
    assert (outcome.drifted, outcome.in_force) == (2, 66)
    assert {report.name for report in outcome.reports if report.kind == "refused"} >= {again}
    assert "which guestd did not define" in filter_host.row("Use HTTP service")[1]
    assert filter_host.row("Use HTTP service")[0] is None
    filter_host.undefine(again)
    assert filter_host.passed().in_force == 67
    assert filter_host.row("Use HTTP service")[1] is None
    assert filter_host.filters()["other"].rules


def test_a_rule_that_libvirt_would_change_is_a_problem_of_its_filter_until_it_is_put_right(
    filter_host: FilterHost,
) -> None:
    filter_host.passed()
    good = filter_host.filters()[filter_host.internal(SSH)]
    filter_host.edit(SSH, "srcIpMask", "24")
    assert filter_host.passed().in_force == 66
    flushed_at, problem = filter_host.row(SSH)
    assert flushed_at is None
    assert "srcIpMask" in problem
    assert filter_host.filters()[good.name] == good
    filter_host.edit(SSH, "srcIpMask", None)
    assert filter_host.passed().in_force == 67
    assert filter_host.row(SSH)[1] is None


def test_a_filter_without_a_row_goes_when_nothing_uses_it(filter_host: FilterHost) -> None:
    filter_host.passed()
    name = filter_host.internal("Use Ping")
    _, domain = filter_host.machine(names=name)
    filter_host.run('DELETE FROM "NWFilter" WHERE "internalName" = %s', name)
    outcome = filter_host.passed()
    assert name in filter_host.own()
    assert name in {report.name for report in outcome.reports if report.kind == "used"}
    filter_host.domain(domain).undefine()
    filter_host.forget(domain)
    filter_host.passed()
    assert name not in filter_host.own()
    assert filter_host.run('SELECT count(*) FROM "FilterHostState" WHERE "name" = %s', name) == [(0,)]


def test_many_removals_wait_for_a_person(filter_host: FilterHost) -> None:
    filter_host.passed()
    filter_host.run('DELETE FROM "NWFilter" WHERE "name" LIKE %s', "Provides %")
    edited = filter_host.internal(SSH)
    filter_host.edit(SSH, "dstPortStart", 2)
    outcome = filter_host.passed()
    assert outcome.held is not None
    assert (len(filter_host.own()), outcome.done) == (67, ())
    assert "28 of 67" in filter_host.row(SSH)[1]
    status, told = filter_host.guestd("apply")
    assert (status, len(filter_host.own())) == (1, 67)
    assert any(line.startswith("held:") for line in told)
    status, told = filter_host.guestd("apply", "--yes")
    assert (status, len(filter_host.own())) == (0, 39)
    assert told[-1] == "39 of 39 filters are in force"
    assert filter_host.filters()[edited].rules[0].value("dstportstart") == "2"


def test_a_port_counts_as_open_when_an_interface_names_the_filter_that_opens_it(filter_host: FilterHost) -> None:
    machine_id, _ = filter_host.machine()
    filter_host.run(
        """INSERT INTO "VmPort" ("vmId", "protocol", "portStart", "portEnd", "running", "enabled", "toEnable")
        VALUES (%s, 'tcp', 8080, 8080, FALSE, FALSE, TRUE)""",
        machine_id,
    )
    asked = 'SELECT "enabled", "toEnable" FROM "VmPort"'
    filter_host.passed()
    assert filter_host.run(asked) == [(False, True)]
    filter_host.passed(ENFORCE)
    assert filter_host.run(asked) == [(True, False)]


def test_an_interface_is_given_its_machines_filter_live_and_for_the_next_start(filter_host: FilterHost) -> None:
    machine_id, name = filter_host.machine(is_running=True)
    top = umbrella_name(machine_id)
    reported = filter_host.passed()
    assert sum(report.kind == "unattached" for report in reported.reports) == 2
    assert filter_host.named(name) == ({""}, {""})
    outcome = filter_host.passed(ENFORCE)
    assert sorted(type(action).__name__ for action, _ in outcome.done) == ["Attach", "Attach"]
    assert filter_host.named(name) == ({top}, {top})
    assert filter_host.bindings()[filter_host.port(name)] == top
    assert filter_host.passed(ENFORCE).done == ()
    assert filter_host.audit()[-2:] == [("attach", "done")] * 2


def test_somebody_elses_filter_is_taken_over_only_on_demand(filter_host: FilterHost) -> None:
    filter_host.define("other", RULE)
    machine_id, name = filter_host.machine(is_running=True, names="other")
    outcome = filter_host.passed(ENFORCE)
    assert sum(report.kind == "taken" for report in outcome.reports) == 2
    assert filter_host.named(name) == ({"other"}, {"other"})
    status, _ = filter_host.guestd("apply", "--take", attach="report")
    assert status == 78
    status, told = filter_host.guestd("apply", "--take", attach="enforce")
    assert status == 0, told
    top = umbrella_name(machine_id)
    assert filter_host.named(name) == ({top}, {top})
    assert filter_host.filters()["other"].rules


def test_an_interface_whose_rules_libvirt_has_dropped_is_bound_anew(filter_host: FilterHost) -> None:
    machine_id, name = filter_host.machine(is_running=True)
    filter_host.passed(ENFORCE)
    port = filter_host.port(name)
    filter_host.libvirt.nwfilterBindingLookupByPortDev(port).delete()
    reported = filter_host.passed()
    assert any("libvirt enforces nothing there" in report.text for report in reported.reports)
    assert port not in filter_host.bindings()
    filter_host.passed(ENFORCE)
    assert filter_host.bindings()[port] == umbrella_name(machine_id)


def test_a_filter_counts_as_flushed_when_every_host_has_it(filter_host: FilterHost) -> None:
    filter_host.machine(names=filter_host.internal("Use Ping"))
    filter_host.passed()
    filter_host.passed(host="another")
    assert filter_host.row(SSH)[0] is not None
    filter_host.edit(SSH, "dstPortStart", 2)
    filter_host.passed()
    assert filter_host.row(SSH)[0] is None  # the other host has not looked yet
    filter_host.passed(host="another")
    assert filter_host.row(SSH)[0] is not None
    filter_host.run("""UPDATE "Host" SET "lastSeen" = now() - INTERVAL '2 minutes' WHERE "name" = 'another'""")
    filter_host.edit(SSH, "dstPortStart", 1)
    filter_host.passed()
    assert filter_host.row(SSH)[0] is not None  # a host that is gone is not waited for


def test_a_plan_shows_filters_beside_machines(filter_host: FilterHost) -> None:
    machine_id, _ = filter_host.machine()
    status, told = filter_host.guestd("plan")
    assert status == 0
    assert sum(line.startswith("define ibay-") for line in told) == 68
    assert any(line.startswith("unattached:") for line in told)
    status, told = filter_host.guestd("plan", "--json", attach="enforce")
    assert status == 0
    assert '"step":"Define"' in told[0]
    assert umbrella_name(machine_id) in told[0]


def test_rules_that_were_flushed_behind_libvirts_back_come_back_with_a_new_binding(filter_host: FilterHost) -> None:
    machine_id, name = filter_host.machine(is_running=True)
    filter_host.give(machine_id, SSH)
    filter_host.passed(ENFORCE)
    port = filter_host.port(name)
    kernel = KernelRules(filter_host.lab.run, lambda: [port])
    assert filter_host.passed(ENFORCE, kernel.flushed).done == ()
    filter_host.lab.run("iptables", "-F", f"FI-{port}")
    reported = filter_host.passed(flushed=KernelRules(filter_host.lab.run, lambda: [port]).flushed)
    assert any(f"chain FI-{port} of IPv4 has 0 rules, and should have 1" in report.text for report in reported.reports)
    outcome = filter_host.passed(ENFORCE, kernel.flushed)
    assert [type(action).__name__ for action, _ in outcome.done] == ["Bind"]
    assert f"-A FI-{port} " in filter_host.lab.run("iptables-save", "-t", "filter")
    assert filter_host.passed(ENFORCE, kernel.flushed).done == ()


def test_rules_that_are_gone_or_too_many_are_found_in_each_of_the_kernels_tables(
    filter_host: FilterHost, reliability: Reliability
) -> None:
    machine_id, name = filter_host.machine(is_running=True)
    filter_host.store([
        filter_row(
            rule_row(protocol="all", ip_version="ipv6", src_ip_addr="$IPV6"), internal_name="ibay-six", name="six",
        ),
        filter_row(
            rule_row(id=UUID(int=31), protocol="arp", src_ip_addr="$IP", direction="out"),
            rule_row(id=UUID(int=32), protocol="arp", action="return", direction="inout"),
            id=UUID(int=22), uuid=UUID(int=22), internal_name="ibay-arp", name="arps", chain="arp-x", priority=-5,
        ),
    ])  # fmt: skip
    filter_host.run('UPDATE "Machine" SET "allowedIps" = %s', ["10.9.0.2", "10.9.0.3", "fd00::2"])
    filter_host.give(machine_id, SSH, "six", "arps", "No MAC Spoofing")
    filter_host.passed(ENFORCE)
    port = filter_host.port(name)
    kernel = KernelRules(filter_host.lab.run, lambda: [port])
    assert filter_host.passed(ENFORCE, kernel.flushed).done == ()
    sabotage = [
        f"iptables -D FO-{port} 1", f"iptables -I FI-{port} -j RETURN", f"iptables -F HI-{port}",
        "iptables -F libvirt-in", f"ip6tables -F FI-{port}", f"ip6tables -D FO-{port} 1", "ip6tables -F libvirt-out",
        f"ebtables -t nat -F I-{port}-arp-x", f"ebtables -t nat -F libvirt-I-{port}", "ebtables -t nat -F PREROUTING",
        f"ebtables -t nat -I libvirt-I-{port} 1 -j ACCEPT",
    ]  # fmt: skip
    for command in sabotage:
        filter_host.lab.run(*command.split())
        outcome = filter_host.passed(ENFORCE, kernel.flushed)
        assert [type(action).__name__ for action, _ in outcome.done] == ["Bind"], command
        assert filter_host.passed(ENFORCE, kernel.flushed).done == (), command
    reliability.record_filters(
        "rules deleted from and added to the kernel's chains by hand", rounds=len(sabotage), actions=len(sabotage),
        kills=0, wrong=0,
    )  # fmt: skip


def test_a_static_host_entry_of_its_network_is_a_machines_address_until_an_operator_says_another(
    filter_host: FilterHost,
) -> None:
    machine_id, name = filter_host.machine(network="given")
    filter_host.give(machine_id, "Clean Traffic")
    outcome = filter_host.passed()
    assert any("no address for $IP" in report.text for report in outcome.reports)
    filter_host.network("given", **{name: "10.9.0.7"})
    try:
        outcome = filter_host.passed()
        assert "unenforceable" not in {report.kind for report in outcome.reports}
        top, clean = umbrella_name(machine_id), filter_host.internal("Clean Traffic")
        assert filter_host.filters()[top].references == (Reference(clean, (("IP", "10.9.0.7"),)),)
        assert filter_host.passed().done == ()
        _, told = filter_host.guestd("filters", "explain", str(machine_id), "tcp", "10.9.0.9:80", "out")
        assert not any("no such address" in line or line.startswith("not enforced") for line in told), told
        filter_host.run('UPDATE "Machine" SET "allowedIps" = %s', ["10.9.0.8"])
        outcome = filter_host.passed()
    finally:
        filter_host.libvirt.networkLookupByName("given").undefine()
    assert filter_host.filters()[top].references == (Reference(clean, (("IP", "10.9.0.8"),)),)
    assert [report.text for report in outcome.reports if report.kind == "unenforceable"] == [
        "libvirt's network gives it 10.9.0.7, which is not in Machine.allowedIps: allowedIps holds"
    ]


def test_who_may_not_look_at_the_kernel_says_so(filter_host: FilterHost) -> None:
    filter_host.machine(is_running=True)
    filter_host.passed(ENFORCE)
    outcome = filter_host.passed(ENFORCE, KernelRules(filter_host.lab.run, list).flushed)
    assert [report.text for report in outcome.reports if report.kind == "blind"] == [
        "it is not in guestd's network namespace"
    ]
