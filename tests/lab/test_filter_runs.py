"""Reconcile runs over a host's filters on a real libvirt: the desired state is in force, and stays so."""

import re
from dataclasses import replace
from uuid import UUID

import pytest

from guestd.filters.kernel import KernelInspector
from guestd.filters.machine_filter import machine_filter_name
from guestd.filters.model import Reference
from guestd.filters.plan import Define
from guestd.filters.xml import render_filter
from support.faults import Reliability
from support.filter_rows import filter_row, rule_row
from support.filters import ENFORCE, FilterHost

pytestmark = pytest.mark.timeout(600)
SSH = "Use SSH service"
RULE = "<rule action='drop' direction='in' priority='7'><all/></rule>"


def test_every_filter_of_the_store_is_defined_once_and_read_back(filter_host: FilterHost) -> None:
    machine_id, _ = filter_host.add_machine()
    before = {name: each for name, each in filter_host.filters().items() if not name.startswith("ibay-")}
    first = filter_host.reconcile()
    assert (first.desired, first.in_force, len(first.steps), first.held) == (68, 68, 68, None)
    assert machine_filter_name(machine_id) in filter_host.own()
    assert filter_host.run('SELECT count(*) FROM "NWFilter" WHERE "flushedAt" IS NULL OR "problem" IS NOT NULL') == [
        (0,)
    ]
    assert filter_host.audit() == [("define", "done")] * 68
    again = filter_host.reconcile()
    assert (again.in_force, again.steps) == (68, ())
    assert {name: each for name, each in filter_host.filters().items() if name in before} == before


def test_an_edited_rule_defines_its_filter_alone(filter_host: FilterHost) -> None:
    filter_host.reconcile()
    (before, _), (other, _) = filter_host.read_row(SSH), filter_host.read_row("Use Ping")
    filter_host.edit(SSH, "dstPortStart", 2)
    result = filter_host.reconcile()
    assert [action.definition.name for action, _ in result.steps if isinstance(action, Define)] == [
        filter_host.internal_name(SSH)
    ]
    assert (result.in_force, result.drifted) == (67, 0)
    assert filter_host.read_row(SSH)[0] > before
    assert filter_host.read_row("Use Ping")[0] == other


def test_manual_changes_are_repaired_by_the_next_run_and_counted_as_drift(filter_host: FilterHost) -> None:
    filter_host.define("other", RULE)
    filter_host.reconcile()
    changed, removed, again = (filter_host.internal_name(name) for name in (SSH, "Use Ping", "Use HTTP service"))
    filter_host.define(changed, RULE, filter_host.filters()[changed].uuid)
    filter_host.undefine(removed)
    filter_host.undefine(again)
    filter_host.define(again, RULE)  # under another uuid
    result = filter_host.reconcile()
    # The occupied name belongs to a foreign filter: it is result and left.
    assert (result.drifted, result.in_force) == (2, 66)
    assert {report.name for report in result.reports if report.kind == "refused"} >= {again}
    assert "which guestd did not define" in filter_host.read_row("Use HTTP service")[1]
    assert filter_host.read_row("Use HTTP service")[0] is None
    filter_host.undefine(again)
    assert filter_host.reconcile().in_force == 67
    assert filter_host.read_row("Use HTTP service")[1] is None
    assert filter_host.filters()["other"].rules


def test_entries_and_values_that_somebody_put_into_another_order_are_drift(filter_host: FilterHost) -> None:
    machine_id, _ = filter_host.add_machine()
    filter_host.assign(machine_id, "Clean Traffic")
    filter_host.run(
        """UPDATE "Machine" SET "allowedIps" = '{10.9.0.7,10.9.0.8}' WHERE "id" = %s""", machine_id,
    )  # fmt: skip
    filter_host.run(
        """INSERT INTO "VmPort" ("vmId", "protocol", "portStart", "portEnd", "running", "enabled", "toEnable")
        VALUES (%s, 'tcp', 80, 80, true, true, false)""", machine_id,
    )  # fmt: skip
    filter_host.reconcile()
    good = filter_host.filters()[machine_filter_name(machine_id)]
    rule, include = good.entries
    assert isinstance(include, Reference)
    assert include.parameters == (("IP", "10.9.0.7"), ("IP", "10.9.0.8"))
    for entries in ((include, rule), (rule, replace(include, parameters=include.parameters[::-1]))):
        filter_host.libvirt.nwfilterDefineXML(render_filter(replace(good, entries=entries)))
        result = filter_host.reconcile()
        assert result.drifted == 1
        assert filter_host.filters()[good.name] == good
    assert filter_host.reconcile().steps == ()


