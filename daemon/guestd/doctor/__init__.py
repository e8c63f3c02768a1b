"""`guestd doctor`: everything that can be wrong, one line each with its fix; and what `guestd check` says."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterable, Sequence

import msgspec

from guestd.core.config import Settings
from guestd.core.errors import ConfigError
from guestd.core.text import escape_controls
from guestd.doctor import broker, configuration, filters, host, machines, store
from guestd.doctor.configuration import examined as check
from guestd.doctor.configuration import refused
from guestd.doctor.finding import Finding
from guestd.store.connection import check_dsn

__all__ = ["Finding", "check", "examine", "print_findings", "refused"]

_COLOURS = {"well": "32", "warning": "33", "fault": "31"}


def examine(settings: Settings) -> list[Finding]:
    """All findings, in the order of the way of a sample: settings, host, broker, machines, store."""
    return asyncio.run(_gathered(settings))


async def _gathered(settings: Settings) -> list[Finding]:
    found = [*configuration.examined(settings)]
    found += await asyncio.to_thread(lambda: list(host.examined(settings)))
    for part in _parts(settings):
        found += [finding async for finding in part]
    shown = await asyncio.to_thread(host.metrics_page, settings.telemetry)
    return [*found, *machines.of_agents(shown)]


def _parts(settings: Settings) -> Sequence[AsyncIterator[Finding]]:
    try:
        check_dsn(settings.store.dsn)
    except ConfigError:
        return [broker.examined(settings.mqtt)]  # nothing else can be asked without the store's address
    return [
        store.examined(settings.store.dsn),
        broker.examined(settings.mqtt),
        machines.examined(settings),
        filters.examined(settings),
    ]


def print_findings(found: Iterable[Finding], *, as_json: bool) -> int:
    """One line each, faults with their fix; the exit status is 1 where there is a fault."""
    found = list(found)
    if as_json:
        print(msgspec.json.encode(found).decode())
    else:
        for finding in found:
            print(_line(finding, is_coloured=sys.stdout.isatty()))
    return int(any(finding.level == "fault" for finding in found))


def _line(finding: Finding, *, is_coloured: bool) -> str:
    level = f"{finding.level:7}"
    if is_coloured:
        level = f"\x1b[{_COLOURS[finding.level]}m{level}\x1b[0m"
    fix = f"  -> {finding.fix}" if finding.fix else ""
    return f"{level}  {finding.subject:13}  {escape_controls(finding.text)}{escape_controls(fix)}"
