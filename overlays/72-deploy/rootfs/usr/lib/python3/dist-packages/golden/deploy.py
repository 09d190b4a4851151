"""A deployment: check, build beside what serves, back up, migrate, try, switch, and go back when it is not healthy.

Nothing that serves is touched before the switch, which is one rename. Migrations run before it, while the old release
still serves, and are not undone: they must suit the old code too (add first, remove in a later release). The backup
that is made before them is the way back for those that do not. Before the switch the new release is started beside the old
one and asked for what its contract names; after it, the same is asked through the web server.
"""

from __future__ import annotations

import os
import shutil
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from golden import app_units, aside, contract, exposure, grants, static_files, steps, trial
from golden import bundle as bundle_format
from golden.core import CHECK_FAILED, SITE, Problem, run, site, write_whole
from golden.health import missing_page, page_problem, wait_healthy
from golden.releases import STATIC_FILES, Releases, lend

STATE = Path("/var/lib/golden-deploy")
# Files of other layers with units that run before a deployment.
BEFORE = Path("/usr/lib/golden/deploy.d")
# The site's bundle that was deployed last: a later deployment by hand stays, until the site names another one.
SITE_DONE = STATE / "site.sha256"
# What golden-deploy-fetch.service is to fetch.
ADDRESS, FETCH_SERVICE = Path("/run/golden/bundle-address"), "golden-deploy-fetch.service"
SERVICE, DESTINATIONS_SERVICE, WEB_SERVER = "gunicorn.service", "golden-destinations.service", "nginx.service"
# The release of the image, and the units that put its tables aside and back.
IMAGE, PUT, BACK = "image", "golden-deploy-aside@put.service", "golden-deploy-aside@back.service"
MIGRATIONS_FAILED = "the migrations failed, and the old release goes on"
BUILD_SECONDS, MIGRATE_SECONDS, BACKUP_SECONDS, RESTART_SECONDS = 1800, 3600, 12 * 3600, 300
CHECK_SECONDS = 300
# The limit of the unit.
FETCH_SECONDS = 6 * 3600
# Of systemd's messages about units.
SHOWN_LINES = 20
# It has started when this begins.
HEALTHY_SECONDS = 20.0
# For the workers of the web server with the former rules.
RELOADED_SECONDS, RELOADED_POLL_SECONDS = 10.0, 0.2


def deploy(source: str, sha256: str, *, backup: bool = True) -> dict[str, Any]:
    """Deploy a bundle, given as a path or an https:// address; return what was done."""
    digest = bundle_format.checked_digest(sha256)
    releases = Releases()
    name = digest[:12]
    if releases.current() == name and releases.record(name):
        return {"release": name, "changed": False, "removed": []}
    releases.adopt()
    releases.remove_incomplete()
    known = releases.record(name)
    if known and known.get("sha256") != digest:
        raise Problem(f"another bundle has the release {name}", hint="remove the older one")
    if known:
        check_contract(releases.path(name))
    else:
        with _local(source) as path:
            build(releases, bundle_format.read(path, digest))
    opens = exposure.difference(grants.read(releases.path(releases.current())), _granted(releases.path(name)))
    if backup:
        back_up()
    before, put_aside, tried = releases.current(), False, False
    try:
        prepare_database(releases, name)
        with trial.candidate(releases.path(name)):
            put_aside = migrate(releases, name)
            try_release(releases, name)
        tried = True
        activate(releases, name)
    except Problem:
        if put_aside:
            steps.start(BACK, "the tables of the demonstration are still aside", MIGRATE_SECONDS)
        if before and (put_aside or not tried):
            # Of another failure than the first one there are alerts.
            with suppress(Problem):
                prepare_database(releases, before)
        raise
    result = {"release": name, "changed": True, "built": not known, "opens": opens, "removed": releases.prune()}
    _accept()
    return result


