"""What guests reported last, as gauges: of machines that are there, bounded, with nothing of a guest's in a label."""

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import msgspec
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from guestd.core.transport import Transport
from guestd.rows.batch import Prepared
from guestd.rows.model import Rows
from guestd.rows.normalise import GuestHistory, normalise
from guestd.telemetry.exposition import render
from guestd.telemetry.guests import LATE_SECONDS, MAX_GUESTS, SHOWN_SECONDS, LatestSamples
from guestd.wire.decode import decode
from guestd.wire.line import LineId

NOW = datetime(2026, 1, 2, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
SYSTEM = {
    "cpu": {"usage_percent": 25.0, "cores_usage": [25.0]},
    "memory": {"total_kb": 4096, "used_kb": 1024, "available_kb": 3072},
    "disk": {
        "usage_stats": [
            {"mount_point": "/", "total_gb": 10.0, "used_gb": 9.0},
            {"mount_point": "/home", "total_gb": 10.0, "used_gb": 1.0},
        ]
    },
    "network": {"interfaces": []},
    "system": {"uptime_seconds": 60, "load_average": {"load_1min": 0.5}},
}


def sample(machine_id: UUID, at: datetime = NOW, failed_parts: object = None, **parts: object) -> Rows:
    data = {"system": SYSTEM | parts}
    message = {"type": "metrics", "timestamp": at.isoformat(), "data": data, "failed_parts": failed_parts}
    payload = msgspec.json.encode(message)
    return normalise(
        decode(payload).metrics, row_id=uuid4(), machine_id=machine_id, timestamp=at, received_at=at, digest=None,
        history=GuestHistory(), command_lines="redacted",
    )  # fmt: skip


def note(
    latest: LatestSamples,
    rows: Rows,
    transport: Transport = Transport.VIRTIO,
    *,
    is_numbered: bool,
    seq: int = 1,
    boot_id: str = "boot",
) -> None:
    machine_id, at = rows.shared.machine_id, rows.shared.received_at
    line_id = LineId(boot_id, seq) if is_numbered else None
    latest.add([Prepared(1, machine_id, at, b"", rows, None, "redacted", transport, line_id)])


def shown(latest: LatestSamples, *machines: UUID, now: datetime = NOW, domain: str = "vm") -> dict[str, Metric]:
    """What is read of the gauges when they are scraped."""
    body = render(latest.build_families(dict.fromkeys(machines, domain), now), is_openmetrics=False).decode()
    return {family.name: family for family in text_string_to_metric_families(body)}


def value(families: dict[str, Metric], name: str) -> float:
    (sample,) = families[name].samples
    found: float = sample.value
    return found


def test_the_last_sample_of_a_machine_is_shown_in_base_units() -> None:
    latest, machine = LatestSamples(), uuid4()
    note(latest, sample(machine), is_numbered=True)
    families = shown(latest, machine)
    (used,) = families["guest_memory_used_bytes"].samples
    assert (used.labels, used.value) == ({"machine": str(machine), "domain": "vm"}, 1024 * 1024)
    assert value(families, "guest_cpu_usage_ratio") == 0.25
    assert value(families, "guest_disk_used_bytes") == 10 * 1024**3
    assert value(families, "guest_disk_fullest_ratio") == 0.9
    assert value(families, "guest_load1") == 0.5
    assert value(families, "guest_last_sample_timestamp_seconds") == NOW.timestamp()
    (agent,) = families["guest_agent_info"].samples
    assert agent.labels == {"machine": str(machine), "domain": "vm", "channel": "virtio", "dialect": "numbered"}


@pytest.mark.parametrize(
    ("reported", "parts"),
    [
        (None, 0.0),
        ([], 0.0),
        ([{"part": "disks", "reason": "ValueError: x"}, {"part": "swap", "reason": "y"}], 2.0),
        ([{}, {"part": None}], 2.0),
        ("nonsense", 0.0),
    ],
)
def test_the_parts_that_an_agent_cannot_read_are_counted(reported: object, parts: float) -> None:
    latest, machine = LatestSamples(), uuid4()
    note(latest, sample(machine, failed_parts=reported), is_numbered=True)
    assert value(shown(latest, machine), "guest_failed_parts") == parts
    # Other agents do not say.
    note(latest, sample(machine, failed_parts=reported), is_numbered=False)
    assert shown(latest, machine)["guest_failed_parts"].samples == []


def test_what_a_guest_does_not_report_has_no_sample() -> None:
    latest, machine = LatestSamples(), uuid4()
    note(latest, sample(machine), Transport.MQTT, is_numbered=False)
    families = shown(latest, machine)
    assert families["guest_swap_used_bytes"].samples == []
    assert families["guest_network_receive_bytes_per_second"].samples == []


def test_a_machine_that_the_store_does_not_know_any_more_is_not_shown() -> None:
    latest, gone, here = LatestSamples(), uuid4(), uuid4()
    for machine in (gone, here):
        note(latest, sample(machine), is_numbered=True)
    assert [each.labels["machine"] for each in shown(latest, here)["guest_load1"].samples] == [str(here)]


def test_a_newer_sample_and_another_name_are_shown_at_the_next_scrape() -> None:
    latest, machine = LatestSamples(), uuid4()
    note(latest, sample(machine), is_numbered=True)
    later = NOW + timedelta(seconds=5)
    shown(latest, machine)
    note(latest, sample(machine, later), is_numbered=True)
    assert value(shown(latest, machine), "guest_last_sample_timestamp_seconds") == later.timestamp()
    (renamed,) = shown(latest, machine, domain="other")["guest_load1"].samples
    assert renamed.labels["domain"] == "other"


def test_a_sample_that_waited_does_not_replace_a_newer_one() -> None:
    latest, machine, newest = LatestSamples(), uuid4(), sample(uuid4(), NOW)
    note(latest, newest.with_shared(machine_id=machine), is_numbered=True)
    waited = newest.with_shared(machine_id=machine, timestamp=NOW - timedelta(hours=1), received_at=NOW + MINUTE)
    note(latest, waited, is_numbered=False)
    assert value(shown(latest, machine), "guest_last_sample_timestamp_seconds") == NOW.timestamp()
    # Of one run, however little it is older.
    late = newest.with_shared(machine_id=machine, timestamp=NOW - MINUTE, received_at=NOW + MINUTE)
    note(latest, late, is_numbered=True, seq=0)
    assert value(shown(latest, machine), "guest_last_sample_timestamp_seconds") == NOW.timestamp()
    backlog = newest.with_shared(machine_id=machine, timestamp=NOW + MINUTE, received_at=NOW + timedelta(hours=1))
    note(latest, backlog, is_numbered=True, seq=2)
    received = (NOW + timedelta(hours=1)).timestamp()
    assert (
        value(shown(latest, machine, now=NOW + timedelta(hours=1)), "guest_last_sample_timestamp_seconds") == received
    )


def test_a_guest_whose_clock_is_set_back_a_little_is_shown_on() -> None:
    latest, machine = LatestSamples(), uuid4()
    note(latest, sample(machine), is_numbered=False)
    set_back = sample(machine).with_shared(timestamp=NOW - 2 * MINUTE, received_at=NOW + MINUTE)
    note(latest, set_back, is_numbered=False)
    assert value(shown(latest, machine), "guest_last_sample_timestamp_seconds") == (NOW + MINUTE).timestamp()


def test_a_guest_whose_clock_is_set_back_by_hours_never_disappears() -> None:
    """By MQTT, where such a sample looks like one that the broker delivered late."""
    latest, machine = LatestSamples(), uuid4()
    note(latest, sample(machine), Transport.MQTT, is_numbered=False)
    for number in range(1, 120):
        received = NOW + number * timedelta(seconds=10)
        late = sample(machine).with_shared(timestamp=received - timedelta(hours=1), received_at=received)
        note(latest, late, Transport.MQTT, is_numbered=False)
        families = shown(latest, machine, now=received)
        assert value(families, "guest_last_sample_timestamp_seconds") >= received.timestamp() - LATE_SECONDS


def test_a_guest_that_is_restarted_with_a_clock_that_is_behind_is_shown_at_once() -> None:
    latest, machine = LatestSamples(), uuid4()
    note(latest, sample(machine), Transport.MQTT, is_numbered=True, seq=900)
    behind = sample(machine).with_shared(timestamp=NOW - timedelta(hours=6), received_at=NOW + MINUTE)
    note(latest, behind, Transport.MQTT, is_numbered=True, boot_id=str(uuid4()))
    assert value(shown(latest, machine), "guest_last_sample_timestamp_seconds") == (NOW + MINUTE).timestamp()


def test_of_a_backlog_that_comes_again_after_a_silence_the_newest_is_shown_at_its_end() -> None:
    latest, machine, hour = LatestSamples(), uuid4(), timedelta(hours=1)
    note(latest, sample(machine), Transport.MQTT, is_numbered=False)
    for number in range(120, -1, -1):
        at, received = NOW + hour - number * MINUTE, NOW + hour + timedelta(seconds=120 - number)
        note(latest, sample(machine).with_shared(timestamp=at, received_at=received), Transport.MQTT, is_numbered=False)
    families = shown(latest, machine, now=NOW + hour + 2 * MINUTE)
    assert value(families, "guest_last_sample_timestamp_seconds") == (NOW + hour + 2 * MINUTE).timestamp()


def test_a_machine_that_is_silent_is_not_shown_after_a_while() -> None:
    latest, machine = LatestSamples(), uuid4()
    note(latest, sample(machine), is_numbered=True)
    assert shown(latest, machine, now=NOW + timedelta(seconds=SHOWN_SECONDS))["guest_load1"].samples
    assert not shown(latest, machine, now=NOW + timedelta(seconds=SHOWN_SECONDS + 1))["guest_load1"].samples


def test_the_one_that_was_silent_longest_makes_room() -> None:
    latest, rows, first = LatestSamples(), sample(uuid4()), uuid4()
    machines = [first, *(uuid4() for _ in range(MAX_GUESTS))]
    for machine in machines:
        note(latest, rows.with_shared(machine_id=machine), is_numbered=True)
    # Without the parser of the other tests, which takes seconds for so many.
    [loads] = [each for each in latest.build_families(dict.fromkeys(machines, "vm"), NOW) if each.name == "guest_load1"]
    assert len([line for line in loads.lines if line]) == MAX_GUESTS
    assert not shown(latest, first)["guest_load1"].samples


@pytest.mark.parametrize(
    ("total", "used", "ratio"),
    [(10.0, 0.0, 0.0), (10.0, 12.0, 1.0), (1e-300, 1e18, 1.0), (0.0, 1.0, None), (10.0, None, None)],
)
def test_the_fullest_file_system_is_a_ratio_or_absent(total: float, used: float | None, ratio: float | None) -> None:
    latest, machine = LatestSamples(), uuid4()
    disk = {"usage_stats": [{"mount_point": "/", "total_gb": total, "used_gb": used}]}
    note(latest, sample(machine, disk=disk), is_numbered=True)
    found = shown(latest, machine)["guest_disk_fullest_ratio"].samples
    assert [each.value for each in found] == ([] if ratio is None else [ratio])
