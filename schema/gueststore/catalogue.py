"""The schema as a value, read from a live database or from this package, and the differences between two schemas.

catalogue.json describes the schema that the migrations create. `tools/docs/schema_pictures.py` writes it from a fresh
database, and a test fails when it is out of date. So a database is checked without a second one to compare it with.
"""

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from gueststore.database import Connection, connect, describe
from gueststore.errors import StoreError
from gueststore.queries import query

# (kind, name) to definition, such as ("column", "Machine.name") to "text NOT NULL".
Catalogue = Mapping[tuple[str, str], str]

# Kinds of objects that belong to no other object. Unknown ones are ignored: other programs may share the database.
_TOP_LEVEL_KINDS = frozenset({"table", "view", "hypertable", "function"})


def read_catalogue(connection: Connection) -> Catalogue:
    """Return the catalogue of a live database, in reading order."""
    found = connection.execute(query("schema/read_catalogue")).fetchall()
    return {(str(kind), str(name)): str(definition) for kind, name, definition in found}


@cache
def load_catalogue() -> Catalogue:
    """Return the catalogue that the packaged migrations create, in reading order."""
    return loads((files("gueststore") / "catalogue.json").read_text("utf-8"))


def dumps(catalogue: Catalogue) -> str:
    """Write a catalogue as JSON: kind, then name, then definition."""
    by_kind: dict[str, dict[str, str]] = {}
    for (kind, name), definition in catalogue.items():
        by_kind.setdefault(kind, {})[name] = definition
    return json.dumps(by_kind, indent=1, ensure_ascii=False) + "\n"


def loads(text: str) -> Catalogue:
    """Parse the JSON that `dumps` writes."""
    by_kind: dict[str, dict[str, str]] = json.loads(text)
    return {(kind, name): definition for kind, named in by_kind.items() for name, definition in named.items()}


def find_differences(expected: Catalogue, live: Catalogue) -> list[str]:
    """Return every difference of a live database from the expected schema, one sentence each.

    Objects outside the expected tables, views and functions belong to other programs and are ignored.
    """
    missing = [f"{kind} {name} is missing" for kind, name in expected.keys() - live.keys()]
    changed = [
        f"{kind} {name} is `{live[kind, name]}` and should be `{definition}`"
        for (kind, name), definition in expected.items()
        if live.get((kind, name), definition) != definition
    ]
    ours = {name for kind, name in expected if kind in _TOP_LEVEL_KINDS}
    added = [
        f"{kind} {name} should not be there: `{live[kind, name]}`"
        for kind, name in live.keys() - expected.keys()
        if kind not in _TOP_LEVEL_KINDS and _owner(kind, name) in ours
    ]
    return sorted(missing) + changed + sorted(added)


def find_drift(dsn: str) -> list[str]:
    """Compare a live database with the packaged catalogue; returns the result of `find_differences`.

    StoreError for a database that was never migrated: every object would be missing.
    """
    with connect(dsn) as connection:
        migrated = connection.execute("SELECT to_regclass('public.\"SchemaMigration\"') IS NOT NULL").fetchone()
        if migrated != (True,):
            raise StoreError(f"{describe(dsn)} was never migrated: run `gueststore migrate`")
        return find_differences(load_catalogue(), read_catalogue(connection))


def _owner(kind: str, name: str) -> str:
    """The table, view or function that an object belongs to."""
    if kind == "privilege":
        name = name.partition(" on ")[2]
    return name.partition(".")[0]
