"""A snapshot of what libvirt prints: whatever one object's text is, the others are read."""

import asyncio
from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from guestd.filters.cache import FilterCache
from guestd.filters.diff import diff_filters, list_reports
from guestd.filters.kernel import KernelInspector
from guestd.filters.machine_filter import machine_filter_name
from guestd.filters.model import Filter, Reference
from guestd.filters.plan import Define, Guard
from guestd.filters.printed import PrintedDomain, PrintedFilter, PrintedHost, build_snapshot
from guestd.filters.snapshot import HostSnapshot, MachineRow, Skipped, StoreSnapshot, build_stand_in, is_stand_in
from guestd.filters.xml import render_filter, set_interface_filter
from guestd.hypervisor.xml import Unreadable
from support.filter_rows import filter_row, rule_row

# As libvirt 9.0 prints them.
FILTER = """<filter name='ibay-a' chain='ipv4' priority='-700'>
  <uuid>00000000-0000-0000-0000-00000000000a</uuid>
  <rule action='accept' direction='in' priority='500'>
    <tcp srcipaddr='10.0.0.0' srcipmask='24' dstportstart='22' comment='R&amp;D'/>
  </rule>
  <filterref filter='ibay-b'>
    <parameter name='IP' value='10.0.0.1'/>
  </filterref>
</filter>
"""
DOMAIN = """<domain type='qemu' id='1'>
  <name>vm</name>
  <devices>
    <interface type='network'>
      <mac address='52:54:00:00:00:01'/>
      <source network='given' portid='5c' bridge='virbr1'/>
      <target dev='vnet0'/>
      <filterref filter='ibay-a'>
        <parameter name='IP' value='10.0.0.1'/>
      </filterref>
    </interface>
  </devices>
</domain>
"""
NETWORK = """<network>
  <name>given</name>
  <ip address='10.0.0.254' prefix='24'>
    <dhcp>
      <host mac='52:54:00:00:00:01' ip='10.0.0.1'/>
    </dhcp>
  </ip>
</network>
"""
A, B = UUID(int=10), UUID(int=11)
HOST = PrintedHost(
    filters=(
        PrintedFilter("ibay-a", A, FILTER),
        PrintedFilter("ibay-b", B, render_filter(Filter("ibay-b", B, "root", 0))),
    ),
    domains=(
        PrintedDomain("vm", UUID(int=1), DOMAIN, DOMAIN),
        PrintedDomain("other", UUID(int=2), None, DOMAIN.replace("00:01", "00:02").replace("given", "second")),
    ),
    networks={"given": NETWORK, "second": NETWORK.replace("00:01", "00:02").replace("10.0.0.1", "10.0.0.2")},
    bindings={"vnet0": "ibay-a"},
)  # fmt: skip
BROKEN = Unreadable("libvirt does not print it")


def read(printed: PrintedHost) -> HostSnapshot:
    return build_snapshot(printed, FilterCache())


def with_filter(xml: str | Unreadable, name: str = "ibay-a") -> PrintedHost:
    return replace(HOST, filters=(PrintedFilter(name, A, xml), HOST.filters[1]))


def with_domain(xml: str | Unreadable) -> PrintedHost:
    return replace(HOST, domains=(replace(HOST.domains[0], stored=xml), HOST.domains[1]))


def test_what_libvirt_prints_is_read() -> None:
    found = read(HOST)
    assert found.skipped == ()
    assert found.observed.are_uses_known
    assert found.static_ips == {"vm": ("10.0.0.1",), "other": ("10.0.0.2",)}
    assert found.observed.bound == {"ibay-a"}
    assert [(each.domain, each.port, each.live, each.stored) for each in found.interfaces] == [
        ("vm", "vnet0", "ibay-a", "ibay-a"),
        ("other", "", None, "ibay-a"),
    ]


@pytest.mark.parametrize(
    "name", ["R&D", "it's", "a<b", "a>b", 'a"b', "a&amp;b", "a\nb", "\u202e\x85", "R&D' b='<", "a' chain='mac", "''"]
)
def test_a_filter_has_the_name_that_libvirt_lists(name: str) -> None:
    found = read(with_filter(FILTER.replace("ibay-a", name), name))
    assert found.skipped == ()
    assert found.observed.filters[name] == replace(read(HOST).observed.filters["ibay-a"], name=name)


