"""What `guestd setup` installs; tests/e2e/test_systemd.py has a systemd that works with it."""

from pathlib import Path

import pytest

from guestd.cli.setup import (
    CONFIGURATION,
    NOTIFY_RELOAD,
    TMPFILES,
    UNIT,
    find_program,
    install_configuration,
    install_unit,
)
from guestd.core.errors import ConfigError

PROGRAM = Path("/opt/bin/guestd")


def test_the_unit_starts_the_program_that_installed_it(tmp_path: Path) -> None:
    list(install_unit(tmp_path, PROGRAM, 252))
    assert "ExecStart=/opt/bin/guestd run " in (tmp_path / UNIT).read_text()
    assert (tmp_path / TMPFILES).stat().st_mode & 0o777 == 0o644


def test_a_unit_of_an_older_guestd_is_written_over_and_the_same_is_left(tmp_path: Path) -> None:
    list(install_unit(tmp_path, PROGRAM, 252))
    (tmp_path / UNIT).write_text("[Service]\nType=simple\n")
    said = list(install_unit(tmp_path, PROGRAM, 252))
    assert [line.rpartition(": ")[2] for line in said] == ["unchanged", "unchanged", "written"]
    assert "Type=notify\n" in (tmp_path / UNIT).read_text()


def test_a_systemd_that_waits_for_reloads_is_told_to(tmp_path: Path) -> None:
    list(install_unit(tmp_path, PROGRAM, 252))
    assert not (tmp_path / NOTIFY_RELOAD).exists()
    list(install_unit(tmp_path, PROGRAM, 253))
    assert "Type=notify-reload" in (tmp_path / NOTIFY_RELOAD).read_text()


def test_a_configuration_that_is_there_is_left_alone(tmp_path: Path) -> None:
    assert list(install_configuration(tmp_path)) == [f"{tmp_path / CONFIGURATION}: written"]
    (tmp_path / CONFIGURATION).write_text("mine\n")
    assert list(install_configuration(tmp_path)) == [f"{tmp_path / CONFIGURATION}: exists, kept"]
    assert (tmp_path / CONFIGURATION).read_text() == "mine\n"


def test_a_program_that_the_unit_could_not_start_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="no guestd on PATH"):
        find_program()
    program = tmp_path / "guestd"
    program.symlink_to("/home/somebody/guestd")
    with pytest.raises(ConfigError, match="no guestd on PATH"):  # it leads nowhere
        find_program()
    program.unlink()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert find_program() == program
