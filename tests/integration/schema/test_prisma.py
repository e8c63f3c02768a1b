"""schema.prisma by Prisma 7's own parser: valid, formatted, and the same schema as the live one.

The parser comes from npm into the cache that ./dev keeps, once; later runs are offline.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gueststore.catalogue import load_catalogue

SCHEMA = Path(__file__).parents[3] / "schema/schema.prisma"
CHECKER = Path(__file__).parents[3] / "schema/prisma-check"

# Prisma's type and native type for each type of ours.
TYPES = {
    "uuid": ("String", "Uuid"),
    "text": ("String", "Text"),
    "text[]": ("String", "Text"),
    "boolean": ("Boolean", None),
    "integer": ("Int", None),
    "bigint": ("BigInt", None),
    "double precision": ("Float", None),
    "jsonb": ("Json", "JsonB"),
    "bytea": ("Bytes", "ByteA"),
    "timestamp(3) with time zone": ("DateTime", "Timestamptz"),
}
RULES = {"CASCADE": "Cascade", "SET NULL": "SetNull", "RESTRICT": "Restrict"}
SERIES = {name for kind, name in load_catalogue() if kind == "hypertable"}
COLUMN = re.compile(r"(?P<type>.*?)(?P<needed> NOT NULL)?(?: DEFAULT (?P<default>.*))?")


@pytest.fixture(scope="module")
def parser() -> Path:
    """The directory with the parser's package, installed from npm on first use."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed: schema.prisma is checked where it is, on CI for one")
    lock = hashlib.sha256((CHECKER / "package-lock.json").read_bytes()).hexdigest()[:12]
    cache = Path(os.environ.get("GUESTD_CACHE") or Path.home() / ".cache/guestd") / f"prisma-{lock}"
    if not (cache / "stamp").exists():
        cache.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(CHECKER / name, cache)
        install = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        subprocess.run(install, cwd=cache, check=True, capture_output=True, timeout=100)
        (cache / "stamp").touch()
    return cache / "node_modules"


