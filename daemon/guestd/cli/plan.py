"""`guestd plan` and `guestd apply`: what would be done on this host, and doing what concerns its filters now."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from typing import Any

import msgspec

from guestd.core.config import Settings
from guestd.core.errors import ConfigError, SourceLost, StoreUnavailable
from guestd.filters import diff, explain
from guestd.filters import service as filters_service
from guestd.filters.plan import FilterReport
from guestd.vms import service as vms_service

EXIT_FAILURE = 1


def plan(arguments: argparse.Namespace, settings: Settings) -> int:
    """Print what a guestd that starts now would do to machines, rows and filters."""
    _check(settings)
    try:
        found = asyncio.run(vms_service.preview_plan(settings))
        filters = _filters(settings)
    except (SourceLost, StoreUnavailable) as exc:
        return _failed(exc)
    _tell([*found.writes, *found.actions, *found.reports, *filters], is_json=arguments.json)
    return 0


def plan_filters(_: argparse.Namespace, settings: Settings) -> int:
    """Print what would be done to filters and interfaces."""
    _check(settings)
    try:
        steps = _filters(settings)
    except (SourceLost, StoreUnavailable) as exc:
        return _failed(exc)
    _tell(steps, is_json=False)
    return 0


def apply(arguments: argparse.Namespace, settings: Settings) -> int:
    """Make one pass over the filters now; 1 when something is held or was not done."""
    _check(settings)
    if arguments.take and settings.filters.attach != "enforce":
        raise ConfigError('--take gives interfaces another filter, which filters.attach = "enforce" allows')
    try:
        outcome = asyncio.run(
            filters_service.run_once(settings, is_confirmed=arguments.yes, may_take_over=arguments.take)
        )
    except (SourceLost, StoreUnavailable) as exc:
        return _failed(exc)
    for action, result in outcome.steps:
        print(action if result == "done" else f"failed: {action}: {result}")
    print("\n".join(map(str, outcome.reports)), end="\n" if outcome.reports else "")
    print(f"{outcome.in_force} of {outcome.desired} filters are in force")
    return EXIT_FAILURE if outcome.held or any(result != "done" for _, result in outcome.steps) else 0


def _filters(settings: Settings) -> list[Any]:
    """Steps on filters and interfaces, and what there is to tell; empty where libvirt has no network filters."""
    try:
        found, attaching = asyncio.run(filters_service.preview_run(settings))
    except SourceLost as exc:
        if "not supported by the connection driver" in str(exc):
            return []
        raise
    doubts = [
        FilterReport("doubt", each.name, text)
        for each in found.machines
        for text in explain.list_doubts(found.compiled, each)
    ]
    return [*found.plan.actions, *attaching.actions, *diff.list_reports(found), *attaching.reports, *doubts]


def _tell(steps: Sequence[Any], *, is_json: bool) -> None:
    if is_json:
        described = [{"step": _get_step_name(step), "text": str(step)} | msgspec.to_builtins(step) for step in steps]
        print(msgspec.json.encode(described).decode())
    else:
        print("\n".join(map(str, steps)) or "nothing to do")


def _get_step_name(step: Any) -> str:
    """Get the name of a step in --json: its class, and Report for the reports of VMs and filters alike."""
    name = type(step).__name__
    return "Report" if name.endswith("Report") else name


def _check(settings: Settings) -> None:
    if not settings.libvirt.uri:
        raise ConfigError("libvirt.uri is empty: guestd has nothing to do with virtual machines here")


def _failed(exc: Exception) -> int:
    print(f"guestd: {exc}", file=sys.stderr)
    return EXIT_FAILURE
