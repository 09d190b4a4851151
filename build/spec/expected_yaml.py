"""What the image tests expect of a machine: a file ``expected.yaml`` beside the layer.yaml of each layer, and of its parts.

The lists and mappings of the layers of an image are one: a machine that has more than they name, or less, fails a test.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from build.core.errors import SpecError
from build.core.yaml_table import load_yaml

NAME = "expected.yaml"
# Each key, and the kind of its value: names with what each is for, or a list.
KEYS: Mapping[str, type] = {
    "units": dict,              # units that are enabled, and why
    "first_boot": list,         # units, without .service, that make something at the first boot
    "services": list,           # services that are not restarted during the tests
    "accounts": dict,           # accounts, and the packages that make them
    "service_accounts": list,   # accounts that the layer itself makes
    "running_as": list,         # accounts that processes must run as
    "ports": list,              # TCP ports that listen
    "unix_sockets": dict,       # named UNIX sockets that may listen, and whose they are; PATH/ is all below it
    "sockets": list,            # UNIX sockets that must listen
    "setuid": dict,             # programs with setuid or setgid, and why
    "audit_rules": list,        # files in /etc/audit/rules.d
    "audit_keys": list,         # keys under which rules of the audit trail record
    "watched": list,            # files whose change AIDE must notice
    "outgoing": list,           # {user, port, may}: who may open connections to which TCP port outside
    "confined": dict,           # units, and the AppArmor profile of each; a path for a profile of Debian
    "profiles": list,           # AppArmor profiles that are loaded for other programs
    "user_namespaces": list,    # services with a separate user namespace
    "report_parts": list,       # parts of the weekly report
    "site_keys": list,          # keys of /etc/golden/site.yaml
    "identity": dict,           # what differs between two clones, and the shell command that prints it
}  # fmt: skip


def read(path: Path) -> dict[str, Any]:
    """Return the content of a file. Raises SpecError that names every unknown key and every value of another kind."""
    content = load_yaml(path)
    if not isinstance(content, dict):
        raise SpecError(f"{path} is not a mapping", hint=f"write keys and values; known are {', '.join(KEYS)}")
    problems = []
    for key, value in content.items():
        if key not in KEYS:
            problems.append(f"{path}: {key!r}: unknown key; known are {', '.join(KEYS)}")
        elif not isinstance(value, KEYS[key]) or not value:
            kind = "a mapping" if KEYS[key] is dict else "a list"
            problems.append(f"{path}: {key}: {value!r}: write {kind} that is not empty")
    if problems:
        raise SpecError(f"{path} has {len(problems)} problems", details="\n".join(problems), hint="correct the file")
    return content


def merged(directories: Iterable[Path]) -> dict[str, Any]:
    """Return what the layers in these directories expect together, every key present."""
    found: dict[str, Any] = {key: kind() for key, kind in KEYS.items()}
    for directory in directories:
        if not (directory / NAME).is_file():
            continue
        for key, value in read(directory / NAME).items():
            if KEYS[key] is dict:
                found[key] = value | found[key]
            else:
                found[key] += [item for item in value if item not in found[key]]
    return found
