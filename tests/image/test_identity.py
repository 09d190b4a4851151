"""Two clones of one image are two machines: whatever tells machines apart differs."""

from __future__ import annotations

import json

import pytest
from testinfra.host import Host

from .conftest import Machine, await_health

pytestmark = pytest.mark.vm

# Each a shell command whose output must be there, and differ between the clones.
MARKS = {
    "machine id": "cat /etc/machine-id",
    "boot id": "cat /proc/sys/kernel/random/boot_id",
    "SSH host key ed25519": "cat /etc/ssh/ssh_host_ed25519_key.pub | cut -d' ' -f2",
    "SSH host key ecdsa": "cat /etc/ssh/ssh_host_ecdsa_key.pub | cut -d' ' -f2",
    "TLS key": "openssl pkey -in /etc/ssl/private/app.key -pubout -outform DER | sha256sum",
    "TLS certificate serial": "openssl x509 -noout -serial -in /etc/ssl/certs/app.pem",
    "SECRET_KEY": "sha256sum < /etc/credstore/app.secret-key",
    "database system identifier": "/usr/lib/postgresql/17/bin/pg_controldata /var/lib/postgresql/17/main"
    " | sed -n 's/^Database system identifier: *//p'",
    "random seed": "sha256sum < /var/lib/systemd/random-seed",
    "host name": "hostname",
}


@pytest.fixture(scope="module")
def marks(clones: list[Host]) -> list[dict[str, str]]:
    """What tells each clone from others, all asked in one command a clone."""
    script = "set -u\n" + "\n".join(f"printf '%s\\0' \"$({command})\"" for command in MARKS.values())
    found = []
    for clone in clones:
        values = clone.check_output("bash -c %s", script + "\n").split("\0")[: len(MARKS)]
        found.append(dict(zip(MARKS, values, strict=True)))
    return found


@pytest.mark.req("F29", "R81", "R61")
@pytest.mark.parametrize("mark", MARKS)
def test_clones_differ(marks: list[dict[str, str]], mark: str) -> None:
    """Two clones differ in what tells machines apart"""
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
    # A cluster has one firmware for all its clones; which one is in its settings.
    assert seen == ({name: expected[name] for name in seen} if target == "proxmox" else expected)


@pytest.mark.req("R86", "R95")
def test_health_from_outside(machines: list[Machine], spec: object) -> None:
    """From outside each clone, HTTPS answers /health with 200 and says that the database was asked"""
    for machine in machines:
        name = spec.application.server_name  # type: ignore[attr-defined]
        code, text = await_health(machine.host, name, machine.address, machine.ports["https"])
        assert code == "200", f"{machine.name}: {text}"
        assert json.loads(text)["db"] == "ok"
