"""Virtual machines with guestd as a process: with libvirt, with an unavailable one, and without."""

import os
import subprocess
from contextlib import nullcontext
from pathlib import Path
from uuid import UUID

import pytest
from tools.harness.waiting import eventually

from support.daemon import Daemon, add_machine, command, environment, metrics_line, rows
from support.faults import store_closed
from support.libvirt import AGENT_CHANNEL, domain_xml, uri_of


def test_rows_follow_domains_and_statistics_are_exposed(daemon: Daemon, tmp_path: Path) -> None:
    machine_id = add_machine(daemon.dsn)
    uri = uri_of(tmp_path / "node.xml", [domain_xml(str(machine_id), 1)])
    daemon.more_tables = f'[libvirt]\nuri = "{uri}"\nhost_name = "here"\n'
    daemon.start()
    state = 'SELECT "state", "hostName", "domainState" FROM "MachineState"'
    eventually(lambda: rows(daemon.dsn, state) == [("running", "here", "running")], "the row follows the domain")
    assert daemon.metric("libvirt_up") == 1
    assert daemon.metric("libvirt_domains") == 1
    eventually(
        lambda: daemon.metric("libvirt_domain_info_state", domain=str(machine_id)) == 1, "the domain has statistics"
    )


@pytest.mark.parametrize("away", ["store", "libvirt"])
def test_known_channels_are_read_before_store_or_libvirt_answers(daemon: Daemon, tmp_path: Path, away: str) -> None:
    guest = daemon.guest()
    machine_id = UUID(guest.path.stem)
    channel = AGENT_CHANNEL.replace("/run/channels/{name}", str(guest.path))
    uri = uri_of(tmp_path / "node.xml", [domain_xml(str(machine_id), 1, devices=channel)])
    daemon.virtio_lines = 'discovery = "libvirt"\n'
    daemon.more_tables = f'[libvirt]\nuri = "{uri}"\n'
    daemon.start()
    guest.write(metrics_line())
    eventually(lambda: daemon.metric("guestd_frames_done_total", outcome="stored") == 1, "the first is stored")
    daemon.stop()
    guest.hang_up()
    if away == "libvirt":
        daemon.more_tables = f'[libvirt]\nuri = "test+unix:///default?socket={tmp_path}/none"\n'
    with store_closed(daemon.dsn) if away == "store" else nullcontext():
        daemon.start()
        guest.write(metrics_line())
        eventually(lambda: daemon.metric("guestd_frames_accepted_total") == 1, "the second is accepted")
    eventually(lambda: daemon.metric("guestd_frames_done_total", outcome="stored") == 1, "the second is stored")


def test_a_missing_libvirt_does_not_affect_ingest(daemon: Daemon, tmp_path: Path) -> None:
    guest = daemon.guest()
    daemon.more_tables = f'[libvirt]\nuri = "test+unix:///default?socket={tmp_path}/none"\n'
    daemon.start()
    guest.write(metrics_line())
    eventually(lambda: rows(daemon.dsn, 'SELECT count(*) FROM "SystemMetrics"') == [(1,)], "the sample is stored")
    status, text = daemon.page("/readyz")
    assert (status, "libvirt: " in text) == (503, True)
    assert daemon.metric("libvirt_up") == 0
    assert rows(daemon.dsn, 'SELECT "status" FROM "Machine"') == [("running",)]


def test_a_uri_without_the_bindings_is_rejected_with_the_fix(tmp_path: Path) -> None:
    # The first libvirt on the path cannot be imported, as if it were not installed.
    (tmp_path / "libvirt.py").write_text("raise ImportError('not installed')\n")
    file = tmp_path / "guestd.toml"
    file.write_text(f'[libvirt]\nuri = "test:///default"\n[spool]\ndirectory = "{tmp_path}/spool"\n')
    bare = environment()
    bare["PYTHONPATH"] = os.pathsep.join([str(tmp_path), bare["PYTHONPATH"]])
    for verb in ("run", "plan"):
        started = command("guestd", verb, "--config", str(file))
        done = subprocess.run(started, env=bare, capture_output=True, text=True, check=False)
        assert done.returncode == 78
        assert "install guestd[libvirt]" in done.stderr


def test_a_plan_without_a_libvirt_uri_is_rejected() -> None:
    done = subprocess.run(command("guestd", "plan"), env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, "libvirt.uri is empty" in done.stderr) == (78, True)


@pytest.mark.parametrize("uri", ["test+unix:///default?socket=/nonexistent/socket"])
def test_a_plan_for_an_unavailable_libvirt_fails_with_its_uri(tmp_path: Path, uri: str) -> None:
    file = tmp_path / "guestd.toml"
    file.write_text(f'[libvirt]\nuri = "{uri}"\n')
    started = command("guestd", "plan", "--config", str(file))
    done = subprocess.run(started, env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, uri in done.stderr) == (1, True)
