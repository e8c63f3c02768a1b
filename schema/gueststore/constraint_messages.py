"""Messages for people about rows that a constraint of the store refused.

The message of a CHECK is its comment in the migrations, found in the packaged catalogue; the messages of other
constraints name the columns that conflict.
"""

import re

import psycopg
from psycopg import errors

from gueststore import catalogue
from gueststore.database import format_error

# A chunk's copy of a constraint: 1_1_SystemMetrics_pkey, or 1_SystemMetrics_pkey in newer versions of TimescaleDB.
_CHUNK_PREFIX = re.compile(r"^\d+_(\d+_)?")
_KEY = re.compile(r"\((?P<columns>[^=]+)\)=\((?P<values>.*)\)")


def explain_refusal(error: psycopg.Error) -> str:
    """Return one or two sentences: the refused value, its table and column, and the reason."""
    diagnostic = error.diag
    table = diagnostic.table_name or "the table"
    name = _CHUNK_PREFIX.sub("", diagnostic.constraint_name or "")
    if isinstance(error, errors.CheckViolation):
        return _check(name) or format_error(error)
    if isinstance(error, errors.NotNullViolation):
        # For the column that partitions a hypertable, only the text of the error names the column.
        quoted = re.search(r'column "([^"]+)"', diagnostic.message_primary or "")
        return f"{_owner(table)}.{diagnostic.column_name or (quoted and quoted[1])} needs a value."
    key = _KEY.search(diagnostic.message_detail or "")
    if key is None:
        return format_error(error)
    columns, values = key["columns"].replace('"', ""), key["values"]
    if isinstance(error, errors.UniqueViolation):
        return f"{_owner_of(name) or table} already has a row with {columns} {values}."
    if isinstance(error, errors.ForeignKeyViolation | errors.RestrictViolation):
        return _foreign_key(error, name, columns, values)
    return format_error(error)


def _check(name: str) -> str | None:
    """The table and the comment of a CHECK."""
    for (kind, full), text in catalogue.load_catalogue().items():
        table, _, constraint = full.partition(".")
        if kind == "constraint comment" and constraint == name:
            return f"{table}: {text}"
    return None


def _foreign_key(error: psycopg.Error, name: str, columns: str, values: str) -> str:
    definition = catalogue.load_catalogue().get(("constraint", f"{_owner_of(name)}.{name}"), "")
    source = re.search(r'FOREIGN KEY \("?(\w+)"?\) REFERENCES "(\w+)"', definition)
    if source is None:
        return format_error(error)
    if columns != source[1]:  # the key of the other table: a row is deleted that others refer to
        return f"{source[2]} {values} is still in use: {_owner_of(name)}.{source[1]} refers to it."
    return f"{_owner_of(name)}.{columns} refers to a {source[2]} {values} that does not exist."


def _owner_of(constraint: str) -> str | None:
    """The table that a constraint of the schema belongs to."""
    for kind, full in catalogue.load_catalogue():
        if kind == "constraint" and full.partition(".")[2] == constraint:
            return full.partition(".")[0]
    return None


def _owner(relation: str) -> str:
    """The table's name for people; a chunk has none."""
    return "the sample" if relation.startswith("_hyper_") else relation
