"""guestd filters plan prints what would be done to libvirt, and changes nothing."""

import asyncio
import subprocess
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from tools.harness.lab import Lab

from guestd.filters.driver import observe_host
from guestd.filters.machine_filter import machine_filter_name
from gueststore.seed import Admin, seed
from support.daemon import add_machine, command, environment

pytestmark = pytest.mark.timeout(600)


def plan(dsn: str, uri: str, directory: Path) -> list[str]:
    file = directory / "guestd.toml"
    file.write_text(f'[store]\ndsn = "{dsn}"\n[libvirt]\nuri = "{uri}"\n')
    started = command("guestd", "filters", "plan", "--config", str(file))
    done = subprocess.run(started, env=environment(), capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def domain_of(name: str, chosen: str) -> str:
    return f"""<domain type='qemu'><name>{name}</name><uuid>{uuid4()}</uuid><memory unit='MiB'>96</memory>
      <os><type arch='x86_64' machine='pc'>hvm</type></os>
      <devices><interface type='bridge'><source bridge='fbr0'/><filterref filter='{chosen}'/></interface></devices>
    </domain>"""


def test_a_plan_names_every_filter_of_the_store_and_of_the_machines_of_this_host(
    dsn: str, lab: Lab, nwfilters: Any, tmp_path: Path
) -> None:
    seed(dsn, Admin("a@example.org", "no guess at all"))
    here, elsewhere = add_machine(dsn), add_machine(dsn)
    before = asyncio.run(observe_host(lab.uri))
    domain = nwfilters.defineXML(domain_of(str(here), machine_filter_name(here)))
    try:
        assert machine_filter_name(here) in asyncio.run(observe_host(lab.uri)).observed.bound
        printed = plan(dsn, lab.uri, tmp_path)
    finally:
        domain.undefine()
    names = {line.split(":")[0].removeprefix("define ") for line in printed if line.startswith("define ")}
    assert len(names) == 68
    assert machine_filter_name(here) in names
    assert machine_filter_name(elsewhere) not in names
    assert asyncio.run(observe_host(lab.uri)) == before
