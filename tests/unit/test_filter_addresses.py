"""The addresses of a machine: only what libvirt accepts as the value of a variable, and what a machine can have."""

import re
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestd.filters.addresses import MAX_ADDRESSES, parse_address, read_addresses

# libvirt's VALID_VARVALUE: a parameter with another character is dropped.
ACCEPTED = re.compile(r"[0-9A-Za-z_.:]+")
addresses = st.one_of(st.ip_addresses().map(str), st.text(max_size=50), st.from_regex(r"fe80::[0-9a-f]{1,4}%[a-z0-9]+"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("FD00:0::0:1", "fd00::1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("::ffff:a00:1", "10.0.0.1"),
        ("fe80::1", "fe80::1"),
        ("169.254.1.1", "169.254.1.1"),
    ],
)
def test_an_address_has_one_form(text: str, expected: str) -> None:
    assert str(parse_address(text)) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("fe80::1%eth0", "'fe80::1%eth0' has a zone, which libvirt's filters do not support: write it without"),
        (
            "::ffff:10.0.0.1%1",
            "'::ffff:10.0.0.1%1' has a zone, which libvirt's filters do not support: write it without",
        ),
        ("10.0.0.1/32", "'10.0.0.1/32' is not an IP address"),
        ("fd00::1/64", "'fd00::1/64' is not an IP address"),
        (" 10.0.0.1", "' 10.0.0.1' is not an IP address"),
        ("10.0.0.1\n", "'10.0.0.1\\n' is not an IP address"),
        ("10.0.0.01", "'10.0.0.01' is not an IP address"),
        ("\x9b2J", "'\\x9b2J' is not an IP address"),
        ("1" * 100, f"'{'1' * 60}...' is not an IP address"),
        ("", "'' is not an IP address"),
        ("0.0.0.0", "'0.0.0.0' is not the address of one machine"),
        ("::", "'::' is not the address of one machine"),
        ("127.0.0.1", "'127.0.0.1' is not the address of one machine"),
        ("::1", "'::1' is not the address of one machine"),
        ("::ffff:127.0.0.1", "'::ffff:127.0.0.1' is not the address of one machine"),
        ("224.0.0.1", "'224.0.0.1' is not the address of one machine"),
        ("ff02::1", "'ff02::1' is not the address of one machine"),
        ("255.255.255.255", "'255.255.255.255' is not the address of one machine"),
    ],
)
def test_what_libvirt_drops_or_no_machine_has_is_refused_with_its_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(reason)}$"):
        parse_address(text)
    assert read_addresses((text, "10.0.0.2"), ()).problems == (f"Machine.allowedIps: {reason}",)
    assert read_addresses((), (text, "10.0.0.2")).problems == (f"libvirt's network: {reason}",)


@given(allowed=st.lists(addresses, max_size=20), static=st.lists(addresses, max_size=20))
def test_libvirt_accepts_every_value_and_each_is_there_once(allowed: list[str], static: list[str]) -> None:
    found = read_addresses(allowed, static)
    values = [value for each in found.get_variables().values() for value in each]
    assert all(ACCEPTED.fullmatch(value) for value in values)
    assert len(set(values)) == len(values)
    assert all(isinstance(parse_address(value), IPv4Address) for value in found.ipv4)
    assert all(isinstance(parse_address(value), IPv6Address) for value in found.ipv6)
    assert all(found.get_variables().values()), "libvirt cannot install a variable without a value"
    assert all(problem.isprintable() for problem in found.problems)


def test_an_address_in_several_spellings_is_one() -> None:
    found = read_addresses(("10.0.0.1", "::ffff:10.0.0.1", "fd00::1", "fd00:0:0::1"), ("FD00::1", "10.0.0.1"))
    assert (found.ipv4, found.ipv6, found.problems) == (("10.0.0.1",), ("fd00::1",), ())


def test_more_addresses_than_libvirt_can_install_in_time_are_cut_and_reported() -> None:
    many = [f"10.0.{number // 250}.{number % 250 + 1}" for number in range(3000)]
    found = read_addresses([*many, "fd00::1"], ())
    assert (len(found.ipv4), found.ipv6) == (MAX_ADDRESSES, ("fd00::1",))
    assert found.problems == ("it has 3000 IPv4 addresses: only the first 256 are used",)
    assert read_addresses(many[:MAX_ADDRESSES], ()).problems == ()


def test_of_many_bad_addresses_the_first_are_named() -> None:
    problems = read_addresses([f"bad{number}" for number in range(9)], ()).problems
    assert problems[0] == "Machine.allowedIps: 'bad0' is not an IP address"
    assert problems[-1] == "4 more of its addresses are not used, for such reasons"
    assert len(problems) == 6
