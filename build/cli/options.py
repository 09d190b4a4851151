"""Options that several commands share, in groups: ``add_*`` offers a group, and a reader returns its value.

A command adds the groups that it reads, and no others (tests/unit/cli/test_options.py compares the two).
"""

from __future__ import annotations

import argparse
import os
import stat
from pathlib import Path

from build.artifact.stage_facts import open_cache
from build.core import host, run
from build.core.cache import Cache
from build.core.errors import HostError
from build.core.project import Project
from build.core.result import Result
from build.machines import acceleration
from build.packages import apt
from build.packages.apt import Mirrors
from build.pipeline.build import Options

MIRROR_VARIABLES = ("GOLDSMITH_MIRROR", "GOLDSMITH_SECURITY_MIRROR", "GOLDSMITH_SNAPSHOT")
# For commands that download nothing.
NO_MIRRORS = Mirrors("", "")


def default_cache(shared: Path = Path("/var/tmp")) -> Path:
    """Return the cache directory of this user (XDG base directory specification).

    An ordinary user's root file system is made by mapped users, who have to reach it. Where the user's own cache is private
    (home directories of Debian 13 have mode 0700), a directory of the user below ``shared`` is taken instead.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "goldsmith"
    if run.is_root() or _can_be_reached(home):
        return home
    other = shared / f"goldsmith-{os.geteuid()}"
    # A directory of that name that belongs to another user is not used.
    return other if not other.exists() or other.lstat().st_uid == os.geteuid() else home


def _can_be_reached(directory: Path) -> bool:
    """Return True if every user may pass through the directories above that exist."""
    return all(parent.stat().st_mode & stat.S_IXOTH for parent in (directory, *directory.parents) if parent.exists())


# --- every command ----------------------------------------------------------------------------------------------------


def add_log(parser: argparse.ArgumentParser) -> None:
    """Add the options of the log, which every command has."""
    parser.add_argument("--log-json", action="store_true", help="write the log as JSON, one object per line")
    parser.add_argument("--verbose", action="store_true", help="verbose log")


# --- where ------------------------------------------------------------------------------------------------------------


def add_project(parser: argparse.ArgumentParser) -> None:
    """Add ``--project`` and ``--spec``."""
    parser.add_argument(
        "--project", type=Path, default=Path.cwd(), metavar="DIR", help="the checkout (default: the current directory)"
    )
    parser.add_argument(
        "--spec", type=Path, metavar="FILE", help="what the image shall be (default: golden.yaml of the checkout)"
    )


def project_of(arguments: argparse.Namespace) -> Project:
    """Return the checkout, with the spec that the user chose."""
    return Project(arguments.project.resolve(), arguments.spec.resolve() if arguments.spec else None)


def add_cache(parser: argparse.ArgumentParser) -> None:
    """Add ``--cache``."""
    parser.add_argument(
        "--cache", type=Path, default=default_cache(), metavar="DIR", help="cache directory (default: %(default)s)"
    )


def cache_of(arguments: argparse.Namespace) -> Cache:
    """Return the cache."""
    return open_cache(arguments.cache.resolve())


# --- the host ---------------------------------------------------------------------------------------------------------


def add_host_tools(parser: argparse.ArgumentParser) -> None:
    """Add ``--no-install``."""
    parser.add_argument(
        "--no-install", dest="install", action="store_false",
        help="do not install missing host packages; list them and exit",
    )  # fmt: skip


def add_accelerator(parser: argparse.ArgumentParser) -> None:
    """Add ``--accel``."""
    parser.add_argument(
        "--accel", type=acceleration.Kind, choices=list(acceleration.Kind),
        help="accelerator of the VMs (default: kvm if a guest runs on it)",
    )  # fmt: skip


def add_packer(parser: argparse.ArgumentParser) -> None:
    """Add ``--packer``."""
    parser.add_argument(
        "--packer", default="", metavar="PATH",
        help="Packer program (default: $PACKER, else the one in PATH, else compiled from locked sources)",
    )  # fmt: skip


def packer_of(arguments: argparse.Namespace) -> str:
    """Return the path of the Packer that the user chose, empty without one."""
    return arguments.packer or os.environ.get("PACKER", "")


# --- Debian archives --------------------------------------------------------------------------------------------------


def add_mirrors(parser: argparse.ArgumentParser) -> None:
    """Add the Debian archives, and ``--no-install``: without it, apt's lists may be updated to find the mirrors."""
    parser.add_argument("--mirror", metavar="URL", help="Debian archive (default: $GOLDSMITH_MIRROR, else the host's)")
    parser.add_argument(
        "--security-mirror", metavar="URL",
        help="Debian security archive (default: $GOLDSMITH_SECURITY_MIRROR, else the host's)",
    )  # fmt: skip
    parser.add_argument(
        "--snapshot", metavar="URL",
        help="snapshot archive for files that the mirror no longer has (default: $GOLDSMITH_SNAPSHOT)",
    )  # fmt: skip
    add_host_tools(parser)


