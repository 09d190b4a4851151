"""Deploy an application bundle: checked, built beside what serves, switched in one step, taken back when not healthy.

Migrations run while the old release serves, and are not undone by a rollback: make them suit both releases.
"""

import argparse
from collections.abc import Mapping
from typing import Any

from golden import deploy
from golden.core import FAILED, USAGE, Problem, need_root, only_one, run_command
from golden.releases import Releases


def act(arguments: argparse.Namespace) -> dict[str, Any]:
    """Do what the options ask for."""
    need_root()
    if arguments.list:
        return {"releases": Releases().listed(), "current": Releases().current(), "previous": Releases().previous()}
    if arguments.wanted:
        found = deploy.wanted()
        if found is None:
            raise Problem("the site names no bundle that is not deployed already", code=FAILED)
        return {"wanted": found[0]}
    chosen = arguments.rollback + arguments.site + (arguments.bundle is not None)
    if chosen != 1 or (arguments.bundle is None) != (arguments.sha256 is None):
        raise Problem("a bundle and its hash are needed", hint="golden-deploy BUNDLE --sha256 HEX", code=USAGE)
    if arguments.show:
        if arguments.bundle is None:
            raise Problem("--show needs a bundle", hint="golden-deploy --show BUNDLE --sha256 HEX", code=USAGE)
        with only_one("deploy"):
            return deploy.compare(arguments.bundle, arguments.sha256)
    # A restore stops and starts the application too.
    with only_one("deploy"), only_one("restore"):
        if arguments.rollback:
            return deploy.roll_back()
        if arguments.site:
            return deploy.deploy_site()
        return deploy.deploy(arguments.bundle, arguments.sha256, backup=not arguments.no_backup)


def show(result: Mapping[str, Any]) -> str:
    """Return the result for people."""
    if "releases" in result:
        marks = {result["previous"]: "previous", result["current"]: "current"}
        lines = [f"{one['release']:<12}  {marks.get(one['release'], ''):<8}  {one['deployed']}  {one['name']}"
                 for one in result["releases"]]  # fmt: skip
        return "\n".join(lines or [f"{result['current']:<12}  current"])
    if "wanted" in result:
        return f"to be deployed: {result['wanted']}"
    opens = [f"  {line}" for line in result.get("opens", [])]
    heading = ["what it opens (+) and closes (-), compared with the release before:"] if opens else []
    if "not_allowed" in result:
        refused = [f"not allowed: {line}" for line in result["not_allowed"]]
        return "\n".join([*(heading or ["it opens what the release before opens"]), *opens, *refused])
    if not result["changed"]:
        return f"{result['release']} serves already"
    removed = f"; removed {', '.join(result['removed'])}" if result["removed"] else ""
    return "\n".join([*heading, *opens, f"{result['release']} serves and is healthy{removed}"])


def main() -> None:
    """Read the command line and do what it asks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit codes: 0 serves; else the old release does: 1 failed, 2 usage, 3 the bundle is refused or ill.\n"
        "With --show: 0 the site allows it, 3 it does not.",
    )  # fmt: skip
    parser.add_argument("bundle", nargs="?", metavar="BUNDLE", help="path or https:// address")
    parser.add_argument("--sha256", metavar="HEX", help="the hash of the bundle, from whoever made it")
    parser.add_argument("--show", action="store_true", help="only say what the bundle would open; change nothing")
    parser.add_argument("--no-backup", action="store_true", help="migrate without a backup of the database before")
    parser.add_argument("--rollback", action="store_true", help="let the previous release serve again; the database stays")
    parser.add_argument("--list", action="store_true", help="list the releases that are here")
    parser.add_argument("--site", action="store_true", help="deploy `application` of /etc/golden/site.yaml, once")
    parser.add_argument("--wanted", action="store_true", help="only say whether --site would deploy (exit code 0 or 1)")
    run_command(parser, act, show)
