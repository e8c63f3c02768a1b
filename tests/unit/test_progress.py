"""A part that has work and does not move is stuck; one that waits or tries again is not."""

from guestd.service.progress import Part, Progress


class Worker:
    has_work = False
    moves = 0

    def part(self) -> Part:
        return Part(lambda: self.has_work, lambda: self.moves)


def test_a_part_without_work_is_never_stuck() -> None:
    progress = Progress({"writer": Worker().part()}, limit_seconds=10)
    assert [progress.stuck(now) for now in (0, 100, 200)] == [[], [], []]


def test_a_part_that_has_work_and_does_not_move_is_stuck_after_the_limit() -> None:
    worker = Worker()
    progress = Progress({"writer": worker.part()}, limit_seconds=10)
    assert progress.stuck(0) == []
    worker.has_work = True
    assert progress.stuck(10) == []
    assert progress.stuck(11) == ["writer"]


def test_one_step_is_enough_to_be_well_again() -> None:
    worker = Worker()
    worker.has_work = True
    progress = Progress({"writer": worker.part()}, limit_seconds=10)
    progress.stuck(0)
    assert progress.stuck(20) == ["writer"]
    worker.moves += 1
    assert progress.stuck(21) == []
    assert progress.stuck(32) == ["writer"]


def test_each_part_is_looked_at_by_itself() -> None:
    spool, writer = Worker(), Worker()
    spool.has_work = writer.has_work = True
    progress = Progress({"spool": spool.part(), "writer": writer.part()}, limit_seconds=10)
    progress.stuck(0)
    writer.moves += 1
    assert progress.stuck(11) == ["spool"]
