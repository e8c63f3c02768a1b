"""A seeded store, the lab's libvirt, and passes over its filters; what people do to either by hand."""

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

from guestd.filters.apply import Flushed, Outcome, Passes, nothing_flushed
from guestd.filters.compiler import FilterRow
from guestd.filters.desired import asked
from guestd.filters.diff import Allowed
from guestd.filters.driver import NWFilters
from guestd.filters.plan import Guard
from guestd.filters.store import filter_store, read_rows
from guestd.filters.xml import interfaces, read
from guestd.telemetry.registry import VmMetrics
from gueststore.seed import Admin, seed
from support.daemon import add_machine, command, environment

libvirt = pytest.importorskip("libvirt", reason="libvirt-python is not installed: ./dev builds it where it can")

# The loop has the rights that the daemon has, and no more.
WRITER = "-c role=guestd_writer"
HOST = "host"
_CAMEL = re.compile("_([a-z])")
OTHER = "other"
BRIDGED = "<interface type='bridge'><source bridge='fbr0'/>"
REPORT = Allowed(Guard(20, 0.5), "report")
ENFORCE = Allowed(Guard(20, 0.5), "enforce")


def domain_xml(name: str, uuid: UUID, mac: str, chosen: str = "", network: str = "") -> str:
    """A domain with one card on the lab's bridge, or on a network; its QEMU runs without a guest."""
    card = f"<interface type='network'><source network='{network}'/>" if network else BRIDGED
    named = f"<filterref filter='{chosen}'/>" if chosen else ""
    return f"""<domain type='qemu'><name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>32</memory>
      <os><type arch='x86_64' machine='pc'>hvm</type></os>
      <devices>{card}<mac address='{mac}'/>{named}</interface></devices>
    </domain>"""


