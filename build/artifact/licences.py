"""Origin and licences of the packages in a root file system, read from the root file system itself.

For Debian packages they are in ``/var/lib/dpkg/status``, and in ``/usr/share/doc/*/copyright`` if that is machine-readable
(https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/); for Python packages in the installed METADATA files
(https://packaging.python.org/en/latest/specifications/core-metadata/). If neither has them, they are left unknown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from email.parser import HeaderParser
from pathlib import Path

from build.artifact.sbom import Origin
from build.core import files, run
from build.packages import source_packages

STATUS = "var/lib/dpkg/status"
DOCUMENTS = "usr/share/doc"
METADATA = "lib/python3*/site-packages/*.dist-info/METADATA"
UNPACK_SECONDS = 300
# A longer text is a description of the licence, not its name.
LONGEST_NAME = 120


def read(squashfs: Path, venvs: Iterable[str], *, scratch: Path) -> tuple[dict[str, Origin], dict[str, dict[str, Origin]]]:
    """Return the origin of each Debian package by its name, and for each venv the origin of each wheel by its name."""
    with files.scratch(scratch) as directory:
        root = directory / "root"
        paths = [STATUS, DOCUMENTS, *(f"{venv.strip('/')}/{METADATA}" for venv in venvs)]
        run.run(
            ["unsquashfs", "-no-progress", "-quiet", "-no-xattrs", "-dest", root, squashfs, *paths], timeout=UNPACK_SECONDS
        )
        return debian(root), {venv: python(root / venv.strip("/")) for venv in venvs}


def debian(root: Path) -> dict[str, Origin]:
    """Return the origin of each installed package below ``root``."""
    origins = {}
    status = root / STATUS
    for stanza in status.read_text(encoding="utf-8").split("\n\n") if status.is_file() else ():
        if name := re.search(r"^Package: (.+)$", stanza, re.MULTILINE):
            package, source = name[1], source_packages.of_control(stanza).source
            copyright_file = _inside(root, f"{DOCUMENTS}/{package}/copyright")
            licences = tuple(_licences(copyright_file)) if copyright_file else ()
            origins[package] = Origin(source.name, source.version, licences)
    return origins


def _inside(root: Path, name: str) -> Path | None:
    """Return a file below ``root``, with links resolved as in the image; None when it does not exist."""
    path = root / name
    for _ in range(8):
        link = next(
            (part for part in [path, *path.parents] if part != root and root in part.parents and part.is_symlink()), None
        )
        if link is None:
            return path if path.is_file() else None
        target = link.readlink()
        base = root / target.relative_to("/") if target.is_absolute() else link.parent / target
        path = Path(*_normal(base / path.relative_to(link)))
        if root not in path.parents:
            return None
    return None


def _normal(path: Path) -> list[str]:
    parts: list[str] = []
    for part in path.parts:
        parts = parts[:-1] if part == ".." else [*parts, part]
    return parts


def _licences(path: Path) -> Iterator[str]:
    """Yield the licence names of a machine-readable copyright file, each once, in order; nothing for other files."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if not re.match(r"\s*Format: \S*copyright-format", text):
        return
    seen: set[str] = set()
    for stanza in re.split(r"\n\s*\n", text):
        name = re.search(r"^License:[ \t]*(\S.*)$", stanza, re.MULTILINE)
        # A stanza without files only has the text of a licence that another stanza names.
        if name and re.search(r"^(Files|Format):", stanza, re.MULTILINE):
            licence = re.sub(r"\s+", " ", name[1]).strip()
            if licence not in seen and len(licence) <= LONGEST_NAME:
                seen.add(licence)
                yield licence


def python(venv: Path) -> dict[str, Origin]:
    """Return the origin of each distribution that is installed in a Python environment."""
    origins = {}
    for path in sorted(venv.glob(METADATA)):
        head = HeaderParser().parsestr(path.read_text(encoding="utf-8", errors="replace"))
        expression, licence = str(head.get("License-Expression") or ""), str(head.get("License") or "")
        names = (licence,) if licence and "\n" not in licence and len(licence) <= LONGEST_NAME else ()
        name = re.sub(r"[-_.]+", "-", str(head["Name"])).lower()
        origins[name] = Origin(licences=() if expression else names, expression=expression)
    return origins
