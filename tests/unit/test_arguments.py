"""Arguments are checked where they enter: every option of every verb has a type with a range, which the error names."""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestd.cli.arguments import number, path, text, uuid, whole_number
from guestd.cli.main import main, make_parser
from gueststore.__main__ import _make_parser as make_store_parser
from support.poison import TERMINAL_POISON, assert_harmless

Option = tuple[list[str], argparse.Action]
# What int() or float() takes and no operator means, and what has no place in a timedelta or a column.
NO_NUMBERS = (
    "nan", "-nan", "inf", "-inf", "infinity", "1e400", "-1e400", "1e300", "", " ", "1 ", "\u0665", "\uff15", "1_000",
    "0x10", "1,5", "-1", "9" * 5_000, "one", TERMINAL_POISON, "\udcff",
)  # fmt: skip


def options(parser: argparse.ArgumentParser, words: list[str]) -> Iterator[Option]:
    """Every option and argument that takes a value, with the words of its verb."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb, inner in action.choices.items():
                yield from options(inner, [*words, verb])
        elif action.nargs != 0:
            yield words, action


def named(option: Option) -> str:
    words, action = option
    return " ".join([*words, *(action.option_strings or [action.dest])])


ALL = list(options(make_parser(), []))
TYPES = {option_name: action.type for option_name, action in ((named(option), option[1]) for option in ALL)}
NUMBERS = [option for option in ALL if "number" in getattr(option[1].type, "__qualname__", "")]
# Their types import what they need when they are called.
LATE = {"agent --interval", "agent --processes", "agent --buffer-bytes"}
NUMBERS += [option for option in ALL if named(option) in LATE]


def test_every_value_has_a_type_that_checks_it_or_a_closed_set() -> None:
    unchecked = [named(option) for option in ALL if option[1].choices is None and _is_unchecked(option[1].type)]
    assert unchecked == []
    store = [named(option) for option in options(make_store_parser(), [])]
    assert {name.split()[-1] for name in store} == {"--dsn"}, "another value needs a type, and a test here"


def _is_unchecked(kind: Any) -> bool:
    return kind in (None, str, int, float, Path) or not getattr(kind, "__module__", "").startswith("guestd.cli.")


def test_there_are_numbers_to_test() -> None:
    assert {named(option) for option in NUMBERS} >= LATE | {
        "top --rounds", "top --seconds", "quarantine list --limit", "quarantine drop --older-than", "simulate --count",
    }  # fmt: skip


@pytest.mark.parametrize("option", NUMBERS, ids=named)
def test_no_number_is_wrong_usage_with_the_range_in_one_line(capfd: pytest.CaptureFixture[str], option: Option) -> None:
    words, action = option
    flag = action.option_strings[0]
    for word in NO_NUMBERS:
        assert main([*words, f"{flag}={word}"]) == 2
        *usage, error = capfd.readouterr().err.splitlines()
        assert usage[0].startswith("usage: ")
        assert f"argument {flag}: must be a " in error
        assert "number between " in error
        assert_harmless(error.encode())


@pytest.mark.parametrize(
    ("words", "given", "error"),
    [
        (("quarantine", "list", "--limit"), "-1", "between 1 and 100000, and is '-1'"),
        (("quarantine", "list", "--limit"), "100001", "between 1 and 100000, and is '100001'"),
        (("quarantine", "drop", "--older-than"), "-5", "between 0.01 and 36500, and is '-5'"),
        (("quarantine", "drop", "--older-than"), "0", "between 0.01 and 36500, and is '0'"),
        (("quarantine", "drop", "--older-than"), "1e9", "between 0.01 and 36500, and is '1e9'"),
        (("top", "--rounds"), "0", "between 1 and 1000000, and is '0'"),
        (("top", "--seconds"), "0", "between 0.01 and 86400, and is '0'"),
        (("agent", "--interval"), "0", "between 1 and 86400, and is '0'"),
        (("agent", "--buffer-bytes"), "1000", "between 1048576 and 68719476736, and is '1000'"),
        (("simulate", "--guests"), "0", "between 1 and 100000, and is '0'"),
        (("quarantine", "show"), "1_000000-0000-0000-0000-000000000000", "must be a UUID"),
        (("secret",), "\uff17e3f3a5e-8d0b-4a55-9c0b-5d5e4a2f7c11", "must be a UUID"),
        (("check", "--config"), "", "must be a path"),
        (("agent", "--listen"), "", "must be a path"),
        (("agent", "--mqtt-prefix"), "a/#", "must be a topic without wildcards"),
        (("show",), "\udcff", "must be UTF-8"),
    ],
)
def test_the_error_names_what_is_allowed_and_what_was_given(
    capfd: pytest.CaptureFixture[str], words: tuple[str, ...], given: str, error: str
) -> None:
    option = words[-1].startswith("--")
    assert main([*words[:-1], f"{words[-1]}={given}"] if option else [*words, given]) == 2
    assert error in capfd.readouterr().err.splitlines()[-1]


def try_to_read(kind: Callable[[str], Any], given: str) -> tuple[Any, str]:
    """The value, or None and the error."""
    try:
        return kind(given), ""
    except argparse.ArgumentTypeError as exc:
        return None, str(exc)


@given(st.integers(-5, 5), st.text() | st.integers().map(str))
def test_a_whole_number_is_within_its_range_or_refused(most: int, given: str) -> None:
    found, error = try_to_read(whole_number(-5, most), given)
    assert f"between -5 and {most}" in error if found is None else -5 <= found <= most


@given(st.text() | st.floats().map(repr) | st.integers().map(str))
def test_a_number_is_finite_and_within_its_range_or_refused(given: str) -> None:
    found, error = try_to_read(number(-1.5, 1e6), given)
    assert "between -1.5 and 1000000" in error if found is None else -1.5 <= found <= 1e6


@given(st.text(), st.sampled_from([uuid, path, text]))
def test_ids_paths_and_texts_are_read_or_refused(given: str, kind: Callable[[str], Any]) -> None:
    found, error = try_to_read(kind, given)
    assert found is not None or repr(given) in error


def test_what_is_meant_as_a_number_is_read() -> None:
    assert [number(0, 1e6)(each) for each in ("0", "1", "1.", ".5", "1e3", "2.5E-1")] == [0, 1, 1, 0.5, 1000, 0.25]
    assert [whole_number(-5, 99)(each) for each in ("-5", "0", "007", "99")] == [-5, 0, 7, 99]
    assert uuid("7E3F3A5E8D0B4A559C0B5D5E4A2F7C11") == uuid("7e3f3a5e-8d0b-4a55-9c0b-5d5e4a2f7c11")
