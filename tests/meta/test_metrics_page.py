"""docs/metrics.md says what /metrics does."""

from tools.docs.metrics_page import PAGE, QUESTIONS, page

from guestd.telemetry.registry import Telemetry

# Of these somebody would ask where they are counted; the rest says how things stand.
LOSSES = ("lost", "dropped", "refused", "given_up", "stuck", "late", "missing", "quarantined", "limit", "ignored")


def test_the_page_is_what_the_code_says() -> None:
    assert PAGE.read_text() == page(), "write it anew: python -m tools.docs.metrics_page"


def test_every_metric_explains_itself() -> None:
    assert [family.name for family in Telemetry().registry.collect() if not family.documentation.strip(". ")] == []


def test_every_number_of_a_loss_or_a_bound_is_where_people_look() -> None:
    told = {name.removesuffix("_total") for _, name in QUESTIONS}
    names = {family.name for family in Telemetry().registry.collect() if family.name.startswith("guestd_")}
    losses = {name for name in names if any(word in name for word in LOSSES)}
    # The ends of whole loops are libvirt's or the store's, which are there.
    assert losses - told <= {"guestd_vms_lost", "guestd_filters_lost"}
