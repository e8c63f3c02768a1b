"""Families as text, in both formats that Prometheus reads. Pure.

Ten thousand samples take the client library several times as long, and ingest has to wait for the interpreter. What has
not changed since the last scrape is written once: a line of a sample is the same in both formats.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from guestd.telemetry.domains import Family

END = b"# EOF\n"


def rendered(families: Iterable[Family], *, is_openmetrics: bool) -> bytes:
    """The lines of families; those of one name must be in one family."""
    return "".join(_lines(families, is_openmetrics)).encode()


def joined(page: bytes, more: bytes) -> bytes:
    """A page of the client library's with more lines: before its end, where it has one."""
    return page.removesuffix(END) + more + END if page.endswith(END) else page + more


def written(family: Family) -> Family:
    """The same with its samples as lines."""
    name = _sample_name(family)
    lines = [line(name, pairs(family.labels, values), value) for values, value in family.samples]
    return Family(family.name, family.text, family.is_counter, family.labels, lines=lines)


def line(name: str, labelled: str, value: float) -> str:
    """One sample; `labelled` is what `pairs` has made."""
    return f"{name}{labelled} {_number(value)}\n"


def pairs(labels: Iterable[str], values: Iterable[str]) -> str:
    """Labels with their values, as they stand in a line."""
    return "{" + ",".join([f'{label}="{_escaped(each)}"' for label, each in zip(labels, values, strict=True)]) + "}"


def _sample_name(family: Family) -> str:
    return f"{family.name.removesuffix('_total')}_total" if family.is_counter else family.name


def _lines(families: Iterable[Family], is_openmetrics: bool) -> Iterator[str]:
    for family in families:
        sample = _sample_name(family)
        described = sample.removesuffix("_total") if family.is_counter and is_openmetrics else sample
        text = family.text.replace("\\", "\\\\").replace("\n", "\\n")
        yield f"# HELP {described} {text}\n# TYPE {described} {'counter' if family.is_counter else 'gauge'}\n"
        yield from family.lines
        for values, value in family.samples:
            yield line(sample, pairs(family.labels, values), value)


def _escaped(value: str) -> str:
    if "\\" not in value and '"' not in value and "\n" not in value:
        return value
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    if math.isfinite(value):
        return repr(float(value))
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
