"""A metric that fails is left out of the page; the others are in it."""

from collections.abc import Sequence

import pytest
from prometheus_client import generate_latest
from structlog.testing import capture_logs

from guestd.telemetry.exposition import Family
from guestd.telemetry.registry import Telemetry


def fail() -> float:
    raise OSError("the disk is gone")


def test_a_gauge_that_fails_costs_only_itself() -> None:
    telemetry = Telemetry()
    telemetry.spool.damaged_files.set_function(fail)
    telemetry.spool.frames.set(3)
    with capture_logs() as logs:
        for _ in range(2):
            page = generate_latest(telemetry.registry).decode()
    assert "guestd_spool_damaged_files" not in page
    assert "guestd_spool_frames 3.0\n" in page
    assert telemetry.registry.get_sample_value("guestd_task_failures_total", {"task": "metrics"}) is not None
    assert len(logs) == 1


@pytest.mark.parametrize("wrong", [None, [Family("one", "", False, ("label",), [((), 1.0)])]])
def test_a_source_that_fails_costs_only_its_families(wrong: list[Family] | None) -> None:
    telemetry = Telemetry()

    def build_families() -> Sequence[Family]:
        if wrong is None:
            raise RecursionError
        return wrong

    telemetry.add_source(build_families)
    telemetry.add_source(lambda: [Family("two", "", False, (), [((), 2.0)])])
    with capture_logs() as logs:
        page = telemetry.render_families(is_openmetrics=False).decode()
    assert "two{} 2.0\n" in page
    assert len(logs) == 1
    assert telemetry.registry.get_sample_value("guestd_task_failures_total", {"task": "metrics"}) == 1
