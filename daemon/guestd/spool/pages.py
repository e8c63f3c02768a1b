"""What rows take of a SQLite file, in the order in which they are appended. Pure."""

from __future__ import annotations

# Of a page of a table's rows.
_HEADER_BYTES = 8


class Pages:
    """Counts the pages of rows that are appended to a table.

    A row goes onto the last page if it fits there, or else onto a new one, and the page before gets none any more: rows
    of a little more than half a page take one each. What does not fit onto one page is on pages of its own
    (https://www.sqlite.org/fileformat2.html#b_tree_pages).
    """

    def __init__(self, page_bytes: int) -> None:
        self._page_bytes = page_bytes
        self._free_bytes: int | None = None

    def add(self, row_bytes: int) -> int:
        """The bytes that a row takes, with what it leaves unused of the page before; `row_bytes` includes its keys."""
        own_bytes, other_pages = self._split(row_bytes)
        wasted_bytes = 0
        if self._free_bytes is None or own_bytes > self._free_bytes:
            wasted_bytes = 0 if self._free_bytes is None else self._free_bytes + _HEADER_BYTES
            self._free_bytes = self._page_bytes - _HEADER_BYTES
        self._free_bytes -= own_bytes
        return wasted_bytes + own_bytes + other_pages * self._page_bytes

    def _split(self, row_bytes: int) -> tuple[int, int]:
        """The bytes of a row on a page with others, and the number of pages for the rest."""
        most_bytes, least_bytes = self._page_bytes - 35, (self._page_bytes - 12) * 32 // 255 - 23
        if row_bytes <= most_bytes:
            return row_bytes, 0
        rest_bytes = self._page_bytes - 4
        own_bytes = least_bytes + (row_bytes - least_bytes) % rest_bytes
        if own_bytes > most_bytes:
            own_bytes = least_bytes
        return own_bytes, -((own_bytes - row_bytes) // rest_bytes)
