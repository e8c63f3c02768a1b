"""What the verbs share: exit statuses, options, and the settings that --config and the environment give."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from guestd.core import config

if TYPE_CHECKING:
    # argparse has no public name for what add_subparsers() returns.
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001

EXIT_FAILURE = 1
EXIT_USAGE = 2
# systemd does not restart a unit that ends with this: deploy/systemd.
EXIT_CONFIG = 78


def add_verb(
    subparsers: Subparsers, name: str, *, summary: str, description: str, epilog: str = ""
) -> argparse.ArgumentParser:
    """Declare a verb: `summary` is its line in the list of verbs, description and epilog are its --help."""
    return subparsers.add_parser(
        name,
        help=summary,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_config_option(parser: argparse.ArgumentParser) -> None:
    """--config."""
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="configuration (TOML); deploy/guestd.toml lists every key (default: built-in defaults)",
    )


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """--json."""
    parser.add_argument("--json", action="store_true", help="print one line of JSON; the keys are stable, see below")


def read_settings(arguments: argparse.Namespace) -> config.Settings:
    """The settings of --config, with the store's address from GUESTD_DATABASE_DSN and its password from its file."""
    settings = config.load_settings(arguments.config) if arguments.config else config.Settings()
    dsn = os.environ.get("GUESTD_DATABASE_DSN") or settings.store.dsn
    if settings.store.password_file:
        from guestd.core.secrets import read_secret_text
        from guestd.store.connection import with_password

        dsn = with_password(dsn, read_secret_text(Path(settings.store.password_file), "store.password_file"))
    return msgspec.structs.replace(settings, store=msgspec.structs.replace(settings.store, dsn=dsn))


def text(value: str) -> str:
    """A text that is sent to a server, for `type=`: arguments may be any bytes, and servers take UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"must be UTF-8, and is {value!r}") from None
    return value


def at_least_one(text: str) -> int:
    """A whole number from 1 on, for `type=`."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def not_negative(text: str) -> int:
    """A whole number from 0 on, for `type=`."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return number
