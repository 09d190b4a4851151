"""No layer names a unit, an account or a command of a layer that it does not require: those would be missing without it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import yaml

from build.spec.layers import PARTS
from tests.unit.helpers import LAYERS, ROOT

OVERLAYS = ROOT / "overlays"
UNIT = re.compile(r"[a-z][a-z0-9@-]*\.(service|socket|timer|path)")
COMMENT = re.compile(r"^\s*(#|--|;).*$", re.MULTILINE)
# Units, accounts and programs that Debian's packages bring for a layer.
BROUGHT = {
    "26-bans": {"fail2ban.service", "fail2ban-client"},
    "30-postgresql": {"postgresql.service", "postgresql@17-main.service", "psql", "pg_dump"},
    "50-nginx": {"nginx.service"},
}
# References to layers that are not required and still have to move, by layer: a new one is a mistake, and so is one that is
# gone and still listed.
LEFT: Mapping[str, list[str]] = {
    "10-base": [
        "80-firstboot: golden-site",
        "80-firstboot: golden-site.service",
    ],
    "15-audit": [
        "40-app: golden-app",
        "80-firstboot: golden-site",
    ],
    "22-data": [
        "30-postgresql: golden-database.service",
        "30-postgresql: postgresql@17-main.service",
        "40-app: golden-secrets.service",
        "40-app: gunicorn",
        "40-app: gunicorn.service",
        "50-nginx: golden-tls.service",
        "50-nginx: nginx",
        "50-nginx: nginx.service",
        "65-certificates: golden-certificate-renew.service",
        "70-backup: golden-backup",
        "70-backup: golden-backup.service",
        "70-backup: golden-restore",
        "72-deploy: golden-deploy",
        "72-deploy: golden-deploy.service",
    ],
    "26-bans": [
        "50-nginx: nginx",
        "50-nginx: nginx.service",
    ],
    "30-postgresql": [
        "40-app: app-migrate",
        "40-app: gunicorn",
        "70-backup: golden-backup",
    ],
    "40-app": [
        "50-nginx: nginx",
    ],
    "70-backup": [
        "40-app: gunicorn",
        "40-app: gunicorn.service",
        "40-app: gunicorn.socket",
    ],
    "72-deploy": [
        "25-firewall: golden-firewall",
        "25-firewall: golden-firewall.service",
        "70-backup: golden-backup",
        "70-backup: golden-backup.service",
        "78-verify: golden-verify",
    ],
    "75-logs": [
        "50-nginx: nginx",
    ],
    "76-operations": [
        "15-audit: golden-aide",
        "26-bans: fail2ban",
        "26-bans: fail2ban-client",
        "26-bans: fail2ban.service",
        "65-certificates: golden-certificate",
        "70-backup: golden-backup",
        "70-backup: golden-backup.service",
        "72-deploy: golden-contract",
        "74-alerts: golden-alert",
    ],
    "80-firstboot": [
        "40-app: gunicorn",
        "40-app: gunicorn.service",
        "50-nginx: golden-tls.service",
        "50-nginx: nginx",
        "50-nginx: nginx.service",
    ],
}


def things(layer: Path) -> set[str]:
    """Return the names of the units, accounts and commands that a layer brings."""
    found = {path.name for path in layer.glob("rootfs/etc/systemd/system/*") if path.is_file() and UNIT.fullmatch(path.name)}
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
