"""Two clones of one image are two machines: all identifying values differ."""

from __future__ import annotations

import json
from typing import Any

import pytest
from testinfra.host import Host

from .conftest import Machine, await_health

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def marks(clones: list[Host], expected: dict[str, Any]) -> list[dict[str, str]]:
    """The identifying values of each clone, queried in one command per clone."""
    identity = expected["identity"]
    script = "set -u\n" + "\n".join(f"printf '%s\\0' \"$({command})\"" for command in identity.values())
    found = []
    for clone in clones:
        values = clone.check_output("bash -c %s", script + "\n").split("\0")[: len(identity)]
        found.append(dict(zip(identity, values, strict=True)))
    return found


@pytest.mark.req("F29", "R81", "R61")
@pytest.mark.expected("mark", "identity")
def test_clones_differ(marks: list[dict[str, str]], mark: str) -> None:
    """Two clones differ in each identifying value"""
    values = [found[mark].strip() for found in marks]
    assert all(values), f"{mark} is missing: {values}"
    assert len(set(values)) == len(values), f"{mark} is the same in two clones: {values[0]}"


@pytest.mark.req("R1")
def test_firmware(machines: list[Machine], target: str) -> None:
    """The same disk boots under BIOS, and under UEFI with Secure Boot enforced"""
    seen = {}
    for machine in machines:
        variable = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
        text = machine.host.check_output(
            f"if test -d /sys/firmware/efi; then od -An -tu1 -j4 -N1 {variable}; else echo bios; fi"
        )
        seen[machine.firmware] = text.strip()
    expected = {"bios": "bios", "uefi": "1"}
    # On a cluster all clones have the firmware of its settings.
    assert seen == ({name: expected[name] for name in seen} if target == "proxmox" else expected)


@pytest.mark.layers("50-nginx", "application")
@pytest.mark.req("R86", "R95")
def test_health_from_outside(machines: list[Machine], spec: object) -> None:
    """From outside each clone, /health returns 200 over HTTPS and reports that the database answers"""
    for machine in machines:
        name = spec.application.server_name  # type: ignore[attr-defined]
        code, text = await_health(machine.host, name, machine.address, machine.ports["https"])
        assert code == "200", f"{machine.name}: {text}"
        assert json.loads(text)["db"] == "ok"
