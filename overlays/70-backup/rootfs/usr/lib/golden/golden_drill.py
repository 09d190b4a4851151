"""The restore drill: a backup of this clone, restored into a cluster of its own, and compared row by row.

The private key of real backups is not here, and must not be. The drill therefore makes a key pair that lives in the
memory of this process and nowhere else, and goes the whole way with it. An operator who brings the key has the drill go
over a real backup instead.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import golden_restore
from golden import CHECK_FAILED, Problem, run, write_whole
from golden_backup import make
from golden_postgres import APPLICATION, BINARIES, Server
from golden_stream import as_postgres

# The cluster's directory and its socket's are postgres's; tmpfiles.d makes them, so that nobody has to change owners.
STATE = Path("/var/lib/golden-restore")
CLUSTER = STATE / "cluster"
MEDIA = STATE / "media"
SOCKET = Path("/run/golden-restore")
ROLES = Path("/usr/lib/golden/cluster.sql")
# It is thrown away: no room, and no waiting for the disk.
OPTIONS = (
    "-c listen_addresses= -c shared_buffers=32MB -c max_connections=10 -c jit=off -c fsync=off -c full_page_writes=off "
    f"-c autovacuum=off -c unix_socket_directories={SOCKET}"
)
START_SECONDS = 300


def drill(archive: Path | None, identity: Path | bytes | None) -> dict[str, Any]:
    """Restore ``archive`` with ``identity``, or a backup made for this, into a scratch cluster; return what was found."""
    own = archive is None
    for left in STATE.glob("*.tar.age*"):
        left.unlink()
    try:
        if archive is None:
            identity, recipient = ephemeral_key()
            archive, _manifest = make(recipient, STATE)
        assert identity is not None
        started = time.monotonic()
        manifest = golden_restore.check(archive, identity)
        with scratch_cluster() as server, scratch_media() as media:
            found = golden_restore.fill(archive, identity, server=server, database=APPLICATION, media=media)
        seconds = round(time.monotonic() - started, 1)
    finally:
        for left in STATE.glob("*.tar.age*") if own else ():
            left.unlink()
    tables = manifest["database"]["tables"]
    result = {
        "ok": not found, "when": datetime.now(UTC).isoformat(timespec="seconds"), "own_backup": own,
        "made": manifest["made"], "tables": tables, "rows": sum(table["rows"] for table in tables.values()),
        "media": manifest["media"], "differences": found, "rto_seconds": seconds,
    }  # fmt: skip
    write_whole(STATE / "last.json", json.dumps(result, indent=1, sort_keys=True).encode())
    if found:
        raise Problem(f"the drill restored something else: {found[0]} ({len(found)} differences)", code=CHECK_FAILED)
    return result


def ephemeral_key() -> tuple[bytes, str]:
    """Return a new private key, and its public half."""
    lines = run(["age-keygen"]).stdout.decode().splitlines()
    public = next(line.split(": ")[1] for line in lines if line.startswith("# public key: "))
    private = next(line for line in lines if line.startswith("AGE-SECRET-KEY-"))
    return f"{private}\n".encode(), public


@contextmanager
def scratch_cluster() -> Iterator[Server]:
    """Run a database server of our own during the block, with the roles of the real one and an empty database."""
    _empty_cluster()
    try:
        run(as_postgres([BINARIES / "initdb", f"--pgdata={CLUSTER}", "--username=postgres", "--auth-local=peer",
                         "--auth-host=reject", "--encoding=UTF8", "--locale-provider=builtin", "--locale=C.UTF-8",
                         "--no-instructions", "--no-sync", "--data-checksums"]), timeout=START_SECONDS)  # fmt: skip
        # What the server inherits must not be a pipe: the one who reads it would wait for the server's end.
        run(_control("start", "-l", str(CLUSTER / "log"), "-o", OPTIONS), timeout=START_SECONDS)
        try:
            server = Server(SOCKET)
            server.ask(ROLES.read_text())
            yield server
        finally:
            run(_control("stop", "-m", "immediate"), timeout=START_SECONDS)
    finally:
        _empty_cluster()


def _control(verb: str, *words: str) -> list[str]:
    return as_postgres([BINARIES / "pg_ctl", "-s", "-w", "-t", str(START_SECONDS), "-D", str(CLUSTER), verb, *words])


def _empty_cluster() -> None:
    if run(as_postgres(["test", "-e", CLUSTER / "postmaster.pid"]), check=False).returncode == 0:
        # A drill that was killed left it; the sandbox of its unit has ended the server itself.
        run(_control("stop", "-m", "immediate"), timeout=START_SECONDS, check=False)
    run(as_postgres(["find", str(CLUSTER), "-mindepth", "1", "-delete"]))


@contextmanager
def scratch_media() -> Iterator[Path]:
    """Provide an empty directory during the block."""
    shutil.rmtree(MEDIA, ignore_errors=True)
    MEDIA.mkdir(mode=0o700)
    try:
        yield MEDIA
    finally:
        shutil.rmtree(MEDIA)
