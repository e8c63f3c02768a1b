"""The checks of `guestd doctor` and `guestd check`; each finding comes with its fix."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from guestd.core.config import Settings
from guestd.core.errors import ConfigError
from guestd.doctor.broker import check_broker
from guestd.doctor.configuration import check_configuration, explain_config_error
from guestd.doctor.filters import check_filters
from guestd.doctor.finding import Finding
from guestd.doctor.host import check_host, fetch_metrics
from guestd.doctor.machines import check_agents, check_machines
from guestd.doctor.store import check_store
from guestd.store.connection import check_dsn

__all__ = ["Finding", "check_configuration", "explain_config_error", "run_checks"]


def run_checks(settings: Settings) -> list[Finding]:
    """Run all checks, in the order of a sample's way: settings, host, store, broker, machines, filters, agents."""
    return asyncio.run(_run_checks(settings))


async def _run_checks(settings: Settings) -> list[Finding]:
    findings = [*check_configuration(settings)]
    findings += await asyncio.to_thread(lambda: list(check_host(settings)))
    for check in _start_connected_checks(settings):
        findings += [finding async for finding in check]
    metrics = await asyncio.to_thread(fetch_metrics, settings.telemetry)
    return [*findings, *check_agents(metrics)]


def _start_connected_checks(settings: Settings) -> Sequence[AsyncIterator[Finding]]:
    try:
        check_dsn(settings.store.dsn)
    except ConfigError:
        return [check_broker(settings)]  # the other checks need the store's address
    return [
        check_store(settings.store.dsn),
        check_broker(settings),
        check_machines(settings),
        check_filters(settings),
    ]
