"""What both command lines share: escaping, and exit statuses when interrupted, when stdout is lost, and for a bug."""

import errno
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gueststore.command_line import OutputLost, Parser, print_error, print_line, run_command_line
from gueststore.text import escape
from support.poison import TERMINAL_POISON, assert_harmless


@given(st.text(st.characters(exclude_categories=())))
def test_an_escaped_text_is_one_printable_line(text: str) -> None:
    shown = escape(text)
    assert shown.isprintable()
    shown.encode()
    assert not text.isprintable() or shown == text


@pytest.mark.parametrize("text", ["Contraseña", "日本", "a b", "C:\\Users", "naïve 🙂"])
def test_what_an_operator_reads_stays_as_it_is(text: str) -> None:
    assert escape(text) == text


def test_lines_and_errors_are_escaped(capfd: pytest.CaptureFixture[str]) -> None:
    print_line(f"{TERMINAL_POISON}\ud800\x00")
    print_error("guestd", f"{TERMINAL_POISON}\ud800\x00", TERMINAL_POISON)
    shown = capfd.readouterr()
    assert_harmless(shown.out.encode())
    assert_harmless(shown.err.encode())
    assert (shown.out.count("\n"), shown.err.count("\n")) == (1, 2)


def test_an_error_of_several_lines_becomes_one_and_a_long_one_is_cut(capfd: pytest.CaptureFixture[str]) -> None:
    print_error("guestd", "connection refused\n\tIs the server running?\n")
    print_error("guestd", "x" * 10_000)
    first, second = capfd.readouterr().err.splitlines()
    assert first == "guestd: connection refused Is the server running?"
    assert second == f"guestd: {'x' * 2000}... (10000 characters)"


def test_wrong_usage_is_escaped_and_ends_with_2(capfd: pytest.CaptureFixture[str]) -> None:
    parser = Parser(prog="guestd")
    assert run_command_line("guestd", lambda: bool(parser.parse_args([TERMINAL_POISON]))) == 2
    assert_harmless(capfd.readouterr().err.encode())


def raise_(exc: BaseException) -> int:
    raise exc


@pytest.mark.parametrize(
    ("exc", "status", "error"),
    [
        (KeyboardInterrupt(), 130, ""),
        (OutputLost(BrokenPipeError(errno.EPIPE, "Broken pipe")), 141, ""),
        (OutputLost(OSError(errno.ENOSPC, "No space")), 1, "guestd: stdout cannot be written: No space\n"),
    ],
)
def test_what_ends_a_command_has_its_status(
    capfd: pytest.CaptureFixture[str], exc: BaseException, status: int, error: str
) -> None:
    assert run_command_line("guestd", lambda: raise_(exc)) == status
    assert capfd.readouterr().err == error


PROGRAM = """
import sys
from gueststore.command_line import print_error, print_line, run_command_line
def run():
    {body}
    return 0
sys.exit(run_command_line("guestd", run))
"""


def run_program(body: str, redirection: str = "") -> subprocess.CompletedProcess[str]:
    program = PROGRAM.format(body=body)
    shell = f'"$0" -c "$1" {redirection}'
    environment = {"PYTHONPATH": ":".join(sys.path)}
    started = ["sh", "-c", shell, sys.executable, program]
    return subprocess.run(started, env=environment, capture_output=True, text=True, check=False)


def test_the_traceback_of_a_bug_is_escaped() -> None:
    done = run_program(f"raise AssertionError({TERMINAL_POISON!r} + '\\ud800')")
    assert done.returncode == 1
    assert "AssertionError: \\x1b[2J" in done.stderr
    assert_harmless(done.stderr.encode())


@pytest.mark.parametrize(
    ("redirection", "status", "error"),
    [
        (">/dev/full", 1, "guestd: stdout cannot be written: No space left on device\n"),
        (">&-", 1, "guestd: stdout cannot be written: Bad file descriptor\n"),
        ("2>/dev/full", 0, ""),
        ("2>&-", 0, ""),
        ("<&-", 0, "why"),
    ],
)
def test_streams_that_are_full_or_closed(redirection: str, status: int, error: str) -> None:
    done = run_program("print_line('x'); print_error('guestd', 'why')", redirection)
    assert (done.returncode, error in done.stderr, "Traceback" in done.stderr) == (status, True, False)
    assert done.stdout == ("x\n" if status == 0 else "")


def test_what_argparse_prints_is_not_lost_in_silence() -> None:
    body = "from guestd.cli.main import make_parser; make_parser().parse_args(['--{}'])"
    for option in ("help", "version"):
        assert run_program(body.replace("{}", option), ">/dev/full").returncode == 1
        assert run_program(body.replace("{}", option)).returncode == 0


def test_a_terminal_that_cannot_show_a_letter_gets_its_escape() -> None:
    program = PROGRAM.format(body="print_line('naïve →')")
    environment = {"PYTHONPATH": ":".join(sys.path), "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, "naïve \\u2192\n".encode("latin-1"))


def test_a_log_line_that_cannot_be_written_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    body = (
        "import structlog; from guestd.core.log import configure_logging; configure_logging();"
        " [structlog.get_logger().warning('an event') for _ in range(3)]; print_line('goes on')"
    )
    for redirection in ("2>/dev/full", "2>&-"):
        done = run_program(body, redirection)
        assert (done.returncode, done.stdout) == (0, "goes on\n")
    assert run_program(body).stderr.count("an event") == 3
