"""Secrets by file."""

from pathlib import Path

import pytest

from guestd.cli.arguments import read_settings
from guestd.cli.broker_arguments import read_broker
from guestd.cli.main import make_parser
from guestd.core.config import MqttSettings, Settings
from guestd.core.errors import ConfigError
from guestd.core.secrets import read_secret
from guestd.doctor.configuration import check_configuration

NOT_UTF8 = b"p\xe4ssword\n"


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


def test_a_password_of_the_store_that_is_not_utf8_is_rejected_with_its_setting(tmp_path: Path) -> None:
    path = secret_in(tmp_path, NOT_UTF8)
    file = tmp_path / "guestd.toml"
    file.write_text(f'[store]\npassword_file = "{path}"\n')
    with pytest.raises(ConfigError, match=f"^store.password_file {path}: its first line is not UTF-8$"):
        read_settings(make_parser().parse_args(["check", "--config", str(file)]))


def test_a_password_of_the_broker_that_is_not_utf8_is_a_fault_of_the_configuration(tmp_path: Path) -> None:
    path = secret_in(tmp_path, NOT_UTF8)
    settings = Settings(mqtt=MqttSettings(host="broker", username="guestd", password_file=str(path)))
    [finding] = check_configuration(settings)
    assert (finding.level, finding.text) == ("fault", f"mqtt.password_file {path}: its first line is not UTF-8")


def test_a_password_of_the_agents_broker_that_is_not_utf8_is_rejected_with_its_option(tmp_path: Path) -> None:
    path = secret_in(tmp_path, NOT_UTF8)
    arguments = make_parser().parse_args(
        ["agent", "--mqtt", "broker", "--mqtt-user", "me", "--mqtt-password-file", str(path)]
    )
    with pytest.raises(ConfigError, match=f"^--mqtt-password-file {path}: its first line is not UTF-8$"):
        read_broker(arguments)
