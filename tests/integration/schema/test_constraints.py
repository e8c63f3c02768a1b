"""Every CHECK: a row it must refuse, the name of what refused it, and a sentence that a person understands."""

from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from gueststore.catalogue import load_catalogue
from gueststore.constraint_messages import explain_refusal
from gueststore.database import Connection
from support.models import REQUIRED, nw_filter
from support.schema import insert

# (constraint, bad values, words that the sentence must hold)
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("User.User_password_is_bcrypt_check", {"password": "secret"}, "bcrypt"),
    ("User.User_password_is_bcrypt_check", {"password": "$2b$04$tooshort"}, "bcrypt"),
    ("User.User_password_is_bcrypt_check", {"password": "$1$salt$" + "a" * 53}, "bcrypt"),
    ("SystemMetrics.SystemMetrics_cpuUsagePercent_0_to_100_check", {"cpuUsagePercent": 100.1}, "0 to 100"),
    ("SystemMetrics.SystemMetrics_cpuUsagePercent_0_to_100_check", {"cpuUsagePercent": -0.1}, "0 to 100"),
    ("SystemMetrics.SystemMetrics_cpuUsagePercent_0_to_100_check", {"cpuUsagePercent": float("nan")}, "0 to 100"),
    ("SystemMetrics.SystemMetrics_cpuCoresUsage_0_to_100_check", {"cpuCoresUsage": Jsonb([5, 101])}, "per core"),
    ("SystemMetrics.SystemMetrics_cpuCoresUsage_0_to_100_check", {"cpuCoresUsage": Jsonb({})}, "array"),
    ("ProcessSnapshot.ProcessSnapshot_cpuUsagePercent_at_least_0_check", {"cpuUsagePercent": -1.0}, "at least 0"),
    (
        "ProcessSnapshot.ProcessSnapshot_cpuUsagePercent_at_least_0_check",
        {"cpuUsagePercent": float("inf")},
        "finite",
    ),
    ("PortUsage.PortUsage_port_0_to_65535_check", {"port": 65536}, "0 to 65535"),
    ("PortUsage.PortUsage_port_0_to_65535_check", {"port": -1}, "0 to 65535"),
    ("WindowsService.WindowsService_usageScore_0_to_100_check", {"usageScore": 101.0}, "0 to 100"),
    ("NWFilter.NWFilter_chain_known_to_libvirt_check", {"chain": "ipv5"}, "chain"),
    ("NWFilter.NWFilter_chain_known_to_libvirt_check", {"chain": "rooted"}, "chain"),
    ("NWFilter.NWFilter_type_generic_department_or_vm_check", {"type": "host"}, "generic, department or vm"),
    ("NWFilter.NWFilter_priority_within_1000_check", {"priority": 1001}, "-1000 to 1000"),
    ("NWFilter.NWFilter_priority_within_1000_check", {"priority": -1001}, "-1000 to 1000"),
    ("FWRule.FWRule_action_known_to_libvirt_check", {"action": "allow"}, "accept, reject, drop"),
    ("FWRule.FWRule_direction_in_out_or_inout_check", {"direction": "both"}, "in, out or inout"),
    ("FWRule.FWRule_priority_within_1000_check", {"priority": 1001}, "-1000 to 1000"),
    ("FWRule.FWRule_protocol_known_to_libvirt_check", {"protocol": "ipv4"}, "tcp, udp"),
    ("FWRule.FWRule_ipVersion_ipv4_or_ipv6_check", {"ipVersion": "4"}, "ipv4 or ipv6"),
    ("FWRule.FWRule_srcPortStart_0_to_65535_check", {"srcPortStart": 65536}, "first source port"),
    ("FWRule.FWRule_srcPortEnd_0_to_65535_check", {"srcPortEnd": 65536}, "last source port"),
    ("FWRule.FWRule_srcPortStart_not_above_end_check", {"srcPortStart": 2, "srcPortEnd": 1}, "not above"),
    ("FWRule.FWRule_dstPortStart_0_to_65535_check", {"dstPortStart": -1}, "first destination port"),
    ("FWRule.FWRule_dstPortEnd_0_to_65535_check", {"dstPortEnd": -1}, "last destination port"),
    ("FWRule.FWRule_dstPortStart_not_above_end_check", {"dstPortStart": 2, "dstPortEnd": 1}, "not above"),
    ("FWRule.FWRule_state_is_an_object_check", {"state": Jsonb(["NEW"])}, "object of booleans"),
    ("Machine.Machine_commandLines_full_redacted_or_off_check", {"commandLines": "none"}, "full, redacted or off"),
    (
        "Machine.Machine_desiredStatus_running_off_or_suspended_check",
        {"desiredStatus": "paused"},
        "running, off or suspended",
    ),
    (
        "MachineDomain.MachineDomain_channel_absent_or_connected_or_not_check",
        {"channel": "open"},
        "absent, disconnected or connected",
    ),
    ("MachineAgent.MachineAgent_dialect_known_check", {"dialect": "D9"}, "D0, D1, D2, D3 or guestd"),
    ("GuestEvent.GuestEvent_detail_is_an_object_check", {"detail": Jsonb([])}, "an object"),
    ("RetentionSetting.RetentionSetting_keepDays_1_to_36500_check", {"keepDays": 0}, "1 to 36500 days"),
    ("RetentionSetting.RetentionSetting_relation_that_is_pruned_check", {"relation": "User"}, "a series, a roll-up"),
    ("RollupPending.RollupPending_unit_minute_hour_or_fleet_check", {"unit": "day"}, "an hour of the fleet"),
    ("VmPort.VmPort_portStart_0_to_65535_check", {"portStart": -1}, "first port"),
    ("VmPort.VmPort_portEnd_0_to_65535_check", {"portEnd": 65536}, "last port"),
    ("VmPort.VmPort_portStart_not_above_end_check", {"portStart": 23, "portEnd": 22}, "not above"),
    ("VmPort.VmPort_protocol_tcp_or_udp_check", {"protocol": "TCP"}, "tcp or udp"),
]


