"""Every poison value in every field, through a writer into a real store: it takes all rows that come of them."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from guestd.rows.batch import Limits
from support.daemon import add_machine, rows
from support.poison import POISON, poisoned
from support.spooled import Tally, spooled


@pytest.mark.asyncio
@pytest.mark.timeout(300)
async def test_a_real_store_takes_every_poison_value_in_every_field(tmp_path: Path, dsn: str) -> None:
    machine_id = add_machine(dsn)
    # A poison that makes no difference gives the same message again, which is known and not stored twice.
    payloads = [*{payload: None for name in POISON for _, payload in poisoned(name)}]
    async with spooled(tmp_path, machine_id, payloads) as spool:
        tally = Tally()
        consumer = tally.writer(spool, dsn, Limits(2000, 4_000_000, 0.01))
        spool.seal()
        async with asyncio.timeout(240):
            await consumer.run()
    assert tally.bugs == 0
    outcomes = Counter(dict(rows(dsn, 'SELECT "reason", count(*) FROM "QuarantinedFrame" GROUP BY 1')))
    # Nothing reached the store that it would not have.
    assert outcomes.keys() <= {"json", "shape", "type", "row_refused", "identity"}
    ((stored,),) = rows(dsn, 'SELECT count(*) FROM "SystemMetrics"')
    assert stored + outcomes.total() - outcomes["row_refused"] == len(payloads)
    assert stored > 0.8 * len(payloads)
