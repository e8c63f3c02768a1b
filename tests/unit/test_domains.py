"""libvirt's numbers and XML as plain values."""

from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestd.hypervisor.domains import (
    MAX_MEMORY_KIB,
    MAX_PORT,
    MAX_VCPUS,
    Domain,
    DomainChannel,
    DomainDescription,
    Graphics,
    derive_status,
    name_state,
    name_stop,
    parse_description,
)

LIVE = """
<domain type='qemu' id='3'>
  <memory unit='KiB'>2097152</memory><vcpu placement='static' current='2'>4</vcpu>
  <devices>
    <channel type='unix'>
      <source mode='bind' path='/run/channels/one'/>
      <target type='virtio' name='org.infinibay.agent' state='connected'/>
    </channel>
    <channel type='unix'>
      <source mode='bind' path='/run/channels/two'/>
      <target type='virtio' name='org.qemu.guest_agent.0' state='disconnected'/>
    </channel>
    <channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>
    <graphics type='egl-headless'/>
    <graphics type='spice' port='5901' autoport='yes' listen='127.0.0.1'>
      <listen type='address' address='127.0.0.1'/>
    </graphics>
    <graphics type='vnc' port='5902'/>
  </devices>
</domain>
"""
DEFINED = """
<domain type='qemu'>
  <memory unit='KiB'>1048576</memory><vcpu>1</vcpu>
  <devices>
    <channel type='unix'><source mode='bind'/><target type='virtio' name='org.infinibay.agent'/></channel>
    <graphics type='vnc' port='-1' autoport='yes'><listen type='address' address='0.0.0.0'/></graphics>
  </devices>
</domain>
"""


def domain(state: str, reason: str = "unknown") -> Domain:
    description = DomainDescription(vcpus=1, memory_kib=1, graphics=None, channels=())
    return Domain(UUID(int=1), "vm", state, reason, state not in ("shutoff", "nostate"), 0.0, description)


def test_a_live_domain_is_parsed_with_its_first_console_and_its_unix_channels() -> None:
    assert parse_description(LIVE) == DomainDescription(
        vcpus=2,
        memory_kib=2097152,
        graphics=Graphics("spice", 5901, "127.0.0.1"),
        channels=(
            DomainChannel("org.infinibay.agent", "/run/channels/one", True),
            DomainChannel("org.qemu.guest_agent.0", "/run/channels/two", False),
        ),
    )


def test_a_defined_domain_has_neither_a_port_nor_a_path_yet() -> None:
    described = parse_description(DEFINED)
    assert described.graphics == Graphics("vnc", -1, "0.0.0.0")
    assert described.channels == (DomainChannel("org.infinibay.agent", None, None),)


def test_a_domain_without_devices_is_parsed() -> None:
    assert parse_description("<domain/>") == DomainDescription(vcpus=0, memory_kib=0, graphics=None, channels=())


@pytest.mark.parametrize(
    ("vcpu", "expected"), [("<vcpu>3</vcpu>", 3), ("<vcpu/>", 0), ("<vcpu current='1'>3</vcpu>", 1)]
)
def test_a_domain_has_the_processors_that_it_has_now(vcpu: str, expected: int) -> None:
    assert parse_description(f"<domain>{vcpu}</domain>").vcpus == expected


def test_channels_of_another_kind_are_left_out() -> None:
    xml = """<domain><devices>
    <channel type='unix'><source mode='bind' path='/run/a'/></channel>
    <channel type='unix'><source mode='bind' path='/run/b'/><target type='guestfwd' port='1'/></channel>
    <channel type='unix'><target type='virtio' name='org.infinibay.agent'/></channel>
    </devices></domain>"""
    assert parse_description(xml).channels == (DomainChannel("org.infinibay.agent", None, None),)


@pytest.mark.parametrize(
    ("graphics", "expected"),
    [
        ("<graphics type='vnc' port='5900' listen='10.0.0.1'/>", Graphics("vnc", 5900, "10.0.0.1")),
        ("<graphics type='vnc' port='5900'/>", Graphics("vnc", 5900, None)),
        ("<graphics type='spice' tlsPort='5901'/>", Graphics("spice", 5901, None)),
        ("<graphics type='vnc'/>", Graphics("vnc", -1, None)),
        ("<graphics type='vnc' port='0'/>", Graphics("vnc", -1, None)),
        ("<graphics type='egl-headless'/>", None),
    ],
)
def test_a_console_is_where_its_domain_listens(graphics: str, expected: Graphics | None) -> None:
    assert parse_description(f"<domain><devices>{graphics}</devices></domain>").graphics == expected


