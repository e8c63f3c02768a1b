"""The two editions of TimescaleDB, as far as a machine with the Apache edition alone can tell."""

from dataclasses import replace

import psycopg
import pytest

from gueststore.database import Connection
from gueststore.migrations import read_status
from gueststore.scripts import Repeatable, load_scripts

STATEMENTS = [
    "\n".join(line for line in statement.splitlines() if not line.startswith("--")).strip()
    for script in load_scripts().community
    for statement in script.body.split(";\n")
]


@pytest.fixture
def apache(connection: Connection) -> Connection:
    row = connection.execute("SELECT current_setting('timescaledb.license')").fetchone()
    if row != ("apache",):
        pytest.skip(f"this server's TimescaleDB is of the other edition: {row}")
    return connection


@pytest.mark.parametrize("statement", [statement for statement in STATEMENTS if statement])
def test_what_is_for_the_community_edition_is_refused_for_its_licence_alone(apache: Connection, statement: str) -> None:
    with pytest.raises(psycopg.errors.FeatureNotSupported, match='current "apache" license'):
        apache.execute(statement.encode())


def test_the_community_editions_scripts_run_there_alone_and_last() -> None:
    extra = Repeatable("community/10_more", "SELECT 1;")
    scripts = replace(load_scripts(), community=(extra,))
    assert scripts.repeatables_for("timescale") == (*load_scripts().repeatables, extra)
    assert scripts.repeatables_for("apache") == scripts.repeatables_for("") == load_scripts().repeatables


def test_the_status_names_the_edition(apache: Connection, dsn: str) -> None:
    assert (read_status(dsn).licence, read_status(dsn).pending) == ("apache", ())
