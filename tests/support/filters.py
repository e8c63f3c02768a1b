"""A seeded store, the lab's libvirt, reconcile runs over its filters, and manual changes to either."""

import asyncio
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from typing import Any
from uuid import UUID, uuid4
from xml.etree import ElementTree

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.types.json import Jsonb
from tools.harness.lab import Lab

from guestd.filters.apply import FilterRuns, FindFlushed, RunResult, assume_kernel_unchanged
from guestd.filters.desired import compile_rows
from guestd.filters.diff import Permissions
from guestd.filters.driver import FilterDriver
from guestd.filters.plan import Guard
from guestd.filters.snapshot import FilterRow
from guestd.filters.store import open_filter_store, read_store_snapshot
from guestd.filters.xml import list_interfaces, parse_filter
from guestd.telemetry.registry import VmMetrics
from gueststore.seed import Admin, seed
from support.daemon import add_machine, command, environment
from support.libvirt import libvirt

# Runs have the rights of the daemon and no more.
WRITER = "-c role=guestd_writer"
HOST = "host"
_CAMEL = re.compile("_([a-z])")
OTHER = "other"
BRIDGED = "<interface type='bridge'><source bridge='fbr0'/>"
REPORT = Permissions(Guard(20, 0.5), "report")
ENFORCE = Permissions(Guard(20, 0.5), "enforce")


def domain_xml(name: str, uuid: UUID, mac: str, chosen: str = "", network: str = "") -> str:
    """A domain with one interface on the lab's bridge, or on a network; its QEMU runs without a guest."""
    interface = f"<interface type='network'><source network='{network}'/>" if network else BRIDGED
    named = f"<filterref filter='{chosen}'/>" if chosen else ""
    return f"""<domain type='qemu'><name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>32</memory>
      <os><type arch='x86_64' machine='pc'>hvm</type></os>
      <devices>{interface}<mac address='{mac}'/>{named}</interface></devices>
    </domain>"""


