"""The database, as backup and restore see it: statements over a socket, a snapshot, what the tables add up to.

Everything in the application's database runs as the role that owns it, so that nothing which that role can define (casts,
operators, functions, defaults, triggers, views) runs with more rights than it has. The superuser connects to the database
``postgres`` only, where the application's roles may not connect; pg_hba.conf refuses it in every other.
"""

from __future__ import annotations

import hashlib
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from golden.core import CHECK_FAILED, Problem, run
from golden.stream import as_user, drain, program

BINARIES = Path("/usr/lib/postgresql/17/bin")
APPLICATION, ADMINISTRATION = "app", "postgres"
SUPERUSER, OWNER = "postgres", "app_owner"
# The system user of the programs that connect as the owner (pg_ident.conf).
CLIENT_USER = "golden-backup"
# In the start of a connection, where it wins over what ALTER DATABASE and ALTER ROLE have set.
SEARCH_PATH = "options='-c search_path=pg_catalog'"
# Rows are compared by the text that COPY writes: it must not depend on who asks. With row_security off, COPY fails where
# a policy would leave rows out.
FIXED = (
    "SET datestyle TO 'iso, ymd'; SET intervalstyle TO 'postgres'; SET timezone TO 'UTC'; SET bytea_output TO 'hex'; "
    "SET extra_float_digits TO 1; SET statement_timeout TO 0; SET row_security TO off;"
)
# The names in hexadecimal digits, because a name may contain line feeds. A partitioned table has its rows in its
# partitions; tables of an extension are not in a dump.
TABLES = (
    "SELECT encode(convert_to(format('%I.%I', n.nspname, c.relname), 'UTF8'), 'hex') FROM pg_class AS c "
    "JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.relkind = 'r' AND c.relpersistence <> 't' "
    "AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND NOT EXISTS (SELECT FROM pg_depend AS d "
    "WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e') ORDER BY n.nspname, c.relname;"
)


@dataclass(frozen=True)
class Server:
    """A running server: where its socket is."""

    socket: Path = Path("/run/postgresql")

    def argv(self, tool: str, database: str, *words: str) -> list[str]:
        """Return the argv of one of PostgreSQL's programs, connected to a database as its owner."""
        return as_user(CLIENT_USER, self._connect(tool, database, OWNER, *words))

    def psql(self, database: str) -> list[str]:
        """Return the argv of a psql that reads statements and writes rows, tab between columns, as the owner."""
        return self.argv("psql", database, *PSQL)

    def administer(self, statements: str) -> list[list[str]]:
        """Run statements as the superuser, in its own database; return the rows of what they answer."""
        argv = self._connect("psql", ADMINISTRATION, SUPERUSER, *PSQL)
        return _rows(run(as_user(SUPERUSER, argv), stdin=statements.encode(), timeout=3600).stdout)

    def ask(self, statements: str, *, database: str) -> list[list[str]]:
        """Run statements in a database as its owner; return the rows of what they answer."""
        return _rows(run(self.psql(database), stdin=statements.encode(), timeout=3600).stdout)

    def exists(self, database: str) -> bool:
        """Return True if there is a database of that name."""
        return [database] in self.administer("SELECT datname FROM pg_database")

    def make(self, database: str) -> None:
        """Create an empty database with the rights that the application's has."""
        self.administer(
            f"CREATE DATABASE {database} OWNER {OWNER} TEMPLATE template0;\n"
            f"REVOKE ALL ON DATABASE {database} FROM PUBLIC;\nGRANT CONNECT ON DATABASE {database} TO app;"
        )

    def drop(self, database: str) -> None:
        """Remove a database, and whoever is connected to it."""
        self.administer(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")

    def tables(self, database: str) -> dict[str, dict[str, Any]]:
        """Return what each table of a database adds up to."""
        with Session(self, database).open() as session:
            return session.tables()

    @contextmanager
    def restoring(self, database: str) -> Iterator[IO[bytes]]:
        """Yield a stream that takes a dump; at the end of the block it is in the database, whole or not at all."""
        argv = self.argv("pg_restore", database, "--exit-on-error", "--single-transaction")
        with program(argv, stdin=subprocess.PIPE, name="pg_restore") as process:
            assert process.stdin is not None
            yield process.stdin

    def _connect(self, tool: str, database: str, role: str, *words: str) -> list[str]:
        place = f"host={self.socket} user={role} dbname={database} {SEARCH_PATH}"
        return [str(BINARIES / tool), "--no-password", *words, f"--dbname={place}"]


PSQL = ("-X", "-A", "-t", "-q", "-F", "\t", "-v", "ON_ERROR_STOP=1")


def _rows(output: bytes) -> list[list[str]]:
    return [line.split("\t") for line in output.decode().splitlines() if line]


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

    def _answers(self, statement: str) -> Iterator[bytes]:
        """Run a statement; yield the lines of its answer, without their ends."""
        assert self._process is not None
        assert self._process.stdout is not None
        # Random, so that no row can be taken for it.
        end = secrets.token_hex(16)
        self._say(f"{statement}\n\\echo {end}")
        while (line := self._process.stdout.readline()) not in (f"{end}\n".encode(), b""):
            yield line.removesuffix(b"\n")
        if not line:
            # Its own message is shown when it is reaped.
            raise BrokenPipeError

    def tables(self) -> dict[str, dict[str, Any]]:
        """Return number of rows and a checksum of each table."""
        names = [bytes.fromhex(line.decode()).decode() for line in self._answers(TABLES)]
        return {name: self._content(name) for name in names}

    def _content(self, table: str) -> dict[str, Any]:
        """Count and hash the rows of a table as COPY writes them, a line each: no cast to text is looked up for that.

        The sum over the rows' hashes is the same in any order of the rows.
        """
        rows = total = 0
        for line in self._answers(f"COPY {table} TO STDOUT;"):
            rows += 1
            total += int.from_bytes(hashlib.sha256(line).digest()[:8])
        return {"rows": rows, "content": str(total)}

    @contextmanager
    def dump(self) -> Iterator[IO[bytes]]:
        """Yield a stream with the dump of this very snapshot."""
        (snapshot,) = self._answers("SELECT pg_export_snapshot();")
        argv = self._server.argv("pg_dump", self._database, "--format=custom", f"--snapshot={snapshot.decode()}")
        with program(argv, stdout=subprocess.PIPE, name="pg_dump") as process:
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
