"""The lab's private libvirtd for a suite of ./dev bench (root only)."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.harness.lab import Lab


@contextmanager
def own_lab() -> Iterator[Lab]:
    """A libvirtd of the suite's own, without guests."""
    # Not below the store's directory: the path of a socket must be short.
    with tempfile.TemporaryDirectory(prefix="guestd-lab-") as state:
        lab = Lab(Path(state))
        try:
            lab.up("setpriv", "--pdeathsig", "KILL")
            yield lab
        finally:
            lab.down()
