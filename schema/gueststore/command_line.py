"""What the command lines of gueststore and guestd share: arguments, output, and the exit status when either fails.

Everything that is printed passes through here, because a terminal acts on escape sequences and a text may be anybody's:
`print_line` and `print_error` escape it, `print_json` is ASCII. A reader of stdout that ends early (`| head`) ends the
command quietly with 141, as SIGPIPE ends other commands; stdout that cannot be written is an error.
"""

import argparse
import errno
import io
import json
import os
import sys
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any, NoReturn, TextIO

from gueststore.text import escape

EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130
EXIT_READER_GONE = 141
# A server's or a library's text, which may be of any length.
ERROR_CHARS = 2_000


class OutputLost(Exception):
    """stdout cannot be written. `is_reader_gone`: its reader has ended, which is no error."""

    def __init__(self, exc: OSError) -> None:
        super().__init__(f"stdout cannot be written: {exc.strerror}")
        self.is_reader_gone = exc.errno == errno.EPIPE


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line that no terminal acts on, below the usage."""

    def print_help(self, file: Any = None) -> None:
        """Print the help, on stdout unless a file is given."""
        if file is None:
            write(self.format_help())
        else:
            super().print_help(file)

    def error(self, message: str) -> NoReturn:
        """Print usage and error; exit with 2."""
        if any(each.startswith("--dsn") for each in sys.argv) and ("unrecognized" in message or "choice" in message):
            # They may be words of a password.
            message = "words beside the arguments: a connection string with spaces is quoted as a whole"
        super().error(_shorten(message))


def run_command_line(program: str, run: Callable[[], int]) -> int:
    """Run a command line to its exit status, also when it is interrupted or its output is lost."""
    _occupy_closed_streams()
    sys.excepthook = _print_traceback
    try:
        try:
            status = run()
        except SystemExit as exc:  # argparse has printed its help or an error
            status = exc.code if isinstance(exc.code, int) else EXIT_FAILURE
        write("")
    except KeyboardInterrupt:
        status = EXIT_INTERRUPTED
    except OutputLost as exc:
        status = EXIT_READER_GONE if exc.is_reader_gone else EXIT_FAILURE
        if not exc.is_reader_gone:
            print_error(program, str(exc))
    _write_error("")  # what is left of a log that could not be written
    return status


def write(text: str, stream: TextIO | None = None) -> None:
    """Write text to stdout, or to the stream that was stdout, as it is, at once. Raises OutputLost."""
    stream = stream or sys.stdout
    try:
        stream.write(text)
        stream.flush()
    except OSError as exc:
        _discard(stream)
        raise OutputLost(exc) from exc


def print_line(text: str) -> None:
    """Print one line on stdout."""
    write(f"{escape(text)}\n")


def print_json(value: Any, *, default: Callable[[Any], Any] | None = None) -> None:
    """Print one JSON value on one line of stdout; all that is not ASCII is escaped."""
    write(json.dumps(value, default=default, separators=(",", ":")) + "\n")


def print_error(program: str, *lines: str) -> None:
    """Print an error on stderr with the program's name; further lines are its list."""
    first, *more = map(_shorten, lines)
    _write_error("\n".join([f"{program}: {first}", *more, ""]))


def _shorten(text: str) -> str:
    """An error as one line. Servers and drivers break theirs: a space reads better than an escape."""
    shown = escape(" ".join(line.strip() for line in text[:ERROR_CHARS].splitlines()))
    return shown if len(text) <= ERROR_CHARS else f"{shown}... ({len(text)} characters)"


def _write_error(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        _discard(sys.stderr)  # there is nowhere left to report it


def _print_traceback(kind: type[BaseException], exc: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of a bug, which may quote anybody's text; replaces `sys.excepthook`."""
    lines = "".join(traceback.format_exception(kind, exc, trace)).split("\n")
    _write_error("\n".join(map(escape, lines)))


def _occupy_closed_streams() -> None:
    """Open the standard streams that are closed (`>&-`), in the wrong direction: writing fails, as it should.

    Otherwise a socket would get the number, and what is printed would go to the store.
    """
    for number, mode in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_RDONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)
    if sys.stdout is None:
        sys.stdout = _open_stream(1)
    if sys.stderr is None:
        sys.stderr = _open_stream(2)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that cannot show a letter gets its escape.
        sys.stdout.reconfigure(errors="backslashreplace")


def _open_stream(number: int) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.FileIO(number, "w", closefd=False), "utf-8", write_through=True)


def _discard(stream: Any) -> None:
    """Let a stream's number point to nothing, so that what it still holds is not written, or reported, at exit."""
    try:
        number = stream.fileno()
    except (OSError, ValueError):
        return
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, number)
    os.close(nothing)
