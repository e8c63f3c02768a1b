from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import UUID

def encode(rows: list[tuple[Any, ...]], start: int, stop: int, kinds: str, /) -> bytes: ...
def process_rows(
    rows: dict[int, tuple[Any, ...]],
    processes: list[Any],
    names: tuple[str, ...],
    machine_id: UUID,
    timestamp: datetime,
    chars: tuple[int, int, int, int],
    words: tuple[str, ...],
    command_line: Callable[[str], str | None],
    status: Callable[[str], str],
    start: Callable[[str | float | None], datetime | float | None],
    latest_start_seconds: float,
    /,
) -> None: ...