def test_a_rule_that_libvirt_would_change_is_a_problem_of_its_filter_until_it_is_corrected(
    filter_host: FilterHost,
) -> None:
    filter_host.reconcile()
    good = filter_host.filters()[filter_host.internal_name(SSH)]
    filter_host.edit(SSH, "srcIpMask", "24")
    assert filter_host.reconcile().in_force == 66
    flushed_at, problem = filter_host.read_row(SSH)
    assert flushed_at is None
    assert "srcIpMask" in problem
    assert filter_host.filters()[good.name] == good
    filter_host.edit(SSH, "srcIpMask", None)
    assert filter_host.reconcile().in_force == 67
    assert filter_host.read_row(SSH)[1] is None


def test_a_filter_without_a_row_is_removed_when_nothing_uses_it(filter_host: FilterHost) -> None:
    filter_host.reconcile()
    name = filter_host.internal_name("Use Ping")
    _, domain = filter_host.add_machine(names=name)
    filter_host.run('DELETE FROM "NWFilter" WHERE "internalName" = %s', name)
    result = filter_host.reconcile()
    assert name in filter_host.own()
    assert name in {report.name for report in result.reports if report.kind == "used"}
    filter_host.domain(domain).undefine()
    filter_host.forget(domain)
    filter_host.reconcile()
    assert name not in filter_host.own()
    assert filter_host.run('SELECT count(*) FROM "FilterHostState" WHERE "name" = %s', name) == [(0,)]


def test_many_removals_need_confirmation(filter_host: FilterHost) -> None:
    filter_host.reconcile()
    filter_host.run('DELETE FROM "NWFilter" WHERE "name" LIKE %s', "Provides %")
    edited = filter_host.internal_name(SSH)
    filter_host.edit(SSH, "dstPortStart", 2)
    result = filter_host.reconcile()
    assert result.held is not None
    assert (len(filter_host.own()), result.steps) == (67, ())
    assert "28 of 67" in filter_host.read_row(SSH)[1]
    status, printed = filter_host.guestd("apply")
    assert (status, len(filter_host.own())) == (1, 67)
    (digest,) = re.findall(r"held: all: .* guestd apply --filters (\w+)", "\n".join(printed))
    assert digest in "\n".join(filter_host.guestd("plan")[1])
    filter_host.run('DELETE FROM "NWFilter" WHERE "internalName" = %s', filter_host.internal_name("Use Ping"))
    status, printed = filter_host.guestd("apply", "--filters", digest)
    assert (status, len(filter_host.own())) == (1, 67), "another filter was removed since the operator read the plan"
    (other,) = re.findall(rf"held: all: the plan is not {digest} but (\w+) now", "\n".join(printed))
    status, printed = filter_host.guestd("apply", "--filters", other)
    assert (status, len(filter_host.own())) == (0, 38)
    assert printed[-1] == "38 of 38 filters are in force"
    assert filter_host.filters()[edited].rules[0].value("dstportstart") == "2"