class FilterHost:
    """One host: a store with the seed's filters, the lab's libvirt, and passes that bring the two together."""

    def __init__(self, dsn: str, lab: Lab, connection: Any) -> None:
        self.dsn = dsn
        self.lab = lab
        self.libvirt = connection
        self._domains: list[str] = []

    def reconnect(self) -> None:
        """To a libvirtd that was started again."""
        self.libvirt = libvirt.open(self.lab.uri)

    def run(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """A statement on the store, as its owner."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), values)
            return cursor.fetchall() if cursor.description else []

    def passed(self, allowed: Allowed = REPORT, flushed: Flushed = nothing_flushed, host: str = HOST) -> Outcome:
        """One full pass, by a guestd of its own."""

        async def once() -> Outcome:
            driver = NWFilters(self.lab.uri, VmMetrics())
            store = filter_store(make_conninfo(self.dsn, options=WRITER), name=host, uri=driver.uri, version="9")
            async with driver.connected(), store as opened:
                return await Passes(driver, opened, allowed, flushed).full()

        return asyncio.run(once())

    def guestd(self, *arguments: str, attach: str = "report") -> tuple[int, list[str]]:
        """A verb of guestd's on this host; its status and what it printed."""
        file = self.lab.state / "guestd.toml"
        file.write_text(self.settings(attach=attach))
        done = subprocess.run(
            command("guestd", *arguments, "--config", str(file)),
            env=environment(), capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        return done.returncode, (done.stdout + done.stderr).splitlines()

    def settings(self, attach: str = "report", interval_seconds: float = 30.0) -> str:
        """The tables that a guestd of this host needs."""
        return (
            f'[store]\ndsn = "{self.dsn}"\n[libvirt]\nuri = "{self.lab.uri}"\nhost_name = "{HOST}"\n'
            f'[filters]\nattach = "{attach}"\ninterval_seconds = {interval_seconds}\n'
        )

    def machine(self, *, is_running: bool = False, names: str = "", network: str = "") -> tuple[UUID, str]:
        """A machine with a domain on this host; gives its id and its domain's name."""
        machine_id = add_machine(self.dsn)
        name = f"f{machine_id.hex[:8]}"
        self.run('UPDATE "Machine" SET "internalName" = %s WHERE "id" = %s', name, machine_id)
        mac = f"52:54:00:{machine_id.hex[:2]}:{machine_id.hex[2:4]}:{machine_id.hex[4:6]}"
        domain = self.libvirt.defineXML(domain_xml(name, uuid4(), mac, names, network))
        self._domains.append(name)
        if is_running:
            domain.createWithFlags(1)  # VIR_DOMAIN_START_PAUSED: nobody waits for a guest
        return machine_id, name

    def network(self, name: str, **addresses: str) -> None:
        """Have the network of this name give addresses to domains' interfaces; it is not started."""
        hosts = "".join(
            f"<host mac='{mac}' ip='{addresses[of]}'/>"
            for of in addresses
            for mac, *_ in interfaces(self.domain(of).XMLDesc())
        )
        self.libvirt.networkDefineXML(
            f"<network><name>{name}</name><bridge name='lab-{name}'/>"
            f"<ip address='10.9.0.1' prefix='24'><dhcp>{hosts}</dhcp></ip></network>"
        )

    def filters(self) -> dict[str, Any]:
        """libvirt's filters, as models by name."""
        found = {}
        for each in self.libvirt.listAllNWFilters():
            with suppress(libvirt.libvirtError):  # guestd has removed it meanwhile
                found[each.name()] = read(each.XMLDesc())
        return found

    def is_settled(self) -> bool:
        """Whether libvirt has all that the rows say, and nothing else of guestd's, and the store says so."""
        found = asked(asyncio.run(read_rows(self.dsn)))
        wanted = {**found.filters, **{each.name: each for each in found.umbrellas.values()}}
        seen = {name: each for name, each in self.filters().items() if name.startswith("ibay-")}
        ((waiting,),) = self.run('SELECT count(*) FROM "NWFilter" WHERE "flushedAt" IS NULL')
        return bool(seen == wanted and waiting == 0)

    def own(self) -> set[str]:
        """The names of those with guestd's prefix."""
        return {name for name in self.filters() if name.startswith("ibay-")}

    def internal(self, name: str) -> str:
        """The name in libvirt of a filter of the store."""
        return str(self.run('SELECT "internalName" FROM "NWFilter" WHERE "name" = %s', name)[0][0])

    def row(self, name: str) -> tuple[Any, ...]:
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

    def give(self, machine_id: UUID, *names: str) -> None:
        """Filters of the store for a machine."""
        self.run(
            'INSERT INTO "VMNWFilter" ("vmId", "nwFilterId") SELECT %s, "id" FROM "NWFilter" WHERE "name" = ANY(%s)',
            machine_id, list(names),
        )  # fmt: skip

    def audit(self) -> list[tuple[str, str]]:
        """Actions on filters and their outcomes, oldest first."""
        statement = 'SELECT "action", "outcome" FROM "ReconcileEvent" ORDER BY "occurredAt"'
        return [(action, outcome) for action, outcome in self.run(statement) if action not in ("claim", "status")]

    def domain(self, name: str) -> Any:
        """A domain of this host."""
        return self.libvirt.lookupByName(name)

    def forget(self, name: str) -> None:
        """A domain that the test has undefined itself."""
        self._domains.remove(name)

    def named(self, name: str) -> tuple[set[str], set[str]]:
        """The filters that a domain's interfaces name now, and when it is started again."""
        domain = self.domain(name)
        live = {chosen for *_, chosen in interfaces(domain.XMLDesc())} if domain.isActive() else set()
        return live, {chosen for *_, chosen in interfaces(domain.XMLDesc(2))}  # VIR_DOMAIN_XML_INACTIVE

    def bindings(self) -> dict[str, str]:
        """What libvirt enforces, by device."""
        return {each.portDev(): each.filterName() for each in self.libvirt.listAllNWFilterBindings()}

    def port(self, name: str) -> str:
        """The device of a running domain's interface."""
        return next(port for _, port, _ in interfaces(self.domain(name).XMLDesc()))

    def detach(self, name: str) -> None:
        """Have a domain's interface name no filter, now and later; by hand."""
        domain = self.domain(name)
        card = ElementTree.fromstring(domain.XMLDesc()).find("devices/interface")
        assert card is not None
        for each in card.findall("filterref"):
            card.remove(each)
        domain.updateDeviceFlags(ElementTree.tostring(card, encoding="unicode"), 3)  # live and stored

    def define(self, name: str, rules: str, uuid: UUID | None = None) -> None:
        """By hand, as an operator with virsh."""
        self.libvirt.nwfilterDefineXML(f"<filter name='{name}'><uuid>{uuid or uuid4()}</uuid>{rules}</filter>")

    def undefine(self, name: str) -> None:
        """By hand."""
        self.libvirt.nwfilterLookupByName(name).undefine()

    def leave(self) -> None:
        """Remove all that this host has made."""
        for name in self._domains:
            domain = self.libvirt.lookupByName(name)
            if domain.isActive():
                domain.destroy()
            domain.undefine()
        clear(self.libvirt)


def clear(connection: Any) -> None:
    """Undefine every filter of guestd's, and the one that tests call somebody else's."""
    names = {each.name() for each in connection.listAllNWFilters() if each.name().startswith(("ibay-", OTHER))}
    for name in names:
        connection.nwfilterLookupByName(name).undefine()


@pytest.fixture
def filter_host(dsn: str, lab: Lab, nwfilters: Any, bridge_port: Callable[..., str]) -> Iterator[FilterHost]:
    """A host with nothing of guestd's in libvirt yet, and the seed in the store."""
    clear(nwfilters)
    seed(dsn, Admin("a@example.org", "no guess at all"))
    host = FilterHost(dsn, lab, nwfilters)
    yield host
    host.leave()
