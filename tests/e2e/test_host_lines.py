"""Lines from guestd to guests: requests, replies and their signatures, to guests and to our own agent."""

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from tools.harness.waiting import eventually

from guestd.wire.signing import SignedLineVerifier, machine_secret
from support.daemon import Daemon, add_machine, command, environment, metrics_line, rows

MASTER = b"the master's secret"


def _samples(daemon: Daemon) -> int:
    return int(rows(daemon.dsn, 'SELECT count(*) FROM "SystemMetrics"')[0][0])


def _numbered(seq: int) -> bytes:
    header = b'{"type":"metrics","boot_id":"%s","seq":%d,"oldest":1,' % (str(UUID(int=1)).encode(), seq)
    return header + metrics_line().removeprefix(b'{"type": "metrics", ')


def _secret_file(directory: Path, secret: bytes = MASTER, mode: int = 0o600) -> Path:
    path = directory / "secret"
    path.write_bytes(secret + b"\n")
    path.chmod(mode)
    return path


def _told_secret(daemon: Daemon, machine_id: UUID) -> bytes:
    """A machine's secret as `guestd secret` prints it."""
    configuration = str(daemon.directory / "guestd.toml")
    return subprocess.check_output(
        command("guestd", "secret", "--config", configuration, str(machine_id)), env=environment()
    )


@contextmanager
def _agent(daemon: Daemon, *more: str) -> Iterator[Path]:
    """Our agent, of a machine of its own, that by itself reports once and then after hours; gives its log."""
    machine_id = add_machine(daemon.dsn)
    path = daemon.directory / "agent.log"
    if more:
        key = daemon.directory / "machine-secret"
        key.write_bytes(_told_secret(daemon, machine_id) if more == ("right",) else b"another")
        key.chmod(0o600)
        more = ("--secret-file", str(key))
    arguments = ["--listen", str(daemon.channels / f"{machine_id}.socket"), "--interval", "9999", *more]
    with (
        path.open("wb") as log,
        subprocess.Popen(command("guestd", "agent", *arguments), env=environment(), stderr=log) as agent,
    ):
        yield path
        agent.terminate()


def test_a_sample_is_asked_for_at_every_connection(daemon: Daemon) -> None:
    guest = daemon.guest()
    daemon.start()
    assert guest.read_any_line() == b'{"type":"Metrics"}'
    guest.hang_up()
    assert guest.read_any_line() == b'{"type":"Metrics"}'
    assert daemon.stop() == 0


def test_our_agent_answers_a_new_connection_with_a_sample(daemon: Daemon) -> None:
    daemon.start()
    with _agent(daemon):
        eventually(lambda: _samples(daemon) >= 2, "the first sample, and the one that was asked for")
        before = _samples(daemon)
        assert daemon.stop() == 0
        daemon.start()
        eventually(lambda: _samples(daemon) > before, "a sample for the new connection")
        assert daemon.stop() == 0


def test_pings_and_keep_alives_are_answered(daemon: Daemon) -> None:
    guest = daemon.guest()
    daemon.start()
    guest.write(b'{"type":"ping","timestamp":"2025-10-01T12:00:30+00:00","sequence":1759320030000}\n')
    pong = json.loads(guest.read_line())
    assert pong.keys() == {"type", "timestamp"}
    assert pong["type"] == "pong"
    assert abs(datetime.fromisoformat(pong["timestamp"]) - datetime.now(UTC)) < timedelta(minutes=5)
    guest.write(b'{"type":"keep_alive","sequence_number":4,"timestamp":1759320030}\n')
    response = json.loads(guest.read_line())
    assert response | {"timestamp": None} == {"type": "keep_alive_response", "sequence_number": 4, "timestamp": None}
    assert isinstance(response["timestamp"], str)
    assert daemon.metric("guestd_other_messages_total", type="ping") == 1
    assert daemon.metric("guestd_other_messages_total", type="keep_alive") == 1
    assert daemon.metric("guestd_frames_accepted_total") == 0
    assert daemon.stop() == 0


