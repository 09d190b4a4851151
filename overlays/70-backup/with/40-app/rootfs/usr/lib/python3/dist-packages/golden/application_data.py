"""The data of the application beside its database, for backup and restore: its media, its release, and its units."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from golden.core import Problem, run
from golden.health import wait_healthy
from golden.postgres import Server

MEDIA = Path("/var/www/media")
FRESH = MEDIA.with_name(".media.restored")
RELEASE = Path("/opt/app/current")
OWNER, GROUP = "gunicorn", "www-data"
FILE_MODE, DIRECTORY_MODE = 0o640, 0o2750
UNITS = ("gunicorn.socket", "gunicorn.service")
MIGRATED = Path("/var/lib/golden-migrate/done")
MIGRATIONS = "SELECT app, name FROM public.django_migrations ORDER BY 1, 2"


def release() -> str:
    """Return the name of the release that serves; empty without one."""
    return RELEASE.resolve().name if RELEASE.is_symlink() else ""


def newer(server: Server, database: str, restored: str) -> bool:
    """Return True if the migrations of a database differ from those of the restored one."""
    return _migrations(server, database) != _migrations(server, restored)


def _migrations(server: Server, database: str) -> list[list[str]] | None:
    """Return the migrations that a database has had; None without a database or without their table."""
    if not server.exists(database):
        return None
    if not server.ask("SELECT 1 FROM pg_tables WHERE tablename = 'django_migrations'", database=database):
        return None
    return server.ask(MIGRATIONS, database=database)


def adopt(media: Path) -> None:
    """Give a restored tree the owner and the modes that the application's uploads have.

    From its leaves to its root, which no other user may enter: an entry with a new owner is not used again.
    """
    for place, _directories, names in os.walk(media, topdown=False):
        for name in names:
            shutil.chown(Path(place, name), OWNER, GROUP)
            Path(place, name).chmod(FILE_MODE)
        # The owner first: a change of owner takes the set-group-ID bit away.
        shutil.chown(place, OWNER, GROUP)
        Path(place).chmod(DIRECTORY_MODE)


def stop() -> None:
    """Stop the application."""
    run(["systemctl", "stop", *UNITS])


def start() -> None:
    """Start it again after a failure: if its media were lost it does not start, and the first error is reported."""
    run(["systemctl", "start", *UNITS], check=False)


def bring_up(*, newer: bool) -> None:
    """Start the application on what was restored, with its tables brought up to date if the running one is ``newer``.

    Raises Problem when it is not healthy; then it is stopped.
    """
    if newer:
        MIGRATED.unlink(missing_ok=True)
        run(["systemctl", "restart", "golden-migrate.service"], timeout=1800)
    # Without its media the application has failed to start until systemd gave up.
    run(["systemctl", "reset-failed", *UNITS], check=False)
    run(["systemctl", "start", *UNITS])
    if seen := wait_healthy():
        stop()
        raise Problem(f"the application is not healthy with what was restored ({seen}); all is as it was before")