def mirrors_of(arguments: argparse.Namespace) -> Mirrors:
    """Return the mirrors: from the command line, else from the environment, else those of the host's apt."""
    return mirrors(arguments.mirror, arguments.security_mirror, arguments.snapshot, install=arguments.install)


def mirrors(*options: str | None, install: bool) -> Mirrors:
    """Return mirror, security mirror and snapshot archive; what ``options`` leave empty comes from elsewhere.

    ``install``: apt's lists may be updated. Raises HostError when the host's apt has no Debian mirror, and it is needed.
    """
    debian, security, snapshot = (
        value or os.environ.get(name, "") for value, name in zip(options or ("", "", ""), MIRROR_VARIABLES, strict=True)
    )
    own = Mirrors(debian, security) if debian and security else _host_mirrors(install=install)
    return Mirrors((debian or own.debian).rstrip("/"), (security or own.security).rstrip("/"), snapshot.rstrip("/"))


def _host_mirrors(*, install: bool) -> Mirrors:
    try:
        return apt.host_mirrors()
    except HostError:
        # On a new host, apt knows the names of its sources only after the first update.
        if not install or not host.update_lists():
            raise
        return apt.host_mirrors()


# --- building ---------------------------------------------------------------------------------------------------------


def add_downloads(parser: argparse.ArgumentParser) -> None:
    """Add what every command has that downloads packages: checkout, cache, mirrors, host tools."""
    add_project(parser)
    add_cache(parser)
    add_mirrors(parser)


def add_locked(parser: argparse.ArgumentParser) -> None:
    """Add ``--locked``."""
    parser.add_argument(
        "--locked", action="store_true", help="fail if the committed locks cannot be used (for release builds)"
    )


def add_build(parser: argparse.ArgumentParser) -> None:
    """Add what every command has that plans or runs the whole pipeline."""
    add_downloads(parser)
    add_locked(parser)
    add_accelerator(parser)
    add_packer(parser)


def downloads_of(arguments: argparse.Namespace) -> Options:
    """Return the engines' options for a command that downloads packages; a command adds what else it offers."""
    return Options(
        project=project_of(arguments), cache=cache_of(arguments), mirrors=mirrors_of(arguments), install=arguments.install
    )


def offline_of(arguments: argparse.Namespace) -> Options:
    """Return the engines' options for a command that downloads no packages: the host's mirrors are not looked for."""
    return Options(project=project_of(arguments), cache=cache_of(arguments), mirrors=NO_MIRRORS, install=arguments.install)


def build_of(arguments: argparse.Namespace) -> Options:
    """Return the engines' options for a command that plans or runs the whole pipeline."""
    return Options(
        project=project_of(arguments), cache=cache_of(arguments), mirrors=mirrors_of(arguments),
        locked=arguments.locked, install=arguments.install, accelerator=arguments.accel, packer=packer_of(arguments),
    )  # fmt: skip


# --- images, artifacts, clusters --------------------------------------------------------------------------------------


def add_image(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose which image is booted."""
    add_artifact_option(parser)
    parser.add_argument("--unverified", action="store_true", help="use the newest disk image in the cache, verified or not")


def add_artifact_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--artifact``."""
    parser.add_argument("--artifact", type=Path, metavar="DIR", help="artifact directory (default: the newest artifact)")


def add_artifact(parser: argparse.ArgumentParser) -> None:
    """Add the optional argument that names an artifact directory."""
    parser.add_argument(
        "artifact", nargs="?", type=Path, metavar="DIR", help="artifact directory (default: the newest artifact)"
    )


def add_secrets(parser: argparse.ArgumentParser) -> None:
    """Add ``--secrets``."""
    parser.add_argument("--secrets", type=Path, metavar="FILE", help="file with the API tokens (mode 0600; see golden.yaml)")


# --- results ----------------------------------------------------------------------------------------------------------


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def show(result: Result) -> int:
    """Print the text of a result; raise its error if it has one, else return 0."""
    if result.text:
        print(result.text)
    if result.error:
        raise result.error
    return 0