def test_a_flood_of_pings_is_answered_now_and_then(daemon: Daemon) -> None:
    guest = daemon.guest()
    daemon.start()
    pings = 900  # what a guest may send at once without being held back
    guest.write(b'{"type":"ping"}\n' * pings + _numbered(1))
    pongs = 0
    while json.loads(line := guest.read_line())["type"] == "pong":
        pongs += 1
    assert json.loads(line)["seq"] == 1
    assert 0 < pongs < pings / 10
    assert daemon.metric("guestd_other_messages_total", type="ping") == pings
    assert daemon.stop() == 0


def test_with_a_master_secret_every_line_is_signed_with_the_machines_own(daemon: Daemon) -> None:
    machine_id, other_id = add_machine(daemon.dsn), add_machine(daemon.dsn)
    guest, other = daemon.guest(machine_id), daemon.guest(other_id)
    daemon.virtio_lines = f'master_secret_file = "{_secret_file(daemon.directory)}"\n'
    daemon.start()
    verifier = SignedLineVerifier(machine_secret(MASTER, machine_id))

    def heard() -> dict[str, Any]:
        content: dict[str, Any] = json.loads(verifier.verify(guest.read_any_line(), time.time_ns() // 1_000_000))
        return content

    assert heard() == {"type": "Metrics"}
    guest.write(_numbered(1) + b'{"type":"ping"}\n{"type":"keep_alive","sequence_number":4}\n')
    found = [heard() for _ in range(3)]
    assert sorted(line["type"] for line in found) == ["ack", "keep_alive_response", "pong"]
    with pytest.raises(ValueError, match="another secret"):
        verifier.verify(other.read_any_line(), time.time_ns() // 1_000_000)
    assert daemon.stop() == 0


def test_our_agent_with_its_secret_hears_signed_lines_and_forgets_what_is_acknowledged(daemon: Daemon) -> None:
    daemon.virtio_lines = f'master_secret_file = "{_secret_file(daemon.directory)}"\n'
    daemon.start()
    with _agent(daemon, "right") as log:
        # The second one was asked for by a signed line; without its acknowledgement the first would come again.
        eventually(lambda: _samples(daemon) >= 2, "the sample that was asked for")
        assert daemon.stop() == 0
    assert "host line ignored" not in log.read_text()
    assert '"unacknowledged": 0' in log.read_text()


@pytest.mark.parametrize("signs", [True, False], ids=["signed with another secret", "not signed"])
def test_our_agent_with_a_secret_hears_nothing_else_and_loses_nothing_by_it(daemon: Daemon, signs: bool) -> None:
    if signs:
        daemon.virtio_lines = f'master_secret_file = "{_secret_file(daemon.directory)}"\n'
    daemon.start()
    with _agent(daemon, "wrong") as log:
        eventually(lambda: daemon.metric("guestd_frames_duplicate_total") >= 1, "the first line again")
        assert daemon.stop() == 0
    assert _samples(daemon) == 1
    reason = "its signature does not match: another secret was used" if signs else "it is not signed"
    assert log.read_text().count("host line ignored") == 1
    assert reason in log.read_text()


@pytest.mark.parametrize(("secret", "mode", "what"), [(MASTER, 0o644, "it is world-readable"), (b"", 0o600, "empty")])
def test_a_master_secret_that_will_not_do_is_refused_at_start(
    daemon: Daemon, secret: bytes, mode: int, what: str
) -> None:
    path = _secret_file(daemon.directory, secret, mode)
    daemon.virtio_lines = f'master_secret_file = "{path}"\n'
    daemon.start()
    assert daemon.process is not None
    assert daemon.process.wait(60) == 78
    assert f"virtio.master_secret_file {path}: " in daemon.log.read_text()
    assert what in daemon.log.read_text()


def test_the_secret_of_a_machine_is_asked_for_where_none_is_configured(tmp_path: Path) -> None:
    done = subprocess.run(
        command("guestd", "secret", str(uuid4())), env=environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (78, "")
    assert (
        done.stderr
        == "guestd: virtio.master_secret_file is empty: host lines are not signed; name a file there first\n"
    )


def test_a_secret_of_our_agent_that_is_not_there_is_named(tmp_path: Path) -> None:
    arguments = ["--listen", str(tmp_path / f"{uuid4()}.socket"), "--secret-file", str(tmp_path / "none")]
    done = subprocess.run(
        command("guestd", "agent", *arguments), env=environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (78, f"guestd: --secret-file {tmp_path}/none: No such file or directory\n")
