"""The plans of statements that were run, those within functions included, and the work that they show."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import psycopg

from gueststore.database import Connection

Plan = dict[str, Any]
SETTINGS = (
    "log_min_duration = -1",
    "log_nested_statements = on",
    "log_analyze = on",
    "log_timing = off",
    "log_format = json",
    "log_level = notice",
)


def load_plans(connection: Connection) -> None:
    """Prepare a connection for `explain`."""
    connection.execute("LOAD 'auto_explain'")
    for setting in SETTINGS:
        connection.execute(f"SET auto_explain.{setting}".encode())


def explain(connection: Connection, statement: bytes, given: Mapping[str, Any] | None = None) -> list[Plan]:
    """Run a statement; returns its plan and that of each statement that a function of it runs."""
    messages: list[str] = []

    def note(diagnostic: psycopg.errors.Diagnostic) -> None:
        messages.append(diagnostic.message_primary or "")

    connection.execute("SET auto_explain.log_min_duration = 0")
    connection.add_notice_handler(note)
    try:
        connection.execute(statement, given)
    finally:
        connection.remove_notice_handler(note)
    connection.execute("SET auto_explain.log_min_duration = -1")
    return [json.loads(each.partition("plan:")[2])["Plan"] for each in messages if "plan:" in each]


def list_nodes(plan: Plan) -> Iterator[Plan]:
    """Yield every executed node of a plan."""
    if plan.get("Actual Loops", 1) == 0:
        return
    yield plan
    for child in plan.get("Plans", ()):
        yield from list_nodes(child)


def list_scans(plan: Plan) -> Iterator[Plan]:
    """Yield every executed node of a plan that reads a relation."""
    # The node of a hypertable reads nothing: those of its chunks do.
    return (node for node in list_nodes(plan) if "Relation Name" in node and node["Node Type"] != "Custom Scan")


def count_work(plans: list[Plan]) -> int:
    """The rows that the nodes of plans returned and compared, and how often each node was started."""
    return sum(
        round(node["Actual Loops"] * (1 + node["Actual Rows"] + sum(_compared(node))))
        for plan in plans
        for node in list_nodes(plan)
    )


def _compared(node: Plan) -> Iterator[float]:
    return (number for name, number in node.items() if name.startswith("Rows Removed by"))