def compare(source: str, sha256: str) -> dict[str, Any]:
    """Return what a bundle opens and closes, compared with the release that serves, and what the site does not allow of it.

    Nothing of the machine is changed. Raises Problem for a bundle or a contract with faults.
    """
    digest = bundle_format.checked_digest(sha256)
    releases = Releases()
    with _local(source) as path, TemporaryDirectory(dir=STATE, prefix="compare-") as scratch:
        bundle = bundle_format.read(path, digest)
        bundle_format.unpack(bundle, Path(scratch))
        granted = read_contract(Path(scratch))
    opens = exposure.difference(grants.read(releases.path(releases.current())), granted)
    beyond = not_allowed(granted)
    return {"release": digest[:12], "name": bundle.name, "opens": opens, "not_allowed": beyond, "ok": not beyond}


@contextmanager
def _local(source: str) -> Iterator[Path]:
    """Provide a bundle as a file; a fetched one is removed at the end."""
    if "://" not in source:
        yield Path(source)
        return
    write_whole(ADDRESS, bundle_format.checked_address(source).encode())
    try:
        steps.start(FETCH_SERVICE, f"{source} cannot be fetched", FETCH_SECONDS)
        yield bundle_format.FETCHED
    finally:
        ADDRESS.unlink(missing_ok=True)
        bundle_format.FETCHED.unlink(missing_ok=True)


def build(releases: Releases, bundle: bundle_format.Bundle) -> None:
    """Make a release of a checked bundle. What its code does meanwhile, it does without root, network and database."""
    top = releases.path(bundle.digest)
    static: list[str] = []
    try:
        top.mkdir(mode=0o700)
        bundle_format.unpack(bundle, top)
        granted = check_contract(top)
        # The build has the environment of the service.
        grants.write_environment(granted, top)
        (top / STATIC_FILES).mkdir(mode=0o700)
        lend(top, "app-migrate")
        unit = f"golden-deploy-build@{bundle.digest}.service"
        steps.start(unit, "the release cannot be built", BUILD_SECONDS)
        releases.close(bundle.digest)
        _check_unchanged(top, bundle)
        # In place of what is there: the code that was built could write it.
        grants.install(granted, top)
        check_grants(releases, bundle.digest)
        static = releases.publish(bundle.digest, replace=False)
        static_files.check(top / STATIC_FILES, releases.static, static)
        shutil.rmtree(top / bundle_format.WHEELS, ignore_errors=True)
        os.sync()
        releases.complete(bundle.digest, {"name": bundle.name, "sha256": bundle.sha256, "static": static})
    except BaseException:
        releases.withdraw(static)
        if top.is_dir():
            releases.remove(bundle.digest)
        raise


def migrate(releases: Releases, name: str) -> bool:
    """Run the migrations of a release; return True if the tables of the image's demonstration were put aside for them.

    Raises Problem when they fail; then no table is aside.
    """
    unit = f"golden-deploy-migrate@{name}.service"
    try:
        steps.start(unit, MIGRATIONS_FAILED, MIGRATE_SECONDS)
    except Problem as problem:
        if aside.REFUSED not in problem.hint or releases.current() != IMAGE:
            raise
    else:
        return False
    steps.start(PUT, f"{MIGRATIONS_FAILED}: the tables of the image's demonstration are in its way, and are in use",
           MIGRATE_SECONDS)  # fmt: skip
    # What the contract has in the schema public, in the one that took its place.
    prepare_database(releases, name)
    try:
        steps.start(unit, MIGRATIONS_FAILED, MIGRATE_SECONDS)
    except Problem:
        steps.start(BACK, "the tables of the demonstration are still aside", MIGRATE_SECONDS)
        raise
    return True


def check_contract(release: Path) -> dict[str, Any]:
    """Return the contract of a release's code. Raises Problem for its faults, and for all that the site does not allow."""
    granted = read_contract(release)
    if problems := not_allowed(granted):
        lines = "".join(f"\n  {problem}" for problem in problems)
        hint = "nothing was changed; an administrator can allow it: change site.yaml, golden-site apply, deploy again"
        brief = f"the release is refused, because it opens more than the site allows:{lines}"
        raise Problem(brief, hint=hint, code=CHECK_FAILED)
    return granted


