"""The identities of the disk (UUIDs, seeds, GUIDs): derived from the content instead of generated randomly.

Two installations of the same inputs then have the same /etc/fstab and the same boot loader, and two releases never
share an identity. The file systems get theirs while the installer creates them
(``preseed/initrd/usr/lib/goldsmith/identity``), because it writes them to files; the partition table gets its GUIDs
afterwards, because libparted cannot set them.
"""

from __future__ import annotations

import hashlib
import uuid
from pathlib import Path

from build.core import json_text, run
from build.core.errors import StepFailed

# The table for the installer's mkfs: PARTITION UUID HASH-SEED in each line, after the creation time of file systems.
TABLE = "etc/goldsmith/identities"
# The maximum of GPT; each partition has an identity.
PARTITIONS = 128
SFDISK_SECONDS = 60


def seed_of(*parts: bytes) -> str:
    """Return the seed of an installation from its contents: SHA-256 over the SHA-256 of each."""
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def derive(seed: str, name: str) -> str:
    """Return the UUID for ``name``: version 5 of RFC 9562, in the namespace of the seed."""
    return str(uuid.uuid5(uuid.uuid5(uuid.NAMESPACE_OID, seed), name))


def table(seed: str, *, epoch: int) -> str:
    """Return the installer's table; ``epoch`` is in seconds since 1970."""
    lines = (f"{n} {derive(seed, f'file system {n}')} {derive(seed, f'hash seed {n}')}\n" for n in range(1, PARTITIONS + 1))
    return f"epoch {epoch}\n{''.join(lines)}"


def seal_table(raw: Path, seed: str, *, log: Path) -> None:
    """Set the GUIDs of the partition table of a raw disk and of each partition.

    Raises StepFailed if the disk has no GUID partition table.
    """
    sfdisk = run.which("sfdisk", reason="set the GUIDs of the partition table")
    done = run.run([sfdisk, "--json", raw], timeout=SFDISK_SECONDS, log=log, check=False)
    partition_table = json_text.parse(done.stdout)["partitiontable"] if done.returncode == 0 else {}
    if partition_table.get("label") != "gpt":
        raise StepFailed("the installed disk has no GUID partition table", details=run.tail(done.stderr.strip()))
    run.run([sfdisk, "--quiet", "--disk-id", raw, derive(seed, "table").upper()], timeout=SFDISK_SECONDS, log=log)
    for partition in partition_table.get("partitions", []):
        number = partition["node"].removeprefix(str(raw))
        guid = derive(seed, f"partition {number}").upper()
        run.run([sfdisk, "--quiet", "--part-uuid", raw, number, guid], timeout=SFDISK_SECONDS, log=log)
