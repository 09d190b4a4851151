"""What an application may do in its database, as SQL that is generated from its contract (golden-app.yaml).

Two files for the database app, each safe to run again: ``roles.sql`` for the role of the application, ``owner.sql`` for the
owner of the tables. A role may set its own limits (ALTER ROLE): none of it needs a superuser, and the database may be on
another machine. What a contract does not declare is revoked; extensions, schemas and their content stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Contract = Mapping[str, Any]
OWNER, APPLICATION, DATABASE = "app_owner", "app", "app"
# First in each file, before anything that the tables' owner can define is looked up.
FIXED = "SET search_path TO pg_catalog;"
# The application's roles use other schemas than public only where the contract has them.
REVOKE_OTHERS = """\
DO $$
DECLARE
    other name;
BEGIN
    FOR other IN
        SELECT nspname FROM pg_catalog.pg_namespace
        WHERE nspowner = 'app_owner'::pg_catalog.regrole AND NOT nspname = ANY (ARRAY['public', 'demonstration']::name[])
        AND NOT nspname = ANY (ARRAY[{names}]::name[])
    LOOP
        EXECUTE pg_catalog.format('REVOKE USAGE ON SCHEMA %I FROM app', other);
    END LOOP;
END
$$;"""


def files(contract: Contract) -> dict[str, str]:
    """Return the files by name. Names of schemas and extensions were checked by the contract's patterns."""
    database = contract["database"]
    return {
        "roles.sql": "".join(f"{line}\n" for line in _roles(database)),
        "owner.sql": "".join(f"{line}\n" for line in _owner(database)),
    }


def _roles(database: Mapping[str, Any]) -> Iterator[str]:
    yield FIXED
    yield f"ALTER ROLE {APPLICATION} SET statement_timeout = '{database['statement_seconds']}s';"


def _owner(database: Mapping[str, Any]) -> Iterator[str]:
    yield FIXED
    yield f"ALTER ROLE {OWNER} SET statement_timeout = '{database['migration_seconds']}s';"
    right = f"GRANT TEMPORARY ON DATABASE {DATABASE} TO" if database["temporary_tables"] else (
        f"REVOKE TEMPORARY ON DATABASE {DATABASE} FROM"
    )  # fmt: skip
    yield f"{right} {APPLICATION};"
    for name in database["extensions"]:
        # One that the database trusts: its owner may create it.
        yield f'CREATE EXTENSION IF NOT EXISTS "{name}" WITH SCHEMA public;'
        # The schema may have been put aside with the tables of the demonstration (golden/aside.py).
        yield f'ALTER EXTENSION "{name}" SET SCHEMA public;'
    yield REVOKE_OTHERS.format(names=", ".join(f"'{name}'" for name in database["schemas"]))
    for name in database["schemas"]:
        yield f'CREATE SCHEMA IF NOT EXISTS "{name}" AUTHORIZATION {OWNER};'
        yield f'GRANT USAGE ON SCHEMA "{name}" TO {APPLICATION};'
        yield f'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA "{name}" TO {APPLICATION};'
        yield f'GRANT USAGE ON ALL SEQUENCES IN SCHEMA "{name}" TO {APPLICATION};'
        default = f'ALTER DEFAULT PRIVILEGES FOR ROLE {OWNER} IN SCHEMA "{name}" GRANT'
        yield f"{default} SELECT, INSERT, UPDATE, DELETE ON TABLES TO {APPLICATION};"
        yield f"{default} USAGE ON SEQUENCES TO {APPLICATION};"
