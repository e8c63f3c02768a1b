"""argv -> verb -> exit status. Each verb has a module of its own; this one assembles them.

The modules are imported for every verb, so each imports what it needs when it runs: guests have no use for a database
driver, and hosts none for the agent.
"""

from __future__ import annotations

import argparse

from guestd import __version__
from guestd.cli import (
    agent,
    apply,
    check,
    doctor,
    filters,
    plan,
    quarantine,
    run,
    secret,
    setup,
    show,
    simulate,
    top,
    vms,
)
from guestd.cli.arguments import EXIT_CONFIG, EXIT_FAILURE
from guestd.core.errors import ConfigError, RowsRejected, SourceLost, StoreUnavailable
from guestd.core.log import configure_logging, format_error_line
from gueststore.command_line import Parser, print_error, run_command_line

DESCRIPTION = """\
guestd collects metrics from the virtual machines of a hypervisor host and stores each sample exactly once in
TimescaleDB. It also reconciles VMs and network filters with their desired state in the database.
"""
EPILOG = """\
examples:
  guestd setup                                   install unit, user and configuration on this host (as root)
  guestd check --config /etc/guestd/guestd.toml  validate the configuration; starts nothing
  guestd run --config /etc/guestd/guestd.toml    run the daemon
  guestd doctor                                  find problems on this host, each with its fix
  guestd filters explain web1 tcp 10.0.0.5:443 in
                                                 name the rule that decides on a connection
  guestd quarantine list --reason json           list frames that could not be read
  guestd agent --listen run/my.socket            report this machine, as a guest would

Each verb has its own --help with options, examples and the keys of its --json.

environment: GUESTD_DATABASE_DSN overrides store.dsn; NO_COLOR=1 turns colours off

exit status: 0 done, 1 failed (see the message), 2 wrong usage, 78 the configuration must be changed first,
130 interrupted, 141 the reader of stdout has ended (| head)
"""
# In the order of the overview: the daemon, the host, the machines, the guests.
_VERBS = (run, setup, check, doctor, plan, apply, vms, filters, quarantine, show, top, secret, agent, simulate)


def main(argv: list[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    return run_command_line("guestd", lambda: _run_verb(argv))


def _run_verb(argv: list[str] | None) -> int:
    arguments = make_parser().parse_args(argv)
    configure_logging()
    try:
        return int(arguments.run(arguments))
    except ConfigError as exc:
        print_error(format_error_line("guestd"), str(exc))
        return EXIT_CONFIG
    except (OSError, SourceLost, StoreUnavailable, RowsRejected) as exc:
        # No bug: the system, libvirt or the store refused, and may not at the next attempt.
        print_error(format_error_line("guestd"), str(exc))
        return EXIT_FAILURE


def make_parser() -> argparse.ArgumentParser:
    """The parser of all verbs; each sets `run`, which takes the arguments and returns the exit status."""
    parser = Parser(
        prog="guestd", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"guestd {__version__}")
    subparsers = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    for verb in _VERBS:
        verb.add_parser(subparsers)
    return parser
