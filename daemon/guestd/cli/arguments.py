"""What the verbs share: exit statuses, options, and the settings that --config and the environment give."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import msgspec

from guestd.core import config

if TYPE_CHECKING:
    # argparse has no public name for what add_subparsers() returns.
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001

EXIT_FAILURE = 1
EXIT_USAGE = 2
# systemd does not restart a unit that ends with this: deploy/systemd.
EXIT_CONFIG = 78
# The longest time that any option takes.
DAY_SECONDS = 86_400
_WHOLE_NUMBER = re.compile("-?[0-9]{1,20}")
_NUMBER = re.compile(r"-?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_UUID = re.compile("[0-9a-fA-F]{8}-?([0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}")


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
        type=path,
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


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """A whole number in this range, for `type=`.

    int() alone has no range, and takes spaces, underscores and the digits of every script.
    """

    def parse(given: str) -> int:
        if _WHOLE_NUMBER.fullmatch(given) and least <= int(given) <= most:
            return int(given)
        raise argparse.ArgumentTypeError(f"must be a whole number between {least} and {most}, and is {given!r}")

    return parse


def number(least: float, most: float) -> Callable[[str], float]:
    """A number in this range, for `type=`. float() alone takes nan and inf, too."""

    def parse(given: str) -> float:
        if _NUMBER.fullmatch(given) and least <= float(given) <= most:
            return float(given)
        raise argparse.ArgumentTypeError(f"must be a number between {least:.15g} and {most:.15g}, and is {given!r}")

    return parse


def uuid(given: str) -> UUID:
    """A UUID, for `type=`."""
    if not _UUID.fullmatch(given):
        raise argparse.ArgumentTypeError(f"must be a UUID (32 hexadecimal digits), and is {given!r}")
    return UUID(given)


def path(given: str) -> Path:
    """A path, for `type=`. An empty one would be the working directory."""
    if not given:
        raise argparse.ArgumentTypeError("must be a path, and is ''")
    return Path(given)


def text(given: str) -> str:
    """A text that is sent to a server, for `type=`: arguments may be any bytes, and servers take UTF-8."""
    try:
        given.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"must be UTF-8, and is {given!r}") from None
    return given
