"""The tables of the image's demonstration, put aside for an application that cannot live beside them.

Django keeps one history of migrations in a database. The demonstration's tables are there from the first boot, with Django's
own user model; an application with another one is refused by Django then (InconsistentMigrationHistory). If the
demonstration is unused, its schema gets another name, and the application an empty one. Nothing is removed.
"""

from __future__ import annotations

REFUSED = "InconsistentMigrationHistory"
# Whoever defines something in a schema cannot have it run here: nothing is looked up without its schema.
CONNECT = ("psql", "--no-psqlrc", "--quiet", "--single-transaction", "--set=ON_ERROR_STOP=1", "--host=/run/postgresql",
           "--username=app_owner", "--dbname=app")  # fmt: skip
FIXED = "SET search_path TO pg_catalog;\n"
# A division by zero ends the transaction, and with it the command. The rest is what app.sql (35-app-database) does
# for the first schema.
PUT = """SELECT 1 / (NOT EXISTS (SELECT FROM public.auth_user) AND NOT EXISTS (SELECT FROM public.pages_upload))::int;
ALTER SCHEMA public RENAME TO demonstration;
CREATE SCHEMA public;
GRANT USAGE ON SCHEMA public TO app;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO app;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT USAGE ON SEQUENCES TO app;
"""
BACK = """DROP SCHEMA public CASCADE;
ALTER SCHEMA demonstration RENAME TO public;
"""
STATEMENTS = {"put": FIXED + PUT, "back": FIXED + BACK}
