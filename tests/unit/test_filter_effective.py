"""What holds for a machine: one filter, of its own filters, its department's, its services and its open ports."""

from dataclasses import replace
from uuid import UUID

from guestd.filters.desired import MachineRow, Rows, asked
from guestd.filters.machine_filter import Machine, own_rules, umbrella, umbrella_name, variables
from guestd.filters.model import Filter, Reference, Rule, matches
from guestd.filters.services import SERVICES, Policy, Ports, policies
from support.filter_rows import filter_row, rule_row

MACHINE = Machine(UUID(int=5), "web")


def filter_of(name: str, *rules: Rule, targets: tuple[str, ...] = ()) -> Filter:
    return Filter(name, UUID(int=1), "root", 0, rules, tuple(Reference(target) for target in targets))


def made(machine: Machine, filters: dict[str, Filter]) -> tuple[Filter, tuple[str, ...]]:
    return umbrella(machine, own_rules(machine.services, machine.ports), filters, variables(filters))


OWN_IP = Rule("return", "out", 500, "ip", matches([("srcipaddr", "$IP")]))
PLAIN = Rule("accept", "in", 500, "tcp")


def test_an_umbrella_is_named_after_its_machine() -> None:
    definition, _ = made(MACHINE, {})
    assert definition.name == umbrella_name(MACHINE.id)
    assert definition.name != made(replace(MACHINE, id=UUID(int=6)), {})[0].name
    assert len(definition.name) == len("ibay-") + 16


def test_it_includes_the_machines_filters_and_its_departments() -> None:
    filters = {name: filter_of(name, PLAIN) for name in ("ibay-a", "ibay-b", "ibay-c")}
    machine = replace(MACHINE, own=("ibay-c",), department=("ibay-a",), clean_traffic=("ibay-b",))
    assert made(machine, filters)[0].references == tuple(Reference(name) for name in sorted(filters))


def test_a_policy_holds_because_its_row_is_there_and_not_because_of_its_value() -> None:
    on, off = Policy(True, True), Policy(False, False)
    chosen = policies({"ssh": off}, {"ssh": on, "http": off}, {"ssh": on, "http": on, "dns": on})
    assert chosen == {"ssh": off, "http": off, "dns": on}


def test_using_a_service_opens_connections_and_providing_it_takes_them() -> None:
    used, _ = made(replace(MACHINE, services={"dns": Policy(True, False)}), {})
    assert [str(rule) for rule in used.rules] == [
        "accept out 500 tcp comment=Allow using Domain Name System service dstportend=53 dstportstart=53",
        "accept out 500 udp comment=Allow using Domain Name System service dstportend=53 dstportstart=53",
    ]
    provided, _ = made(replace(MACHINE, services={"ssh": Policy(False, True)}), {})
    assert [(rule.direction, rule.value("dstportstart")) for rule in provided.rules] == [("in", "22")]


def test_switching_a_service_off_leaves_the_rules_of_others_with_like_names() -> None:
    both = {"smtp": Policy(True, True), "smtps": Policy(True, True)}
    without, _ = made(replace(MACHINE, services=both | {"smtp": Policy(False, False)}), {})
    assert {rule.value("dstportstart") for rule in without.rules} == {"465"}


def test_every_service_of_the_platform_has_ports() -> None:
    assert len(SERVICES) == 21
    assert all(ports for _, ports in SERVICES.values())


def test_a_service_that_nobody_knows_is_reported() -> None:
    _, reports = made(replace(MACHINE, services={"gopher": Policy(True, True)}), {})
    assert reports == ("service gopher is not one that guestd knows",)


def test_an_open_port_is_let_in() -> None:
    definition, _ = made(replace(MACHINE, ports=(Ports("udp", 5000, 5010),)), {})
    (rule,) = definition.rules
    assert (rule.action, rule.direction, rule.protocol) == ("accept", "in", "udp")
    assert (rule.value("dstportstart"), rule.value("dstportend")) == ("5000", "5010")


def test_addresses_are_given_to_the_filters_that_need_them() -> None:
    filters = {"ibay-a": filter_of("ibay-a", targets=("ibay-b",)), "ibay-b": filter_of("ibay-b", OWN_IP)}
    machine = replace(MACHINE, own=("ibay-a",), allowed_ips=("10.0.0.2", "10.0.0.1", "fd00::1"))
    parameters = (("IP", "10.0.0.1"), ("IP", "10.0.0.2"))
    assert made(machine, filters)[0].references == (Reference("ibay-a", parameters),)


def test_without_an_address_what_needs_one_is_left_out_and_reported_and_the_rest_holds() -> None:
    filters = {
        "ibay-basic": filter_of("ibay-basic", targets=("ibay-clean", "ibay-web")),
        "ibay-clean": filter_of("ibay-clean", targets=("ibay-ip", "ibay-mac")),
        "ibay-ip": filter_of("ibay-ip", OWN_IP),
        "ibay-mac": filter_of("ibay-mac", PLAIN),
        "ibay-web": filter_of("ibay-web", PLAIN),
    }
    definition, reports = made(replace(MACHINE, own=("ibay-basic",)), filters)
    assert definition.references == (Reference("ibay-mac"), Reference("ibay-web"))
    assert reports == ("filter ibay-ip cannot be enforced: no address for $IP in Machine.allowedIps",)


def test_what_is_no_address_is_reported_and_not_used() -> None:
    _, reports = made(replace(MACHINE, allowed_ips=("10.0.0.0/8",)), {})
    assert reports == ("Machine.allowedIps: '10.0.0.0/8' is not an IP address",)


def test_a_static_host_entry_of_a_network_gives_the_address_as_allowed_ips_would() -> None:
    filters = {"ibay-a": filter_of("ibay-a", OWN_IP)}
    machine = replace(MACHINE, own=("ibay-a",))
    by_network = made(replace(machine, static_ips=("10.0.0.1",)), filters)
    assert by_network == made(replace(machine, allowed_ips=("10.0.0.1",)), filters)
    assert by_network[1] == ()


def test_of_two_sources_of_addresses_allowed_ips_holds_and_the_difference_is_reported() -> None:
    filters = {"ibay-a": filter_of("ibay-a", OWN_IP)}
    machine = replace(MACHINE, own=("ibay-a",), allowed_ips=("10.0.0.1",))
    same = made(machine, filters)
    assert made(replace(machine, static_ips=("10.0.0.1",)), filters) == same
    definition, reports = made(replace(machine, static_ips=("10.0.0.1", "10.0.0.2")), filters)
    assert definition == same[0]
    assert reports == ("libvirt's network gives it 10.0.0.2, which is not in Machine.allowedIps: allowedIps holds",)


def test_a_filter_whose_row_is_refused_is_given_the_addresses_that_its_last_definition_needs() -> None:
    row = filter_row(rule_row(protocol="ip", src_ip_addr="$IP"))
    machine = MachineRow(MACHINE.id, "web", "vm-web", ("10.0.0.2",), (row.id,), (), False, {}, {}, ())
    before = asked(Rows((row,), (machine,), {}))
    refused = replace(row, rules=(replace(row.rules[0], protocol="no protocol"),))
    after = asked(Rows((refused,), (machine,), {}), in_force=before.filters)
    assert after.problems
    assert after.umbrellas == before.umbrellas
    assert before.umbrellas[machine.id].references == (Reference(row.internal_name, (("IP", "10.0.0.2"),)),)
