"""A release that is tried before it serves: started beside the one that does, and asked for what its contract names.

application-candidate.service is the application server of the release that CANDIDATE leads to. It has the sandbox, secrets
and destinations that the release will have, and a socket that root alone opens. What it answers there is what the web
server would pass on; files below /static/ are asked of the web server.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from golden import steps
from golden.core import Problem, run
from golden.health import missing_page, page_problem, wait_healthy
from golden.releases import STATIC_FILES

# Gone after a power cut. The generator of units and golden-destinations.service look there.
CANDIDATE = Path("/run/golden/candidate")
SOCKET = Path("/run/application-candidate.sock")
SERVICE, SOCKET_UNIT = "application-candidate.service", "application-candidate.socket"
DESTINATIONS_SERVICE = "golden-destinations.service"
STATIC_URL, MEDIA_URL = "/static/", "/media/"
START_SECONDS, STOP_SECONDS = 300, 120


@contextmanager
def candidate(release: Path) -> Iterator[None]:
    """Give a release's grants to its migrations and to the server that is tried, until the end of the block."""
    CANDIDATE.unlink(missing_ok=True)
    CANDIDATE.symlink_to(release)
    try:
        run(["systemctl", "daemon-reload"], timeout=START_SECONDS)
        yield
    finally:
        CANDIDATE.unlink(missing_ok=True)


def problem(release: Path, contract: Mapping[str, Any], seconds: float) -> Problem | None:
    """Return what is wrong with the candidate, with what its server wrote; None when it is healthy within ``seconds``.

    Its server is stopped at the end.
    """
    try:
        if contract["destinations"]:
            run(["systemctl", "start", DESTINATIONS_SERVICE], timeout=START_SECONDS, check=False)
        steps.start(SERVICE, "it does not start", START_SECONDS)
        seen = _unhealthy(release, contract["health"], seconds)
        return Problem(seen, hint=steps.said(SERVICE)) if seen else None
    except Problem as failure:
        return failure
    finally:
        _close(contract)


def _close(contract: Mapping[str, Any]) -> None:
    run(["systemctl", "stop", SOCKET_UNIT, SERVICE], timeout=STOP_SECONDS, check=False)
    run(["systemctl", "reset-failed", SOCKET_UNIT, SERVICE], check=False)
    CANDIDATE.unlink(missing_ok=True)
    if contract["destinations"]:
        # Closed again, until the release serves.
        run(["systemctl", "start", DESTINATIONS_SERVICE], timeout=START_SECONDS, check=False)


def _unhealthy(release: Path, health: Mapping[str, Any], seconds: float) -> str:
    """Return which page or file is not as the contract has it, and what came instead; nothing when all are."""
    files = [page for page in health["pages"] if page.startswith(STATIC_URL)]
    # Rules for media are the contract's: the web server has them after the switch.
    pages = [page for page in health["pages"] if not page.startswith((STATIC_URL, MEDIA_URL))]
    return (
        _missing_file(release / STATIC_FILES, files)
        or wait_healthy(seconds, health["path"], SOCKET)
        or page_problem("/", SOCKET)
        or missing_page(pages, SOCKET)
    )


def _missing_file(collected: Path, paths: Iterable[str]) -> str:
    """Return which static file collectstatic has not made, or the web server does not send."""
    for path in paths:
        if not (collected / unquote(path.removeprefix(STATIC_URL))).is_file():
            return f"{path}: collectstatic has not made it"
    return missing_page(paths)
