"""Fixtures live in plugins, one concern each; this is the list."""

import gc
import os
import signal
from collections.abc import Iterator

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


# Fixtures of a session or module that cost more than their tests, or exist once on a host: whoever asks for one of them
# runs in the worker that has it.
SHARED_FIXTURES = ("lab", "place")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share a fixture run in one worker; full rounds (./dev faults) take longer than a test's time-out."""
    for item in items:
        for fixture in set(SHARED_FIXTURES).intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.xdist_group(fixture))
    if os.environ.get("GUESTD_FAULTS") == "full":
        for item in items:
            item.add_marker(pytest.mark.timeout(3600), append=False)


@pytest.fixture(autouse=True)
def _unclosed_resources() -> Iterator[None]:
    """What a test leaves unclosed fails that test, not the one during which the collector happens to find it."""
    yield
    gc.collect()
    gc.freeze()  # what is left lives on: the next test's collection need not look at it
