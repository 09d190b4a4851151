"""Which files of a project do not belong into its bundle: safe defaults, and the project's own ``.goldenignore``.

The patterns are those of gitignore(5): one a line, ``#`` for comments, ``!`` takes a file in again, a slash at the end
means directories, one elsewhere anchors the pattern to the project's directory; the last pattern that fits decides. What
is in a directory that is left out cannot be taken in again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

NAME = ".goldenignore"
# Secrets, data of a workstation, and what tools leave behind. The order matters: the last pattern that fits decides.
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
    """A line of an ignore list; ``taken`` is true for one that begins with ``!``."""

    text: str
    taken: bool
    directories: bool
    regex: re.Pattern[str]

    def fits(self, path: str, *, directory: bool) -> bool:
        """Return True if the pattern names this path (POSIX, relative to the project)."""
        return (directory or not self.directories) and self.regex.fullmatch(path) is not None


def parse(lines: Iterable[str]) -> tuple[Pattern, ...]:
    """Return the patterns of an ignore list."""
    found = []
    for line in lines:
        text = line.rstrip()
        if not text or text.startswith("#"):
            continue
        body = text.removeprefix("!").removeprefix("\\")
        anchored = "/" in body.rstrip("/")
        regex = ("" if anchored else "(?:.*/)?") + _translated(body.strip("/"))
        found.append(Pattern(text, text.startswith("!"), body.endswith("/"), re.compile(regex, re.DOTALL)))
    return tuple(found)


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
    """Return the defaults, and the patterns of the project's own list behind them."""
    own = directory / NAME
    text = own.read_text(encoding="utf-8-sig") if own.is_file() else ""
    return parse([*DEFAULTS.splitlines(), *text.splitlines()])


def reason(patterns: Iterable[Pattern], path: str, *, directory: bool) -> str:
    """Return the pattern that leaves a path out; empty when it belongs into the bundle."""
    decision = ""
    for pattern in patterns:
        if pattern.fits(path, directory=directory):
            decision = "" if pattern.taken else pattern.text
    return decision
