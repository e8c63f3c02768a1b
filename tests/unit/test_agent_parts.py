"""What the agent derives from what it reads: rates, disks, states, services, names, messages that fit."""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestd.agent.desktop import Entry, find_entry, icon_base64, parse_entry, read_entries
from guestd.agent.machine import busy_percent, is_whole_disk, parse_diskstats, rates
from guestd.agent.outbox import BODY_LIMIT_BYTES
from guestd.agent.payload import (
    LONGEST_TEXT_CHARS,
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
    clean,
    fit,
    rfc3339,
)
from guestd.agent.processes import status_name
from guestd.agent.programs import get_group, read_size_and_age
from guestd.agent.services import SystemctlFailed, parse_services, run_command
from guestd.rows.times import guest_time

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


@pytest.mark.parametrize(
    "line",
    [
        "8 0 sda 10 1 4 2 46 3 977 34 0 2 0",
        "8 0 sda 10 1 4 2 46 3 977 34 0 2 0 0 0 0",  # lxcfs
        "8 0 sda 10 1 4 2 46 3 977 34 0 2 0 0 0 0 0",
        "8 0 sda 10 1 4 2 46 3 977 34 0 2 0 0 0 0 0 5 6",
    ],
)
def test_a_disk_is_read_from_every_form_of_its_line(line: str) -> None:
    assert parse_diskstats(line) == ({"sda": (4 * 512, 977 * 512, 10, 46)}, [])


def test_lines_of_diskstats_that_cannot_be_read_are_returned() -> None:
    assert parse_diskstats("8 0 sda x\n\n8 0\n") == ({}, ["8 0 sda x", "8 0"])


@given(st.text(alphabet="0123456789- sda\n\x00\u0660") | st.text())
def test_a_line_of_diskstats_that_cannot_be_read_affects_no_other(text: str) -> None:
    good = "8 0 good 10 1 4 2 46 3 977 34 0 2 0"
    disks, _ = parse_diskstats(f"{text}\n{good}\n{text}")
    assert disks["good"] == (4 * 512, 977 * 512, 10, 46)


def test_a_core_is_busy_in_all_its_time_but_idle_and_iowait() -> None:
    before = {"user": 1.0, "system": 1.0, "idle": 10.0, "iowait": 1.0, "guest": 1.0}
    after = {"user": 3.0, "system": 2.0, "idle": 14.0, "iowait": 2.0, "guest": 3.0}
    assert busy_percent(before, after) == 37.5


TIMES = st.dictionaries(st.sampled_from(["user", "idle", "iowait", "guest", "steal"]), st.floats())


@given(TIMES, TIMES)
def test_the_use_of_a_core_is_a_percentage_whatever_the_kernel_reports(
    before: dict[str, float], after: dict[str, float]
) -> None:
    assert 0 <= busy_percent(before, after) <= 100


@given(st.floats())
def test_a_time_that_no_calendar_has_is_left_out(seconds: float) -> None:
    written = rfc3339(seconds)
    assert written is None or guest_time(written) is not None


def test_a_file_of_a_remote_mount_waits_with_the_others_there_and_any_other_alone() -> None:
    mounts = {"/": "ext4", "/home": "nfs4", "/home/me/disk": "xfs", "/usb": "fuseblk", "/s": "fuse.sshfs"}
    alone = ("/bin/sh", "/home/me/disk/x", "/homes/x", "relative", "")
    assert [get_group(path, mounts) for path in alone] == list(alone)
    remote = ("/home/x", "/home/y/z", "/usb/x", "/s/bin/x")
    assert [get_group(path, mounts) for path in remote] == ["/home", "/home", "/usb", "/s"]
    assert get_group("/bin/sh", {}) == "/bin/sh"


