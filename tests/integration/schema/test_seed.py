"""gueststore seed: what a new platform starts with, once, and nothing that people changed."""

import re
import subprocess
import sys
from collections.abc import Mapping

import bcrypt
import pytest
from psycopg.conninfo import conninfo_to_dict

from gueststore.database import Connection
from gueststore.errors import ConfigurationError, StoreError
from gueststore.seed import Admin, read_admin, seed
from gueststore.seeds import load_applications, load_filters, load_global_services
from support.schema import make_template, rows

ADMIN = Admin("admin@example.com", "correct horse")

COUNTS = {
    "User": 1,
    "Department": 1,
    "MachineTemplateCategory": 1,
    "MachineTemplate": 1,
    "Application": 41,
    "GlobalServiceConfig": 21,
    "NWFilter": 67,
    "FWRule": 113,
    "FilterReference": 9,
}
RULES = """
SELECT rule."action", rule."direction", rule."priority", rule."protocol", rule."srcMacAddr", rule."srcIpAddr",
    rule."dstPortStart"
FROM "FWRule" AS rule
INNER JOIN "NWFilter" AS filter ON rule."nwFilterId" = filter."id"
WHERE filter."name" = %s
ORDER BY rule."priority"
"""
REFERENCES = """
SELECT target."name"
FROM "FilterReference" AS reference
INNER JOIN "NWFilter" AS source ON reference."sourceFilterId" = source."id"
INNER JOIN "NWFilter" AS target ON reference."targetFilterId" = target."id"
WHERE source."name" = %s
ORDER BY target."name"
"""


def counts(connection: Connection) -> dict[str, int]:
    return {table: rows(connection, f'SELECT count(*) FROM "{table}"')[0][0] for table in COUNTS}


def test_an_empty_platform_gets_everything(dsn: str, connection: Connection) -> None:
    reported: list[str] = []
    assert seed(dsn, ADMIN, report=reported.append) == sum(COUNTS.values())
    assert counts(connection) == COUNTS
    assert "applications: 41 rows added" in reported


def test_a_second_run_adds_and_changes_nothing(dsn: str, connection: Connection) -> None:
    seed(dsn, ADMIN)
    connection.execute('UPDATE "Application" SET "url" = \'https://example.com\' WHERE "name" = \'Git\'')
    connection.execute('DELETE FROM "Application" WHERE "name" = \'Steam\'')
    assert seed(dsn, Admin(ADMIN.email, "another password")) == 1
    assert counts(connection) == COUNTS
    assert rows(connection, 'SELECT "url" FROM "Application" WHERE "name" = \'Git\'') == [("https://example.com",)]
    ((hashed,),) = rows(connection, 'SELECT "password" FROM "User"')
    assert bcrypt.checkpw(b"correct horse", hashed.encode())


def test_a_platform_with_a_template_gets_no_other(dsn: str, connection: Connection) -> None:
    make_template(connection, name="ours")
    seed(dsn, ADMIN)
    assert rows(connection, 'SELECT "name" FROM "MachineTemplate"') == [("ours",)]


def test_the_first_user_can_sign_in_as_administrator(dsn: str, connection: Connection) -> None:
    seed(dsn, ADMIN)
    ((email, hashed, role, deleted, token),) = rows(
        connection, 'SELECT "email", "password", "role", "deleted", "token" FROM "User"'
    )
    assert (email, role, deleted, token) == (ADMIN.email, "ADMIN", False, "null")
    assert bcrypt.checkpw(ADMIN.password.encode(), hashed.encode())


@pytest.mark.parametrize("environment", [{}, {"GUESTD_ADMIN_EMAIL": "a@b.c"}, {"GUESTD_ADMIN_PASSWORD": "x"}])
def test_the_error_of_a_missing_first_user_names_the_variables(environment: Mapping[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="GUESTD_ADMIN_EMAIL and GUESTD_ADMIN_PASSWORD"):
        read_admin(environment)


def test_the_well_known_password_is_refused_unless_allowed() -> None:
    environment = {"GUESTD_ADMIN_EMAIL": "a@b.c", "GUESTD_ADMIN_PASSWORD": "password"}
    with pytest.raises(ConfigurationError, match="well-known"):
        read_admin(environment)
    assert read_admin(environment, allow_well_known=True).password == "password"


def test_a_password_that_bcrypt_would_cut_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="72 bytes"):
        read_admin({"GUESTD_ADMIN_EMAIL": "a@b.c", "GUESTD_ADMIN_PASSWORD": "é" * 37})


