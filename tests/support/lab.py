"""The lab for tests: real guests on a real libvirtd, and their samples counted against the tables.

Booting takes seconds, so guests exist for the session: a test uses some, each begins a new run of its sender for it,
and those that it has not destroyed are reused.
"""

import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from tools.harness.lab import Lab, LabError, obstacle
from tools.harness.lab_domain import agent_channel_xml
from tools.harness.packages import PackagesError
from tools.harness.waiting import eventually

from support.daemon import Daemon, add_machine, execute, rows
from support.faults import Tally, count_samples

# An emulated guest on a shared machine.
BOOT_SECONDS = 300.0
# More of them take longer, each and in sum.
BOOT_AT_ONCE = 3
SAMPLE_MILLISECONDS = 50
# Ends the started program when the session is killed.
WITH_US = ("setpriv", "--pdeathsig", "KILL")


@dataclass(frozen=True)
class Run:
    """One run of a guest's sender, as last printed on its console: numbers are base + 1 .. base + posted."""

    base: int
    posted: int
    acknowledged: int


class LabGuest:
    """One guest of the lab."""

    def __init__(self, lab: Lab, name: str, uuid: UUID) -> None:
        self.lab = lab
        self.name = name
        self.uuid = uuid
        self.first_base = 0

    @property
    def console(self) -> Path:
        """What its kernel and its sender print."""
        return self.lab.channels / f"{self.name}.log"

    @property
    def socket(self) -> Path:
        """The agent's channel."""
        return self.lab.channels / f"{self.uuid}.socket"

    def virsh(self, command: str, *words: str) -> str:
        """Run a virsh command on this guest."""
        return self.lab.run("virsh", "-q", command, self.name, *words).strip()

    def run(self, command: str) -> str:
        """Run a shell command in the guest and return what it prints."""
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(BOOT_SECONDS)
            control.connect(str(self.lab.channels / f"{self.name}.control"))
            control.sendall(command.encode() + b"\n")
            output = b""
            while b"#status " not in output:
                chunk = control.recv(65536)
                assert chunk, f"{self.name} has gone"
                output += chunk
        return output.partition(b"#status ")[0].decode()

    @contextmanager
    def running_command(self, command: str) -> Iterator[None]:
        """Run a command that may end the guest before it answers."""
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(str(self.lab.channels / f"{self.name}.control"))
            control.sendall(command.encode() + b"\n")
            yield

    def runs(self) -> list[Run]:
        """The runs of its sender since this test took it, oldest first."""
        latest: dict[int, Run] = {}
        printed = self.console.read_text(errors="replace")
        assert "Traceback" not in printed, printed[-2000:]
        for line in printed.splitlines():
            word, _, rest = line.partition(" ")
            if word == "lab-sender" and len(fields := rest.split()) == 4 and all(map(str.isdigit, fields)):
                base, posted, acknowledged, given_up = map(int, fields)
                assert given_up == 0, line
                latest[base] = Run(base, posted, acknowledged)
        return [run for base, run in sorted(latest.items()) if base >= self.first_base]

    def wait_for_new_run(self, before: int) -> None:
        """Wait until more than `before` runs have begun, and the latest is under way."""
        eventually(lambda: len(self.runs()) > before, f"{self.name} has begun a new run", BOOT_SECONDS)
        self.wait_for_samples()

    def acknowledged(self) -> int:
        """Of its latest run."""
        return self.runs()[-1].acknowledged

    def is_acknowledged(self) -> bool:
        """Whether guestd has all that its latest run has posted."""
        return self.runs()[-1].acknowledged == self.runs()[-1].posted

    def wait_for_samples(self, samples: int = 10) -> None:
        """Wait until this many more samples are acknowledged."""
        # After a migration the console of the new host is empty at first.
        eventually(self.runs, f"{self.name} prints its progress", BOOT_SECONDS)
        target = self.acknowledged() + samples
        eventually(lambda: self.acknowledged() >= target, f"{self.name}: {self.tail()}", BOOT_SECONDS)

    def tail(self) -> str:
        """The end of its console."""
        return self.console.read_text(errors="replace")[-300:]

    def unplug_channel(self) -> None:
        """Unplug the agent's channel and wait until it is gone."""
        self._device("detach-device")
        eventually(lambda: str(self.socket) not in self.virsh("dumpxml"), "the channel is gone", BOOT_SECONDS)

    def plug_channel(self) -> None:
        """Plug the agent's channel in again."""
        self._device("attach-device")

    def _device(self, command: str) -> None:
        device = self.lab.state / "channel.xml"
        device.write_text(agent_channel_xml(self.uuid, self.lab.channels))
        self.virsh(command, str(device), "--live")

    def migrate(self, target: Lab) -> None:
        """Move it to another lab while it runs; its definition stays behind, and it is defined there, too.

        One without a definition has none there either.
        """
        import libvirt  # noqa: PLC0415 -- where it is missing the fixtures skip, and this module is still imported

        here, there = libvirt.open(self.lab.uri), libvirt.open(target.uri)
        try:
            domain = here.lookupByName(self.name)
            xml = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_MIGRATABLE)
            # Each lab has sockets and consoles of its own.
            parameters = {
                libvirt.VIR_MIGRATE_PARAM_DEST_XML: xml.replace(str(self.lab.state), str(target.state)),
                libvirt.VIR_MIGRATE_PARAM_URI: "tcp://127.0.0.1:49152",
            }
            persist = libvirt.VIR_MIGRATE_PERSIST_DEST if domain.isPersistent() else 0
            domain.migrate3(there, parameters, libvirt.VIR_MIGRATE_LIVE | persist)
        finally:
            here.close()
            there.close()
        self.lab = target

    def restart_sender(self) -> None:
        """Begin a new run."""
        self.run("kill -9 $(pidof python3.11)")


