"""What is compiled (guestd_rows.c) does what its Python does.

The encoder writes what the binary format's page says, value by value, and refuses what a column cannot hold; the rows
of processes are those that Python makes.

Values and their bytes: postgresql.org/docs/current/sql-copy.html and the server's send functions.
"""

import struct
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestd.core.config import CommandLines
from guestd.rows.model import Group, Values, whole_rows
from guestd.rows.processes import KEEP, make_rows_in_python, process_rows
from guestd.rows.redact import SUSPICIOUS
from guestd.store.copy import kinds
from guestd.wire.schema import ProcessD1, ProcessD2
from gueststore import contract

guestd_rows = pytest.importorskip("guestd_rows", reason="there was no compiler")
encode = guestd_rows.encode

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "u": st.uuids(),
    "t": st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=-3))]))
    | st.floats(0, 7_258_118_400),  # until 2200
    "i": st.integers(-(2**31), 2**31 - 1),
    "q": st.integers(-(2**63), 2**63 - 1),
    "d": st.floats() | st.integers(-1000, 1000),
    "s": TEXTS,
    "j": st.binary(),
    "y": st.binary(),
    "b": st.booleans(),
}


def moment(value: datetime | float) -> bytes:
    if isinstance(value, float):
        return struct.pack(">q", round(value * 1_000_000) - int(EPOCH.timestamp()) * 1_000_000)
    return struct.pack(">q", (value - EPOCH) // timedelta(microseconds=1))


SENT: dict[str, Callable[[Any], bytes]] = {
    "u": lambda value: value.bytes,
    "t": moment,
    "i": struct.Struct(">i").pack,
    "q": struct.Struct(">q").pack,
    "d": struct.Struct(">d").pack,
    "s": str.encode,
    "j": lambda value: b"\x01" + value,
    "y": bytes,
    "b": lambda value: bytes([value]),
}


def as_documented(row: tuple[Any, ...], letters: str) -> bytes:
    parts = [struct.pack(">h", len(row))]
    for value, letter in zip(row, letters, strict=True):
        sent = None if value is None else SENT[letter](value)
        parts += [struct.pack(">i", -1)] if sent is None else [struct.pack(">i", len(sent)), sent]
    return b"".join(parts)


@given(st.data())
def test_rows_of_any_kinds_are_written_as_the_format_says(data: st.DataObject) -> None:
    letters = data.draw(st.text(st.sampled_from("".join(VALUES)), max_size=15))
    common = data.draw(st.integers(0, len(letters)))
    shared = st.tuples(*(st.none() | VALUES[letter] for letter in letters[:common]))
    row = st.tuples(*(st.none() | VALUES[letter] for letter in letters[common:]))
    groups = data.draw(st.lists(st.builds(Group, shared, st.lists(row, max_size=8)), max_size=4))
    # The very objects once more.
    groups += groups[:1]
    whole = [row for group in groups for row in whole_rows(group)]
    assert encode(groups, letters) == b"".join(as_documented(each, letters) for each in whole)


class Far:
    """Any distance from the epoch: more than two datetimes ever have."""

    def __init__(self, distance: timedelta) -> None:
        self._distance = distance

    def __sub__(self, _: datetime) -> timedelta:
        return self._distance


@pytest.mark.parametrize(
    ("letter", "value", "error"),
    [
        ("i", 2**31, OverflowError),
        ("i", -(2**31) - 1, OverflowError),
        ("q", 2**63, OverflowError),
        ("i", 1.5, TypeError),
        ("d", "1.5", TypeError),
        ("s", 7, TypeError),
        ("s", "\ud800", UnicodeError),
        ("j", "{}", TypeError),
        ("u", "b0a1f2c4-5d6e-4f70-8a91-0b1c2d3e4f50", AttributeError),
        ("t", "2026-01-01", TypeError),
        ("t", 12, TypeError),
        ("t", float("nan"), OverflowError),
        ("t", 1e300, OverflowError),
        ("t", -9e12, OverflowError),
        ("t", Far(timedelta.max), OverflowError),
        ("t", Far(timedelta.min), OverflowError),
    ],
)
def test_what_a_column_cannot_hold_is_refused(letter: str, value: object, error: type[Exception]) -> None:
    for group in (((), [(value,)]), ((value,), [()])):
        with pytest.raises(error):
            encode([group], letter)


@pytest.mark.parametrize("rows", [[(1, 2)], [[1]], [None]])
def test_what_is_no_row_of_the_table_is_refused(rows: list[Any]) -> None:
    with pytest.raises(TypeError):
        encode([((), rows)], "i")


@pytest.mark.parametrize("group", [None, (), ((), ()), ((1,), []), ((1, 2), [()]), ([], [])])
def test_what_is_no_group_of_the_table_is_refused(group: Any) -> None:
    with pytest.raises(TypeError):
        encode([group], "")


def test_every_type_of_the_contract_is_known() -> None:
    for table in contract.TABLES:
        assert len(kinds(table)) == len(table.columns)
        nothing = ((), [(None,) * len(table.columns)])
        assert len(encode([nothing], kinds(table))) == 2 + 4 * len(table.columns)


PIDS = st.integers(0, 5) | st.integers(0, 2**31 - 1)
AMOUNTS = st.none() | st.integers(0, 2**63 - 1)
# Long ones, empty ones, and small and capital letters of other scripts that fold into ours (the Kelvin sign is a K).
PARTS = [
    *SUSPICIOUS,
    "--password=hunter2 ",
    " -p",
    "toKen",
    "\u212aey=x ",
    "Müller",
    "/usr/bin/x ",
    "p",
    "tok",
    "x" * 200,
]
LINES = st.lists(st.sampled_from(PARTS) | TEXTS, max_size=30).map("".join).map(lambda line: line + " ")
PROCESSES = {
    "pid": PIDS,
    "name": TEXTS | st.just("n" * 300),
    "memory": st.integers(0, 2**63 - 1),
    "cpu": st.none() | st.floats() | st.integers(-2, 200),
    "ppid": st.none() | PIDS,
    "path": st.none() | TEXTS | st.just("p" * 5000),
    "line": st.none() | st.just("") | LINES | LINES.map(str.upper) | LINES.map(lambda line: line * 20),
    "read": AMOUNTS,
    "written": AMOUNTS,
    "status": TEXTS | st.sampled_from(["Run", "Sleep", "s" * 60]),
    "start": st.none() | st.floats() | st.just("2026-11-22T10:00:00Z") | TEXTS,
}


def entries(wanted: type[ProcessD1 | ProcessD2]) -> st.SearchStrategy[list[Any]]:
    process = st.tuples(*PROCESSES.values()).map(lambda values: cast(Callable[..., Any], wanted)(*values))
    return st.lists(process, max_size=6)


@given(entries(ProcessD1), entries(ProcessD2), st.sampled_from(["redacted", "full", "off"]))
def test_rows_of_processes_are_those_that_python_makes(
    d1: list[ProcessD1], d2: list[ProcessD2], command_lines: CommandLines
) -> None:
    made = []
    for make_rows in (guestd_rows.process_rows, make_rows_in_python):
        adjustments: list[str] = []
        rows = process_rows(d1, d2, command_lines, adjustments, make_rows)
        made.append(repr((rows, adjustments)))
    assert made[0] == made[1]


def test_a_process_that_python_could_not_make_a_row_of_is_the_same_error() -> None:
    with pytest.raises(AttributeError):
        process_rows([cast(ProcessD1, object())], [], "off", [], guestd_rows.process_rows)


@pytest.mark.parametrize(
    "step",
    [None, (), (1,), ("fold",), ("cut",), ("cut", "9"), ("map", 9), ("redact", 9, ("é",), len), ("time", None, len)],
)
def test_a_step_that_is_not_known_is_refused(step: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        guestd_rows.process_rows({}, [], 0, ("id",), (step,))


def test_rows_are_made_of_the_columns_that_are_asked_for() -> None:
    made: list[dict[int, Values]] = []
    for make_rows in (guestd_rows.process_rows, make_rows_in_python):
        rows: dict[int, Values] = {}
        make_rows(rows, [ProcessD2(7, "seven", 0)], 1, ("name", "pid"), (("cut", 3), KEEP))
        made.append(rows)
    assert made == [{7: ("sev", 7)}] * 2
