"""The kernel's rules: the commands that list them, and what guestd cannot predict."""

import asyncio
import sys
from uuid import UUID

import pytest

from guestd.filters.kernel import KernelInspector, run_command
from guestd.filters.model import Filter, Reference, Rule, build_matches
from guestd.filters.snapshot import HostSnapshot, ObservedFilters


@pytest.mark.parametrize(
    ("conditions", "parameters", "reason"),
    [
        ({"dstportstart": "$PORT"}, (), "$PORT has no value"),
        ({"dstportstart": "ssh"}, (), "guestd does not evaluate dstportstart=ssh"),
        ({"srcipaddr": "$A"}, (("A", "fd00::1"),), "guestd does not evaluate srcipaddr=fd00::1"),
        ({"dscp": "63"}, (), "guestd does not evaluate dscp=63"),
        (
            {"srcportstart": "$A[@1]", "dstportstart": "$B[@2]"},
            tuple((name, str(number)) for name in "AB" for number in range(400)),
            "its variables have 160000 combinations, more than 4096",
        ),
    ],
)
def test_a_filter_that_somebody_changed_to_what_guestd_cannot_predict_is_reported_for_its_device_only(
    conditions: dict[str, str], parameters: tuple[tuple[str, str], ...], reason: str
) -> None:
    strange = Rule("accept", "in", 500, "tcp", build_matches(conditions.items()))
    filters = {
        "ibay-top": Filter("ibay-top", UUID(int=1), "root", 0, (Reference("ibay-a", parameters),)),
        "ibay-a": Filter("ibay-a", UUID(int=2), "root", 0, (strange,)),
        "ibay-b": Filter("ibay-b", UUID(int=3), "root", 0, (Rule("drop", "in", 500, "all"),)),
    }
    bindings = {"vnet0": "ibay-top", "vnet1": "ibay-b"}
    host = HostSnapshot(ObservedFilters(filters), frozenset(), (), bindings, {})
    inspector = KernelInspector(lambda *_: "", lambda: ["vnet0", "vnet1"])
    found, reports = asyncio.run(inspector.find_flushed(host, filters))
    assert set(found) == {"vnet1"}
    ((kind, name, text),) = [(each.kind, each.name, each.text) for each in reports]
    assert (kind, name) == ("blind", "vnet0")
    assert text.startswith("guestd cannot predict the kernel's rules: ")
    assert reason in text


def test_a_command_that_hangs_is_an_error_of_the_system_that_names_it() -> None:
    with pytest.raises(OSError, match=r"^sleep: no answer within 0\.1 s$"):
        run_command("sleep", "60", timeout_seconds=0.1)


def test_a_command_that_fails_is_an_error_of_the_system_with_its_message() -> None:
    with pytest.raises(OSError, match="nowhere"):
        run_command("ls", "/nowhere")


def test_a_comment_that_is_not_utf8_does_not_hide_the_other_rules() -> None:
    script = r"import sys; sys.stdout.buffer.write(b'-A INPUT --comment \xff\n')"
    assert run_command(sys.executable, "-c", script) == "-A INPUT --comment �\n"
