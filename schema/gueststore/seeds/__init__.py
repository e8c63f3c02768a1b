"""The initial data of a new platform, read from the TOML files of this folder. No database access."""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

RuleColumns = dict[str, str | int]


@dataclass(frozen=True, slots=True)
class Application:
    """A program that the platform offers; `install` maps an operating system to its install command."""

    name: str
    description: str
    url: str
    install: dict[str, str]


@dataclass(frozen=True, slots=True)
class Filter:
    """A network filter with its rules, as columns of FWRule, and the names of the filters it includes."""

    name: str
    description: str
    chain: str | None
    priority: int
    rules: tuple[RuleColumns, ...]
    references: tuple[str, ...]


def load_applications() -> tuple[Application, ...]:
    """Return every application, in the order of the file."""
    return tuple(Application(**entry) for entry in _load("applications.toml")["application"])


def load_global_services() -> tuple[str, ...]:
    """Return every key of a service that has a global setting."""
    return tuple(_load("filters.toml")["global_services"])


def load_filters() -> tuple[Filter, ...]:
    """Return every filter: two for each service, then those that filters.toml lists in full."""
    content = _load("filters.toml")
    written = (
        Filter(
            name=entry["name"],
            description=entry["description"],
            chain=entry["chain"],
            priority=entry.get("priority", 500),
            rules=tuple(entry.get("rules", ())),
            references=tuple(entry.get("references", ())),
        )
        for entry in content["filter"]
    )
    return (*_service_filters(content["services"]), *written)


def _service_filters(services: dict[str, list[str]]) -> Iterator[Filter]:
    for service, ports in services.items():
        for verb, direction, purpose in (
            ("Use", "out", f"Lets the machine use {service}"),
            ("Provides", "in", f"Lets others use {service} on the machine"),
        ):
            yield Filter(
                name=f"{verb} {service} service",
                description=purpose,
                chain=None,
                priority=500,
                rules=tuple(_port_rule(port, direction) for port in ports),
                references=(),
            )


def _port_rule(port: str, direction: str) -> RuleColumns:
    number, _, protocol = port.partition("/")
    return {
        "action": "accept",
        "direction": direction,
        "priority": 200,
        "protocol": protocol,
        "dstPortStart": int(number),
        "dstPortEnd": int(number),
    }


def _load(name: str) -> dict[str, Any]:
    return tomllib.loads((files("gueststore.seeds") / name).read_text("utf-8"))
