"""Families as text, in both formats that Prometheus reads. Pure.

Ten thousand samples take the client library several times as long, and ingest has to wait for the interpreter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from guestd.domainmetrics import Family

END = b"# EOF\n"


def rendered(families: Iterable[Family], *, is_openmetrics: bool) -> bytes:
    """The lines of families; those of one name must be in one family."""
    return "".join(_lines(families, is_openmetrics)).encode()


def joined(page: bytes, more: bytes) -> bytes:
    """A page of the client library's with more lines: before its end, where it has one."""
    return page.removesuffix(END) + more + END if page.endswith(END) else page + more


def _lines(families: Iterable[Family], is_openmetrics: bool) -> Iterator[str]:
    for family in families:
        base = family.name.removesuffix("_total")
        sample = f"{base}_total" if family.is_counter else family.name
        described = base if family.is_counter and is_openmetrics else sample
        text = family.text.replace("\\", "\\\\").replace("\n", "\\n")
        yield f"# HELP {described} {text}\n# TYPE {described} {'counter' if family.is_counter else 'gauge'}\n"
        for values, value in family.samples:
            labels = ",".join([f'{name}="{_escaped(each)}"' for name, each in zip(family.labels, values, strict=True)])
            yield f"{sample}{{{labels}}} {_number(value)}\n"


def _escaped(value: str) -> str:
    if "\\" not in value and '"' not in value and "\n" not in value:
        return value
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    if math.isfinite(value):
        return repr(float(value))
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