def test_no_symbolic_link_at_the_place_of_a_program_is_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there/program").write_bytes(b"1234")
    (tmp_path / "link").symlink_to(tmp_path / "there/program")
    (tmp_path / "parent").symlink_to(tmp_path / "there")
    os.mkfifo(tmp_path / "fifo")
    found = read_size_and_age(f"{tmp_path}/there/program")
    assert found is not None
    assert found[0] == 4
    others = [f"{tmp_path}/{name}" for name in ("link", "parent/program", "fifo", "there", "none")]
    assert [read_size_and_age(path) for path in [*others, "", "(unreachable)/x", "nul\0"]] == [None] * 8


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


def test_only_a_unit_that_lacks_a_field_is_left_out() -> None:
    listing = b'[{"unit":"a.service"},7,{"unit":"caf\xe9.service","load":"loaded","active":"active","sub":"running"}]'
    assert [service.name for service in parse_services(listing)] == ["caf\ufffd"]


@pytest.mark.parametrize(
    ("command", "reason"),
    [("exit 3", "exit status 3"), ("exec sleep 60", "no answer within"), ("exec cat /dev/zero", "more than 1000")],
)
def test_a_command_that_fails_hangs_or_prints_without_end_is_ended(command: str, reason: str) -> None:
    with pytest.raises(SystemctlFailed, match=reason):
        run_command(["sh", "-c", command], 0.5, 1000)


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


LINE = st.text(max_size=20)


@given(LINE | st.builds("[Desktop Entry]\nExec={}\nName={}\n{}".format, LINE, LINE, LINE))
def test_no_text_of_a_desktop_entry_ends_the_reading(text: str) -> None:
    entry = parse_entry(text)
    assert entry is None or entry.command


def test_desktop_entries_are_read_from_regular_files_of_a_sane_size(tmp_path: Path) -> None:
    good = "[Desktop Entry]\nName=Good\nExec=/opt/good\n"
    (tmp_path / "good.desktop").write_text(good)
    (tmp_path / "latin.desktop").write_bytes(good.replace("Good", "Caf\xe9").replace("good", "latin").encode("latin-1"))
    (tmp_path / "huge.desktop").write_text(good + "#" * 1_000_000)
    (tmp_path / "zero.desktop").symlink_to("/dev/zero")
    (tmp_path / "loop.desktop").symlink_to("loop.desktop")
    os.mkfifo(tmp_path / "fifo.desktop")
    entries = read_entries((tmp_path, tmp_path / "none"))
    assert {name: entry.name for name, entry in entries.items()} == {"good": "Good", "latin": "Caf\ufffd"}
    assert find_entry("/usr/bin/good", entries) == entries["good"]


def test_an_icon_comes_as_base64_and_a_large_one_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "small.png").write_bytes(b"\x89PNG")
    (tmp_path / "large.png").write_bytes(b"\x89PNG" * 10_000)
    (tmp_path / "drawing.svg").write_bytes(b"<svg/>")
    assert icon_base64(str(tmp_path / "small.png")) == "iVBORw=="
    assert icon_base64(str(tmp_path / "large.png")) is None
    assert icon_base64(str(tmp_path / "drawing.svg")) is None
    assert icon_base64("there-is-no-such-icon") is None


def test_an_icon_that_is_no_picture_or_no_file_is_not_sent(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_text("root:x:0:0")
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    icons = [f"{tmp_path}/{name}.png" for name in ("secret", "fifo", "zero")]
    assert [icon_base64(icon) for icon in [*icons, "nul\x00.png", "x" * 5000 + ".png"]] == [None] * 5


def test_a_text_that_was_not_utf8_and_a_long_one_can_be_sent() -> None:
    assert clean(b"caf\xe9".decode(errors="surrogateescape")) == "caf?"
    assert len(clean("x" * 100_000)) == LONGEST_TEXT_CHARS


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
    encoded = fit(body(300, 100, text="x" * LONGEST_TEXT_CHARS))
    system = json.loads(encoded)["data"]["system"]
    assert len(encoded) <= BODY_LIMIT_BYTES
    assert 0 < len(system["processes"]) < 300
    assert [known["id"] for known in system["processes"]] == list(range(len(system["processes"])))
    assert len(system["ports"]) == 100
