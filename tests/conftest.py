"""Fixtures live in plugins, one concern each; this is the list."""

import os
import signal

import pytest

pytest_plugins = [
    "support.daemon",
    "support.booted",
    "support.faults",
    "support.broker",
    "support.filters",
    "support.lab",
    "support.nwfilter",
    "support.store",
    "support.wire",
]


def pytest_configure() -> None:
    """A run that is cancelled ends like one that is interrupted: fixtures stop what they started."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The time-out of a test is for its quick rounds: full ones (./dev faults) take as long as they do."""
    if os.environ.get("GUESTD_FAULTS") == "full":
        for item in items:
            item.add_marker(pytest.mark.timeout(3600), append=False)
