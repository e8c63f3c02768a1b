"""Consoles, tables, lines and JSON of the command line: coloured on a terminal, plain text anywhere else.

Every verb prints through this module and nothing else (tests/meta/test_output.py), for what it prints may be a guest's
text: cells, lines and errors are escaped here. rich decides on colours by the stream, NO_COLOR and TERM=dumb; its
markup is off, so that text is never read as a style.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

import msgspec
from rich.cells import cell_len
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table as RichTable
from rich.text import Text

from guestd.core.log import format_error_line
from gueststore import command_line
from gueststore.text import escape

# Of a stream that is no terminal: whatever reads it wants a row on one line, however long.
PIPED_COLUMNS = 100_000
# The last column of a table that is too wide for a terminal is folded, to no less than this.
FOLDED_COLUMNS = 20
# The colours of a level, a result or a status.
GOOD, DOUBTFUL, BAD = "green", "yellow", "red"

Part = str | tuple[str, str]
"""A text, or a text and its style."""


class Table(RichTable):
    """A table without lines, whose cells are escaped."""

    def add_row(self, *cells: Part, **options: Any) -> None:  # type: ignore[override]  # no cell but text
        """Add a row of texts."""
        super().add_row(*map(_make_text, cells), **options)


class _Stdout:
    """stdout as rich sees it: what it writes is written at once, or raises OutputLost."""

    def __init__(self) -> None:
        # rich's live display takes the place of sys.stdout and prints what is written there through its console.
        self._stream = sys.stdout
        self.encoding = self._stream.encoding

    def write(self, text: str) -> None:
        command_line.write(text, self._stream)

    def flush(self) -> None:
        """Nothing is held back."""


def make_console(stream: TextIO | None = None) -> Console:
    """A console on a stream, stdout by default."""
    is_terminal = (stream or sys.stdout).isatty()
    return Console(
        file=stream or cast(TextIO, _Stdout()),
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
    # rich pads every row to the width of the table.
    lines = (line if console.is_terminal else line.rstrip() for line in captured.get().splitlines())
    console.file.write("".join(f"{' ' * indent}{line}\n" for line in lines))


def print_line(console: Console, *parts: Part) -> None:
    """Print one line of parts; a long line is left to the terminal to wrap."""
    console.print(Text.assemble(*map(_make_text, parts)), soft_wrap=True)


@contextmanager
def redraw(console: Console) -> Iterator[Callable[[str, Table], None]]:
    """A display of a title and a table that is redrawn at each call, for the duration of the context."""
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        yield lambda title, table: live.update(Group(_make_text(title), table), refresh=True)


def print_json(value: Any) -> None:
    """Print one JSON value on one line of stdout, for `--json`; all that is not ASCII is escaped."""
    command_line.print_json(msgspec.to_builtins(value))


def print_error(text: str, *lines: str) -> None:
    """Print an error on stderr with the program's name, and a list below it."""
    command_line.print_error(format_error_line("guestd"), text, *lines)


def _make_text(part: Part) -> Text:
    text, style = part if isinstance(part, tuple) else (part, "")
    return Text(escape(text), style)
