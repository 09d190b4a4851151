"""Where things stand in a checkout of Goldsmith."""

from __future__ import annotations

import ast
import hashlib
from dataclasses import dataclass
from pathlib import Path

from build import files


@dataclass(frozen=True)
class Project:
    """The checkout: every path that a stage reads is named here."""

    root: Path

    @property
    def spec(self) -> Path:
        return self.root / "golden.yaml"

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
    def planes(self) -> Path:
        """The diagrams that an image test holds against the clones."""
        return self.root / "docs" / "planes.md"

    @property
    def auditors(self) -> Path:
        """What the audit holds against an image: its ledger, the exceptions, the auditors' locks."""
        return self.root / "tests" / "peers"

    @property
    def audit_ledger(self) -> Path:
        return self.auditors / "ledger.json"

    @property
    def breakage_tests(self) -> Path:
        return self.root / "tests" / "breakage"

    @property
    def rootfs_lock(self) -> Path:
        return self.overlays / "rootfs.lock"

    @property
    def installer_lock(self) -> Path:
        return self.preseed / "installer.lock"

    @property
    def artifacts(self) -> Path:
        return self.root / "artifacts"

    def code(self, *modules: str) -> dict[str, str]:
        """Return the hash of each named module of the package, comments and docstrings left out.

        Code shapes the result as much as data does; words about it do not.
        """
        return {name: _code_digest(self.root / "build" / f"{name}.py") for name in modules}

    def tree(self, directory: Path, *, leave_out: tuple[str, ...] = ()) -> dict[str, str]:
        """Return the hash of each file below a directory, by its path in the directory."""
        found = {}
        for path in sorted(directory.rglob("*")):
            name = path.relative_to(directory).as_posix()
            if path.is_file() and "__pycache__" not in path.parts and not name.startswith(leave_out or ("\0",)):
                executable = "x" if path.stat().st_mode & 0o100 else ""
                found[name] = files.sha256_file(path)[:16] + executable
        return found


def _code_digest(path: Path) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node):
            node.body = node.body[1:] or [ast.Pass()]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]
