"""The keys of a layer.yaml."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from build.core.yaml_table import PACKAGE, Table
from build.spec.golden_yaml import KNOWN_OPTIONS

MODE = r"0[0-7]{3,4}"
ABSOLUTE = r"/[^\s]+"
ACCOUNT = r"[a-z_][a-z0-9_-]*"
# What a layer is for others: application, database, web-server.
PROVIDED = r"[a-z][a-z0-9-]*"
LAYER_NAME = re.compile(r"[0-9]{2}-[a-z0-9-]+")


@dataclass(frozen=True)
class Access:
    """Who owns a path and what its mode is."""

    owner: str = "root"
    group: str = "root"
    mode: int | None = None


@dataclass(frozen=True)
class Command:
    """A command for the chroot, and why no declaration could do its work."""

    argv: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Declared:
    """The keys of a layer.yaml. ``venv`` and ``requirements`` are empty without a Python environment."""

    requires: tuple[str, ...]
    provides: tuple[str, ...]
    mounts: Mapping[str, tuple[str, ...]]
    access: Mapping[str, Access]
    packages: tuple[str, ...]
    early: tuple[str, ...]
    absent: tuple[str, ...]
    replaces: tuple[str, ...]
    venv: str
    requirements: str
    commands: tuple[Command, ...]
    tests: tuple[str, ...]


def read(table: Table) -> Declared:
    """Read every key of a layer.yaml; problems go onto the table's list. The caller finishes the table."""
    path = "write an absolute path"
    table.text("about", r".{10,}", "say in one sentence what the layer is for")
    requires = table.strings(
        "requires",
        f"{LAYER_NAME.pattern}|{PROVIDED}",
        "write the name of a layer, NN-noun, or of what a layer provides",
        about="layers without which this one does not work, or what layers provide; the image must have them",
    )
    provides = table.strings(
        "provides",
        PROVIDED,
        "write a name such as application: lower case letters, digits and hyphens",
        about="what this layer is for others, which may require it without naming the layer; an image has one of each",
    )
    mounts = _mounts(table)
    access = _access(table)
    venv, requirements = _python(table)
    return Declared(
        requires=requires, provides=provides, mounts=mounts, access=access, venv=venv, requirements=requirements,
        packages=table.strings(
            "packages", PACKAGE, "write the name of a Debian package", about="Debian packages that the layer needs"
        ),
        early=table.strings(
            "early", ABSOLUTE, path, about="paths of rootfs/ that must exist before packages are installed"
        ),
        absent=table.strings("absent", ABSOLUTE, path, about="paths that are removed from the image"),
        replaces=table.strings("replaces", ABSOLUTE, path, about="paths of rootfs/ that an earlier layer has too"),
        commands=_commands(table),
        tests=table.strings(
            "tests", r"tests/image/test_[a-z0-9_]+\.py", "name a file such as tests/image/test_x.py",
            needed="name at least one test that proves the layer", about="files of image tests that prove the layer",
        ),
    )  # fmt: skip


def _mounts(table: Table) -> dict[str, tuple[str, ...]]:
    entries = table.entries(
        "mounts", ABSOLUTE, "write a mapping from mount point to {options}", where=f"{table.where}: mounts",
        about="partitions that the layer needs, and their mount options",
    )  # fmt: skip
    mounts = {}
    for path, inner in entries.items():
        mounts[path] = inner.strings(
            "options", "|".join(sorted(KNOWN_OPTIONS)), f"unknown mount option; known are {', '.join(sorted(KNOWN_OPTIONS))}"
        )
        inner.finish()
    return mounts


def _access(table: Table) -> dict[str, Access]:
    entries = table.entries(
        "paths", ABSOLUTE, "write a mapping from path to {owner, group, mode, reason}", where=f"{table.where}: paths",
        about="owner, group and mode of paths of rootfs/ (without them: root, root, 0644 for files, 0755 for directories)",
    )  # fmt: skip
    access: dict[str, Access] = {}
    for path, inner in entries.items():
        remedy = 'write the mode in octal and in quotes, such as "0640"'
        mode = inner.text("mode", MODE, remedy, default="", about="the mode, a string of octal digits")
        owner = inner.text("owner", ACCOUNT, "write an account name", default="root", about="the owner; with it the group")
        group = inner.text("group", ACCOUNT, "write a group name", default="root", about="the group; with it the owner")
        if ("owner" in inner.value) != ("group" in inner.value):
            inner.problem("owner", inner.value, "give owner and group together")
        inner.text("reason", r".+", "say why", default="")
        inner.finish()
        access[path] = Access(owner, group, int(mode, 8) if mode else None)
    return access


def _python(table: Table) -> tuple[str, str]:
    inner = table.section(
        "python", where=f"{table.where}: python", about="a virtual environment, filled from wheels that are locked by hash"
    )
    if inner is None:
        return "", ""
    path = inner.text("venv", ABSOLUTE, "write the absolute path of the virtual environment")
    name = inner.text(
        "requirements", r"[a-z0-9.-]+\.lock", "write the name of the lock file beside layer.yaml",
        about="the lock file beside layer.yaml, which `nox -s lock -- wheels` writes",
    )  # fmt: skip
    inner.finish()
    return path, name


def _commands(table: Table) -> tuple[Command, ...]:
    rows = table.rows(
        "commands", "write a list of {run: [...], reason: ...}", where=f"{table.where}: commands",
        about="commands that are run in the image after all files are installed: the last resort",
    )  # fmt: skip
    commands = []
    for inner in rows:
        argv = inner.strings_repeated("run", "write the command as a list of words", about="the command and its arguments")
        reason = inner.text("reason", r".{10,}", "say why no declaration can do it")
        commands.append(Command(argv, reason))
        inner.finish()
    return tuple(commands)
