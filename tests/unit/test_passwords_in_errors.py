"""No error repeats a password, however it is written in a connection string, and however the string is broken."""

import traceback
from urllib.parse import quote

import pytest

from guestd.cli import main as guestd
from guestd.core.errors import ConfigError
from guestd.store.connection import check_dsn, with_password
from gueststore import __main__ as gueststore
from gueststore.database import connect, describe
from gueststore.errors import StoreError

PASSWORDS = (
    "hunter swordfish",
    "hunter swordfish=marmalade",
    "hunter 'swordfish' marmalade",
    "hunter\\swordfish marmalade\\",
    "hunter@swordfish/marmalade",
    "hunter/swordfish@marmalade",
    "hunter%swordfish:marmalade",
    "hunter?swordfish=marmalade&host=x@y",
    "hunter,swordfish#marmalade",
)
FRAGMENTS = ("hunter", "swordfish", "marmalade")
# Nobody listens on port 1.
FORMS = (
    "host=127.0.0.1 port=1 password={0} dbname=guestd",
    "host=127.0.0.1 port=1 password = {0} dbname=guestd",
    "host=127.0.0.1 port=1 password='{0}' dbname=guestd",
    "host=127.0.0.1 port=1 password='{0} dbname=guestd",
    "password={0} host=127.0.0.1 port=x",
    "host=127.0.0.1 port=1 pasword={0}",
    "postgresql://guestd:{0}@127.0.0.1:1/guestd",
    "postgres://guestd:{0}@127.0.0.1:1/guestd",
    "postgresql://guestd:{0}@127.0.0.1:x/guestd",
    "postgresql://guestd:{1}@127.0.0.1:1/guestd",
    "postgresql://guestd:{0}@[::1/guestd",
    "postgresql:/guestd:{0}@127.0.0.1:1/guestd",
    "http://guestd:{0}@127.0.0.1:1/guestd",
    "guestd:{0}@127.0.0.1:1/guestd",
    "postgresql://guestd@127.0.0.1:1/guestd?password={0}",
    "postgresql://guestd@127.0.0.1:1/guestd?pasword={0}",
    "{0}",
)
STRINGS = [form.format(password, quote(password, safe="")) for form in FORMS for password in PASSWORDS]
VERBS = (
    *(("guestd", verb) for verb in (["doctor"], ["plan"], ["show", "vm"], ["quarantine", "list"], ["filters", "plan"])),
    *(("gueststore", verb) for verb in (["status"], ["migrate"], ["check"], ["retention"], ["seed"], ["reset"])),
)


def assert_secret(text: str, dsn: str) -> None:
    assert [each for each in FRAGMENTS if each in text] == [], (dsn, text)


@pytest.mark.parametrize("dsn", STRINGS)
def test_no_error_of_a_connection_string_repeats_a_part_of_its_password(dsn: str) -> None:
    def connect_once() -> None:
        with connect(dsn):
            pass

    for attempt in (lambda: check_dsn(dsn), lambda: with_password(dsn, "x"), lambda: describe(dsn), connect_once):
        try:
            attempt()
        except (ConfigError, StoreError) as exc:
            assert_secret("".join(traceback.format_exception(exc)), dsn)


@pytest.mark.parametrize(("program", "verb"), VERBS, ids=[f"{program} {' '.join(verb)}" for program, verb in VERBS])
def test_no_verb_prints_a_part_of_the_password(
    program: str, verb: list[str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = guestd.main if program == "guestd" else gueststore.main
    for dsn in STRINGS[:: 7 if verb == ["doctor"] else 3]:
        monkeypatch.setenv("GUESTD_DATABASE_DSN", dsn)
        run(verb)
        output = capfd.readouterr()
        assert_secret(output.out + output.err, dsn)


@pytest.mark.parametrize("place", [0, 1])
def test_words_of_a_string_that_is_not_quoted_are_not_repeated(
    place: int, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--dsn", "host=127.0.0.1", "password=hunter", "swordfish"]
    arguments = [*words, "status"] if place else ["status", *words]
    monkeypatch.setattr("sys.argv", ["gueststore", *arguments])
    assert gueststore.main(arguments) == 2
    output = capfd.readouterr()
    assert_secret(output.out + output.err, " ".join(words))
