"""Settings: an error names the file and the path of the key."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from guestd.core.config import Settings, load_settings
from guestd.core.errors import ConfigError


def refusal_of(file: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    return message


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "guestd.toml"


def test_an_empty_file_means_the_defaults(file: Path) -> None:
    file.write_text("")
    assert load_settings(file) == Settings()


def test_a_given_key_replaces_only_its_default(file: Path) -> None:
    file.write_text("[spool]\nmax_bytes = 5\n")
    settings = load_settings(file)
    assert settings.spool.max_bytes == 5
    assert settings.spool.directory == Settings().spool.directory
    assert settings.store == Settings().store


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[spool]\nmax_byte = 5\n", ("`max_byte`", "`$.spool`")),
        ("[spol]\nmax_bytes = 5\n", ("`spol`",)),
        ("stop_grace = 1.0\n", ("`stop_grace`",)),
        ("[virtio.more]\nx = 1\n", ("`more`", "`$.virtio`")),
        ('[store]\nbatch_bytes = "4 MiB"\n', ("`int`", "`str`", "`$.store.batch_bytes`")),
        ("[store]\nbatch_frames = 0\n", ("`$.store.batch_frames`",)),
        ("[store]\nbatch_frames = 1.5\n", ("`$.store.batch_frames`",)),
        ("[store]\nflush_seconds = -0.1\n", ("`$.store.flush_seconds`",)),
        ("[spool]\nmachine_share = 0.0\n", ("`$.spool.machine_share`",)),
        ("[spool]\nmachine_share = 1.1\n", ("`$.spool.machine_share`",)),
        ("[events]\nkeep_days = 1000001\n", ("`int` <= 1000000", "`$.events.keep_days`")),
        ("[events]\nkeep_per_machine = 2147483648\n", ("`int` <= 2147483647", "`$.events.keep_per_machine`")),
        ("[quarantine]\nkeep_days = 1000001\n", ("`int` <= 1000000", "`$.quarantine.keep_days`")),
        ("[telemetry]\nlisten_port = 65536\n", ("`$.telemetry.listen_port`",)),
        ("stop_grace_seconds = 0.0\n", ("`$.stop_grace_seconds`",)),
        ("spool = 5\n", ("`object`", "`$.spool`")),
    ],
)
def test_a_wrong_key_or_value_is_rejected_with_its_path(file: Path, text: str, parts: tuple[str, ...]) -> None:
    file.write_text(text)
    message = refusal_of(file)
    assert [part for part in parts if part not in message] == []


@pytest.mark.parametrize(("table", "key"), [("mqtt", "host"), ("telemetry", "listen_host")])
def test_a_host_is_an_address_or_a_name_and_an_ipv6_address_may_have_brackets(file: Path, table: str, key: str) -> None:
    for text, host in (("[::1]", "::1"), ("::1", "::1"), ("fe80::1%eth0", "fe80::1%eth0"), ("b.example", "b.example")):
        file.write_text(f'[{table}]\n{key} = "{text}"\n')
        assert getattr(getattr(load_settings(file), table), key) == host
    for text in (
        "b.example:1883",
        "127.0.0.1:1883",
        "me:pw@b.example",
        "[::1]:1883",
        "::1:1883",
        "::1:9478",
        "mqtt://b.example",
        "a b",
    ):
        file.write_text(f'[{table}]\n{key} = "{text}"\n')
        message = refusal_of(file)
        assert f"{key}: " in message
        assert f"a key of its own, {key.replace('host', 'port')}" in message
        assert f"`$.{table}`" in message
        assert "pw" not in message


def test_invalid_toml_is_rejected_with_its_line(file: Path) -> None:
    file.write_text("[spool]\nmax_bytes = \n")
    assert "line 2" in refusal_of(file)


def test_a_file_that_is_not_utf8_is_rejected(file: Path) -> None:
    file.write_bytes(b'[spool]\ndirectory = "\xff"\n')
    assert "UTF-8" in refusal_of(file)


@pytest.mark.parametrize("text", ["x = " + "[" * 100_000, "[spool]\nmax_bytes = " + "9" * 5000])
def test_nesting_and_numbers_without_end_are_rejected(file: Path, text: str) -> None:
    file.write_text(text)
    assert str(file) in refusal_of(file)


def test_a_missing_file_is_rejected_with_its_name(file: Path) -> None:
    assert "No such file" in refusal_of(file)


def test_a_directory_instead_of_the_file_is_rejected_with_its_name(tmp_path: Path) -> None:
    assert "directory" in refusal_of(tmp_path)


def settings_of(kind: type, *, path: str = "") -> Iterator[tuple[str, str, Any]]:
    """Table, key and type of every setting."""
    for field in msgspec.structs.fields(kind):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from settings_of(field.type, path=field.name)
        else:
            yield path, field.name, field.type


ALL = list(settings_of(Settings))
NUMBERS = [(table, key) for table, key, kind in ALL if get_args(kind)[:1] in ((int,), (float,))]
TEXTS = [(table, key) for table, key, kind in ALL if kind is str or get_args(kind)[:1] == (str,)]


def test_every_number_has_two_bounds_and_every_text_a_pattern_and_a_length() -> None:
    assert len(NUMBERS) > 20
    assert len(TEXTS) > 15
    assert [(table, key) for table, key, kind in ALL if kind in (int, float, str)] == []
    for table, key, kind in ALL:
        meta = [each for each in get_args(kind) if isinstance(each, msgspec.Meta)]
        if (table, key) in NUMBERS:
            assert any(each.le is not None for each in meta), f"{table}.{key} has no largest value"
            assert any(each.gt is not None or each.ge is not None for each in meta), f"{table}.{key} has no smallest"
        if (table, key) in TEXTS:
            assert any(each.pattern is not None for each in meta), f"{table}.{key} takes control characters"


@pytest.mark.parametrize(("table", "key"), NUMBERS)
@pytest.mark.parametrize(
    "value", ["nan", "-nan", "inf", "-inf", "1e400", "1e300", "-1", "9" * 30, "9" * 5000, "true", '""']
)
def test_a_number_out_of_bounds_is_rejected_with_its_key(file: Path, table: str, key: str, value: str) -> None:
    file.write_text((f"[{table}]\n" if table else "") + f"{key} = {value}\n")
    message = refusal_of(file)
    assert len(message.splitlines()) == 1
    assert f"`$.{table}.{key}`".replace("..", ".") in message or "digits" in message


@pytest.mark.parametrize(("table", "key"), TEXTS)
def test_a_text_that_no_file_or_server_takes_is_rejected_with_its_key(file: Path, table: str, key: str) -> None:
    for value in ("\\u0000", "a\\u0000b", "a\\nb", "\\u001b[2J", "x" * 100_000):
        file.write_text(f'[{table}]\n{key} = "{value}"\n')
        assert f"`$.{table}.{key}`" in refusal_of(file)


@pytest.mark.parametrize("text", ["a = " + "[" * 100_000, "a." * 500 + "b = 1", "a = 1_", "a = 0x", "\ufeff[spool]"])
def test_a_file_that_is_no_configuration_is_rejected_in_one_line(file: Path, text: str) -> None:
    file.write_text(text)
    assert len(refusal_of(file).splitlines()) == 1
