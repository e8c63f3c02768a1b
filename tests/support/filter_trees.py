"""Trees of filters generated from a seed, as rows, and the connections and packets to try on them.

All use a few addresses and ports, so that rules match packets. Rows that libvirt would change are left out.
"""

import random
from dataclasses import replace
from ipaddress import ip_address
from typing import Any
from uuid import UUID, uuid5

from guestd.filters.compiler import compile_filter
from guestd.filters.explain import Question
from guestd.filters.model import ROOT, Filter, Reference, Rule, build_matches
from guestd.filters.network_services import SERVICES, Policy, Ports
from guestd.filters.packet_match import Packet
from guestd.filters.snapshot import FilterRow, MachineRow, RuleRow, StoreSnapshot
from gueststore.seeds import load_filters
from support.filter_rows import COLUMNS, filter_row, rule_row
from support.packets import FALSE_MAC

SPACE = UUID(int=3)
GUEST = ("10.9.0.2", "fd00::2")
PEERS = ("10.9.0.5", "10.9.1.5", "fd00::5", "fd01::5")
STRANGER = "10.9.7.7"
PORTS = (22, 53, 80, 443, 8080)
_MASKS = {4: (None, "32", "24", "16", "255.255.255.0", "0"), 6: (None, "128", "64", "16")}
_CHAINS = (None, None, "root", "ipv4", "ipv6-x", "mac", "arp-x", "ipv4-y")
_ORDERED_CHAINS = {ROOT: 0, "ipv4": -700, "ipv4-y": -600}
_STATES = ({"new": True}, {"established": True}, {"new": True, "established": True}, {"invalid": True})


def seeded_rows() -> list[FilterRow]:
    """The filters of a new platform."""
    names = {uuid5(SPACE, each.name): f"ibay-{uuid5(SPACE, each.name).hex[:16]}" for each in load_filters()}
    found = []
    for each in load_filters():
        row_id = uuid5(SPACE, each.name)
        rules = [
            RuleRow(id=uuid5(row_id, str(number)), **{COLUMNS.get(name, name): value for name, value in rule.items()})  # type: ignore[arg-type]  # columns of several types
            for number, rule in enumerate(each.rules)
        ]
        row = filter_row(
            *rules, id=row_id, name=each.name, internal_name=names[row_id], uuid=row_id, chain=each.chain,
            priority=each.priority, targets=tuple(uuid5(SPACE, target) for target in each.references),
        )  # fmt: skip
        found.append(row)
    return found


def generated(dice: random.Random) -> StoreSnapshot:
    """The rows of one machine: a few filters that include each other, services and open ports."""
    made: list[FilterRow] = []
    for number in range(1, dice.randint(2, 4)):
        targets = [row.id for row in made if dice.random() < 0.6]
        made.append(_filter(dice, number, tuple(targets)))
    ids = [row.id for row in made]
    own = [ids[-1], *(each for each in ids[:-1] if dice.random() < 0.3)]
    services = {key: Policy(dice.random() < 0.5, dice.random() < 0.5) for key in dice.sample(["ssh", "http", "dns"], 2)}
    machine = MachineRow(
        UUID(int=5), "web", "vm-web", GUEST, tuple(own), tuple(dice.sample(ids, dice.randint(0, 1))),
        dice.random() < 0.3, services if dice.random() < 0.5 else {}, {"https": Policy(True, True)},
        (Ports("tcp", 8000, 8100),) if dice.random() < 0.3 else (),
    )  # fmt: skip
    return StoreSnapshot(
        (*seeded_rows(), *made), (machine,), {"dns": Policy(True, False)} if dice.random() < 0.3 else {}
    )


def forest(dice: random.Random, count: int) -> list[FilterRow]:
    """`count` filters; some include the one before."""
    made: list[FilterRow] = []
    for number in range(1, count + 1):
        targets = (made[-1].id,) if made and dice.random() < 0.3 else ()
        row = _filter(dice, number, targets)
        # libvirt cannot install filters of one chain with several priorities: "No chain/target/match by that name".
        priority = -100 * _CHAINS.index(row.chain) - 1
        made.append(replace(row, internal_name=f"ibay-{number:016x}", priority=priority))
    return made


