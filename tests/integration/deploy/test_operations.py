"""The commands for the store in docs/operations.md and docs/runbook.md; tests/e2e runs the others."""

import os
import re
import subprocess
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from tools.harness.cluster import Cluster, prefix

from gueststore.catalogue import find_drift
from support.daemon import REPOSITORY, add_machine, command, environment, execute, rows
from support.store import Server


def section(title: str, language: str) -> str:
    """The commands of a section."""
    text = (REPOSITORY / "docs/operations.md").read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return str(found)


def run_guestd(dsn: str, words: str) -> str:
    """What a verb of guestd prints."""
    ours = environment() | {"GUESTD_DATABASE_DSN": dsn}
    done = subprocess.run(command("guestd", *words.split()), env=ours, capture_output=True, text=True, check=True)
    return done.stdout


def test_the_commands_for_a_store_create_it(cluster: Server, tmp_path: Path) -> None:
    if not isinstance(cluster, Cluster):
        pytest.skip("roles and databases are made on a server of our own only")
    place = conninfo_to_dict(cluster.dsn("postgres"))
    (tmp_path / "gueststore").write_text(f'#!/bin/sh\nexec {" ".join(command("gueststore"))} "$@"\n')
    (tmp_path / "gueststore").chmod(0o755)
    path = [str(tmp_path), str(prefix() / "usr/lib/postgresql/17/bin"), os.environ["PATH"]]
    variables = {
        "PATH": os.pathsep.join(path),
        "PGHOST": "127.0.0.1",
        "PGPORT": str(place["port"]),
        "PGUSER": "postgres",
    }
    # The server of the tests has its socket in another directory.
    commands = section("The store", "sh").replace("host=/var/run/postgresql", "host=127.0.0.1")
    try:
        done = subprocess.run(
            ["sh", "-exc", commands], env=environment() | variables, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert find_drift(cluster.dsn("guestd")) == []
        with psycopg.connect(cluster.dsn("guestd"), user="guestd") as writer:
            assert writer.execute('SELECT count(*) FROM "Machine"').fetchone() == (0,)
        with (
            psycopg.connect(cluster.dsn("guestd"), user="grafana") as reader,
            pytest.raises(psycopg.errors.DatabaseError),
        ):
            reader.execute('DELETE FROM "Machine"')
    finally:
        execute(cluster.dsn("postgres"), "DROP DATABASE IF EXISTS guestd WITH (FORCE)")
        execute(
            cluster.dsn("postgres"), *(f"DROP ROLE IF EXISTS {role}" for role in ("guestd", "grafana", "guestd_owner"))
        )


def test_a_retired_host_claims_no_machine(dsn: str) -> None:
    machine = add_machine(dsn)
    execute(
        dsn,
        """INSERT INTO "Host" ("name", "uri", "version") VALUES ('host-that-goes', 'a', '1'), ('another', 'a', '1')""",
        """UPDATE "Machine" SET "hostId" = (SELECT "id" FROM "Host" WHERE "name" = 'host-that-goes')""",
        section("Retire a host", "sql"),
    )
    assert rows(dsn, 'SELECT "hostId" FROM "Machine" WHERE "id" = %s', machine) == [(None,)]
    assert rows(dsn, 'SELECT "name" FROM "Host"') == [("another",)]


def test_a_host_that_may_still_run_a_machine_cannot_be_retired(dsn: str) -> None:
    machine = add_machine(dsn)
    execute(
        dsn,
        """INSERT INTO "Host" ("name", "uri", "version") VALUES ('host-that-goes', 'a', '1')""",
        """INSERT INTO "MachineLease" ("machineId", "hostId", "hostBoot", "domainUuid")
        SELECT machine."id", host."id", '', machine."id" FROM "Machine" AS machine, "Host" AS host""",
    )
    with pytest.raises(psycopg.errors.ForeignKeyViolation, match="MachineLease_hostId_fkey"):
        execute(dsn, section("Retire a host", "sql"))
    vms = (REPOSITORY / "docs/vms.md").read_text().partition("\n## Leases\n")[2]
    show, release = re.findall(r"^guestd (vms release .*?)  +#", vms.partition("\n## ")[0], re.MULTILINE)
    ((name,),) = rows(dsn, 'SELECT "internalName" FROM "Machine" WHERE "id" = %s', str(machine))
    shown = run_guestd(dsn, show.replace("NAME", name))
    run_guestd(dsn, release.replace("NAME", name).replace("DIGEST", shown.split()[-1]))
    execute(dsn, section("Retire a host", "sql"))
    assert rows(dsn, 'SELECT 1 FROM "Host"') == []


def test_the_statement_for_retention_keeps_processes_for_a_month(dsn: str) -> None:
    execute(dsn, section("Retention", "sql"))
    assert rows(dsn, """SELECT "keepDays" FROM "RetentionSetting" WHERE "relation" = 'ProcessSnapshot'""") == [(31,)]


def runbook(program: str) -> list[str]:
    """The commands of the runbook that begin with a program."""
    text = (REPOSITORY / "docs/runbook.md").read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return sorted({line for block in blocks for line in block.splitlines() if line.startswith(f"{program} ")})


@pytest.mark.parametrize("typed", [*runbook("psql"), *runbook("gueststore"), *runbook("guestd quarantine")])
def test_the_commands_of_the_runbook_for_the_store_work(dsn: str, tmp_path: Path, typed: str) -> None:
    for program in ("guestd", "gueststore"):
        (tmp_path / program).write_text(f'#!/bin/sh\nexec {" ".join(command(program))} "$@"\n')
        (tmp_path / program).chmod(0o755)
    (tmp_path / "guestd.toml").write_text(f'[store]\ndsn = "{dsn}"\n')
    path = [str(tmp_path), str(prefix() / "usr/lib/postgresql/17/bin"), os.environ["PATH"]]
    done = subprocess.run(
        ["sh", "-ec", typed.replace("/etc/guestd", str(tmp_path))],
        env=environment() | {"PATH": os.pathsep.join(path), "GUESTD_DATABASE_DSN": dsn},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
