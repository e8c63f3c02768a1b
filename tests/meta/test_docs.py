"""What the documents say about the code is true: the layers, and the tests, metrics and verbs that they name."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from guestd.telemetry.registry import Telemetry

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
DECISIONS = sorted(ROOT.glob("docs/decisions/[0-9]*.md"))
FAILURE_MODES = (ROOT / "docs/failure-modes.md").read_text()
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()
MOST_COMMON_CHANGES = 12
PAGE_LINES = 60
TEXT_SUFFIXES = {".c", ".conf", ".md", ".prisma", ".py", ".service", ".sh", ".sql", ".toml", ".yaml", ".yml"}


def drawn_layers() -> list[set[str]]:
    """The layers of the picture in docs/architecture.md, from above."""
    picture = ARCHITECTURE.partition("## Layers")[2].split("```")[1].strip()
    return [set(re.findall(r"\b[a-z_]+\b", line[:42])) for line in picture.splitlines()]


def enforced_layers() -> list[set[str]]:
    """The same, as import-linter enforces them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    return [{module.strip() for module in re.split("[|:]", layer)} for layer in layers]


def test_the_picture_of_the_layers_is_what_import_linter_enforces() -> None:
    assert drawn_layers() == enforced_layers()


def test_every_module_is_in_a_layer_of_the_picture() -> None:
    files = [*(ROOT / "daemon/guestd").glob("*.py"), *(ROOT / "daemon/guestd").glob("*/__init__.py")]
    modules = {file.parent.name if file.name == "__init__.py" else file.stem for file in files} - {"guestd"}
    assert set.union(*drawn_layers()) == modules


def test_the_files_of_the_table_of_changes_exist() -> None:
    table = ARCHITECTURE.partition("## To change X, edit Y")[2]
    named = re.findall(r"`([\w./]+/[\w./]*)`", table)
    assert len(named) >= MOST_COMMON_CHANGES
    assert [path for path in named if not (ROOT / path).exists()] == []


def failure_rows() -> list[str]:
    """The rows of the failure modes that have tests."""
    tested = FAILURE_MODES.partition("## Without a test")[0]
    return [line for line in tested.splitlines() if re.match(r"\| (?!what breaks)\w|\| \W\w", line)]


@pytest.mark.parametrize("row", failure_rows(), ids=lambda row: row.split("|")[1].strip())
def test_every_failure_mode_names_tests_that_exist(row: str) -> None:
    named = re.findall(r"(tests/[\w/]+\.py)::(test_\w+)", row)
    assert named
    for file, test in named:
        assert re.search(rf"^ *(async )?def {test}\(", (ROOT / file).read_text(), re.MULTILINE), f"{file}::{test}"


def test_every_metric_of_the_failure_modes_is_served() -> None:
    served = {sample.name for family in Telemetry().registry.collect() for sample in family.samples}
    families = {family.name for family in Telemetry().registry.collect()}
    families |= {f"{name}_total" for name in families}
    named = set(re.findall(r"`(guestd_\w+)", FAILURE_MODES))
    assert named <= served | families


def links(document: Path) -> Iterator[str]:
    """The files that a document links to."""
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if "://" not in target and not target.startswith("#"):
            yield target.partition("#")[0]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_to_a_file(document: Path) -> None:
    assert [link for link in links(document) if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_that_a_document_names_exists(document: Path) -> None:
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    files = set(re.findall(r"(?<![\w/.])((?:daemon|deploy|docs|schema|sql|tests|tools)/[\w./-]+\.[a-z]+)\b", text))
    modules = set(re.findall(r"\bguestd\.((?:core|filters|ingest|service|spool|store|vms|wire)\.[a-z_]+)", text))
    files |= {f"daemon/guestd/{module.replace('.', '/')}.py" for module in modules}
    assert {file for file in files if "NNNN" not in file and not (ROOT / file).exists()} == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_verb_that_a_document_names_is_there(document: Path) -> None:
    verbs = set(re.findall(r"^#: (\w+)", (ROOT / "dev").read_text(), re.MULTILINE))
    assert set(re.findall(r"\./dev ([a-z]+)", document.read_text())) - verbs == set()


def test_every_suite_of_the_benchmarks_has_its_section() -> None:
    suites = {
        file.stem.removeprefix("suite_")
        for file in ROOT.glob("tools/bench/suite_*.py")
        if "def main" in file.read_text()
    }
    described = re.findall(r"^## `\./dev bench (\w+)`$", (ROOT / "docs/benchmarks.md").read_text(), re.MULTILINE)
    assert sorted(described) == sorted(suites)


@pytest.mark.parametrize("decision", DECISIONS, ids=lambda path: path.stem)
def test_a_decision_is_one_page_with_number_title_status_and_date(decision: Path) -> None:
    lines = decision.read_text().splitlines()
    assert re.fullmatch(rf"# {int(decision.name[:4])}\. [A-Z].+", lines[0])
    assert re.fullmatch(r"Status: (accepted|superseded by \d{4})", lines[2])
    assert re.fullmatch(r"Date: 20\d\d-\d\d-\d\d", lines[3])
    assert len(lines) <= PAGE_LINES


def test_decisions_are_numbered_without_holes() -> None:
    assert [int(decision.name[:4]) for decision in DECISIONS] == list(range(1, len(DECISIONS) + 1))


def text_files() -> Iterator[Path]:
    """What may name a decision. Migrations are never edited: docs/decisions/README.md maps the numbers in them."""
    for folder in ("daemon", "deploy", "docs", "schema", "sql", "tests", "tools"):
        for file in (ROOT / folder).rglob("*"):
            if file.suffix in TEXT_SUFFIXES and file.parent != ROOT / "sql/migrations":
                yield file


def test_every_decision_that_is_named_exists() -> None:
    numbers = {decision.name[:4] for decision in DECISIONS}
    named = {
        (str(file.relative_to(ROOT)), number)
        for file in text_files()
        for number in re.findall(r"(?:decisions/|[Dd]ecision )(\d{4})", file.read_text())
    }
    assert {place for place in named if place[1] not in numbers} == set()


def test_every_decision_that_a_migration_names_is_in_the_table_of_old_numbers() -> None:
    table = set(re.findall(r"^\| (\d{4}) \|", (ROOT / "docs/decisions/README.md").read_text(), re.MULTILINE))
    comments = " ".join(file.read_text() for file in ROOT.glob("sql/migrations/*.sql"))
    named = re.findall(r"docs/decisions/(\d{4})(?: and (\d{4}))?", comments)
    assert {number for pair in named for number in pair if number} == table