@pytest.fixture(scope="module")
def parsed(parser: Path) -> dict[str, Any]:
    """What the parser makes of schema.prisma."""
    done = subprocess.run(
        ["node", CHECKER / "read.cjs", SCHEMA],
        env=os.environ | {"NODE_PATH": str(parser)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.fixture(scope="module")
def models(parsed: dict[str, Any]) -> dict[str, Any]:
    """The models by name, their fields by name."""
    return {
        model["name"]: model | {"fields": {field["name"]: field for field in model["fields"]}}
        for model in parsed["models"]
    }


def of_table(kind: str, table: str) -> Iterator[tuple[str, str]]:
    for (found, name), definition in load_catalogue().items():
        if found == kind and name.partition(".")[0] == table:
            yield name.partition(".")[2], definition


def test_the_schema_is_formatted(parsed: dict[str, Any]) -> None:
    assert parsed["formatted"] == SCHEMA.read_text("utf-8")


def test_a_broken_schema_is_refused_with_the_parsers_words(parser: Path, tmp_path: Path) -> None:
    broken = tmp_path / "schema.prisma"
    broken.write_text(SCHEMA.read_text("utf-8").replace("  id    ", "  id uuid", 1), "utf-8")
    done = subprocess.run(
        ["node", CHECKER / "read.cjs", broken],
        env=os.environ | {"NODE_PATH": str(parser)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "rror" in done.stderr


def test_every_table_is_a_model_with_its_comment(models: dict[str, Any]) -> None:
    assert set(models) == {name for kind, name in load_catalogue() if kind == "table"}
    assert all(model["documentation"] == load_catalogue()["comment", name] for name, model in models.items())


def test_every_column_is_a_field_of_its_type_need_and_default(models: dict[str, Any]) -> None:
    for name, model in models.items():
        columns = dict(of_table("column", name))
        scalars = {key: field for key, field in model["fields"].items() if field["kind"] == "scalar"}
        assert list(scalars) == list(columns)
        for column, definition in columns.items():
            field, facts = scalars[column], COLUMN.fullmatch(definition)
            assert facts is not None
            native = (field["nativeType"] or [None])[0]
            assert (field["type"], native) == TYPES[facts["type"]], (name, column)
            assert native != "Timestamptz" or field["nativeType"] == ["Timestamptz", ["3"]]
            assert field["isRequired"] == bool(facts["needed"]), (name, column)
            assert field["isList"] == facts["type"].endswith("[]")
            assert default_of(field) == facts["default"], (name, column)
            assert field["isUpdatedAt"] == (column == "updatedAt")
            assert field["documentation"] == load_catalogue()["comment", f"{name}.{column}"]


def default_of(field: dict[str, Any]) -> str | None:
    """A field's default as the catalogue writes it."""
    if not field["hasDefaultValue"]:
        return None
    default = field["default"]
    if isinstance(default, dict):
        return "CURRENT_TIMESTAMP" if default["name"] == "now" else str(default["args"][0])
    if isinstance(default, list):
        return "'{}'::text[]"
    if isinstance(default, bool):
        return str(default).lower()
    # Prisma writes the number of a BigInt as text.
    if isinstance(default, str) and field["type"] != "BigInt":
        return f"'{default}'::{'jsonb' if field['type'] == 'Json' else 'text'}"
    return str(default)


def test_every_key_is_a_key(models: dict[str, Any]) -> None:
    for name, model in models.items():
        keys = {"PRIMARY KEY": set[tuple[str, ...]](), "UNIQUE": set[tuple[str, ...]]()}
        for _constraint, definition in of_table("constraint", name):
            for kind, found in keys.items():
                if definition.startswith(kind):
                    found.add(tuple(definition.partition("(")[2].rstrip(")").replace('"', "").split(", ")))
        alone = {(key,) for key, field in model["fields"].items() if field["isId"]}
        together = {tuple(model["primaryKey"]["fields"])} if model["primaryKey"] else set()
        assert alone | together == keys["PRIMARY KEY"], name
        unique = {(key,) for key, field in model["fields"].items() if field["isUnique"]}
        assert unique | {tuple(fields) for fields in model["uniqueFields"]} == keys["UNIQUE"], name


def test_every_index_is_an_index() -> None:
    """The parser leaves plain indexes out, so this one reads the page itself. Prisma cannot write partial ones."""
    text = SCHEMA.read_text("utf-8")
    for name in (name for kind, name in load_catalogue() if kind == "table"):
        block = text.partition(f"\nmodel {name} {{\n")[2].partition("\n}\n")[0]
        written = set(re.findall(r"@@index\(\[(.*)\]\)", block))
        whole = [definition for _, definition in of_table("index", name) if " WHERE " not in definition]
        live = {definition.partition("(")[2].rstrip(")").replace('"', "") for definition in whole}
        assert written == live, name


def test_every_foreign_key_is_a_relation_and_so_is_a_series_link_to_its_machine(models: dict[str, Any]) -> None:
    of_machines = {table for table in SERIES if ("column", f"{table}.machineId") in load_catalogue()}
    live = {(table, "machineId", "Machine", "CASCADE") for table in of_machines}
    pattern = re.compile(r'FOREIGN KEY \("?(\w+)"?\) REFERENCES "(\w+)"\(id\) ON UPDATE CASCADE ON DELETE (.*)')
    for (kind, name), definition in load_catalogue().items():
        found = pattern.fullmatch(definition) if kind == "constraint" else None
        if found:
            live.add((name.partition(".")[0], found[1], found[2], found[3]))
    written = {
        (name, field["relationFromFields"][0], field["type"], field["relationOnDelete"])
        for name, model in models.items()
        for field in model["fields"].values()
        if field.get("relationFromFields")
    }
    assert written == {(*link, RULES[rule]) for *link, rule in live}
