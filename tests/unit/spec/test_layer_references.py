"""No layer names a unit, an account or a command of a layer that it does not require: it would be missing."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from build.core.image_programs import PACKAGES
from build.spec.layers import PARTS
from tests.unit.helpers import LAYERS, ROOT

OVERLAYS = ROOT / "overlays"
UNIT = re.compile(r"[a-z][a-z0-9@-]*\.(service|socket|timer|path)")
COMMENT = re.compile(r"^\s*(#|--|;).*$", re.MULTILINE)
# Units, accounts and programs that Debian's packages install for a layer.
BROUGHT = {
    "26-bans": {"fail2ban.service", "fail2ban-client"},
    "30-postgresql": {"postgresql.service", "postgresql@17-main.service", "psql", "pg_dump"},
    "50-nginx": {"nginx.service"},
}
# References to layers that are not required and still have to move, by layer: a new one is a mistake, and so is one that is
# gone and still listed.
LEFT: Mapping[str, list[str]] = {}


def things(layer: Path) -> set[str]:
    """Return the names of the units, accounts and commands that a layer installs."""
    found = {path.name for path in layer.glob("rootfs/etc/systemd/system/*") if path.is_file() and UNIT.fullmatch(path.name)}
    found |= {path.name for path in layer.glob(f"{PARTS}/*/rootfs/etc/systemd/system/*") if UNIT.fullmatch(path.name)}
    found |= {path.stem for path in layer.glob("rootfs/etc/systemd/system/*.j2")}
    found |= {path.name for path in layer.glob("rootfs/usr/sbin/*")}
    for path in layer.glob("rootfs/etc/sysusers.d/*.conf"):
        found |= set(re.findall(r"^u!? (\S+)", path.read_text(encoding="utf-8"), re.MULTILINE))
    return found | BROUGHT.get(layer.name, set())


def requires() -> dict[str, set[str]]:
    """Return the layers that each layer, or part of one, requires, directly or through others, itself included."""
    content = {name: yaml.safe_load((OVERLAYS / name / "layer.yaml").read_text(encoding="utf-8")) for name in LAYERS}
    providers = {word: name for name in LAYERS for word in (name, *content[name].get("provides", []))}
    found = {name: {name, "10-base", *(providers[word] for word in content[name].get("requires", []))} for name in LAYERS}
    for _ in LAYERS:
        for name in LAYERS:
            found[name] |= {inner for word in found[name] for inner in found[word]}
    parts = [path.parent.relative_to(OVERLAYS) for path in OVERLAYS.glob(f"*/{PARTS}/*/layer.yaml")]
    return found | {path.as_posix(): found[path.parts[0]] | found[providers[path.name]] for path in parts}


def references() -> dict[str, list[str]]:
    """Return by layer, or part of one, the things that it names of layers that it does not require."""
    owned = {name: things(OVERLAYS / name) for name in LAYERS}
    found: dict[str, list[str]] = {}
    for place, needed in sorted(requires().items()):
        text = "\n".join(map(content_of, sorted((OVERLAYS / place / "rootfs").rglob("*"))))
        names = [
            f"{layer}: {thing}" for layer in LAYERS if layer not in needed for thing in sorted(owned[layer])
            if re.search(rf"(?<![\w.@/-]){re.escape(thing)}(?![\w@-])", text)
        ]  # fmt: skip
        found |= {place: names} if names else {}
    return found


def content_of(path: Path) -> str:
    """Return the text of a file without its comments."""
    if not path.is_file() or path.is_symlink() or "__pycache__" in path.parts:
        return ""
    return COMMENT.sub("", path.read_text(encoding="utf-8", errors="replace"))


def test_no_layer_names_a_layer_that_it_does_not_require() -> None:
    assert references() == LEFT


def imported(path: Path) -> Iterator[str]:
    """Yield the modules of the package golden that a module imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_no_module_imports_one_of_a_layer_that_its_own_does_not_require() -> None:
    needed = requires()
    modules = {
        ".".join(path.relative_to(OVERLAYS / place / PACKAGES).with_suffix("").parts): (place, path)
        for place in needed for path in (OVERLAYS / place / PACKAGES).rglob("*.py")
    }  # fmt: skip
    missing = [
        f"{place}: {name} of {modules[name][0]}"
        for place, path in modules.values() for name in imported(path)
        if name in modules and modules[name][0] != place and not {*modules[name][0].split(f"/{PARTS}/")} <= needed[place]
    ]  # fmt: skip
    assert missing == []
