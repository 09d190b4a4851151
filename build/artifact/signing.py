"""Signatures by the programs that people have: ``ssh-keygen -Y``, and cosign where somebody uses that.

OpenSSH's formats: ssh-keygen(1), sections SIGNATURE and ALLOWED SIGNERS; PROTOCOL.sshsig. The agent, hardware keys and
passphrases on a terminal are ssh-keygen's business. Nothing here asks a network: cosign is told to log nothing.
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

# Separates these signatures from those that the same keys make of mails, commits and the like. No domain: we have none.
NAMESPACE = "goldsmith-artifact"
SECONDS = 60
# A person touches a hardware key, or types a passphrase into a window of the agent.
PERSON_SECONDS = 300
GOOD = re.compile(r'Good "[^"]*" signature .*\bwith \S+ key (?P<key>SHA256:\S+)')
# What `cosign signing-config create` prints: no log, no time stamping service.
NO_SERVICES = '{"mediaType":"application/vnd.dev.sigstore.signingconfig.v0.2+json","rekorTlogConfig":{},"tsaConfig":{}}\n'
# Where ssh-keygen finds an agent and a window to ask in; no other child gets these.
AGENT_VARIABLES = ("SSH_AUTH_SOCK", "SSH_ASKPASS", "SSH_ASKPASS_REQUIRE", "SSH_SK_PROVIDER", "DISPLAY", "WAYLAND_DISPLAY")


@dataclass(frozen=True)
class Signer:
    """Who signed: the name in the allowed signers, and the fingerprint of the key."""

    identity: str
    key: str


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in AGENT_VARIABLES if name in os.environ}


def _require() -> None:
    run.which("ssh-keygen", reason="sign artifacts, and verify signatures")


def fingerprint(key: Path) -> str:
    """Return the fingerprint of a key file, private or public, without asking for its passphrase."""
    _require()
    done = run.run(["ssh-keygen", "-l", "-E", "sha256", "-f", key], timeout=SECONDS, check=False)
    found = re.search(r"SHA256:\S+", done.stdout)
    if done.returncode or not found:
        raise SpecError(
            f"{key} is no SSH key", details=run.tail(done.stderr),
            hint="name a private key, or the public one of a key that the agent or a hardware token holds",
        )  # fmt: skip
    return found[0]


def comment(key: Path) -> str:
    """Return the comment of a key, which mostly says whose it is; empty when there is none."""
    done = run.run(["ssh-keygen", "-l", "-E", "sha256", "-f", key], timeout=SECONDS, check=False)
    found = re.fullmatch(r"\d+ SHA256:\S+ (.+) \([A-Z0-9-]+\)", done.stdout.strip())
    return found[1] if found and found[1] != "no comment" else ""


def sign(text: str, key: Path) -> str:
    """Return the armoured signature over ``text``; passphrases are asked for on the terminal. Raises StepFailed."""
    _require()
    with tempfile.TemporaryDirectory() as directory:
        statement = Path(directory) / "statement"
        statement.write_text(text, encoding="utf-8")
        argv = ["ssh-keygen", "-Y", "sign", "-f", os.fspath(key), "-n", NAMESPACE, os.fspath(statement)]
        said = ""
        if sys.stdin.isatty():
            status = run.attach(argv, env=_environment())
        else:
            done = run.run(argv, timeout=PERSON_SECONDS, env=_environment(), check=False)
            status, said = done.returncode, run.tail(done.stderr)
        made = statement.with_name("statement.sig")
        if status or not made.is_file():
            raise StepFailed(
                f"ssh-keygen did not sign with {key}", details=said,
                hint="a key with a passphrase needs a terminal, or an agent that holds it: ssh-add",
            )  # fmt: skip
        return made.read_text(encoding="ascii")


def key_of(text: str, signature: str) -> str:
    """Return the fingerprint of the key that signed ``text``, whosever it is; empty when the signature is not good."""
    return _ask(["check-novalidate"], text, signature)


def verify(text: str, signature: str, identity: str, *, signers: Path, revoked: Path | None = None) -> Signer | None:
    """Return who signed ``text``: ``identity`` if its key is theirs, else whoever is allowed with that key; None for nobody.

    Times of the allowed signers (valid-after, valid-before) are held against now: a signature has no time of its own that
    could be trusted.
    """
    for name in [identity, *_principals(signature, signers=signers)]:
        words = ["verify", "-f", os.fspath(signers), "-I", name, *(["-r", os.fspath(revoked)] if revoked else [])]
        if key := _ask(words, text, signature):
            return Signer(name, key)
    return None


def _ask(words: list[str], text: str, signature: str) -> str:
    _require()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "signature"
        path.write_text(signature, encoding="utf-8")
        argv = ["ssh-keygen", "-Y", *words, "-n", NAMESPACE, "-s", os.fspath(path)]
        done = run.run(argv, timeout=SECONDS, stdin=text.encode(), check=False)
    found = GOOD.search(done.stdout)
    return found["key"] if done.returncode == 0 and found else ""


def _principals(signature: str, *, signers: Path) -> list[str]:
    """Return the identities that the allowed signers name for the signature's key."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "signature"
        path.write_text(signature, encoding="utf-8")
        argv = ["ssh-keygen", "-Y", "find-principals", "-s", os.fspath(path), "-f", os.fspath(signers)]
        done = run.run(argv, timeout=SECONDS, check=False)
    return done.stdout.splitlines() if done.returncode == 0 else []


# --- cosign -----------------------------------------------------------------------------------------------------------


def cosign_sign(statement: Path, key: str, bundle: Path) -> None:
    """Sign a file with cosign and a key of its own kind (a file, or the address of a key service); write ``bundle``."""
    with files.scratch(bundle.parent) as directory:
        config, made = directory / "signing-config.json", directory / "bundle.json"
        config.write_text(NO_SERVICES)
        argv = ["cosign", "sign-blob", "--yes", "--key", key, "--signing-config", os.fspath(config), "--bundle",
                os.fspath(made), os.fspath(statement)]  # fmt: skip
        _cosign(argv)
        if not made.is_file():
            raise StepFailed("cosign wrote no bundle", hint="its version must be 3 or later: cosign version")
        made.rename(bundle)


def cosign_verify(statement: Path, key: str, bundle: Path) -> bool:
    """Say whether a bundle of cosign's is a signature over a file by a key."""
    _require_cosign()
    argv = ["cosign", "verify-blob", "--key", key, "--insecure-ignore-tlog=true", "--bundle", os.fspath(bundle),
            os.fspath(statement)]  # fmt: skip
    return run.run(argv, timeout=SECONDS, check=False).returncode == 0


def _cosign(argv: list[str]) -> None:
    _require_cosign()
    variables = {name: os.environ[name] for name in ("COSIGN_PASSWORD",) if name in os.environ}
    if sys.stdin.isatty():
        if run.attach(argv, env=variables):
            raise StepFailed("cosign did not sign", hint="is the password right? it may stand in $COSIGN_PASSWORD")
        return
    run.run(argv, timeout=PERSON_SECONDS, env=variables, hint="is the password right? it may stand in $COSIGN_PASSWORD")


def _require_cosign() -> None:
    if shutil.which("cosign", path=run.search_path()) is None:
        raise HostError(
            "cosign is not installed; it was asked for by --cosign-key", hint="install it, or do without --cosign-key"
        )
