"""Deadlines and errors of connections to a real store."""

import pytest

from guestd.core.errors import StoreUnavailable
from guestd.store.connection import connection_to, store_deadline


@pytest.mark.asyncio
async def test_an_answer_that_does_not_come_in_time_is_named_with_its_deadline(dsn: str) -> None:
    async with connection_to(dsn) as connection:
        with pytest.raises(StoreUnavailable, match=r"^no reply within 0\.05 s$"):
            async with store_deadline(0.05):
                await connection.execute("SELECT pg_sleep(60)")
        cursor = await connection.execute("SELECT 1")
        assert await cursor.fetchone() == (1,)
