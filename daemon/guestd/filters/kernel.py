"""Whether the kernel still has the rules that libvirt made of filters: somebody may flush them behind its back.

Defining a filter again does not bring them back, for libvirt compares filters and not the kernel; a new binding does.
Looked at only by who may: root, in the network namespace that the interfaces are in. Rules are counted, chain by chain:
one that is missing or too many is found, one that somebody has put in the place of another is not.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from guestd.filters.driver import Look
from guestd.filters.frame_match import entries
from guestd.filters.model import ROOT, Filter
from guestd.filters.packet_match import lines, ordered
from guestd.filters.plan import Report

SECONDS = 20.0
LISTINGS = (("iptables-save", "-t", "filter"), ("ip6tables-save", "-t", "filter"), ("ebtables", "-t", "nat", "-L"))
# libvirt's chains of a device, as the guest sees the way: what goes in to it, and what comes out of it; HI is for what
# of that the host itself receives.
PACKET_CHAINS = {"FO": "in", "FI": "out", "HI": "out"}
FRAME_CHAINS = {"in": "O", "out": "I"}
_ENTRIES = re.compile(r"^Bridge chain: (\S+), entries: (\d+),", re.MULTILINE)

Run = Callable[..., str]


class KernelRules:
    """Looks at the rules of interfaces; `run` gives what a command prints, OSError where it may not be run."""

    def __init__(self, run: Run, devices: Callable[[], Iterable[str]]) -> None:
        self._run = run
        self._devices = devices
        self._told: frozenset[str] = frozenset()

    async def flushed(self, look: Look, filters: Mapping[str, Filter]) -> tuple[Mapping[str, str], Sequence[Report]]:
        """Devices whose rules are gone, with a sentence each; and what could not be seen, or did not come back."""
        bound = {port: look.seen.filters[name] for port, name in look.bindings.items() if _is_own(name, look, filters)}
        if not bound:
            return {}, ()
        elsewhere = sorted(bound.keys() - set(self._devices()))
        try:
            listings = await asyncio.to_thread(lambda: [self._run(*command) for command in LISTINGS])
        except OSError as exc:
            return {}, [Report("blind", "all", f"the kernel's rules cannot be looked at: {exc}")]
        found = {
            port: f"the kernel's rules are not libvirt's: {gone[0]}"
            for port, top in bound.items()
            if port not in elsewhere and (gone := list(missing(port, top, look.seen.filters, listings)))
        }
        # Whatever binding it anew did not bring back is somebody's work to look at, and not ours to repeat for ever.
        again = found.keys() & self._told
        self._told = frozenset(found)
        reports = [Report("blind", port, "it is not in guestd's network namespace") for port in elsewhere]
        reports += [Report("blind", port, f"{found[port]}, and a new binding did not help") for port in sorted(again)]
        return {port: exc for port, exc in found.items() if port not in again}, reports


def _is_own(name: str, look: Look, filters: Mapping[str, Filter]) -> bool:
    return name in filters and name in look.seen.filters


def missing(port: str, top: Filter, filters: Mapping[str, Filter], listings: Sequence[str]) -> Iterator[str]:
    """The chains of a device that have not the rules that they should have, or that nothing leads to. Pure.

    `listings` are what the commands of LISTINGS print, in their order.
    """
    placed = ordered(top, filters)
    for version, listing in zip((4, 6), listings, strict=False):
        ways = [line.way for line in lines(placed) if line.version == version]
        for prefix, way in PACKET_CHAINS.items() if ways else ():
            chain = f"{prefix}-{port}"
            yield from _differing(f"{chain} of IPv{version}", ways.count(way), listing.count(f"-A {chain} "))
            if f"-g {chain}\n" not in listing:
                yield f"nothing leads to chain {chain} of IPv{version}"
    wanted = entries(placed)
    there = {name: int(count) for name, count in _ENTRIES.findall(listings[2])}
    for (chain, way), count in sorted(wanted.items()):
        top_chain = f"libvirt-{FRAME_CHAINS[way]}-{port}"
        name = top_chain if chain == ROOT else f"{FRAME_CHAINS[way]}-{port}-{chain}"
        yield from _differing(f"{name} of ebtables", count, there.get(name, 0))
        if chain == ROOT and f"-j {top_chain}\n" not in listings[2].replace(" \n", "\n"):
            yield f"nothing leads to chain {top_chain} of ebtables"


def _differing(chain: str, wanted: int, there: int) -> Iterator[str]:
    if there != wanted:
        yield f"chain {chain} has {there} rules, and should have {wanted}"


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
