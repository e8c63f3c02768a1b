"""Hundreds of generated filters, half of them on interfaces of running machines, through edits and manual changes."""

import random
from typing import Any
from uuid import UUID

import pytest

from guestd.filters.machine_filter import machine_filter_name
from guestd.filters.model import Filter
from support.faults import Reliability
from support.filter_trees import GUEST, forest
from support.filters import ENFORCE, OTHER, FilterHost

pytestmark = pytest.mark.timeout(600)
RULE = "<rule action='drop' direction='in' priority='7'><all/></rule>"
SOME = """"id" IN (SELECT "id" FROM "FWRule" ORDER BY md5("id"::text || %s) LIMIT {})"""


class Many:
    """A host with generated filters, every second of them a running machine's."""

    def __init__(self, host: FilterHost, dice: random.Random, count: int) -> None:
        self.host = host
        self.dice = dice
        rows = forest(dice, count)
        host.store(rows)
        self.machines = [host.add_machine(is_running=True) for _ in range(max(2, count // 30))]
        self._some = SOME.format(max(4, count // 15))
        host.run('UPDATE "Machine" SET "allowedIps" = %s', list(GUEST))
        for number, row in enumerate(rows[::2]):
            host.assign(self.machines[number % len(self.machines)][0], row.name)

    def reconcile(self) -> None:
        """One run, without failures."""
        outcome = self.host.reconcile(ENFORCE)
        assert (outcome.held, [text for _, text in outcome.steps if text != "done"]) == (None, [])

    def is_right(self) -> bool:
        """Whether libvirt has the desired filters, and each machine's interface its machine filter."""
        bindings = self.host.bindings()
        return self.host.is_settled() and all(self._is_protected(*each, bindings) for each in self.machines)

    def _is_protected(self, machine_id: UUID, name: str, bindings: dict[str, str]) -> bool:
        top = machine_filter_name(machine_id)
        return self.host.filters_named(name) == ({top}, {top}) and bindings.get(self.host.port(name)) == top

    def edit(self) -> None:
        """Change verdicts and directions of rules."""
        self.host.run(f'UPDATE "FWRule" SET "action" = %s WHERE {self._some}', *self._dice("accept", "drop"))
        self.host.run(f'UPDATE "FWRule" SET "direction" = %s WHERE {self._some}', *self._dice("in", "out", "inout"))

    def reorder(self) -> None:
        """Change the order of rules."""
        self.host.run(f'UPDATE "FWRule" SET "priority" = %s WHERE {self._some}', *self._dice(-700, -20, 99, 700))

    def break_some(self) -> set[str]:
        """Make rules invalid; returns the names of their filters."""
        broken = self.host.run(
            f'UPDATE "FWRule" SET "comment" = %s WHERE {self._some} RETURNING "nwFilterId"', "$x", self._salt()
        )
        rows = self.host.run('SELECT "internalName" FROM "NWFilter" WHERE "id" = ANY(%s)', [each for (each,) in broken])
        return {name for (name,) in rows}

    def repair(self) -> None:
        """Undo `break_some`."""
        self.host.run('UPDATE "FWRule" SET "comment" = NULL WHERE "comment" = %s', "$x")

    def change_manually(self) -> None:
        """Manually redefine five filters."""
        for name, uuid in self.dice.sample(
            self.host.run('SELECT "internalName", "uuid" FROM "NWFilter" ORDER BY 1'), 5
        ):
            self.host.define(name, RULE, uuid)

    def _dice(self, *values: Any) -> tuple[Any, str]:
        return self.dice.choice(values), self._salt()

    def _salt(self) -> str:
        return str(self.dice.random())


def test_hundreds_of_filters_are_defined_edited_reordered_broken_and_repaired_under_running_machines(
    filter_host: FilterHost, reliability: Reliability
) -> None:
    host, dice = filter_host, random.Random(300)
    host.define(OTHER, RULE)
    foreign = _others(host)
    count, rounds = reliability.rounds(quick=20, full=300), reliability.rounds(quick=1, full=2)
    many = Many(host, dice, count)
    many.reconcile()
    wrong = int(not many.is_right())
    for _ in range(rounds):
        for change in (many.edit, many.reorder, many.change_manually):
            change()
            many.reconcile()
            wrong += not many.is_right()
        good = host.filters()
        broken = many.break_some()
        many.reconcile()
        refused = {name for (name,) in host.run('SELECT "internalName" FROM "NWFilter" WHERE "problem" IS NOT NULL')}
        # The last valid definition stays, of the broken filters and of all others.
        wrong += not broken <= refused or {name: host.filters()[name] for name in broken} != {
            n: good[n] for n in broken
        }
        many.repair()
        many.reconcile()
        wrong += not many.is_right()
    assert _others(host) == foreign
    reliability.record_filters(
        f"{count} generated filters, half on running machines, edited, reordered, broken, repaired",
        rounds=1 + 5 * rounds, actions=len(host.audit()), kills=0, wrong=wrong,
    )  # fmt: skip


def _others(host: FilterHost) -> dict[str, Filter]:
    return {name: each for name, each in host.filters().items() if not name.startswith("ibay-")}
