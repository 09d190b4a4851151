"""The paths of a checkout of Goldsmith, and hashes of its files."""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from build.core import files

# They print, record and name packages of the host. They have no effect on a stage's result.
OBSERVERS = frozenset({"core/errors", "core/log", "core/host", "core/programs"})


@dataclass(frozen=True)
class Project:
    """The checkout: every path that a stage reads is named here."""

    root: Path
    # The spec that the user chose (--spec); None: golden.yaml.
    profile: Path | None = None

    @property
    def spec(self) -> Path:
        return self.profile or self.root / "golden.yaml"

    @property
    def overlays(self) -> Path:
        return self.root / "overlays"

    @property
    def preseed(self) -> Path:
        return self.root / "preseed"

    @property
    def packer(self) -> Path:
        return self.root / "packer"

    @property
    def image_tests(self) -> Path:
        return self.root / "tests" / "image"

    @property
    def auditors(self) -> Path:
        """The data of the audit: its ledger, the exceptions, the locks of the security scanners."""
        return self.root / "tests" / "audit"

    @property
    def audit_ledger(self) -> Path:
        return self.auditors / "ledger.json"

    @property
    def fault_tests(self) -> Path:
        return self.root / "tests" / "faults"

    @property
    def rootfs_lock(self) -> Path:
        """The lock of the packages: the lock of a profile is beside it."""
        if self.profile is None or self.profile == self.root / "golden.yaml":
            return self.overlays / "rootfs.lock"
        return self.profile.with_suffix(".lock")

    @property
    def installer_lock(self) -> Path:
        return self.preseed / "installer.lock"

    @property
    def artifacts(self) -> Path:
        return self.root / "artifacts"

    def code(self, *entries: str) -> dict[str, str]:
        """Return the hash of the modules ``entries`` and of every module of the package that they import, by its path.

        A module is named by its path below ``build`` without the suffix, such as ``rootfs/base``. Comments, docstrings and
        layout are not part of the hash, and neither is the release of Python. Modules of OBSERVERS are left out.
        """
        digests: dict[str, str] = {}
        pending = [name for name in entries if name not in OBSERVERS]
        while pending:
            name = pending.pop()
            if name not in digests:
                digests[name], imported = _read_module(self.root / "build", name)
                pending += [other for other in imported if other not in OBSERVERS]
        return dict(sorted(digests.items()))

    def tree(self, directory: Path, *, leave_out: tuple[str, ...] = ()) -> dict[str, str]:
        """Return the hash of each file below a directory, by its path in the directory."""
        digests = {}
        for path in sorted(directory.rglob("*")):
            name = path.relative_to(directory).as_posix()
            if path.is_file() and "__pycache__" not in path.parts and not name.startswith(leave_out or ("\0",)):
                executable = "x" if path.stat().st_mode & 0o100 else ""
                digests[name] = files.sha256_file(path)[:16] + executable
        return digests


@functools.cache
def _read_module(package: Path, name: str) -> tuple[str, tuple[str, ...]]:
    """Return the hash of a module's code, and the modules of the package that it imports."""
    tree = ast.parse((package / f"{name}.py").read_text(encoding="utf-8"))
    imported = tuple(sorted(set(_imported(package, tree))))
    _strip_docstrings(tree)
    return hashlib.sha256(repr(_shape(tree)).encode()).hexdigest()[:16], imported


def forget_code() -> None:
    """Read the modules again at the next call of Project.code, because they may have changed."""
    _read_module.cache_clear()


def _imported(package: Path, tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("build."):
            path = node.module.removeprefix("build.").replace(".", "/")
            names = [path] if (package / f"{path}.py").is_file() else [f"{path}/{alias.name}" for alias in node.names]
            yield from (name for name in names if (package / f"{name}.py").is_file())


def _shape(value: object) -> object:
    """Return a syntax tree as nested lists that are the same in every release of Python.

    ast.dump differs between releases: it prints empty fields or not, and knows fields that older releases do not have.
    """
    if isinstance(value, ast.AST):
        fields = ((name, _shape(content)) for name, content in ast.iter_fields(value) if content not in (None, []))
        return [type(value).__name__, *fields]
    return [_shape(item) for item in value] if isinstance(value, list) else repr(value)


def _strip_docstrings(node: ast.AST) -> None:
    """Remove the docstrings of a module, class or function and of those in it; only statements hold definitions."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node):
        node.body = node.body[1:] or [ast.Pass()]
    for name in ("body", "orelse", "handlers", "finalbody", "cases"):
        for child in getattr(node, name, ()) if not isinstance(node, ast.expr) else ():
            _strip_docstrings(child)
