"""The schema as a value, read off a live database or off this package, and what differs between two of them.

catalogue.json holds what the migrations make, as `tools/docs/schema_pictures.py` found it in a fresh database; a test
keeps it true. So a database can be checked without a second one to compare it with.
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

# What is only looked at when it is ours: other people may keep things of their own beside ours.
_STANDS_ALONE = frozenset({"table", "view", "hypertable", "function"})


def read_catalogue(connection: Connection) -> Catalogue:
    """Return the catalogue of a live database, in reading order."""
    found = connection.execute(query("schema/read_catalogue")).fetchall()
    return {(str(kind), str(name)): str(definition) for kind, name, definition in found}


@cache
def load_catalogue() -> Catalogue:
    """Return the catalogue that the packaged migrations make, in reading order."""
    return loads((files("gueststore") / "catalogue.json").read_text("utf-8"))


def dumps(catalogue: Catalogue) -> str:
    """Write a catalogue as JSON: kind, then name, then definition."""
    by_kind: dict[str, dict[str, str]] = {}
    for (kind, name), definition in catalogue.items():
        by_kind.setdefault(kind, {})[name] = definition
    return json.dumps(by_kind, indent=1, ensure_ascii=False) + "\n"


def loads(text: str) -> Catalogue:
    """Read what `dumps` wrote."""
    by_kind: dict[str, dict[str, str]] = json.loads(text)
    return {(kind, name): definition for kind, named in by_kind.items() for name, definition in named.items()}


def find_differences(expected: Catalogue, live: Catalogue) -> list[str]:
    """Name every drift of a live database, one sentence each; an empty list when there is none.

    Objects that belong to none of the expected tables, views and functions are somebody else's and not drift.
    """
    missing = [f"{kind} {name} is missing" for kind, name in expected.keys() - live.keys()]
    changed = [
        f"{kind} {name} is `{live[kind, name]}` and should be `{definition}`"
        for (kind, name), definition in expected.items()
        if live.get((kind, name), definition) != definition
    ]
    ours = {name for kind, name in expected if kind in _STANDS_ALONE}
    added = [
        f"{kind} {name} should not be there: `{live[kind, name]}`"
        for kind, name in live.keys() - expected.keys()
        if kind not in _STANDS_ALONE and _owner(kind, name) in ours
    ]
    return sorted(missing) + changed + sorted(added)


def find_drift(dsn: str) -> list[str]:
    """Compare a live database with the packaged catalogue; returns what `differences` says.

    StoreError for a database that was never migrated, which would differ in everything.
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
