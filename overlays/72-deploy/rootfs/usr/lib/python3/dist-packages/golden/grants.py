"""What a release is granted: files that are generated from its contract when it is built, and switched with it.

::

    /opt/app/releases/NAME/grants/contract.json      the contract as it was read
    /opt/app/releases/NAME/grants/environment        of every process: EnvironmentFile= of all units
    /opt/app/releases/NAME/grants/nginx/*.conf       copied to /run/golden/app, which the web server's site includes
    /opt/app/releases/NAME/grants/database/*.sql     run before the migrations, and when the release serves again
    /opt/app/releases/NAME/grants/systemd/           read by systemd's generator golden-application

The link /opt/app/current decides which of them are in force, also after a power cut: systemd-tmpfiles copies the web
server's files at boot, and the generator runs at each start and reload of systemd.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from golden import app_database, app_units, web_rules

DIRECTORY, CONTRACT, ENVIRONMENT = "grants", "contract.json", "environment"
NGINX, SYSTEMD, SQL = "nginx", "systemd", "database"
LARGEST_CONTRACT = 1 << 20
# Reads releases.
GROUP = "gunicorn"
SERVED = Path("/run/golden/app")


def files(contract: Mapping[str, Any]) -> dict[str, str]:
    """Return all files of a contract by their paths below ``grants``; text that begins with LINK is a link."""
    return {
        CONTRACT: json.dumps(contract, indent=1, sort_keys=True) + "\n",
        ENVIRONMENT: app_units.environment(contract),
        **{f"{NGINX}/{name}": text for name, text in web_rules.files(contract).items()},
        **{f"{SQL}/{name}": text for name, text in app_database.files(contract).items()},
        **{f"{SYSTEMD}/{name}": text for name, text in app_units.files(contract).items()},
    }


def write(contract: Mapping[str, Any], release: Path) -> None:
    """Write the grants of a release, in place of those that are there."""
    top = release / DIRECTORY
    shutil.rmtree(top, ignore_errors=True)
    for name in ("", NGINX, SYSTEMD, SQL):
        _directory(top / name, 0o750)
    for name, text in files(contract).items():
        path = top / name
        if not path.parent.is_dir():
            _directory(path.parent, 0o750)
        if text.startswith(app_units.LINK):
            path.symlink_to(text.removeprefix(app_units.LINK))
        else:
            path.write_text(text, encoding="utf-8")
            path.chmod(0o640)


def write_environment(contract: Mapping[str, Any], release: Path) -> None:
    """Write only the environment, for the build of the release; all grants follow when its code can no longer write."""
    _directory(release / DIRECTORY, 0o750)
    (release / DIRECTORY / ENVIRONMENT).write_text(app_units.environment(contract), encoding="utf-8")


def _directory(path: Path, mode: int) -> None:
    """Make a directory with exactly this mode, whatever the umask."""
    path.mkdir()
    path.chmod(mode)


def install(contract: Mapping[str, Any], release: Path) -> None:
    """Write the grants of a release, and give them to root and to the group that reads releases."""
    write(contract, release)
    top = release / DIRECTORY
    for path in (top, *top.rglob("*")):
        if not path.is_symlink():
            shutil.chown(path, "root", GROUP)


def serve(release: Path) -> None:
    """Put the rules of a release where the web server reads them, in place of those of another; none without grants."""
    fresh = SERVED.with_name(f".{SERVED.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.parent.mkdir(exist_ok=True)
    _directory(fresh, 0o755)
    for path in sorted((release / DIRECTORY / NGINX).glob("*.conf")):
        shutil.copyfile(path, fresh / path.name)
        (fresh / path.name).chmod(0o644)
    old = SERVED.with_name(f".{SERVED.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    # The running server has read its files: only a reload, which comes after this, sees the two renames.
    if SERVED.exists():
        SERVED.rename(old)
    fresh.rename(SERVED)
    shutil.rmtree(old, ignore_errors=True)


def read(release: Path) -> dict[str, Any] | None:
    """Return the contract that a release was granted; None for a release without grants, or with damaged ones."""
    try:
        with (release / DIRECTORY / CONTRACT).open("rb") as stream:
            content = json.loads(stream.read(LARGEST_CONTRACT))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
