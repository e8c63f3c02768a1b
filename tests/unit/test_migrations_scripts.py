"""Reading migrations: names, numbers, headers, order; and when a program and a database fit each other."""

import re

import pytest

from gueststore import contract
from gueststore.column_lists import LISTS, expand
from gueststore.errors import StoreError
from gueststore.scripts import load_scripts, parse_migration, sort_migrations


def test_a_migration_is_read_from_its_name_and_headers() -> None:
    migration = parse_migration("0007_add_latency.sql", "-- compat: 5\nSELECT 1;")
    assert (migration.number, migration.name, migration.compat) == (7, "add_latency", 5)
    assert migration.transactional
    assert str(migration) == "0007 add_latency"


def test_a_header_takes_a_migration_out_of_a_transaction() -> None:
    body = "-- compat: 1\n-- no-transaction: builds an index without stopping writers\nSELECT 1;"
    assert not parse_migration("0001_a.sql", body).transactional


def test_a_migration_without_a_compat_number_is_refused_by_name() -> None:
    with pytest.raises(StoreError, match=r"0001_a\.sql.*compat"):
        parse_migration("0001_a.sql", "SELECT 1;")


def test_a_file_that_is_not_named_like_a_migration_is_refused_by_name() -> None:
    with pytest.raises(StoreError, match=r"fix\.sql"):
        parse_migration("fix.sql", "-- compat: 1\n")


def test_a_number_missing_or_given_twice_is_refused() -> None:
    one, two, three = (parse_migration(f"000{n}_a.sql", "-- compat: 1\n") for n in (1, 2, 3))
    assert sort_migrations([three, one, two]) == (one, two, three)
    with pytest.raises(StoreError, match="0003 a should have number 0002"):
        sort_migrations([one, three])
    with pytest.raises(StoreError, match="0002 a should have number 0003"):
        sort_migrations([one, two, two])


def test_an_edit_changes_the_checksum() -> None:
    first = parse_migration("0001_a.sql", "-- compat: 1\nSELECT 1;")
    assert first.checksum != parse_migration("0001_a.sql", "-- compat: 1\nSELECT 2;").checksum


def test_the_packaged_migrations_are_in_order_and_never_ask_for_newer_programs_than_themselves() -> None:
    scripts = load_scripts()
    assert [m.number for m in scripts.migrations] == list(range(1, len(scripts.migrations) + 1))
    assert all(m.compat <= m.number for m in scripts.migrations)


def test_an_older_database_is_refused_with_the_command_to_run() -> None:
    reason = contract.mismatch(contract.SCHEMA_VERSION - 1, 1)
    assert reason is not None
    assert "gueststore migrate" in reason


def test_a_newer_database_is_accepted_until_it_asks_for_newer_programs() -> None:
    newer = contract.SCHEMA_VERSION + 1
    assert contract.mismatch(newer, contract.SCHEMA_VERSION) is None
    assert "install a newer guestd" in str(contract.mismatch(newer, newer))


def test_a_list_of_columns_takes_the_place_of_its_name() -> None:
    expanded = expand("SELECT\n    %(rollup_names)s\nFROM t").splitlines()
    assert expanded[1:3] == ['    "samples",', '    "cpuUsagePercentAvg",']
    assert len(expanded) == len(LISTS["rollup_names"]) + 2
    assert not [script for script in load_scripts().repeatables if re.search(r"%\(\w+\)s", script.body)]
    assert expand("SELECT %(machine_id)s") == "SELECT %(machine_id)s"
