"""What `plan`, `apply` and `filters plan` share: the steps on filters and interfaces, and how steps are printed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from guestd.core.config import Settings
from guestd.core.errors import ConfigError, SourceLost

JSON_HELP = """\
--json prints an array of steps and reports: step (Report, or the kind of the step, such as Define), text (as printed
without --json), and the fields of that kind
"""


def require_libvirt(settings: Settings) -> None:
    """Raise ConfigError where no libvirt is configured."""
    if not settings.libvirt.uri:
        raise ConfigError("libvirt.uri is empty: this guestd manages no VMs and no filters; set it first")


def plan_filter_steps(settings: Settings) -> list[Any]:
    """Steps on filters and interfaces, then reports; empty where libvirt has no network filters."""
    from guestd.filters import diff, explain
    from guestd.filters import service as filters_service
    from guestd.filters.plan import FilterReport

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
    return [
        *found.plan.actions,
        *attaching.actions,
        *diff.list_reports(found, found.plan.needs_confirmation),
        *attaching.reports,
        *doubts,
    ]


def print_steps(steps: Sequence[Any], *, as_json: bool) -> None:
    """Print each step on its line, or all as one line of JSON."""
    from guestd.cli.terminal import make_console, print_json, print_line

    if as_json:
        print_json([describe_step(step) for step in steps])
        return
    console = make_console()
    for line in map(str, steps or ["nothing to do"]):
        print_line(console, line)


def describe_step(step: Any) -> dict[str, Any]:
    """A step for --json: its kind, its text and its fields."""
    name = type(step).__name__
    fields: dict[str, Any] = msgspec.to_builtins(step)
    return {"step": "Report" if name.endswith("Report") else name, "text": str(step)} | fields
