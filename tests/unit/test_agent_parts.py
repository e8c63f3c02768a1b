"""What the agent derives from what it reads: rates, disks, states, services, names, messages that fit."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import psutil
import pytest

from guestd.agent.desktop import Entry, icon_base64, parse_entry
from guestd.agent.machine import is_whole_disk, rates
from guestd.agent.outbox import BODY_LIMIT_BYTES
from guestd.agent.payload import (
    Application,
    Body,
    Content,
    Cpu,
    Disk,
    Machine,
    Memory,
    Network,
    Port,
    Process,
    System,
    fit,
)
from guestd.agent.processes import LONGEST_TEXT, clean, status_name
from guestd.agent.services import parse_services

UNITS = b"""[
 {"unit":"ssh.service","load":"loaded","active":"active","sub":"running","description":"OpenBSD Secure Shell server"},
 {"unit":"apt-daily.service","load":"loaded","active":"inactive","sub":"dead","description":"Daily apt activities"},
 {"unit":"networking.service","load":"loaded","active":"active","sub":"exited","description":"Raise interfaces"},
 {"unit":"broken.service","load":"loaded","active":"failed","sub":"failed","description":"Broken"},
 {"unit":"slow.service","load":"loaded","active":"activating","sub":"start","description":""},
 {"unit":"auditd.service","load":"not-found","active":"inactive","sub":"dead","description":"auditd.service"}
]"""


def test_rates_are_per_second_and_whole() -> None:
    assert rates({"a": (100, 5)}, {"a": (1100, 8)}, 2.0) == {"a": (500, 2)}


def test_there_is_no_rate_of_what_was_not_there_before() -> None:
    assert rates({"gone": (1,)}, {"new": (7,)}, 1.0) == {}


def test_there_is_no_rate_of_counters_that_began_anew() -> None:
    assert rates({"a": (100, 5)}, {"a": (3, 6)}, 1.0) == {}


def test_two_samples_at_one_moment_have_no_rates() -> None:
    assert rates({"a": (100,)}, {"a": (200,)}, 0.0) == {}


def test_whole_disks_are_told_from_what_is_made_of_them(tmp_path: Path) -> None:
    for name in ("sda", "nvme0n1", "vda", "cciss!c0d0"):
        (tmp_path / name / "device").mkdir(parents=True)
    for name in ("dm-0", "md0", "loop0", "zram0"):
        (tmp_path / name).mkdir()
    names = ("sda", "sda1", "nvme0n1", "nvme0n1p2", "vda", "cciss/c0d0", "dm-0", "md0", "loop0", "zram0")
    assert [name for name in names if is_whole_disk(name, tmp_path)] == ["sda", "nvme0n1", "vda", "cciss/c0d0"]


@pytest.mark.parametrize(
    ("known", "said"),
    [
        (psutil.STATUS_RUNNING, "Running"),
        (psutil.STATUS_DISK_SLEEP, "Disk Sleep"),
        (psutil.STATUS_TRACING_STOP, "Tracing Stop"),
        (psutil.STATUS_IDLE, "Sleeping"),
        ("something new", "Unknown"),
    ],
)
def test_a_process_status_is_said_in_the_words_of_the_dialect(known: str, said: str) -> None:
    assert status_name(known) == said


def test_units_become_services_in_the_words_of_windows() -> None:
    services = parse_services(UNITS)
    assert [(service.name, service.state, service.status) for service in services] == [
        ("apt-daily", "Stopped", "OK"),
        ("broken", "Stopped", "Degraded"),
        ("networking", "Stopped", "OK"),
        ("slow", "Start Pending", "OK"),
        ("ssh", "Running", "OK"),
    ]
    assert services[4].display_name == services[4].description == "OpenBSD Secure Shell server"
    assert (services[3].display_name, services[3].description) == ("slow.service", None)


def test_a_listing_that_is_no_listing_is_refused() -> None:
    with pytest.raises(msgspec.DecodeError):
        parse_services(b"Failed to connect to bus")


def test_a_desktop_entry_is_known_by_the_file_name_of_what_it_starts() -> None:
    text = "[Desktop Entry]\nName=Firefox\nName[de]=Fuchs\nExec=/usr/lib/ff/firefox %u\nIcon=ff\nComment=Web 100%\n"
    assert parse_entry(text) == Entry("firefox", "Firefox", "Web 100%", "ff")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no section",
        "[Desktop Entry]\nName=Only a name\n",
        "[Desktop Entry]\nName=A script\nExec=python3 /usr/bin/thing\n",
        '[Desktop Entry]\nName=Unbalanced\nExec="thing\n',
        "[Desktop Entry]\nName=Nothing\nExec=\n",
    ],
)
def test_a_desktop_entry_that_starts_no_program_of_its_own_is_left_out(text: str) -> None:
    assert parse_entry(text) is None


def test_an_icon_comes_as_base64_and_a_large_one_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "small.png").write_bytes(b"\x89PNG")
    (tmp_path / "large.png").write_bytes(b"\x89PNG" * 10_000)
    (tmp_path / "drawing.svg").write_bytes(b"<svg/>")
    assert icon_base64(str(tmp_path / "small.png")) == "iVBORw=="
    assert icon_base64(str(tmp_path / "large.png")) is None
    assert icon_base64(str(tmp_path / "drawing.svg")) is None
    assert icon_base64("there-is-no-such-icon") is None


def test_a_text_that_was_not_utf8_and_a_long_one_can_be_sent() -> None:
    assert clean(b"caf\xe9".decode(errors="surrogateescape")) == "caf?"
    assert len(clean("x" * 100_000)) == LONGEST_TEXT


def process(number: int, text: str = "sleep 1") -> Process:
    return Process(number, 1, "sleep", "/bin/sleep", text, 0.0, 100, "Sleeping", 1_759_312_800, None, None)


def body(processes: int, ports: int, text: str = "sleep 1") -> Body:
    system = System(
        cpu=Cpu(1.0, [1.0], None),
        memory=Memory(4, 1, 3, None, None),
        disk=Disk([], None),
        network=Network([]),
        system=Machine(1, "Debian", "12", "6.1", "a", None),
        processes=[process(number, text) for number in range(processes)],
        ports=[Port(number, "TCP", "Listen", None, None, None, True) for number in range(ports)],
        windows_services=[],
    )
    application = Application("/bin/sleep", "sleep", 1, 2, "2026-11-22T13:00:00.000+00:00", False)
    return Body("2026-11-22T13:00:00.000+00:00", Content(system, [application]))


def test_a_message_that_fits_is_whole() -> None:
    message = json.loads(fit(body(150, 60)))
    assert [len(message["data"]["system"][name]) for name in ("processes", "ports")] == [150, 60]
    assert message["data"]["applications"][0]["is_active"] is False


def test_a_message_that_does_not_fit_loses_the_tail_of_its_longest_list_first() -> None:
    encoded = fit(body(300, 100, text="x" * LONGEST_TEXT))
    system = json.loads(encoded)["data"]["system"]
    assert len(encoded) <= BODY_LIMIT_BYTES
    assert 0 < len(system["processes"]) < 300
    assert [known["id"] for known in system["processes"]] == list(range(len(system["processes"])))
    assert len(system["ports"]) == 100
