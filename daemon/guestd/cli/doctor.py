"""`guestd doctor`: finds problems, each with its fix."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from guestd.cli.arguments import EXIT_FAILURE, add_config_option, add_json_option, add_verb, read_settings
from guestd.core.errors import ConfigError

if TYPE_CHECKING:
    from guestd.cli.arguments import Subparsers

DESCRIPTION = """\
Examines the configuration, this host, the broker, the store, libvirt, channels, filters and agents, and prints one line
for each finding; a warning or a fault comes with its fix. It changes nothing. Run it as guestd's user, so that it sees
what the daemon sees.
"""
EPILOG = """\
examples:
  guestd doctor --config /etc/guestd/guestd.toml
  guestd doctor --json | jq '.[] | select(.level == "fault")'

--json prints an array of findings: subject, level (ok, warning or fault), text, fix (empty where none is needed)

exit status: 0 no fault (there may be warnings), 1 at least one fault, 2 wrong usage
"""


def add_parser(subparsers: Subparsers) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers, "doctor", summary="find problems, each with its fix", description=DESCRIPTION, epilog=EPILOG
    )
    add_config_option(parser)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the findings; returns the exit status."""
    from guestd import doctor
    from guestd.cli.findings import print_findings

    try:
        findings = doctor.run_checks(read_settings(arguments))
    except ConfigError as exc:
        findings = [doctor.explain_config_error(str(exc))]
    print_findings(findings, is_json=arguments.json)
    return EXIT_FAILURE if any(finding.level == "fault" for finding in findings) else 0
