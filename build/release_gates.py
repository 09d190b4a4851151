"""The gates of golden.yaml: what a version has to show before a channel may point at it, each with what was found.

A gate that cannot be judged has not been passed: a figure that the manifest lacks, a clock that cannot be right, signatures
that nobody can check here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from build import release_entry
from build.artifact import Artifact
from build.errors import GoldsmithError, VerificationFailed
from build.release_policy import Policy

# The names of those who have signed an artifact, as far as their signatures hold. Raises GoldsmithError when one does not.
Signatures = Callable[[Artifact, Policy], Collection[str]]
HOUR = 3600


@dataclass(frozen=True)
class Gate:
    """A gate: what it asks for, whether that is so, and what was found."""

    name: str
    passed: bool
    text: str


def judge(
    found: Artifact, policy: Policy, *, published: Sequence[str], now: datetime, last: str, signatures: Signatures | None
) -> list[Gate]:
    """Judge an artifact by the policy.

    ``published``: when it became a candidate, on each node; ``last``: the time of the ledger's last entry, or empty;
    ``signatures``: None when this Goldsmith cannot check any.
    """
    gates = [*_audit(found, policy)]
    if policy.soak_seconds:
        gates.insert(0, _soak(policy.soak_seconds, published, now, last))
    if policy.signatures:
        gates.append(_signed(found, policy, signatures))
    return gates


def require(gates: Sequence[Gate], what: str) -> None:
    """Raise VerificationFailed that names every gate that was not passed."""
    if failed := [one for one in gates if not one.passed]:
        raise VerificationFailed(
            f"{what} does not pass {len(failed)} of {len(gates)} gates of golden.yaml",
            details="\n".join(f"{one.name}: {one.text}" for one in failed),
            hint="releases in golden.yaml says what is asked for; nothing was changed",
        )


def _soak(wanted: int, published: Sequence[str], now: datetime, last: str) -> Gate:
    name = f"soak of {_hours(wanted)}"
    try:
        begun = max(release_entry.seconds(one) for one in published)
    except ValueError:
        return Gate(name, passed=False, text="nobody knows since when it has been a candidate: its templates do not say it")
    newest = max(begun, release_entry.seconds(last) if last else 0)
    if now.timestamp() < newest:
        text = f"this machine's clock says {release_entry.stamp(now)}, which is before the last release: set it right"
        return Gate(name, passed=False, text=text)
    waited = int(now.timestamp() - begun)
    return Gate(name, passed=waited >= wanted, text=f"it has been a candidate for {_hours(waited)}")


def _hours(seconds: int) -> str:
    return f"{seconds / HOUR:.1f} h"


def _audit(found: Artifact, policy: Policy) -> Iterator[Gate]:
    figures = found.manifest.get("audit", {})
    for limits, sign in ((policy.at_least, ">="), (policy.at_most, "<=")):
        for name, limit in sorted(limits.items()):
            value = figures.get(name, {}).get("value")
            asked = f"{name} {sign} {limit:g}"
            if not isinstance(value, int | float):
                yield Gate(asked, passed=False, text="the artifact's manifest has no such figure: audit it, and build anew")
            else:
                yield Gate(asked, passed=value >= limit if sign == ">=" else value <= limit, text=f"it is {value:g}")


def _signed(found: Artifact, policy: Policy, signatures: Signatures | None) -> Gate:
    name = f"{policy.signatures} signatures" if policy.signatures > 1 else "a signature"
    if signatures is None:
        return Gate(name, passed=False, text="nothing here can check signatures: it counts as unsigned")
    try:
        signers = sorted(set(signatures(found, policy)))
    except GoldsmithError as error:
        return Gate(name, passed=False, text=error.brief)
    text = f"signed by {', '.join(signers)}" if signers else f"none of those in {policy.signers} has signed it"
    return Gate(name, passed=len(signers) >= policy.signatures, text=text)
