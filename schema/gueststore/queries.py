"""The named queries of sql/queries, one file each; a file's header says its parameters and its result."""

from functools import cache
from importlib.resources import files


@cache
def query(name: str) -> bytes:
    """Return the text of sql/queries/<name>.sql as psycopg takes it; FileNotFoundError when there is none."""
    return (files("gueststore") / "sql" / "queries" / f"{name}.sql").read_bytes()
