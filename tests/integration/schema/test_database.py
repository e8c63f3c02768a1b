import sys

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from gueststore.database import connect
from gueststore.errors import StoreError
from support.proxy import Proxy


def test_a_connection_that_is_lost_before_its_first_answer_is_a_store_error(dsn: str) -> None:
    port = int(str(conninfo_to_dict(dsn)["port"]))
    with Proxy(port, lambda: sys.maxsize, is_last=lambda chunk: b"search_path" in chunk) as proxy:
        with (
            pytest.raises(StoreError, match="server closed the connection"),
            connect(make_conninfo(dsn, port=proxy.port)),
        ):
            pass
        assert proxy.cuts == 1


def test_a_server_that_is_gone_is_noticed_unless_the_dsn_says_otherwise(dsn: str) -> None:
    with connect(dsn) as connection:
        assert conninfo_to_dict(connection.info.dsn)["keepalives_idle"] == "10"
    with connect(make_conninfo(dsn, keepalives_idle=60)) as connection:
        assert conninfo_to_dict(connection.info.dsn)["keepalives_idle"] == "60"
