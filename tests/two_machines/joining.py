"""Joins two containers: a virtual cable (veth) with an address at each end, certificates of one authority, site settings."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from build.core import run
from build.machines import nspawn

# A private network of the two: image tests use the addresses for documentation.
APP, DATABASE, LENGTH = "10.77.0.10", "10.77.0.20", 24
NAME = "app1.example.org"
ENDS = {"app": "golden-app0", "database": "golden-db0"}
SECONDS = 60
APPLY_SECONDS = 300
OWN = "authority: /etc/golden/site-ca.pem, certificate: /etc/golden/machine.pem, key: /etc/golden/machine.key"
KEYS = {
    "app": f"database: {{address: {DATABASE}, {OWN}}}\n",
    "database": f"database_clients: {{{OWN}, clients: [{{name: {NAME}, address: {APP}}}]}}\n",
}


def make_authority(directory: Path) -> None:
    """Create an authority, and a certificate for each of the two machines."""
    directory.mkdir(mode=0o700)
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc"]
    authority, secret = directory / "ca.pem", directory / "ca.key"
    openssl("req", "-x509", *key, "-keyout", secret, "-out", authority, "-subj", "/CN=site", "-days", "2",
            "-addext", "keyUsage=critical,keyCertSign")  # fmt: skip
    for machine, subject, names in (("app", NAME, f"DNS:{NAME}"), ("database", "db.example.org", f"IP:{DATABASE}")):
        own, request = directory / f"{machine}.key", directory / f"{machine}.csr"
        openssl(
            "req", *key, "-keyout", own, "-out", request, "-subj", f"/CN={subject}", "-addext", f"subjectAltName={names}"
        )
        openssl("x509", "-req", "-in", request, "-CA", authority, "-CAkey", secret, "-days", "2", "-copy_extensions", "copy",
                "-out", directory / f"{machine}.pem")  # fmt: skip


def openssl(*words: str | Path) -> None:
    """Run openssl; raise CommandFailed when it fails."""
    run.run(["openssl", *words], timeout=SECONDS)


@contextmanager
def cable(app: int, database: int) -> Iterator[None]:
    """Connect two containers, named by the host's PID of their process 1, during the block."""
    mine, other = ENDS["app"], ENDS["database"]
    run.run(["ip", "link", "add", mine, "netns", str(app), "type", "veth", "peer", "name", other, "netns", str(database)],
            timeout=SECONDS)  # fmt: skip
    try:
        for leader, end, address in ((app, mine, APP), (database, other, DATABASE)):
            for words in (["address", "add", f"{address}/{LENGTH}", "dev", end], ["link", "set", end, "up"]):
                run.run([*nspawn.enter_network(leader), "ip", *words], timeout=SECONDS)
        yield
    finally:
        # Both ends go with one; a container that has ended has taken its end along.
        run.run([*nspawn.enter_network(database), "ip", "link", "delete", other], timeout=SECONDS, check=False)


def settle(machine: str, root: Path, leader: int, authority: Path) -> None:
    """Add the key of a machine to its site settings, with its certificate, and apply them. Raises CommandFailed."""
    place = root / "etc/golden"
    for source, name, mode in (("ca.pem", "site-ca.pem", 0o644), (f"{machine}.pem", "machine.pem", 0o644),
                               (f"{machine}.key", "machine.key", 0o600)):  # fmt: skip
        path = place / name
        path.write_bytes((authority / source).read_bytes())
        path.chmod(mode)
        os.chown(path, 0, 0)
    settings = place / "site.yaml"
    settings.write_text(settings.read_text() + KEYS[machine])
    inside(leader, ["golden-site", "apply"], seconds=APPLY_SECONDS)


def inside(leader: int, argv: Sequence[str], *, seconds: float = SECONDS) -> str:
    """Run a program in a container, as root; return its output. Raises CommandFailed."""
    return run.run(nspawn.enter(leader, *argv), timeout=seconds).stdout