@pytest.mark.parametrize(
    ("xml", "vcpus", "memory_kib"),
    [
        ("<domain><vcpu>many</vcpu><memory unit='KiB'>-5</memory></domain>", 0, 0),
        ("<domain><vcpu current='1e3'>4</vcpu><memory unit='MiB'>5</memory></domain>", 0, 0),
        ("<domain><vcpu>2147483648</vcpu><memory>9223372036854775808</memory></domain>", 0, 0),
        ("<domain><vcpu>2147483647</vcpu><memory>9223372036854775807</memory></domain>", MAX_VCPUS, MAX_MEMORY_KIB),
        (f"<domain><vcpu>{'9' * 5000}</vcpu><memory> 7 </memory></domain>", 0, 7),
        ("<domain><vcpu>\u0664</vcpu><memory/></domain>", 0, 0),
    ],
)
def test_a_number_that_is_none_or_that_no_column_holds_is_unknown(xml: str, vcpus: int, memory_kib: int) -> None:
    described = parse_description(xml)
    assert (described.vcpus, described.memory_kib) == (vcpus, memory_kib)


@pytest.mark.parametrize("port", ["70000", "-7", "x", "99999999999999999999"])
def test_a_port_that_is_none_is_no_port(port: str) -> None:
    xml = f"<domain><devices><graphics type='vnc' port='{port}' listen='::1'/></devices></domain>"
    assert parse_description(xml).graphics == Graphics("vnc", -1, "::1")


@pytest.mark.parametrize("name", ["R&D", "it's", "a<b", "R&D' b='<", "''", "&", "a > 'b' & <c/>"])
def test_a_filters_name_that_libvirt_prints_as_it_is_is_read(name: str) -> None:
    raw = f"<devices>\n    <interface type='bridge'>\n      <filterref filter='{name}'/>\n    </interface>"
    assert parse_description(LIVE.replace("<devices>", raw)) == parse_description(LIVE)


@given(
    start=st.integers(0, len(LIVE)),
    length=st.integers(0, 40),
    text=st.text(max_size=8),
    more=st.sampled_from("&<>'\"\n"),
)
def test_any_change_of_a_domains_xml_gives_values_that_the_store_holds_or_a_value_error(
    start: int, length: int, text: str, more: str
) -> None:
    try:
        described = parse_description(LIVE[:start] + text + more + LIVE[start + length :])
    except ValueError:
        return
    assert 0 <= described.vcpus <= MAX_VCPUS
    assert 0 <= described.memory_kib <= MAX_MEMORY_KIB
    assert described.graphics is None or -1 <= described.graphics.port <= MAX_PORT


@pytest.mark.parametrize(
    "xml", ["", "<domain>", "<domain/><domain/>", "<domain>&x;</domain>", "\udc80", "<domain>\0</domain>"]
)
def test_what_is_no_xml_is_a_value_error(xml: str) -> None:
    with pytest.raises(ValueError, match=r"malformed|surrogates"):
        parse_description(xml)


def test_xml_of_any_depth_is_parsed() -> None:
    depth = 100_000
    assert parse_description(f"<domain>{'<a>' * depth}{'</a>' * depth}<vcpu>2</vcpu></domain>").vcpus == 2


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((1, 1), ("running", "booted")),
        ((1, 2), ("running", "migrated")),
        ((3, 1), ("paused", "user")),
        ((3, 2), ("paused", "migration")),
        ((3, 5), ("paused", "io_error")),
        ((3, 11), ("paused", "starting_up")),
        ((4, 1), ("shutdown", "unknown")),
        ((5, 4), ("shutoff", "migrated")),
        ((6, 1), ("crashed", "panicked")),
        ((7, 0), ("pmsuspended", "unknown")),
        ((99, 99), ("nostate", "unknown")),
        ((3, 99), ("paused", "unknown")),
        ((-1, 0), ("nostate", "unknown")),
    ],
)
def test_numbers_are_mapped_to_libvirts_names(numbers: tuple[int, int], expected: tuple[str, str]) -> None:
    assert name_state(*numbers) == expected


EXPECTED: list[Any] = [
    ("running", "booted", "running"),
    ("blocked", "unknown", "running"),
    ("paused", "user", "suspended"),
    ("paused", "api_error", "suspended"),
    ("pmsuspended", "unknown", "suspended"),
    ("paused", "io_error", "error"),
    ("paused", "watchdog", "error"),
    ("paused", "crashed", "error"),
    ("paused", "migration", None),
    ("paused", "starting_up", None),
    ("paused", "postcopy", None),
    ("paused", "snapshot", None),
    ("shutdown", "unknown", None),
    ("shutoff", "destroyed", "off"),
    ("shutoff", "crashed", "off"),
    ("shutoff", "saved", "off"),
    ("shutoff", "migrated", None),
    ("crashed", "panicked", "error"),
    ("nostate", "unknown", None),
]


@pytest.mark.parametrize(("state", "reason", "status"), EXPECTED)
def test_a_status_is_derived_from_a_state_or_left_unchanged(state: str, reason: str, status: str | None) -> None:
    assert derive_status(domain(state, reason)) == status


@pytest.mark.parametrize(
    ("detail", "expected"),
    [
        (0, "shutdown"),
        (1, "destroyed"),
        (2, "crashed"),
        (3, "migrated"),
        (6, "from_snapshot"),
        (7, "unknown"),
        (-1, "unknown"),
    ],
)
def test_the_detail_of_a_stop_has_the_word_of_its_reason(detail: int, expected: str) -> None:
    assert name_stop(detail) == expected
