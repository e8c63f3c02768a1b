"""A part that has work and does not move is stuck; one that waits or tries again is not."""

from guestd.service.progress import MonitoredPart, ProgressMonitor


class Worker:
    has_work = False
    moves = 0

    def part(self) -> MonitoredPart:
        return MonitoredPart(lambda: self.has_work, lambda: self.moves)


def test_a_part_without_work_is_never_stuck() -> None:
    progress = ProgressMonitor({"writer": Worker().part()}, limit_seconds=10)
    assert [progress.find_stuck(now) for now in (0, 100, 200)] == [[], [], []]


def test_a_part_that_has_work_and_does_not_move_is_stuck_after_the_limit() -> None:
    worker = Worker()
    progress = ProgressMonitor({"writer": worker.part()}, limit_seconds=10)
    assert progress.find_stuck(0) == []
    worker.has_work = True
    assert progress.find_stuck(10) == []
    assert progress.find_stuck(11) == ["writer"]


def test_one_step_is_enough_to_be_well_again() -> None:
    worker = Worker()
    worker.has_work = True
    progress = ProgressMonitor({"writer": worker.part()}, limit_seconds=10)
    progress.find_stuck(0)
    assert progress.find_stuck(20) == ["writer"]
    worker.moves += 1
    assert progress.find_stuck(21) == []
    assert progress.find_stuck(32) == ["writer"]


def test_each_part_is_looked_at_by_itself() -> None:
    spool, writer = Worker(), Worker()
    spool.has_work = writer.has_work = True
    progress = ProgressMonitor({"spool": spool.part(), "writer": writer.part()}, limit_seconds=10)
    progress.find_stuck(0)
    writer.moves += 1
    assert progress.find_stuck(11) == ["spool"]
