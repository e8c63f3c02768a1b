"""What `guestd setup` installs; tests/e2e/test_systemd.py has a systemd that works with it."""

from pathlib import Path

import pytest

from guestd.cli.setup import (
    CONFIGURATION,
    LIBVIRT_GROUP,
    NOTIFY_RELOAD,
    TMPFILES,
    UNIT,
    find_program,
    install_configuration,
    install_libvirt_group,
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


def configure(root: Path, text: str) -> None:
    (root / CONFIGURATION).parent.mkdir(parents=True, exist_ok=True)
    (root / CONFIGURATION).write_text(text)


def test_the_group_that_is_as_good_as_root_is_given_only_where_libvirt_is_used(tmp_path: Path) -> None:
    list(install_unit(tmp_path, PROGRAM, 252))
    list(install_configuration(tmp_path))
    assert list(install_libvirt_group(tmp_path, set())) == []
    installed = [file.read_text() for file in tmp_path.rglob("*") if file.is_file() and file.suffix != ".toml"]
    lines = [line for text in installed for line in text.splitlines() if not line.startswith("#")]
    assert [
        line for line in lines if "libvirt" in line.replace("libvirt-qemu", "").replace("libvirtd.service", "")
    ] == []
    configure(tmp_path, '[libvirt]\nuri = "qemu:///system"\n')
    assert list(install_libvirt_group(tmp_path, set())) == [f"{tmp_path / LIBVIRT_GROUP}: written"]
    assert "m guestd libvirt" in (tmp_path / LIBVIRT_GROUP).read_text()


def test_the_group_is_taken_back_where_libvirt_is_not_used_any_more(tmp_path: Path) -> None:
    configure(tmp_path, '[libvirt]\nuri = "qemu:///system"\n')
    list(install_libvirt_group(tmp_path, set()))
    configure(tmp_path, '[libvirt]\nuri = "qemu+tls://other/system"\n')
    removed, still = install_libvirt_group(tmp_path, {"guestd", "libvirt"})
    assert removed.startswith(f"{tmp_path / LIBVIRT_GROUP}: removed")
    assert "gpasswd --delete guestd libvirt" in still
    assert not (tmp_path / LIBVIRT_GROUP).exists()


def test_a_configuration_that_cannot_be_read_changes_no_group(tmp_path: Path) -> None:
    configure(tmp_path, '[libvirt]\nuri = "qemu:///system"\n')
    list(install_libvirt_group(tmp_path, set()))
    configure(tmp_path, "[nonsense]\n")
    (said,) = install_libvirt_group(tmp_path, {"libvirt"})
    assert "left as it is" in said
    assert (tmp_path / LIBVIRT_GROUP).exists()


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
