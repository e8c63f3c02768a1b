"""A filter of libvirt is read with all that decides between packets, and written as it was read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestd.filters.model import Filter, Reference, Rule
from guestd.filters.xml import digest_filter, parse_filter, render_filter

UUID_ELEMENT = "<uuid>00000000-0000-0000-0000-0000000000aa</uuid>"
ACCEPT = "<rule action='accept' direction='in' priority='500'><tcp dstportstart='22'/></rule>"
DROPS_22 = "<filterref filter='ibay-drops-22'/>"


def read(entries: str) -> Filter:
    return parse_filter(f"<filter name='ibay-f' chain='root'>{UUID_ELEMENT}{entries}</filter>")


def including(*parameters: tuple[str, str]) -> Filter:
    inner = "".join(f"<parameter name='{name}' value='{value}'/>" for name, value in parameters)
    return read(f"<filterref filter='ibay-other'>{inner}</filterref>")


def test_a_rule_before_a_reference_is_not_the_same_as_after_it() -> None:
    before, after = read(ACCEPT + DROPS_22), read(DROPS_22 + ACCEPT)
    assert before != after
    assert digest_filter(before) != digest_filter(after)
    assert [type(each) for each in after.entries] == [Reference, Rule]


@given(st.lists(st.sampled_from([ACCEPT, DROPS_22, ACCEPT.replace("22", "23"), "<filterref filter='ibay-b'/>"])))
def test_rules_and_references_are_written_in_the_order_in_which_they_were_read(entries: list[str]) -> None:
    found = read("".join(entries))
    assert len(found.entries) == len(entries)
    assert parse_filter(render_filter(found)) == found


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([("A", "1"), ("A", "2"), ("B", "80"), ("B", "90")], [("A", "1"), ("A", "2"), ("B", "90"), ("B", "80")]),
        ([("A", "2"), ("A", "1")], [("A", "1"), ("A", "2")]),
        ([("A", "1"), ("A", "1")], [("A", "1")]),
    ],
)
def test_values_of_a_variable_keep_their_order_and_number(
    one: list[tuple[str, str]], other: list[tuple[str, str]]
) -> None:
    assert including(*one) != including(*other)
    assert digest_filter(including(*one)) != digest_filter(including(*other))
    assert parse_filter(render_filter(including(*one))) == including(*one)


def test_the_order_between_variables_has_no_meaning() -> None:
    assert including(("B", "80"), ("A", "2"), ("B", "90"), ("A", "1")) == including(
        ("A", "2"), ("A", "1"), ("B", "80"), ("B", "90")
    )


def test_the_digest_of_rules_before_references_is_that_of_earlier_releases() -> None:
    found = read(ACCEPT + "<filterref filter='ibay-b'><parameter name='IP' value='10.0.0.2'/></filterref>")
    assert digest_filter(found) == "39c6877302bbc28ff15af9123f467390a77604af5be77d3cc2a390e7b9156ac2"
