"""A Debian archive for tests that the real apt reads: lists over HTTP on the loopback interface, unsigned and trusted."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from build.packages import apt
from build.packages.lock import Archive as Where
from build.packages.lock import Entry
from tests.unit.helpers import Mirror, entry

SUITES: dict[Where, dict[str, tuple[str, ...]]] = {
    Where.DEBIAN: {"trixie": ("main", "main/debian-installer"), "trixie-updates": ("main",)},
    Where.SECURITY: {"trixie-security": ("main",)},
}
FIRST_PUBLISHED = 1795140670
DATE = "Fri, 20 Nov 2026 02:11:10 UTC"


class Lists:
    """The content of the archive's lists; :meth:`publish` writes them."""

    def __init__(self, mirror: Mirror) -> None:
        self.mirror = mirror
        self.published = 0
        self.stanzas: dict[tuple[Where, str, str], list[str]] = {}

    @staticmethod
    def entry(package: str, version: str, *, archive: Where = Where.DEBIAN) -> Entry:
        """Return the locked entry of a package that the archive has, or had."""
        return entry(package, f"{package} {version}".encode(), archive=archive, version=version)

    def add(
        self, package: str, version: str, *, archive: Where = Where.DEBIAN, udeb: bool = False, fields: str = ""
    ) -> Entry:
        """List a package; return its locked entry."""
        made = self.entry(package, version, archive=archive)
        self.list(made, udeb=udeb, fields=fields)
        return made

    def list(self, made: Entry, *, udeb: bool = False, fields: str = "") -> None:
        """List a package by its locked entry."""
        suite, component = next(iter(SUITES[made.archive])), "main/debian-installer" if udeb else "main"
        self.stanzas.setdefault((made.archive, suite, component), []).append(
            f"Package: {made.package}\nVersion: {made.version}\nArchitecture: amd64\n"
            f"Maintainer: Test <test@example.org>\n{fields}Description: for tests\n"
            f"Filename: {made.path}\nSize: {made.size}\nSHA256: {made.sha256}\n"
        )

    def index(self, component: str = "main") -> Path:
        """Return the file of the release's index of a component."""
        return self.mirror.root / "debian" / "dists" / "trixie" / component / "binary-amd64" / "Packages"

    def publish(self) -> None:
        """Write the lists and what names their hashes."""
        self.published += 1
        names = {Where.DEBIAN: "debian", Where.SECURITY: "debian-security"}
        for archive, suites in SUITES.items():
            for suite, components in suites.items():
                home = self.mirror.root / names[archive] / "dists" / suite
                lines = []
                for component in components:
                    index = "\n".join(self.stanzas.get((archive, suite, component), [])).encode()
                    path = home / component / "binary-amd64" / "Packages"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(index)
                    lines.append(f" {hashlib.sha256(index).hexdigest()} {len(index)} {component}/binary-amd64/Packages\n")
                release = home / "Release"
                release.write_text(
                    f"Origin: Debian\nLabel: Debian\nSuite: {suite}\nCodename: {suite}\nDate: {DATE}\n"
                    f"Architectures: amd64\nComponents: {' '.join(components)}\nSHA256:\n{''.join(lines)}"
                )
                # HTTP compares times with a resolution of one second; a test publishes more than once in that time.
                os.utime(release, (FIRST_PUBLISHED + self.published,) * 2)


def trusted(sources: Callable[..., str]) -> Callable[..., str]:
    """Return ``sources`` that make apt trust an archive without a signature."""
    return lambda *words, **options: sources(*words, **options).replace(f"signed-by={apt.KEYRING}", "trusted=yes")


@contextmanager
def lists(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lists]:
    """Serve an archive below ``root``, which apt trusts without a signature and asks without a proxy."""
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(apt, "sources", trusted(apt.sources))
    (root / "archive").mkdir()
    with Mirror(root / "archive") as mirror:
        made = Lists(mirror)
        made.add("base-files", "13.8", fields="Essential: yes\n")
        yield made
