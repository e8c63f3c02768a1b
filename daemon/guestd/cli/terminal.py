"""Consoles, tables and JSON of the command line: coloured on a terminal, plain text anywhere else.

rich decides by the stream, NO_COLOR and TERM=dumb. Markup is off: text from a guest is never read as a style. Control
characters are not rich's business: pass such text through `core.text.escape_to_ascii` or `escape_controls` first.
"""

from __future__ import annotations

import json
import sys
from typing import Any, TextIO

import msgspec
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

# Of a stream that is no terminal: whatever reads it wants a row on one line, however long.
PIPED_COLUMNS = 100_000
# The last column of a table that is too wide for a terminal is folded, to no less than this.
FOLDED_COLUMNS = 20
# The colours of a level, a result or a status.
GOOD, DOUBTFUL, BAD = "green", "yellow", "red"


def make_console(stream: TextIO | None = None) -> Console:
    """A console on a stream, stdout by default."""
    stream = stream or sys.stdout
    is_terminal = stream.isatty()
    return Console(
        file=stream,
        force_terminal=is_terminal,
        width=None if is_terminal else PIPED_COLUMNS,
        markup=False,
        emoji=False,
        highlight=False,
    )


def make_table(*columns: str, numbers: tuple[str, ...] = ()) -> Table:
    """An empty table without lines; the columns that are named in `numbers` are aligned to the right.

    Only the last column is ever folded: put free text there.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        is_last = column == columns[-1]
        table.add_column(column, justify="right" if column in numbers else "left", no_wrap=not is_last, overflow="fold")
    return table


def print_table(console: Console, table: Table, *, indent: int = 0) -> None:
    """Print a table, each line after `indent` spaces.

    No id or number is cut: the rows of a table that is too wide go on in the terminal's next line.
    """
    whole = console.measure(table, options=console.options.update(max_width=PIPED_COLUMNS)).maximum
    if whole > console.width:
        last = table.columns[-1]
        others = whole - max(cell_len(str(cell)) for cell in (last.header, *last.cells))
        last.width = max(FOLDED_COLUMNS, console.width - others)
        table.width = others + last.width
    with console.capture() as captured:
        console.print(table, crop=False)
    for line in captured.get().splitlines():
        # rich pads every row to the width of the table.
        console.file.write(f"{' ' * indent}{line if console.is_terminal else line.rstrip()}\n")
    console.file.flush()


def print_line(console: Console, *parts: str | tuple[str, str]) -> None:
    """Print one line of texts and of (text, style); a long line is left to the terminal to wrap."""
    console.print(Text.assemble(*parts), soft_wrap=True)


def print_json(value: Any) -> None:
    """Print one JSON value on one line of stdout, for `--json`; all that is not ASCII is escaped."""
    print(json.dumps(msgspec.to_builtins(value), separators=(",", ":")), flush=True)


def print_error(text: str) -> None:
    """Print an error on stderr with the program's name."""
    print(f"guestd: {text}", file=sys.stderr)
