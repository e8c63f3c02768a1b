"""The command line as a whole: what it imports, its help, and how errors become exit statuses."""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from guestd.cli import main as cli
from guestd.cli.terminal import print_json
from guestd.core.errors import ConfigError, RowsRejected, SourceLost, StoreUnavailable

# What the agent must start without: guests have no use for it.
NOT_FOR_GUESTS = ("psycopg", "libvirt", "aiohttp", "prometheus_client", "uvloop", "watchfiles", "rich", "sqlite3")
AGENT = """
import sys
sys.modules.update(dict.fromkeys(sys.argv[1:]))  # importing one of them fails
from guestd.cli.main import make_parser
arguments = make_parser().parse_args(["agent"])
import guestd.agent.run
"""


def parsers(parser: argparse.ArgumentParser, name: str = "guestd") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb, inner in action.choices.items():
                yield from parsers(inner, f"{name} {verb}")


ALL = dict(parsers(cli.make_parser()))


def test_the_agent_needs_no_driver_and_nothing_for_terminals() -> None:
    command = [sys.executable, "-c", AGENT, *NOT_FOR_GUESTS]
    environment = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ALL)
def test_every_help_says_what_it_does_and_its_exit_statuses(name: str) -> None:
    text = ALL[name].format_help()
    assert (ALL[name].description or "").strip()
    if "VERB ..." not in text or name == "guestd":
        assert "exit status: 0 " in text
    options = [option for action in ALL[name]._actions for option in action.option_strings]
    assert ("--json prints" in text) == ("--json" in options)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigError("no"), 78),
        (StoreUnavailable("no"), 1),
        (SourceLost("no"), 1),
        (RowsRejected("no"), 1),
        (PermissionError("no"), 1),
    ],
)
def test_expected_errors_are_one_line_and_a_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, status: int
) -> None:
    def fail(_: argparse.Namespace) -> int:
        raise error

    parser = argparse.ArgumentParser()
    parser.set_defaults(run=fail)
    monkeypatch.setattr(cli, "make_parser", lambda: parser)
    monkeypatch.setattr(cli, "configure_logging", lambda: None)
    assert cli.main([]) == status
    assert capsys.readouterr().err == "guestd: no\n"


def test_json_escapes_whatever_a_terminal_would_act_on(capsys: pytest.CaptureFixture[str]) -> None:
    value: dict[str, Any] = {"name": "\x1b[2J\x9b\u202eü"}
    print_json(value)
    shown = capsys.readouterr().out
    assert shown.isascii()
    assert "\x1b" not in shown
    assert json.loads(shown) == value