def register(dsn: str, guest: LabGuest) -> None:
    """Insert the guest's Machine row."""
    add_machine(dsn, guest.uuid)
    execute(dsn, f"""UPDATE "Machine" SET "internalName" = '{guest.name}' WHERE "id" = '{guest.uuid}' """)


class LabGuests:
    """The guests of a session."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.idle: list[LabGuest] = []
        self._made = 0

    def boot(self, program: str = f"lab.sender={SAMPLE_MILLISECONDS}") -> LabGuest:
        """A new guest, not up yet."""
        self._made += 1
        guest = LabGuest(self.lab, f"lab{self._made}", uuid4())
        self.lab.add_guest(guest.name, guest.uuid, program)
        return guest

    def remove(self, guest: LabGuest) -> None:
        """Destroy and undefine it, whatever state it is in."""
        for command in ("destroy", "undefine"):
            with suppress(LabError):  # it was off, or undefined, already
                guest.virsh(command)


class World:
    """A guestd on the lab's channels, and the guests of one test."""

    def __init__(self, daemon: Daemon, guests: LabGuests) -> None:
        self.daemon = daemon
        self.guests = guests
        self.in_use: list[LabGuest] = []
        daemon.virtio_lines = 'discovery = "libvirt"\n'
        daemon.more_tables = f'[libvirt]\nuri = "{guests.lab.uri}"\n'

    @property
    def lab(self) -> Lab:
        """Where the guests are."""
        return self.guests.lab

    def take(self, count: int = 1, *, sample_milliseconds: int = SAMPLE_MILLISECONDS) -> list[LabGuest]:
        """Use `count` guests that send to the running guestd; each has begun a new run, partly acknowledged.

        `sample_milliseconds` applies to newly booted guests.
        """
        reused = [self.guests.idle.pop() for _ in range(min(count, len(self.guests.idle)))]
        self.in_use += reused
        for guest in reused:
            guest.first_base = guest.runs()[-1].base + 1
            guest.restart_sender()
        while len(self.in_use) < count:
            program = f"lab.sender={sample_milliseconds}"
            booting = [self.guests.boot(program) for _ in range(min(BOOT_AT_ONCE, count - len(self.in_use)))]
            self.in_use += booting
            for guest in booting:
                eventually(guest.runs, f"{guest.name} has booted", BOOT_SECONDS)
        for guest in self.in_use:
            register(self.daemon.dsn, guest)
        self.daemon.start()
        for guest in self.in_use:
            eventually(guest.runs, f"{guest.name} has begun a new run", BOOT_SECONDS)
            guest.wait_for_samples()
        return self.in_use

    def samples(self, guest: LabGuest) -> int:
        """How many of its samples are in the tables."""
        return int(
            rows(self.daemon.dsn, 'SELECT count(*) FROM "SystemMetrics" WHERE "machineId" = %s', guest.uuid)[0][0]
        )

    def status_becomes(self, guest: LabGuest, status: str) -> None:
        """Wait until the guest's row has this status."""
        self._becomes(guest, 'SELECT "status" FROM "Machine" WHERE "id" = %s', status)

    def state_becomes(self, guest: LabGuest, state: str) -> None:
        """Wait until MachineState has this state, which is unknown while libvirt does not answer."""
        self._becomes(guest, 'SELECT "state" FROM "MachineState" WHERE "id" = %s', state)

    def _becomes(self, guest: LabGuest, question: str, word: str) -> None:
        def is_so() -> bool:
            assert self.daemon.ended() is None, "guestd has ended"
            return rows(self.daemon.dsn, question, guest.uuid) == [(word,)]

        eventually(is_so, f"{guest.name} is {word}", BOOT_SECONDS)

    def settle(self, *guests: LabGuest) -> Tally:
        """Stop sampling in the guests, wait until all samples are acknowledged and stored, and count them."""
        for guest in guests:
            guest.run("touch /run/stop")
        for guest in guests:
            eventually(guest.is_acknowledged, f"all is acknowledged: {guest.tail()}", BOOT_SECONDS)
        counts = self.count_samples()
        for guest in guests:
            guest.run("rm /run/stop")
        return counts

    def count_samples(self) -> Tally:
        """Compare what the test's guests sent with the tables.

        A run that completed has sent what it printed. Of a run that was cut off only the numbers that were acknowledged
        or stored are known: all up to the highest of these count as sent.
        """
        # Read before the tables: frames acknowledged after that may still be in the spool.
        sender_runs = [(guest, guest.runs()) for guest in self.in_use]
        eventually(lambda: self.daemon.metric("guestd_spool_frames") == 0, "all is stored", 60)
        stored = rows(self.daemon.dsn, 'SELECT "machineId", "uptime" FROM "SystemMetrics"')
        sent: dict[UUID, list[int]] = {}
        for guest, runs in sender_runs:
            numbers = sorted(number for machine_id, number in stored if machine_id == guest.uuid)
            for run, following in zip(runs, [*(run.base for run in runs[1:]), 2**62], strict=True):
                highest = max((number for number in numbers if run.base < number <= following), default=run.base)
                sent.setdefault(guest.uuid, []).extend(
                    range(run.base + 1, max(highest, run.base + run.acknowledged) + 1)
                )
        return count_samples(self.daemon.dsn, sent)


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """A private libvirtd, for the session."""
    if reason := obstacle():
        pytest.skip(reason)
    with started_lab() as lab:
        yield lab


@contextmanager
def started_lab(*, beside: Lab | None = None, where: Path | None = None) -> Iterator[Lab]:
    """A private libvirtd; `beside`: in the network of another, so that guests can be migrated."""
    pytest.importorskip("libvirt", reason="libvirt-python is not installed: ./dev builds it where it can")
    # Of its own: the name of a socket must be short.
    state = Path(tempfile.mkdtemp(prefix="guestd-lab-", dir=where))
    lab = Lab(state, beside=beside)
    try:
        lab.up(*WITH_US)
    except PackagesError as exc:
        pytest.skip(str(exc))
    try:
        yield lab
    finally:
        lab.down()
        shutil.rmtree(state)


@pytest.fixture(scope="session")
def guests(lab: Lab) -> LabGuests:
    """The guests of the session."""
    return LabGuests(lab)


@pytest.fixture
def world(daemon: Daemon, guests: LabGuests) -> Iterator[World]:
    """A guestd for this test, started with the first guest; guests that still run are kept for the next test."""
    world = World(daemon, guests)
    yield world
    for guest in world.in_use:
        is_running = guest.name in guests.lab.run("virsh", "-q", "list", "--name", "--state-running").split()
        if is_running:
            guests.idle.append(guest)
        else:
            guests.remove(guest)
