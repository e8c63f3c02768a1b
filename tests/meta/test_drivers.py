"""A third party's package is imported where it is driven, and nowhere else: whoever replaces it edits those places.

import-linter knows layers and not places (a folder, or one module of it), so this test reads the import statements.
"""

import ast
from pathlib import Path

import pytest

DAEMON = Path(__file__).parents[2] / "daemon"
# The package, and the folders and modules that import it. Each of them does, or it is struck from the list.
DRIVERS = {
    "aiohttp": {"guestd/service/http.py"},
    "bcrypt": {"guestd/service/http_auth.py"},
    # Beside the driver of domains, the one of filters: libvirt keeps both.
    "libvirt": {
        "guestd/hypervisor/connection.py",
        "guestd/hypervisor/driver.py",
        "guestd/hypervisor/domain_stats.py",
        "guestd/filters/driver.py",
    },
    "paho": {"guestd/mqtt", "guestd/agent/mqtt.py"},
    "prometheus_client": {"guestd/telemetry", "guestd/service/metrics_page.py"},
    "psutil": {"guestd/agent"},
    # Each part of layer 3 that has tables of its own reads and writes them in one module.
    "psycopg": {
        "guestd/store",
        "guestd/vms/store.py",
        "guestd/filters/store.py",
        "guestd/ingest/quarantine.py",
        "guestd/doctor/store.py",
    },
    "rich": {"guestd/cli"},
    "sqlite3": {"guestd/spool", "guestd/doctor/host.py"},
    "uvloop": {"guestd/cli/run.py"},
    "watchfiles": {"guestd/ingest/discovery.py"},
}


def imported(file: Path) -> set[str]:
    """The packages that a module imports, wherever in it."""
    packages = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            packages |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            packages.add(node.module.partition(".")[0])
    return packages


IMPORTED = {str(file.relative_to(DAEMON)): imported(file) for file in sorted(DAEMON.glob("guestd/**/*.py"))}


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_driver_is_imported_in_its_own_place_only(driver: str) -> None:
    importers = {module for module, packages in IMPORTED.items() if driver in packages}
    places = DRIVERS[driver]
    assert {module for module in importers if not places & {module, str(Path(module).parent)}} == set()
    assert {place for place in places if not any(module.startswith(place) for module in importers)} == set()
