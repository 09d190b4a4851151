"""The application's Python packages: a lock with hashes, and a wheelhouse fetched from the package index by pip.

The guest never uses the index: wheels for its Python are fetched on the host, checked against the lock by pip itself,
and installed in the image offline.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from build.core import files, json_text, log, run
from build.core.errors import StepFailed
from build.packages.wheel_lock import GUEST_ENVIRONMENT, GUEST_PLATFORMS, GUEST_PYTHON, Pin, Wheel, normal, read

GUEST_TARGET = (
    "--only-binary=:all:", "--implementation", "cp", "--python-version", GUEST_PYTHON,
    "--abi", "cp313", "--abi", "abi3", "--abi", "none",
    *(word for platform in (*GUEST_PLATFORMS, "any") for word in ("--platform", platform)),
)  # fmt: skip
PIP_SECONDS = 600
# pip can fetch wheels for another Python, but evaluates environment markers for the one that it runs with.
GUEST_PIP = f"""
import sys
from pip._vendor.packaging import markers
markers.default_environment = lambda: dict({GUEST_ENVIRONMENT!r})
from pip._internal.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
NO_MATCH = re.compile(r"No matching distribution found for ([A-Za-z0-9][A-Za-z0-9._-]*)")
OWN_WHEELS = "build one (pip wheel --no-deps NAME==VERSION) and put it into wheels/ of the project, or use another package"


def pip(*words: str) -> list[str]:
    """Return the argv of the pip that belongs to the running Python; markers are evaluated for the guest's."""
    return [sys.executable, "-I", "-c", GUEST_PIP, "--disable-pip-version-check", "--no-input", *words]


def resolve(requirements: Path, *, scratch: Path) -> tuple[Wheel, ...]:
    """Resolve ``requirements.in`` for the guest's Python: every wheel with its hash, dependencies included."""
    report = scratch / "report.json"
    run.run(
        pip("install", "--dry-run", "--ignore-installed", "--quiet", "--report", str(report), "--target",
            str(scratch / "target"), *GUEST_TARGET, "--requirement", str(requirements)),
        timeout=PIP_SECONDS, hint=f"check {requirements}, and that the package index is reachable",
    )  # fmt: skip
    wheels = []
    for item in json_text.parse(report.read_text())["install"]:
        checksum = item["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256", "")
        name, version = item["metadata"]["name"].lower().replace("_", "-"), item["metadata"]["version"]
        if not checksum:
            raise StepFailed(f"{name} {version} comes without a hash from the package index")
        wheels.append(Wheel(name, version, checksum))
    return tuple(sorted(wheels, key=lambda wheel: wheel.name))


def fetch(lock: Path, *, cache: Path, shown: Path | None = None) -> Path:
    """Return a directory with every wheel of the lock, fetched if it is not in the cache yet.

    ``shown`` is the file named in errors, if ``lock`` was made from it. Raises StepFailed when the index lacks wheels
    (all of them are listed), or has a wheel with another hash.
    """
    wheelhouse = cache / "wheels" / files.sha256_file(lock)
    if wheelhouse.is_dir():
        return wheelhouse
    with files.lock(wheelhouse.parent / ".fetch.lock", waiting="another process fetches the wheels; waiting for it"):
        if not wheelhouse.is_dir():
            _download(lock, wheelhouse, shown=shown or lock)
    return wheelhouse


def _download(lock: Path, wheelhouse: Path, *, shown: Path) -> None:
    missing: list[str] = []
    with log.step("Fetching the application's wheels"), files.scratch(wheelhouse.parent) as scratch:
        content = read(lock)
        pins = list(content.pins)
        house, requirements = scratch / "wheels", scratch / "requirements.lock"
        house.mkdir()
        while pins:
            requirements.write_text("\n".join([*content.sources, *(pin.line() for pin in pins)]) + "\n", encoding="utf-8")
            done = run.run(
                pip("download", "--quiet", "--no-deps", "--require-hashes", "--cache-dir", str(scratch / "pip"),
                    *GUEST_TARGET, "--requirement", str(requirements), "--dest", str(house)),
                timeout=PIP_SECONDS, check=False,
            )  # fmt: skip
            if done.returncode == 0:
                break
            absent = _without_wheel(done.stderr, pins, content.sources)
            if absent is None:
                last = run.tail(done.stderr.strip() or done.stdout)
                raise StepFailed(
                    f"pip cannot fetch the wheels of {shown}", details="\n".join([*missing, last]),
                    hint="check that the package index is reachable; if a hash differs, write the lock again: nox -s lock",
                )  # fmt: skip
            missing.append(f"{absent.name} {absent.version} has no wheel for CPython {GUEST_PYTHON} on x86_64")
            # Without it, pip reports the next one.
            pins.remove(absent)
        if missing:
            raise StepFailed(
                f"{shown}: only wheels are installed on a clone, and the package index has none for {len(missing)} of the"
                f" packages", details="\n".join(missing), hint=OWN_WHEELS,
            )  # fmt: skip
        files.commit_directory(house, wheelhouse)


def _without_wheel(stderr: str, pins: Sequence[Pin], sources: Sequence[str]) -> Pin | None:
    """Return the pin that pip found no wheel for, if the index has the version in another form; None for other failures."""
    match = NO_MATCH.search(stderr)
    pin = next((pin for pin in pins if match and pin.name == normal(match[1])), None)
    if pin is None:
        return None
    options = [word for source in sources for word in source.split(" ", 1)]
    listed = run.run(pip("index", "versions", "--ignore-requires-python", "--pre", *options, pin.name),
                     timeout=PIP_SECONDS, check=False)  # fmt: skip
    versions = re.search(r"^Available versions: (.*)$", listed.stdout, re.MULTILINE)
    return pin if versions and pin.version in versions[1].split(", ") else None
