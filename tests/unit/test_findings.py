"""How findings are printed: a guest's text stays text, and a pipe gets no colour."""

import json

import pytest

from guestd.cli.findings import print_findings
from guestd.doctor.finding import fault, ok

HOSTILE = fault("channels", "domain [bold red]evil[/] \x1b[2J\nok  forged", "remove [link=x]it[/link]")


def test_a_guests_text_is_neither_markup_nor_a_control_sequence(capsys: pytest.CaptureFixture[str]) -> None:
    print_findings([ok("store", "answers"), HOSTILE], is_json=False)
    first, second = capsys.readouterr().out.splitlines()
    assert first == "ok       store          answers"
    assert second.startswith(
        "fault    channels       domain [bold red]evil[/] \\x1b[2J\\nok  forged  -> remove [link=x]"
    )


def test_json_has_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    print_findings([HOSTILE], is_json=True)
    (printed,) = json.loads(capsys.readouterr().out)
    assert printed == {"subject": "channels", "level": "fault", "text": HOSTILE.text, "fix": HOSTILE.fix}
