"""Makes and verifies signatures with ``ssh-keygen -Y``, and with cosign if a cosign key is configured.

OpenSSH's formats: ssh-keygen(1), sections SIGNATURE and ALLOWED SIGNERS; PROTOCOL.sshsig. ssh-keygen itself handles the
agent, hardware keys and passphrases. Nothing here uses the network: cosign is configured without a transparency log.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from build.core import files, run
from build.core.errors import HostError, SpecError, StepFailed

# Keeps these signatures apart from those that the same keys make of mails, commits and so on. Not a domain name.
NAMESPACE = "goldsmith-artifact"
SECONDS = 60
# The user touches a hardware key, or types a passphrase into a window of the agent.
PERSON_SECONDS = 300
COSIGN_HINT = "check the password; it can be set in $COSIGN_PASSWORD"
GOOD = re.compile(r'Good "[^"]*" signature .*\bwith \S+ key (?P<key>SHA256:\S+)')
# The output of `cosign signing-config create`: without transparency log and time stamping service.
NO_SERVICES = '{"mediaType":"application/vnd.dev.sigstore.signingconfig.v0.2+json","rekorTlogConfig":{},"tsaConfig":{}}\n'
# ssh-keygen needs these for the agent and its windows; no other program that Goldsmith starts gets them.
AGENT_VARIABLES = ("SSH_AUTH_SOCK", "SSH_ASKPASS", "SSH_ASKPASS_REQUIRE", "SSH_SK_PROVIDER", "DISPLAY", "WAYLAND_DISPLAY")


@dataclass(frozen=True)
class Signer:
    """A signer: the name in the allowed signers, and the fingerprint of the key."""

    identity: str
    key: str


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in AGENT_VARIABLES if name in os.environ}


def _require() -> None:
    run.which("ssh-keygen", reason="sign artifacts, and verify signatures")


def fingerprint(key: Path) -> str:
    """Return the fingerprint of a key file, private or public; its passphrase is not needed."""
    _require()
    done = run.run(["ssh-keygen", "-l", "-E", "sha256", "-f", key], timeout=SECONDS, check=False)
    match = re.search(r"SHA256:\S+", done.stdout)
    if done.returncode or not match:
        raise SpecError(
            f"{key} is not an SSH key", details=run.tail(done.stderr),
            hint="use a private key file, or the public key file of a key in the agent or on a hardware token",
        )  # fmt: skip
    return match[0]


def comment(key: Path) -> str:
    """Return the comment of a key, which often names its owner; empty when there is none."""
    done = run.run(["ssh-keygen", "-l", "-E", "sha256", "-f", key], timeout=SECONDS, check=False)
    match = re.fullmatch(r"\d+ SHA256:\S+ (.+) \([A-Z0-9-]+\)", done.stdout.strip())
    return match[1] if match and match[1] != "no comment" else ""


def sign(text: str, key: Path) -> str:
    """Return the armoured signature of ``text``; ssh-keygen asks for passphrases on the terminal. Raises StepFailed."""
    _require()
    with tempfile.TemporaryDirectory() as directory:
        statement = Path(directory) / "statement"
        statement.write_text(text, encoding="utf-8")
        argv = ["ssh-keygen", "-Y", "sign", "-f", os.fspath(key), "-n", NAMESPACE, os.fspath(statement)]
        output = ""
        if sys.stdin.isatty():
            status = run.attach(argv, env=_environment())
        else:
            done = run.run(argv, timeout=PERSON_SECONDS, env=_environment(), check=False)
            status, output = done.returncode, run.tail(done.stderr)
        signature = statement.with_name("statement.sig")
        if status or not signature.is_file():
            raise StepFailed(
                f"ssh-keygen did not sign with {key}", details=output,
                hint="a key with a passphrase needs a terminal, or must be in the agent: ssh-add",
            )  # fmt: skip
        return signature.read_text(encoding="ascii")


def key_of(text: str, signature: str) -> str:
    """Return the fingerprint of the key that signed ``text``, trusted or not; empty when the signature is not valid."""
    return _check(["check-novalidate"], text, signature)


def verify(text: str, signature: str, identity: str, *, signers: Path, revoked: Path | None = None) -> Signer | None:
    """Return the signer of ``text``: ``identity`` if it has the key, else another identity that has it; None if none has.

    The times of the allowed signers (valid-after, valid-before) are compared with the current time: a signature does not
    contain a time that can be trusted.
    """
    for name in [identity, *_principals(signature, signers=signers)]:
        options = ["verify", "-f", os.fspath(signers), "-I", name, *(["-r", os.fspath(revoked)] if revoked else [])]
        if key := _check(options, text, signature):
            return Signer(name, key)
    return None


def _check(options: list[str], text: str, signature: str) -> str:
    _require()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "signature"
        path.write_text(signature, encoding="utf-8")
        argv = ["ssh-keygen", "-Y", *options, "-n", NAMESPACE, "-s", os.fspath(path)]
        done = run.run(argv, timeout=SECONDS, stdin=text.encode(), check=False)
    match = GOOD.search(done.stdout)
    return match["key"] if done.returncode == 0 and match else ""


def _principals(signature: str, *, signers: Path) -> list[str]:
    """Return the identities that have the signature's key in the allowed signers."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "signature"
        path.write_text(signature, encoding="utf-8")
        argv = ["ssh-keygen", "-Y", "find-principals", "-s", os.fspath(path), "-f", os.fspath(signers)]
        done = run.run(argv, timeout=SECONDS, check=False)
    return done.stdout.splitlines() if done.returncode == 0 else []


# --- cosign -----------------------------------------------------------------------------------------------------------


def cosign_sign(statement: Path, key: str, bundle: Path) -> None:
    """Sign a file with cosign and a cosign key (a file, or the address of a key service); write ``bundle``."""
    with files.scratch(bundle.parent) as directory:
        config, written = directory / "signing-config.json", directory / "bundle.json"
        config.write_text(NO_SERVICES)
        argv = ["cosign", "sign-blob", "--yes", "--key", key, "--signing-config", os.fspath(config), "--bundle",
                os.fspath(written), os.fspath(statement)]  # fmt: skip
        _cosign(argv)
        if not written.is_file():
            raise StepFailed(
                "cosign did not write a bundle", hint="version 3 or later is needed; to show it: cosign version"
            )
        written.rename(bundle)


def cosign_verify(statement: Path, key: str, bundle: Path) -> bool:
    """Return True if a cosign bundle is a signature of a file by a key."""
    _require_cosign()
    argv = ["cosign", "verify-blob", "--key", key, "--insecure-ignore-tlog=true", "--bundle", os.fspath(bundle),
            os.fspath(statement)]  # fmt: skip
    return run.run(argv, timeout=SECONDS, check=False).returncode == 0


def _cosign(argv: list[str]) -> None:
    _require_cosign()
    variables = {name: os.environ[name] for name in ("COSIGN_PASSWORD",) if name in os.environ}
    if sys.stdin.isatty():
        if run.attach(argv, env=variables):
            raise StepFailed("cosign did not sign", hint=COSIGN_HINT)
        return
    run.run(argv, timeout=PERSON_SECONDS, env=variables, hint=COSIGN_HINT)


def _require_cosign() -> None:
    if shutil.which("cosign", path=run.search_path()) is None:
        raise HostError("cosign is not installed; --cosign-key needs it", hint="install it, or leave out --cosign-key")
