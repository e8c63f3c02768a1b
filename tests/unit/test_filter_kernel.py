"""The commands that list the kernel's rules."""

import sys

import pytest

from guestd.filters.kernel import run_command


def test_a_command_that_hangs_is_an_error_of_the_system_that_names_it() -> None:
    with pytest.raises(OSError, match=r"^sleep: no answer within 0\.1 s$"):
        run_command("sleep", "60", timeout_seconds=0.1)


def test_a_command_that_fails_is_an_error_of_the_system_with_its_message() -> None:
    with pytest.raises(OSError, match="nowhere"):
        run_command("ls", "/nowhere")


def test_a_comment_that_is_not_utf8_does_not_hide_the_other_rules() -> None:
    script = r"import sys; sys.stdout.buffer.write(b'-A INPUT --comment \xff\n')"
    assert run_command(sys.executable, "-c", script) == "-A INPUT --comment �\n"
