"""docs/trust.md lists every limit with its value, and every reason by which adjustments are counted."""

import json
import re
from pathlib import Path

from guestd.wire import limits

ROOT = Path(__file__).parents[2]
TRUST = (ROOT / "docs/trust.md").read_text()
# Words given to `adjustments`, `notes` and `repairs`.
_COUNTED = re.compile(r'(?:append|adjusted)\(\s*"(\w+)"|\[\*repairs, "(\w+)"\]|\["(\w+)"\] if text')


def test_every_section_is_in_the_table_of_contents_at_the_top() -> None:
    contents, _, rest = TRUST.partition("\n## ")
    titles = re.findall(r"^## (.*)$", f"\n## {rest}", re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    assert set(re.findall(r"\(#([\w-]+)\)", contents)) == anchors


def test_every_limit_is_documented_with_its_value() -> None:
    documented = {name: int(value) for name, value in re.findall(r"`([A-Z_]+)` = (\d+)", TRUST)}
    assert documented == {name: value for name, value in vars(limits).items() if name.isupper()}


def test_every_reason_of_an_adjustment_is_a_word_of_the_code_and_every_documented_one_exists() -> None:
    sources = "".join((ROOT / "daemon/guestd" / f"{name}.py").read_text() for name in MODULES)
    counted = {word for words in _COUNTED.findall(sources) for word in words if word}
    documented = set(re.findall(r"`(\w+)`", TRUST))
    assert counted - documented <= {
        "missing_uptime",
        "network_counters",
        "memory_in_bytes",
        "missing_cpu",
        "older_dialect",
    }
    assert {"percent_clamped", "number_zeroed", "bad_escape", "unreadable_value", "arguments_left_out"} <= counted


MODULES = ("rows/json_columns", "wire/decode", "wire/repair", "rows/normalise", "rows/processes", "ingest/prepare")


# Written by people, by the platform, by libvirt's part of guestd, and by guestd and the migrations for themselves.
NOT_OF_GUESTS = {
    "Application", "DeletedMachine", "Department", "DepartmentConfiguration", "DepartmentNWFilter",
    "DepartmentServiceConfig", "Disk", "FWRule", "FilterHostState", "FilterReference", "GlobalServiceConfig",
    "Host", "IngestLedger", "Machine", "MachineApplication", "MachineConfiguration", "MachineDomain",
    "MachineLease", "MachineTemplate", "MachineTemplateCategory", "NWFilter", "Node", "Notification",
    "PendingCommand", "ReconcileEvent", "RetentionSetting", "RollupState", "SchemaMigration",
    "SchemaRepeatable", "User", "VMNWFilter", "VMServiceConfig",
}  # fmt: skip


def test_every_table_to_which_a_guest_adds_rows_is_documented_with_its_bound() -> None:
    """A new table is in the list of docs/trust.md, with what bounds and what removes its rows, or named here."""
    tables = set(json.loads((ROOT / "schema/gueststore/catalogue.json").read_text())["table"])
    section = TRUST.partition("## What a guest can add to the store")[2].partition("\n## ")[0]
    lines = [line.split("|") for line in section.splitlines() if line.startswith("| `")]
    bounded = [names for _, names, bound, removed, _ in lines if bound.strip() and removed.strip()]
    documented = set(re.findall(r"`(\w+)`", "".join(bounded)))
    assert documented | NOT_OF_GUESTS == tables
    assert not documented & NOT_OF_GUESTS
