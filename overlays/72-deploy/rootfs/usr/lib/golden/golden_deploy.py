"""A deployment: check, build beside what serves, back up, migrate, switch, and go back when it is not healthy.

Nothing that serves is touched before the switch, which is one rename. Migrations run before it, while the old release
still serves, and are not undone: they must suit the old code too (add first, remove in a later release). The backup
that is made before them is the way back for those that do not.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import golden_bundle
from golden import CHECK_FAILED, Problem, run, site, write_whole
from golden_health import wait_healthy
from golden_releases import Releases, lend

STATE = Path("/var/lib/golden-deploy")
# The site's bundle that was deployed last: a later deployment by hand stays, until the site names another one.
SITE_DONE = STATE / "site.sha256"
FETCHED = STATE / "fetched.bundle"
SERVICE = "gunicorn.service"
BUILD_SECONDS, MIGRATE_SECONDS, BACKUP_SECONDS, RESTART_SECONDS = 1800, 3600, 12 * 3600, 300
# It has started when this begins.
HEALTHY_SECONDS = 20.0


def deploy(source: str, sha256: str, *, backup: bool = True) -> dict[str, Any]:
    """Deploy a bundle, given as a path or an https:// address; return what was done."""
    digest = golden_bundle.checked_digest(sha256)
    releases = Releases()
    name = digest[:12]
    if releases.current() == name and releases.record(name):
        return {"release": name, "changed": False, "removed": []}
    releases.adopt()
    releases.remove_incomplete()
    known = releases.record(name)
    if known and known.get("sha256") != digest:
        raise Problem(f"another bundle has the release {name}", hint="remove the older one")
    if not known:
        with _local(source) as path:
            build(releases, golden_bundle.read(path, digest))
    if backup:
        back_up()
    _start(f"golden-deploy-migrate@{name}.service", "the migrations failed, and the old release goes on", MIGRATE_SECONDS)
    activate(releases, name)
    result = {"release": name, "changed": True, "built": not known, "removed": releases.prune()}
    _accept()
    return result


@contextmanager
def _local(source: str) -> Iterator[Path]:
    """Provide a bundle as a file; a fetched one is removed at the end."""
    if "://" not in source:
        yield Path(source)
        return
    try:
        golden_bundle.fetch(source, FETCHED)
        yield FETCHED
    finally:
        FETCHED.unlink(missing_ok=True)


def build(releases: Releases, bundle: golden_bundle.Bundle) -> None:
    """Make a release of a checked bundle. What its code does meanwhile, it does without root, network and database."""
    top = releases.path(bundle.digest)
    try:
        top.mkdir(mode=0o700)
        golden_bundle.unpack(bundle, top)
        (top / "static").mkdir(mode=0o700)
        lend(top, "app-migrate")
        unit = f"golden-deploy-build@{bundle.digest}.service"
        _start(unit, "the release cannot be built", BUILD_SECONDS)
        releases.close(bundle.digest)
        _check_unchanged(top, bundle)
        static = releases.publish(top / "static")
        for done in ("static", golden_bundle.WHEELS):
            shutil.rmtree(top / done, ignore_errors=True)
        os.sync()
        releases.complete(bundle.digest, {"name": bundle.name, "sha256": bundle.sha256, "static": static})
    except BaseException:
        if top.is_dir():
            releases.remove(bundle.digest)
        raise


def _check_unchanged(top: Path, bundle: golden_bundle.Bundle) -> None:
    """Raise Problem when the bundle's files are not what they were: its code had commands of its own run on them."""
    if changed := golden_bundle.changed(top, bundle.files):
        raise Problem(f"{changed[0]} changed while the release was built")


def back_up() -> None:
    """Make a backup, unless the site has no recipient for backups."""
    try:
        run(["systemctl", "start", "golden-backup.service"], timeout=BACKUP_SECONDS)
    except Problem as problem:
        hint = "journalctl -u golden-backup; or --no-backup"
        raise Problem("the backup before the deployment failed", hint=hint) from problem


def activate(releases: Releases, name: str) -> None:
    """Let a release serve; when it is not healthy, go back to the one before and raise Problem."""
    before, remembered = releases.current(), releases.previous()
    releases.switch(name)
    seen = restart()
    if not seen:
        return
    if not before or before == name:
        raise Problem(f"the release {name} is not healthy: {seen}")
    releases.switch(before)
    # --rollback must not go to the one that has just failed.
    releases.remember(remembered)
    after = restart()
    state = f"not healthy either: {after}" if after else "serves again"
    raise Problem(f"the release {name} is not healthy ({seen}); {before} {state}", code=CHECK_FAILED,
                  hint=f"journalctl -u {SERVICE}")  # fmt: skip


def restart() -> str:
    """Start the application anew; return what is wrong with it, or nothing.

    The workers end their requests first, and new ones wait in the socket, which systemd holds.
    """
    run(["systemctl", "reset-failed", SERVICE], check=False)
    started = run(["systemctl", "restart", SERVICE], timeout=RESTART_SECONDS, check=False)
    if started.returncode:
        return f"{SERVICE} does not start"
    return wait_healthy(HEALTHY_SECONDS)


def roll_back() -> dict[str, Any]:
    """Let the previous release serve again. The database stays as it is."""
    releases = Releases()
    name = releases.previous()
    if not name or name == releases.current():
        raise Problem("there is no previous release", hint="golden-deploy --list")
    before = releases.current()
    activate(releases, name)
    _accept()
    return {"release": name, "changed": True, "before": before, "removed": []}


def _accept() -> None:
    """Let the next look at changed files (AIDE) know this deployment. It takes minutes, and nobody waits for it."""
    run(["systemctl", "start", "--no-block", "golden-deploy-accept.service"], check=False)


def wanted() -> tuple[str, str] | None:
    """Return the site's bundle and its hash, unless it was deployed already."""
    application = site().get("application")
    if not application:
        return None
    done = SITE_DONE.read_text().strip() if SITE_DONE.exists() else ""
    return None if done == application["sha256"] else (application["bundle"], application["sha256"])


def deploy_site() -> dict[str, Any]:
    """Deploy the site's bundle, once."""
    found = wanted()
    if found is None:
        return {"release": Releases().current(), "changed": False, "removed": []}
    result = deploy(*found)
    write_whole(SITE_DONE, f"{found[1]}\n".encode())
    return result


def _start(unit: str, what: str, seconds: float) -> None:
    """Run a unit to its end; raise Problem with its last words when it fails."""
    run(["systemctl", "reset-failed", unit], check=False)
    if run(["systemctl", "start", unit], timeout=seconds, check=False).returncode:
        said = run(["journalctl", "--boot", "--output=cat", "--no-pager", "--lines=12", f"--unit={unit}"], check=False)
        lines = [line for line in said.stdout.decode(errors="replace").splitlines() if not line.startswith(unit)]
        raise Problem(what, hint=f"journalctl -u {unit}:\n      " + "\n      ".join(lines[-6:]))