def ordered(dice: random.Random) -> list[Filter]:
    """Filters as an operator may write them; the last includes the others, directly or through each other.

    References stand among the rules, most priorities are equal, and rules name lists of values in every way.
    """
    count = dice.choice((2, 2, 3))
    found: list[Filter] = []
    for number, chain in enumerate((*dice.choices(list(_ORDERED_CHAINS), (6, 1, 1), k=2), ROOT), 1):
        entries: list[Rule | Reference] = [_ordered_rule(dice, chain) for _ in range(dice.randint(2, 4))]
        for each in found:
            reference = Reference(each.name, _lists(dice, count) if chain == ROOT or dice.random() < 0.3 else ())
            entries.insert(dice.randint(0, len(entries)), reference)
        name = f"ibay-ordered{number}"
        found.append(Filter(name, uuid5(SPACE, name), chain, _ORDERED_CHAINS[chain], tuple(entries)))
    # The last filter's own rules have no values for variables.
    last = found[-1]
    own = (each for each in last.entries if isinstance(each, Reference) or "$" not in str(each))
    return [*found[:-1], replace(last, entries=tuple(own))]


def ordered_packets() -> list[Packet]:
    """First packets of connections that `ordered` decides on."""
    return [
        Packet(direction, "tcp", *((peer, GUEST[0]) if direction == "in" else (GUEST[0], peer)), 49152, port)
        for direction in ("in", "out")
        for peer in (*PEERS[:2], STRANGER)
        for port in PORTS[:3]
    ]


def _lists(dice: random.Random, count: int) -> tuple[tuple[str, str], ...]:
    values = {
        "A": dice.sample((*PEERS[:2], STRANGER), k=count),
        "B": dice.choices((GUEST[0], *PEERS[:2]), k=count),
        "P": dice.sample([str(port) for port in PORTS[:3]], k=count),
    }
    return tuple((name, value) for name, each in values.items() for value in each)


def _ordered_rule(dice: random.Random, chain: str) -> Rule:
    conditions = {}
    if dice.random() < 0.6:
        conditions["srcipaddr"] = dice.choice([*PEERS[:2], "$A", "$A", "$A[0]", "$B[@1]"])
    if dice.random() < 0.4:
        conditions["dstipaddr"] = dice.choice([GUEST[0], "$B", "$A", "$A[@1]", "$B[0]"])
    if chain == ROOT and dice.random() < 0.6:
        conditions["dstportstart"] = dice.choice(["22", "80", "$P", "$P", "$P[0]", "$P[@1]"])
    if chain == ROOT and dice.random() < 0.3:
        conditions = {"srcipaddr": "$A", "dstportstart": "$P"}
    return Rule(
        dice.choice(["accept", "accept", "drop", "drop", "return"]), dice.choice(["in", "out", "inout"]),
        dice.choice([100, 500, 500, 500]), "tcp" if chain == ROOT else "ip", build_matches(conditions.items()),
    )  # fmt: skip


def all_services() -> StoreSnapshot:
    """A machine that uses and provides every service, and includes filters of the seed that include others."""
    seeded = seeded_rows()
    own = tuple(row.id for row in seeded if row.name in ("Web Server Security", "Drop All"))
    services = dict.fromkeys(SERVICES, Policy(True, True))
    machine = MachineRow(UUID(int=6), "all", "vm-all", GUEST, own, (), True, {}, {}, ())
    return StoreSnapshot(tuple(seeded), (machine,), services)


def service_questions() -> list[Question]:
    """A connection to every port of every service, in both directions, and one to a port of no service."""
    ports = {port for _, each in SERVICES.values() for port in each} | {Ports("tcp", 9999, 9999)}
    return [
        Question(port.protocol, PEERS[0], port.first, direction)
        for port in sorted(ports, key=str)
        for direction in ("in", "out")
    ]


