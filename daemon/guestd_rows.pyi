from typing import Any

def encode(groups: list[Any], kinds: str, /) -> bytes: ...
def process_rows(
    rows: dict[Any, Any],
    processes: list[Any],
    key: int,
    names: tuple[str, ...],
    steps: tuple[tuple[Any, ...], ...],
    /,
) -> None: ...
