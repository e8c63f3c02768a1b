"""Retired words do not come back: the standard terms are in docs/glossary.md.

Migrations are never edited, and the changelog quotes old names; neither is searched.
"""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SEARCHED = ("README.md", "CONTRIBUTING.md", "daemon", "deploy", "dev", "docs", "schema", "sql", "tools")
SKIPPED = {"sql/migrations"}
TEXT_SUFFIXES = {
    "",
    ".c",
    ".conf",
    ".json",
    ".md",
    ".prisma",
    ".py",
    ".pyi",
    ".service",
    ".sh",
    ".sql",
    ".toml",
    ".yml",
}
# retired: standard
RETIRED = {
    r"books": "ledger, offsets; (keeps the books) collects metrics",
    r"brings? about": "reconciles",
    r"look(?:s|ing)? around": "snapshot, observe",
    r"wish(?:es|ed)?": "desired state",
    r"umbrellas?": "machine filter",
    r"laying|laid": "ordering, installed",
    r"mend(?:s|ed|ing)?": "repair",
    r"set(?:s|ting)? aside|set \w+ aside": "quarantine",
    r"ballast": "reserve file",
    r"rosters?": "machine registry",
    r"(?:wait|want|need)s? (?:for )?a person": "needs manual action",
    r"breathes?": "yield to the event loop",
    r"a look is needed|no look any more": "issue raised, issue resolved",
    r"machines are kept": "VM reconciler started",
    r"not heard of": "LISTEN lost",
    r"does not move any more": "no progress for N s; watchdog ping withheld",
    r"who are you\?": "Unauthorized",
    r"guests are read, and": "ready",
    r"can(?:not)? be worked with": "validate the configuration",
    r"between two looks": "refresh interval",
    r"in the long run": "sustained rate",
    r"at so many": "size limit",
    r"as why": "as exc",
}
# Names in the database's schema, which does not change.
IN_THE_SCHEMA = re.compile(r"guestd_wish\b|guestd_announce_wishes|Machine_announce_wish")
# (file, words): why they stay.
SCHEMA = "a column's comment: the migrated schema does not change"
DISK = "the file's name on disk: spools of earlier versions have it"
ALLOWED = {
    ("docs/schema.md", "needs a person"): SCHEMA,
    ("docs/schema.md", "brings about"): SCHEMA,
    ("docs/schema.md", "wish"): SCHEMA,
    ("schema/gueststore/catalogue.json", "needs a person"): SCHEMA,
    ("schema/gueststore/catalogue.json", "brings about"): SCHEMA,
    ("schema/gueststore/catalogue.json", "wish"): SCHEMA,
    ("schema/schema.prisma", "needs a person"): SCHEMA,
    ("schema/schema.prisma", "brings about"): SCHEMA,
    ("schema/schema.prisma", "wish"): SCHEMA,
    ("daemon/guestd/spool/file.py", "ballast"): DISK,
    ("docs/failure-modes.md", "ballast"): DISK,
}


def searched_files() -> Iterator[Path]:
    """Text files that people read, or whose output they read."""
    for name in SEARCHED:
        place = ROOT / name
        for file in [place] if place.is_file() else sorted(place.rglob("*")):
            skipped = any(str(file.relative_to(ROOT)).startswith(f"{each}/") for each in SKIPPED)
            if file.is_file() and file.suffix in TEXT_SUFFIXES and not skipped:
                yield file


def retired_words() -> Iterator[tuple[str, str, str]]:
    """(file and line, words, standard terms) of each retired word."""
    patterns = {re.compile(rf"(?<![a-z])(?:{words})(?![a-z])", re.I): standard for words, standard in RETIRED.items()}
    for file in searched_files():
        name = str(file.relative_to(ROOT))
        for number, line in enumerate(file.read_text(errors="replace").splitlines(), 1):
            for pattern, standard in patterns.items():
                for found in pattern.findall(IN_THE_SCHEMA.sub("", line)):
                    if (name, found.lower()) not in ALLOWED:
                        yield f"{name}:{number}", found, standard


def test_no_retired_word_is_left() -> None:
    found = [f"{place}: {words!r} is now: {standard}" for place, words, standard in retired_words()]
    assert found == []
