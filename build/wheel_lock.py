"""A layer's requirements.lock as data: the wheels of a Python environment, each with its hash, in pip's own format."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from build.errors import SpecError

GUEST_PYTHON = "3.13"
PIN = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(\[[^]]*\])?==(?P<version>[^\s;]+)(\s+--hash=sha256:[0-9a-f]{64})+")


@dataclass(frozen=True)
class Wheel:
    """One locked wheel."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True)
class Pin:
    """A line of a requirements.lock: ``hashes`` are those of the files that pip may take, mostly of one."""

    name: str
    version: str
    hashes: tuple[str, ...]


def render(wheels: Sequence[Wheel]) -> str:
    """Return the text of a requirements.lock, in pip's own format."""
    head = f"# Wheels for CPython {GUEST_PYTHON} on x86_64, written by `nox -s lock` from requirements.in.\n"
    return head + "".join(f"{w.name}=={w.version} \\\n    --hash=sha256:{w.sha256}\n" for w in wheels)


def parse(path: Path) -> tuple[Pin, ...]:
    """Read a requirements.lock; raise SpecError naming what is not a version with its hashes, for every host alike."""
    found = []
    for line in path.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        text = re.sub(r"(^|\s)#.*", "", line).strip()
        if not text:
            continue
        pin = PIN.fullmatch(text)
        if pin is None:
            raise SpecError(
                f"{path}: {text!r} is not NAME==VERSION with its --hash=sha256:", hint="write it anew: nox -s lock -- wheels"
            )
        name = re.sub(r"[-_.]+", "-", pin["name"]).lower()
        found.append(Pin(name, pin["version"], tuple(sorted(re.findall(r"sha256:([0-9a-f]{64})", text)))))
    return tuple(sorted(found, key=lambda pin: pin.name))
