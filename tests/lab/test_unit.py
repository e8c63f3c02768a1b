"""The systemd unit on a host with libvirt: its own user, with the rights that an operator gives it, and no others."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tools.harness.lab import Lab
from tools.harness.packages import unpacked
from tools.harness.waiting import eventually

from support.booted import Host, booted
from support.daemon import rows
from support.lab import BOOT_SECONDS, LabGuests, register, started_lab

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.environ.get("GUESTD_FAULTS") != "full", reason="./dev faults boots a systemd and a guest"),
]


@pytest.fixture
def libvirt_lab() -> Iterator[Lab]:
    """A libvirtd whose sockets a unit with a /tmp of its own can see."""
    with started_lab(where=Path("/srv")) as lab:
        lab.state.chmod(0o755)
        yield lab


@pytest.fixture
def host(dsn: str, wheel: Path, libvirt_lab: Lab) -> Iterator[Host]:
    """A machine with that libvirt."""
    with booted(dsn, wheel, [libvirt_lab.state, unpacked("libvirt")]) as host:
        yield host


def test_the_unit_reads_a_real_guests_channel_found_through_libvirt(host: Host, libvirt_lab: Lab) -> None:
    guest = LabGuests(libvirt_lab).boot()
    register(host.dsn, guest)
    eventually(guest.runs, f"{guest.name} has booted", BOOT_SECONDS)
    host.configure(f'[libvirt]\nuri = "{libvirt_lab.uri}"\n', virtio='discovery = "libvirt"')
    # The group of libvirt's socket is for hosts with libvirt.uri.
    assert "libvirt" not in host.run("id", "--name", "--groups", "guestd").split()
    host.run("sh", "-c", "PATH=/opt/bin:$PATH guestd setup")
    assert "libvirt" in host.run("id", "--name", "--groups", "guestd").split()
    host.run("systemctl", "start", "guestd")
    host.is_up()
    # Both are root's in the lab. On a host libvirt's socket is its group's, and a channel is QEMU's.
    host.logs("Permission denied")
    for group, path in (("libvirt", libvirt_lab.socket), ("libvirt-qemu", guest.socket)):
        host.run("chgrp", group, str(path))
        host.run("chmod", "0770", str(path))
    # libvirtd knows the users of its own namespace, which on a host are the unit's too.
    host.logs("Failed to find user record")
    assert "useradd" in doctor_of_libvirt(host)
    libvirt_lab.knows_user("guestd", *(int(host.run("id", option, "guestd")) for option in ("--user", "--group")))
    guest.wait_for_samples()
    stored = 'SELECT count(*) >= 10 FROM "SystemMetrics" WHERE "machineId" = %s'
    eventually(lambda: rows(host.dsn, stored, guest.uuid) == [(True,)], "its samples are stored", BOOT_SECONDS)
    state = 'SELECT "state", "channel" FROM "MachineState" WHERE "id" = %s'
    eventually(
        lambda: rows(host.dsn, state, guest.uuid) == [("running", "connected")],
        "the state of the domain is stored",
        BOOT_SECONDS,
    )
    pid = host.show("MainPID")
    assert host.run("stat", "--format=%U:%G", f"/proc/{pid}").strip() == "guestd:guestd"
    said = doctor_of_libvirt(host)
    assert "answers: 1 domains" in said
    assert "1 sockets exist and may be opened" in said


def doctor_of_libvirt(host: Host) -> str:
    """The doctor's findings on libvirt and channels, run as guestd's user with the groups from `guestd setup`."""
    as_guestd = ("setpriv", "--reuid=guestd", "--regid=guestd", "--init-groups")
    said = host.run(*as_guestd, "/opt/bin/guestd", "doctor", "--config", "/etc/guestd/guestd.toml")
    return "\n".join(line for line in said.splitlines() if " libvirt " in line or " channels " in line)