def test_machines_that_would_lose_their_last_drop_at_once_need_confirmation(filter_host: FilterHost) -> None:
    machines = [filter_host.add_machine(is_running=number == 0)[0] for number in range(3)]
    for each in machines:
        filter_host.assign(each, "Drop All", SSH)
    assert filter_host.reconcile(ENFORCE).held is None
    assert filter_host.reconcile(ENFORCE).steps == ()
    drop_all = """DELETE FROM "VMNWFilter" WHERE "vmId" = ANY(%s)
        AND "nwFilterId" = (SELECT "id" FROM "NWFilter" WHERE "name" = 'Drop All')"""
    tops = {machine_filter_name(each) for each in machines}
    before = {name: each for name, each in filter_host.filters().items() if name in tops}
    filter_host.run(drop_all, machines)
    result = filter_host.reconcile(ENFORCE)
    assert result.held is not None
    assert "it would open 3 of 3 machines, and 1 may be opened at once" in result.held
    assert {name: each for name, each in filter_host.filters().items() if name in tops} == before
    assert {each.name for each in result.reports if each.kind == "held"} == {"all", *tops}
    status, printed = filter_host.guestd("apply", attach="enforce")
    assert (status, sum("would pass, and is blocked now" in line for line in printed)) == (1, 4)
    (digest,) = re.findall(r"guestd apply --filters (\w+)", "\n".join(printed))
    status, printed = filter_host.guestd("apply", "--filters", digest, attach="enforce")
    assert (status, filter_host.reconcile(ENFORCE).steps) == (0, ()), printed


def test_what_was_held_stays_held_while_rows_are_set_back_one_by_one(filter_host: FilterHost) -> None:
    machines = [filter_host.add_machine()[0] for _ in range(3)]
    for each in machines:
        filter_host.assign(each, "Drop All")
    filter_host.reconcile(ENFORCE)
    filter_host.reconcile(ENFORCE)
    filter_host.run('DELETE FROM "VMNWFilter" WHERE "vmId" = ANY(%s)', machines)
    assert filter_host.reconcile(ENFORCE).held is not None
    for each in machines[:2]:
        filter_host.assign(each, "Drop All")
        held = filter_host.reconcile(ENFORCE).held
        assert held is not None, "one machine alone would have been opened at once"
    assert "1 of 3 machines, 1 of which were held before" in str(held)
    assert any("1 of which were held before" in line for line in filter_host.guestd("plan", attach="enforce")[1])
    filter_host.assign(machines[2], "Drop All")
    assert filter_host.reconcile(ENFORCE).held is None


def test_one_machine_that_loses_its_last_drop_is_opened_at_once(filter_host: FilterHost) -> None:
    machines = [filter_host.add_machine()[0] for _ in range(3)]
    for each in machines:
        filter_host.assign(each, "Drop All")
    filter_host.reconcile(ENFORCE)
    filter_host.reconcile(ENFORCE)
    filter_host.run('DELETE FROM "VMNWFilter" WHERE "vmId" = %s', machines[0])
    result = filter_host.reconcile(ENFORCE)
    assert result.held is None
    assert [str(outcome) for _, outcome in result.steps] == ["done"]


def test_a_port_counts_as_open_when_an_interface_names_the_filter_that_opens_it(filter_host: FilterHost) -> None:
    machine_id, _ = filter_host.add_machine()
    filter_host.run(
        """INSERT INTO "VmPort" ("vmId", "protocol", "portStart", "portEnd", "running", "enabled", "toEnable")
        VALUES (%s, 'tcp', 8080, 8080, FALSE, FALSE, TRUE)""",
        machine_id,
    )
    statement = 'SELECT "enabled", "toEnable" FROM "VmPort"'
    filter_host.reconcile()
    assert filter_host.run(statement) == [(False, True)]
    filter_host.reconcile(ENFORCE)
    assert filter_host.run(statement) == [(True, False)]


def test_an_interface_gets_its_machine_filter_live_and_stored(filter_host: FilterHost) -> None:
    machine_id, name = filter_host.add_machine(is_running=True)
    top = machine_filter_name(machine_id)
    result = filter_host.reconcile()
    assert sum(report.kind == "unattached" for report in result.reports) == 2
    assert filter_host.filters_named(name) == ({""}, {""})
    result = filter_host.reconcile(ENFORCE)
    assert sorted(type(action).__name__ for action, _ in result.steps) == ["Attach", "Attach"]
    assert filter_host.filters_named(name) == ({top}, {top})
    assert filter_host.bindings()[filter_host.port(name)] == top
    assert filter_host.reconcile(ENFORCE).steps == ()
    assert filter_host.audit()[-2:] == [("attach", "done")] * 2


