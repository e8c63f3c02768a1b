"""Of filters, domains and networks, only those that cannot be read are left out."""

import re
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4
from xml.sax.saxutils import escape, quoteattr

import pytest

from guestd.filters.machine_filter import machine_filter_name
from guestd.filters.plan import Define, Remove
from support.filters import ENFORCE, OTHER, FilterHost
from support.libvirt import libvirt

pytestmark = pytest.mark.timeout(600)

# libvirt prints these as they are.
RAW_NAMES = (
    f"{OTHER} R&D",
    f"{OTHER} it's",
    f"{OTHER} a<b",
    f"{OTHER} a&amp;b",
    f"{OTHER} a\nb",
    f"{OTHER} R&D' b='<",
    f"{OTHER} a' b='c",
)
QUOTES = {"'": "&apos;", "\n": "&#10;"}
RULE = "<rule action='drop' direction='in'><tcp dstportstart='81'/></rule>"
# More than 4 MiB when libvirt prints it, where a quotation mark takes six bytes.
OVERSIZED_RULES = f"<rule action='accept' direction='in'><tcp comment='{chr(34) * 255}'/></rule>" * 3000


def attribute(text: str) -> str:
    return quoteattr(text, {"\n": "&#10;"})


def define(host: FilterHost, name: str, rules: str = RULE, uuid: UUID | None = None) -> None:
    host.libvirt.nwfilterDefineXML(f"<filter name={attribute(name)}><uuid>{uuid or uuid4()}</uuid>{rules}</filter>")


def oversized(name: str) -> str:
    """A domain that libvirt accepts and does not print: escaped, it is larger than a message of libvirt's may be."""
    text = '"' * 1_000_000
    return f"""<domain type='qemu'><name>{name}</name><uuid>{uuid4()}</uuid><description>{text}</description>
      <memory unit='MiB'>32</memory><os><type arch='x86_64' machine='pc'>hvm</type></os>
      <devices><interface type='bridge'><source bridge='fbr0'/><mac address='52:54:00:0a:0b:0c'/></interface></devices>
    </domain>"""


@pytest.fixture
def raw_filters(filter_host: FilterHost) -> None:
    for name in RAW_NAMES:
        define(filter_host, name)
    # libvirt cuts a comment after 256 bytes, here within a character: the text is not UTF-8.
    define(filter_host, f"{OTHER} cut", f"<rule action='accept' direction='in'><tcp comment='x{'é' * 200}'/></rule>")
    define(filter_host, f"{OTHER} includes", f"<filterref filter={attribute(RAW_NAMES[0])}/>{RULE}")


@pytest.fixture
def oversized_domain(filter_host: FilterHost) -> Iterator[Any]:
    domain = filter_host.libvirt.defineXML(oversized("oversized"))
    with pytest.raises(libvirt.libvirtError, match="encode"):
        domain.XMLDesc()
    yield domain
    domain.undefine()


@pytest.mark.usefixtures("raw_filters")
def test_foreign_filters_with_names_that_break_xml_stop_nothing(filter_host: FilterHost) -> None:
    filter_host.add_machine()
    before = {each.name(): each.UUIDString() for each in filter_host.libvirt.listAllNWFilters()}
    result = filter_host.reconcile()
    assert {outcome for _, outcome in result.steps} == {"done"}
    assert result.in_force == result.desired
    assert not [report for report in result.reports if report.kind in ("unreadable", "failed", "refused")]
    after = {each.name(): each.UUIDString() for each in filter_host.libvirt.listAllNWFilters()}
    assert {name: after.get(name) for name in before} == before
    for verb in (("plan",), ("filters", "plan"), ("filters", "show", filter_host.internal_name("Clean Traffic"))):
        status, printed = filter_host.guestd(*verb)
        assert not [line for line in printed if "Traceback" in line], printed
        assert status == (1 if "show" in verb else 0), printed


@pytest.mark.usefixtures("raw_filters")
def test_a_domain_that_names_such_a_filter_is_read_and_reported(filter_host: FilterHost) -> None:
    names = dict(
        zip(RAW_NAMES, (filter_host.add_machine(names=escape(raw, QUOTES))[1] for raw in RAW_NAMES), strict=True)
    )
    good_id, good = filter_host.add_machine(is_running=True)
    result = filter_host.reconcile(ENFORCE)
    assert filter_host.filters_named(good) == ({machine_filter_name(good_id)},) * 2
    assert not [report for report in result.reports if report.kind == "unreadable"]
    for raw in RAW_NAMES[:3]:
        (report,) = [each for each in result.reports if each.kind == "taken" and each.name == names[raw]]
        assert f"names {raw}, not its machine filter" in report.text
    # libvirt itself can neither start nor change such a domain.
    status, printed = filter_host.guestd("apply", "--take", attach="enforce")
    assert status == 1
    assert len([line for line in printed if line.startswith("failed: attach")]) >= 3, printed
    assert not [line for line in printed if "Traceback" in line], printed
    assert filter_host.bindings()[filter_host.port(good)] == machine_filter_name(good_id)
    status, printed = filter_host.guestd("doctor")
    assert not [line for line in printed if "Traceback" in line], printed