def read_contract(release: Path) -> dict[str, Any]:
    """Return the contract of a release's code. Raises Problem for its faults."""
    granted, faults = contract.load(release / bundle_format.CODE)
    if faults:
        lines = "".join(f"\n  {fault}" for fault in faults)
        raise Problem(f"the release is refused: {contract.NAME}:{lines}", hint="nothing was changed", code=CHECK_FAILED)
    return granted


def not_allowed(granted: exposure.Contract) -> list[str]:
    """Return what a contract opens or needs beyond what the site settings allow, each with the key that would allow it."""
    application = (site() if SITE.exists() else {}).get("application") or {}
    problems = exposure.beyond(granted, application.get("allow", {}))
    for name in granted["secrets"]:
        if name not in application.get("secrets", {}):
            problems.append(f"secret: {name} (application.secrets of /etc/golden/site.yaml: {name}: /etc/golden/FILE)")
    return problems


def _granted(release: Path) -> dict[str, Any]:
    """Return what a release was granted; what every application has for a release from before contracts."""
    return grants.read(release) or contract.parse(b"")[0]


def check_grants(releases: Releases, name: str) -> None:
    """Test what was generated for a release, by nginx and by systemd. Raises Problem."""
    steps.start(
        f"golden-deploy-check@{name}.service", "the web server does not take the rules of the release", CHECK_SECONDS
    )
    top = releases.path(name) / grants.DIRECTORY / grants.SYSTEMD
    own = sorted(path.name for path in top.iterdir() if path.is_file())
    # The directory of the release is searched before those of the machine.
    done = run(["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", SERVICE, *own], check=False,
               timeout=CHECK_SECONDS, env={"SYSTEMD_UNIT_PATH": f"{top}:"})  # fmt: skip
    # What it reports of units of the machine is not about this release.
    lines = done.stderr.decode(errors="replace").splitlines()
    wrong = [line for line in lines if str(top) in line or any(unit in line for unit in own)]
    if wrong:
        raise Problem("systemd does not take the units of the release: " + "; ".join(wrong[:SHOWN_LINES]), code=CHECK_FAILED)


def _check_unchanged(top: Path, bundle: bundle_format.Bundle) -> None:
    """Raise Problem when the bundle's files have changed: its code may have run its own commands on them."""
    if changed := bundle_format.changed(top, bundle.files):
        raise Problem(f"{changed[0]} changed while the release was built")


def prepare_database(releases: Releases, name: str) -> None:
    """Set what a release may do in its database, by its contract: limits, extensions, schemas, temporary tables."""
    if not (releases.path(name) / grants.DIRECTORY / grants.SQL).is_dir():
        return
    for unit, what in (("roles", "the limits of the roles"), ("owner", "the rights in the database")):
        steps.start(
            f"golden-deploy-{unit}@{name}.service", f"{what} cannot be set, and the old release goes on", CHECK_SECONDS
        )


def back_up() -> None:
    """Start the units that other layers want to run before a deployment: they make a backup, if the site has a recipient."""
    files = sorted(BEFORE.glob("*.toml"))
    for unit in (unit for path in files for unit in tomllib.loads(path.read_text(encoding="utf-8"))["before"]):
        try:
            run(["systemctl", "start", unit], timeout=BACKUP_SECONDS)
        except Problem as problem:
            hint = f"journalctl -u {unit}; or --no-backup"
            raise Problem("the backup before the deployment failed", hint=hint) from problem


def try_release(releases: Releases, name: str) -> None:
    """Start a release beside the one that serves, and ask it for its pages. Raises Problem when it is not healthy."""
    before, wanted = releases.current(), _granted(releases.path(name))
    closed = f"{before} goes on" if before else "nothing serves"
    if seen := trial.problem(releases.path(name), wanted, HEALTHY_SECONDS):
        raise Problem(f"the release {name} is not healthy, and never served: {seen.brief}; {closed}", hint=seen.hint,
                      code=CHECK_FAILED)  # fmt: skip


