"""`guestd secret`: the secret of a machine's agent."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from guestd.cli.arguments import add_config_option, add_verb, read_settings, uuid
from guestd.core.errors import ConfigError

if TYPE_CHECKING:
    from guestd.cli.arguments import Subparsers

DESCRIPTION = """\
Prints the secret of one machine, derived from the master secret in virtio.master_secret_file. Give it to that machine's
agent as --secret-file: the agent then accepts only host lines that are signed with it.
"""
EPILOG = """\
example:
  guestd secret --config /etc/guestd/guestd.toml 7e3f3a5e-8d0b-4a55-9c0b-5d5e4a2f7c11 > secret; chmod 600 secret

exit status: 0 printed, 2 wrong usage, 78 no master secret is configured, or its file cannot be used
"""


def add_parser(subparsers: Subparsers) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers, "secret", summary="print the secret of a machine's agent", description=DESCRIPTION, epilog=EPILOG
    )
    add_config_option(parser)
    parser.add_argument("machine", type=uuid, metavar="ID", help="Machine.id")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the secret; returns the exit status."""
    from guestd.cli.terminal import make_console, print_line
    from guestd.core.secrets import read_secret
    from guestd.wire.signing import machine_secret

    file = read_settings(arguments).virtio.master_secret_file
    if not file:
        raise ConfigError("virtio.master_secret_file is empty: host lines are not signed; name a file there first")
    secret = machine_secret(read_secret(Path(file), "virtio.master_secret_file"), arguments.machine)
    print_line(make_console(), secret.decode())
    return 0
