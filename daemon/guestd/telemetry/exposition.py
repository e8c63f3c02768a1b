"""Metric families as text, in both formats that Prometheus reads. Pure.

The client library takes several times as long for ten thousand samples, and holds up ingest for that time
(docs/decisions/0047-own-exposition-for-guests.md). Samples that have not changed since the last scrape are rendered
once: the line of a sample is the same in both formats.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

END = b"# EOF\n"


@dataclass(frozen=True, slots=True)
class Family:
    """A metric: its label names, and its samples as (label values, value); `lines` are samples rendered before."""

    name: str
    text: str
    is_counter: bool
    labels: tuple[str, ...]
    samples: list[tuple[tuple[str, ...], float]] = field(default_factory=list)
    lines: Sequence[str] = ()


def render(families: Iterable[Family], *, is_openmetrics: bool) -> bytes:
    """The lines of families; all samples of one name must be in one family."""
    return "".join(_render_lines(families, is_openmetrics)).encode(errors="replace")


def append_to_page(page: bytes, more: bytes) -> bytes:
    """A page of the client library with more lines: before its end mark, where it has one."""
    return page.removesuffix(END) + more + END if page.endswith(END) else page + more


def prerender(family: Family) -> Family:
    """The same family with its samples as lines."""
    name = _sample_name(family)
    lines = [format_sample(name, format_labels(family.labels, values), value) for values, value in family.samples]
    return replace(family, samples=[], lines=lines)


def format_sample(name: str, labels: str, value: float) -> str:
    """The line of one sample; `labels` is the result of `format_labels`."""
    return f"{name}{labels} {_format_number(value)}\n"


def format_labels(labels: Iterable[str], values: Iterable[str]) -> str:
    """Labels with their values, as they stand in a line."""
    return "{" + ",".join([f'{label}="{_escape(each)}"' for label, each in zip(labels, values, strict=True)]) + "}"


def _sample_name(family: Family) -> str:
    return f"{family.name.removesuffix('_total')}_total" if family.is_counter else family.name


def _render_lines(families: Iterable[Family], is_openmetrics: bool) -> Iterator[str]:
    for family in families:
        sample = _sample_name(family)
        described = sample.removesuffix("_total") if family.is_counter and is_openmetrics else sample
        text = family.text.replace("\\", "\\\\").replace("\n", "\\n")
        yield f"# HELP {described} {text}\n# TYPE {described} {'counter' if family.is_counter else 'gauge'}\n"
        yield from family.lines
        for values, value in family.samples:
            yield format_sample(sample, format_labels(family.labels, values), value)


def _escape(value: str) -> str:
    if "\\" not in value and '"' not in value and "\n" not in value:
        return value
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _format_number(value: float) -> str:
    if math.isfinite(value):
        return repr(float(value))
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