def test_a_filter_that_includes_and_a_domain_that_names_an_unescaped_name_are_read() -> None:
    found = read(replace(with_filter(FILTER.replace("ibay-b", "it's <R&D>")), domains=HOST.domains))
    assert found.observed.filters["ibay-a"].references == (Reference("it's <R&D>", (("IP", "10.0.0.1"),)),)
    found = read(with_domain(DOMAIN.replace("'ibay-a'", "'it's <R&D>'")))
    assert [each.stored for each in found.interfaces] == ["it's <R&D>", "ibay-a"]
    assert found.skipped == ()


@example(which="domain", start=DOMAIN.index("  <devices>"), length=0, text="<title>R&D</title>" + "\n" * 1_000_000)
@example(which="filter", start=FILTER.index("  <rule"), length=0, text="<filter name='" + "' chain='" * 200_000)
@example(which="filter", start=0, length=0, text="<" + " " * 1_000_000 + "\n \t" * 200_000)
@given(
    which=st.sampled_from(["filter", "domain", "network"]),
    start=st.integers(0, 600),
    length=st.integers(0, 60),
    text=st.one_of(st.text(max_size=8), st.sampled_from(["&", "<", "'", "'/>\n", "<filterref filter='&'/>"])),
)
def test_after_any_change_of_one_objects_text_the_others_are_read(
    which: str, start: int, length: int, text: str
) -> None:
    whole = {"filter": FILTER, "domain": DOMAIN, "network": NETWORK}[which]
    changed = whole[:start] + text + whole[start + length :]
    printed = {
        "filter": with_filter(changed),
        "domain": with_domain(changed),
        "network": replace(HOST, networks={**HOST.networks, "given": changed}),
    }[which]
    found, expected = read(printed), read(HOST)
    assert {name: each.uuid for name, each in found.observed.filters.items()} == {"ibay-a": A, "ibay-b": B}
    assert found.domains == {"vm", "other"}
    assert found.observed.filters["ibay-b"] == expected.observed.filters["ibay-b"]
    assert found.interfaces[-1] == expected.interfaces[-1]
    assert found.static_ips["other"] == ("10.0.0.2",)
    assert {each.kind for each in found.skipped} <= {which}


def test_a_filter_that_cannot_be_read_is_there_with_name_and_uuid_and_its_uses_are_unknown() -> None:
    for xml in (BROKEN, "<filter", FILTER.replace("-700", "high"), FILTER.replace("-00000000000a<", "-x<")):
        found = read(with_filter(xml))
        assert found.observed.filters["ibay-a"] == build_stand_in("ibay-a", A)
        assert is_stand_in(found.observed.filters["ibay-a"])
        assert not found.observed.are_uses_known
        ((kind, name),) = [(each.kind, each.name) for each in found.skipped]
        assert (kind, name) == ("filter", "ibay-a")


def test_of_a_domain_that_cannot_be_read_the_interfaces_and_addresses_are_unknown() -> None:
    for xml in (BROKEN, "<domain"):
        found = read(with_domain(xml))
        assert [each.domain for each in found.interfaces] == ["other"]
        assert found.domains == {"vm", "other"}
        assert found.without_addresses == {"vm"}
        assert found.observed.bound == {"ibay-a"}  # by its binding
        assert not found.observed.are_uses_known


def test_of_domains_on_a_network_that_cannot_be_read_the_addresses_are_unknown() -> None:
    for xml in (BROKEN, "<network"):
        found = read(replace(HOST, networks={**HOST.networks, "given": xml}))
        assert found.without_addresses == {"vm"}
        assert found.static_ips == {"other": ("10.0.0.2",)}
        assert found.observed.are_uses_known
        assert [(each.kind, each.name) for each in found.skipped] == [("network", "given")]


def test_a_domain_on_a_network_that_does_not_exist_has_no_address() -> None:
    found = read(replace(HOST, networks={"second": HOST.networks["second"]}))
    assert (found.without_addresses, found.static_ips) == (frozenset(), {"other": ("10.0.0.2",)})


