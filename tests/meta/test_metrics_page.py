"""docs/metrics.md lists the metrics of /metrics."""

from tools.docs.metrics_page import PAGE, QUESTIONS, page

from guestd.telemetry.registry import Telemetry

# Words in the names of metrics that count losses or limits; the others describe a state.
LOSSES = ("lost", "dropped", "refused", "given_up", "stuck", "late", "missing", "quarantined", "limit", "ignored")


def test_the_page_matches_the_code() -> None:
    assert PAGE.read_text() == page(), "write it again: python -m tools.docs.metrics_page"


def test_every_metric_has_an_explanation() -> None:
    assert [family.name for family in Telemetry().registry.collect() if not family.documentation.strip(". ")] == []


def test_every_metric_of_a_loss_or_a_limit_is_in_the_first_table() -> None:
    listed = {name.removesuffix("_total") for _, name in QUESTIONS}
    names = {family.name for family in Telemetry().registry.collect() if family.name.startswith("guestd_")}
    losses = {name for name in names if any(word in name for word in LOSSES)}
    # The ends of reconcilers are caused by libvirt or the store, whose metrics are in the table.
    assert losses - listed <= {"guestd_vms_lost", "guestd_filters_lost"}
