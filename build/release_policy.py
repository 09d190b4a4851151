"""What a version must show before a channel may point at it: the section ``releases`` of golden.yaml.

Nothing of it shapes an image. Without the section there is one channel beyond ``candidate``, called ``stable``, and what it
takes is what every channel takes: a verified, published, unrevoked artifact.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from build.tables import Table

# Where every published version stands; nobody moves it.
CANDIDATE = "candidate"
STABLE = "stable"
SECONDS_PER_UNIT = {"m": 60, "h": 3600, "d": 86_400}
LEDGER = "artifacts/releases.jsonl"
RELATIVE = r"(?!/)(?!(.*/)?\.\.(/|$))[A-Za-z0-9._/-]+"


@dataclass(frozen=True)
class Policy:
    """The gates of promotion.

    ``soak_seconds``: how long a version has been a candidate at least; ``audit``: figures of the auditors by name and the
    value that each must reach (``at_least``) or not exceed (``at_most``); ``signers``: OpenSSH's allowed signers file (None:
    signatures are not looked at); ``signatures``: how many different signers must have signed; ``ledger``: where
    assignments are kept. Paths are relative to the checkout.
    """

    channels: tuple[str, ...] = (STABLE,)
    soak_seconds: int = 0
    at_least: Mapping[str, float] = field(default_factory=dict)
    at_most: Mapping[str, float] = field(default_factory=dict)
    signers: Path | None = None
    signatures: int = 0
    ledger: Path = Path(LEDGER)


def read(value: object, *, problems: list[str]) -> Policy:
    """Read the section ``releases`` of golden.yaml; every problem goes onto the list."""
    table = Table(value, where="releases", problems=problems)
    # They are tags on the cluster, beside tags of versions and digests.
    channels = table.strings("channels", r"[a-z][a-z0-9_-]{0,30}", "write a name such as stable: it becomes a tag")
    for name in channels:
        if name == CANDIDATE or re.match(r"golden|sha256-|v[0-9]|revoked", name):
            table.problem("channels", name, "this name has a meaning of its own on the cluster: take another one")
    signers = table.text("signers", rf"({RELATIVE})?", "write a path within the checkout", default="")
    number = table.number("signatures", 0, 16) if "signatures" in table.value else 1 if signers else 0
    table.known.add("signatures")
    if number and not signers:
        table.problem("signatures", number, "name the file of those who may sign as well: signers")
    gates = Table(table.take("audit", {}), where="releases.audit", problems=problems)
    policy = Policy(
        channels=channels or (STABLE,), soak_seconds=_duration(table, "soak"), at_least=_figures(gates, "at_least"),
        at_most=_figures(gates, "at_most"), signers=Path(signers) if signers else None, signatures=number,
        ledger=Path(table.text("ledger", RELATIVE, "write a path within the checkout", default=LEDGER) or LEDGER),
    )  # fmt: skip
    gates.finish()
    table.finish()
    return policy


def _duration(table: Table, key: str) -> int:
    text = table.text(key, r"0|[1-9][0-9]{0,4}[mhd]", "write a duration such as 30m, 24h or 7d, or 0", default="0") or "0"
    return 0 if text == "0" else int(text[:-1]) * SECONDS_PER_UNIT[text[-1]]


def _figures(gates: Table, key: str) -> dict[str, float]:
    value = gates.take(key, {})
    if not isinstance(value, dict):
        gates.problem(key, value, "write a mapping: name of the figure: value")
        return {}
    for name, limit in value.items():
        if not isinstance(limit, int | float) or isinstance(limit, bool):
            gates.problem(f"{key}.{name}", limit, "write a number; tests/peers/ledger.json has the names of the figures")
    return {str(name): float(limit) for name, limit in value.items() if isinstance(limit, int | float)}
