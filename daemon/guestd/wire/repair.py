"""What a guest got wrong is put right where it can be told what it meant, or what is lost by leaving it out is little.

Pure, and only for frames that do not decode as they are. Two steps: of a text that is no JSON (`storable`, `readable`),
and of values that do not fit their fields (`fitted`). The rules for a value:

* a fraction where a whole number is due is cut off;
* a field that may be absent and holds what it cannot (a number out of bounds, NaN, a text for a number) is left out;
* a number that must be there and is out of bounds, or none, becomes 0: the schema has no null for it;
* a text that is too long is cut;
* keys (process ids, ports) and texts that must be there are never guessed: the entry does not fit.
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

T = TypeVar("T")

# What PostgreSQL cannot store: NUL and half a pair of surrogates.
_UNSTORABLE = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")
# The escapes of a JSON text that matter. Passed over: doubled backslashes (what follows them is no escape) and whole
# pairs. First group: what cannot be stored. Second group: escapes that are cut short.
_ESCAPE = re.compile(
    rb"(?:\\\\)++|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|(\\u0000|\\u[dD][89a-fA-F][0-9a-fA-F]{2})|((?:\\u[0-9a-fA-F]{0,3}(?![0-9a-fA-F]))+)",
)


def storable(payload: bytes) -> bytes:
    """Without the escapes that PostgreSQL cannot store; raises `BadFrame` for a text of hardly anything but escapes."""
    # Most encoders write text as it is: one look is all that most frames cost.
    if b"\\" not in payload or rb"\u" not in payload:
        return payload
    if payload.count(b"\\") > limits.ESCAPES:
        raise BadFrame("json", f"more than {limits.ESCAPES} escapes")
    if not _UNSTORABLE.search(payload):
        return payload
    # A short escape stays an error: closing a gap behind it must not make a new one of it.
    return _ESCAPE.sub(lambda found: b"" if found[1] else b"%s!" % found[2] if found[2] else found[0], payload)


_CONTROLS = bytes(set(range(32)) - set(b"\t\r\n"))
_SPELLED = rb"(?i:nan|inf)[\w()]{0,20}|1\.\#(?i:inf|qnan|snan|ind)\w{0,10}"
# Numbers that JSON has no word for, as C, Python and JavaScript write them, where a value may stand.
_NO_NUMBER = re.compile(rb"([:,\[]\s{0,10})[-+]?(?:" + _SPELLED + rb")(?=\s{0,10}[,}\]])")


def readable(payload: bytes) -> bytes:
    """Of a text that is no JSON what can be told: bytes that are no UTF-8, control characters, NaN and infinities.

    A text that is too long to look through is given back as it is.
    """
    if len(payload) > limits.READABLE_BYTES:
        return payload
    text = payload.decode(errors="replace").encode().translate(None, _CONTROLS).replace(b"\t", b" ")
    return _NO_NUMBER.sub(rb"\1null", text)


_NINES = bytes.maketrans(b"012345678", b"9" * 9)
_DIGITS = re.compile(rb"\d++")
# More than any number that a type holds has, and few enough to be read in no time.
_LONG_DIGITS = 400


def shortened(text: bytes) -> bytes:
    """With numbers of very many digits cut to 400: no type holds those either, and reading more takes its square."""
    nines, run = text.translate(_NINES), b"9" * _LONG_DIGITS
    parts, end = [], 0
    while (start := nines.find(run, end)) >= 0:
        parts.append(text[end : start + _LONG_DIGITS])
        digits = _DIGITS.match(text, start)
        end = digits.end() if digits else start + _LONG_DIGITS
    return b"".join([*parts, text[end:]]) if parts else text


_NUMBER = re.compile(rb"([:,\[]\s{0,10})(-?\d[\d.]*+(?:[eE][-+]?\d++)?)")
# No number that a column holds is longer; and reading one takes longer the more digits it has.
_NUMBER_CHARS = 40


def _representable(payload: bytes) -> bytes:
    """With null for the numbers that no type holds. It may reach into texts, of an entry that would be lost."""
    return _NUMBER.sub(lambda found: found[0] if _is_representable(found[2]) else found[1] + b"null", payload)


def _is_representable(number: bytes) -> bool:
    try:
        return len(number) <= _NUMBER_CHARS and math.isfinite(float(number))
    except ValueError:
        return True  # no number either: the decoder says so


# Without these an entry says nothing: they are never guessed.
_KEYS = frozenset({"id", "pid", "port"})
_type_info: Callable[[Any], inspect.Type] = lru_cache(inspect.type_info)


class _Unfit(Exception):
    """A value that its field cannot hold."""


def fitted(raw: msgspec.Raw | bytes, wanted: type[T] | Any, notes: list[str]) -> T:
    """A JSON text as a value of the type `wanted`, mended where that can be; a word in `notes` for each repair.

    Raises msgspec.ValidationError when it does not fit, and other DecodeErrors when it is no JSON.
    """
    found: list[str] = []
    try:
        value = msgspec.json.decode(raw)
    except msgspec.ValidationError:  # untyped, it can only be a number that no type holds
        found.append("number_left_out")
        value = msgspec.json.decode(_representable(bytes(raw)))
    with suppress(_Unfit):
        value = _fit(value, _type_info(wanted), found)
    converted = msgspec.convert(value, wanted)
    notes += found
    return converted


def _fit(value: Any, wanted: inspect.Type, notes: list[str]) -> Any:  # noqa: PLR0911 -- one return a kind of value
    match wanted:
        case inspect.StructType() if isinstance(value, dict):
            return {**value, **dict(_fit_fields(value, wanted, notes))}
        case inspect.ListType() if isinstance(value, list):
            return _fit_items(value[: limits.ITEMS], wanted.item_type, notes)
        case inspect.UnionType():
            return _fit_one_of(value, wanted.types, notes)
        case inspect.IntType():
            return _fit_whole(value, wanted, notes)
        case inspect.FloatType() if isinstance(value, int | float) and not isinstance(value, bool):
            return _fit_float(value)
        case inspect.StrType() if isinstance(value, str):
            return _fit_text(value, wanted, notes)
        case inspect.BoolType() if isinstance(value, bool):
            return value
        case inspect.NoneType() if value is None:
            return None
    raise _Unfit


def _fit_fields(value: dict[str, Any], wanted: inspect.StructType, notes: list[str]) -> Iterator[tuple[str, Any]]:
    """The fields that the struct knows; one that does not fit gets its default, or 0."""
    for field in wanted.fields:
        name = field.encode_name
        if name not in value:
            continue
        try:
            yield name, _fit(value[name], field.type, notes)
        except _Unfit:
            if not field.required:
                notes.append("field_left_out")
                yield name, _default(field)
            elif name not in _KEYS and isinstance(field.type, inspect.IntType):
                notes.append("number_zeroed")
                yield name, 0


def _default(field: inspect.Field) -> Any:
    return field.default if field.default is not msgspec.NODEFAULT else field.default_factory()


def _fit_items(value: list[Any], wanted: inspect.Type, notes: list[str]) -> list[Any]:
    """Texts that are none are left out; among numbers a null keeps the place."""
    if isinstance(wanted, inspect.StrType):
        fitting: list[Any] = [item for item in value if isinstance(item, str)]
    else:
        fitting = [item if isinstance(item, float) else _fit_or_null(item, wanted) for item in value]
    if fitting != value:
        notes.append("item_left_out")
    return fitting


def _fit_or_null(item: Any, wanted: inspect.Type) -> Any:
    with suppress(_Unfit):
        return _fit(item, wanted, [])
    return None


def _fit_text(value: str, wanted: inspect.StrType, notes: list[str]) -> str:
    if wanted.max_length is None or len(value) <= wanted.max_length:
        return value
    notes.append("text_cut")
    return value[: wanted.max_length]


def _fit_one_of(value: Any, types: Iterable[inspect.Type], notes: list[str]) -> Any:
    for wanted in types:
        with suppress(_Unfit):
            return _fit(value, wanted, notes)
    raise _Unfit


def _fit_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        raise _Unfit from None


def _fit_whole(value: Any, wanted: inspect.IntType, notes: list[str]) -> int:
    if isinstance(value, float) and math.isfinite(value):
        notes.append("number_truncated")
        value = int(value)
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or not _at_least(wanted.ge, value) or not _at_least(value, wanted.le):
        raise _Unfit
    return int(value)


def _at_least(bound: float | None, value: float | None) -> bool:
    return bound is None or value is None or bound <= value
