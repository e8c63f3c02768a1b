"""The table of docs/reliability.md, from the records of the fault tests: python -m tools.reliability RECORDS."""

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

DOCUMENT = Path(__file__).resolve().parent.parent / "docs/reliability.md"
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


def main() -> None:
    """Keep the document's head, write the table anew."""
    records = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
    head, mark, _ = DOCUMENT.read_text().partition(MARK)
    DOCUMENT.write_text(head + mark + "\n" + table(records))
    print(f"{len(records)} faults: written to {DOCUMENT.relative_to(Path.cwd())}")


def table(records: list[dict[str, Any]]) -> str:
    """A row a fault, and where and when they were made."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    today = time.strftime("%Y-%m-%d", time.gmtime())
    machine = f"{os.cpu_count()} cores {platform.machine()}, Python {platform.python_version()}"
    lines = [
        f"{today}, commit {commit.stdout.strip()}, {machine}.",
        "",
        "| fault | " + " | ".join(COLUMNS.values()) + " |",
        "|---|" + "---:|" * len(COLUMNS),
    ]
    for record in sorted(records, key=lambda record: (record["test"], record["fault"])):
        note = f" ({record['note']})" if record["note"] else ""
        fault = f"[{record['fault']}](../{record['test'].partition('::')[0]}){note}"
        lines.append(f"| {fault} | " + " | ".join(f"{record[column]:,}" for column in COLUMNS) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
