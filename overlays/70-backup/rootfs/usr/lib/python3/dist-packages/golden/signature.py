"""Who made a backup: each is signed with a key of the machine, and restored only if its signer is known here.

Anybody can encrypt for a public key, so encryption alone does not show where a backup comes from. ``FILE.sig`` is a
signature of OpenSSH's form (ssh-keygen -Y sign) over the SHA-256 of the file, a line of 64 hexadecimal digits. By hand:
``sha256sum FILE | cut -c1-64 | ssh-keygen -Y check-novalidate -n golden-backup -s FILE.sig``.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from golden.core import CHECK_FAILED, USAGE, Problem, run

NAMESPACE = IDENTITY = "golden-backup"
STATE = Path("/var/lib/golden-backup")
KEY = STATE / "signing_key"
SUFFIX = ".sig"
LARGEST_SIGNATURE = 64 << 10
PUBLIC_KEY = re.compile(r"((?:sk-)?(?:ssh|ecdsa)-[a-z0-9@.-]{3,60} [A-Za-z0-9+/]{32,2000}={0,3})(?: [ -~]*)?")
HOW_TO_TRUST = (
    "give what `golden-backup --signer` prints on the machine that made the backup to --signer, or put it into "
    "backup.signers of /etc/golden/site.yaml; --unsigned restores a backup that you trust for another reason"
)


def signer() -> str:
    """Return the public key of this machine's signatures; the key is made when it is needed first."""
    if not KEY.exists():
        STATE.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = KEY.with_name(f".{KEY.name}.new")
        for left in (fresh, fresh.with_name(f"{fresh.name}.pub")):
            left.unlink(missing_ok=True)
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", IDENTITY, "-f", fresh])
        fresh.with_name(f"{fresh.name}.pub").unlink()
        run(["sync", fresh])
        fresh.replace(KEY)
    return public_key(run(["ssh-keygen", "-y", "-f", KEY]).stdout.decode())


def public_key(text: str) -> str:
    """Return a public key of OpenSSH without its comment. Raises Problem for anything else."""
    found = PUBLIC_KEY.fullmatch(text.strip())
    if not found:
        raise Problem(f"{text.strip()[:60]!r} is not a public key", code=USAGE,
                      hint="one line that begins with ssh-ed25519, as `golden-backup --signer` prints it")  # fmt: skip
    return found[1]


def sign(checksum: str) -> bytes:
    """Return this machine's signature of a file with the SHA-256 ``checksum``."""
    signer()
    return run(["ssh-keygen", "-q", "-Y", "sign", "-f", KEY, "-n", NAMESPACE], stdin=f"{checksum}\n".encode()).stdout


def verify(archive: Path, checksum: str, signers: Sequence[str]) -> None:
    """Raise Problem (CHECK_FAILED) unless one of the ``signers`` (public keys) has signed the file with this SHA-256."""
    place = archive.with_name(f"{archive.name}{SUFFIX}")
    try:
        with place.open("rb") as stream:
            signature = stream.read(LARGEST_SIGNATURE)
    except OSError as error:
        raise Problem(f"{archive} is not signed: {place}: {error.strerror}", code=CHECK_FAILED,
                      hint=f"copy {place.name} beside it; {HOW_TO_TRUST}") from None  # fmt: skip
    content = f"{checksum}\n".encode()
    with tempfile.NamedTemporaryFile() as allowed, tempfile.NamedTemporaryFile() as given:
        allowed.write("".join(f'{IDENTITY} namespaces="{NAMESPACE}" {key}\n' for key in signers).encode())
        given.write(signature)
        allowed.flush()
        given.flush()
        words = ["-n", NAMESPACE, "-s", given.name]
        argv = ["ssh-keygen", "-q", "-Y", "verify", "-f", allowed.name, "-I", IDENTITY, *words]
        if run(argv, stdin=content, check=False).returncode == 0:
            return
        good = run(["ssh-keygen", "-Y", "check-novalidate", *words], stdin=content, check=False)
    key = re.search(r"SHA256:[A-Za-z0-9+/]{43}", good.stdout.decode(errors="replace")) if good.returncode == 0 else None
    if key is None:
        raise Problem(f"{place} is not a signature of this file: one of the two was changed", code=CHECK_FAILED,
                      hint="copy both again")  # fmt: skip
    raise Problem(f"{archive} is signed by {key[0]}, and this machine does not know that signer", code=CHECK_FAILED,
                  hint=HOW_TO_TRUST)  # fmt: skip
