"""The restore drill: a backup of this clone, restored into a separate cluster, and compared row by row.

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

from golden import restore
from golden.backup import make
from golden.core import CHECK_FAILED, Problem, run, write_whole
from golden.postgres import APPLICATION, Server
from golden.stream import as_user

# The cluster's directory and its socket's belong to the server's user; tmpfiles.d creates them.
STATE = Path("/var/lib/golden-restore")
CLUSTER = STATE / "cluster"
MEDIA = STATE / "media"
SOCKET = Path("/run/golden-restore")
SERVER_UNIT, SERVER_USER = "golden-restore-server.service", "golden-restore"
# Creates the real cluster too: golden-database.service.
MAKE_CLUSTER = Path("/usr/lib/golden/database")
START_SECONDS = 900


def drill(backup: restore.Source | None) -> dict[str, Any]:
    """Restore a verified backup, or one that is made for this, into a scratch cluster; return what was found."""
    own = backup is None
    for left in STATE.glob("*.tar.age*"):
        left.unlink()
    try:
        if backup is None:
            identity, recipient = ephemeral_key()
            archive, _manifest = make(recipient, STATE)
            backup = restore.source(archive, identity, signers=[])
        started = time.monotonic()
        manifest = restore.check(backup)
        with scratch_cluster() as server, scratch_media() as media:
            found = restore.fill(backup, server=server, database=APPLICATION, media=media)
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
    """Run a separate database server during the block, with the roles of the real one and an empty database.

    The unit confines it as the real one is confined, and hides the real one from it.
    """
    _end()
    try:
        run(as_user(SERVER_USER, [MAKE_CLUSTER, CLUSTER / "main"]), timeout=START_SECONDS)
        run(["systemctl", "start", SERVER_UNIT], timeout=START_SECONDS)
        yield Server(SOCKET)
    finally:
        _end()


def _end() -> None:
    """Stop the server and remove its cluster; a drill that was killed may have left both."""
    run(["systemctl", "stop", SERVER_UNIT], timeout=START_SECONDS)
    run(as_user(SERVER_USER, ["find", str(CLUSTER), "-mindepth", "1", "-delete"]))


@contextmanager
def scratch_media() -> Iterator[Path]:
    """Provide an empty directory during the block."""
    shutil.rmtree(MEDIA, ignore_errors=True)
    MEDIA.mkdir(mode=0o700)
    try:
        yield MEDIA
    finally:
        shutil.rmtree(MEDIA)
