import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import psycopg
import pytest
from tools.harness.broker import Broker
from tools.harness.broker import prefix as broker_programs
from tools.harness.cluster import prefix

ROOT = Path(__file__).parents[2]


def start(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a developer would, who has not named a store."""
    inherited = {name: value for name, value in os.environ.items() if name != "GUESTD_DATABASE_DSN"}
    return subprocess.run(
        command, env=inherited | environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone of this repository, as far as ./dev needs one, with a test of its own."""
    clone = tmp_path / "clone"
    clone.mkdir()
    for name in ("dev", "hatch_build.py", "pyproject.toml", "requirements.lock", "requirements-libvirt.lock"):
        shutil.copy2(ROOT / name, clone)
    for name in ("tools", "daemon", "schema", "sql"):
        shutil.copytree(ROOT / name, clone / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    (clone / "tests/unit").mkdir(parents=True)
    (clone / "tests/unit/test_sums.py").write_text(
        "def test_one_and_one(): assert 1 + 1 == 2\n\ndef test_two_and_two(): assert 2 + 2 == 5\n"
    )
    return clone


@pytest.fixture
def cache() -> Iterator[Path]:
    """A cache of this test's own that holds what the real one has downloaded, and no store."""
    cache = Path(tempfile.mkdtemp(prefix="guestd-"))
    cache.chmod(0o755)
    for fetched in (stamp.parent for stamp in prefix().parent.glob("*/stamp")):
        (cache / fetched.name).mkdir()
        for entry in fetched.iterdir():
            if entry.name != "stamp":
                (cache / fetched.name / entry.name).symlink_to(entry)
        (cache / fetched.name / "stamp").write_text(f"{cache / fetched.name}\n")
    yield cache
    start(ROOT / "dev", "down", GUESTD_CACHE=str(cache))
    shutil.rmtree(cache)


@pytest.fixture
def doctored(tmp_path: Path) -> Path:
    """A directory of this host's programs, to take some away or to put others in their place."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for directory in ("/usr/sbin", "/usr/bin"):
        for program in Path(directory).iterdir():
            (programs / program.name).unlink(missing_ok=True)
            (programs / program.name).symlink_to(program)
    return programs


def replace(program: Path, script: str) -> None:
    program.unlink()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def get_timescaledb(tmp_path: Path, environment: Mapping[str, str]) -> str:
    """Return the last line that getting it into an empty cache says, which must be a refusal."""
    done = start(
        ROOT / "tools/harness/get-packages", "timescaledb", GUESTD_CACHE=str(tmp_path / "cache"), **environment
    )
    assert done.returncode == 1
    assert done.stdout == ""
    said = done.stderr.splitlines()[-1]
    assert "GUESTD_DATABASE_DSN" in said
    assert "deploy/compose.yaml" in said
    return said


def test_alone_it_lists_its_verbs_one_line_each() -> None:
    done = start(ROOT / "dev")
    assert done.returncode == 0
    listed = [line.split()[1] for line in done.stdout.splitlines()]
    assert " ".join(listed) == "demo test newest faults check fix up down run psql lab bench fuzz lock pictures new"


def test_an_unknown_verb_is_a_usage_error_with_a_hint() -> None:
    done = start(ROOT / "dev", "teleport")
    assert done.returncode == 2
    assert done.stderr == "dev: there is no verb 'teleport': ./dev alone lists them\n"


def test_an_unknown_group_of_tests_is_a_usage_error_that_names_the_groups(clone: Path) -> None:
    done = start(clone / "dev", "test", "magic")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "dev: no tests are called 'magic': there are unit/"


def test_an_unknown_bench_suite_is_a_usage_error() -> None:
    done = start(ROOT / "dev", "bench", "magic")
    assert done.returncode == 2
    assert "no such suite" in done.stderr


def test_arguments_behind_a_group_reach_pytest_and_the_command_is_shown(clone: Path) -> None:
    done = start(clone / "dev", "test", "unit", "-n", "0", "-q", "-k", "one_and_one")
    assert "\n1 passed, 1 deselected in " in done.stdout
    (shown,) = [line for line in done.stderr.splitlines() if line.startswith("+ python -m pytest ")]
    assert shown.endswith(" tests/unit -n 0 -q -k one_and_one")
    assert done.returncode == 0


def test_failing_tests_fail_the_command(clone: Path) -> None:
    assert start(clone / "dev", "test", "unit", "-n", "0").returncode == 1


def test_a_new_migration_takes_the_next_number(clone: Path) -> None:
    numbers = sorted(int(path.name[:4]) for path in (clone / "sql/migrations").glob("[0-9]*.sql"))
    done = start(clone / "dev", "new", "migration", "add_disk_latency")
    assert done.stdout == f"sql/migrations/{numbers[-1] + 1:04d}_add_disk_latency.sql\n"
    assert (clone / done.stdout.strip()).read_text() == "-- compat: 1\n-- add disk latency.\n"
    contract = (clone / "schema/gueststore/contract.py").read_text()
    assert f"\nSCHEMA_VERSION = {numbers[-1] + 1}\n" in contract


@pytest.mark.parametrize("name", ["", "Add Things", "../evil"])
def test_a_migration_without_a_plain_name_is_a_usage_error(clone: Path, name: str) -> None:
    done = start(clone / "dev", "new", "migration", name)
    assert done.returncode == 2
    assert "usage: ./dev new migration NAME" in done.stderr


def test_up_gives_a_migrated_store_and_a_broker_psql_reads_it_fresh_empties_it_and_down_stops_both(cache: Path) -> None:
    def dev(*words: str) -> str:
        done = start(ROOT / "dev", *words, GUESTD_CACHE=str(cache))
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-1] if done.stdout else ""

    dsn = dev("up")
    broker = Broker(cache / "broker", prefix=broker_programs())
    assert broker.pid() is not None
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE TABLE mine AS SELECT 7 AS n")
    assert dev("up") == dsn
    assert dev("psql", "-Atc", "SELECT n FROM mine") == "7"
    assert dev("up", "--fresh") == dsn
    assert dev("psql", "-Atc", """SELECT to_regclass('mine') IS NULL, count(*) FROM "Machine" """) == "t|0"
    dev("down")
    assert broker.pid() is None
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(dsn)


def test_a_store_of_your_own_is_migrated_and_no_other_is_started(cache: Path, empty_dsn: str) -> None:
    with psycopg.connect(empty_dsn) as connection:
        connection.execute("CREATE EXTENSION timescaledb")
    done = start(ROOT / "dev", "up", GUESTD_CACHE=str(cache), GUESTD_DATABASE_DSN=empty_dsn)
    assert done.stdout.splitlines()[-1] == empty_dsn
    assert not (cache / "store").exists()
    with psycopg.connect(empty_dsn) as connection:
        assert connection.execute("""SELECT count(*) FROM "Machine" """).fetchone() == (0,)


def test_a_store_of_your_own_is_never_emptied(cache: Path, dsn: str) -> None:
    done = start(ROOT / "dev", "up", "--fresh", GUESTD_CACHE=str(cache), GUESTD_DATABASE_DSN=dsn)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == ("dev: --fresh is for our own store, and GUESTD_DATABASE_DSN names another")


def test_a_host_without_a_new_enough_python_is_told_what_to_install(doctored: Path) -> None:
    for program in doctored.glob("python3*"):
        program.unlink()
    done = start(ROOT / "dev", "check", PATH=str(doctored))
    assert done.returncode == 1
    assert done.stderr == "dev: guestd needs Python 3.11 or newer: install python3 of Debian 12 or later.\n"


def test_a_host_that_cannot_compile_is_told_and_nothing_is_left_behind(tmp_path: Path, cache: Path) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho 'guestd_rows.c: no Python.h' >&2\nexit 1\n")
    compiler.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    for compiled in cache.glob("rows-*"):
        shutil.rmtree(compiled)
    done = start(ROOT / "dev", "bench", "magic", PATH=path, GUESTD_CACHE=str(cache))
    expected = "guestd_rows.c could not be compiled, guestd will use slower Python code: guestd_rows.c: no Python.h; "
    assert expected in done.stderr
    assert "no such suite" in done.stderr
    assert list(cache.glob("rows-*")) == []


def test_a_host_without_apt_is_told_the_alternatives(tmp_path: Path, doctored: Path) -> None:
    (doctored / "apt-get").unlink()
    assert "this host has no apt-get" in get_timescaledb(tmp_path, {"PATH": str(doctored)})


def test_an_unsupported_architecture_is_told_the_alternatives(tmp_path: Path, doctored: Path) -> None:
    replace(doctored / "dpkg", "echo riscv64")
    assert "amd64 and arm64 only and this host is riscv64" in get_timescaledb(tmp_path, {"PATH": str(doctored)})


def test_a_host_of_another_distribution_is_told_the_alternatives(tmp_path: Path, doctored: Path) -> None:
    replace(doctored / "apt-get", 'case "$*" in *--no-release-info*) echo mirror.example/ubuntu main ;; esac')
    assert "name no Debian mirror" in get_timescaledb(tmp_path, {"PATH": str(doctored)})


def test_an_unreachable_mirror_is_told_the_alternatives(tmp_path: Path) -> None:
    nowhere = tmp_path / "apt.conf"  # a proxy where nobody listens
    nowhere.write_text('Acquire { http::Proxy "http://127.0.0.1:9"; https::Proxy "http://127.0.0.1:9"; Retries "0"; };')
    assert "mirror of this host could not be read" in get_timescaledb(tmp_path, {"APT_CONFIG": str(nowhere)})


def test_a_cache_that_cannot_be_written_is_told_the_alternatives(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    assert "cannot be written" in get_timescaledb(tmp_path, {})


@pytest.mark.parametrize(("program", "lack"), [("cc", "this host has no C compiler"), ("apt-get", "libvirt-dev")])
def test_where_libvirts_bindings_cannot_be_built_one_sentence_says_what_is_lacking(
    doctored: Path, tmp_path: Path, program: str, lack: str
) -> None:
    replace(doctored / "cc", "exit 1")
    (doctored / program).unlink()
    environment = {"PATH": str(doctored), "GUESTD_CACHE": str(tmp_path / "cache")}
    done = start(ROOT / "tools/harness/build-libvirt", sys.prefix, **environment)
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert said.startswith("build-libvirt: libvirt-python is not built: ")
    assert lack in said
    assert said.endswith("; what needs libvirt is left out.")


def test_an_unknown_name_of_packages_is_a_usage_error() -> None:
    done = start(ROOT / "tools/harness/get-packages", "oracle")
    assert done.returncode == 2
    assert (
        done.stderr
        == "usage: get-packages timescaledb|timescaledb-newest|mosquitto|prometheus|pip|libvirt|lab|faketime\n"
    )
