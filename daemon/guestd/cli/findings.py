"""Output of `guestd doctor` and `guestd check`: one finding a line, with its fix."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from guestd.cli.terminal import BAD, DOUBTFUL, GOOD, make_console, print_json, print_table
from guestd.core.text import escape_controls
from guestd.doctor import Finding

_COLOURS = {"ok": GOOD, "warning": DOUBTFUL, "fault": BAD}


def print_findings(findings: Iterable[Finding], *, is_json: bool) -> None:
    """Print findings as a table, or as JSON."""
    if is_json:
        print_json(list(findings))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True, min_width=len("warning"))
    table.add_column(no_wrap=True, min_width=len("configuration"))
    table.add_column(overflow="fold")
    for finding in findings:
        fix = f"  -> {finding.fix}" if finding.fix else ""
        # A finding may quote a guest's text: escaped, and as Text, in which rich finds no markup.
        text = Text(escape_controls(finding.text) + escape_controls(fix))
        table.add_row(Text(finding.level, _COLOURS[finding.level]), Text(finding.subject), text)
    print_table(make_console(), table)
