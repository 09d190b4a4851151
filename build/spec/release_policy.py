"""What a version must show before a channel may point at it: the section ``releases`` of golden.yaml.

Nothing of it shapes an image. Without the section there is one channel beyond ``candidate``, called ``stable``, and what it
takes is what every channel takes: a verified, published, unrevoked artifact.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from build.core.yaml_table import Table

# Every published version has it; no command moves it.
CANDIDATE = "candidate"
STABLE = "stable"
SECONDS_PER_UNIT = {"m": 60, "h": 3600, "d": 86_400}
ABOUT = "what a version must fulfil before a channel may have it (docs/how-to/releases.md)"
DURATION = r"0|[0-9]{1,5}[mhd]"
DURATION_REMEDY = "write a duration such as 30m, 24h or 7d, or 0"
# Kinds of vulnerability data, and what a survey counts: build/vulnerabilities has both.
KINDS = {"debsecan": "debsecan", "osv": "OSV", "tracker": "Debian's security tracker"}
COUNTS = ("fixable", "high", "medium", "low", "unassigned", "end-of-life", "unimportant")
LEDGER = "artifacts/releases.jsonl"
RELATIVE = r"(?!/)(?!(.*/)?\.\.(/|$))[A-Za-z0-9._/-]+"


@dataclass(frozen=True)
class Policy:
    """The gates of promotion.

    ``soak_seconds``: how long a version has been a candidate at least; ``audit``: figures of the auditors by name and the
    value that each must reach (``at_least``) or not exceed (``at_most``); ``signers``: OpenSSH's allowed signers file (None:
    signatures are not looked at); ``signatures``: how many different signers must have signed; ``ledger``: where
    assignments are kept; ``vulnerability_data``: kinds and paths of the data that every build is looked up in;
    ``vulnerabilities_at_most``: limits for the counts of a survey that is at most ``vulnerability_seconds`` old. Paths are
    relative to the checkout.
    """

    channels: tuple[str, ...] = (STABLE,)
    soak_seconds: int = 0
    at_least: Mapping[str, float] = field(default_factory=dict)
    at_most: Mapping[str, float] = field(default_factory=dict)
    signers: Path | None = None
    signatures: int = 0
    ledger: Path = Path(LEDGER)
    vulnerability_data: tuple[tuple[str, str], ...] = ()
    vulnerabilities_at_most: Mapping[str, float] = field(default_factory=dict)
    vulnerability_seconds: int = 7 * 86_400


def read(table: Table) -> Policy:
    """Read the section ``releases`` of golden.yaml; problems go onto the table's list."""
    # They are tags on the cluster, beside tags of versions and digests.
    channels = table.strings(
        "channels", r"[a-z][a-z0-9_-]{0,30}", "write a name such as stable: it becomes a tag",
        about="the channels, which are tags on the cluster; without them: stable",
    )  # fmt: skip
    for name in channels:
        if name == CANDIDATE or re.match(r"golden|sha256-|v[0-9]|revoked", name):
            table.problem("channels", name, "this name has another meaning on the cluster: take another one")
    signers = table.text(
        "signers", rf"({RELATIVE})?", "write a path within the checkout", default="",
        about="the file of allowed signers (ssh-keygen), relative to the checkout; without it signatures are not checked",
    )  # fmt: skip
    number = table.number(
        "signatures", 0, 16, default=int(bool(signers)),
        about="how many different signers must have signed; 1 if there are `signers`",
    )  # fmt: skip
    if number and not signers:
        table.problem("signatures", number, "name the file of those who may sign as well: signers")
    known = table.inner("vulnerabilities", about="the known vulnerabilities that a version may have")
    data = known.inner("data", about="the data that every build is looked up in; without it: debsecan, if it is installed")
    gates = table.inner("audit", about="limits for the metrics of the audit (tests/audit/ledger.json has their names)")
    policy = Policy(
        channels=channels or (STABLE,), soak_seconds=_duration(
            table, "soak", "0", about="how long a version must have been a candidate before another channel may have it"
        ),
        at_least=_figures(gates, "at_least", about="metrics and the least value of each"),
        at_most=_figures(gates, "at_most", about="metrics and the greatest value of each"),
        signers=Path(signers) if signers else None, signatures=number,
        ledger=Path(
            table.text(
                "ledger", RELATIVE, "write a path within the checkout", default=LEDGER,
                about="the file that records releases, relative to the checkout",
            )
            or LEDGER
        ),
        vulnerability_data=tuple(
            (kind, path) for kind, of in KINDS.items()
            for path in data.strings(kind, RELATIVE, "write a path within the checkout", about=f"files of {of}")
        ),
        vulnerabilities_at_most=_figures(
            known, "at_most", about="limits by name: fixable (those with a fix), or an urgency such as high"
        ),
        vulnerability_seconds=_duration(known, "age", "7d", about="how old the last look at them may be"),
    )  # fmt: skip
    for name in sorted({*policy.vulnerabilities_at_most} - {*COUNTS}):
        known.problem(f"at_most.{name}", name, f"write one of {', '.join(COUNTS)}")
    data.finish()
    known.finish()
    gates.finish()
    table.finish()
    return policy


def _duration(table: Table, key: str, default: str, *, about: str) -> int:
    value = table.take(
        key, default, about=about,
        # A number in YAML too, as the remedy shows.
        schema={
            "type": ["string", "integer"], "pattern": f"^(?:{DURATION})$", "minimum": 0, "maximum": 0,
            "description": DURATION_REMEDY,
        },
    )  # fmt: skip
    if value == 0 and not isinstance(value, bool):
        return 0
    if not (isinstance(value, str) and re.fullmatch(DURATION, value)):
        table.problem(key, value, DURATION_REMEDY)
        return 0
    text = value
    return 0 if text == "0" else int(text[:-1]) * SECONDS_PER_UNIT[text[-1]]


def _figures(gates: Table, key: str, *, about: str) -> dict[str, float]:
    schema = {"type": "object", "additionalProperties": {"type": "number"}}
    value = gates.take(key, {}, about=about, schema=schema)
    if not isinstance(value, dict):
        gates.problem(key, value, "write a mapping: name of the figure: value")
        return {}
    for name, limit in value.items():
        if not isinstance(limit, int | float) or isinstance(limit, bool):
            gates.problem(f"{key}.{name}", limit, "write a number; tests/audit/ledger.json has the names of the figures")
    return {str(name): float(limit) for name, limit in value.items() if isinstance(limit, int | float)}
