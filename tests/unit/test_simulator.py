"""Simulated guests: the same for the same seed, and such as the daemon can read."""

from __future__ import annotations

import argparse
import base64
import json
from typing import Any

import pytest

from guestd import simulator
from guestd.cli.main import make_parser
from guestd.simulator.guest import Guest, rfc3339
from guestd.wire.decode import decode

START_S = 1_790_000_000
START_MS = START_S * 1000 + 123


def guest(number: int, *, seed: int = 1, processes: int = 40, start_s: int = START_S) -> Guest:
    return Guest(number, seed=seed, processes=processes, start_s=start_s)


def messages(simulated: Guest, count: int) -> list[dict[str, Any]]:
    return [json.loads(simulated.body(START_MS + 5000 * step)) for step in range(count)]


def test_the_same_seed_gives_the_same_bytes() -> None:
    for number in range(5):
        one, other = guest(number), guest(number)
        for step in range(20):
            assert one.body(START_MS + step) == other.body(START_MS + step)


def test_another_seed_and_another_number_give_other_machines() -> None:
    assert guest(1).body(START_MS) != guest(1, seed=2).body(START_MS) != guest(6, seed=2).body(START_MS)
    assert len({*simulator.machine_ids(50, 1), *simulator.machine_ids(50, 2)}) == 100


def test_machine_ids_are_those_of_the_guests_in_their_order() -> None:
    assert simulator.machine_ids(3, 7) == [guest(number, seed=7).machine_id for number in range(3)]
    assert simulator.machine_ids(2, 7, first=1) == simulator.machine_ids(3, 7)[1:]
    assert [str(known) for known in simulator.machine_ids(1, 1)] == ["d6030db1-ba75-56ac-8a82-d35947a587a6"]


def test_the_daemon_reads_every_message_without_a_refusal() -> None:
    for number in range(5):
        simulated = guest(number)
        for step in range(20):
            decoded = decode(b'{"type":"metrics",' + simulated.body(START_MS + 5000 * step)[1:])
            assert (decoded.refusals, decoded.repairs) == ([], [])
            assert decoded.metrics.data.system.processes is not None
            assert len(decoded.metrics.data.system.processes) == 40


def test_values_move_within_their_bounds() -> None:
    for number in range(5):
        seen = messages(guest(number), 50)
        for message in seen:
            system = message["data"]["system"]
            assert all(0 <= core <= 100 for core in system["cpu"]["cores_usage"])
            assert system["memory"]["used_kb"] + system["memory"]["available_kb"] == system["memory"]["total_kb"]
            assert all(0 <= known["used_gb"] <= known["total_gb"] for known in system["disk"]["usage_stats"])
        assert len({message["data"]["system"]["cpu"]["usage_percent"] for message in seen}) > 10


def test_most_processes_stay_and_some_come_and_go() -> None:
    seen = [{known["id"] for known in message["data"]["system"]["processes"]} for message in messages(guest(0), 30)]
    assert all(len(ids) == 40 for ids in seen)
    assert seen[0] != seen[-1]
    assert len(seen[0] & seen[-1]) >= 20


def test_an_interface_has_no_rate_in_the_first_message_only() -> None:
    first, second = (message["data"]["system"]["network"]["interfaces"][0] for message in messages(guest(0), 2))
    assert first["bytes_received"] is None
    assert second["bytes_received"] >= 0


def test_icons_are_pictures_and_come_with_the_first_message_only() -> None:
    first, second = (message["data"]["applications"] for message in messages(guest(1), 2))
    assert all(base64.b64decode(known["icon_base64"]).startswith(b"\x89PNG") for known in first)
    assert all("icon_base64" not in known for known in second)


def test_application_minutes_grow_with_time() -> None:
    simulated = guest(1)
    before, after = (
        json.loads(simulated.body(START_MS + offset_ms))["data"]["applications"][0]["usage_minutes"]
        for offset_ms in (0, 180_000)
    )
    assert after - before == 3


def test_only_windows_has_services_and_no_load_average() -> None:
    for number in range(5):
        system = messages(guest(number), 1)[0]["data"]["system"]
        assert (system["system"]["load_average"] is None) == bool(system["windows_services"])
        assert bool(system["windows_services"]) == (system["system"]["name"] == "Windows")


@pytest.mark.parametrize("milliseconds", [0, 1, 7, 123, 999])
def test_timestamps_are_exact_to_the_millisecond(milliseconds: int) -> None:
    assert rfc3339(START_S * 1000 + milliseconds) == f"2026-09-21T14:13:20.{milliseconds:03}+00:00"


def parsed(*words: str) -> argparse.Namespace:
    return make_parser().parse_args(["simulate", "--directory", "channels", *words])


def test_arguments_have_the_documented_defaults() -> None:
    arguments = parsed()
    assert (arguments.guests, arguments.interval, arguments.processes, arguments.seed) == (10, 10.0, 100, 1)
    assert (arguments.first_id, arguments.count, arguments.manifest) == (0, None, None)


@pytest.mark.parametrize(
    "words", [("--guests", "0"), ("--interval", "-1"), ("--interval", "nan"), ("--count", "0"), ("--first-id", "-1")]
)
def test_arguments_out_of_range_are_refused(words: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed(*words)
    assert words[0] in capsys.readouterr().err
