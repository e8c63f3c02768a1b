"""Where writing resumes, by the ledger and the spool: nothing twice, nothing left out."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestd.core.ledger import Ledger
from guestd.spool.resume import Adopt, Rename, Resume, Separate, plan_resume

OURS, BEFORE, ANOTHERS = (UUID(int=number) for number in (1, 2, 3))
CASES = [
    # ledger, oldest held, last issued at opening, what to do
    (None, 1, 0, Resume(0)),  # a new spool at a new store
    (None, 1, 7, Resume(0)),  # frames gathered before the store was ever reached
    (0, 1, 7, Resume(0)),  # the ledger was opened and nothing written
    (3, 1, 7, Resume(3)),  # a crash between COMMIT and trim
    (3, 4, 7, Resume(3)),  # a clean stop
    (7, 8, 7, Resume(7)),  # all stored, all trimmed
    (7, 1, 7, Resume(7)),  # all stored, nothing trimmed
    (2, 5, 7, Adopt(4, 3, 4)),  # the store was restored from a backup
    (None, 5, 7, Adopt(4, 1, 4)),  # the store is another one
    (0, 8, 7, Adopt(7, 1, 7)),  # the same, and the spool is empty
    (8, 8, 7, Rename(7)),  # an older copy of the spool came back
    (9, 3, 7, Rename(7)),
    (1, 1, 0, Rename(0)),
]


@pytest.mark.parametrize(("ledger_seq", "oldest_seq", "last_seq", "expected"), CASES)
def test_each_case_has_its_way_on(
    ledger_seq: int | None, oldest_seq: int, last_seq: int, expected: Resume | Adopt | Rename
) -> None:
    # None: advanced by a guestd that wrote no owner.
    for owner in (OURS, BEFORE, None):
        ledger = None if ledger_seq is None else Ledger(ledger_seq, owner)
        assert plan_resume(ledger, owners={OURS, BEFORE}, oldest_seq=oldest_seq, own_seq=last_seq) == expected


@pytest.mark.parametrize(("ledger_seq", "oldest_seq", "last_seq", "_"), CASES)
def test_nothing_that_is_held_is_left_out_where_another_guestd_advanced_the_ledger(
    ledger_seq: int | None, oldest_seq: int, last_seq: int, _: object
) -> None:
    if ledger_seq is not None:
        ledger = Ledger(ledger_seq, ANOTHERS)
        way = plan_resume(ledger, owners={OURS, BEFORE}, oldest_seq=oldest_seq, own_seq=last_seq)
        assert way == Separate(oldest_seq - 1)


def test_a_new_id_without_a_ledger_begins_where_the_old_one_ended() -> None:
    assert plan_resume(None, owners={OURS}, oldest_seq=5, own_seq=7, since_seq=4) == Resume(4)
    assert plan_resume(None, owners={OURS}, oldest_seq=7, own_seq=7, since_seq=4) == Adopt(6, 5, 6)


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """Issued, committed and trimmed of one spool, and what a store that may have lost the end still has."""
    issued = draw(st.integers(0, 30))
    committed = draw(st.integers(0, issued))
    trimmed = draw(st.integers(0, committed))
    return issued, committed, trimmed, draw(st.integers(0, committed))


@given(histories(), st.booleans())
def test_what_the_store_has_is_not_stored_again_and_what_it_lacks_is_stored_or_named(
    history: tuple[int, int, int, int], ledger_row_exists: bool
) -> None:
    issued, _, trimmed, stored = history
    ledger_seq = stored if stored or ledger_row_exists else None
    ledger = None if ledger_seq is None else Ledger(ledger_seq, OURS)
    way = plan_resume(ledger, owners={OURS}, oldest_seq=trimmed + 1, own_seq=issued)
    held = set(range(trimmed + 1, issued + 1))
    written = {seq for seq in held if seq > way.committed_seq}
    named = set(range(way.missing_from, way.missing_to + 1)) if isinstance(way, Adopt) else set()
    assert written.isdisjoint(range(1, stored + 1))
    assert written | named | set(range(1, stored + 1)) == set(range(1, issued + 1))
    assert written.isdisjoint(named)
    assert not isinstance(way, Rename)


@given(histories(), st.integers(1, 10), st.integers(1, 10))
def test_an_older_copy_of_a_spool_is_renamed_and_only_what_came_later_is_written(
    history: tuple[int, int, int, int], ahead: int, later: int
) -> None:
    issued, _, trimmed, _ = history
    way = plan_resume(Ledger(issued + ahead, OURS), owners={OURS}, oldest_seq=trimmed + 1, own_seq=issued)
    assert isinstance(way, Rename)
    # Frames appended since it was opened have numbers that the old ledger may know, and are new all the same.
    assert [seq for seq in range(trimmed + 1, issued + later + 1) if seq > way.committed_seq] == list(
        range(issued + 1, issued + later + 1)
    )