def activate(releases: Releases, name: str) -> None:
    """Let a release serve; when it is not healthy, go back to the one before and raise Problem."""
    before, remembered = releases.current(), releases.previous()
    releases.publish(name, replace=True)
    releases.switch(name)
    seen = restart(releases, before) or page_problem() or missing_page(_granted(releases.path(name))["health"]["pages"])
    if not seen:
        return
    if not before or before == name:
        raise Problem(f"the release {name} is not healthy: {seen}")
    releases.publish(before, replace=True)
    releases.switch(before)
    # --rollback must not go to the one that has just failed.
    releases.remember(remembered)
    prepare_database(releases, before)
    after = restart(releases, name)
    state = f"not healthy either: {after}" if after else "serves again"
    raise Problem(f"the release {name} is not healthy ({seen}); {before} {state}", code=CHECK_FAILED,
                  hint=f"journalctl -u {SERVICE}")  # fmt: skip


def restart(releases: Releases, before: str) -> str:
    """Start the release that is linked, with its grants in place of those of ``before``; return what is wrong, or nothing.

    The workers end their requests first, and new ones wait in the socket, which systemd holds.
    """
    release = releases.path(releases.current())
    units = app_units.names(_granted(release))
    former = [unit for unit in app_units.names(_granted(releases.path(before))) if unit not in units] if before else []
    if former:
        run(["systemctl", "stop", "--", *former], timeout=RESTART_SECONDS, check=False)
    grants.serve(release)
    run(["systemctl", "daemon-reload"], timeout=RESTART_SECONDS)
    if app_units.DESTINATIONS in (*units, *former):
        # Opened before the application needs them, and closed with a release that does not declare them.
        run(["systemctl", "start", DESTINATIONS_SERVICE], timeout=RESTART_SECONDS, check=False)
    run(["systemctl", "reset-failed", SERVICE, *former], check=False)
    workers = _web_workers()
    for argv in (["restart", SERVICE, *units], ["reload", WEB_SERVER]):
        if run(["systemctl", *argv], timeout=RESTART_SECONDS, check=False).returncode:
            return f"{' '.join(argv[1:])}: systemctl {argv[0]} failed"
    _await_end(workers)
    return wait_healthy(HEALTHY_SECONDS)


def _web_workers() -> set[str]:
    """Return the process ids of the web server, without the main process, which a reload keeps."""
    shown = run(["systemctl", "show", "--property=ControlGroup,MainPID", WEB_SERVER], check=False).stdout.decode()
    unit = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    # Not from /proc: there the sandbox of a deployment shows no processes of other users.
    processes = Path(f"/sys/fs/cgroup{unit.get('ControlGroup', '')}/cgroup.procs")
    try:
        return {*processes.read_text().split()} - {unit.get("MainPID", "")}
    except OSError:
        return set()


def _await_end(workers: set[str]) -> None:
    """Wait until the workers with the former rules are gone; a reload returns earlier.

    Those with long connections stay behind, and accept no new ones.
    """
    deadline = time.monotonic() + RELOADED_SECONDS
    while workers & _web_workers() and time.monotonic() < deadline:
        time.sleep(RELOADED_POLL_SECONDS)


def roll_back() -> dict[str, Any]:
    """Let the previous release serve again. The database stays as it is."""
    releases = Releases()
    name = releases.previous()
    if not name or name == releases.current():
        raise Problem("there is no previous release", hint="golden-deploy --list")
    before = releases.current()
    prepare_database(releases, name)
    activate(releases, name)
    _accept()
    return {"release": name, "changed": True, "before": before, "removed": []}


def _accept() -> None:
    """Make the next check for changed files (AIDE) accept this deployment. It takes minutes, in the background."""
    run(["systemctl", "start", "--no-block", "golden-deploy-accept.service"], check=False)


def wanted() -> tuple[str, str] | None:
    """Return the site's bundle and its hash, unless it was deployed already."""
    application = site().get("application")
    if not application or not application["bundle"]:
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
