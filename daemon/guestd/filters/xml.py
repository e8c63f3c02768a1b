"""Parse and write libvirt's XML of filters, and the parts of domains and networks that concern filters.

Pure. It parses what libvirt prints, which differs from what libvirt accepts: in printed XML an absent priority is 0,
and not the default of the chain. Every function that parses raises ValueError for malformed XML.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from uuid import UUID
from xml.etree import ElementTree

from guestd.filters.model import DEFAULT_RULE_PRIORITY, ROOT, Filter, Match, Reference, Rule, build_match
from guestd.hypervisor.xml import parse_xml


def parse_filter(xml: str) -> Filter:
    """The model of a filter as libvirt prints it. ValueError where it is malformed or lacks name or uuid."""
    root = parse_xml(xml)
    name, uuid = root.get("name"), root.findtext("uuid")
    if not name or not uuid:
        raise ValueError("a filter without a name or without a uuid")
    return Filter(
        name=name,
        uuid=UUID(uuid),
        chain=root.get("chain", ROOT),
        priority=int(root.get("priority", "0")),
        entries=tuple(_ENTRIES[each.tag](each) for each in root if each.tag in _ENTRIES),
    )


def list_interfaces(domain_xml: str) -> Iterator[tuple[str, str, str]]:
    """MAC address, device on the host and filter of each interface of a domain; an empty string where it has none."""
    root = parse_xml(domain_xml)
    for each in root.iterfind("devices/interface"):
        if (mac := _read(each, "mac", "address")) is not None:
            yield mac, _read(each, "target", "dev") or "", _read(each, "filterref", "filter") or ""


def list_networks(domain_xml: str) -> Iterator[tuple[str, str]]:
    """MAC address and network of each interface of a domain that is on a libvirt network."""
    root = parse_xml(domain_xml)
    for each in root.iterfind("devices/interface[@type='network']"):
        mac, network = _read(each, "mac", "address"), _read(each, "source", "network")
        if mac is not None and network is not None:
            yield mac, network


def list_static_hosts(network_xml: str) -> Iterator[tuple[str, str]]:
    """MAC and IP address of each static host entry of a network that has both."""
    root = parse_xml(network_xml)
    for each in root.iterfind("ip/dhcp/host[@mac][@ip]"):
        yield each.get("mac", "").lower(), each.get("ip", "")


def set_interface_filter(domain_xml: str, mac: str, number: int, name: str) -> str | None:
    """The XML of a domain's interface with this filter, the interface of this number among those with this MAC address.

    None where it has no such interface.
    """
    root = parse_xml(domain_xml)
    found = [each for each in root.iterfind("devices/interface") if _read(each, "mac", "address") == mac]
    if number >= len(found):
        return None
    for old in found[number].findall("filterref"):
        found[number].remove(old)
    ElementTree.SubElement(found[number], "filterref", {"filter": name})
    return ElementTree.tostring(found[number], encoding="unicode")


def _read(interface: ElementTree.Element, part: str, attribute: str) -> str | None:
    """An attribute of a part of an interface; None where it does not have the part, empty without the attribute."""
    found = interface.find(part)
    return None if found is None else found.get(attribute, "")


def render_binding(owner: str, owner_uuid: UUID, port: str, mac: str, name: str) -> str:
    """The XML that makes libvirt enforce a filter on a device of the host, for the domain that owns the device."""
    root = ElementTree.Element("filterbinding")
    owning = ElementTree.SubElement(root, "owner")
    ElementTree.SubElement(owning, "name").text = owner
    ElementTree.SubElement(owning, "uuid").text = str(owner_uuid)
    ElementTree.SubElement(root, "portdev", {"name": port})
    ElementTree.SubElement(root, "mac", {"address": mac})
    ElementTree.SubElement(root, "filterref", {"filter": name})
    return ElementTree.tostring(root, encoding="unicode")


def render_filter(definition: Filter) -> str:
    """The XML of a filter. It always names chain and priorities, so that libvirt uses none of its defaults."""
    attributes = {"name": definition.name, "chain": definition.chain, "priority": str(definition.priority)}
    root = ElementTree.Element("filter", attributes)
    ElementTree.SubElement(root, "uuid").text = str(definition.uuid)
    for each in definition.entries:
        if isinstance(each, Rule):
            _append_rule(root, each)
        else:
            _append_reference(root, each)
    return ElementTree.tostring(root, encoding="unicode")


def digest_filter(definition: Filter) -> str:
    """SHA-256 of a filter's XML: equal on two hosts that have the same definition."""
    return hashlib.sha256(render_filter(definition).encode()).hexdigest()


def _rule(element: ElementTree.Element) -> Rule:
    found: list[Match] = []
    # Negated conditions are in an element of their own.
    for part in element:
        is_negated = part.get("match") == "no"
        found += [
            build_match(name, value, is_negated=is_negated and name != "comment")
            for name, value in part.items()
            if name != "match"
        ]
    return Rule(
        action=element.get("action", ""),
        direction=element.get("direction", ""),
        priority=int(element.get("priority", DEFAULT_RULE_PRIORITY)),
        protocol=element[0].tag if len(element) else "",
        matches=tuple(sorted(found)),
        is_stateful=element.get("statematch") not in ("0", "false"),
    )


def _reference(element: ElementTree.Element) -> Reference:
    parameters = [(each.get("name", ""), each.get("value", "")) for each in element.iterfind("parameter")]
    # By name only: the values of a variable keep their order.
    return Reference(element.get("filter", ""), tuple(sorted(parameters, key=lambda each: each[0])))


_ENTRIES: dict[str, Callable[[ElementTree.Element], Rule | Reference]] = {"rule": _rule, "filterref": _reference}


def _append_reference(root: ElementTree.Element, reference: Reference) -> None:
    element = ElementTree.SubElement(root, "filterref", {"filter": reference.target})
    for name, value in reference.parameters:
        ElementTree.SubElement(element, "parameter", {"name": name, "value": value})


def _append_rule(root: ElementTree.Element, rule: Rule) -> None:
    attributes = {"action": rule.action, "direction": rule.direction, "priority": str(rule.priority)}
    if not rule.is_stateful:
        attributes["statematch"] = "0"
    element = ElementTree.SubElement(root, "rule", attributes)
    if not rule.protocol:
        return
    negated = {each.name: each.value for each in rule.matches if each.is_negated}
    plain = {each.name: each.value for each in rule.matches if not each.is_negated}
    parts = [{"match": "no"} | negated] if negated else []
    parts += [plain] if plain or not negated else []
    # libvirt refuses ports in a part that comes before the protocol they belong to.
    for part in sorted(parts, key=lambda each: "protocol" not in each):
        ElementTree.SubElement(element, rule.protocol, part)
