"""Adds the initial data of a new platform to a migrated database.

Rows are matched by name, and existing ones stay unchanged: people may have edited them. So a second run adds only what
is missing. A run is one transaction: when it fails, it leaves nothing behind.
"""

import os
import secrets
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import bcrypt
import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from gueststore.constraint_messages import explain_refusal
from gueststore.database import Connection, connect
from gueststore.errors import ConfigurationError, StoreError
from gueststore.migrations import Report, hold_migration_lock, ignore_report
from gueststore.seeds import Filter, load_applications, load_filters, load_global_services

EMAIL_VARIABLE = "GUESTD_ADMIN_EMAIL"
PASSWORD_VARIABLE = "GUESTD_ADMIN_PASSWORD"  # noqa: S105  the name of a variable

# The password of the platform's old seed, which is public.
WELL_KNOWN_PASSWORD = "password"  # noqa: S105  refused below

# bcrypt ignores further bytes; a longer password would be weaker than its owner believes.
PASSWORD_MAX_BYTES = 72


@dataclass(frozen=True, slots=True)
class Admin:
    """The first user. Never print it: it holds a password."""

    email: str
    password: str


def read_admin(environment: Mapping[str, str] = os.environ, *, allow_well_known: bool = False) -> Admin:
    """Read the first user from the environment; ConfigurationError names a missing or refused variable."""
    email, password = environment.get(EMAIL_VARIABLE), environment.get(PASSWORD_VARIABLE)
    if not email or not password:
        raise ConfigurationError(f"set {EMAIL_VARIABLE} and {PASSWORD_VARIABLE}: the first user signs in with them")
    for name, value in ((EMAIL_VARIABLE, email), (PASSWORD_VARIABLE, password)):
        try:
            value.encode()
        except UnicodeEncodeError:  # not chained: it holds the password
            raise ConfigurationError(f"{name} is not UTF-8") from None
    if password == WELL_KNOWN_PASSWORD and not allow_well_known:
        raise ConfigurationError(
            f"{PASSWORD_VARIABLE} is the well-known default: choose another, or give --allow-default-password "
            "where nobody else can reach the platform"
        )
    if len(password.encode()) > PASSWORD_MAX_BYTES:
        raise ConfigurationError(f"{PASSWORD_VARIABLE} is over {PASSWORD_MAX_BYTES} bytes, more than bcrypt reads")
    return Admin(email, password)


def seed(dsn: str, admin: Admin, *, report: Report = ignore_report) -> int:
    """Add the missing rows and return their number; `report` gets a line for each group of rows.

    StoreError when the database was not migrated or refuses a row. Passwords of existing users stay.
    """
    added = 0
    with connect(dsn) as connection, hold_migration_lock(connection, report):
        try:
            with connection.transaction():
                for what, rows in (
                    ("first user", _add_admin(connection, admin)),
                    ("department, template and its category", _add_template(connection)),
                    ("applications", _add_applications(connection)),
                    ("global service settings", _add_services(connection)),
                    ("network filters, rules and references", _add_filters(connection, load_filters())),
                ):
                    report(f"{what}: {rows} rows added" if rows else f"{what}: complete")
                    added += rows
        except psycopg.errors.UndefinedTable as exc:
            raise StoreError("the database lacks tables: run `gueststore migrate` first") from exc
        except psycopg.Error as exc:
            raise StoreError(f"nothing was added: {explain_refusal(exc)}") from exc
    return added


def _add_admin(connection: Connection, admin: Admin) -> int:
    if _exists(connection, "User", email=admin.email):
        return 0
    hashed = bcrypt.hashpw(admin.password.encode(), bcrypt.gensalt()).decode()
    _insert(
        connection,
        "User",
        email=admin.email,
        password=hashed,
        deleted=False,
        firstName="Admin",
        lastName="User",
        role="ADMIN",
    )
    return 1


def _add_template(connection: Connection) -> int:
    added = 0
    if not _exists(connection, "Department", name="Default"):
        _insert(connection, "Department", name="Default")
        added += 1
    category = _find(connection, "MachineTemplateCategory", name="Default Category")
    if category is None:
        category = _insert(connection, "MachineTemplateCategory", name="Default Category", description="For a start")
        added += 1
    # Only for a platform without any template.
    if not _exists(connection, "MachineTemplate"):
        _insert(
            connection,
            "MachineTemplate",
            name="Basic",
            description="A machine for everyday work",
            cores=6,
            ram=24,
            storage=70,
            categoryId=category,
        )
        added += 1
    return added


def _add_applications(connection: Connection) -> int:
    missing = [app for app in load_applications() if not _exists(connection, "Application", name=app.name)]
    for app in missing:
        _insert(
            connection,
            "Application",
            name=app.name,
            description=app.description,
            url=app.url,
            os=list(app.install),
            installCommand=Jsonb(app.install),
            parameters=Jsonb({}),
        )
    return len(missing)


def _add_services(connection: Connection) -> int:
    missing = [
        service
        for service in load_global_services()
        if not _exists(connection, "GlobalServiceConfig", serviceId=service)
    ]
    for service in missing:
        _insert(connection, "GlobalServiceConfig", serviceId=service, useEnabled=False, provideEnabled=False)
    return len(missing)


def _add_filters(connection: Connection, desired: Iterable[Filter]) -> int:
    """Add the filters that are missing, each with its rules and its references."""
    missing = [item for item in desired if not _exists(connection, "NWFilter", name=item.name)]
    ids = {item.name: _add_filter(connection, item) for item in missing}
    added = len(missing) + sum(len(item.rules) for item in missing)
    for item in missing:
        for target in item.references:
            target_id = ids.get(target) or _find(connection, "NWFilter", name=target)
            _insert(connection, "FilterReference", sourceFilterId=ids[item.name], targetFilterId=target_id)
            added += 1
    return added


def _add_filter(connection: Connection, item: Filter) -> uuid.UUID:
    filter_id = _insert(
        connection,
        "NWFilter",
        name=item.name,
        internalName=f"ibay-{secrets.token_hex(8)}",
        uuid=uuid.uuid4(),
        description=item.description,
        chain=item.chain,
        priority=item.priority,
    )
    for rule in item.rules:
        _insert(connection, "FWRule", nwFilterId=filter_id, **rule)
    return filter_id


def _exists(connection: Connection, table: str, **columns: str) -> bool:
    return _find(connection, table, **columns) is not None


def _find(connection: Connection, table: str, **columns: str) -> uuid.UUID | None:
    """Return the id of one row with these values, or None."""
    conditions: list[sql.Composable] = [
        sql.SQL("{} = {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in columns
    ]
    select = sql.SQL('SELECT "id" FROM {} WHERE {} LIMIT 1').format(
        sql.Identifier(table), sql.SQL(" AND ").join(conditions or [sql.SQL("TRUE")])
    )
    row = connection.execute(select, columns).fetchone()
    return row[0] if row else None


def _insert(connection: Connection, table: str, **values: object) -> uuid.UUID:
    """Insert a row and return its id."""
    insert = sql.SQL('INSERT INTO {} ({}) VALUES ({}) RETURNING "id"').format(
        sql.Identifier(table),
        sql.SQL(", ").join(map(sql.Identifier, values)),
        sql.SQL(", ").join(map(sql.Placeholder, values)),
    )
    row = connection.execute(insert, values).fetchone()
    assert row is not None  # RETURNING of one inserted row
    return uuid.UUID(str(row[0]))
