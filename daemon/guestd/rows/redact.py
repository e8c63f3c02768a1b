"""Command lines carry secrets; this takes them out before anything is stored. Pure.

Kept: the programme, its options, its plain arguments. Replaced by `***`: the value of an option, variable, header or
member whose name speaks of a secret, the password in a URL, and the password arguments of mysql, sshpass and curl.

What it may cost is bounded for each message: of lines that may hold a secret so many characters are searched; then
only the programme is kept.
"""

from __future__ import annotations

import re
from functools import lru_cache

import msgspec

from guestd.core.config import CommandLines
from guestd.wire import limits

# Longer lines are rare; not caching them bounds the cache to about 8 MB whatever guests send.
_CACHED_CHARS = 512


def _in_either_case(words: str) -> str:
    """A pattern of letters as pairs like `[pP]`: these are searched for four times as fast as with IGNORECASE."""
    return "(?:" + re.sub("[a-z]", lambda letter: f"[{letter[0]}{letter[0].upper()}]", words) + ")"


# Guests write these lines: every pattern must cost about the same for each character, whatever it is. Hence possessive
# repetition (`*+`, `++`, `?+`): text that did not match is not looked at again. Hence also the order: that a value
# follows is asked first, because it is cheap, and what the name speaks of only then.
_SECRET_WORD = _in_either_case(
    r"p(?:ass(?:w(?:or)?d|phrase)|wd|rivate[-_]?key)|secret|token|a(?:pi|ccess)[-_]?key|credential"
)
_NAME = rf"(?=[\w.-]*?{_SECRET_WORD})[\w.-]++"
_IS_SET = r"(?=[\w.-]++[\"']?[=:])"
_IS_FOLLOWED = r"(?=[\w.-]++\s++[^\s-])"
_AUTHORIZATION, _SCHEME = _in_either_case("authorization"), _in_either_case("basic|bearer|token")
# A closing quote may be missing: long lines are cut. What is replaced already stays, whatever stands behind it.
_VALUE = r"(?!\*{3})(?:\"[^\"]*\"?|'[^']*'?|\S+)"
_SECRETS = (
    re.compile(rf"((?:^|[\s\"';?&,{{(])(?:--?|/)?+{_IS_SET}{_NAME}[\"']?[=:]\s*+){_VALUE}"),
    re.compile(rf"(\s--?+{_IS_FOLLOWED}{_NAME}\s++){_VALUE}"),
    re.compile(rf"({_AUTHORIZATION}[\"']?[=:]\s*+(?:{_SCHEME}\s++)?)[^\s\"']+"),
    # A password may hold slashes, but another URL begins at `://`.
    re.compile(r"(://[^\s:/@]*+:)(?:[^\s/]+(?=@)|(?:[^\s:@]|:(?!//))++(?=@))"),
)
# Programmes whose password arguments bear no name, and those arguments.
_ARGUMENTS = (
    (re.compile(rf"\b{_in_either_case('mysql|mariadb|sshpass')}"), re.compile(r"(\s-p\s?)[^\s-]\S*")),
    (re.compile(rf"\b{_in_either_case('curl')}\b"), re.compile(r"(\s(?:-u|--user)[\s=]*+[^\s:]++:)\S+")),
)
# Nothing is found without one of these; most command lines have none, and looking costs a hundredth.
SUSPICIOUS = (
    "passw", "passphrase", "pwd", "secret", "token", "key", "credential", "authorization", "://",
    "mysql", "mariadb", "sshpass", "curl",
)  # fmt: skip


def is_suspicious(text: str) -> bool:
    """Whether there can be a secret in it."""
    lowered = text.lower()
    return any(word in lowered for word in SUSPICIOUS)


def redacted(command_line: str) -> str:
    """The command line with its secrets replaced, cut at 4,096 characters."""
    text, _ = _searched(command_line[: limits.COMMAND_LINE_CHARS])
    return text


class Redaction:
    """The command lines of one message."""

    def __init__(self) -> None:
        self._left_chars = limits.SEARCHED_CHARS
        self.lines_cut = 0
        self.lines_cut_short = 0

    def __call__(self, command_line: str) -> str:
        """As `redacted`; of a line that is one too many only the programme."""
        if self._left_chars > 0:
            if len(command_line) <= _CACHED_CHARS:
                text, chars = _cached(command_line)
            else:
                self.lines_cut += len(command_line) > limits.COMMAND_LINE_CHARS
                text, chars = _searched(command_line[: limits.COMMAND_LINE_CHARS])
            self._left_chars -= chars
            return text
        if not is_suspicious(command_line := command_line[: limits.COMMAND_LINE_CHARS]):
            return command_line
        self.lines_cut_short += 1
        programme = command_line.partition(" ")[0]
        return "***" if is_suspicious(programme) else f"{programme} ***"


def _searched(command_line: str) -> tuple[str, int]:
    """A line without its secrets, and how many characters had to be searched for them."""
    if not is_suspicious(command_line):
        return command_line, 0
    return _without_secrets(command_line), len(command_line)


# Guests send the same command lines with every sample.
_cached = lru_cache(maxsize=8192)(_searched)


def _without_secrets(command_line: str) -> str:
    for secret in _SECRETS:
        command_line = secret.sub(r"\1***", command_line)
    for programme, argument in _ARGUMENTS:
        if found := programme.search(command_line):
            command_line = command_line[: found.end()] + argument.sub(r"\1***", command_line[found.end() :])
    return command_line


# A member of a process as it stands in a frame, which need not be JSON as a whole nor end where it should.
_MEMBER = re.compile(rb'("(?:command_line|cmd_line)"\s*+:\s*+")((?:[^"\\]|\\.)*+)', re.DOTALL)


def in_frame(payload: bytes, command_lines: CommandLines) -> bytes:
    """A frame that is kept whole, its command lines as they would be stored; the rest is as it came."""
    if command_lines == "full":
        return payload
    redaction = Redaction()

    def kept(member: re.Match[bytes]) -> bytes:
        if command_lines == "off":
            return member[1]
        try:
            line = msgspec.json.decode(b'"%s"' % member[2], type=str)
        except (msgspec.DecodeError, UnicodeError):
            line = member[2].decode(errors="replace")
        safe = redaction(line)
        return member[0] if safe == line else member[1] + msgspec.json.encode(safe)[1:-1]

    return _MEMBER.sub(kept, payload)
