"""What is wrong with a connection string. libpq's own error quotes a part of it, which may be of the password."""

import psycopg
from psycopg.conninfo import conninfo_to_dict

# Words of libpq's errors, and what is said instead.
_EXPLAINED = (
    (
        'missing "="',
        "a word without =: a value with a space is written in single quotes, a quote in it as \\'",
    ),
    ("unterminated quoted", "a single quote without its end: in a quoted value, a ' is written as \\'"),
    ("invalid connection option", "an unknown option: a value with a space is written in single quotes"),
    ("percent-encoded", "a % in a URI that no two hexadecimal digits follow: it is written as %25"),
    ("URI query parameter", "a wrong option behind the ? of a URI"),
    ("separator", "an option behind the ? of a URI without exactly one ="),
    ("IPv6", "an IPv6 address in a URI without its closing ]"),
    ("forbidden value %00", "a NUL"),
)
_SCHEMES = ("postgresql://", "postgres://")


def find_malformation(dsn: str) -> str | None:
    """What is wrong with a connection string that no server can answer; None: libpq can read it, as it is meant.

    A URI whose password contains @ or / as it is would be read with a part of the password as host, port or database,
    which are in messages.
    """
    try:
        conninfo_to_dict(dsn)
    except UnicodeEncodeError:
        return "not UTF-8"
    except psycopg.ProgrammingError as exc:
        return next((explained for words, explained in _EXPLAINED if words in str(exc)), "libpq cannot read it")
    if dsn.startswith(_SCHEMES):
        place = dsn.partition("://")[2]
        user, at, rest = place.partition("@")
        if at and ("/" in user or "@" in rest):
            return "more than one @, or a / before it, in a URI: in a user or password they are written as %40 and %2F"
    return None
