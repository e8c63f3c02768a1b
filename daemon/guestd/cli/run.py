"""`guestd run`: the daemon."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

import structlog

from guestd.cli.arguments import EXIT_FAILURE, add_config_option, add_verb, read_settings
from guestd.core.errors import ConfigError

if TYPE_CHECKING:
    from guestd.cli.arguments import Subparsers

DESCRIPTION = """\
Runs the daemon in the foreground until SIGTERM or SIGINT. Then it stops reading, stores what its spool holds as far as
stop_grace_seconds allows, and ends; what is left in the spool is stored after the next start. SIGHUP reloads the
configuration. Logs go to stderr: one JSON object a line, or readable text on a terminal.
"""
EPILOG = """\
examples:
  guestd run --config /etc/guestd/guestd.toml
  GUESTD_DATABASE_DSN='host=db dbname=guestd user=guestd' guestd run

exit status: 0 stopped by a signal, 1 a part failed (the log names it), 2 wrong usage, 78 the configuration or the
database schema must be changed first: systemd does not restart the unit then
"""


def add_parser(subparsers: Subparsers) -> None:
    """Declare the verb."""
    parser = add_verb(subparsers, "run", summary="run the daemon", description=DESCRIPTION, epilog=EPILOG)
    add_config_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the daemon to its end; returns the exit status."""
    import uvloop

    from guestd import app

    try:
        uvloop.run(app.run(read_settings(arguments), lambda: read_settings(arguments)))
    except ExceptionGroup as group:
        failures = list(_list_leaves(group))
        for exc in failures:
            if isinstance(exc, ConfigError):
                raise exc from None
        for exc in failures:
            structlog.get_logger().error("task failed, guestd stops; the traceback names the task", exc_info=exc)
        return EXIT_FAILURE
    return 0


def _list_leaves(group: ExceptionGroup[Exception]) -> Iterator[Exception]:
    for exc in group.exceptions:
        if isinstance(exc, ExceptionGroup):
            yield from _list_leaves(exc)
        else:
            yield exc
