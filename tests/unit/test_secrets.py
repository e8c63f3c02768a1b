"""Secrets by file."""

from pathlib import Path

import pytest

from guestd.cli import main as cli
from guestd.core.errors import ConfigError
from guestd.core.secrets import read_secret


def secret_in(directory: Path, content: bytes, mode: int = 0o600) -> Path:
    path = directory / "secret"
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("content", [b"s3cret", b"s3cret\n", b" s3cret \r\nnext line\n"])
def test_the_secret_is_the_first_line(tmp_path: Path, content: bytes) -> None:
    assert read_secret(secret_in(tmp_path, content, 0o640), "x") == b"s3cret"


@pytest.mark.parametrize(
    ("content", "mode", "what"),
    [(b"s3cret", 0o604, "it is world-readable"), (b"\ns3cret", 0o600, "its first line is empty")],
)
def test_an_invalid_secret_is_rejected_with_its_setting_and_path(
    tmp_path: Path, content: bytes, mode: int, what: str
) -> None:
    path = secret_in(tmp_path, content, mode)
    with pytest.raises(ConfigError, match=what) as caught:
        read_secret(path, "virtio.master_secret_file")
    assert str(caught.value).startswith(f"virtio.master_secret_file {path}: ")


def test_a_missing_secret_is_rejected_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--secret-file .*/none: No such file"):
        read_secret(tmp_path / "none", "--secret-file")


@pytest.mark.parametrize("setting", ["store.password_file", "mqtt.password_file"])
def test_a_password_that_is_not_utf8_is_a_fault_of_its_setting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str
) -> None:
    path = secret_in(tmp_path, b"p\xe4ssword\n")
    section, key = setting.split(".")
    host = 'host = "broker"\n' if section == "mqtt" else ""
    file = tmp_path / "guestd.toml"
    file.write_text(f'[{section}]\n{host}{key} = "{path}"\n')
    assert cli.main(["check", "--config", str(file)]) == 78
    assert f"{setting} {path}: its first line is not UTF-8" in "".join(capsys.readouterr())


def test_a_password_of_the_agents_broker_that_is_not_utf8_is_a_wrong_argument(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = secret_in(tmp_path, b"p\xe4ssword\n")
    broker = ["--mqtt", "broker", "--mqtt-user", "agent", "--mqtt-password-file", str(path)]
    assert cli.main(["agent", *broker, "--machine-id", "7e3f3a5e-8d0b-4a55-9c0b-5d5e4a2f7c11"]) == 78
    assert f"--mqtt-password-file {path}: its first line is not UTF-8" in capsys.readouterr().err
