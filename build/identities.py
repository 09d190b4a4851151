"""The identities of the disk (UUIDs, seeds, GUIDs): derived from what is installed, where the tools would draw them.

Two installations of the same inputs then have the same /etc/fstab and the same boot loader, and two releases never share
an identity. The file systems get theirs while the installer makes them (``preseed/initrd/usr/lib/goldsmith/identity``),
because it writes them into files; the partition table gets its own afterwards, because libparted takes none.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from pathlib import Path

from build import run
from build.errors import StepFailed

# Where the installer's mkfs looks: PARTITION UUID HASH-SEED in each line, after the time that a new file system bears.
TABLE = "etc/goldsmith/identities"
# GPT has room for that many, and none of them may be without an identity.
PARTITIONS = 128
SFDISK_SECONDS = 60


def seed_of(*parts: bytes) -> str:
    """Return the seed of everything that these contents are installed as: SHA-256 over the SHA-256 of each."""
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def derive(seed: str, name: str) -> str:
    """Return the UUID of the thing called ``name``: version 5 of RFC 9562, in the name space that the seed makes."""
    return str(uuid.uuid5(uuid.uuid5(uuid.NAMESPACE_OID, seed), name))


def table(seed: str, *, epoch: int) -> str:
    """Return the installer's table; ``epoch`` is in seconds since 1970."""
    lines = (f"{n} {derive(seed, f'file system {n}')} {derive(seed, f'hash seed {n}')}\n" for n in range(1, PARTITIONS + 1))
    return f"epoch {epoch}\n{''.join(lines)}"


def seal_table(raw: Path, seed: str, *, log: Path) -> None:
    """Give the partition table of a raw disk, and each partition in it, a GUID of its own.

    Raises StepFailed when the disk has no GUID partition table.
    """
    sfdisk = run.which("sfdisk", reason="seal the partition table")
    done = run.run([sfdisk, "--json", raw], timeout=SFDISK_SECONDS, log=log, check=False)
    found = json.loads(done.stdout)["partitiontable"] if done.returncode == 0 else {}
    if found.get("label") != "gpt":
        raise StepFailed("the installer left a disk without a GUID partition table", details=run.tail(done.stderr.strip()))
    run.run([sfdisk, "--quiet", "--disk-id", raw, derive(seed, "table").upper()], timeout=SFDISK_SECONDS, log=log)
    for partition in found.get("partitions", []):
        number = partition["node"].removeprefix(str(raw))
        guid = derive(seed, f"partition {number}").upper()
        run.run([sfdisk, "--quiet", "--part-uuid", raw, number, guid], timeout=SFDISK_SECONDS, log=log)