@pytest.mark.parametrize("name", ["GUESTD_ADMIN_EMAIL", "GUESTD_ADMIN_PASSWORD"])
def test_a_variable_that_is_not_utf8_is_named_and_not_printed(name: str) -> None:
    environment = {"GUESTD_ADMIN_EMAIL": "a@b.c", "GUESTD_ADMIN_PASSWORD": "correct horse"} | {name: "secret \udcff"}
    with pytest.raises(ConfigurationError, match=name) as caught:
        read_admin(environment)
    assert "secret" not in str(caught.value)


def test_the_seed_of_a_database_that_was_never_migrated_is_refused(empty_dsn: str) -> None:
    with pytest.raises(StoreError, match="gueststore migrate"):
        seed(empty_dsn, ADMIN)


def test_a_run_that_fails_leaves_nothing_behind(dsn: str, connection: Connection) -> None:
    connection.execute('ALTER TABLE "FilterReference" ADD CHECK (FALSE)')
    with pytest.raises(StoreError, match="nothing was added"):
        seed(dsn, ADMIN)
    assert counts(connection) == dict.fromkeys(COUNTS, 0)


def test_anti_spoofing_really_names_the_machines_own_addresses(dsn: str, connection: Connection) -> None:
    seed(dsn, ADMIN)
    assert rows(connection, RULES, "No MAC Spoofing") == [
        ("return", "out", 400, "mac", "$MAC", None, None),
        ("drop", "out", 500, "mac", None, None, None),
    ]
    assert rows(connection, RULES, "No IP Spoofing") == [
        ("return", "out", 100, "ip", None, "0.0.0.0", None),
        ("return", "out", 500, "ip", None, "$IP", None),
        ("drop", "out", 1000, "ip", None, None, None),
    ]


def test_ftps_has_rules_both_ways(dsn: str, connection: Connection) -> None:
    seed(dsn, ADMIN)
    assert rows(connection, RULES, "Use FTPS service") == [("accept", "out", 200, "tcp", None, None, 990)]
    assert rows(connection, RULES, "Provides FTPS service") == [("accept", "in", 200, "tcp", None, None, 990)]


def test_web_server_security_includes_what_a_web_server_provides(dsn: str, connection: Connection) -> None:
    seed(dsn, ADMIN)
    assert rows(connection, REFERENCES, "Web Server Security") == [
        ("Basic Security",),
        ("Provides HTTP service",),
        ("Provides HTTPS service",),
    ]


def test_filters_have_names_for_libvirt_of_their_own(dsn: str, connection: Connection) -> None:
    seed(dsn, ADMIN)
    names = [name for (name,) in rows(connection, 'SELECT "internalName" FROM "NWFilter"')]
    assert all(re.fullmatch(r"ibay-[0-9a-f]{16}", name) for name in names)


def test_every_reference_names_a_filter_and_no_service_filter_is_without_rules() -> None:
    by_name = {item.name: item for item in load_filters()}
    assert len(by_name) == 67
    assert all(target in by_name for item in by_name.values() for target in item.references)
    assert all(item.rules or item.references for item in by_name.values())


def test_the_lists_have_no_doubles_and_known_systems_only() -> None:
    assert len({app.name for app in load_applications()}) == 41
    assert {system for app in load_applications() for system in app.install} == {"windows", "ubuntu", "fedora"}
    assert len(set(load_global_services())) == 21


def test_the_command_shows_progress_and_asks_for_what_is_missing(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-m", "gueststore", "seed", "--dsn", dsn]
    monkeypatch.delenv("GUESTD_ADMIN_EMAIL", raising=False)
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stdout) == (78, "")
    monkeypatch.setenv("GUESTD_ADMIN_EMAIL", "admin@example.com")
    monkeypatch.setenv("GUESTD_ADMIN_PASSWORD", "correct horse")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, f"{sum(COUNTS.values())} rows added")
    assert "correct horse" not in done.stdout


def test_reset_asks_first_and_names_the_database(dsn: str, connection: Connection) -> None:
    seed(dsn, ADMIN)
    connection.execute("CREATE TABLE grafana (id integer)")
    command = [sys.executable, "-m", "gueststore", "reset", "--dsn", dsn]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert str(conninfo_to_dict(dsn)["dbname"]) in refused.stderr
    assert counts(connection) == COUNTS
    done = subprocess.run([*command, "--yes"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert counts(connection) == dict.fromkeys(COUNTS, 0)
    assert rows(connection, "SELECT to_regclass('grafana') IS NOT NULL") == [(True,)]
    check = subprocess.run([*command[:3], "check", "--dsn", dsn], capture_output=True, text=True, check=False)
    assert check.returncode == 0, check.stdout
