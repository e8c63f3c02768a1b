"""The named queries of sql/queries, a folder for each caller; a file's header names its parameters and its result."""

from functools import cache
from importlib.resources import files

from gueststore.column_lists import expand


@cache
def query(name: str) -> bytes:
    """Return the text of sql/queries/<name>.sql, such as `ingest/lock_machines`, as psycopg takes it.

    FileNotFoundError when there is no such file.
    """
    file = files("gueststore") / "sql" / "queries" / f"{name}.sql"
    return expand(file.read_text("utf-8")).encode()
