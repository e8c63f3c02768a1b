"""./dev bench libvirt: how soon a channel is found through libvirt, and what a hanging libvirtd costs ingest.

On the lab's private libvirtd (root only), a private server (fsync on) and a guestd process:

1. discovery: a domain is started, destroyed, started without its channel and then given it; from the return of
   libvirt's call until guestd's metrics say that it is connected, or disconnected; they are read every 10 ms. Domains
   are started paused: their QEMU serves the sockets, and no guest uses the processor.
2. hung: what `./dev bench ingest` measures end to end, with libvirtd running and stopped (SIGSTOP) in turns; guestd has
   given up a call before the first byte. A libvirt that does not answer must not slow down ingest.
"""

import argparse
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import libvirt
from tools.bench.daemon import guestd, metric
from tools.bench.feeder import lines_of
from tools.bench.lab import own_lab
from tools.bench.server import SEED, own_store, truncate
from tools.bench.suite import add_load_options, add_rounds_option, print_row, run
from tools.bench.suite_ingest import end_to_end
from tools.harness.lab import Lab
from tools.harness.lab_domain import agent_channel_xml, domain_xml
from tools.harness.waiting import eventually

from guestd.simulator import machine_ids

# Far more than one domain's sockets take.
CHANGE_SECONDS = 60.0


def main() -> None:
    """Measure both."""
    run(__doc__, _add_options, _measure)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--changes", type=int, default=20, help="changes of each kind")
    add_load_options(parser, guests=100, messages=40)
    add_rounds_option(parser)


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    with own_lab() as lab, own_store(arguments.guests) as (dsn, directory):
        found = _discovery(lab, dsn, directory, arguments.changes)
        print_row("from the call to guestd, seconds", ("median", "highest"))
        for what, seconds in found.items():
            print_row(what, (statistics.median(seconds), max(seconds)))
        rounds = _hung(lab, dsn, directory, arguments)
    ratio = statistics.median(ok / hung for ok, hung in rounds)
    print(f"throughput with libvirtd hung, as a part of that with it running: {ratio:.3f} (median of {len(rounds)})")
    return {"discovery_seconds": found, "ok_and_hung_seconds": rounds, "ratio": ratio}


def _discovery(lab: Lab, dsn: str, directory: Path, changes: int) -> dict[str, list[float]]:
    """Seconds of each change, by kind."""
    machine_id = machine_ids(1, SEED)[0]
    channel = agent_channel_xml(machine_id, lab.channels)
    whole = domain_xml(str(machine_id), machine_id, lab.channels, "lab.interval=60")
    seconds: dict[str, list[float]] = {"started": [], "destroyed": [], "channel plugged in": []}
    channels = Path(tempfile.mkdtemp(prefix="d", dir=directory))
    tables = f'[libvirt]\nuri = "{lab.uri}"\n'
    connection = libvirt.open(lab.uri)
    with guestd(dsn, channels, tables, virtio='discovery = "libvirt"\n') as (_, url):
        eventually(lambda: metric(url, "libvirt_up") == 1, "guestd is connected to libvirt")

        def takes(change: Callable[[], object], connected: int) -> float:
            change()
            began = time.perf_counter()
            eventually(
                lambda: metric(url, "guestd_channels_connected") == connected,
                "the change is seen by guestd",
                CHANGE_SECONDS,
                every_seconds=0.01,
            )
            return time.perf_counter() - began

        paused, live = libvirt.VIR_DOMAIN_START_PAUSED, libvirt.VIR_DOMAIN_AFFECT_LIVE
        for _ in range(changes):
            domain = connection.defineXML(whole)
            seconds["started"].append(takes(partial(domain.createWithFlags, paused), 1))
            seconds["destroyed"].append(takes(domain.destroy, 0))
            domain = connection.defineXML(whole.replace(channel, ""))
            domain.createWithFlags(paused)
            seconds["channel plugged in"].append(takes(partial(domain.attachDeviceFlags, channel, live), 1))
            takes(domain.destroy, 0)
    connection.close()
    return seconds


def _hung(lab: Lab, dsn: str, directory: Path, arguments: argparse.Namespace) -> list[tuple[float, float]]:
    """Seconds of the same ingest with libvirtd running and hung, in turns."""
    lines = lines_of(arguments.guests, arguments.messages, arguments.processes)
    return [_pair(lab, dsn, directory, lines) for _ in range(arguments.rounds)]


def _pair(lab: Lab, dsn: str, directory: Path, lines: dict[UUID, bytes]) -> tuple[float, float]:
    tables = f'[libvirt]\nuri = "{lab.uri}"\n'

    def is_connected(url: str) -> None:
        eventually(lambda: metric(url, "libvirt_up") == 1, "guestd is connected to libvirt")

    def has_given_up(url: str) -> None:
        is_connected(url)
        lab.signal_libvirtd(signal.SIGSTOP)
        eventually(lambda: metric(url, "guestd_libvirt_calls_stuck") > 0, "guestd has given up a call")

    seconds: list[float] = []
    for before in (is_connected, has_given_up):
        truncate(dsn)
        try:
            seconds.append(end_to_end(dsn, directory, lines, more_tables=tables, before=before).seconds)
        finally:
            lab.signal_libvirtd(signal.SIGCONT)
    print(f"running {seconds[0]:.2f} s, hung {seconds[1]:.2f} s, ratio {seconds[0] / seconds[1]:.3f}", flush=True)
    return seconds[0], seconds[1]


if __name__ == "__main__":
    main()