def test_of_two_interfaces_with_one_mac_address_each_is_seen_and_can_be_changed() -> None:
    interface = DOMAIN[DOMAIN.index("    <interface") : DOMAIN.index("  </devices>")]
    other = interface.replace("vnet0", "vnet1").replace("ibay-a", "clean-traffic")
    xml = DOMAIN.replace(interface, interface + other)
    found = read(replace(HOST, domains=(PrintedDomain("vm", UUID(int=1), xml, DOMAIN),)))
    assert [(each.port, each.live, each.stored, each.number) for each in found.interfaces] == [
        ("vnet0", "ibay-a", "ibay-a", 0),
        ("vnet1", "clean-traffic", None, 1),
    ]
    for number, port in enumerate(("vnet0", "vnet1")):
        changed = set_interface_filter(xml, "52:54:00:00:00:01", number, "ibay-b")
        assert changed is not None
        assert port in changed
        assert '<filterref filter="ibay-b" />' in changed
        assert changed.count("filterref") == 1
    assert set_interface_filter(xml, "52:54:00:00:00:01", 2, "ibay-b") is None
    assert set_interface_filter(xml, "52:54:00:00:00:09", 0, "ibay-b") is None


@pytest.mark.parametrize(
    "raw",
    ["ibay-b' b='c", "ibay-b'/><x y='", "ibay-b' chain='root", "ibay-b'><x y='a'/></filterref><filterref filter='c"],
)
def test_a_name_that_leaves_the_text_well_formed_is_not_read_as_another(raw: str) -> None:
    found = read(with_filter(FILTER.replace("ibay-b", raw)))
    assert [each.target for each in found.observed.filters["ibay-a"].references] == [raw]
    for xml in (DOMAIN, DOMAIN.replace(">\n        <parameter name='IP' value='10.0.0.1'/>\n      </filterref>", "/>")):
        found = read(with_domain(xml.replace("'ibay-a'", f"'{raw}'")))
        assert [each.stored for each in found.interfaces] == [raw, "ibay-a"]


def test_names_that_a_libvirt_escapes_are_read_as_they_are() -> None:
    found = read(with_domain(DOMAIN.replace("'ibay-a'", "'R&amp;D it&apos;s &lt;'")))
    assert [each.stored for each in found.interfaces] == ["R&D it's <", "ibay-a"]


ROW = filter_row(rule_row(protocol="ip", src_ip_addr="$IP"))
MACHINE = MachineRow(UUID(int=5), "web", "vm", (), (ROW.id,), (), False, {}, {}, ())
STORE = StoreSnapshot((ROW,), (MACHINE,), {})


def test_a_machine_whose_addresses_are_unknown_keeps_those_that_its_filter_passes() -> None:
    name = machine_filter_name(MACHINE.id)
    known = HostSnapshot(read(HOST).observed, frozenset({"vm"}), (), {}, {"vm": ("10.0.0.1", "10.0.0.9")})
    before = diff_filters(STORE, (), known, Guard(9), FilterCache()).desired.filters
    assert before[name].references[0].parameters == (("IP", "10.0.0.1"), ("IP", "10.0.0.9"))
    unknown = replace(
        known,
        observed=replace(known.observed, filters=dict(before)),
        static_ips={},
        without_addresses=frozenset({"vm"}),
    )
    diff = diff_filters(STORE, (), unknown, Guard(9), FilterCache())
    assert diff.plan.actions == ()
    assert list_reports(diff, None) == []
    # What an operator sets is known.
    changed = replace(STORE, machines=(replace(MACHINE, allowed_ips=("10.0.0.2",)),))
    (action,) = diff_filters(changed, (), unknown, Guard(9), FilterCache()).plan.actions
    assert isinstance(action, Define)
    assert action.definition.references[0].parameters == (("IP", "10.0.0.2"),)


def test_a_machine_keeps_the_addresses_of_a_readable_network_beside_an_unreadable_one() -> None:
    name = machine_filter_name(MACHINE.id)
    both = HostSnapshot(read(HOST).observed, frozenset({"vm"}), (), {}, {"vm": ("10.0.0.1", "10.1.0.1")})
    before = diff_filters(STORE, (), both, Guard(9), FilterCache()).desired.filters
    for installed in (before, {}):
        half = replace(
            both,
            observed=replace(both.observed, filters=dict(installed)),
            static_ips={"vm": ("10.0.0.1", "10.0.0.2")},
            without_addresses=frozenset({"vm"}),
        )
        (reference,) = diff_filters(STORE, (), half, Guard(9), FilterCache()).desired.filters[name].references
        expected = {"10.0.0.1", "10.0.0.2"} | ({"10.1.0.1"} if installed else set())
        assert {value for _, value in reference.parameters} == expected


