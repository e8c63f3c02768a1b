"""Command lines carry secrets; this takes them out before anything is stored. Pure.

Kept: the programme, its options, its plain arguments. Replaced by `***`: the value of an option, variable, header or
member whose name speaks of a secret, the password in a URL, and the password arguments of mysql, sshpass and curl.
"""

from __future__ import annotations

import re
from functools import lru_cache

COMMAND_LINE_CHARS = 4096
# Longer lines are rare; not caching them bounds the cache to about 8 MB whatever guests send.
_CACHED_CHARS = 512

# Possessive repetition (`*+`, `++`) and look-ahead keep every pattern from looking at the same text again and again.
_NAME = (
    r"(?=[\w.-]*?(?:passw(?:or)?d|passphrase|pwd|secret|token|api[-_]?key|access[-_]?key|private[-_]?key|credential))"
    r"[\w.-]++"
)
# A closing quote may be missing: long lines are cut. What is replaced already stays, whatever stands behind it.
_VALUE = r"(?!\*{3})(?:\"[^\"]*\"?|'[^']*'?|\S+)"
_SECRETS = (
    re.compile(rf"((?:^|[\s\"';?&,{{(])(?:--?|/)?{_NAME}[\"']?[=:]\s*+){_VALUE}", re.IGNORECASE),
    re.compile(rf"(\s--?{_NAME}\s++)(?!-){_VALUE}", re.IGNORECASE),
    re.compile(r"(\bauthorization[\"']?[=:]\s*+(?:(?:basic|bearer|token)\s++)?)[^\s\"']+", re.IGNORECASE),
    re.compile(
        r"(\b[a-z][a-z0-9+.-]{0,20}://[^\s:/@]{0,100}:)(?:[^\s/]{1,200}(?=@)|[^\s@]{1,200}+(?=@))", re.IGNORECASE
    ),
)
# Programmes whose password arguments bear no name, and those arguments.
_ARGUMENTS = (
    (re.compile(r"\b(?:mysql|mariadb|sshpass)", re.IGNORECASE), re.compile(r"(\s-p\s?)[^\s-]\S*")),
    (re.compile(r"\bcurl\b", re.IGNORECASE), re.compile(r"(\s(?:-u|--user)[\s=]*+[^\s:]+:)\S+")),
)
# Nothing is found without one of these; most command lines have none, and looking costs a fiftieth.
_SUSPICIOUS = re.compile(
    r"passw|passphrase|pwd|secret|token|key|credential|authorization|://|mysql|mariadb|sshpass|curl", re.IGNORECASE
)


def redacted(command_line: str) -> str:
    """The command line with its secrets replaced, cut at 4,096 characters."""
    if len(command_line) <= _CACHED_CHARS:
        return _cached(command_line)
    return _without_secrets(command_line[:COMMAND_LINE_CHARS])


def _without_secrets(command_line: str) -> str:
    if not _SUSPICIOUS.search(command_line):
        return command_line
    for secret in _SECRETS:
        command_line = secret.sub(r"\1***", command_line)
    for programme, argument in _ARGUMENTS:
        if found := programme.search(command_line):
            command_line = command_line[: found.end()] + argument.sub(r"\1***", command_line[found.end() :])
    return command_line


# Guests send the same command lines with every sample.
_cached = lru_cache(maxsize=8192)(_without_secrets)
