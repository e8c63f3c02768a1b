"""deploy/guestd.toml matches the code: every key, its default, its explanation."""

import ast
import inspect
import itertools
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from guestd.core import config
from guestd.core.config import Settings, load_settings
from guestd.service.reload import RELOADABLE_KEYS

FILE = Path(__file__).parents[2] / "deploy" / "guestd.toml"


def explained() -> Iterator[tuple[str, str, str]]:
    """(class, field, explanation) of every setting in the source."""
    for definition in ast.parse(inspect.getsource(config)).body:
        if not isinstance(definition, ast.ClassDef):
            continue
        for field, text in itertools.pairwise(definition.body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                explanation = ast.literal_eval(text.value) if isinstance(text, ast.Expr) else ""
                yield definition.name, field.target.id, explanation


def section_names() -> dict[str, str]:
    """The table of the file for each class of settings; the class Settings is the top level."""
    values = {field: getattr(Settings(), field) for field in Settings.__struct_fields__}
    tables = {type(value).__name__: field for field, value in values.items() if isinstance(value, msgspec.Struct)}
    return tables | {"Settings": ""}


def commented() -> dict[tuple[str, str], str]:
    """The comment directly above each key, by (table, key)."""
    found: dict[tuple[str, str], str] = {}
    table, comment = "", ""
    for line in FILE.read_text().splitlines():
        if line.startswith("#"):
            comment = f"{comment} {line.removeprefix('#').strip()}".strip()
            continue
        if line.startswith("["):
            table = line.strip("[]")
        elif "=" in line:
            found[table, line.partition("=")[0].strip()] = comment
        comment = ""
    return found


def test_the_file_contains_the_defaults() -> None:
    assert load_settings(FILE) == Settings()


def test_the_file_mentions_every_setting() -> None:
    assert tomllib.loads(FILE.read_text()) == msgspec.json.decode(msgspec.json.encode(Settings()))


def test_every_key_is_explained_as_in_the_code() -> None:
    tables = section_names()
    expected = {
        (tables[class_name], field): " ".join(text.split())
        for class_name, field, text in explained()
        if field not in tables.values()
    }
    assert commented() == expected


def test_operations_lists_the_keys_that_need_no_restart() -> None:
    listed = (FILE.parents[1] / "docs/operations.md").read_text().partition("In force at once:")[2].partition(". ")[0]
    named = set(re.findall(r"`([\w.]+)`", listed))
    keys = {key for name in named for key in RELOADABLE_KEYS if key == name or key.startswith(f"{name}.")}
    assert keys == RELOADABLE_KEYS
    assert all(any(key == name or key.startswith(f"{name}.") for key in RELOADABLE_KEYS) for name in named)
