"""Families as text: read back by the client library's parsers they are what they were."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from guestd.telemetry.exposition import END, Family, append_to_page, render

Read = Callable[[str], Iterable[Any]]
assert openmetrics


def read(parse: Read, body: bytes) -> list[tuple[str, dict[str, str], float]]:
    return [(each.name, each.labels, each.value) for family in parse(body.decode()) for each in family.samples]


@pytest.mark.parametrize(("parse", "is_openmetrics"), [(read_text, False), (read_openmetrics, True)])
@given(
    label=st.text(st.characters(codec="utf-8"), max_size=20),
    value=st.floats(min_value=0, allow_infinity=False),
    is_counter=st.booleans(),
)
def test_what_is_written_is_read_back(
    parse: Read, is_openmetrics: bool, label: str, value: float, is_counter: bool
) -> None:
    name = "a_total" if is_counter else "a"
    family = Family(name, "Of \\ and\nlines.", is_counter, ("machine", "domain"), [(("m", label), value)])
    body = append_to_page(END if is_openmetrics else b"", render([family], is_openmetrics=is_openmetrics))
    assert read(parse, body) == [(name, {"machine": "m", "domain": label}, value)]


def test_numbers_that_are_none_have_their_names() -> None:
    family = Family(
        "a", "A.", False, ("of",), [(("x",), float("inf")), (("y",), float("-inf")), (("z",), float("nan"))]
    )
    lines = render([family], is_openmetrics=False).decode().splitlines()
    assert lines[2:] == ['a{of="x"} +Inf', 'a{of="y"} -Inf', 'a{of="z"} NaN']


def test_more_lines_come_before_the_end_of_a_page_that_has_one() -> None:
    assert append_to_page(b"a 1\n", b"b 1\n") == b"a 1\nb 1\n"
    assert append_to_page(b"a 1\n# EOF\n", b"b 1\n") == b"a 1\nb 1\n# EOF\n"
