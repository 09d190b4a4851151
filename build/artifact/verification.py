"""Verifies offline that an artifact, or a template made from one, is what was built and tested, and who signed it.

The signatures of an artifact are stored beside it (``<its name>.signatures/<identity>.sig``), because it is immutable and
several people sign. The label of a template has digests and signatures: together with its name they give the signed
statement, so ``clone`` can refuse a template without access to the artifact.
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
# The signatures' part of the 8 KiB of a description in Proxmox; the label and the release ledger need the rest.
MOST_SIGNATURE_BYTES = 2560


@dataclass(frozen=True)
class Trust:
    """Whose signatures count, and how many are needed. ``signers``: OpenSSH's allowed signers file (None: not checked)."""

    signers: Path | None = None
    signatures: int = 0
    revoked: Path | None = None

    @classmethod
    def of(cls, policy: Policy, root: Path | None = None) -> Trust:
        """Return the trust of golden.yaml's section ``releases``; ``root`` is the checkout (default: here)."""
        return cls((root or Path.cwd()) / policy.signers if policy.signers else None, policy.signatures)

    def require_files(self) -> None:
        """Raise SpecError when a file with signers or revoked keys does not exist."""
        for path, key in ((self.signers, "releases.signers"), (self.revoked, "--revoked")):
            if path is not None and not path.is_file():
                raise SpecError(
                    f"{path} does not exist",
                    hint=f"it is set by {key}; its format: ssh-keygen(1), section ALLOWED SIGNERS",
                )
        if self.signatures and self.signers is None:
            raise SpecError("signatures are required, but no allowed signers file is set", hint="set it with --signers FILE")


NO_TRUST = Trust()


def place(found: Artifact) -> Path:
    """Return the directory of an artifact's signatures; it may not exist yet."""
    path = found.path.resolve()
    return path.with_name(f"{path.name}.signatures")


def stored(found: Artifact) -> dict[str, str]:
    """Return the armoured signatures stored beside an artifact, by identity."""
    return {
        path.name.removesuffix(SIGNATURE): path.read_text(encoding="utf-8", errors="replace")
        for path in sorted(place(found).glob(f"*{SIGNATURE}")) if IDENTITY.fullmatch(path.name.removesuffix(SIGNATURE))
    }  # fmt: skip


@dataclass(frozen=True)
class Signed:
    """Checked signatures: those of allowed signers, valid ones of other keys, and those that are not of this statement."""

    signers: Mapping[str, Signer]
    foreign: tuple[str, ...]
    broken: tuple[str, ...]

    @property
    def identities(self) -> tuple[str, ...]:
        """The signers with different names and different keys: two names of one key, or two keys of one name, count once."""
        of_key: dict[str, str] = {}
        for signer in self.signers.values():
            of_key.setdefault(signer.key, signer.identity)
        return tuple(sorted(set(of_key.values())))


def check(statement: Statement, signatures: Mapping[str, str], trust: Trust) -> Signed:
    """Check signatures of the statement against the allowed signers."""
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
    """Check that enough allowed signers have signed; without an allowed signers file the result is "not checked"."""
    signatures = stored(found)
    if trust.signers is None:
        note = f"{len(signatures)} stored; the allowed signers are not set: --signers FILE"
        return Check("signatures", note, checked=False)
    signed = check(Statement.of(found), signatures, trust)
    note = f"{len(signed.identities)} of {trust.signatures} needed: {', '.join(signed.identities) or 'none'}"
    return Check("signatures", note, tuple(faults(signed, trust)))


def faults(signed: Signed, trust: Trust) -> Iterable[str]:
    """Yield the reasons why the signatures do not satisfy the policy."""
    for identity in signed.broken:
        yield f"{identity}: the signature is damaged, or of another artifact"
    if len(signed.identities) < trust.signatures:
        for identity in signed.foreign:
            yield f"{identity}: the key is not allowed, no longer allowed, or revoked"
        yield f"{len(signed.identities)} of {trust.signatures} required signatures are by allowed signers"


def verify(found: Artifact, trust: Trust) -> list[Check]:
    """Return every check of an artifact; the check of the signatures is the last one."""
    checks = examine(found)
    try:
        return [*checks, signature_check(found, trust)]
    except (OSError, KeyError, TypeError) as error:
        return [*checks, Check("signatures", "they cannot be checked", (f"cannot be read: {error}",))]


def require(found: Artifact, trust: Trust) -> None:
    """Raise VerificationFailed with each problem, unless the artifact verifies."""
    if failed := [result for result in verify(found, trust) if result.problems]:
        raise VerificationFailed(
            f"{found.path} does not verify", details="\n".join(result.render() for result in failed),
            hint="build it again: nox -s build; if only signatures are missing: nox -s attest",
        )  # fmt: skip


def signatures_of(found: Artifact, policy: Policy, root: Path | None = None) -> tuple[str, ...]:
    """Return the allowed signers of an artifact who have signed; paths of the policy are relative to ``root``."""
    return check(Statement.of(found), stored(found), Trust.of(policy, root)).identities


# --- templates --------------------------------------------------------------------------------------------------------


def seal(found: Artifact, trust: Trust) -> Seal:
    """Return the content of a template's label: the allowed signers' signatures; without allowed signers all valid ones.

    Raises SpecError when fewer than the required number fit into a description.
    """
    statement, signatures = Statement.of(found), stored(found)
    signed = check(statement, signatures, trust)
    good = signed.signers if trust.signers else signed.foreign
    bodies = sorted(((short(signatures[name]), name) for name in good), key=lambda pair: (len(pair[0]), pair[1]))
    kept: dict[str, str] = {}
    for body, name in bodies:
        if sum(len(key) + len(value) for key, value in kept.items()) + len(body) + len(name) <= MOST_SIGNATURE_BYTES:
            kept[name] = body
    if len(kept) < min(trust.signatures, len(good)):
        raise SpecError(
            f"{len(kept)} of {len(good)} signatures fit into a template's description; {trust.signatures} are needed",
            hint="sign with ed25519 keys: their signatures are short",
        )
    return Seal(statement.sums, statement.provenance, kept)


def require_verified(found: Artifact, trust: Trust) -> None:
    """Raise VerificationFailed unless the artifact is complete, consistent, and signed as ``trust`` requires."""
    with log.step(f"Verifying {found.path.name}", done="it verifies"):
        require(found, trust)
