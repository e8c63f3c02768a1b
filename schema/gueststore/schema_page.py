"""Draws docs/schema.md from a catalogue: the relations as a picture, then every table with its columns and units."""

import re
from collections.abc import Iterator

from gueststore.catalogue import Catalogue

_FOREIGN_KEY = re.compile(
    r'FOREIGN KEY \("?(?P<column>\w+)"?\) REFERENCES "(?P<target>\w+)"\(id\)'
    r" ON UPDATE CASCADE ON DELETE (?P<rule>[A-Z ]+)"
)

_HEAD = """\
# The schema

Drawn from the catalogue of a freshly migrated database by `tools/docs/schema_pictures.py`; do not edit, change the
migrations. `gueststore check` compares a live database with the same catalogue. Where it differs from the schema
document, docs/decisions/0018-deviations-from-the-schema-document.md says how and why.

"""


def render_schema_page(catalogue: Catalogue) -> str:
    """Return the text of docs/schema.md."""
    tables = [name for kind, name in catalogue if kind == "table"]
    parts = [_HEAD, *_relations(catalogue), "\n## Tables\n"]
    for table in tables:
        parts.extend(_table(catalogue, table))
    parts.append("\n## Views\n\n")
    parts.extend(f"* **{name}**: {catalogue['comment', name]}\n" for kind, name in catalogue if kind == "view")
    parts.append("\n## Functions\n\n")
    parts.extend(f"* `{name}`: {text}\n" for (kind, name), text in catalogue.items() if kind == "function comment")
    return "".join(parts)


def _relations(catalogue: Catalogue) -> Iterator[str]:
    """The foreign keys, and the hypertables' links that a trigger keeps, as a Mermaid diagram."""
    yield "## Relations\n\nA dotted line has no foreign key: the writer and a trigger keep it.\n\n"
    yield "```mermaid\nerDiagram\n"
    for kind, name in catalogue:
        found = _FOREIGN_KEY.search(catalogue[kind, name]) if kind == "constraint" else None
        if found:
            source = name.partition(".")[0]
            many = "o|" if _is_unique(catalogue, source, found["column"]) else "o{"
            yield f'    {found["target"]} ||--{many} {source} : "{found["column"]}: {found["rule"].lower()}"\n'
    for kind, name in catalogue:
        if kind == "hypertable":
            yield f'    Machine ||..o{{ {name} : "machineId: cascade"\n'
    yield "```\n"


def _is_unique(catalogue: Catalogue, table: str, column: str) -> bool:
    return catalogue.get(("constraint", f"{table}.{table}_{column}_key")) is not None


def _table(catalogue: Catalogue, table: str) -> Iterator[str]:
    yield f"\n### {table}\n\n{catalogue['comment', table]}\n\n| column | type | meaning |\n|---|---|---|\n"
    for name, definition in _of(catalogue, "column", table):
        meaning = catalogue.get(("comment", f"{table}.{name}"), "")
        yield f"| {name} | {_readable(definition)} | {meaning} |\n"
    facts = [
        *(f"{text}\n" for text in [catalogue.get(("hypertable", table), "")] if text),
        *(
            f"{catalogue.get(('constraint comment', f'{table}.{name}')) or _readable(definition)}\n"
            for name, definition in _of(catalogue, "constraint", table)
        ),
        *(f"index {_readable(text.partition(' USING btree ')[2])}\n" for _, text in _of(catalogue, "index", table)),
    ]
    if facts:
        yield "\n"
        yield from (f"* {fact}" for fact in facts)


def _of(catalogue: Catalogue, kind: str, table: str) -> Iterator[tuple[str, str]]:
    """(name without the table, definition) of a table's objects of one kind."""
    for (found, name), definition in catalogue.items():
        if found == kind and name.startswith(f"{table}."):
            yield name.removeprefix(f"{table}."), definition


def _readable(definition: str) -> str:
    """Shorten PostgreSQL's own words where nothing is lost."""
    short = definition.replace(" with time zone", "").replace("timestamp(3)", "timestamptz(3)")
    for long, plain in (
        ("CURRENT_TIMESTAMP", "now"),
        ("::text[]", ""),
        ("::text", ""),
        ("::jsonb", ""),
        ('"', ""),
        ("|", "\\|"),
    ):
        short = short.replace(long, plain)
    return short
