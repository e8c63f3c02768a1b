"""The lists of columns in the SQL, each generated from one declaration.

COLUMNS declares the columns of SystemMetricsMinute and SystemMetricsHour; the contract declares those of the temporary
tables of inventories. In sql/repeatable and sql/queries, a placeholder such as `%(rollup_names)s` stands for a list.
"""

import re
from dataclasses import dataclass

from gueststore.contract import INCOMING_APPLICATION, INCOMING_SERVICE, Column, Table


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
        weight = 'greatest(minute."samples", 1)'
        bounded = f"public.guestd_bounded({minute})"
        return f"sum({bounded} * {weight}) / sum({weight}) FILTER (WHERE {minute} IS NOT NULL)"


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


def _define_columns(table: Table) -> tuple[str, ...]:
    return tuple(_define_column(column) for column in table.columns)


def _define_column(column: Column) -> str:
    # The store's times are in milliseconds: COPY rounds to them, so that the merges compare what is stored.
    type_name = "timestamptz (3)" if column.type == "timestamptz" else column.type
    return f'"{column.name}" {type_name}' + ("" if column.is_nullable else " NOT NULL")


LISTS = {
    "rollup_names": ('"samples"', *(f'"{each.name}"' for each in COLUMNS)),
    "rollup_parameters": ('OUT "samples" integer', *(f'OUT "{each.name}" {each.type}' for each in COLUMNS)),
    "rollup_of_samples": (
        'count(*)::integer AS "samples"',
        *(f'{each.of_samples} AS "{each.name}"' for each in COLUMNS),
    ),
    "rollup_of_minutes": (
        'least(greatest(sum(minute."samples"), 0), 2147483647)::integer AS "samples"',
        *(f'{each.of_minutes} AS "{each.name}"' for each in COLUMNS),
    ),
    "rollup_updates": tuple(f'"{name}" = excluded."{name}"' for name in ("samples", *(each.name for each in COLUMNS))),
    "series_columns": ('"samples" integer', *(f'"{each.name}" {each.type}' for each in _SERIES)),
    "series_of_samples": ("1", *(each.of_sample for each in _SERIES)),
    "series_of_rollups": ('rolled."samples"', *(f'rolled."{each.name}"' for each in _SERIES)),
    "incoming_application_columns": _define_columns(INCOMING_APPLICATION),
    "incoming_service_columns": _define_columns(INCOMING_SERVICE),
}

# A list has a line of its own; its columns get the same indentation.
_PLACEHOLDER = re.compile(rf"^(?P<indent> *)%\((?P<name>{'|'.join(LISTS)})\)s", re.MULTILINE)


def expand(text: str) -> str:
    """Replace each placeholder of a list by the list, a column a line. Parameters of queries stay."""

    def indented(found: re.Match[str]) -> str:
        return found["indent"] + f",\n{found['indent']}".join(LISTS[found["name"]])

    return _PLACEHOLDER.sub(indented, text)
