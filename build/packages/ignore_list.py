"""Determines the files of a project that do not belong in its bundle: safe defaults, and the project's ``.goldenignore``.

The patterns are those of gitignore(5): one per line, ``#`` for comments, ``!`` includes a file again, a slash at the end
means directories, a slash elsewhere anchors the pattern to the project's directory; the last matching pattern decides. A
file in an excluded directory cannot be included again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

NAME = ".goldenignore"
# Uploads of a workstation, unless the directory is a package of Python.
MEDIA = "/media/"
# Secrets, data of a workstation, and temporary files of tools. The order matters: the last matching pattern decides.
DEFAULTS = """\
.*
!.well-known/
!.vite/
__pycache__/
*.py[cod]
*.egg-info/
*.key
*.pem
*.p12
*.pfx
*.jks
*.kdbx
*.env
*.env.*
id_rsa
id_dsa
id_ecdsa
id_ed25519
*.sqlite
*.sqlite3
*.sqlite3-*
*.dump
*.sql.gz
/media/
node_modules/
bower_components/
htmlcov/
*.log
*.bak
*.orig
*.swp
*~
Thumbs.db
desktop.ini
"""

WILDCARDS = {"**/": "(?:.*/)?", "/**": "/.*", "**": ".*", "*": "[^/]*", "?": "[^/]"}


@dataclass(frozen=True)
class Pattern:
    """A line of an ignore list; ``taken`` is True if it begins with ``!``."""

    text: str
    taken: bool
    directories: bool
    regex: re.Pattern[str]

    def fits(self, path: str, *, directory: bool) -> bool:
        """Return True if the pattern matches this path (POSIX, relative to the project)."""
        return (directory or not self.directories) and self.regex.fullmatch(path) is not None


def parse(lines: Iterable[str]) -> tuple[Pattern, ...]:
    """Return the patterns of an ignore list."""
    patterns = []
    for line in lines:
        text = line.rstrip()
        if not text or text.startswith("#"):
            continue
        body = text.removeprefix("!").removeprefix("\\")
        anchored = "/" in body.rstrip("/")
        regex = ("" if anchored else "(?:.*/)?") + _translated(body.strip("/"))
        patterns.append(Pattern(text, text.startswith("!"), body.endswith("/"), re.compile(regex, re.DOTALL)))
    return tuple(patterns)


def _translated(body: str) -> str:
    """Return a regular expression for a pattern without the slashes around it."""
    tokens = re.findall(r"\*\*/|/\*\*|\*\*|\*|\?|\[!?[^\]]+\]|[^*?\[/]+|.", body, re.DOTALL)
    return "".join(_token(token) for token in tokens)


def _token(token: str) -> str:
    if len(token) > 2 and token.startswith("["):
        inside = token[1:-1].replace("\\", r"\\")
        return f"[^{inside[1:]}]" if inside.startswith("!") else f"[{inside}]"
    return WILDCARDS.get(token) or re.escape(token)


def load(directory: Path) -> tuple[Pattern, ...]:
    """Return the defaults, followed by the patterns of the project's own list."""
    own = directory / NAME
    text = own.read_text(encoding="utf-8-sig", errors="surrogateescape") if own.is_file() else ""
    return parse([*DEFAULTS.splitlines(), *text.splitlines()])


def reason(patterns: Iterable[Pattern], path: str, *, directory: bool) -> str:
    """Return the pattern that excludes a path; empty when the path belongs in the bundle."""
    decision = ""
    for pattern in patterns:
        if pattern.fits(path, directory=directory):
            decision = "" if pattern.taken else pattern.text
    return decision
