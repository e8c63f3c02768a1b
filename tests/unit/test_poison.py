"""Every poison value in every field of every dialect: rows that fit their columns, or a refusal; never an exception."""

import pytest

from guestd.core.errors import BadFrame
from guestd.rows.normalise import GuestHistory
from support.poison import POISON, Path, poisoned
from support.rows import misfits, rows_of

LISTS = {"processes", "ports", "windows_services", "applications", "usage_stats", "interfaces"}


def may_cost_the_frame(path: Path, name: str) -> bool:
    """A message must say that it is one, and have its lists as lists and its memory and processor as objects."""
    return path[-1] in {"type", "data", "system", "cpu", "memory", *LISTS} or name.startswith("deep")


@pytest.mark.parametrize("name", POISON)
def test_any_poison_in_any_field_costs_at_most_its_entry_or_its_frame(name: str) -> None:
    for path, payload in poisoned(name):
        try:
            found = [problem for _, problem in misfits(rows_of(payload, GuestHistory()))]
        except BadFrame as exc:
            found = [] if may_cost_the_frame(path, name) and exc.reason in ("json", "shape", "type") else [str(exc)]
        assert found == [], path
