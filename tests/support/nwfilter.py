"""Filters of the lab's libvirt, and a bridge with a port to bind filters to without a guest."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tools.harness.lab import Lab

from support.libvirt import libvirt

PORT = "gtap"


@pytest.fixture
def nwfilters(lab: Lab) -> Iterator[Any]:
    """A connection to the lab's libvirt, for each test: another may have killed libvirtd."""
    libvirt.registerErrorHandler(lambda *_: None, None)
    connection = libvirt.open(lab.uri)
    yield connection
    connection.close()


@pytest.fixture(scope="session")
def bridge_port(lab: Lab) -> Callable[..., str]:
    """Makes PORT, a port of a bridge in the lab's network namespace, and runs commands there."""
    for command in (
        "link add fbr0 type bridge",
        f"link add {PORT} type veth peer name {PORT}in",
        f"link set {PORT} master fbr0 up",
        "link set fbr0 up",
    ):
        lab.run("ip", *command.split())
    return lab.run
