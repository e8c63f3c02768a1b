"""The rules that libvirt makes of one that names variables: one for each combination of their values.

Pure. Measured on libvirt 9.0. Variables without an iterator, or with the same one ($A and $B, $A[@1] and $B[@1]), take
their values together, by position. Different iterators ($A[@1], $B[@2]) and elements ($A[0]) are independent of each
other. A combination that occurred before is left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from math import prod

from guestd.filters.model import Reference, Rule

# Names with one value each, in order; a name may occur several times.
Variables = tuple[tuple[str, str], ...]
# libvirt sets it to the interface's address, which guestd does not know: it stands for itself.
OWN_MAC = "$MAC"
_VARIABLE = re.compile(r"\$([A-Za-z0-9_]+)(?:\[(@?)([0-9]+)\])?")


# libvirt needs 10 ms for each. Only a filter that somebody changed manually can have more.
MAX_COMBINATIONS = 4096


class NotEvaluated(ValueError):
    """It is unknown what libvirt makes of a rule, and so of a tree that contains it; the message explains why."""


class NotInstallable(NotEvaluated):
    """libvirt cannot install a rule, and so enforces nothing of a tree that contains it; the message explains why."""

    def __init__(self, rule: Rule, reason: str) -> None:
        super().__init__(f"libvirt cannot install rule {rule}: {reason}")


def pass_on(variables: Variables, reference: Reference) -> Variables:
    """The variables within an included filter: those that the includer has itself override those that it passes."""
    names = {name for name, _ in variables}
    return variables + tuple(each for each in reference.parameters if each[0] not in names)


def find_variable(value: str) -> str | None:
    """The variable that a condition names, as $NAME; None where it names none."""
    found = _VARIABLE.fullmatch(value)
    return None if found is None else f"${found[1]}"


def list_instances(rule: Rule, variables: Variables) -> list[Rule]:
    """The rules without variables that libvirt makes of a rule.

    Their order is not always libvirt's; they differ in their conditions only, so it decides nothing. Raises
    NotInstallable where libvirt cannot install the rule, and NotEvaluated where there are too many.
    """
    if not any(match.value.startswith("$") for match in rule.matches):
        return [rule]
    together = _group(rule, variables)
    rows = [dict.fromkeys(zip(*group.values(), strict=True)) for group in together.values()]
    if (count := prod(map(len, rows))) > MAX_COMBINATIONS:
        raise NotEvaluated(f"rule {rule}: its variables have {count} combinations, more than {MAX_COMBINATIONS}")
    names = [name for group in together.values() for name in group]
    return [_replace_variables(rule, names, chosen) for chosen in product(*rows)]


def _replace_variables(rule: Rule, names: Sequence[str], chosen: tuple[tuple[str, ...], ...]) -> Rule:
    values = dict(zip(names, (value for row in chosen for value in row), strict=True))
    return replace(
        rule, matches=tuple(replace(each, value=values.get(each.value, each.value)) for each in rule.matches)
    )


def _group(rule: Rule, variables: Variables) -> dict[str, dict[str, list[str]]]:
    """The values of each variable that a rule names, by what names it; grouped by those that are taken together."""
    together: dict[str, dict[str, list[str]]] = {}
    for text in dict.fromkeys(match.value for match in rule.matches if match.value.startswith("$")):
        found = _VARIABLE.fullmatch(text)
        if found is None:
            raise NotInstallable(rule, f"{text!r} is no variable")
        name, iterator, number = found.groups()
        values = [OWN_MAC] if f"${name}" == OWN_MAC else [value for key, value in variables if key == name]
        if number and not iterator:
            values = values[int(number) : int(number) + 1]
        if not values:
            raise NotInstallable(rule, f"{text} has no value")
        group = text if number and not iterator else f"@{int(number or 0)}"
        together.setdefault(group, {})[text] = values
    for lists in together.values():
        if len({len(values) for values in lists.values()}) > 1:
            raise NotInstallable(rule, f"{' and '.join(lists)} have different numbers of values")
    return together
