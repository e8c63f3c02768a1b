"""Output of `guestd doctor` and `guestd check`: one finding a line, with its fix."""

from __future__ import annotations

from collections.abc import Iterable

from guestd.cli.terminal import BAD, DOUBTFUL, GOOD, make_console, make_table, print_json, print_table
from guestd.doctor import Finding

_COLOURS = {"ok": GOOD, "warning": DOUBTFUL, "fault": BAD}


def print_findings(findings: Iterable[Finding], *, is_json: bool) -> None:
    """Print findings as a table, or as JSON."""
    if is_json:
        print_json(list(findings))
        return
    table = make_table("level", "subject", "text")
    table.show_header = False
    table.columns[0].min_width, table.columns[1].min_width = len("warning"), len("configuration")
    for finding in findings:
        fix = f"  -> {finding.fix}" if finding.fix else ""
        table.add_row((finding.level, _COLOURS[finding.level]), finding.subject, finding.text + fix)
    print_table(make_console(), table)
