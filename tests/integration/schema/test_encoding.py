"""A database that is not UTF8 cannot hold every text of a guest: migrate refuses it, check and doctor name it."""

import uuid
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from guestd.doctor.store import check_store
from gueststore.alarms import read_alarms
from gueststore.errors import ConfigurationError
from gueststore.migrations import migrate
from support.store import Server

FIX = "ENCODING 'UTF8' TEMPLATE template0"


@pytest.fixture(params=["LATIN1", "SQL_ASCII"])
def other_dsn(cluster: Server, request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty database of another encoding."""
    name = f"guestd_test_{uuid.uuid4().hex}"
    create = sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING {} LOCALE_PROVIDER libc LOCALE 'C'")
    with psycopg.connect(cluster.dsn("postgres"), autocommit=True) as connection:
        connection.execute(create.format(sql.Identifier(name), request.param))
        yield cluster.dsn(name)
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.mark.asyncio
async def test_a_database_of_another_encoding_is_refused_with_the_way_to_create_one(other_dsn: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"has the encoding (LATIN1|SQL_ASCII) .*{FIX}"):
        migrate(other_dsn)
    found = {each.subject: each async for each in check_store(other_dsn)}
    assert found["encoding"].level == "fault"
    assert FIX in found["encoding"].fix


@pytest.mark.asyncio
async def test_a_database_of_another_encoding_that_is_in_use_is_an_alarm(cluster: Server, dsn: str) -> None:
    """An earlier release migrated it."""
    with psycopg.connect(cluster.dsn("postgres"), autocommit=True) as connection:
        name = conninfo_to_dict(dsn)["dbname"]
        change = """UPDATE pg_database SET encoding = pg_char_to_encoding('SQL_ASCII'), datlocprovider = 'c',
            datcollate = 'C', datctype = 'C', datlocale = NULL WHERE datname = %s"""
        connection.execute(change, (name,))
    (alarm,) = read_alarms(dsn)
    assert alarm.kind == "encoding"
    assert "SQL_ASCII" in alarm.sentence
    assert FIX in alarm.sentence
    levels = {each.subject: each.level async for each in check_store(dsn)}
    assert (levels["encoding"], levels["schema"]) == ("fault", "ok")
