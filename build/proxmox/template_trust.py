"""Checks the signatures in the description of a template against the signers that golden.yaml trusts."""

from __future__ import annotations

from build.artifact import artifact, verification
from build.artifact.statement import Seal, Statement, armoured
from build.core.errors import VerificationFailed
from build.proxmox.labels import Label


def require_template(label: Label, trust: verification.Trust, *, where: str) -> tuple[str, ...]:
    """Return the signers of a template. Raises VerificationFailed if its label is inconsistent or signatures are missing."""
    name = artifact.name_of(label.name, label.version, label.digest)
    seal = Seal.parse(label.proof)
    # An image installed on a node has no artifact, and no signatures.
    problems = [] if label.artifact in ("", name) else [f"it names the artifact {label.artifact}, and its digest {name}"]
    identities: tuple[str, ...] = ()
    if trust.signers is not None or trust.signatures:
        statement = Statement(name, label.digest, seal.sums, seal.provenance) if seal else None
        bodies = {name: armoured(body) for name, body in seal.signatures.items()} if seal else {}
        if statement is None:
            problems.append("its description has no signatures")
        else:
            signed = verification.check(statement, bodies, trust)
            identities = signed.identities
            problems += verification.faults(signed, trust)
    if problems:
        raise VerificationFailed(
            f"{where} does not verify", details="\n".join(problems),
            hint="sign its artifact (nox -s attest) and publish it again; list changes with nox -s drift",
        )  # fmt: skip
    return identities
