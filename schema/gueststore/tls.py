"""What libpq does with the TLS options of a connection string, and which of them it would ignore."""

import os
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Conninfo

# libpq's modes that continue without TLS when the server, or somebody in between, does not offer it.
OPTIONAL_TLS = ("disable", "allow", "prefer")
_FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl", "sslcrldir")
# An option, its other half, and the file that libpq reads for that by default.
_HALVES = (("sslcert", "sslkey", "postgresql.key"), ("sslkey", "sslcert", "postgresql.crt"))


def read_options(dsn: str) -> dict[str, str] | None:
    """The options that libpq uses: of the string, else of PGSERVICE, else of the environment, else its defaults.

    None when the string names a service itself: libpq reads its file only when it connects. Raises
    psycopg.ProgrammingError for a malformed string.
    """
    given = {key: str(value) for key, value in conninfo_to_dict(dsn).items() if value}
    if "service" in given:
        return None
    defaults = {os.fsdecode(each.keyword): os.fsdecode(each.val) for each in Conninfo.get_defaults() if each.val}
    options = defaults | given
    if options.get("sslrootcert") == "system":
        options["sslmode"] = "verify-full"  # libpq takes no other mode with it
    return options


def find_ignored_option(dsn: str) -> str | None:
    """What is wrong with the TLS options of a DSN: one would be ignored, or given up when TLS fails. None: nothing.

    Raises psycopg.ProgrammingError for a malformed string.
    """
    options = read_options(dsn)
    if options is None:
        return None
    for one, other, default in _HALVES:
        has_default = os.access(Path(os.environ.get("HOME") or "/", ".postgresql", default), os.R_OK)
        if options.get(one) and not options.get(other) and not has_default:
            return f"{one} needs {other}: add it (there is no ~/.postgresql/{default}, which libpq reads by default)"
    given = [name for name in _FILES if options.get(name, "system") != "system"]
    mode = options.get("sslmode")
    if given and mode in OPTIONAL_TLS:
        return f"{', '.join(given)} is not enforced with sslmode={mode}: set sslmode=verify-full"
    return None
