"""What the command line prints: colours on a terminal alone, tables that no width cuts, guests' text as it is."""

import io
from uuid import UUID

import pytest

from guestd.cli.terminal import make_console, make_table, print_line, print_table

ID = UUID("7e3f3a5e-8d0b-4a55-9c0b-5d5e4a2f7c11")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def shown(stream: io.StringIO, detail: str = "why") -> str:
    console = make_console(stream)
    table = make_table("id", "bytes", "detail", numbers=("bytes",))
    table.add_row(str(ID), "7", detail)
    print_table(console, table)
    print_line(console, ("fault", "red"), "  ", detail)
    return stream.getvalue()


def test_a_terminal_gets_colours_and_a_pipe_none() -> None:
    assert "\x1b[31mfault" in shown(Terminal())
    assert "\x1b" not in shown(io.StringIO())


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_an_operator_who_wants_no_colours_gets_none(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert "[31m" not in shown(Terminal())


def test_a_piped_table_has_one_line_a_row_without_trailing_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    lines = shown(io.StringIO(), "word " * 500).splitlines()
    assert lines[0] == "id                                    bytes  detail"
    assert lines[1] == f"{ID}      7  {'word ' * 499}word"
    assert len(lines) == 3


def test_a_narrow_terminal_folds_text_and_cuts_no_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("NO_COLOR", "1")
    assert str(ID) in shown(Terminal(), "word " * 50)


def test_what_looks_like_markup_is_shown_as_it_is() -> None:
    assert shown(Terminal(), "[red]x[/red] :smile: [/]").count("[red]x[/red] :smile: [/]") == 2
