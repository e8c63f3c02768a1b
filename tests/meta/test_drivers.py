"""A third-party library is imported by its driver alone, and by those few modules that have a reason to."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "daemon/guestd"
# library: the modules and packages that may import it.
DRIVERS = {
    # vms, filters and quarantine own their tables; the doctor has a connection of its own.
    "psycopg": ("store", "vms/store", "filters/store", "ingest/quarantine", "doctor/store"),
    "sqlite3": ("spool", "doctor/host"),
    "paho": ("mqtt", "agent/mqtt"),
    "libvirt": ("hypervisor", "filters/driver"),
    "aiohttp": ("service/http",),
    "prometheus_client": ("telemetry", "service/http"),
    "psutil": ("agent",),
}


def importers(library: str) -> Iterator[str]:
    """The modules that import a library, as paths below the package without their suffix."""
    pattern = re.compile(rf"^\s*(?:import|from) {library}\b", re.MULTILINE)
    for file in PACKAGE.rglob("*.py"):
        if pattern.search(file.read_text()):
            yield str(file.relative_to(PACKAGE).with_suffix(""))


@pytest.mark.parametrize("library", DRIVERS)
def test_a_library_is_imported_by_its_driver_alone(library: str) -> None:
    allowed = DRIVERS[library]
    found = set(importers(library))
    assert {module for module in found if not any(f"{module}/".startswith(f"{place}/") for place in allowed)} == set()
    assert found, "the table above names a library that nothing imports"
