"""Whether the kernel still has the rules that libvirt made of filters: somebody may flush them behind its back.

Defining a filter again does not bring them back, for libvirt compares filters and not the kernel; a new binding does.
Looked at only by who may: root, in the network namespace that the interfaces are in. Rules that are all gone are
found; a single one that somebody has deleted is not.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from guestd.filters.model import Filter
from guestd.filters.verdict import lines, ordered
from guestd.nwfilters import Look
from guestd.plans.filters import Report

SECONDS = 20.0
LISTINGS = (("iptables-save", "-t", "filter"), ("ip6tables-save", "-t", "filter"), ("ebtables", "-t", "nat", "-L"))
# libvirt's chains of a device, as the guest sees the way: what goes in to it, and what comes out of it.
PACKET_CHAINS = {"in": "FO", "out": "FI"}
FRAME_CHAINS = {"in": "libvirt-O", "out": "libvirt-I"}

Run = Callable[..., str]


class KernelRules:
    """Looks at the rules of interfaces; `run` gives what a command prints, OSError where it may not be run."""

    def __init__(self, run: Run, devices: Callable[[], Iterable[str]]) -> None:
        self._run = run
        self._devices = devices
        self._told: frozenset[str] = frozenset()

    async def flushed(self, look: Look, filters: Mapping[str, Filter]) -> tuple[Mapping[str, str], Sequence[Report]]:
        """Devices whose rules are gone, with a sentence each; and what could not be seen, or did not come back."""
        bound = {port: name for port, name in look.bindings.items() if name in filters}
        if not bound:
            return {}, ()
        elsewhere = sorted(bound.keys() - set(self._devices()))
        try:
            listings = await asyncio.to_thread(lambda: [self._run(*command) for command in LISTINGS])
        except OSError as why:
            return {}, [Report("blind", "all", f"the kernel's rules cannot be looked at: {why}")]
        found = {
            port: f"the kernel has lost {gone[0]}"
            for port, name in bound.items()
            if port not in elsewhere and (gone := list(missing(port, filters[name], filters, listings)))
        }
        # Whatever binding it anew did not bring back is somebody's work to look at, and not ours to repeat for ever.
        again = found.keys() & self._told
        self._told = frozenset(found)
        reports = [Report("blind", port, "it is not in guestd's network namespace") for port in elsewhere]
        reports += [Report("blind", port, f"{found[port]}, and a new binding did not help") for port in sorted(again)]
        return {port: why for port, why in found.items() if port not in again}, reports


def missing(port: str, top: Filter, filters: Mapping[str, Filter], listings: Sequence[str]) -> Iterator[str]:
    """The chains of a device that should have rules and have none, or that nothing leads to. Pure.

    `listings` are what the commands of LISTINGS print, in their order.
    """
    placed = ordered(top, filters)
    wanted = {(line.version, line.way) for line in lines(placed)}
    for version, way in sorted(wanted):
        chain, listing = f"{PACKET_CHAINS[way]}-{port}", listings[0 if version == 4 else 1]
        if f"-A {chain} " not in listing or f"-g {chain}\n" not in listing:
            yield f"chain {chain} of IPv{version}"
    frames = {each.rule.direction for each in placed if each.rule.is_link}
    for way, prefix in FRAME_CHAINS.items():
        if frames & {way, "inout"} and f"-j {prefix}-{port}\n" not in listings[2].replace(" \n", "\n"):
            yield f"chain {prefix}-{port} of ebtables"


def own_kernel() -> KernelRules:
    """The kernel of this process, in its own network namespace."""
    return KernelRules(_listed, lambda: [name for _, name in socket.if_nameindex()])


def _listed(*command: str) -> str:
    if os.geteuid() != 0:
        raise PermissionError("only root may")
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    if done.returncode != 0:
        raise OSError(f"{command[0]}: {done.stderr.strip()}")
    return done.stdout
