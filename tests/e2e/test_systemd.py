"""deploy/systemd under a real systemd, and the verdict of systemd's own tools."""

import json
import shutil
import subprocess
from pathlib import Path

import bcrypt
import pytest
from tools.harness.ports import free_port
from tools.harness.waiting import eventually

from support.booted import DEPLOY, Host
from support.daemon import metrics_line, rows

MOST_EXPOSURE = 1.5


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit, with a program that every host has, because verify checks that it exists."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("this host has no systemd-analyze")
    unit = tmp_path / "guestd.service"
    unit.write_text((DEPLOY / "guestd.service").read_text().replace("/usr/local/bin/guestd", "/bin/true"))
    return unit


def analyzed(*words: str) -> str:
    done = subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_systemd_analyze_accepts_the_unit(unit: Path) -> None:
    assert analyzed("verify", str(unit)) == ""


def test_systemd_analyze_rejects_a_broken_unit(unit: Path) -> None:
    unit.write_text(unit.read_text() + "\n[Service]\nNoSuchKey=1\n")
    assert "NoSuchKey" in analyzed("verify", str(unit))


def test_the_exposure_of_the_unit_is_as_documented(unit: Path) -> None:
    said = analyzed("security", "--offline=yes", "--json=short", str(unit))
    exposures = [float(each["exposure"]) for each in json.loads(said) if each["exposure"] and not each["set"]]
    whole = analyzed("security", "--offline=yes", "--no-pager", str(unit)).strip().splitlines()[-1]
    assert float(whole.split(":")[1].split()[0]) <= MOST_EXPOSURE, exposures


def test_the_unit_reads_a_guest_as_its_own_user(host: Host) -> None:
    guest = host.guest()
    said = host.follow("First start")
    assert host.show("ActiveState") == "active", (said, host.messages())
    # The doctor, as root: it names that, and no fault.
    assert "fault" not in said
    pid = host.show("MainPID")
    assert host.run("stat", "--format=%U:%G", f"/proc/{pid}").strip() == "guestd:guestd"
    assert host.run("stat", "--format=%U %a", "/var/lib/guestd").strip() == "guestd 750"
    guest.write(metrics_line())
    eventually(lambda: rows(host.dsn, 'SELECT 1 FROM "SystemMetrics"'), "the sample is stored")
    eventually(lambda: host.show("StatusText").startswith("1 channels"), "systemd shows the status")

    host.configure('[privacy]\ncommand_lines = "off"\n[limits]\nburst_rows = 1\n[spool]\nmax_bytes = 1000000\n')
    host.run("systemctl", "reload", "guestd")
    host.logs("configuration changes need a restart")
    priorities = {json.loads(line["MESSAGE"])["level"]: line["PRIORITY"] for line in host.journal() if _is_ours(line)}
    assert priorities == {"info": "6", "warning": "4"}
    assert host.show("MainPID") == pid
    host.follow("Change the configuration")
    assert host.show("MainPID") == pid

    host.run("kill", "-KILL", pid)
    host.is_up(after=pid)


def test_the_unit_ends_before_a_virtual_machine_when_memory_does(host: Host) -> None:
    host.run("systemctl", "start", "guestd")
    host.is_up()
    adjusted = int(host.run("cat", f"/proc/{host.show('MainPID')}/oom_score_adj"))
    # The most that there is; libvirt starts QEMU with 0.
    assert adjusted == 1000
    assert int(host.show("MemoryHigh")) < int(host.show("MemoryMax")) == 2 * 2**30
    assert host.show("TasksMax") == "512"
    assert host.show("OOMPolicy") == "continue"
    threads = len(host.run("ls", f"/proc/{host.show('MainPID')}/task").split())
    assert threads < 512 / 4


def test_the_group_that_is_as_good_as_root_is_the_units_only_with_libvirt(host: Host) -> None:
    host.run("systemctl", "start", "guestd")
    host.is_up()
    assert "libvirt" not in groups_of_the_unit(host)
    host.configure('[libvirt]\nuri = "qemu:///system"\n')
    assert "guestd-libvirt.conf: written" in host.follow("Install")
    # This machine has no libvirt to connect to; the group stays after the setting.
    host.configure()
    host.run("systemctl", "restart", "guestd")
    host.is_up()
    assert "libvirt" in groups_of_the_unit(host)
    assert "can do what root can" in host.run("/opt/bin/guestd", "doctor", "--config", "/etc/guestd/guestd.toml")
    said = host.follow("Install")
    assert "guestd-libvirt.conf: removed" in said
    assert "gpasswd --delete guestd libvirt; systemctl restart guestd" in said
    host.run("gpasswd", "--delete", "guestd", "libvirt")
    host.run("systemctl", "restart", "guestd")
    host.is_up()
    assert "libvirt" not in groups_of_the_unit(host)


