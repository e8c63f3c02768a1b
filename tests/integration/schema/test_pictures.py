"""The generated descriptions of the schema are up to date with the migrations."""

from pathlib import Path

from gueststore.catalogue import dumps, find_differences, load_catalogue, read_catalogue
from gueststore.database import Connection
from gueststore.schema_page import render_schema_page

HOW = "run: PYTHONPATH=schema python tools/docs/schema_pictures.py"
ROOT = Path(__file__).parents[3]


def test_the_packaged_catalogue_is_what_the_migrations_make(connection: Connection) -> None:
    live = read_catalogue(connection)
    assert find_differences(live, load_catalogue()) == find_differences(load_catalogue(), live) == [], HOW
    assert dumps(live) == dumps(load_catalogue()), HOW


def test_the_document_is_generated_from_the_catalogue() -> None:
    assert (ROOT / "docs/schema.md").read_text("utf-8") == render_schema_page(load_catalogue()), HOW


def test_the_document_shows_every_table_every_column_and_every_relation() -> None:
    document = render_schema_page(load_catalogue())
    views = {name for kind, name in load_catalogue() if kind == "view"}
    for kind, name in load_catalogue():
        table, _, rest = name.partition(".")
        if kind == "table":
            assert f"\n### {name}\n" in document
        elif kind == "column" and table not in views:
            assert f"| {rest} |" in document
    foreign_keys = [text for text in load_catalogue().values() if text.startswith("FOREIGN KEY")]
    assert document.count(" ||--o") == len(foreign_keys)
