"""Units and formats that more than one package reads or writes: binary sizes, and times in UTC."""

from __future__ import annotations

from datetime import UTC, datetime

# Bytes in each unit of Proxmox VE, QEMU and our own files: all of them mean powers of two.
UNIT_BYTES = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
KIB, MIB, GIB = UNIT_BYTES["K"], UNIT_BYTES["M"], UNIT_BYTES["G"]
# ISO 8601 with seconds, as locks, manifests, labels and the ledger have it.
STAMP = "%Y-%m-%dT%H:%M:%SZ"


def size_bytes(number: str, unit: str) -> int:
    """Return a size such as ``1.5`` and ``G`` in bytes. Raises KeyError for an unknown unit."""
    return int(float(number) * UNIT_BYTES[unit])


def stamp(when: datetime) -> str:
    """Return a time as text in UTC; ``when`` has a time zone."""
    return when.astimezone(UTC).strftime(STAMP)


def stamp_of(epoch: float) -> str:
    """Return seconds since 1970 as text in UTC."""
    return stamp(datetime.fromtimestamp(epoch, UTC))


def stamp_now() -> str:
    """Return the current time as text in UTC."""
    return stamp(datetime.now(UTC))


def seconds_of(text: str) -> float:
    """Return the text of a time in seconds since 1970; raise ValueError when it is not one."""
    return datetime.strptime(text, STAMP).replace(tzinfo=UTC).timestamp()
