"""Write docs/reliability.md's table from the records of the fault tests: python -m tools.docs.reliability RECORDS."""

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/reliability.md"
MARK = "<!-- what follows is written by ./dev faults -->\n"
COLUMNS = {
    "rounds": "rounds",
    "sent": "sent",
    "stored": "stored",
    "stored_in_part": "in part",
    "quarantined": "quarantined",
    "refused": "refused",
    "sender_gap": "sender's gap",
    "destroyed": "destroyed",
    "duplicated": "duplicated",
    "lost": "lost",
}
FILTER_COLUMNS = ("rounds", "actions", "kills", "wrong")


def main() -> None:
    """Replace the table; keep the text above it."""
    records = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
    head, mark, _ = DOCUMENT.read_text().partition(MARK)
    DOCUMENT.write_text(head + mark + "\n" + table(records))
    print(f"{len(records)} faults: written to {DOCUMENT.relative_to(Path.cwd())}")


def table(records: list[dict[str, Any]]) -> str:
    """One row for each fault, and where and when they were run."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    today = time.strftime("%Y-%m-%d", time.gmtime())
    machine = f"{os.cpu_count()} cores {platform.machine()}, Python {platform.python_version()}"
    lines = [
        f"{today}, commit {commit.stdout.strip()}, {machine}.",
        "",
        "| fault | " + " | ".join(COLUMNS.values()) + " |",
        "|---|" + "---:|" * len(COLUMNS),
    ]
    for record in sorted((each for each in records if "sent" in each), key=_place):
        note = f" ({record['note']})" if record["note"] else ""
        fault = f"[{record['fault']}](../{record['test'].partition('::')[0]}){note}"
        lines.append(f"| {fault} | " + " | ".join(f"{record[column]:,}" for column in COLUMNS) + " |")
    return "\n".join(lines + filters_table([each for each in records if "actions" in each])) + "\n"


def filters_table(records: list[dict[str, Any]]) -> list[str]:
    """One row for each fault of filters; `wrong` counts the rounds after which libvirt differed from the rows."""
    if not records:
        return []
    lines = ["", f"| fault of filters | {' | '.join(FILTER_COLUMNS)} |", "|---|" + "---:|" * len(FILTER_COLUMNS)]
    for record in sorted(records, key=_place):
        fault = f"[{record['fault']}](../{record['test'].partition('::')[0]})"
        lines.append(f"| {fault} | " + " | ".join(f"{record[column]:,}" for column in FILTER_COLUMNS) + " |")
    return lines


def _place(record: dict[str, Any]) -> tuple[str, str]:
    return record["test"], record["fault"]


if __name__ == "__main__":
    main()
