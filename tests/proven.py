"""A small artifact that verifies: locks of a few files, results of a few tests, and everything that follows from them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from build.artifact import artifact, assemble, sbom
from build.artifact.artifact import Artifact
from build.artifact.manifest import SCHEMA, Manifest
from build.artifact.sbom import Kind, Origin
from build.core import files, run
from build.core.cache import StageKey, stage_key
from build.machines import disk_image
from build.packages import wheel_lock
from build.packages.lock import Lock
from build.packages.wheel_lock import Wheel
from build.spec import inputs
from tests.unit.helpers import DATE, entry, make_lock

VENV = "/opt/app/venv"
WHEELS = (Wheel("django", "5.2.19", "d" * 64), Wheel("psycopg", "3.3.9", "e" * 64))
WHEEL_LOCK = "wheels/40-app/requirements.lock"
TREE = "# path\ttype\n/\tdirectory\n/etc\tdirectory\n"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def locks() -> tuple[Lock, Lock]:
    packages = make_lock(entry("nginx"), entry("libstdc++6", version="1:14.2.0-19~x"), entry("age", version="1.2.1-1+b5"))
    return packages, make_lock(entry("base-installer"))


def junit(passed: int, skipped: int = 0) -> str:
    cases = ['<testcase classname="tests.image.test_x" name="test_y" />'] * passed
    cases += ['<testcase classname="tests.image.test_x" name="test_z"><skipped message="x" /></testcase>'] * skipped
    return f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>"


def stages(spec: Mapping[str, Any], packages: Lock, installer: Lock, requirements: str) -> dict[str, StageKey]:
    """Return the keys of the stages, with as much of their inputs as verification looks at."""
    own: dict[str, dict[str, Any]] = {
        "base": {"packages": inputs.lock_input(packages)},
        "rootfs": {"wheels": [[VENV, hashlib.sha256(requirements.encode()).hexdigest()]]},
        "media": {"installer": inputs.lock_input(installer), "spec": {"name": spec["name"], "version": spec["version"]}},
        "disk": {"size_mib": 64}, "verify": {"spec": files.digest(spec)[:16]},
        "artifact": {"name": spec["name"], "version": spec["version"]},
    }  # fmt: skip
    keys: dict[str, StageKey] = {}
    previous = None
    for stage in inputs.STAGES:
        previous = keys[stage] = stage_key(stage, own[stage], previous)
    return keys


def make(
    root: Path, image: Path, *, name: str = "golden", version: str = "1.2.3", virtual_mib: int = 64,
    spec: Mapping[str, Any] | None = None, passed: int = 3, by: str = "", checkout: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Artifact:  # fmt: skip
    """Commit an artifact of ``image`` below ``root``; ``changes`` are keys of its manifest, ``checkout`` of its inputs.

    ``by`` names the party that attests its tests.
    """
    packages, installer = locks()
    told = {"layers": ["40-app"], **(spec or {}), "name": name, "version": version}
    requirements = wheel_lock.render(WHEELS)
    keys = stages(told, packages, installer, requirements)
    facts: dict[str, dict[str, Any]] = {
        "rootfs": {"squashfs_sha256": "a" * 64, "tar_sha256": "b" * 64, "paths": TREE.count("\n") - 1},
        "media": {"iso_sha256": "c" * 64},
    }
    described: dict[str, Any] = {
        "schema": SCHEMA, "name": name, "version": version, "goldsmith": "0.1.0",
        "image": {
            "file": disk_image.IMAGE, "format": "qcow2", "sha256": files.sha256_file(image), "bytes": image.stat().st_size,
            "virtual_mib": virtual_mib,
        },
        "inputs": {
            "artifact_key": keys["artifact"].key, "stage_keys": {stage: key.key for stage, key in keys.items()},
            "archive_date": DATE, "commit": COMMIT, "dirty": False, "spec": told, "layers": {"40-app": "f" * 64},
            "squashfs_sha256": "a" * 64, "rootfs_tar_sha256": "b" * 64, **(checkout or {}),
        },
        "packages": packages.versions(), "installer": installer.versions(),
        "wheels": {"40-app": {"venv": VENV, "lock": WHEEL_LOCK, "packages": {one.name: one.version for one in WHEELS}}},
        "tools": {"packer": "Packer 1.11.2"}, "accelerator": {"kind": "kvm", "reason": ""},
        "retries": {"installer": 0, "clones": 0},
        "built": {
            "builder": "goldsmith:local-build", "invocation": "1", "started": DATE, "finished": DATE,
            "remote": "https://example.org/golden.git",
        },
        "stages": [
            {"stage": stage, "key": keys[stage].key, "seconds": 1.0, "reused": True, "facts": facts.get(stage, {})}
            for stage in inputs.STAGES[:-1]
        ],
        **changes,
        "verification": {
            "passed": passed, "failed": 0, "skipped": 1, "clones": ["bios", "uefi"], "boot": {},
            **({"by": by} if by else {}), **changes.get("verification", {}),
        },
    }  # fmt: skip
    contents: dict[str, Path | str] = {
        disk_image.IMAGE: image, artifact.TREE: TREE, artifact.ROOTFS_LOCK: packages.render("The packages."),
        artifact.INSTALLER_LOCK: installer.render("The installer."), WHEEL_LOCK: requirements,
        artifact.INPUTS: json.dumps({stage: key.inputs for stage, key in keys.items()}),
        artifact.JUNIT: junit(passed, skipped=1), "logs/x.log": "log",
    }  # fmt: skip
    origin = {"nginx": Origin("nginx", "1.0-1", ("BSD-2-clause", "GPL-2+"))}
    parts = sbom.debs(packages, Kind.DEB, origin) + sbom.debs(installer, Kind.UDEB)
    parts += sbom.wheels(VENV, [wheel_lock.Pin(one.name, one.version, (one.sha256,)) for one in WHEELS],
                         {"django": Origin(expression="BSD-3-Clause")})  # fmt: skip
    manifest = Manifest.read(described, artifact.MANIFEST)
    contents |= assemble.documents(manifest, contents, tuple(parts))
    return artifact.commit(root, contents=contents, manifest=manifest)


@contextmanager
def opened(path: Path) -> Iterator[Path]:
    """Make an artifact writable, as a user does who modifies it in spite of its permissions."""
    for one in [path, *path.rglob("*")]:
        one.chmod(0o755 if one.is_dir() else 0o644)
    yield path


def rewrite_sums(path: Path) -> None:
    """Write SHA256SUMS again, as an attacker does who knows the file."""
    (path / artifact.SUMS).write_text(artifact.sums(path))


def make_key(directory: Path, name: str, *, kind: str = "ed25519", passphrase: str = "") -> Path:
    """Make an SSH key whose comment is ``name``; return the private one."""
    directory.mkdir(exist_ok=True)
    key = directory / name.partition("@")[0]
    words = ["-b", "2048"] if kind == "rsa" else []
    # One round is enough for a secret in a test.
    words += ["-a", "1"] if passphrase else []
    run.run(["ssh-keygen", "-q", "-t", kind, *words, "-N", passphrase, "-C", name, "-f", key], timeout=60)
    return key


def allow(path: Path, *keys: Path, options: str = 'namespaces="goldsmith-artifact"') -> Path:
    """Write an allowed signers file: each key under the name in its comment."""
    lines = []
    for key in keys:
        public = key.with_suffix(".pub").read_text().strip()
        lines.append(f"{public.split()[-1]} {options} {public}\n")
    path.write_text("".join(lines))
    return path


def copy(found: Artifact, target: Path) -> Artifact:
    """Copy an artifact and its signatures elsewhere."""
    shutil.copytree(found.path, target / found.path.name)
    signatures = found.path.with_name(f"{found.path.name}.signatures")
    if signatures.is_dir():
        shutil.copytree(signatures, target / signatures.name)
    return artifact.load(target / found.path.name)
