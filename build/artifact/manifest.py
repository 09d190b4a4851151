"""The manifest of an artifact: the image, its inputs, how it was built, and the results of its verification.

Every module reads these fields; only this one reads and writes ``manifest.json``. Schema 1 had neither wheels nor the
run (``built``); within both schemas a key with the default None is one that older versions of Goldsmith did not write.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from build.core import records
from build.core.errors import SpecError
from build.core.records import Record
from build.machines.acceleration import AcceleratorRecord
from build.packages import source_packages
from build.packages.source_packages import Origin
from build.packages.updates import PendingUpdates

SCHEMA = 2
READABLE = (1, SCHEMA)
FILE = "manifest.json"
REQUIRED = ("schema", "name", "version", "image", "inputs", "packages", "installer", "tools", "accelerator", "stages",
            "verification", "retries")  # fmt: skip
SINCE_SCHEMA_2 = ("wheels", "built")
# The duration of a clone's whole boot: seconds from its start until it could be tested.
READY_TIME = "ready"


@dataclass(frozen=True)
class Image(Record):
    """The pristine disk image: SHA-256, size of the file in bytes, and size of the virtual disk in MiB."""

    sha256: str
    bytes: int
    virtual_mib: int
    file: str | None = None
    format: str | None = None


@dataclass(frozen=True)
class BuildInputs(Record):
    """Inputs of the build: stage keys, date of the archive, commit, specification, layers.

    ``dirty`` is True if the checkout differed from its commit; None if that was not recorded.
    """

    archive_date: str
    artifact_key: str | None = None
    stage_keys: Mapping[str, str] | None = None
    lock_changes: tuple[str, ...] | None = None
    commit: str | None = None
    dirty: bool | None = None
    spec: Mapping[str, Any] | None = None
    layers: Mapping[str, str] | None = None
    squashfs_sha256: str | None = None
    rootfs_tar_sha256: str | None = None

    @property
    def administrator(self) -> str:
        """The name of the administrator's account, or an empty string."""
        admin = (self.spec or {}).get("admin")
        return str(admin.get("user", "")) if isinstance(admin, Mapping) else ""

    @property
    def release(self) -> str:
        """Debian's code name of the release, or an empty string."""
        return str((self.spec or {}).get("release", ""))


@dataclass(frozen=True)
class StageRecord(Record):
    """A stage: the seconds that it took when it ran, whether its result was reused, and the facts that it recorded.

    The facts stay plain data: they differ between versions of Goldsmith, and old artifacts must stay readable.
    """

    stage: str
    seconds: float
    reused: bool
    facts: Mapping[str, Any]
    key: str | None = None


@dataclass(frozen=True)
class Verification(Record):
    """Number of tests per result, the clones, and for each clone the seconds of its first boot until each milestone."""

    passed: int
    failed: int
    skipped: int
    clones: tuple[str, ...]
    boot: Mapping[str, Mapping[str, float]]

    @property
    def ready_seconds(self) -> tuple[float, ...]:
        """The seconds until each clone could be tested."""
        return tuple(times[READY_TIME] for times in self.boot.values() if READY_TIME in times)


@dataclass(frozen=True)
class AuditFigure(Record):
    """A metric of the audit: the number, and its text and limit as shown to the user (no limit: empty)."""

    value: float
    shown: str
    limit: str


@dataclass(frozen=True)
class Retries(Record):
    """How often a stage was restarted because of a kernel panic under emulation."""

    installer: int
    clones: int


@dataclass(frozen=True)
class Wheels(Record):
    """A Python environment of the image: its path, its lock's path in the artifact, and versions by name."""

    venv: str
    lock: str
    packages: Mapping[str, str]


@dataclass(frozen=True)
class Run(Record):
    """The run that built the artifact: builder, invocation, times, and the remote of the checkout (may be empty)."""

    builder: str
    invocation: str
    started: str
    finished: str
    remote: str


@dataclass(frozen=True)
class Manifest(Record):
    """The content of ``manifest.json``."""

    schema: int
    name: str
    version: str
    image: Image
    inputs: BuildInputs
    packages: Mapping[str, str]
    installer: Mapping[str, str]
    tools: Mapping[str, str]
    accelerator: AcceleratorRecord
    stages: tuple[StageRecord, ...]
    verification: Verification
    retries: Retries
    goldsmith: str | None = None
    wheels: Mapping[str, Wheels] | None = None
    built: Run | None = None
    audit: Mapping[str, AuditFigure] | None = None
    sources: Mapping[str, Origin] | None = field(
        default=None, metadata=records.codec(source_packages.read, source_packages.facts, source_packages.SCHEMA)
    )
    updates: PendingUpdates | None = None

    @classmethod
    def read(cls, value: object, where: str, *, schemas: tuple[int, ...] = READABLE) -> Self:
        """Return the manifest from a parsed JSON value; ``where`` names the file.

        Raises SpecError with the file and every key that is missing or has the wrong type.
        """
        schema = value.get("schema") if isinstance(value, dict) else None
        required = (*REQUIRED, *(SINCE_SCHEMA_2 if schema == SCHEMA else ()))
        missing = [key for key in required if not isinstance(value, dict) or key not in value]
        if missing or schema not in schemas:
            raise _no_manifest(where, f"missing: {', '.join(missing)}" if missing else "")
        try:
            return records.read(cls, value)
        except records.Unreadable as error:
            raise _no_manifest(where, "\n".join(error.problems)) from error

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data that :meth:`read` accepts."""
        return records.write(self)

    def stage(self, name: str) -> StageRecord | None:
        """Return the record of a stage; None when it was no longer in the cache when the artifact was assembled."""
        return next((record for record in self.stages if record.stage == name), None)


def _no_manifest(where: str, details: str) -> SpecError:
    return SpecError(
        f"{where} is not a manifest of schema {SCHEMA}", details=details,
        hint="it is damaged, or another version of Goldsmith wrote it: build the artifact again",
    )  # fmt: skip
