"""What views and functions return does not depend on the settings of the session that reads them."""

import random
from datetime import UTC, datetime, timedelta
from typing import Any

from gueststore.database import Connection
from support.rollups import roll_up, send
from support.schema import insert, make_machine

NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)
VIEWS = (
    "MachineState", "MachineWithoutData", "MachineLatest", "ListeningPort", "ApplicationUse", "StateChange",
    "SystemMetrics_1m", "SystemMetrics_1h", "SystemFleet_1m", "ProcessUsage_1h", "ApplicationUsage_1d",
    "ListeningPort_1d", "RetentionDue", "ActiveUser",
)  # fmt: skip
# Half an hour on each side of a border that is days ago.
NEAR = [timedelta(minutes=30), timedelta(minutes=-30)]
CALLS = [
    *(("guestd_resolution(%s, %s, 400)", (NOW - days * DAY + near, NOW - days * DAY + near + timedelta(hours=1)))
      for days in (90, 365) for near in NEAR),
    ("guestd_fleet_series(%s, %s)", (NOW - 40 * DAY, NOW)),
    ("guestd_top_processes(NULL, %s, %s, 10)", (NOW - 40 * DAY, NOW)),
    ("guestd_covered_until(%s)", ("SystemMetrics",)),
]  # fmt: skip


def turn(connection: Connection) -> None:
    """Turn what a reader's session may have turned; its zone put the clocks forward ten days ago."""
    forward, back = ((NOW + days * DAY).timetuple().tm_yday for days in (-10, 100))
    zone = f"STD0DST,J{forward}/0,J{back}/0"
    for name, value in {
        "TimeZone": zone, "DateStyle": "SQL, DMY", "IntervalStyle": "sql_standard", "extra_float_digits": "-15",
        "search_path": "elsewhere", "bytea_output": "escape", "quote_all_identifiers": "on",
        "transform_null_equals": "on", "array_nulls": "off", "standard_conforming_strings": "off",
    }.items():  # fmt: skip
        connection.execute("SELECT set_config(%s, %s, TRUE)", (name, value))


def read(connection: Connection) -> list[list[tuple[Any, ...]]]:
    """All views and what functions return, in the binary format: it has no zone and no style."""
    statements: list[tuple[str, tuple[object, ...]]] = [(f'SELECT * FROM public."{view}"', ()) for view in VIEWS]
    statements += [(f"SELECT * FROM public.{call}", values) for call, values in CALLS]
    with connection.cursor(binary=True) as cursor:
        return [cursor.execute(text.encode(), values or None).fetchall() for text, values in statements]


def test_a_reader_with_other_settings_reads_the_same(connection: Connection) -> None:
    machine = make_machine(connection, createdAt=NOW)
    chance = random.Random(3)
    for days in (0, 1, 20, 35):
        send(connection, machine, NOW - days * DAY, chance)
    for path, near in zip("ab", NEAR, strict=True):
        insert(
            connection, "ApplicationUsage", machineId=machine, executablePath=path, applicationName=path, isActive=True,
            lastAccessTime=NOW - 30 * DAY + near, lastSeen=NOW,
        )  # fmt: skip
    roll_up(connection)
    with connection.transaction():
        expected = read(connection)
        turn(connection)
        turned = read(connection)
    for name, one, other in zip([*VIEWS, *(call for call, _ in CALLS)], expected, turned, strict=True):
        assert sorted(map(str, one)) == sorted(map(str, other)), name
    used = expected[VIEWS.index("ApplicationUse")]
    assert {row[-1] for row in used} == {True, False}
