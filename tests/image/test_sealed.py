"""The pristine disk image, read without booting it: it has no data of a single machine, and no traces of its build."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from build.machines.disk_image import GPT_BIOS_GRUB, GPT_ESP, GPT_LINUX, DiskImage

pytestmark = pytest.mark.vm

KEYS = {
    # Programs that write keys contain the header line; only with the first bytes of a body it is a key.
    "OpenSSH private key": re.compile(rb"-----BEGIN OPENSSH PRIVATE KEY-----\r?\nb3BlbnNzaC1rZXkt"),
    "PEM private key": re.compile(rb"-----BEGIN (?:RSA |EC |ENCRYPTED )?PRIVATE KEY-----\r?\nM[A-Za-z0-9+/]{40}"),
}
LOGS_OF_THE_IMAGE: dict[str, str] = {}


@pytest.mark.req("F29", "R1")
def test_machine_id_is_empty(sealed: DiskImage) -> None:
    """/etc/machine-id exists and is empty, so that every clone creates its own"""
    found = sealed.find("/etc/machine-id")
    assert found is not None
    assert found.kind == "file"
    assert sealed.read("/etc/machine-id").strip() in (b"", b"uninitialized")


@pytest.mark.req("F29")
def test_no_host_keys(sealed: DiskImage) -> None:
    """There are no SSH host keys in the image"""
    assert [found.path for found in sealed.list("/etc/ssh") if "ssh_host_" in found.path] == []


@pytest.mark.req("F29", "R60", "R81")
def test_no_secret_files(sealed: DiskImage) -> None:
    """No TLS key, application secret, credential, random seed or database cluster is in the image"""
    assert sealed.list("/etc/ssl/private") == []
    seeds = ("/var/lib/systemd/random-seed", "/var/lib/systemd/credential.secret")
    for path in (*seeds, "/etc/ssl/certs/ssl-cert-snakeoil.pem"):
        assert sealed.find(path) is None, path
    clusters = [found.path for found in sealed.walk("/var/lib/postgresql") if found.path.endswith("PG_VERSION")]
    assert clusters == []


@pytest.mark.req("F29")
def test_no_private_key_anywhere(sealed: DiskImage) -> None:
    """The allocated blocks of the disk contain no private key"""
    # Test vectors in the code of GnuTLS are not secret.
    libraries = [found for found in sealed.list("/usr/lib/x86_64-linux-gnu") if "libgnutls.so.30." in found.path]
    known = b"".join(sealed.read(found.path) for found in libraries)
    strangers = {name: match for name, pattern in KEYS.items() for match in sealed.matches(pattern) if match not in known}
    assert strangers == {}


@pytest.mark.req("F29")
def test_no_logs(sealed: DiskImage) -> None:
    """There are no log files in the image, of the installer or of other programs"""
    files = [found.path for found in sealed.walk("/var/log") if found.kind == "file" and found.size > 0]
    assert [path for path in files if path not in LOGS_OF_THE_IMAGE] == []


@pytest.mark.req("F29")
def test_no_traces_of_a_boot(sealed: DiskImage) -> None:
    """The image was never booted: no leases, journal, cloud-init state, shell history or authorized keys"""
    traces = {
        "/var/lib/systemd/network": sealed.list("/var/lib/systemd/network"),
        "/var/log/journal": [found for found in sealed.walk("/var/log/journal") if found.kind == "file"],
        "/var/lib/cloud": [found for found in sealed.walk("/var/lib/cloud") if found.kind == "file"],
        "/home": [found for found in sealed.walk("/home") if not found.path.endswith("lost+found")],
        "/root": [found for found in sealed.list("/root") if found.path.endswith(("_history", ".ssh", ".cache"))],
        "/var/lib/apt/lists": [found for found in sealed.list("/var/lib/apt/lists") if found.kind == "file" and found.size],
        "/var/lib/aide": [found for found in sealed.list("/var/lib/aide") if found.kind == "file"],
        "/var/tmp": [found for found in sealed.list("/var/tmp") if not found.path.endswith("lost+found")],
        "/tmp": sealed.list("/tmp"),
    }
    assert {where: [found.path for found in left] for where, left in traces.items() if left} == {}


@pytest.mark.req("R81", "R98")
def test_no_password_in_shadow(sealed: DiskImage) -> None:
    """Every account of the pristine image is locked: there is no default password"""
    rows = [line.split(":") for line in sealed.read("/etc/shadow").decode().splitlines()]
    assert [name for name, secret, *_ in rows if secret[:1] not in ("*", "!")] == []


@pytest.mark.req("R5")
def test_partition_table(sealed: DiskImage, spec: SimpleNamespace) -> None:
    """The GPT has bios_grub, an EFI system partition and all file systems of the spec, / last so that it can grow"""
    types = [slot.type.upper() for slot in sealed.slots]
    assert types[:2] == [GPT_BIOS_GRUB, GPT_ESP]
    assert set(types[2:]) == {GPT_LINUX}
    assert len(types) == 2 + len(spec.disk.partitions)
    assert sealed.mounts["/"] == max(sealed.slots, key=lambda slot: slot.start)
    assert set(sealed.mounts) >= {partition.mount for partition in spec.disk.partitions}
