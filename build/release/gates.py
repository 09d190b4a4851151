"""The gates of golden.yaml: conditions that a version must meet before a channel may point at it, and their results.

A gate that cannot be evaluated is not passed: a metric is missing in the manifest, the clock is wrong, or signatures
cannot be checked on this host.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from build.artifact.artifact import Artifact
from build.core.errors import GoldsmithError, VerificationFailed
from build.core.units import seconds_of, stamp
from build.report import vulnerability_survey
from build.spec.release_policy import Policy

# Returns the names of the signers with a valid signature on an artifact. Raises GoldsmithError if a signature is
# invalid.
Signatures = Callable[[Artifact, Policy], Collection[str]]
HOUR = 3600
LOOK = "nox -s vulnerabilities"


@dataclass(frozen=True)
class Gate:
    """A gate: the condition (``name``), whether it is met, and the measured value (``text``)."""

    name: str
    passed: bool
    text: str


def evaluate(
    image: Artifact, policy: Policy, *, published: Sequence[str], now: datetime, last: str, signatures: Signatures | None
) -> list[Gate]:
    """Evaluate the gates of the policy for an artifact.

    ``published``: the time when it became a candidate, on each node; ``last``: the time of the ledger's last entry, or
    empty; ``signatures``: None if signatures cannot be checked.
    """
    gates = [*_audit(image, policy)]
    gates += _vulnerabilities(image, policy, now)
    if policy.soak_seconds:
        gates.insert(0, _soak(policy.soak_seconds, published, now, last))
    if policy.signatures:
        gates.append(_signed(image, policy, signatures))
    return gates


def require(gates: Sequence[Gate], image_name: str) -> None:
    """Raise VerificationFailed that names every gate that was not passed."""
    if failed := [gate for gate in gates if not gate.passed]:
        raise VerificationFailed(
            f"{image_name} does not pass {len(failed)} of {len(gates)} gates of golden.yaml",
            details="\n".join(f"{gate.name}: {gate.text}" for gate in failed),
            hint="nothing was changed; see the gates below releases in golden.yaml",
        )


def _soak(required: int, published: Sequence[str], now: datetime, last: str) -> Gate:
    name = f"soak of {_hours(required)}"
    try:
        candidate_since = max(seconds_of(published_time) for published_time in published)
    except ValueError:
        return Gate(
            name, passed=False, text="it is unknown since when it has been a candidate: its templates have no such time"
        )
    newest = max(candidate_since, seconds_of(last) if last else 0)
    if now.timestamp() < newest:
        text = f"the clock of this host is at {stamp(now)}, before the last release: correct it"
        return Gate(name, passed=False, text=text)
    waited = int(now.timestamp() - candidate_since)
    return Gate(name, passed=waited >= required, text=f"it has been a candidate for {_hours(waited)}")


def _hours(seconds: int) -> str:
    return f"{seconds / HOUR:.1f} h"


def _audit(image: Artifact, policy: Policy) -> Iterator[Gate]:
    metrics = image.manifest.audit or {}
    for limits, sign in ((policy.at_least, ">="), (policy.at_most, "<=")):
        for name, limit in sorted(limits.items()):
            condition = f"{name} {sign} {limit:g}"
            if name not in metrics:
                yield Gate(
                    condition, passed=False, text="the artifact's manifest has no such metric: audit it, and build again"
                )
            else:
                value = metrics[name].value
                yield Gate(condition, passed=value >= limit if sign == ">=" else value <= limit, text=f"it is {value:g}")


def _vulnerabilities(image: Artifact, policy: Policy, now: datetime) -> Iterator[Gate]:
    """One gate for each limit. It is not passed if there was no survey, or only an old one."""
    seen = vulnerability_survey.kept(image.path) if policy.vulnerabilities_at_most else None
    for name, limit in sorted(policy.vulnerabilities_at_most.items()):
        condition = f"known vulnerabilities, {name} <= {limit:g}"
        if seen is None:
            yield Gate(condition, passed=False, text=f"they were not looked up: {LOOK}")
            continue
        age = now.timestamp() - seen[0].timestamp()
        if age > policy.vulnerability_seconds or name not in seen[1]:
            yield Gate(condition, passed=False, text=f"they were looked up {_hours(int(age))} ago: {LOOK}")
        else:
            yield Gate(condition, passed=seen[1][name] <= limit, text=f"there are {seen[1][name]}")


def _signed(image: Artifact, policy: Policy, signatures: Signatures | None) -> Gate:
    name = f"{policy.signatures} signatures" if policy.signatures > 1 else "a signature"
    if signatures is None:
        return Gate(name, passed=False, text="signatures cannot be checked on this host: it counts as unsigned")
    try:
        signers = sorted(set(signatures(image, policy)))
    except GoldsmithError as error:
        return Gate(name, passed=False, text=error.brief)
    text = f"signed by {', '.join(signers)}" if signers else f"it has no signature by a signer listed in {policy.signers}"
    return Gate(name, passed=len(signers) >= policy.signatures, text=text)
