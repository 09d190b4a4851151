"""The site settings of a clone: what an operator may write into /etc/golden/site.yaml, checked key by key.

The keys are those that the layers of this image register, by a module of golden/site_keys each. ``check`` returns every key
with a value, and a list of what is wrong. Nothing here changes the machine.
"""

from __future__ import annotations

import functools
import importlib
import os
import pkgutil
import re
import stat
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from golden import site_keys, site_yaml
from golden.site_table import Fault, Key, Schema, Table, shown

LARGEST_FILE = 64 * 1024
MOST_FAULTS = 50
# The name of the image (`name` of golden.yaml).
IMAGE = Path("/usr/lib/golden/image")
# What Proxmox VE can tell a machine whose cloud-init drive it writes itself: smbios1's field sku, "golden:" and JSON.
HYPERVISOR = Path("/sys/class/dmi/id/product_sku")
HYPERVISOR_MARK = "golden:"


@functools.cache
def keys() -> Mapping[str, Key]:
    """Return the keys that the layers of this image register, in the order of their names."""
    names = sorted(module.name for module in pkgutil.iter_modules(site_keys.__path__))
    return {name: importlib.import_module(f"{site_keys.__name__}.{name}").KEY for name in names}


def read(path: Path) -> tuple[dict[str, Any], list[Fault]]:
    """Read and check a file; one that is not there is an empty one."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                return defaults(), [Fault(str(path), "it is not a regular file", "write a text file in its place")]
            if status.st_uid != 0 or status.st_mode & 0o022:
                remedy = f"chown root: {path}; chmod 0600 {path}"
                return defaults(), [Fault(str(path), "others than root may write it", remedy)]
            content = stream.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        return defaults(), []
    except OSError as error:
        return defaults(), [Fault(str(path), str(error), "make it a readable text file")]
    return parse_bytes(content, name=str(path))


def collect(path: Path, *, hypervisor: Path = HYPERVISOR) -> tuple[dict[str, Any], list[Fault]]:
    """Read the file, and take from the hypervisor what the file is silent about (keys that are registered so)."""
    settings, faults = read(path)
    try:
        with hypervisor.open("rb") as stream:
            content = stream.read(LARGEST_FILE + 1).strip()
    except OSError:
        return settings, faults
    if not content.startswith(HYPERVISOR_MARK.encode()):
        return settings, faults
    told, more = parse_bytes(content.removeprefix(HYPERVISOR_MARK.encode()), name="smbios1 sku")
    allowed = [key for key, known in keys().items() if known.from_hypervisor]
    for key in allowed:
        # A key that stands in the file with a fault stays closed: the operator meant something else.
        if not settings[key] and not any(fault.key.startswith(key) for fault in faults):
            settings[key] = told[key]
    others = [
        Fault(key, "(not shown)", f"only {' and '.join(allowed)} can be set by the hypervisor; write it to {path}")
        for key, value in told.items()
        if key not in allowed and value != defaults()[key]
    ]
    return settings, [*faults, *more, *others]


def parse_bytes(content: bytes, *, name: str) -> tuple[dict[str, Any], list[Fault]]:
    """Check the content of a settings file; bytes that are not UTF-8 cost the key that they are in."""
    if len(content) > LARGEST_FILE:
        return defaults(), [Fault(name, f"more than {LARGEST_FILE} bytes", f"a settings file has at most {LARGEST_FILE}")]
    # YAML refuses surrogates.
    return parse(content.decode("utf-8", errors="surrogateescape"), name=name)


def parse(text: str, *, name: str = "site.yaml") -> tuple[dict[str, Any], list[Fault]]:
    """Check the text of a settings file.

    Where it is not YAML, each of its top-level keys is read by itself, so that a broken part costs only itself.
    """
    try:
        content = site_yaml.load(text)
    except yaml.YAMLError as error:
        return _parse_parts(text, name, error)
    return check(content, name=name)


def _parse_parts(text: str, name: str, error: yaml.YAMLError) -> tuple[dict[str, Any], list[Fault]]:
    """Read each top-level key of a text that is not YAML by itself; what is not a key with a value is not used."""
    broken: list[Fault] = []
    content: dict[str, Any] = {}
    # A line that begins with anything but a space, a comment, an item of a list or a closing bracket begins a part.
    for part in re.split(r"(?m)^(?=[^\s#\]}-])", text):
        if not (start := re.match(r"([a-z_]{1,40}):", part)):
            if re.sub(r"(?m)^(---)?\s*(#.*)?$", "", part).strip():
                remedy = f"this is not used; the YAML is broken: {site_yaml.message(error)}"
                broken.append(Fault(name, shown(part.strip()), remedy))
            continue
        key = start[1]
        found, reason = (None, "it stands twice") if key in content else _load_part(part, key)
        content[key] = found
        broken += [Fault(key, reason, "correct the YAML; this key is not used")] if reason else []
    settings, faults = check(content, name=name)
    return settings, [*broken, *faults][:MOST_FAULTS]


def _load_part(part: str, key: str) -> tuple[object, str]:
    """Return the value of a key that is read by itself, and what is wrong with it."""
    try:
        found = site_yaml.load(part)
    except yaml.YAMLError as error:
        return None, site_yaml.message(error)
    return (found[key], "") if isinstance(found, dict) and list(found) == [key] else (None, "it is not a key with a value")


def defaults() -> dict[str, Any]:
    """Return the settings of a clone without any site settings."""
    return check(None)[0]


def check(content: object, *, name: str = "site.yaml") -> tuple[dict[str, Any], list[Fault]]:
    """Return the settings, every key present, and every fault of ``content`` (the parsed file)."""
    faults: list[Fault] = []
    if content is not None and not isinstance(content, Mapping):
        faults.append(Fault(name, shown(content), "write keys and values, such as admin_cidrs: [192.0.2.0/24]"))
    table = Table(content, faults)
    settings = {key: known.read(table, key) for key, known in keys().items()}
    table.refuse_others(f"no layer of the image {_image()} has this key")
    return settings, faults[:MOST_FAULTS]


def _image() -> str:
    try:
        return IMAGE.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def schema() -> Schema:
    """Return the JSON Schema (draft 2020-12) of site.yaml, with the keys of this image."""
    table = Table(None, [], describes=True)
    for key, known in keys().items():
        known.read(table, key)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "site.yaml", **table.schema()}


def files(settings: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the files that units need besides the settings, by their names."""
    return {name: content for key, known in keys().items() for name, content in known.files(settings[key]).items()}


def as_json(faults: list[Fault]) -> list[dict[str, str]]:
    """Return faults as plain data."""
    return [asdict(fault) for fault in faults]
