"""Writes the generated descriptions of the schema: schema/gueststore/catalogue.json and docs/schema.md.

`./dev pictures` runs it with GUESTD_DATABASE_DSN: it creates a scratch database on that server, migrates it, reads its
catalogue and drops it again.
"""

import os
import sys
import uuid
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from gueststore.catalogue import dumps, read_catalogue
from gueststore.migrations import migrate
from gueststore.schema_page import render_schema_page

HERE = Path(__file__).parents[2]


def main() -> None:
    """Write both files."""
    server = os.environ.get("GUESTD_DATABASE_DSN")
    if not server:
        sys.exit("set GUESTD_DATABASE_DSN to a server on which a scratch database may be created")
    name = f"guestd_picture_{uuid.uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            scratch = make_conninfo(server, dbname=name)
            migrate(scratch)
            with psycopg.connect(scratch) as inside:
                catalogue = read_catalogue(inside)
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
    (HERE / "schema/gueststore/catalogue.json").write_text(dumps(catalogue), encoding="utf-8")
    (HERE / "docs/schema.md").write_text(render_schema_page(catalogue), encoding="utf-8")


if __name__ == "__main__":
    main()
