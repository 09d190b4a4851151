"""The database, as backup and restore see it: statements over a socket, a snapshot, what the tables add up to."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from golden import CHECK_FAILED, Problem, run
from golden_stream import as_postgres, drain, program

BINARIES = Path("/usr/lib/postgresql/17/bin")
APPLICATION = "app"
# Rows are compared by their text: it must not depend on who asks.
FIXED = (
    "SET datestyle TO 'iso, ymd'; SET intervalstyle TO 'postgres'; SET timezone TO 'UTC'; SET bytea_output TO 'hex'; "
    "SET extra_float_digits TO 1; SET search_path TO ''; SET statement_timeout TO 0;"
)
TABLES = (
    "SELECT format('%I.%I', schemaname, tablename) FROM pg_catalog.pg_tables "
    "WHERE schemaname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1;"
)
# The sum over the rows' hashes is the same in any order of the rows.
CONTENT = (
    "SELECT count(*), coalesce(sum(('x' || left(encode(sha256(convert_to(t::text, 'UTF8')), 'hex'), 15))::bit(60)::bigint"
    "::numeric), 0) FROM {table} AS t;"
)


@dataclass(frozen=True)
class Server:
    """A running server: where its socket is."""

    socket: Path = Path("/run/postgresql")

    def argv(self, tool: str, *words: str) -> list[str]:
        """Return the argv of one of PostgreSQL's programs that talks to this server as its administrator."""
        return as_postgres([BINARIES / tool, f"--host={self.socket}", "--username=postgres", "--no-password", *words])

    def psql(self, database: str) -> list[str]:
        """Return the argv of a psql that reads statements and writes rows, tab between columns."""
        return self.argv("psql", "-X", "-A", "-t", "-q", "-F", "\t", "-v", "ON_ERROR_STOP=1", "-d", database)

    def ask(self, statements: str, *, database: str = "postgres") -> list[list[str]]:
        """Run statements; return the rows of what they answer."""
        done = run(self.psql(database), stdin=statements.encode(), timeout=3600)
        return [line.split("\t") for line in done.stdout.decode().splitlines() if line]

    def exists(self, database: str) -> bool:
        """Say whether there is a database of that name."""
        return [database] in self.ask("SELECT datname FROM pg_database")

    def make(self, database: str) -> None:
        """Make an empty database with the rights that the application's has."""
        self.ask(
            f"CREATE DATABASE {database} OWNER app_owner TEMPLATE template0;\n"
            f"REVOKE ALL ON DATABASE {database} FROM PUBLIC;\nGRANT CONNECT ON DATABASE {database} TO app;"
        )

    def drop(self, database: str) -> None:
        """Remove a database, and whoever is connected to it."""
        self.ask(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")

    def tables(self, database: str) -> dict[str, dict[str, Any]]:
        """Return what each table of a database adds up to."""
        with Session(self, database).open() as session:
            return session.tables()

    @contextmanager
    def restoring(self, database: str) -> Iterator[IO[bytes]]:
        """Yield a stream that takes a dump; at the end of the block it is in the database, whole or not at all."""
        words = ("--exit-on-error", "--single-transaction", f"--dbname={database}")
        with program(self.argv("pg_restore", *words), stdin=subprocess.PIPE, name="pg_restore") as process:
            assert process.stdin is not None
            yield process.stdin


class Session:
    """One transaction over a snapshot of a database; pg_dump can share the snapshot."""

    def __init__(self, server: Server, database: str) -> None:
        self._server, self._database = server, database
        self._process: subprocess.Popen[bytes] | None = None

    @contextmanager
    def open(self) -> Iterator[Session]:
        """Hold the transaction during the block."""
        argv = self._server.psql(self._database)
        with program(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, name="psql") as process:
            self._process = process
            self._say(f"{FIXED} BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;")
            yield self

    def _say(self, statement: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(statement.encode() + b"\n")
        self._process.stdin.flush()

    def _answers(self, statement: str) -> list[list[str]]:
        """Run a statement; return its rows."""
        assert self._process is not None
        assert self._process.stdout is not None
        self._say(f"{statement}\n\\echo .")
        rows = []
        while (line := self._process.stdout.readline()) not in (b".\n", b""):
            rows.append(line.decode().rstrip("\n").split("\t"))
        if not line:
            # The program's own words are told when it is reaped.
            raise BrokenPipeError
        return rows

    def tables(self) -> dict[str, dict[str, Any]]:
        """Return number of rows and a checksum of each table."""
        found = {}
        for (name,) in self._answers(TABLES):
            ((rows, content),) = self._answers(CONTENT.format(table=name))
            found[name] = {"rows": int(rows), "content": content}
        return found

    @contextmanager
    def dump(self) -> Iterator[IO[bytes]]:
        """Yield a stream with the dump of this very snapshot."""
        ((snapshot,),) = self._answers("SELECT pg_export_snapshot();")
        words = ("--format=custom", f"--snapshot={snapshot}", f"--dbname={self._database}")
        with program(self._server.argv("pg_dump", *words), stdout=subprocess.PIPE, name="pg_dump") as process:
            assert process.stdout is not None
            yield process.stdout
            drain(process.stdout)


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Return what differs between two results of ``tables``, a line each."""
    return [
        f"{name}: {expected.get(name, 'absent')} in the backup, {found.get(name, 'absent')} restored"
        for name in sorted({*expected, *found})
        if expected.get(name) != found.get(name)
    ]


def installed_version() -> str:
    """Return the version of the server that is installed, whether it runs or not."""
    return run([BINARIES / "postgres", "--version"]).stdout.decode().split()[2]


def compatible(theirs: str, ours: str) -> None:
    """Raise Problem when a dump of the server version ``theirs`` is not for a server of version ``ours``."""
    if int(theirs.partition(".")[0]) > int(ours.partition(".")[0]):
        raise Problem(f"the backup is of PostgreSQL {theirs}, and this clone has {ours}",
                      hint="restore it on a clone of a newer image", code=CHECK_FAILED)  # fmt: skip