def _filter(dice: random.Random, number: int, targets: tuple[UUID, ...]) -> FilterRow:
    row = filter_row(
        id=UUID(int=number), internal_name=f"ibay-tree{number}", uuid=UUID(int=number), name=f"tree {number}",
        chain=dice.choice(_CHAINS), priority=dice.choice((-750, -10, 100, 500)), state_match=dice.random() < 0.75,
    )  # fmt: skip
    rules: list[RuleRow] = []
    while len(rules) < dice.randint(1, 5):
        rule = replace(_rule(dice), id=UUID(int=100 * number + len(rules)))
        if isinstance(compile_filter(replace(row, rules=(rule,)), {}), Filter):
            rules.append(rule)
    # Most trees end with a rule that drops: otherwise most packets would pass.
    if dice.random() < 0.6:
        last = rule_row(id=UUID(int=100 * number + 99), action=dice.choice(["drop", "reject"]), priority=950)
        version = dice.choice(["ipv4", "ipv4", "ipv6"])
        rules.append(replace(last, protocol="all", ip_version=version, direction=dice.choice(["in", "out", "inout"])))
    return replace(row, rules=tuple(rules), targets=targets)


def _rule(dice: random.Random) -> RuleRow:
    version = dice.choice((4, 4, 4, 6))
    kinds = {"tcp": 6, "udp": 4, "icmp": 2, "all": 2, "ip": 1, "ipv6": 1, "arp": 1, "mac": 1}
    (protocol,) = dice.choices(list(kinds), list(kinds.values()))
    is_link = protocol in ("ip", "ipv6", "arp", "mac")
    columns: dict[str, Any] = {
        "protocol": protocol,
        "action": dice.choice(["accept", "accept", "drop", "return", "continue" if is_link else "reject"]),
        "direction": dice.choice(["in", "out", "inout"]),
        "priority": dice.choice([-5, 100, 100, 500, 900]),
        "src_mac_addr": dice.choice([None] * 8 + ["$MAC", FALSE_MAC]),
        "ip_version": "ipv6" if version == 6 and not is_link else None,
    }
    version = {"ip": 4, "arp": 4, "ipv6": 6}.get(protocol, version)
    for side in ("src", "dst"):
        if protocol != "mac" and dice.random() < 0.35:
            variable = "$IP" if version == 4 else "$IPV6"
            known = [each for each in (*GUEST, *PEERS, STRANGER) if ip_address(each).version == version]
            columns[f"{side}_ip_addr"] = dice.choice([*known, variable, variable])
            columns[f"{side}_ip_mask"] = dice.choice(_MASKS[version])
        if protocol in ("tcp", "udp") and dice.random() < (0.2 if side == "src" else 0.7):
            first = dice.choice((*PORTS, 49152))
            columns |= {f"{side}_port_start": first, f"{side}_port_end": dice.choice([None, first, first + 400])}
    if not is_link and dice.random() < 0.25:
        columns["state"] = dice.choice(_STATES)
    return rule_row(**columns)


def questions(dice: random.Random, number: int) -> list[Question]:
    """Connections for `guestd filters explain`."""
    found = []
    for _ in range(number):
        protocol = dice.choice(["tcp", "tcp", "udp", "icmp"])
        port = None if protocol == "icmp" else dice.choice((*PORTS, 9999))
        found.append(Question(protocol, dice.choice(PEERS), port, dice.choice(["in", "out"])))
    return found


def lone_packets(dice: random.Random) -> list[Packet]:
    """Packets without a connection: false senders, ARP, and packets in state INVALID."""
    guest, peer, port = GUEST[0], dice.choice(PEERS[:2]), dice.choice(PORTS)
    out, back = Packet("out", "tcp", guest, peer, 40001, port), Packet("in", "tcp", peer, guest, 40001, port)
    return [
        replace(out, source=STRANGER),
        replace(out, mac=FALSE_MAC),
        replace(back, mac=FALSE_MAC),
        replace(out, state="INVALID"),
        replace(back, state="INVALID"),
        Packet("out", "arp", guest, peer),
        Packet("out", "arp", STRANGER, peer),
        Packet("out", "arp", guest, peer, mac=FALSE_MAC),
        Packet("in", "arp", peer, guest),
        Packet("out", "udp", GUEST[1], PEERS[2], 40001, port, mac=FALSE_MAC),
    ]