@pytest.mark.parametrize("allowed", [("10.0.0.1",), ("10.0.0.1", "fd00::1"), ()])
def test_an_unreadable_filter_of_a_refused_row_gets_the_addresses_that_it_got(allowed: tuple[str, ...]) -> None:
    name = machine_filter_name(MACHINE.id)
    machine = replace(MACHINE, allowed_ips=allowed)
    refused = replace(ROW, rules=(replace(ROW.rules[0], action="nonsense"),))
    includer = replace(ROW, id=UUID(int=80), uuid=UUID(int=80), internal_name="ibay-top", rules=(), targets=(ROW.id,))
    for own in ((ROW, refused), (includer, includer)):
        target = own[0].internal_name
        good = StoreSnapshot((ROW, includer), (replace(machine, own=(own[0].id,), allowed_ips=("10.0.0.1",)),), {})
        before = dict(diff_filters(good, (), HostSnapshot(read(HOST).observed, frozenset({"vm"}), (), {}, {}), Guard(9),
                                   FilterCache()).desired.filters)  # fmt: skip
        before[ROW.internal_name] = build_stand_in(ROW.internal_name, ROW.uuid)
        bad = StoreSnapshot((refused, includer), (replace(machine, own=(own[0].id,)),), {})
        host = HostSnapshot(replace(read(HOST).observed, filters=before), frozenset({"vm"}), (), {}, {})
        diff = diff_filters(bad, (), host, Guard(9), FilterCache())
        if allowed:
            (reference,) = diff.desired.filters[name].references
            assert reference == Reference(target, (("IP", "10.0.0.1"),))
        else:
            assert diff.desired.filters[name].references == ()
            assert [each for each in list_reports(diff, None) if each.kind == "unenforceable"]
        # Of a machine that did not include it, guestd passes all that there is.
        del before[name]
        diff = diff_filters(bad, (), host, Guard(9), FilterCache())
        parameters = [each.parameters for each in diff.desired.filters[name].references]
        every = (("IP", "10.0.0.1"), ("IPV6", "fd00::1"))[: len(allowed)]
        assert parameters == [every]


def test_each_object_that_cannot_be_read_is_reported_until_it_is_read_or_defined_again() -> None:
    there = {"ibay-a": build_stand_in("ibay-a", A), "other": build_stand_in("other", B)}
    observed = replace(read(HOST).observed, filters=there)
    skipped = (Skipped("filter", "ibay-a", "bad"), Skipped("filter", "other", "bad"), Skipped("domain", "vm", "bad"))
    host = HostSnapshot(observed, frozenset(), (), {}, {}, skipped=skipped)
    diff = diff_filters(StoreSnapshot((), (), {}), (), host, Guard(9), FilterCache())
    assert [str(each) for each in list_reports(diff, None) if each.kind == "unreadable"] == [
        "unreadable: ibay-a: libvirt's filter cannot be read: bad",
        "unreadable: other: libvirt's filter cannot be read: bad",
        "unreadable: vm: libvirt's domain cannot be read: bad",
    ]
    there["ibay-a"] = read(HOST).observed.filters["ibay-a"]
    assert [each.name for each in list_reports(diff, None) if each.kind == "unreadable"] == ["other", "vm"]


def test_the_kernels_rules_of_a_filter_that_cannot_be_read_are_not_inspected() -> None:
    found = read(HOST)
    commands: list[str] = []

    def run(*command: str) -> str:
        commands.append(command[0])
        return ""

    inspector = KernelInspector(run, lambda: ["vnet0"])
    flushed, _ = asyncio.run(inspector.find_flushed(found, found.observed.filters))
    assert list(flushed) == ["vnet0"]
    commands.clear()
    there = found.observed.filters
    there["ibay-b"] = build_stand_in("ibay-b", B)
    assert asyncio.run(inspector.find_flushed(found, there)) == ({}, ())
    assert commands == []
