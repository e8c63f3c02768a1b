"""./dev bench libvirt: how soon a channel is found through libvirt, and what a libvirtd that hangs costs ingest.

On the lab's private libvirtd (root only), a private server (fsync on) and a guestd process:

1. discovery: a domain is started, destroyed, started without its channel and then given it; from the return of
   libvirt's call until guestd's metrics say that it is connected, or has let go. They are asked every 10 ms. Domains
   are started paused: a QEMU serves its sockets, and no guest takes the processor.
2. hung: what `./dev bench ingest` measures end to end, with libvirtd well and stopped (SIGSTOP) in turns, guestd having
   given up a call before the first byte. A libvirt that is asked in vain must not be felt by samples.
"""

import argparse
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import libvirt
from tools.bench.feeder import lines_of
from tools.bench.measuring import SEED, eventually, guestd, keep, metric, own_store, truncate
from tools.bench.suite_ingest import end_to_end
from tools.harness.lab import Lab
from tools.harness.lab_domain import agent_channel_xml, domain_xml

from guestd.simulator import machine_ids

# Of one domain's sockets, and no busy guest beside it.
LONGEST_WAIT_SECONDS = 60.0


def main() -> None:
    """Measure both, print the tables, write the JSON."""
    arguments = _arguments()
    with _lab() as lab, own_store(arguments.guests) as (dsn, directory):
        found = _discovery(lab, dsn, directory, arguments.changes)
        print(f"{'from the call to guestd, seconds':<34}{'median':>8}{'highest':>9}")
        for what, seconds in found.items():
            print(f"{what:<34}{statistics.median(seconds):>8.3f}{max(seconds):>9.3f}")
        rounds = _hung(lab, dsn, directory, arguments)
    ratios = [well / hung for well, hung in rounds]
    ratio = statistics.median(ratios)
    print(f"throughput with libvirtd hung, as a part of that with it well: {ratio:.3f} (median of {len(rounds)})")
    keep(arguments.json, "libvirt", {"discovery_seconds": found, "well_and_hung_seconds": rounds, "ratio": ratio})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev bench libvirt", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--changes", type=int, default=20, help="of each kind (default: 20)")
    parser.add_argument("--rounds", type=int, default=5, help="each of one well and one hung (default: 5)")
    parser.add_argument("--guests", type=int, default=100)
    parser.add_argument("--messages", type=int, default=40, help="of each guest (default: 40)")
    parser.add_argument("--processes", type=int, default=100, help="in each message (default: 100)")
    parser.add_argument("--json", type=Path, default=Path("bench-libvirt.json"), help="where the figures go")
    return parser.parse_args()


@contextmanager
def _lab() -> Iterator[Lab]:
    # Not below the store's directory: the name of a socket must be short.
    with tempfile.TemporaryDirectory(prefix="guestd-lab-") as state:
        lab = Lab(Path(state))
        try:
            lab.up("setpriv", "--pdeathsig", "KILL")
            yield lab
        finally:
            lab.down()


def _discovery(lab: Lab, dsn: str, directory: Path, changes: int) -> dict[str, list[float]]:
    """Seconds of each change, by kind."""
    machine_id = machine_ids(1, SEED)[0]
    channel = agent_channel_xml(machine_id, lab.channels)
    whole = domain_xml(str(machine_id), machine_id, lab.channels, "lab.interval=60")
    taken: dict[str, list[float]] = {"started": [], "destroyed": [], "channel plugged in": []}
    channels = Path(tempfile.mkdtemp(prefix="d", dir=directory))
    tables = f'[libvirt]\nuri = "{lab.uri}"\n'
    connection = libvirt.open(lab.uri)
    with guestd(dsn, channels, tables, virtio='discovery = "libvirt"\n') as (_, url):
        eventually(lambda: metric(url, "libvirt_up") == 1, "guestd has looked at libvirt")

        def takes(change: Callable[[], object], connected: int) -> float:
            change()
            began = time.perf_counter()
            eventually(lambda: metric(url, "guestd_channels_connected") == connected, "found", LONGEST_WAIT_SECONDS)
            return time.perf_counter() - began

        paused, live = libvirt.VIR_DOMAIN_START_PAUSED, libvirt.VIR_DOMAIN_AFFECT_LIVE
        for _ in range(changes):
            domain = connection.defineXML(whole)
            taken["started"].append(takes(partial(domain.createWithFlags, paused), 1))
            taken["destroyed"].append(takes(domain.destroy, 0))
            domain = connection.defineXML(whole.replace(channel, ""))
            domain.createWithFlags(paused)
            taken["channel plugged in"].append(takes(partial(domain.attachDeviceFlags, channel, live), 1))
            takes(domain.destroy, 0)
    connection.close()
    return taken


def _hung(lab: Lab, dsn: str, directory: Path, arguments: argparse.Namespace) -> list[tuple[float, float]]:
    """Seconds of the same ingest with libvirtd well and hung, in turns."""
    lines = lines_of(arguments.guests, arguments.messages, arguments.processes)
    return [_pair(lab, dsn, directory, lines) for _ in range(arguments.rounds)]


def _pair(lab: Lab, dsn: str, directory: Path, lines: dict[UUID, bytes]) -> tuple[float, float]:
    tables = f'[libvirt]\nuri = "{lab.uri}"\n'

    def looked(url: str) -> None:
        eventually(lambda: metric(url, "libvirt_up") == 1, "guestd has looked at libvirt")

    def gave_up(url: str) -> None:
        looked(url)
        lab.signal_libvirtd(signal.SIGSTOP)
        eventually(lambda: metric(url, "guestd_libvirt_calls_stuck") > 0, "guestd has given up a call")

    seconds: list[Any] = []
    for before in (looked, gave_up):
        truncate(dsn)
        try:
            seconds.append(end_to_end(dsn, directory, lines, more_tables=tables, before=before)[0])
        finally:
            lab.signal_libvirtd(signal.SIGCONT)
    print(f"well {seconds[0]:.2f} s, hung {seconds[1]:.2f} s, ratio {seconds[0] / seconds[1]:.3f}", flush=True)
    return seconds[0], seconds[1]


if __name__ == "__main__":
    main()
