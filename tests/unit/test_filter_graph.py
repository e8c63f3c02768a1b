"""Which filters include which."""

from guestd.filters.graph import list_includers, order_targets_first, reach

EDGES = {"a": ("b", "c"), "b": ("c",), "c": (), "d": ("e",), "e": ("d",), "f": ("d",)}


def test_every_name_comes_after_its_targets_and_a_cycle_is_left_out_with_all_that_lead_to_it() -> None:
    assert order_targets_first(EDGES) == ["c", "b", "a"]


def test_everything_that_edges_lead_to_is_reached_once() -> None:
    assert sorted(reach(["a", "b"], EDGES)) == ["a", "b", "c"]
    assert sorted(reach(["f"], EDGES)) == ["d", "e", "f"]
    assert list(reach(["missing"], EDGES)) == ["missing"]


def test_includers_are_the_edges_reversed() -> None:
    assert list_includers(EDGES) == {"b": ["a"], "c": ["a", "b"], "e": ["d"], "d": ["e", "f"]}


def test_names_that_do_not_lead_to_each_other_are_in_the_order_of_the_alphabet() -> None:
    assert order_targets_first({"b": (), "c": (), "a": ()}) == ["a", "b", "c"]
