"""Secrets by file."""

from pathlib import Path

import pytest

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