class FilterHost:
    """One host: a store with the seed's filters, the lab's libvirt, and reconcile runs over both."""

    def __init__(self, dsn: str, lab: Lab, connection: Any) -> None:
        self.dsn = dsn
        self.lab = lab
        self.libvirt = connection
        self._domains: list[str] = []

    def reconnect(self) -> None:
        """Connect to a restarted libvirtd."""
        self.libvirt = libvirt.open(self.lab.uri)

    def run(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Run a statement on the store, as its owner."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), values)
            return cursor.fetchall() if cursor.description else []

    def reconcile(
        self, permissions: Permissions = REPORT, find_flushed: FindFlushed = assume_kernel_unchanged, host: str = HOST
    ) -> RunResult:
        """One full run, by a guestd of its own."""

        async def once() -> RunResult:
            driver = FilterDriver(self.lab.uri, VmMetrics())
            store = open_filter_store(make_conninfo(self.dsn, options=WRITER), name=host, uri=driver.uri, version="9")
            async with driver.connect(), store as opened:
                return await FilterRuns(driver, opened, permissions, find_flushed).run_full()

        return asyncio.run(once())

    def guestd(self, *arguments: str, attach: str = "report") -> tuple[int, list[str]]:
        """Run a verb of guestd on this host; returns its exit status and the printed lines."""
        file = self.lab.state / "guestd.toml"
        file.write_text(self.settings(attach=attach))
        done = subprocess.run(
            command("guestd", *arguments, "--config", str(file)),
            env=environment(), capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        return done.returncode, (done.stdout + done.stderr).splitlines()

    def settings(self, attach: str = "report", interval_seconds: float = 30.0) -> str:
        """The tables of guestd.toml that a guestd of this host needs."""
        return (
            f'[store]\ndsn = "{self.dsn}"\n[libvirt]\nuri = "{self.lab.uri}"\nhost_name = "{HOST}"\n'
            f'[filters]\nattach = "{attach}"\ninterval_seconds = {interval_seconds}\n'
        )

    def add_machine(self, *, is_running: bool = False, names: str = "", network: str = "") -> tuple[UUID, str]:
        """Add a machine with a domain on this host; returns its id and the domain's name."""
        machine_id = add_machine(self.dsn)
        name = f"f{machine_id.hex[:8]}"
        self.run('UPDATE "Machine" SET "internalName" = %s WHERE "id" = %s', name, machine_id)
        mac = f"52:54:00:{machine_id.hex[:2]}:{machine_id.hex[2:4]}:{machine_id.hex[4:6]}"
        domain = self.libvirt.defineXML(domain_xml(name, uuid4(), mac, names, network))
        self._domains.append(name)
        if is_running:
            domain.createWithFlags(1)  # VIR_DOMAIN_START_PAUSED: no test needs the guest
        return machine_id, name

    def define_network(self, name: str, **addresses: str) -> None:
        """Define a network that assigns addresses to domains' interfaces; it is not started."""
        hosts = "".join(
            f"<host mac='{mac}' ip='{addresses[of]}'/>"
            for of in addresses
            for mac, *_ in list_interfaces(self.domain(of).XMLDesc())
        )
        self.libvirt.networkDefineXML(
            f"<network><name>{name}</name><bridge name='lab-{name}'/>"
            f"<ip address='10.9.0.1' prefix='24'><dhcp>{hosts}</dhcp></ip></network>"
        )

    def filters(self) -> dict[str, Any]:
        """libvirt's filters as models, by name."""
        found = {}
        for each in self.libvirt.listAllNWFilters():
            with suppress(libvirt.libvirtError):  # guestd removed it meanwhile
                found[each.name()] = parse_filter(each.XMLDesc())
        return found

    def is_settled(self) -> bool:
        """Whether libvirt has exactly the desired filters of guestd, and the store knows it."""
        compiled = compile_rows(asyncio.run(read_store_snapshot(self.dsn)))
        desired = {**compiled.filters, **{each.name: each for each in compiled.machine_filters.values()}}
        observed = {name: each for name, each in self.filters().items() if name.startswith("ibay-")}
        ((waiting,),) = self.run('SELECT count(*) FROM "NWFilter" WHERE "flushedAt" IS NULL')
        return bool(observed == desired and waiting == 0)

    def own(self) -> set[str]:
        """The names with guestd's prefix."""
        return {name for name in self.filters() if name.startswith("ibay-")}

    def internal_name(self, name: str) -> str:
        """The name in libvirt of a filter of the store."""
        return str(self.run('SELECT "internalName" FROM "NWFilter" WHERE "name" = %s', name)[0][0])

    def read_row(self, name: str) -> tuple[Any, ...]:
        """flushedAt and problem of a filter."""
        return self.run('SELECT "flushedAt", "problem" FROM "NWFilter" WHERE "name" = %s', name)[0]

    def edit(self, name: str, column: str, value: Any) -> None:
        """Change a column of all rules of a filter."""
        statement = f'''UPDATE "FWRule" SET "{column}" = %s
            WHERE "nwFilterId" = (SELECT "id" FROM "NWFilter" WHERE "name" = %s)'''
        self.run(statement, value, name)

    def store(self, rows: Iterable[FilterRow]) -> None:
        """Write filters into the store; each after those that it includes."""
        with psycopg.connect(self.dsn) as connection:
            for row in rows:
                values = (row.id, row.name, row.internal_name, row.uuid, row.chain, row.priority, row.state_match)
                connection.execute(
                    """INSERT INTO "NWFilter" ("id", "name", "internalName", "uuid", "chain", "priority", "stateMatch")
                    VALUES (%s, %s, %s, %s, %s, %s, %s)""",
                    values,
                )
                for rule in row.rules:
                    columns = {_CAMEL.sub(lambda part: part[1].upper(), name): of for name, of in asdict(rule).items()}
                    columns |= {"nwFilterId": row.id, "state": Jsonb(rule.state) if rule.state else None}
                    connection.execute(
                        sql.SQL('INSERT INTO "FWRule" ({}) VALUES ({})').format(
                            sql.SQL(", ").join(map(sql.Identifier, columns)),
                            sql.SQL(", ").join([sql.Placeholder()] * len(columns)),
                        ),
                        list(columns.values()),
                    )
                for target in row.targets:
                    connection.execute(
                        'INSERT INTO "FilterReference" ("sourceFilterId", "targetFilterId") VALUES (%s, %s)',
                        (row.id, target),
                    )

    def assign(self, machine_id: UUID, *names: str) -> None:
        """Assign filters of the store to a machine."""
        self.run(
            'INSERT INTO "VMNWFilter" ("vmId", "nwFilterId") SELECT %s, "id" FROM "NWFilter" WHERE "name" = ANY(%s)',
            machine_id, list(names),
        )  # fmt: skip

    def audit(self) -> list[tuple[str, str]]:
        """Audited actions on filters with their outcomes, oldest first."""
        statement = 'SELECT "action", "outcome" FROM "ReconcileEvent" ORDER BY "occurredAt"'
        return [(action, outcome) for action, outcome in self.run(statement) if action not in ("claim", "status")]

    def domain(self, name: str) -> Any:
        """A domain of this host."""
        return self.libvirt.lookupByName(name)

    def forget(self, name: str) -> None:
        """Do not clean up a domain: the test undefined it itself."""
        self._domains.remove(name)

    def filters_named(self, name: str) -> tuple[set[str], set[str]]:
        """The filters that a domain's interfaces name now, and after its next start."""
        domain = self.domain(name)
        live = {chosen for *_, chosen in list_interfaces(domain.XMLDesc())} if domain.isActive() else set()
        return live, {chosen for *_, chosen in list_interfaces(domain.XMLDesc(2))}  # VIR_DOMAIN_XML_INACTIVE

    def bindings(self) -> dict[str, str]:
        """The filter that libvirt enforces, by device."""
        return {each.portDev(): each.filterName() for each in self.libvirt.listAllNWFilterBindings()}

    def port(self, name: str) -> str:
        """The device of a running domain's interface."""
        return next(port for _, port, _ in list_interfaces(self.domain(name).XMLDesc()))

    def detach(self, name: str) -> None:
        """Manually make a domain's interface name no filter, live and stored."""
        domain = self.domain(name)
        interface = ElementTree.fromstring(domain.XMLDesc()).find("devices/interface")
        assert interface is not None
        for each in interface.findall("filterref"):
            interface.remove(each)
        domain.updateDeviceFlags(ElementTree.tostring(interface, encoding="unicode"), 3)  # live and stored

    def define(self, name: str, rules: str, uuid: UUID | None = None) -> None:
        """Define a filter manually, as an operator with virsh."""
        self.libvirt.nwfilterDefineXML(f"<filter name='{name}'><uuid>{uuid or uuid4()}</uuid>{rules}</filter>")

    def undefine(self, name: str) -> None:
        """Undefine a filter manually."""
        self.libvirt.nwfilterLookupByName(name).undefine()

    def clean_up(self) -> None:
        """Remove all that this host made."""
        for name in self._domains:
            domain = self.libvirt.lookupByName(name)
            if domain.isActive():
                domain.destroy()
            domain.undefine()
        clear(self.libvirt)


def clear(connection: Any) -> None:
    """Undefine every filter of guestd, and the one that tests use as a foreign one."""
    names = {each.name() for each in connection.listAllNWFilters() if each.name().startswith(("ibay-", OTHER))}
    for name in names:
        connection.nwfilterLookupByName(name).undefine()


@pytest.fixture
def filter_host(dsn: str, lab: Lab, nwfilters: Any, bridge_port: Callable[..., str]) -> Iterator[FilterHost]:
    """A host without filters of guestd in libvirt, and the seed in the store."""
    clear(nwfilters)
    seed(dsn, Admin("a@example.org", "no guess at all"))
    host = FilterHost(dsn, lab, nwfilters)
    yield host
    host.clean_up()
