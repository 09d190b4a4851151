"""Installs a pair: complete after a power cut, served before the command ends, and rolled back when that fails.

Two files cannot be replaced at once. Both are first written beside each other below PENDING; as long as that directory
is there, ``finish`` (also run at boot, before the web server) puts them where they belong.
"""

from __future__ import annotations

import shutil
import socket
import ssl
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from golden.certificates import CERTIFICATE, KEY, Certificate, read_key
from golden.core import Problem, run, write_whole

STATE = Path("/var/lib/golden-certificates")
PENDING = STATE / "pending"
PREVIOUS = STATE / "previous"
SERVED_SECONDS = 5.0
RELOAD_SECONDS = 60


def install(chain: Sequence[Certificate], key: Path, *, name: str) -> float:
    """Put the pair in its place and make the web server serve it; return the seconds until it was served.

    Raises Problem, with the former pair back in its place, when the web server does not take it.
    """
    keep_previous()
    stage(b"".join(one.pem for one in chain), read_key(key))
    finish()
    if not web_server_runs():
        return 0.0
    try:
        return reload_web_server(chain[0].pem, name=name)
    except Problem:
        take_back()
        raise


def stage(certificate: bytes, key: bytes) -> None:
    """Write both files below PENDING; the directory gets its name when both are on the disk."""
    fresh = PENDING.with_suffix(".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    write_whole(fresh / KEY.name, key, mode=0o600)
    write_whole(fresh / CERTIFICATE.name, certificate, mode=0o644)
    shutil.rmtree(PENDING, ignore_errors=True)
    fresh.rename(PENDING)
    run(["sync", STATE])


def finish() -> bool:
    """Install a staged pair; return True if there was one."""
    if not PENDING.is_dir():
        return False
    write_whole(KEY, (PENDING / KEY.name).read_bytes(), mode=0o600)
    write_whole(CERTIFICATE, (PENDING / CERTIFICATE.name).read_bytes(), mode=0o644)
    shutil.rmtree(PENDING)
    return True


def keep_previous() -> None:
    """Copy the pair that is there, to be able to go back."""
    shutil.rmtree(PREVIOUS, ignore_errors=True)
    PREVIOUS.mkdir(mode=0o700)
    for path, mode in ((KEY, 0o600), (CERTIFICATE, 0o644)):
        if path.is_file():
            write_whole(PREVIOUS / path.name, path.read_bytes(), mode=mode)


def take_back() -> None:
    """Put the former pair back, and let the web server read it again."""
    if (PREVIOUS / KEY.name).is_file() and (PREVIOUS / CERTIFICATE.name).is_file():
        stage((PREVIOUS / CERTIFICATE.name).read_bytes(), (PREVIOUS / KEY.name).read_bytes())
        finish()
        run(["systemctl", "reload", "nginx.service"], check=False, timeout=RELOAD_SECONDS)


def web_server_runs() -> bool:
    """Return True if there is a web server to reload."""
    return run(["systemctl", "is-active", "--quiet", "nginx.service"], check=False).returncode == 0


def reload_web_server(pem: bytes, *, name: str) -> float:
    """Reload, and wait until the certificate is served; return how long that took. Raises Problem when it is not."""
    started = time.monotonic()
    run(["systemctl", "reload", "nginx.service"], timeout=RELOAD_SECONDS)
    # Old workers may accept a connection until all of them have the signal.
    while time.monotonic() - started < SERVED_SECONDS:
        if served(name) == fingerprint(pem):
            return time.monotonic() - started
        time.sleep(0.1)
    raise Problem(
        f"the web server was reloaded and does not serve the certificate after {SERVED_SECONDS:.0f} s",
        hint="journalctl -u nginx",
    )


def fingerprint(pem: bytes) -> str:
    """Return the SHA-256 of a certificate."""
    return sha256(ssl.PEM_cert_to_DER_cert(pem.decode())).hexdigest()


def served(name: str) -> str:
    """Return the SHA-256 of the certificate that the web server shows for a name; empty when there is no answer."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection(("127.0.0.1", 443), timeout=SERVED_SECONDS) as connection,
            context.wrap_socket(connection, server_hostname=name) as secured,
        ):
            return sha256(secured.getpeercert(binary_form=True) or b"").hexdigest()
    except OSError:
        return ""
