"""Repairs wrong values of a message, where their meaning is clear or little is lost by leaving them out.

Pure, and only for frames that do not decode as they are. Two steps: a text that is not JSON (`remove_unstorable`,
`make_readable`), and values that do not fit their fields (`convert_with_repairs`). The rules for a value:

* a fraction in place of a whole number is truncated;
* an optional field with a wrong value (a number out of bounds, NaN, a text for a number) is left out;
* a required number that is out of bounds, or not a number, becomes 0: the column cannot be NULL;
* a text that is too long is cut;
* keys (process ids, ports) and required texts are never guessed: the entry is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from guestd.core.errors import BadFrame
from guestd.wire import limits
from guestd.wire.framing import BLANK

T = TypeVar("T")

# What PostgreSQL cannot store: NUL, and one half of a surrogate pair.
_UNSTORABLE = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")
# Escapes of a JSON text. Skipped: double backslashes (what follows is not an escape) and whole surrogate pairs.
# First group: what cannot be stored. Second group: incomplete escapes.
_ESCAPE = re.compile(
    rb"(?:\\\\)++|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|(\\u0000|\\u[dD][89a-fA-F][0-9a-fA-F]{2})|((?:\\u[0-9a-fA-F]{0,3}(?![0-9a-fA-F]))+)",
)


def remove_unstorable(payload: bytes) -> bytes:
    """The text without the escapes that PostgreSQL cannot store; raises `BadFrame` for a text with too many escapes."""
    # Most encoders write text without escapes: this search is all that most frames cost.
    if b"\\" not in payload or rb"\u" not in payload:
        return payload
    if payload.count(b"\\") > limits.ESCAPES:
        raise BadFrame("json", f"more than {limits.ESCAPES} escapes")
    if not _UNSTORABLE.search(payload):
        return payload
    # An incomplete escape remains an error: removing what follows it must not complete it.
    return _ESCAPE.sub(lambda found: b"" if found[1] else b"%s!" % found[2] if found[2] else found[0], payload)


_SPACES = b"\t\r\n"
_CONTROLS = bytes(set(range(32)) - set(_SPACES))
_TO_SPACE = bytes.maketrans(_SPACES, b" " * len(_SPACES))
_SPELLED = rb"(?i:nan|inf)[\w()]{0,20}|1\.\#(?i:inf|qnan|snan|ind)\w{0,10}"
# Numbers that JSON cannot express, as C, Python and JavaScript write them, in the place of a value.
_NO_NUMBER = re.compile(rb"([:,\[]\s{0,10})[-+]?(?:" + _SPELLED + rb")(?=\s{0,10}[,}\]])")


def make_readable(payload: bytes) -> bytes:
    """The text with bytes that are not UTF-8 and control characters replaced, and null for NaN and infinities.

    What stands around it is removed. A text that is too long to search is returned unchanged.
    """
    if len(payload) > limits.READABLE_BYTES:
        return payload
    text = payload.strip(BLANK).decode(errors="replace").encode().translate(_TO_SPACE, _CONTROLS)
    return _NO_NUMBER.sub(rb"\1null", text)


_CONTROLS_TO_SPACE = bytes.maketrans(bytes(range(32)), b" " * 32)


def replace_repairable(text: bytes) -> bytes:
    """The text with valid JSON of the same length for what decoding repairs: messages end at the same places in both.

    One that is too long to search is returned unchanged.
    """
    if len(text) > limits.READABLE_BYTES:
        return text
    if rb"\u" in text:
        text = _ESCAPE.sub(lambda found: b"x" * len(found[1]) if found[1] else found[0], text)
    text = text.translate(_CONTROLS_TO_SPACE)
    return _NO_NUMBER.sub(lambda found: found[1] + b"0".ljust(len(found[0]) - len(found[1])), text)


_NINES = bytes.maketrans(b"012345678", b"9" * 9)
_DIGITS = re.compile(rb"\d++")
# More digits than any number that a type can hold, and few enough to be parsed quickly.
_LONG_DIGITS = 400


def shorten_numbers(text: bytes) -> bytes:
    """The text with long numbers cut to 400 digits: no type can hold them, and parsing takes quadratic time."""
    nines, run = text.translate(_NINES), b"9" * _LONG_DIGITS
    parts, end = [], 0
    while (start := nines.find(run, end)) >= 0:
        parts.append(text[end : start + _LONG_DIGITS])
        digits = _DIGITS.match(text, start)
        end = digits.end() if digits else start + _LONG_DIGITS
    return b"".join([*parts, text[end:]]) if parts else text


_NUMBER = re.compile(rb"([:,\[]\s{0,10})(-?\d[\d.]*+(?:[eE][-+]?\d++)?)")
# No number that a column can hold is longer; and parsing takes longer the more digits there are.
_NUMBER_CHARS = 40


def _representable(payload: bytes) -> bytes:
    """The text with null for numbers that no type can hold. It may change texts, in an entry that would be lost."""
    return _NUMBER.sub(lambda found: found[0] if _is_representable(found[2]) else found[1] + b"null", payload)


def _is_representable(number: bytes) -> bool:
    try:
        return len(number) <= _NUMBER_CHARS and math.isfinite(float(number))
    except ValueError:
        return True  # not a number: the decoder raises


# Keys of entries, which are never guessed.
_KEYS = frozenset({"id", "pid", "port"})
_type_info: Callable[[Any], inspect.Type] = lru_cache(inspect.type_info)


class _Unfit(Exception):
    """A value that its field cannot hold."""


def convert_with_repairs(raw: msgspec.Raw | bytes, target: type[T] | Any, repairs: list[str]) -> T:
    """Convert a JSON text to the type `target`, with repairs; each repair adds a word to `repairs`.

    Raises msgspec.ValidationError when it does not fit, and other DecodeErrors when it is not JSON.
    """
    found: list[str] = []
    try:
        value = msgspec.json.decode(raw)
    except msgspec.ValidationError:  # untyped, it can only be a number that no type can hold
        found.append("number_left_out")
        value = msgspec.json.decode(_representable(bytes(raw)))
    with suppress(_Unfit):
        value = _fit(value, _type_info(target), found)
    converted = msgspec.convert(value, target)
    repairs += found
    return converted


def _fit(value: Any, target: inspect.Type, repairs: list[str]) -> Any:  # noqa: PLR0911 -- one return a kind of value
    match target:
        case inspect.StructType() if isinstance(value, dict):
            return {**value, **dict(_fit_fields(value, target, repairs))}
        case inspect.ListType() if isinstance(value, list):
            return _fit_items(value[: limits.ITEMS], target.item_type, repairs)
        case inspect.UnionType():
            return _fit_one_of(value, target.types, repairs)
        case inspect.IntType():
            return _fit_whole(value, target, repairs)
        case inspect.FloatType() if isinstance(value, int | float) and not isinstance(value, bool):
            return _fit_float(value, target)
        case inspect.StrType() if isinstance(value, str):
            return _fit_text(value, target, repairs)
        case inspect.BoolType() if isinstance(value, bool):
            return value
        case inspect.NoneType() if value is None:
            return None
    raise _Unfit


def _fit_fields(value: dict[str, Any], target: inspect.StructType, repairs: list[str]) -> Iterator[tuple[str, Any]]:
    """The known fields of a struct; a field that does not fit gets its default, or 0."""
    for field in target.fields:
        name = field.encode_name
        if name not in value:
            continue
        try:
            yield name, _fit(value[name], field.type, repairs)
        except _Unfit:
            if not field.required:
                repairs.append("field_left_out")
                yield name, _default(field)
            elif name not in _KEYS and isinstance(field.type, inspect.IntType):
                repairs.append("number_zeroed")
                yield name, 0


def _default(field: inspect.Field) -> Any:
    return field.default if field.default is not msgspec.NODEFAULT else field.default_factory()


def _fit_items(value: list[Any], target: inspect.Type, repairs: list[str]) -> list[Any]:
    """Items that are not texts are left out of a list of texts; a wrong number becomes null, to keep the positions."""
    if isinstance(target, inspect.StrType):
        fitting: list[Any] = [item for item in value if isinstance(item, str)]
    else:
        fitting = [item if isinstance(item, float) else _fit_or_null(item, target) for item in value]
    if fitting != value:
        repairs.append("item_left_out")
    return fitting


def _fit_or_null(item: Any, target: inspect.Type) -> Any:
    with suppress(_Unfit):
        return _fit(item, target, [])
    return None


def _fit_text(value: str, target: inspect.StrType, repairs: list[str]) -> str:
    if target.max_length is None or len(value) <= target.max_length:
        return value
    repairs.append("text_cut")
    return value[: target.max_length]


def _fit_one_of(value: Any, types: Iterable[inspect.Type], repairs: list[str]) -> Any:
    for target in types:
        with suppress(_Unfit):
            return _fit(value, target, repairs)
    raise _Unfit


def _fit_float(value: float, target: inspect.FloatType) -> float:
    if not _at_least(target.ge, value) or not _at_least(value, target.le):
        raise _Unfit
    try:
        return float(value)
    except OverflowError:
        raise _Unfit from None


def _fit_whole(value: Any, target: inspect.IntType, repairs: list[str]) -> int:
    if isinstance(value, float) and math.isfinite(value):
        repairs.append("number_truncated")
        value = int(value)
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or not _at_least(target.ge, value) or not _at_least(value, target.le):
        raise _Unfit
    return int(value)


def _at_least(bound: float | None, value: float | None) -> bool:
    return bound is None or value is None or bound <= value
