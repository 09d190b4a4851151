"""A Debian archive for tests that the real apt reads: lists over HTTP on the loopback interface, unsigned and trusted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from build import apt
from build.lock import Archive as Where
from build.lock import Entry
from tests.unit.helpers import Mirror, entry

SUITES: dict[Where, dict[str, tuple[str, ...]]] = {
    Where.DEBIAN: {"trixie": ("main", "main/debian-installer"), "trixie-updates": ("main",)},
    Where.SECURITY: {"trixie-security": ("main",)},
}
DATE = "Fri, 20 Nov 2026 02:11:10 UTC"


class Lists:
    """What the archive's lists say; :meth:`publish` writes them."""

    def __init__(self, mirror: Mirror) -> None:
        self.mirror = mirror
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
        suite, component = next(iter(SUITES[archive])), "main/debian-installer" if udeb else "main"
        self.stanzas.setdefault((archive, suite, component), []).append(
            f"Package: {package}\nVersion: {version}\nArchitecture: amd64\nMaintainer: Nobody <nobody@example.org>\n"
            f"{fields}Description: for tests\nFilename: {made.path}\nSize: {made.size}\nSHA256: {made.sha256}\n"
        )
        return made

    def publish(self) -> None:
        """Write the lists and what names their hashes."""
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
                (home / "Release").write_text(
                    f"Origin: Debian\nLabel: Debian\nSuite: {suite}\nCodename: {suite}\nDate: {DATE}\n"
                    f"Architectures: amd64\nComponents: {' '.join(components)}\nSHA256:\n{''.join(lines)}"
                )


@contextmanager
def lists(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lists]:
    """Serve an archive below ``root``, which apt trusts without a signature and asks without a proxy."""
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    written = apt.sources

    def trusted(mirrors: apt.Mirrors, release: str, *, components: str = "main") -> str:
        return written(mirrors, release, components=components).replace(f"signed-by={apt.KEYRING}", "trusted=yes")

    monkeypatch.setattr(apt, "sources", trusted)
    (root / "archive").mkdir()
    with Mirror(root / "archive") as mirror:
        made = Lists(mirror)
        made.add("base-files", "13.8", fields="Essential: yes\n")
        yield made
