"""The SQL scripts of this package as values: text, order and checksum. No database access."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files
from importlib.resources.abc import Traversable

from gueststore.column_lists import expand
from gueststore.errors import StoreError

_FILE_NAME = re.compile(r"(?P<number>\d{4})_(?P<name>[a-z0-9_]+)\.sql")
_HEADER = re.compile(r"^-- (?P<key>compat|no-transaction): (?P<value>.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of sql/migrations: runs once, in the order of its number, and is never edited."""

    number: int
    name: str
    body: str
    compat: int
    transactional: bool

    @property
    def checksum(self) -> str:
        """SHA-256 of the body, hex."""
        return compute_checksum(self.body)

    def __str__(self) -> str:
        return f"{self.number:04} {self.name}"


@dataclass(frozen=True, slots=True)
class Repeatable:
    """One file of sql/repeatable: replaces the objects that it defines; runs again whenever it changes."""

    name: str
    body: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the body, hex."""
        return compute_checksum(self.body)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Scripts:
    """Every script that creates a schema: the bootstrap, the migrations by number, the repeatables by name.

    `community` holds repeatables that only databases with TimescaleDB's Community edition run.
    """

    bootstrap: str
    migrations: tuple[Migration, ...]
    repeatables: tuple[Repeatable, ...]
    community: tuple[Repeatable, ...] = ()

    def repeatables_for(self, licence: str) -> tuple[Repeatable, ...]:
        """Return the repeatables for a database with this `timescaledb.license`, in the order in which they run."""
        return self.repeatables + (self.community if licence == "timescale" else ())


@cache
def load_scripts() -> Scripts:
    """Return the scripts that this package ships."""
    sql = files("gueststore") / "sql"
    return Scripts(
        bootstrap=(sql / "bootstrap.sql").read_text("utf-8"),
        migrations=sort_migrations(
            parse_migration(f.name, f.read_text("utf-8")) for f in _sql_files(sql / "migrations")
        ),
        repeatables=tuple(
            Repeatable(f.name.removesuffix(".sql"), expand(f.read_text("utf-8")))
            for f in _sql_files(sql / "repeatable")
        ),
        community=tuple(
            Repeatable(f"community/{f.name.removesuffix('.sql')}", f.read_text("utf-8"))
            for f in _sql_files(sql / "community")
        ),
    )


def parse_migration(file_name: str, body: str) -> Migration:
    """Read a migration's number and name from its file name and the rest from its header comments.

    `-- compat: N` is required: the oldest schema version whose programs still work afterwards.
    `-- no-transaction: <reason>` marks one idempotent statement that cannot run in a transaction.
    StoreError names the missing part.
    """
    match = _FILE_NAME.fullmatch(file_name)
    if match is None:
        raise StoreError(f"{file_name}: a migration is named like 0007_add_something.sql")
    header = {found["key"]: found["value"].strip() for found in _HEADER.finditer(body)}
    if not header.get("compat", "").isdecimal():
        raise StoreError(f"{file_name}: the header `-- compat: <number>` is missing")
    return Migration(
        number=int(match["number"]),
        name=match["name"],
        body=body,
        compat=int(header["compat"]),
        transactional="no-transaction" not in header,
    )


def sort_migrations(migrations: Iterable[Migration]) -> tuple[Migration, ...]:
    """Sort by number; StoreError when the numbers are not 1, 2, 3 ... without gap or duplicate."""
    ordered = tuple(sorted(migrations, key=lambda migration: migration.number))
    for expected, migration in enumerate(ordered, start=1):
        if migration.number != expected:
            raise StoreError(
                f"migration {migration} should have number {expected:04}: numbers have neither gaps nor duplicates"
            )
    return ordered


def compute_checksum(body: str) -> str:
    """SHA-256 of a script, hex."""
    return sha256(body.encode()).hexdigest()


def _sql_files(folder: Traversable) -> list[Traversable]:
    found = [f for f in folder.iterdir() if f.name.endswith(".sql")]
    return sorted(found, key=lambda f: f.name)