def test_an_interface_with_a_foreign_filter_is_taken_over_only_on_demand(filter_host: FilterHost) -> None:
    filter_host.define("other", RULE)
    machine_id, name = filter_host.add_machine(is_running=True, names="other")
    result = filter_host.reconcile(ENFORCE)
    assert sum(report.kind == "taken" for report in result.reports) == 2
    assert filter_host.filters_named(name) == ({"other"}, {"other"})
    status, _ = filter_host.guestd("apply", "--take", attach="report")
    assert status == 78
    status, printed = filter_host.guestd("apply", "--take", attach="enforce")
    assert status == 0, printed
    top = machine_filter_name(machine_id)
    assert filter_host.filters_named(name) == ({top}, {top})
    assert filter_host.filters()["other"].rules


def test_an_interface_whose_rules_libvirt_dropped_is_bound_again(filter_host: FilterHost) -> None:
    machine_id, name = filter_host.add_machine(is_running=True)
    filter_host.reconcile(ENFORCE)
    port = filter_host.port(name)
    filter_host.libvirt.nwfilterBindingLookupByPortDev(port).delete()
    result = filter_host.reconcile()
    assert any("libvirt enforces nothing there" in report.text for report in result.reports)
    assert port not in filter_host.bindings()
    filter_host.reconcile(ENFORCE)
    assert filter_host.bindings()[port] == machine_filter_name(machine_id)


def test_a_filter_counts_as_flushed_when_every_host_has_it(filter_host: FilterHost) -> None:
    filter_host.add_machine(names=filter_host.internal_name("Use Ping"))
    filter_host.reconcile()
    filter_host.reconcile(host="another")
    assert filter_host.read_row(SSH)[0] is not None
    filter_host.edit(SSH, "dstPortStart", 2)
    filter_host.reconcile()
    assert filter_host.read_row(SSH)[0] is None  # the other host has not run yet
    filter_host.reconcile(host="another")
    assert filter_host.read_row(SSH)[0] is not None
    filter_host.run("""UPDATE "Host" SET "lastSeen" = now() - INTERVAL '2 minutes' WHERE "name" = 'another'""")
    filter_host.edit(SSH, "dstPortStart", 1)
    filter_host.reconcile()
    assert filter_host.read_row(SSH)[0] is not None  # a host that is gone does not count


def test_a_plan_shows_filters_beside_machines(filter_host: FilterHost) -> None:
    machine_id, _ = filter_host.add_machine()
    status, printed = filter_host.guestd("plan")
    assert status == 0
    assert sum(line.startswith("define ibay-") for line in printed) == 68
    assert any(line.startswith("unattached:") for line in printed)
    status, printed = filter_host.guestd("plan", "--json", attach="enforce")
    assert status == 0
    assert '"step":"Define"' in printed[0]
    assert machine_filter_name(machine_id) in printed[0]


def test_rules_flushed_from_the_kernel_are_restored_by_a_new_binding(filter_host: FilterHost) -> None:
    machine_id, name = filter_host.add_machine(is_running=True)
    filter_host.assign(machine_id, SSH)
    filter_host.reconcile(ENFORCE)
    port = filter_host.port(name)
    kernel = KernelInspector(filter_host.lab.run, lambda: [port])
    assert filter_host.reconcile(ENFORCE, kernel.find_flushed).steps == ()
    filter_host.lab.run("iptables", "-F", f"FI-{port}")
    result = filter_host.reconcile(find_flushed=KernelInspector(filter_host.lab.run, lambda: [port]).find_flushed)
    assert any(f"chain FI-{port} of IPv4 has 0 rules, and should have 1" in report.text for report in result.reports)
    result = filter_host.reconcile(ENFORCE, kernel.find_flushed)
    assert [type(action).__name__ for action, _ in result.steps] == ["Bind"]
    assert f"-A FI-{port} " in filter_host.lab.run("iptables-save", "-t", "filter")
    assert filter_host.reconcile(ENFORCE, kernel.find_flushed).steps == ()


