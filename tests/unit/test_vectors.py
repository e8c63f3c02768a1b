"""The wire vectors: what guests write, byte for byte, and the rows that come of it (vectors/README.md)."""

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from guestd.core.errors import BadFrame
from guestd.rows.normalise import GuestHistory
from guestd.wire.decode import decode
from guestd.wire.framing import Framer, Oversize
from guestd.wire.line import FRAGMENT, Line, read_lines
from gueststore import contract
from support.rows import TABLES, by_table, named, rows_of

LIMIT_BYTES = 16 * 1024
VECTORS = Path(__file__).with_name("vectors")
NAMES = sorted(path.stem for path in VECTORS.glob("*.wire"))


def expected_value(name: str, value: object, table: contract.Table) -> object:
    is_time = table.types[name] == "timestamptz" and isinstance(value, str)
    return datetime.fromisoformat(str(value)) if is_time else value


def messages_of(line: bytes | Oversize) -> Sequence[Line | Oversize]:
    return [line] if isinstance(line, Oversize) else read_lines(line)


def outcome_of(line: Line | Oversize, expected: dict[str, Any], history: GuestHistory) -> dict[str, Any]:
    """What became of a message, as far as the vector says something of it."""
    if isinstance(line, Oversize):
        return {"oversize": line.size_bytes}
    if line.kind == FRAGMENT:
        return {"fragment": True}
    assert line.payload is not None
    try:
        decoded = decode(line.payload)
    except BadFrame as exc:
        return {"bad_frame": exc.reason}
    tables = by_table(rows := rows_of(line.payload, history))
    found: dict[str, Any] = {"rows": {}}
    for name, wanted in expected.get("rows", {}).items():
        rows_found = [named(TABLES[name], row) for row in tables[name]]
        columns = [list(row) for row in wanted] + [[]] * (len(rows_found) - len(wanted))
        found["rows"][name] = [
            {column: row[column] for column in some} for row, some in zip(rows_found, columns, strict=False)
        ]
    found |= {"adjustments": rows.adjustments, "repairs": decoded.repairs}
    return found | {"refusals": [[refusal.table, refusal.key] for refusal in decoded.refusals]}


def wanted_of(expected: dict[str, Any]) -> dict[str, Any]:
    if "rows" not in expected:
        return expected
    rows = {
        name: [{column: expected_value(column, value, TABLES[name]) for column, value in row.items()} for row in some]
        for name, some in expected["rows"].items()
    }
    return {"adjustments": [], "repairs": [], "refusals": [], **expected, "rows": rows}


def expectations(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((VECTORS / f"{name}.json").read_text())
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("chunk_bytes", [1_000_000, 1])
def test_every_message_of_the_vectors_becomes_what_they_say(name: str, chunk_bytes: int) -> None:
    wire, framer, history = (VECTORS / f"{name}.wire").read_bytes(), Framer(LIMIT_BYTES), GuestHistory()
    chunks = (wire[place : place + chunk_bytes] for place in range(0, len(wire), chunk_bytes))
    lines = [line for chunk in chunks for each in framer.feed(chunk) for line in messages_of(each)]
    expected = expectations(name)
    assert len(lines) == len(expected)
    for line, wanted in zip(lines, expected, strict=True):
        assert outcome_of(line, wanted, history) == wanted_of(wanted)


def test_the_vectors_of_both_dialects_name_every_column_of_every_table() -> None:
    named_columns: dict[str, set[str]] = {name: set() for name in TABLES}
    for dialect in ("d1", "d2"):
        for name, rows in expectations(dialect)[0]["rows"].items():
            named_columns[name] |= {column for row in rows for column in row}
    assert named_columns == {name: set(table.types) for name, table in TABLES.items()}


@pytest.mark.parametrize("name", ["d0", "d1", "d2", "d3"])
def test_a_message_tells_its_dialect(name: str) -> None:
    line = VECTORS.joinpath(f"{name}.wire").read_bytes().splitlines()[0]
    assert decode(line).dialect == name.upper()
