"""docs/trust.md lists every limit with its value, and every reason by which adjustments are counted."""

import re
from pathlib import Path

from guestd.wire import limits

ROOT = Path(__file__).parents[2]
TRUST = (ROOT / "docs/trust.md").read_text()
# Words given to `adjustments`, `notes` and `repairs`.
_COUNTED = re.compile(r'(?:append|adjusted)\(\s*"(\w+)"|\[\*repairs, "(\w+)"\]|\["(\w+)"\] if text')


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