def test_missing_and_added_rules_are_found_in_every_kernel_table(
    filter_host: FilterHost, reliability: Reliability
) -> None:
    machine_id, name = filter_host.add_machine(is_running=True)
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
    filter_host.assign(machine_id, SSH, "six", "arps", "No MAC Spoofing")
    filter_host.reconcile(ENFORCE)
    port = filter_host.port(name)
    kernel = KernelInspector(filter_host.lab.run, lambda: [port])
    assert filter_host.reconcile(ENFORCE, kernel.find_flushed).steps == ()
    changes = [
        f"iptables -D FO-{port} 1", f"iptables -I FI-{port} -j RETURN", f"iptables -F HI-{port}",
        "iptables -F libvirt-in", f"ip6tables -F FI-{port}", f"ip6tables -D FO-{port} 1", "ip6tables -F libvirt-out",
        f"ebtables -t nat -F I-{port}-arp-x", f"ebtables -t nat -F libvirt-I-{port}", "ebtables -t nat -F PREROUTING",
        f"ebtables -t nat -I libvirt-I-{port} 1 -j ACCEPT",
    ]  # fmt: skip
    for command in changes:
        filter_host.lab.run(*command.split())
        result = filter_host.reconcile(ENFORCE, kernel.find_flushed)
        assert [type(action).__name__ for action, _ in result.steps] == ["Bind"], command
        assert filter_host.reconcile(ENFORCE, kernel.find_flushed).steps == (), command
    reliability.record_filters(
        "rules deleted from and added to the kernel's chains manually", rounds=len(changes), actions=len(changes),
        kills=0, wrong=0,
    )  # fmt: skip


def test_a_static_host_entry_is_a_machines_address_until_an_operator_sets_another(
    filter_host: FilterHost,
) -> None:
    machine_id, name = filter_host.add_machine(network="given")
    filter_host.assign(machine_id, "Clean Traffic")
    result = filter_host.reconcile()
    assert any("no address for $IP" in report.text for report in result.reports)
    filter_host.define_network("given", **{name: "10.9.0.7"})
    try:
        result = filter_host.reconcile()
        assert "unenforceable" not in {report.kind for report in result.reports}
        top, clean = machine_filter_name(machine_id), filter_host.internal_name("Clean Traffic")
        assert filter_host.filters()[top].references == (Reference(clean, (("IP", "10.9.0.7"),)),)
        assert filter_host.reconcile().steps == ()
        _, printed = filter_host.guestd("filters", "explain", str(machine_id), "tcp", "10.9.0.9:80", "out")
        assert not any("no such address" in line or line.startswith("not enforced") for line in printed), printed
        filter_host.run('UPDATE "Machine" SET "allowedIps" = %s', ["10.9.0.8"])
        result = filter_host.reconcile()
    finally:
        filter_host.libvirt.networkLookupByName("given").undefine()
    assert filter_host.filters()[top].references == (Reference(clean, (("IP", "10.9.0.8"),)),)
    assert [report.text for report in result.reports if report.kind == "unenforceable"] == [
        "libvirt's network assigns 10.9.0.7, which is not in Machine.allowedIps: allowedIps is used"
    ]


def test_a_kernel_that_cannot_be_inspected_is_reported(filter_host: FilterHost) -> None:
    filter_host.add_machine(is_running=True)
    filter_host.reconcile(ENFORCE)
    result = filter_host.reconcile(ENFORCE, KernelInspector(filter_host.lab.run, list).find_flushed)
    assert [report.text for report in result.reports if report.kind == "blind"] == [
        "it is not in guestd's network namespace"
    ]
