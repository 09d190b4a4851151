"""Whether an artifact, or a template made of one, is what was built and verified, and who vouches for it. Offline.

An artifact's signatures lie beside it (``<its name>.signatures/<identity>.sig``), because it is immutable and several people
sign. A template carries digests and signatures in its label: from them and its name the signed statement is written anew,
so a clone of it can be refused without the artifact at hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from build.artifact import signing
from build.artifact.artifact import Artifact
from build.artifact.checks import Check, examine
from build.artifact.signing import Signer
from build.artifact.statement import IDENTITY, Seal, Statement, short
from build.core import log
from build.core.errors import SpecError, VerificationFailed
from build.spec.release_policy import Policy

SIGNATURE, BUNDLE, STATEMENT = ".sig", ".sigstore.json", "statement.json"
# Of the 8 KiB that Proxmox keeps of a description; the label itself and the release ledger need the rest.
MOST_SIGNATURE_BYTES = 2560


@dataclass(frozen=True)
class Trust:
    """Whose signatures count and how many are needed: ``signers`` is OpenSSH's allowed signers file, None for nobody's."""

    signers: Path | None = None
    signatures: int = 0
    revoked: Path | None = None

    @classmethod
    def of(cls, policy: Policy, root: Path | None = None) -> Trust:
        """Return the trust of golden.yaml's section ``releases``; ``root`` is the checkout (default: here)."""
        return cls((root or Path.cwd()) / policy.signers if policy.signers else None, policy.signatures)

    def require_files(self) -> None:
        """Raise SpecError when a file that decides about trust is not there."""
        for path, key in ((self.signers, "releases.signers"), (self.revoked, "--revoked")):
            if path is not None and not path.is_file():
                raise SpecError(
                    f"{path} does not exist",
                    hint=f"{key} names it: one signer a line, as ssh-keygen(1) says under ALLOWED SIGNERS",
                )
        if self.signatures and self.signers is None:
            raise SpecError("signatures are asked for, and nobody is allowed to sign", hint="name the file: --signers FILE")


NO_TRUST = Trust()


def place(found: Artifact) -> Path:
    """Return the directory of an artifact's signatures; it need not exist."""
    path = found.path.resolve()
    return path.with_name(f"{path.name}.signatures")


def stored(found: Artifact) -> dict[str, str]:
    """Return the armoured signatures beside an artifact by the identity they are filed under."""
    return {
        path.name.removesuffix(SIGNATURE): path.read_text(encoding="utf-8", errors="replace")
        for path in sorted(place(found).glob(f"*{SIGNATURE}")) if IDENTITY.fullmatch(path.name.removesuffix(SIGNATURE))
    }  # fmt: skip


@dataclass(frozen=True)
class Signed:
    """What became of signatures: who signed and may, which are of nobody who may, which are over something else."""

    signers: Mapping[str, Signer]
    foreign: tuple[str, ...]
    broken: tuple[str, ...]

    @property
    def identities(self) -> tuple[str, ...]:
        """Different people with different keys: neither two names of one key nor two keys of one name count twice."""
        of_key: dict[str, str] = {}
        for one in self.signers.values():
            of_key.setdefault(one.key, one.identity)
        return tuple(sorted(set(of_key.values())))


def judge(statement: Statement, signatures: Mapping[str, str], trust: Trust) -> Signed:
    """Hold signatures against the statement and the allowed signers."""
    trust.require_files()
    signers: dict[str, Signer] = {}
    foreign, broken = [], []
    for identity, text in signatures.items():
        if not signing.key_of(statement.text, text):
            broken.append(identity)
        elif trust.signers and (
            who := signing.verify(statement.text, text, identity, signers=trust.signers, revoked=trust.revoked)
        ):
            signers[identity] = who
        else:
            foreign.append(identity)
    return Signed(signers, tuple(foreign), tuple(broken))


def signature_check(found: Artifact, trust: Trust) -> Check:
    """Return whether enough of those who may have signed; without allowed signers it is not asked, and says so."""
    there = stored(found)
    if trust.signers is None:
        return Check("signatures", f"{len(there)} are there; nobody was named who may sign: --signers FILE", asked=False)
    signed = judge(Statement.of(found), there, trust)
    note = f"{len(signed.identities)} of {trust.signatures} needed: {', '.join(signed.identities) or 'nobody'}"
    return Check("signatures", note, tuple(faults(signed, trust)))


def faults(signed: Signed, trust: Trust) -> Iterable[str]:
    """Yield why these signatures are not enough for a policy; nothing when they are."""
    for identity in signed.broken:
        yield f"{identity}: a signature over something else, or a damaged one"
    if len(signed.identities) < trust.signatures:
        for identity in signed.foreign:
            yield f"{identity}: by a key that is not allowed, no longer allowed, or revoked"
        yield f"{len(signed.identities)} of those who may have signed; {trust.signatures} must"


def verify(found: Artifact, trust: Trust) -> list[Check]:
    """Return every check of an artifact, the signatures' last."""
    checks = examine(found)
    try:
        return [*checks, signature_check(found, trust)]
    except (OSError, KeyError, TypeError) as error:
        return [*checks, Check("signatures", "nothing to hold them against", (f"cannot be read: {error}",))]


def require(found: Artifact, trust: Trust) -> None:
    """Raise VerificationFailed that names each problem, unless the artifact verifies."""
    if failed := [check for check in verify(found, trust) if check.problems]:
        raise VerificationFailed(
            f"{found.path} does not verify", details="\n".join(check.render() for check in failed),
            hint="build it again: nox -s build; where only signatures are missing: nox -s attest",
        )  # fmt: skip


def signatures_of(found: Artifact, policy: Policy, root: Path | None = None) -> tuple[str, ...]:
    """Return the identities that have signed an artifact and may; the policy is relative to the checkout ``root``."""
    return judge(Statement.of(found), stored(found), Trust.of(policy, root)).identities


# --- templates --------------------------------------------------------------------------------------------------------


def seal(found: Artifact, trust: Trust) -> Seal:
    """Return what a template's label carries: of those who may sign when they are named, else every good signature.

    Raises SpecError when fewer fit into a description than are needed.
    """
    statement, there = Statement.of(found), stored(found)
    signed = judge(statement, there, trust)
    good = signed.signers if trust.signers else signed.foreign
    bodies = sorted(((short(there[name]), name) for name in good), key=lambda one: (len(one[0]), one[1]))
    kept: dict[str, str] = {}
    for body, name in bodies:
        if sum(len(key) + len(one) for key, one in kept.items()) + len(body) + len(name) <= MOST_SIGNATURE_BYTES:
            kept[name] = body
    if len(kept) < min(trust.signatures, len(good)):
        raise SpecError(
            f"{len(kept)} of {len(good)} signatures fit into a template's description; {trust.signatures} are needed",
            hint="sign with ed25519 keys: their signatures are short",
        )
    return Seal(statement.sums, statement.provenance, kept)


def require_verified(found: Artifact, trust: Trust) -> None:
    """Raise VerificationFailed unless the artifact is whole, free of contradiction, and signed as ``trust`` asks for."""
    with log.step(f"Verifying {found.path.name}", done="it is what was built and verified"):
        require(found, trust)
