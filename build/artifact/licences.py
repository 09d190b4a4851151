"""Where the parts of a root file system come from, and under which licences: asked of the root file system itself.

Debian's packages say it in ``/var/lib/dpkg/status``, and in ``/usr/share/doc/*/copyright`` where that is machine-readable
(https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/); Python's in the METADATA of what is installed
(https://packaging.python.org/en/latest/specifications/core-metadata/). What says nothing stays unknown.
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
# A licence that is told in prose is no name.
LONGEST_NAME = 120


def read(squashfs: Path, venvs: Iterable[str], *, scratch: Path) -> tuple[dict[str, Origin], dict[str, dict[str, Origin]]]:
    """Return the origin of each Debian package by its name, and for each venv that of each wheel by its name."""
    with files.scratch(scratch) as directory:
        root = directory / "root"
        wanted = [STATUS, DOCUMENTS, *(f"{venv.strip('/')}/{METADATA}" for venv in venvs)]
        run.run(
            ["unsquashfs", "-no-progress", "-quiet", "-no-xattrs", "-dest", root, squashfs, *wanted], timeout=UNPACK_SECONDS
        )
        return debian(root), {venv: python(root / venv.strip("/")) for venv in venvs}


def debian(root: Path) -> dict[str, Origin]:
    """Return the origin of each installed package below ``root``."""
    found = {}
    status = root / STATUS
    for stanza in status.read_text(encoding="utf-8").split("\n\n") if status.is_file() else ():
        if name := re.search(r"^Package: (.+)$", stanza, re.MULTILINE):
            package, source = name[1], source_packages.of_control(stanza).source
            copyright_file = _inside(root, f"{DOCUMENTS}/{package}/copyright")
            licences = tuple(_licences(copyright_file)) if copyright_file else ()
            found[package] = Origin(source.name, source.version, licences)
    return found


def _inside(root: Path, name: str) -> Path | None:
    """Return a file below ``root``, links followed as the image would follow them; None when there is none."""
    path = root / name
    for _ in range(8):
        link = next((one for one in [path, *path.parents] if one != root and root in one.parents and one.is_symlink()), None)
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
    """Yield the licence names of a machine-readable copyright file, each once, in order; nothing of any other."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if not re.match(r"\s*Format: \S*copyright-format", text):
        return
    seen: set[str] = set()
    for stanza in re.split(r"\n\s*\n", text):
        name = re.search(r"^License:[ \t]*(\S.*)$", stanza, re.MULTILINE)
        # A stanza without files only repeats the text of a licence that another one names.
        if name and re.search(r"^(Files|Format):", stanza, re.MULTILINE):
            found = re.sub(r"\s+", " ", name[1]).strip()
            if found not in seen and len(found) <= LONGEST_NAME:
                seen.add(found)
                yield found


def python(venv: Path) -> dict[str, Origin]:
    """Return the origin of each distribution that is installed in a Python environment."""
    found = {}
    for path in sorted(venv.glob(METADATA)):
        head = HeaderParser().parsestr(path.read_text(encoding="utf-8", errors="replace"))
        expression, licence = str(head.get("License-Expression") or ""), str(head.get("License") or "")
        names = (licence,) if licence and "\n" not in licence and len(licence) <= LONGEST_NAME else ()
        name = re.sub(r"[-_.]+", "-", str(head["Name"])).lower()
        found[name] = Origin(licences=() if expression else names, expression=expression)
    return found
