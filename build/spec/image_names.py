"""Names that the image has or takes: time zones, locales, accounts, mount points; and near ones for a name it has not.

The lists are data (``image_names.json``), read from an image; a test of the image compares them with it.
"""

from __future__ import annotations

import difflib
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from build.core import json_text

DATA = Path(__file__).with_suffix(".json")
NEAR = 3
# Trees in which a directory may be a separate file system. Everything else is the system's: it is there before anything
# is mounted (/etc, /usr), made by the kernel or systemd (/proc, /run, /tmp), or the boot loader's (/boot).
TREES = ("/home", "/opt", "/srv", "/var")
# Links of Debian's that lead out of their tree, and what dpkg needs beside its root.
NOT_MOUNTED = ("/var/run", "/var/lock", "/var/lib/dpkg")
# What runs programs from there: dpkg's and debconf's scripts, the application's modules.
EXECUTED = ("/opt", "/var", "/var/lib", "/var/cache", "/var/cache/debconf")


@cache
def _data() -> dict[str, Any]:
    names: dict[str, Any] = json_text.parse(DATA.read_text(encoding="utf-8"))
    return names


def time_zone_problem(name: str) -> str:
    """Return what to write instead of a time zone that the image has not; empty for one that it has."""
    zones = _data()["time_zones"]
    if name in zones:
        return ""
    if new := _data()["legacy_time_zones"].get(name):
        return f"Debian 13 has this name in tzdata-legacy only: write {new}"
    # People write the city, or its name in another case.
    places = {zone.rpartition("/")[2].lower(): zone for zone in zones}
    similar = difflib.get_close_matches(name.rpartition("/")[2].lower(), list(places), NEAR, 0.75)
    return _advice([places[place] for place in similar], "Europe/Vienna; timedatectl list-timezones lists them")


def locale_problem(name: str) -> str:
    """Return what to write instead of a locale that the image cannot compile; empty for one that it can."""
    locales = _data()["locales"]
    if name in locales:
        return ""
    places = {locale.partition(".")[0].lower(): locale for locale in reversed(locales)}
    stem = name.partition(".")[0].partition("@")[0].replace("-", "_").lower()
    near = [stem] if stem in places else difflib.get_close_matches(stem, list(places), NEAR, 0.8)
    return _advice([places[place] for place in near], "C.UTF-8 or en_GB.UTF-8")


def _advice(near: list[str], example: str) -> str:
    if not near:
        return f"there is none of this name; write one such as {example}"
    return f"there is none of this name; near ones: {', '.join(near)}"


def account_problem(name: str) -> str:
    """Return why the administrator cannot have a name: an account or a group of the image has it already."""
    if name in _data()["accounts"] or name.startswith(("golden-", "systemd-")):
        return "an account or a group of the system has this name: write another one"
    return ""


def mount_problem(path: str) -> str:
    """Return why a directory cannot be a partition; empty for one that can."""
    if path == "/":
        return ""
    if any(part in (".", "..") for part in path.split("/")):
        return "write the path itself, without . and .."
    if not any(_within(path, tree) for tree in TREES) or any(_within(path, place) for place in NOT_MOUNTED):
        trees = f"{', '.join(TREES)} (not {', '.join(NOT_MOUNTED)})"
        return f"this cannot be a partition: / can, and directories of {trees}"
    return ""


def is_executed(path: str) -> bool:
    """Return True if programs run from this directory, so that it cannot be mounted noexec."""
    return path in EXECUTED or _within(path, "/opt")


def _within(path: str, tree: str) -> bool:
    return PurePosixPath(path).is_relative_to(tree)
