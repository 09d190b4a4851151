"""A requirements.lock as data: the wheels of a Python environment, each with its hashes, in pip's own format.

Environment markers are evaluated for the guest's Python, whatever Python this program runs with.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.markers import InvalidMarker, Marker
from packaging.tags import Tag, compatible_tags, cpython_tags

from build.core.errors import SpecError

GUEST_PYTHON = "3.13"
# The values of the markers of PEP 508 on a clone: Debian 13's CPython 3.13.5.
GUEST_ENVIRONMENT = {
    "implementation_name": "cpython", "implementation_version": "3.13.5", "os_name": "posix", "platform_machine": "x86_64",
    "platform_python_implementation": "CPython", "platform_release": "", "platform_system": "Linux", "platform_version": "",
    "python_full_version": "3.13.5", "python_version": GUEST_PYTHON, "sys_platform": "linux",
}  # fmt: skip
# The platforms that Debian 13's glibc 2.41 supports, the newest first (PEP 600), and wheels built on such a system.
GUEST_PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in range(41, 4, -1)),
    "manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64",
)  # fmt: skip
PIN = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)\s*(\[(?P<extras>[^]]*)\])?\s*===?\s*(?P<version>[^\s;,*]+)"
    r"(\s*;\s*(?P<marker>.+?))?(?P<hashes>(\s+--hash=\S+)*)"
)
# Lines for pip with the sources of packages; the options in the second list have no effect here.
SOURCES = ("--index-url", "-i", "--extra-index-url", "--find-links", "-f", "--trusted-host", "--no-index")
WITHOUT_EFFECT = ("--only-binary", "--prefer-binary", "--pre", "--require-hashes", "--use-feature")
REMEDY = "write it with: pip-compile --generate-hashes, or: nox -s lock -- wheels"


@dataclass(frozen=True)
class Wheel:
    """One locked wheel."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True)
class Pin:
    """A line of a requirements.lock: ``hashes``: those of the files that pip may use, usually one."""

    name: str
    version: str
    hashes: tuple[str, ...]
    extras: tuple[str, ...] = ()

    def line(self) -> str:
        """Return the line for pip."""
        extras = f"[{','.join(self.extras)}]" if self.extras else ""
        return " \\\n    ".join(
            [f"{self.name}{extras}=={self.version}", *(f"--hash=sha256:{digest}" for digest in self.hashes)]
        )


@dataclass(frozen=True)
class Lock:
    """A requirements.lock as the guest's Python sees it: ``sources``: its lines with the sources of packages."""

    pins: tuple[Pin, ...]
    sources: tuple[str, ...]
    problems: tuple[str, ...]


def render(wheels: Sequence[Wheel]) -> str:
    """Return the text of a requirements.lock, in pip's own format."""
    head = f"# Wheels for CPython {GUEST_PYTHON} on x86_64, written by `nox -s lock` from requirements.in.\n"
    return head + "".join(f"{w.name}=={w.version} \\\n    --hash=sha256:{w.sha256}\n" for w in wheels)


def parse(path: Path) -> tuple[Pin, ...]:
    """Read a layer's requirements.lock; raise SpecError with every line that cannot be used."""
    lock = read(path)
    problems = [*lock.problems, *(f"{pin.name}=={pin.version} has no hash: {REMEDY}" for pin in lock.pins if not pin.hashes)]
    if problems:
        hint = "write it again: nox -s lock -- wheels"
        raise SpecError(f"{path}: {problems[0]}", details="\n".join(problems[1:]), hint=hint)
    return tuple(Pin(pin.name, pin.version, pin.hashes) for pin in lock.pins)


def read(path: Path) -> Lock:
    """Read a requirements.lock as pip-compile, uv, poetry and `nox -s lock` write it; the problems are in the result."""
    pins: dict[str, Pin] = {}
    sources: list[str] = []
    problems: list[str] = []
    try:
        content = _text(path.read_bytes())
    except UnicodeDecodeError as error:
        return Lock((), (), (f"byte {error.start} is not UTF-8: {REMEDY}",))
    for line in content.replace("\\\n", " ").splitlines():
        text = re.sub(r"(^|\s)#.*", "", line).strip()
        if not text:
            continue
        if text.startswith("-"):
            _option(text, path.parent, sources, problems)
            continue
        pin, problem = _pin(text)
        problems += [problem] if problem else []
        if pin and pins.setdefault(pin.name, pin) != pin:
            problems.append(f"{pin.name} is in it twice, as {pins[pin.name].version} and {pin.version}: remove one")
    return Lock(tuple(sorted(pins.values(), key=lambda pin: pin.name)), tuple(sources), tuple(problems))


def _text(content: bytes) -> str:
    """Return the text of a lock; PowerShell's > writes UTF-16."""
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    return content.decode(encoding).replace("\r\n", "\n")


def _option(text: str, directory: Path, sources: list[str], problems: list[str]) -> None:
    """Keep a line for pip with a source of packages; explain one that cannot be used."""
    option, _space, value = re.sub(r"^(--[a-z-]+)=|^(-[a-z])(?=[^\s-])", r"\1\2 ", text).partition(" ")
    value = value.strip()
    if option in SOURCES:
        if option in ("--find-links", "-f") and "://" not in value:
            value = str((directory / value).resolve())
        sources.append(f"{option} {value}".strip())
    elif option in ("-r", "--requirement", "-c", "--constraint"):
        problems.append(f"{text!r} refers to another file, but a lock is one file: {REMEDY}")
    elif option in ("-e", "--editable"):
        problems.append(
            f"{text!r} is not a wheel: build one into wheels/ (pip wheel --no-deps), and write NAME==VERSION here"
        )
    elif option == "--no-binary":
        problems.append(f"{text!r}: only wheels are installed on a clone: remove the line, and build the wheel into wheels/")
    elif option not in WITHOUT_EFFECT:
        problems.append(f"{text!r} is an unknown option: remove the line")


def _pin(text: str) -> tuple[Pin | None, str]:
    """Return the pin of a line, None when it is not for the guest; and the problem of the line."""
    match = PIN.fullmatch(text)
    if match is None:
        if re.match(r"[\w.-]+\s*(\[[^]]*\])?\s*@|\S+://|\.{0,2}/", text):
            return None, f"{text!r} is an address: build or put its wheel into wheels/, and write NAME==VERSION here"
        return None, f"{text!r} is not NAME==VERSION with its --hash=sha256: {REMEDY}"
    try:
        applies = not match["marker"] or Marker(match["marker"]).evaluate({**GUEST_ENVIRONMENT, "extra": ""})
    except InvalidMarker as error:
        return None, f"{text!r}: {str(error).splitlines()[0]}"
    if not applies:
        return None, ""
    hashes = tuple(sorted(re.findall(r"--hash=sha256:([0-9a-f]{64})(?!\S)", match["hashes"])))
    if match["hashes"].strip() and not hashes:
        return None, f"{text!r} has no SHA-256 hash: {REMEDY}"
    extras = tuple(sorted(part.strip().lower() for part in (match["extras"] or "").split(",") if part.strip()))
    return Pin(normal(match["name"]), match["version"], hashes, extras), ""


def normal(name: str) -> str:
    """Return a package's normalized name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def guest_tags() -> frozenset[Tag]:
    """Return the tags of the wheels that the guest's Python accepts."""
    python = tuple(int(part) for part in GUEST_PYTHON.split("."))
    abi = f"cp{python[0]}{python[1]}"
    return frozenset([
        *cpython_tags(python, [abi], GUEST_PLATFORMS), *compatible_tags(python, abi, GUEST_PLATFORMS),
    ])  # fmt: skip
