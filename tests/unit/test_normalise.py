"""Normalising: what must hold for the rows of any message, and single facts that need no vector."""

import json
import tracemalloc
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from guestd.core.transport import Transport
from guestd.rows.normalise import GuestHistory
from guestd.rows.times import guest_time, sample_time, uuid7, whole_milliseconds
from gueststore.contract import ProcessSnapshot
from support.rows import RECEIVED, TABLES, by_table, misfits, named, rows_of

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TEXTS = st.text(max_size=20)
FLOATS = st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False), st.integers(-5, 200))
AMOUNTS = st.one_of(st.integers(0, 2**63 - 1), st.sampled_from([0, 2**30, 2**40]))
PIDS = st.one_of(st.integers(0, 5), st.integers(0, 2**31 - 1))
COUNTS = st.integers(0, 2**31 - 1)
TIMES = st.one_of(st.none(), TEXTS, st.floats(allow_nan=False, allow_infinity=False), st.integers(0, 2**63))


def sometimes(**optional: st.SearchStrategy[Any]) -> dict[str, st.SearchStrategy[Any]]:
    return {name: st.one_of(st.none(), values) for name, values in optional.items()}


def entries(needed: dict[str, st.SearchStrategy[Any]], **optional: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(st.fixed_dictionaries(needed, optional=optional), max_size=4)


SHARED = sometimes(disk_read_bytes=AMOUNTS, disk_write_bytes=AMOUNTS) | {"status": TEXTS, "start_time": TIMES}
D1_PROCESSES = entries(
    {"id": PIDS, "name": TEXTS, "memory_usage_kb": AMOUNTS},
    **sometimes(parent_id=PIDS, executable_path=TEXTS, command_line=TEXTS),
    **SHARED,
    cpu_usage_percent=FLOATS,
)
D2_PROCESSES = entries(
    {"pid": PIDS, "name": TEXTS, "memory_kb": AMOUNTS},
    **sometimes(ppid=PIDS, exe_path=TEXTS, cmd_line=TEXTS),
    **SHARED,
    cpu_percent=FLOATS,
)
PORTS = entries(
    {"port": st.integers(0, 65535), "protocol": TEXTS, "state": TEXTS},
    **sometimes(process_id=PIDS, pid=PIDS, process_name=TEXTS, exe_path=TEXTS, connection_count=COUNTS),
    is_listening=st.booleans(),
)
SERVICES = entries(
    {"name": TEXTS},
    **sometimes(display_name=TEXTS, state=TEXTS, start_mode=TEXTS, start_type=TEXTS, service_type=TEXTS),
    **sometimes(process_id=PIDS, pid=PIDS, path=TEXTS, exe_path=TEXTS, description=TEXTS),
    **sometimes(dependencies=st.lists(TEXTS, max_size=3)),
    is_default=st.booleans(),
)
APPLICATIONS = entries(
    {"exe_path": TEXTS, "name": TEXTS},
    **sometimes(version=TEXTS, description=TEXTS, publisher=TEXTS, file_size=AMOUNTS, icon_base64=TEXTS),
    **sometimes(icon_format=TEXTS),
    last_access=TIMES,
    access_count=COUNTS,
    usage_minutes=COUNTS,
    is_active=st.booleans(),
)
FIGURES = ("bytes_received", "bytes_sent", "packets_received", "packets_sent", "errors_in", "errors_out")
SYSTEMS = st.fixed_dictionaries(
    {
        "cpu": st.fixed_dictionaries(
            {}, optional={"usage_percent": FLOATS, "cores_usage": st.lists(FLOATS, max_size=3), "temperature": FLOATS}
        ),
        "memory": st.fixed_dictionaries(
            {"total_kb": AMOUNTS, "used_kb": AMOUNTS, "available_kb": AMOUNTS},
            optional=sometimes(swap_total_kb=AMOUNTS, swap_used_kb=AMOUNTS),
        ),
    },
    optional={
        "disk": st.fixed_dictionaries(
            {"usage_stats": entries({"mount_point": TEXTS}, total_gb=FLOATS, used_gb=FLOATS, filesystem=TEXTS)}
        ),
        "network": st.fixed_dictionaries(
            {"interfaces": entries({"name": TEXTS}, **dict.fromkeys(FIGURES, FLOATS), ip_addresses=st.lists(TEXTS))}
        ),
        "system": st.fixed_dictionaries({}, optional=sometimes(uptime_seconds=AMOUNTS)),
        **sometimes(uptime_seconds=AMOUNTS, processes=D1_PROCESSES, ports=PORTS, windows_services=SERVICES),
        "load_average": st.fixed_dictionaries({}, optional={"load_1min": FLOATS, "load_15min": FLOATS}),
    },
)
MESSAGES = st.fixed_dictionaries(
    {
        "type": st.just("metrics"),
        "timestamp": TIMES,
        "data": st.fixed_dictionaries(
            {"system": SYSTEMS},
            optional=sometimes(
                processes=D2_PROCESSES, ports=PORTS, windows_services=SERVICES, applications=APPLICATIONS
            ),
        ),
    }
)


@given(MESSAGES)
def test_rows_of_any_message_fit_the_columns_and_types_of_their_tables(message: dict[str, Any]) -> None:
    rows = rows_of(json.dumps(message).encode(), GuestHistory())
    tables = by_table(rows)
    assert misfits(rows) == []
    assert rows.count == sum(map(len, tables.values()))


@given(MESSAGES)
def test_rows_of_any_message_keep_the_keys_and_checks_of_their_tables(message: dict[str, Any]) -> None:
    tables = {
        name: [named(TABLES[name], row) for row in rows]
        for name, rows in by_table(rows_of(json.dumps(message).encode(), GuestHistory())).items()
    }
    keys = {
        "ProcessSnapshot": "processId",
        "PortUsage": "ordinal",
        "ApplicationUsageHistory": "executablePath",
        "incoming_application": "executablePath",
        "incoming_service": "serviceName",
    }
    for table, key in keys.items():
        values = [row[key] for row in tables[table]]
        assert len(values) == len(set(values))
    (system,) = tables["SystemMetrics"]
    percents: list[float | None] = [system["cpuUsagePercent"], *system["cpuCoresUsage"]]
    assert all(0 <= percent <= 100 for percent in percents if percent is not None)
    assert len({row["timestamp"] for name in ("ProcessSnapshot", "PortUsage") for row in tables[name]}) <= 1


@pytest.mark.parametrize(("shared", "value"), [("digest", 7), ("timestamp", RECEIVED + timedelta(hours=1))])
@given(MESSAGES)
def test_another_value_of_what_rows_share_is_in_its_columns_and_nowhere_else(
    shared: str, value: Any, message: dict[str, Any]
) -> None:
    rows = rows_of(json.dumps(message).encode(), GuestHistory())
    before, after = by_table(rows), by_table(rows.with_shared(**{shared: value}))
    for name, table in TABLES.items():
        places = {column.name: value for column in table.columns if column.shared == shared}
        expected = [named(table, row) | places for row in before[name]]
        assert [named(table, row) for row in after[name]] == expected


def message(**data: Any) -> bytes:
    system = {"cpu": {}, "memory": {"total_kb": 1, "used_kb": 1, "available_kb": 0}, "uptime_seconds": 1}
    return json.dumps({"type": "metrics", "data": {"system": system, **data}}).encode()


def test_long_texts_are_cut() -> None:
    long = "x" * 10_000
    rows = rows_of(
        message(
            processes=[{"pid": 1, "name": long, "memory_kb": 1, "exe_path": long, "cmd_line": long, "status": long}],
            ports=[{"port": 1, "protocol": long, "state": long, "process_name": long, "exe_path": long}],
            applications=[
                {"exe_path": long, "name": long, "version": long, "description": long, "publisher": long,
                 "icon_base64": "AAAA", "icon_format": long}
            ],
            windows_services=[
                {"name": long, "display_name": long, "state": long, "start_type": long, "service_type": long,
                 "description": long, "exe_path": long}
            ],
        ),
        GuestHistory(),
    )  # fmt: skip
    texts = [value for table in by_table(rows).values() for row in table for value in row if isinstance(value, str)]
    assert len(texts) == 22
    assert max(map(len, texts)) == 4096


def test_paths_that_are_keys_fit_an_index_row_and_stay_distinct_after_cutting() -> None:
    # 2,704 bytes is what a btree takes; each of these characters has 4 bytes.
    paths = ["\N{GRINNING FACE}" * 2000 + end for end in "ab"]
    rows = rows_of(message(applications=[{"exe_path": path, "name": path[-1]} for path in paths]), GuestHistory())
    (row,) = rows.application_history
    assert len(row.executablePath.encode()) < 2600
    assert [(each.executablePath, each.applicationName) for each in rows.applications] == [(row.executablePath, "b")]


def test_service_names_that_are_equal_after_cutting_are_one_service() -> None:
    rows = rows_of(message(windows_services=[{"name": "x" * 255 + end} for end in "ab"]), GuestHistory())
    assert len(rows.services) == 1


TEXTS_OF_D1: dict[str, list[dict[str, Any]]] = {
    "processes": [{"id": 1, "name": "", "memory_usage_kb": 1, "executable_path": "", "command_line": "", "status": ""}],
    "ports": [{"port": 1, "protocol": "", "state": "", "process_name": "", "exe_path": ""}],
    "windows_services": [
        {"name": "", "display_name": "", "state": "", "start_mode": "", "path": "", "description": ""}
    ],
}
TEXTS_OF_D2: dict[str, list[dict[str, Any]]] = {
    "processes": [{"pid": 1, "name": "", "memory_kb": 1, "exe_path": "", "cmd_line": "", "status": ""}],
    "ports": [{"port": 1, "protocol": "", "state": "", "process_name": "", "exe_path": ""}],
    "windows_services": [
        {"name": "", "display_name": "", "state": "", "start_type": "", "service_type": "", "exe_path": "",
         "description": ""}
    ],
    "applications": [{"exe_path": "", "name": "", "version": "", "description": "", "publisher": ""}],
}  # fmt: skip
REQUIRED = {"id", "pid", "name", "memory_usage_kb", "memory_kb", "port", "protocol", "state"}
DEFAULTS = {"status": "unknown", "startType": "unknown", "serviceType": "win32", "currentState": "unknown"}


@pytest.mark.parametrize("reported", ["", None])
@pytest.mark.parametrize("dialect", ["D1", "D2"])
def test_an_empty_text_is_stored_as_it_came_and_null_means_that_there_was_none(
    dialect: str, reported: str | None
) -> None:
    lists = TEXTS_OF_D1 if dialect == "D1" else TEXTS_OF_D2
    entries = {
        name: [{key: value if value != "" or key in REQUIRED else reported for key, value in entry.items()}]
        for name, (entry,) in lists.items()
    }
    rows = rows_of(d1_message(**entries) if dialect == "D1" else message(**entries), GuestHistory())
    for name, stored in by_table(rows).items():
        for row in stored:
            for column in (each for each in TABLES[name].columns if each.type == "text" and each.name != "iconFormat"):
                expected = reported if column.is_nullable else DEFAULTS.get(column.name, "")
                assert named(TABLES[name], row)[column.name] == expected, (name, column.name)


def test_sockets_of_a_process_without_a_name_and_of_one_whose_name_is_empty_are_distinguished() -> None:
    port = {"port": 1, "protocol": "tcp", "state": "LISTEN"}
    ports = [port, {**port, "process_name": ""}, {**port, "process_name": "a"}, port]
    rows = rows_of(message(ports=ports), GuestHistory())
    assert [(row.processName, row.connectionCount) for row in rows.ports] == [("", 1), (None, 2), ("a", 1)]


def test_ten_thousand_sockets_of_one_port_are_one_row() -> None:
    socket = {"port": 443, "protocol": "TCP", "state": "Established", "process_id": 1}
    (row,) = rows_of(message(ports=[socket] * 10_000), GuestHistory()).ports
    assert row.connectionCount == 10_000


def test_counts_that_add_up_to_more_than_the_column_holds_stay_at_its_most() -> None:
    port = {"port": 1, "protocol": "tcp", "state": "LISTEN", "connection_count": 2**31 - 1}
    (row,) = rows_of(message(ports=[port, port]), GuestHistory()).ports
    assert row.connectionCount == 2**31 - 1


@pytest.mark.parametrize("icon", ["%%%", "AA=", "é", "A" * 90_000, ""])
def test_an_icon_that_is_none_or_too_large_is_left_out(icon: str) -> None:
    (row,) = rows_of(
        message(applications=[{"exe_path": "/a", "name": "a", "icon_base64": icon, "icon_format": "png"}]),
        GuestHistory(),
    ).applications
    assert (row.iconData, row.iconFormat) == (None, None)


def test_an_icon_without_a_format_is_a_png() -> None:
    (row,) = rows_of(
        message(applications=[{"exe_path": "/a", "name": "a", "icon_base64": "AAAA"}]), GuestHistory()
    ).applications
    assert (row.iconData, row.iconFormat) == (b"\0\0\0", "png")


@pytest.mark.parametrize("start", [0, -1, 1e300, "tomorrow", "9" * 5000, "2500-01-01T00:00:00Z"])
def test_a_start_time_that_cannot_be_is_null(start: object) -> None:
    (row,) = rows_of(
        message(processes=[{"pid": 1, "name": "a", "memory_kb": 1, "start_time": start}]), GuestHistory()
    ).processes
    assert ProcessSnapshot(*row).startTime is None


def test_start_times_are_read_from_numbers_and_texts_alike() -> None:
    moment = datetime(2025, 10, 1, 10, 30, 30, tzinfo=UTC)
    for claimed in (1759314630, 1759314630.0, 1759314630000, "2025-10-01T10:30:30Z", "2025-10-01 12:30:30+02:00"):
        assert guest_time(claimed) == moment
    assert guest_time("2025-10-01T10:30:30") == moment


def d1_message(**system: Any) -> bytes:
    figures = {"cpu": {}, "memory": {"total_kb": 1, "used_kb": 1, "available_kb": 0}}
    return json.dumps({"type": "metrics", "data": {"system": figures | system}}).encode()


def test_command_lines_are_stored_without_their_secrets_and_cpu_shares_are_never_negative() -> None:
    d1 = {"id": 1, "name": "a", "memory_usage_kb": 1, "command_line": "a --password=x", "cpu_usage_percent": -1}
    d2 = {"pid": 1, "name": "a", "memory_kb": 1, "cmd_line": "a --password=x", "cpu_percent": -1}
    for payload in (d1_message(processes=[d1]), message(processes=[d2])):
        (values,) = rows_of(payload, GuestHistory()).processes
        row = ProcessSnapshot(*values)
        assert (row.commandLine, row.cpuUsagePercent) == ("a --password=***", 0.0)


@pytest.mark.parametrize(
    ("total", "used", "is_bytes"),
    [
        (2**30, 2**29, True),  # a guest of 1 GiB
        (2**30 - 1024, 2**29, False),  # just below 1 TiB, or too small a guest to tell
        (2**31, 2**29 + 1, False),  # 2 TiB: bytes are whole KiB
    ],
)
def test_memory_is_taken_for_bytes_from_a_gibibyte_on_and_only_in_whole_kibibytes(
    total: int, used: int, is_bytes: bool
) -> None:
    rows = rows_of(d1_message(memory={"total_kb": total, "used_kb": used, "available_kb": 0}), GuestHistory())
    factor = 1024 if is_bytes else 1
    sample = rows.system_metrics
    kib = (sample.totalMemoryKB, sample.usedMemoryKB, sample.availableMemoryKB)
    assert kib == (total // factor, used // factor, 0)
    assert ("memory_in_bytes" in rows.adjustments) == is_bytes


def test_long_texts_do_not_stay_in_memory() -> None:
    payloads = [
        message(
            processes=[{"pid": 1, "name": "a", "memory_kb": 1, "status": text, "start_time": text, "cmd_line": text}],
            ports=[{"port": 1, "protocol": "tcp", "state": text}],
        )
        for text in (str(number) * 20_000 for number in range(10, 30))
    ]
    tracemalloc.start()
    try:
        for payload in payloads:
            rows_of(payload, GuestHistory())
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held_bytes < 200_000


@given(st.datetimes(timezones=st.just(UTC)))
def test_a_guests_time_is_kept_within_five_minutes_and_replaced_beyond(claimed: datetime) -> None:
    kept = sample_time(claimed, RECEIVED, Transport.VIRTIO)
    is_near = abs(claimed - RECEIVED) <= timedelta(minutes=5)
    assert kept == whole_milliseconds(claimed if is_near else RECEIVED)


@given(st.datetimes(timezones=st.just(UTC)))
@example(RECEIVED - timedelta(days=7))
@example(RECEIVED + timedelta(seconds=61))
def test_a_time_by_mqtt_may_be_as_old_as_a_brokers_queue_and_hardly_ahead(claimed: datetime) -> None:
    kept = sample_time(claimed, RECEIVED, Transport.MQTT)
    is_plausible = timedelta(days=-7) <= claimed - RECEIVED <= timedelta(seconds=60)
    assert kept == whole_milliseconds(claimed if is_plausible else RECEIVED)


@given(st.timedeltas(timedelta(minutes=-5), timedelta(minutes=5)))
def test_a_plausible_time_is_cut_to_whole_milliseconds(off: timedelta) -> None:
    kept = sample_time(RECEIVED + off, RECEIVED, Transport.VIRTIO)
    assert kept.microsecond % 1000 == 0
    assert timedelta(0) <= RECEIVED + off - kept < timedelta(milliseconds=1)


@given(
    st.timedeltas(timedelta(0), timedelta(days=365_000)).map(lambda since: EPOCH + since),
    st.binary(min_size=10, max_size=10),
)
@example(EPOCH + timedelta(days=1554, milliseconds=121), bytes(10))
def test_row_ids_are_uuids_of_version_7_that_carry_their_millisecond(moment: datetime, random: bytes) -> None:
    made = uuid7(whole_milliseconds(moment), random)
    assert (made.version, made.variant) == (7, "specified in RFC 4122")
    milliseconds = (whole_milliseconds(moment) - EPOCH) // timedelta(milliseconds=1)
    assert made.int >> 80 == milliseconds


@given(st.binary(min_size=10, max_size=10), st.binary(min_size=10, max_size=10))
def test_row_ids_are_in_the_order_of_their_milliseconds(first: bytes, second: bytes) -> None:
    assert uuid7(RECEIVED, first) < uuid7(RECEIVED + timedelta(milliseconds=1), second)


def test_all_random_bits_reach_the_row_id() -> None:
    ids = {uuid7(RECEIVED, (1 << bit).to_bytes(10)) for bit in range(80)}
    # 12 bits and 62 bits; version and variant take the place of the other six.
    assert len(ids) == 74 + 1
