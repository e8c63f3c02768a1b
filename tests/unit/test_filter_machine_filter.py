"""The machine filter: made of the machine's filters, its department's, its services and its open ports."""

from dataclasses import replace
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from guestd.filters.addresses import MAX_RULES
from guestd.filters.desired import compile_rows
from guestd.filters.machine_filter import (
    MachineNetwork,
    build_machine_filter,
    build_own_rules,
    find_variables,
    machine_filter_name,
)
from guestd.filters.model import Filter, Reference, Rule, build_matches
from guestd.filters.network_services import SERVICES, Policy, Ports, merge_policies
from guestd.filters.packet_match import order_rules
from guestd.filters.snapshot import MachineRow, StoreSnapshot
from guestd.filters.variables import list_instances
from support.filter_rows import filter_row, rule_row

MACHINE = MachineNetwork(UUID(int=5), "web")


def filter_of(name: str, *rules: Rule, targets: tuple[str, ...] = ()) -> Filter:
    return Filter(name, UUID(int=1), "root", 0, (*rules, *(Reference(target) for target in targets)))


def build(machine: MachineNetwork, filters: dict[str, Filter]) -> tuple[Filter, tuple[str, ...]]:
    return build_machine_filter(
        machine, build_own_rules(machine.services, machine.ports), filters, find_variables(filters)
    )


OWN_IP = Rule("return", "out", 500, "ip", build_matches([("srcipaddr", "$IP")]))
PLAIN = Rule("accept", "in", 500, "tcp")


def test_a_machine_filter_is_named_after_its_machine() -> None:
    definition, _ = build(MACHINE, {})
    assert definition.name == machine_filter_name(MACHINE.id)
    assert definition.name != build(replace(MACHINE, id=UUID(int=6)), {})[0].name
    assert len(definition.name) == len("ibay-") + 16


def test_it_includes_the_machines_filters_and_its_departments() -> None:
    filters = {name: filter_of(name, PLAIN) for name in ("ibay-a", "ibay-b", "ibay-c")}
    machine = replace(MACHINE, own=("ibay-c",), department=("ibay-a",), clean_traffic=("ibay-b",))
    assert build(machine, filters)[0].references == tuple(Reference(name) for name in sorted(filters))


def test_the_most_specific_policy_row_applies_whatever_its_value() -> None:
    on, off = Policy(True, True), Policy(False, False)
    merged = merge_policies({"ssh": off}, {"ssh": on, "http": off}, {"ssh": on, "http": on, "dns": on})
    assert merged == {"ssh": off, "http": off, "dns": on}


def test_using_a_service_opens_connections_and_providing_it_accepts_them() -> None:
    used, _ = build(replace(MACHINE, services={"dns": Policy(True, False)}), {})
    assert [str(rule) for rule in used.rules] == [
        "accept out 500 tcp comment=Allow using Domain Name System service dstportend=53 dstportstart=53",
        "accept out 500 udp comment=Allow using Domain Name System service dstportend=53 dstportstart=53",
    ]
    provided, _ = build(replace(MACHINE, services={"ssh": Policy(False, True)}), {})
    assert [(rule.direction, rule.value("dstportstart")) for rule in provided.rules] == [("in", "22")]


def test_switching_a_service_off_leaves_the_rules_of_others_with_like_names() -> None:
    both = {"smtp": Policy(True, True), "smtps": Policy(True, True)}
    without, _ = build(replace(MACHINE, services=both | {"smtp": Policy(False, False)}), {})
    assert {rule.value("dstportstart") for rule in without.rules} == {"465"}


def test_every_service_of_the_platform_has_ports() -> None:
    assert len(SERVICES) == 21
    assert all(ports for _, ports in SERVICES.values())


def test_an_unknown_service_is_reported() -> None:
    _, reports = build(replace(MACHINE, services={"gopher": Policy(True, True)}), {})
    assert reports == ("service gopher is unknown to guestd",)


def test_connections_to_an_open_port_are_accepted() -> None:
    definition, _ = build(replace(MACHINE, ports=(Ports("udp", 5000, 5010),)), {})
    (rule,) = definition.rules
    assert (rule.action, rule.direction, rule.protocol) == ("accept", "in", "udp")
    assert (rule.value("dstportstart"), rule.value("dstportend")) == ("5000", "5010")


def test_addresses_are_passed_to_the_filters_that_need_them() -> None:
    filters = {"ibay-a": filter_of("ibay-a", targets=("ibay-b",)), "ibay-b": filter_of("ibay-b", OWN_IP)}
    machine = replace(MACHINE, own=("ibay-a",), allowed_ips=("10.0.0.2", "10.0.0.1", "fd00::1"))
    parameters = (("IP", "10.0.0.1"), ("IP", "10.0.0.2"))
    assert build(machine, filters)[0].references == (Reference("ibay-a", parameters),)


