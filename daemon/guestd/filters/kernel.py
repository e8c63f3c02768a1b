"""Whether the kernel still has the rules that libvirt installed: another program may flush them unnoticed by libvirt.

Defining a filter again does not restore them, because libvirt compares filters and not the kernel; a new binding does.
guestd can inspect them only as root, in the network namespace of the interfaces. It counts rules by chain: it finds a
rule that is missing or added, and not one that was replaced by another.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from guestd.filters.frame_match import count_chain_rules
from guestd.filters.graph import list_edges, reach
from guestd.filters.model import ROOT, Filter
from guestd.filters.packet_match import PlacedRule, build_packet_rules, order_rules
from guestd.filters.plan import FilterReport
from guestd.filters.snapshot import HostSnapshot, is_stand_in
from guestd.filters.variables import NotEvaluated

COMMAND_TIMEOUT_SECONDS = 20.0
LISTINGS = (("iptables-save", "-t", "filter"), ("ip6tables-save", "-t", "filter"), ("ebtables", "-t", "nat", "-L"))
# libvirt's chains of a device, by direction as the guest sees it: in to the guest, out of it; HI is for those packets
# from the guest that the host itself receives.
PACKET_CHAINS = {"FO": "in", "FI": "out", "HI": "out"}
FRAME_CHAINS = {"in": "O", "out": "I"}
_ENTRIES = re.compile(r"^Bridge chain: (\S+), entries: (\d+),", re.MULTILINE)

Run = Callable[..., str]


class KernelInspector:
    """Inspects the rules of interfaces; `run` returns what a command prints, or raises OSError."""

    def __init__(self, run: Run, list_devices: Callable[[], Iterable[str]]) -> None:
        self._run = run
        self._list_devices = list_devices
        self._reported: frozenset[str] = frozenset()

    async def find_flushed(
        self, host: HostSnapshot, desired: Mapping[str, Filter]
    ) -> tuple[Mapping[str, str], Sequence[FilterReport]]:
        """Devices without their rules, each with the reason; and reports of what cannot be inspected or restored."""
        there = host.observed.filters
        bound = {port: there[name] for port, name in host.bindings.items() if name in desired and name in there}
        # What a filter that cannot be read has in the kernel is unknown.
        if any(map(is_stand_in, there.values())):
            edges = list_edges(there)
            bound = {
                port: top
                for port, top in bound.items()
                if not any(is_stand_in(there.get(name)) for name in reach([top.name], edges))
            }
        if not bound:
            return {}, ()
        elsewhere = sorted(bound.keys() - set(self._list_devices()))
        here = {port: top for port, top in sorted(bound.items()) if port not in elsewhere}
        try:
            # On a thread: what libvirt makes of many addresses takes long, and ingest must not wait for it.
            found, reports = await asyncio.to_thread(self._inspect, here, there)
        except OSError as exc:
            return {}, [FilterReport("blind", "all", f"guestd cannot inspect the kernel's rules: {exc}")]
        reports += [FilterReport("blind", port, "it is not in guestd's network namespace") for port in elsewhere]
        # A new binding did not restore these: an operator has to, and repeating it every run would help nobody.
        again = found.keys() & self._reported
        self._reported = frozenset(found)
        reports += [
            FilterReport("blind", port, f"{found[port]}, and a new binding did not help") for port in sorted(again)
        ]
        return {port: reason for port, reason in found.items() if port not in again}, reports

    def _inspect(
        self, bound: Mapping[str, Filter], there: Mapping[str, Filter]
    ) -> tuple[dict[str, str], list[FilterReport]]:
        """The devices whose rules in the kernel are not libvirt's, each with the reason; and reports. Blocks."""
        listings = [self._run(*command) for command in LISTINGS]
        found, reports = {}, []
        for port, top in bound.items():
            try:
                expected = count_rules(order_rules(top, there))
            except NotEvaluated as exc:
                reports.append(FilterReport("blind", port, f"guestd cannot predict the kernel's rules: {exc}"))
                continue
            if missing := next(find_missing_rules(port, expected, listings), None):
                found[port] = f"the kernel's rules are not libvirt's: {missing}"
        return found, reports


@dataclass(frozen=True, slots=True)
class RuleCounts:
    """Numbers of rules in the kernel: of iptables by IP version and direction, of ebtables by chain and direction."""

    packets: Mapping[tuple[int, str], int]
    frames: Mapping[tuple[str, str], int]


def count_rules(placed: Sequence[PlacedRule]) -> RuleCounts:
    """How many rules libvirt makes of those of a tree. Pure. NotEvaluated where guestd does not know it.

    Only filters that somebody changed manually, and that guestd could not define again yet, have such rules.
    """
    packet_rules = build_packet_rules(placed)
    if unknown := next((each.unknown for each in packet_rules if each.unknown), None):
        raise NotEvaluated(unknown)
    return RuleCounts(Counter((each.version, each.direction) for each in packet_rules), count_chain_rules(placed))


def find_missing_rules(port: str, expected: RuleCounts, listings: Sequence[str]) -> Iterator[str]:
    """The chains of a device that lack rules or have too many, or that no rule jumps to. Pure.

    `listings` are what the commands of LISTINGS print, in their order.
    """
    versions = {version for version, _ in expected.packets}
    for version, listing in zip((4, 6), listings, strict=False):
        for prefix, direction in PACKET_CHAINS.items() if version in versions else ():
            chain = f"{prefix}-{port}"
            count = expected.packets.get((version, direction), 0)
            yield from _compare_counts(f"{chain} of IPv{version}", count, listing.count(f"-A {chain} "))
            if f"-g {chain}\n" not in listing:
                yield f"no rule jumps to chain {chain} of IPv{version}"
    there = {name: int(count) for name, count in _ENTRIES.findall(listings[2])}
    for (chain, direction), count in sorted(expected.frames.items()):
        top_chain = f"libvirt-{FRAME_CHAINS[direction]}-{port}"
        name = top_chain if chain == ROOT else f"{FRAME_CHAINS[direction]}-{port}-{chain}"
        yield from _compare_counts(f"{name} of ebtables", count, there.get(name, 0))
        if chain == ROOT and f"-j {top_chain}\n" not in listings[2].replace(" \n", "\n"):
            yield f"no rule jumps to chain {top_chain} of ebtables"


def _compare_counts(chain: str, expected: int, there: int) -> Iterator[str]:
    if there != expected:
        yield f"chain {chain} has {there} rules, and should have {expected}"


def make_local_inspector() -> KernelInspector:
    """For the kernel of this process, in its own network namespace."""
    return KernelInspector(_run_as_root, lambda: [name for _, name in socket.if_nameindex()])


def _run_as_root(*command: str) -> str:
    if os.geteuid() != 0:
        raise PermissionError("guestd does not run as root")
    return run_command(*command)


def run_command(*command: str, timeout_seconds: float = COMMAND_TIMEOUT_SECONDS) -> str:
    """What a command prints. OSError where it fails, or does not end in time."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_seconds, check=False,
            encoding="utf-8", errors="replace",  # a comment of another program's rule may be in any encoding
        )  # fmt: skip
    except subprocess.TimeoutExpired as exc:
        raise OSError(f"{command[0]}: no answer within {timeout_seconds:g} s") from exc
    if done.returncode != 0:
        raise OSError(f"{command[0]}: {done.stderr.strip()}")
    return done.stdout
