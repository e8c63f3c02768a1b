"""`guestd check`: validates the configuration."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from guestd.cli.arguments import EXIT_CONFIG, add_config_option, add_json_option, add_verb, read_settings

if TYPE_CHECKING:
    from guestd.cli.arguments import Subparsers

DESCRIPTION = """\
Validates the configuration: every setting, and every file that a setting names. It starts nothing, connects to nothing
and changes nothing. Run it before `systemctl reload guestd`. `guestd doctor` also examines the host, store and broker.
"""
EPILOG = """\
examples:
  guestd check --config /etc/guestd/guestd.toml
  runuser -u guestd -- guestd check --config /etc/guestd/guestd.toml --json

--json prints an array of findings: subject, level (ok, warning or fault), text, fix (empty where none is needed)

exit status: 0 valid, 2 wrong usage, 78 a setting must be changed
"""


def add_parser(subparsers: Subparsers) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "check",
        summary="validate the configuration; starts nothing",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    add_config_option(parser)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the findings; returns the exit status."""
    from guestd import doctor
    from guestd.cli.findings import print_findings

    findings = list(doctor.check_configuration(read_settings(arguments)))
    print_findings(findings, is_json=arguments.json)
    return EXIT_CONFIG if any(finding.level == "fault" for finding in findings) else 0
