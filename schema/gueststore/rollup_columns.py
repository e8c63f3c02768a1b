"""The columns of SystemMetricsMinute and SystemMetricsHour, declared once, and the lists of columns in the SQL.

`expand` puts the lists into the scripts of sql/repeatable, where `%(rollup_names)s` and the like stand for them.
"""

import re
from dataclasses import dataclass

from gueststore.errors import StoreError

_PLACEHOLDER = re.compile(r"^(?P<indent> *)(?P<before>[^\n]*?)%\((?P<name>\w+)\)s", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class RollupColumn:
    """A column of both tables. Its name ends with how it aggregates `of_sample`, an expression: Avg, Max or Min."""

    name: str
    type: str
    of_sample: str
    # Whether guestd_machine_series returns it.
    in_series: bool = True

    @property
    def of_samples(self) -> str:
        """Aggregate samples."""
        return f"{self.name[-3:].lower()}({self.of_sample})"

    @property
    def of_minutes(self) -> str:
        """Aggregate minutes; a mean is weighted by samples, those of minutes without a value left out."""
        minute = f'minute."{self.name}"'
        if not self.name.endswith("Avg"):
            return f"{self.name[-3:].lower()}({minute})"
        return f'sum({minute} * minute."samples") / sum(minute."samples") FILTER (WHERE {minute} IS NOT NULL)'


_DISK = "public.guestd_number_of(sample.\"diskIOStats\", '{}')"
_NETWORK = "public.guestd_sum_of(sample.\"networkStats\", '{}')"

# In the order of the tables, behind machineId, bucket and samples.
COLUMNS = (
    RollupColumn("cpuUsagePercentAvg", "double precision", 'sample."cpuUsagePercent"'),
    RollupColumn("cpuUsagePercentMax", "double precision", 'sample."cpuUsagePercent"'),
    RollupColumn("usedMemoryKBAvg", "double precision", 'sample."usedMemoryKB"::double precision'),
    RollupColumn("usedMemoryKBMax", "bigint", 'sample."usedMemoryKB"'),
    RollupColumn("totalMemoryKBMax", "bigint", 'sample."totalMemoryKB"'),
    RollupColumn("availableMemoryKBMin", "bigint", 'sample."availableMemoryKB"', in_series=False),
    RollupColumn("swapUsedKBMax", "bigint", 'sample."swapUsedKB"', in_series=False),
    RollupColumn("diskReadBytesPerSecAvg", "double precision", _DISK.format("readBytesPerSec")),
    RollupColumn("diskWriteBytesPerSecAvg", "double precision", _DISK.format("writeBytesPerSec")),
    RollupColumn("networkReceivedBytesPerSecAvg", "double precision", _NETWORK.format("bytesReceived")),
    RollupColumn("networkSentBytesPerSecAvg", "double precision", _NETWORK.format("bytesSent")),
    RollupColumn("load1minAvg", "double precision", "public.guestd_number_of(sample.\"loadAverage\", 'load1min')"),
)
_SERIES = tuple(column for column in COLUMNS if column.in_series)

LISTS = {
    "rollup_names": ('"samples"', *(f'"{each.name}"' for each in COLUMNS)),
    "rollup_parameters": ('OUT "samples" integer', *(f'OUT "{each.name}" {each.type}' for each in COLUMNS)),
    "rollup_of_samples": (
        'count(*)::integer AS "samples"',
        *(f'{each.of_samples} AS "{each.name}"' for each in COLUMNS),
    ),
    "rollup_of_minutes": (
        'sum(minute."samples")::integer AS "samples"',
        *(f'{each.of_minutes} AS "{each.name}"' for each in COLUMNS),
    ),
    "rollup_updates": tuple(f'"{name}" = excluded."{name}"' for name in ("samples", *(each.name for each in COLUMNS))),
    "series_columns": ('"samples" integer', *(f'"{each.name}" {each.type}' for each in _SERIES)),
    "series_of_samples": ("1", *(each.of_sample for each in _SERIES)),
    "series_of_rollups": ('rolled."samples"', *(f'rolled."{each.name}"' for each in _SERIES)),
}


def expand(script: str) -> str:
    """Replace each placeholder by its list, a line a column. StoreError for a placeholder without a list."""

    def list_of(found: re.Match[str]) -> str:
        if found["name"] not in LISTS:
            raise StoreError(f"%({found['name']})s stands for no list of columns: declare it in rollup_columns.py")
        return found["indent"] + found["before"] + f",\n{found['indent']}".join(LISTS[found["name"]])

    return _PLACEHOLDER.sub(list_of, script)