def groups_of_the_unit(host: Host) -> list[str]:
    """The names of the groups of guestd's process."""
    status = host.run("cat", f"/proc/{host.show('MainPID')}/status")
    numbers = next(line for line in status.splitlines() if line.startswith("Groups:")).split()[1:]
    return host.run("getent", "group", *numbers).replace(":", " ").split()


def test_a_credential_of_the_unit_is_changed_by_a_restart(host: Host) -> None:
    host.port = free_port()
    host.configure('web_config_file = "/run/credentials/guestd.service/guestd_web.yml"\n')
    host.secret("web.yml", users("first"))
    host.run("systemctl", "start", "guestd")
    host.is_up()
    url = f"http://127.0.0.1:{host.port}/healthz"
    assert host.run("curl", "-s", "--user", "alice:first", url) == "alive\n"
    assert host.run("curl", "-s", url) == "Unauthorized\n"

    host.secret("web.yml", users("second"))
    assert host.follow("Rotate a secret").startswith("active\n")
    assert host.run("curl", "-s", "--user", "alice:first", url) == "Unauthorized\n"
    assert host.run("curl", "-s", "--user", "alice:second", url) == "alive\n"
    # Readable by no one else, and in no line of the journal.
    assert host.run("stat", "--format=%U %a", "/etc/guestd/credentials/web.yml").strip() == "root 600"
    assert "$2b$" not in host.messages()


def users(password: str) -> str:
    return f'basic_auth_users:\n  alice: "{bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()}"\n'


def test_the_journal_has_no_guest_data_and_few_lines_of_a_noisy_guest(host: Host) -> None:
    host.run("systemctl", "start", "guestd")
    guest = host.guest()
    guest.write(b'{"type":"metrics","password":"of-the-guest"\n' * 500)
    guest.write(metrics_line())
    eventually(lambda: rows(host.dsn, 'SELECT 1 FROM "SystemMetrics"'), "the sample is stored")
    eventually(lambda: rows(host.dsn, 'SELECT 1 FROM "QuarantinedFrame"'), "an unreadable frame is quarantined")
    assert "of-the-guest" not in host.messages()
    assert len(host.journal()) < 60


def test_another_release_is_installed_over_it_and_the_host_is_retired(host: Host) -> None:
    """The unit of an older release, and a configuration of the operator's."""
    guest = host.guest()
    (host.etc / "systemd/system/guestd.service").write_text("[Service]\nExecStart=/bin/false\n")
    before = (host.etc / "guestd/guestd.toml").read_text()
    said = host.follow("Upgrade and roll back")
    assert "guestd.service: written" in said
    assert (host.etc / "guestd/guestd.toml").read_text() == before
    host.is_up()
    guest.write(metrics_line())
    eventually(lambda: rows(host.dsn, 'SELECT 1 FROM "SystemMetrics"'), "the sample is stored")
    assert '"spool_frames": 0' in host.follow("Retire a host")
    assert host.show("ActiveState") == "inactive"


def _is_ours(line: dict[str, object]) -> bool:
    return str(line.get("MESSAGE")).startswith("{")


def test_a_frozen_daemon_is_killed_by_the_watchdog_and_restarted(host: Host) -> None:
    host.run("systemctl", "start", "guestd")
    host.is_up()
    pid = host.show("MainPID")
    host.run("kill", "-STOP", pid)
    host.is_up(after=pid)
    host.logs("Watchdog timeout")
    assert host.show("NRestarts") == "1"


def test_an_invalid_configuration_is_not_restarted_repeatedly(host: Host) -> None:
    host.configure("[nonsense]\n")
    host.run("systemctl", "start", "guestd")
    assert host.show("ActiveState") == "failed"
    assert host.show("ExecMainStatus") == "78"
    assert host.show("NRestarts") == "0"
    (line,) = [line for line in host.journal() if "nonsense" in str(line.get("MESSAGE"))]
    assert line["PRIORITY"] == "3"