def test_every_check_has_a_bad_row_here_and_a_sentence_of_its_own() -> None:
    checks = {
        name
        for (kind, name), definition in load_catalogue().items()
        if kind == "constraint" and definition.startswith("CHECK")
    }
    with_sentence = {name for kind, name in load_catalogue() if kind == "constraint comment"}
    assert checks == with_sentence
    assert checks == {name for name, _, _ in REFUSED} | {"FilterReference.FilterReference_not_to_itself_check"}


def test_each_bad_row_is_refused_by_its_check_in_a_sentence(connection: Connection) -> None:
    for name, bad, words in REFUSED:
        table, _, constraint = name.partition(".")
        with pytest.raises(psycopg.errors.CheckViolation) as refusal:
            insert(connection, table, **REQUIRED[table](connection) | bad)
        assert refusal.value.diag.constraint_name == constraint
        message = explain_refusal(refusal.value)
        assert message.startswith(f"{table}: ")
        assert words in message
        assert message.endswith(".")


def test_a_filter_does_not_include_itself(connection: Connection) -> None:
    itself = nw_filter(connection)
    with pytest.raises(psycopg.errors.CheckViolation) as refusal:
        insert(connection, "FilterReference", sourceFilterId=itself, targetFilterId=itself)
    assert "does not include itself" in explain_refusal(refusal.value)


def test_values_at_the_edge_are_accepted(connection: Connection) -> None:
    for table, values in (
        ("SystemMetrics", {"cpuUsagePercent": 100.0, "cpuCoresUsage": Jsonb([0, 100, None])}),
        ("SystemMetrics", {"cpuUsagePercent": 0.0, "cpuCoresUsage": Jsonb([])}),
        ("ProcessSnapshot", {"cpuUsagePercent": 3200.0}),
        ("PortUsage", {"port": 65535}),
        ("FWRule", {"action": "continue", "priority": -1000, "dstPortStart": 0, "dstPortEnd": 65535}),
        ("FWRule", {"protocol": "icmpv6", "state": Jsonb({"established": True})}),
        ("NWFilter", {"chain": "ipv4-ip", "priority": 1000}),
        ("NWFilter", {"chain": "root", "type": "vm"}),
        ("VmPort", {"portStart": 0, "portEnd": 0, "protocol": "udp"}),
    ):
        insert(connection, table, **REQUIRED[table](connection) | values)
