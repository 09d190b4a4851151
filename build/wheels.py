"""The application's Python packages: a lock with hashes, and a wheelhouse fetched from the package index by pip.

The guest never asks the index: wheels for its Python are fetched on the host, checked against the lock by pip itself,
and installed in the image offline.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from build import files, log, run
from build.errors import CommandFailed, StepFailed
from build.wheel_lock import GUEST_PYTHON, Wheel

# What Debian 13's CPython 3.13 with glibc 2.41 accepts; the older names cover wheels that were built once for all.
GUEST_TARGET = (
    "--only-binary=:all:", "--implementation", "cp", "--python-version", GUEST_PYTHON,
    "--abi", "cp313", "--abi", "abi3", "--abi", "none",
    "--platform", "manylinux_2_28_x86_64", "--platform", "manylinux_2_17_x86_64",
    "--platform", "manylinux2014_x86_64", "--platform", "any",
)  # fmt: skip
PIP_SECONDS = 600


def pip(*words: str) -> list[str]:
    """Return the argv of the pip that belongs to the running Python."""
    return [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *words]


def resolve(requirements: Path, *, scratch: Path) -> tuple[Wheel, ...]:
    """Resolve ``requirements.in`` for the guest's Python: every wheel with its hash, dependencies included."""
    report = scratch / "report.json"
    run.run(
        pip("install", "--dry-run", "--ignore-installed", "--quiet", "--report", str(report), "--target",
            str(scratch / "target"), *GUEST_TARGET, "--requirement", str(requirements)),
        timeout=PIP_SECONDS, hint=f"check {requirements}, and that the package index is reachable",
    )  # fmt: skip
    wheels = []
    for item in json.loads(report.read_text())["install"]:
        checksum = item["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256", "")
        name, version = item["metadata"]["name"].lower().replace("_", "-"), item["metadata"]["version"]
        if not checksum:
            raise StepFailed(f"{name} {version} comes without a hash from the package index")
        wheels.append(Wheel(name, version, checksum))
    return tuple(sorted(wheels, key=lambda wheel: wheel.name))


def fetch(lock: Path, *, cache: Path) -> Path:
    """Return a directory with every wheel of the lock, fetched if it is not in the cache yet.

    Raises StepFailed when the index lacks a wheel or serves another one than the lock names.
    """
    wheelhouse = cache / "wheels" / files.sha256_file(lock)
    if wheelhouse.is_dir():
        return wheelhouse
    with log.step("Fetching the application's wheels"), files.scratch(cache / "wheels") as scratch:
        try:
            run.run(
                pip("download", "--quiet", "--no-deps", "--require-hashes", "--no-cache-dir", *GUEST_TARGET,
                    "--requirement", str(lock), "--dest", str(scratch)),
                timeout=PIP_SECONDS,
            )  # fmt: skip
        except CommandFailed as error:
            raise StepFailed(
                f"pip cannot fetch the wheels of {lock}", details=error.details,
                hint="is the package index reachable? a hash that does not match means another file: nox -s lock",
            ) from error  # fmt: skip
        if not wheelhouse.is_dir():
            files.commit_directory(scratch, wheelhouse)
    return wheelhouse
