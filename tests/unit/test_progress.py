"""A part that has work and makes no progress is stuck; one that waits or retries is not."""

from guestd.service.progress import MonitoredPart, ProgressMonitor


class Worker:
    has_work = False
    steps = 0

    def part(self) -> MonitoredPart:
        return MonitoredPart(lambda: self.has_work, lambda: self.steps)


def test_a_part_without_work_is_never_stuck() -> None:
    monitor = ProgressMonitor({"writer": Worker().part()}, limit_seconds=10)
    assert [monitor.find_stuck(now) for now in (0, 100, 200)] == [[], [], []]


def test_a_part_with_work_and_without_progress_is_stuck_after_the_limit() -> None:
    worker = Worker()
    monitor = ProgressMonitor({"writer": worker.part()}, limit_seconds=10)
    assert monitor.find_stuck(0) == []
    worker.has_work = True
    assert monitor.find_stuck(10) == []
    assert monitor.find_stuck(11) == ["writer"]


def test_one_step_ends_being_stuck() -> None:
    worker = Worker()
    worker.has_work = True
    monitor = ProgressMonitor({"writer": worker.part()}, limit_seconds=10)
    monitor.find_stuck(0)
    assert monitor.find_stuck(20) == ["writer"]
    worker.steps += 1
    assert monitor.find_stuck(21) == []
    assert monitor.find_stuck(32) == ["writer"]


def test_parts_are_monitored_independently() -> None:
    spool, writer = Worker(), Worker()
    spool.has_work = writer.has_work = True
    monitor = ProgressMonitor({"spool": spool.part(), "writer": writer.part()}, limit_seconds=10)
    monitor.find_stuck(0)
    writer.steps += 1
    assert monitor.find_stuck(11) == ["spool"]
