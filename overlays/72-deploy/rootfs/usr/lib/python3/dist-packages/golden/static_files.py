"""Whether the web server hands out what collectstatic made: asked as a browser would, before a release serves.

Of each kind of name a few are asked for: the web server decides by the form of a name, and a project has thousands.
"""

from __future__ import annotations

import http.client
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote

from golden import health
from golden.core import CHECK_FAILED, Problem

# The hash that Django puts into a name.
HASHED = re.compile(r".+\.[0-9a-f]{12}(?:\.[A-Za-z0-9]+)?")
MOST_OF_A_KIND, MOST = 2, 200
LARGEST = 16 << 20
SHOWN = 10


def check(collected: Path, served: Path, names: Iterable[str]) -> None:
    """Compare static files with what the web server answers.

    Raises Problem (CHECK_FAILED) that names those which are not served, or with another content than the file of the name
    in ``served``, the web server's directory: until the switch that may be another release's.
    """
    chosen = [name for name in sample(names) if (collected / name).stat().st_size <= LARGEST]
    wrong = [f"{name}: {problem}" for name in chosen if (problem := _problem(served / name, name))]
    if wrong:
        more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise Problem(
            f"{len(wrong)} of {len(chosen)} static files that were tried are not served: {'; '.join(wrong[:SHOWN])}{more}",
            hint="the web server answers 404 for hidden names, and 400 for those with a percent sign or a backslash",
            code=CHECK_FAILED,
        )  # fmt: skip


def sample(names: Iterable[str]) -> Iterator[str]:
    """Yield a few names of each kind: suffix, hashed or not, hidden or not, and the unusual characters in it."""
    seen: Counter[tuple[str, bool, bool, str]] = Counter()
    for name in names:
        unusual = "".join(sorted(set(re.sub(r"[A-Za-z0-9_./-]", "", name))))
        kind = (Path(name).suffix.lower(), bool(HASHED.fullmatch(name)), "/." in f"/{name}", unusual)
        seen[kind] += 1
        if seen[kind] <= MOST_OF_A_KIND and len(seen) * MOST_OF_A_KIND <= MOST:
            yield name


def _problem(path: Path, name: str) -> str:
    """Return what is wrong with the answer for a static file."""
    try:
        status, body = health.fetch(f"/static/{quote(name)}", limit=LARGEST)
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}"
    if status != http.client.OK:
        return str(status)
    return "" if body == path.read_bytes() else f"{len(body)} bytes of another content than the file"