def test_without_an_address_filters_that_need_one_are_left_out_and_reported() -> None:
    filters = {
        "ibay-basic": filter_of("ibay-basic", targets=("ibay-clean", "ibay-web")),
        "ibay-clean": filter_of("ibay-clean", targets=("ibay-ip", "ibay-mac")),
        "ibay-ip": filter_of("ibay-ip", OWN_IP),
        "ibay-mac": filter_of("ibay-mac", PLAIN),
        "ibay-web": filter_of("ibay-web", PLAIN),
    }
    definition, reports = build(replace(MACHINE, own=("ibay-basic",)), filters)
    assert definition.references == (Reference("ibay-mac"), Reference("ibay-web"))
    assert reports == ("filter ibay-ip cannot be enforced: no address for $IP in Machine.allowedIps",)


def test_an_invalid_address_is_reported_and_not_used() -> None:
    _, reports = build(replace(MACHINE, allowed_ips=("10.0.0.0/8",)), {})
    assert reports == ("Machine.allowedIps: '10.0.0.0/8' is not an IP address",)


def test_a_static_host_entry_of_a_network_gives_the_address_as_allowed_ips_would() -> None:
    filters = {"ibay-a": filter_of("ibay-a", OWN_IP)}
    machine = replace(MACHINE, own=("ibay-a",))
    by_network = build(replace(machine, static_ips=("10.0.0.1",)), filters)
    assert by_network == build(replace(machine, allowed_ips=("10.0.0.1",)), filters)
    assert by_network[1] == ()


def test_allowed_ips_overrides_static_hosts_and_the_difference_is_reported() -> None:
    filters = {"ibay-a": filter_of("ibay-a", OWN_IP)}
    machine = replace(MACHINE, own=("ibay-a",), allowed_ips=("10.0.0.1",))
    same = build(machine, filters)
    assert build(replace(machine, static_ips=("10.0.0.1",)), filters) == same
    definition, reports = build(replace(machine, static_ips=("10.0.0.1", "10.0.0.2")), filters)
    assert definition == same[0]
    assert reports == ("libvirt's network assigns 10.0.0.2, which is not in Machine.allowedIps: allowedIps is used",)


def test_a_refused_row_still_gets_the_addresses_that_its_last_definition_needs() -> None:
    row = filter_row(rule_row(protocol="ip", src_ip_addr="$IP"))
    machine = MachineRow(MACHINE.id, "web", "vm-web", ("10.0.0.2",), (row.id,), (), False, {}, {}, ())
    before = compile_rows(StoreSnapshot((row,), (machine,), {}))
    refused = replace(row, rules=(replace(row.rules[0], protocol="no protocol"),))
    after = compile_rows(StoreSnapshot((refused,), (machine,), {}), installed=before.filters)
    assert after.problems
    assert after.machine_filters == before.machine_filters
    assert before.machine_filters[machine.id].references == (Reference(row.internal_name, (("IP", "10.0.0.2"),)),)


def test_of_more_rules_than_libvirt_makes_in_time_the_addresses_are_cut_and_reported() -> None:
    filters = {"ibay-a": filter_of("ibay-a", *[OWN_IP] * 20), "ibay-top": filter_of("ibay-top", targets=("ibay-a",))}
    addresses = tuple(f"10.0.0.{number}" for number in range(100, 200))
    machine = replace(MACHINE, allowed_ips=addresses, own=("ibay-top",))
    definition, reports = build(machine, filters)
    assert definition.references == (Reference("ibay-top", tuple(("IP", each) for each in addresses[:50])),)
    (report,) = reports
    assert report == (
        "its filters have 20 rules that name its addresses, and libvirt would make 2000 of them: only the first 50 of "
        "its 100 addresses are used"
    )
    assert build(replace(machine, allowed_ips=addresses[:50]), filters)[1] == ()
    # At least one of each version stays: without it, libvirt enforces nothing.
    filters["ibay-a"] = filter_of("ibay-a", *[OWN_IP] * 2000)
    assert len(build(machine, filters)[0].references[0].parameters) == 1
    assert build(replace(machine, allowed_ips=addresses[:1]), filters)[1] == ()


@given(
    counts=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=4),
    ipv4=st.integers(1, 300),
    ipv6=st.integers(1, 300),
    data=st.data(),
)
def test_libvirt_never_makes_more_rules_of_a_machines_addresses(
    counts: list[tuple[int, int]], ipv4: int, ipv6: int, data: st.DataObject
) -> None:
    own_ipv6 = Rule("return", "out", 500, "ipv6", build_matches([("srcipaddr", "$IPV6"), ("dstipaddr", "$IPV6")]))
    names = [f"ibay-{number}" for number in range(len(counts))]
    filters = {
        name: filter_of(
            name, *[OWN_IP] * count4, *[own_ipv6] * count6, PLAIN,
            targets=tuple(data.draw(st.lists(st.sampled_from(names[number + 1 :]), max_size=2)))
            if names[number + 1 :] else (),
        )
        for number, (name, (count4, count6)) in enumerate(zip(names, counts, strict=True))
    }  # fmt: skip
    addresses = [f"10.0.{each // 250}.{each % 250 + 1}" for each in range(ipv4)]
    addresses += [f"fd00::{each + 1:x}" for each in range(ipv6)]
    own = tuple(data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True)))
    definition, _ = build(replace(MACHINE, allowed_ips=tuple(addresses), own=own), filters)
    placed = [each for each in order_rules(definition, filters) if each.rule != PLAIN]
    made = sum(len(list_instances(each.rule, each.variables)) for each in placed)
    assert made <= max(MAX_RULES, len(placed))