def test_of_domains_only_the_one_that_libvirt_does_not_print_is_left_out(
    filter_host: FilterHost, oversized_domain: Any
) -> None:
    machine_id, name = filter_host.add_machine(is_running=True)
    result = filter_host.reconcile(ENFORCE)
    assert {outcome for _, outcome in result.steps} == {"done"}
    assert filter_host.filters_named(name)[0] == {machine_filter_name(machine_id)}
    (report,) = [each for each in result.reports if each.kind == "unreadable"]
    assert report.name == "oversized"
    assert "encode" in report.text
    # What it uses is unknown: no filter is removed.
    row_less = filter_host.internal_name("Drop All")
    filter_host.run('DELETE FROM "NWFilter" WHERE "name" = %s', "Drop All")
    assert not [action for action, _ in filter_host.reconcile().steps if isinstance(action, Remove)]
    assert row_less in filter_host.own()


def test_the_filter_of_a_domain_that_libvirt_does_not_print_keeps_its_addresses(
    filter_host: FilterHost,
) -> None:
    machine_id, name = filter_host.add_machine(network="given")
    filter_host.define_network("given", **{name: "10.9.0.7"})
    try:
        filter_host.assign(machine_id, "Clean Traffic", "SSH")
        filter_host.reconcile()
        before = filter_host.filters()[machine_filter_name(machine_id)]
        assert "10.9.0.7" in str(before)
        domain = filter_host.domain(name)
        text = '"' * 1_000_000
        xml = domain.XMLDesc(2).replace("<memory", f"<description>{text}</description><memory", 1)
        filter_host.libvirt.defineXML(xml)
        result = filter_host.reconcile(ENFORCE)
        assert [each.name for each in result.reports if each.kind == "unreadable"] == [name]
        assert not [each for each in result.reports if each.kind == "unenforceable"]
        assert filter_host.filters()[machine_filter_name(machine_id)] == before
    finally:
        filter_host.libvirt.networkLookupByName("given").undefine()


def test_a_filter_of_ours_that_cannot_be_read_is_defined_again(filter_host: FilterHost) -> None:
    filter_host.reconcile()
    name = filter_host.internal_name("Use SSH service")
    uuid = filter_host.filters()[name].uuid
    define(filter_host, name, OVERSIZED_RULES, uuid)
    with pytest.raises(libvirt.libvirtError):
        filter_host.libvirt.nwfilterLookupByName(name).XMLDesc()
    result = filter_host.reconcile()
    assert [(type(action), outcome) for action, outcome in result.steps] == [(Define, "done")]
    assert filter_host.filters()[name].uuid == uuid
    assert result.in_force == result.desired


def test_a_row_keeps_clear_of_an_unreadable_filter_with_its_name(filter_host: FilterHost) -> None:
    name = filter_host.internal_name("Use SSH service")
    define(filter_host, name, OVERSIZED_RULES)
    result = filter_host.reconcile()
    kinds = {report.kind for report in result.reports if report.name == name}
    assert kinds == {"refused", "unreadable"}


def test_each_of_two_interfaces_with_one_mac_address_gets_the_machines_filter(filter_host: FilterHost) -> None:
    machine_id, name = filter_host.add_machine()
    domain = filter_host.domain(name)
    xml = domain.XMLDesc(2)
    interface = xml[xml.index("<interface") : xml.index("</interface>")] + "</interface>"
    filter_host.libvirt.defineXML(xml.replace(interface, interface + re.sub("<address.*?/>", "", interface)))
    domain.createWithFlags(1)  # VIR_DOMAIN_START_PAUSED
    result = filter_host.reconcile(ENFORCE)
    assert {outcome for _, outcome in result.steps} == {"done"}
    chosen = machine_filter_name(machine_id)
    for flags in (0, 2):
        assert domain.XMLDesc(flags).count(f"<filterref filter='{chosen}'/>") == 2
    assert [each for each in filter_host.bindings().values() if each == chosen] == [chosen, chosen]
    assert filter_host.reconcile(ENFORCE).steps == ()
