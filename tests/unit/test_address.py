"""HOST and HOST:PORT: one parser and one formatter, which read and write the same."""

import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestd.core.address import format_host_port, format_url, parse_host, parse_host_port

NAMES = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\.[a-zé0-9]{1,10}){0,3}\.?", fullmatch=True)
ZONES = st.from_regex(r"[a-z0-9._-]{1,12}", fullmatch=True)
NUMBERS = st.builds(lambda number: str(IPv6Address(number)), st.integers(0, 2**128 - 1))
IPV6 = NUMBERS | st.builds(lambda number, zone: f"{number}%{zone}", NUMBERS, ZONES)
HOSTS = NAMES | IPV6 | st.builds(lambda number: str(IPv4Address(number)), st.integers(0, 2**32 - 1))
PORTS = st.integers(1, 65535)


@given(HOSTS, PORTS)
def test_what_is_formatted_is_parsed_back_and_formatted_again(host: str, port: int) -> None:
    text = format_host_port(host, port)
    assert parse_host_port(text, 1883) == (host, port)
    assert format_host_port(*parse_host_port(text, None)) == text


@given(HOSTS.filter(lambda host: not host.endswith((":1883", ":8883", ":9478"))))
def test_a_host_alone_has_the_default_port_in_brackets_or_without(host: str) -> None:
    assert parse_host_port(host, 1883) == (host, 1883)
    if ":" in host:
        assert parse_host_port(f"[{host}]", 1883) == (host, 1883)
        assert parse_host(f"[{host}]") == host


@given(st.text(max_size=40) | st.text("[]:%.a1 ", max_size=12))
def test_any_text_is_parsed_or_refused_with_the_right_forms(text: str) -> None:
    try:
        host, port = parse_host_port(text, 1883)
    except ValueError as exc:
        error = str(exc)
    else:
        error = ""
        assert 0 < port <= 65535
        assert parse_host_port(format_host_port(host, port), None) == (host, port)
    assert not error or "HOST:PORT" in error


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("[::1]:1883", ("::1", 1883)),
        ("::1", ("::1", 8883)),
        ("fe80::10%eth0", ("fe80::10%eth0", 8883)),
        ("[fe80::10%eth0]:1", ("fe80::10%eth0", 1)),
        ("[::ffff:10.0.0.1]", ("::ffff:10.0.0.1", 8883)),
        ("bücher.example:65535", ("bücher.example", 65535)),
        ("broker_1.example.", ("broker_1.example.", 8883)),
        ("[::1:1883]", ("::1:1883", 8883)),
        ("2001:db8:1:2:3:4:5:1883", ("2001:db8:1:2:3:4:5:1883", 8883)),  # one group less is no address
        ("2001:db8::1883", ("2001:db8::1883", 8883)),
        ("2001:db8::1:1000", ("2001:db8::1:1000", 8883)),
    ],
)
def test_addresses_as_operators_type_them(text: str, parsed: tuple[str, int]) -> None:
    assert parse_host_port(text, 8883) == parsed


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "a b", " h", "h\n", "h:", ":1", "h:0", "h:65536", "h:+1", "h: 1", "h:٣", "h:000001", "h:" + "9" * 5000,
        "[::1", "::1]", "[::1]x", "[::1]1883", "[h]:1", "[127.0.0.1]:1", "[]:1", "fe80::1%", "fe80::1%eth0:1883",
        "h:1:2", "a..b", "x" * 64, "mqtt://h", "mqtt://h:1883", "user@h", "h/path", "*",
    ],
)  # fmt: skip
def test_anything_else_is_refused_with_the_right_forms(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be HOST, HOST:PORT, IPV6 or \[IPV6\]:PORT"):
        parse_host_port(text, 1883)


PARTS = st.text("pW0:/@[]%.#é ", min_size=1, max_size=12)


@pytest.mark.parametrize("parse", [parse_host, lambda text: parse_host_port(text, 1883)])
@given(user=PARTS, password=PARTS, host=HOSTS | PARTS, scheme=st.sampled_from(["", "mqtt://", "mqtts://"]))
def test_a_user_and_a_password_before_a_host_are_refused_and_never_repeated(
    parse: Callable[[str], object], user: str, password: str, host: str, scheme: str
) -> None:
    errors = []
    for text in (f"{scheme}{user}:{password}@{host}", f"{scheme}user:s3cret-of-mine@{host}:1883"):
        with pytest.raises(ValueError, match="without a user: use --mqtt-user and --mqtt-password-file") as refused:
            parse(text)
        errors.append(str(refused.value))
    # The same text whatever stands before and after the @: no part of it can be in there.
    assert len({*errors}) == 1
    assert "s3cret" not in errors[0]


@pytest.mark.parametrize("text", ["mqtt://h", "mqtts://h:8883", "https://[::1]:9478/"])
def test_a_url_is_refused_with_what_is_too_much(text: str) -> None:
    for parse in (parse_host, lambda text: parse_host_port(text, 1883)):
        with pytest.raises(ValueError, match="without a scheme"):
            parse(text)


@pytest.mark.parametrize("text", ["h:1883", "127.0.0.1:1883", "[::1]:1883", "h:"])
def test_a_port_after_what_must_be_a_host_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{text!r} has a port, and must be a host alone")):
        parse_host(text)


@pytest.mark.parametrize("port", [1883, 8883, 9478])
@given(address=NUMBERS.filter(lambda text: "::" in text and not text.endswith("::")))
def test_an_address_that_seems_to_end_with_a_port_is_refused_with_both_meanings(address: str, port: int) -> None:
    with pytest.raises(ValueError, match=re.escape(f"write [{address}]:{port}, or [{address}:{port}]")):
        parse_host_port(f"{address}:{port}", 1883)


@pytest.mark.parametrize("text", ["h", "::1", "[::1]"])
def test_a_port_that_is_required_is_asked_for(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be HOST:PORT or \[IPV6\]:PORT"):
        parse_host_port(text, None)


def test_a_zone_is_escaped_in_a_url() -> None:
    assert format_url("http", "fe80::1%eth0", 9478, "/metrics") == "http://[fe80::1%25eth0]:9478/metrics"
    assert format_url("https", "127.0.0.1", 9478, "/") == "https://127.0.0.1:9478/"
