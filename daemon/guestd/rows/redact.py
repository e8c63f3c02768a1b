"""Removes secrets from command lines before they are stored. Pure.

Kept: the program, its options, its plain arguments. Replaced by `***`: the value of an option, variable, header or
member whose name indicates a secret, the password in a URL, and the password arguments of mysql, sshpass and curl.

The cost of a message is limited: of lines that may contain a secret so many characters are searched; of further lines
only the program is kept.
"""

from __future__ import annotations

import re
from functools import lru_cache

import msgspec

from guestd.core.config import CommandLines
from guestd.wire import limits

# Longer lines are rare; not caching them limits the cache to about 8 MB whatever guests send.
_CACHED_CHARS = 512


def _in_either_case(words: str) -> str:
    """A pattern with letters as pairs like `[pP]`: the search is four times as fast as with IGNORECASE."""
    return "(?:" + re.sub("[a-z]", lambda letter: f"[{letter[0]}{letter[0].upper()}]", words) + ")"


# Guests write these lines: every pattern must cost about the same for each character, whatever it is. Hence possessive
# repetition (`*+`, `++`, `?+`): text that did not match is not tried again. Hence also the order: first the cheap test
# whether a value follows, then the test of the name.
_SECRET_WORD = _in_either_case(
    r"p(?:ass(?:w(?:or)?d|phrase)|wd|rivate[-_]?key)|secret|token|a(?:pi|ccess)[-_]?key|credential"
)
_NAME = rf"(?=[\w.-]*?{_SECRET_WORD})[\w.-]++"
_IS_SET = r"(?=[\w.-]++[\"']?[=:])"
_IS_FOLLOWED = r"(?=[\w.-]++\s++[^\s-])"
_AUTHORIZATION, _SCHEME = _in_either_case("authorization"), _in_either_case("basic|bearer|token")
# A closing quote may be missing: long lines are cut. A value that is already replaced stays replaced.
_VALUE = r"(?!\*{3})(?:\"[^\"]*\"?|'[^']*'?|\S+)"
_SECRETS = (
    re.compile(rf"((?:^|[\s\"';?&,{{(])(?:--?|/)?+{_IS_SET}{_NAME}[\"']?[=:]\s*+){_VALUE}"),
    re.compile(rf"(\s--?+{_IS_FOLLOWED}{_NAME}\s++){_VALUE}"),
    re.compile(rf"({_AUTHORIZATION}[\"']?[=:]\s*+(?:{_SCHEME}\s++)?)[^\s\"']+"),
    # A password may hold slashes, but another URL begins at `://`.
    re.compile(r"(://[^\s:/@]*+:)(?:[^\s/]+(?=@)|(?:[^\s:@]|:(?!//))++(?=@))"),
)
# Programs whose password arguments have no telling name, and those arguments.
_ARGUMENTS = (
    (re.compile(rf"\b{_in_either_case('mysql|mariadb|sshpass')}"), re.compile(r"(\s-p\s?)[^\s-]\S*")),
    (re.compile(rf"\b{_in_either_case('curl')}\b"), re.compile(r"(\s(?:-u|--user)[\s=]*+[^\s:]++:)\S+")),
)
# A secret is only found with one of these words; most command lines have none, and this test costs a hundredth.
SUSPICIOUS = (
    "passw", "passphrase", "pwd", "secret", "token", "key", "credential", "authorization", "://",
    "mysql", "mariadb", "sshpass", "curl",
)  # fmt: skip


def is_suspicious(text: str) -> bool:
    """Whether it may contain a secret."""
    lowered = text.lower()
    return any(word in lowered for word in SUSPICIOUS)


class Redaction:
    """The command lines of one message."""

    def __init__(self) -> None:
        self._left_chars = limits.SEARCHED_CHARS
        self.lines_cut = 0
        self.lines_shortened = 0

    def __call__(self, command_line: str) -> str:
        """The line with its secrets replaced, cut at 4,096 characters; beyond the limit of the message its program."""
        if self._left_chars > 0:
            if len(command_line) <= _CACHED_CHARS:
                text, chars = _redact_and_count_cached(command_line)
            else:
                self.lines_cut += len(command_line) > limits.COMMAND_LINE_CHARS
                text, chars = _redact_and_count(command_line[: limits.COMMAND_LINE_CHARS])
            self._left_chars -= chars
            return text
        if not is_suspicious(command_line := command_line[: limits.COMMAND_LINE_CHARS]):
            return command_line
        self.lines_shortened += 1
        program = command_line.partition(" ")[0]
        return "***" if is_suspicious(program) else f"{program} ***"


def _redact_and_count(command_line: str) -> tuple[str, int]:
    """A line without its secrets, and how many characters were searched."""
    if not is_suspicious(command_line):
        return command_line, 0
    return _replace_secrets(command_line), len(command_line)


# Guests send the same command lines with every sample.
_redact_and_count_cached = lru_cache(maxsize=8192)(_redact_and_count)


def _replace_secrets(command_line: str) -> str:
    for secret in _SECRETS:
        command_line = secret.sub(r"\1***", command_line)
    for program, argument in _ARGUMENTS:
        if found := program.search(command_line):
            command_line = command_line[: found.end()] + argument.sub(r"\1***", command_line[found.end() :])
    return command_line


# A member of a process in a frame, which need not be valid JSON, nor complete.
_MEMBER = re.compile(rb'("(?:command_line|cmd_line)"\s*+:\s*+")((?:[^"\\]|\\.)*+)', re.DOTALL)


def redact_frame(payload: bytes, command_lines: CommandLines) -> bytes:
    """A frame for the quarantine: its command lines as they would be stored, the rest unchanged."""
    if command_lines == "full":
        return payload
    redaction = Redaction()

    def redact_member(member: re.Match[bytes]) -> bytes:
        if command_lines == "off":
            return member[1]
        try:
            line = msgspec.json.decode(b'"%s"' % member[2], type=str)
        except (msgspec.DecodeError, UnicodeError):
            line = member[2].decode(errors="replace")
        safe = redaction(line)
        return member[0] if safe == line else member[1] + msgspec.json.encode(safe)[1:-1]

    return _MEMBER.sub(redact_member, payload)
