"""Accepted vulnerabilities, each with a reason and the date of the next review.

::

    accepted:
      - id: CVE-2026-1234
        source: openssl
        reason: the image has no code that takes such certificates
        until: 2027-03-01
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path

from build.core.yaml_table import PACKAGE, Table, load_yaml, raise_problems

PAGE = Path("tests/audit/accepted-vulnerabilities.yaml")


@dataclass(frozen=True)
class Accepted:
    """One vulnerability of one source package; ``until`` is the last day of the acceptance."""

    id: str
    source: str
    reason: str
    until: date


def load(path: Path) -> tuple[Accepted, ...]:
    """Read the file; without it, nothing is accepted. Raises SpecError that lists every problem."""
    if not path.exists():
        return ()
    problems: list[str] = []
    top = Table(load_yaml(path), where="", problems=problems)
    rows = top.take("accepted", ())
    entries = [_row(row, f"accepted[{number}]", problems) for number, row in enumerate(rows or ())]
    top.finish()
    keys = [(entry.id, entry.source) for entry in entries]
    problems += [f"{name} of {source}: duplicate entry: remove one" for name, source in sorted({
        key for key in keys if keys.count(key) > 1
    })]  # fmt: skip
    raise_problems(path, problems)
    return tuple(entries)


def _row(row: object, where: str, problems: list[str]) -> Accepted:
    table = Table(row, where=where, problems=problems)
    name = table.text("id", r"[A-Z]+-[A-Za-z0-9-]+", "write an id such as CVE-2026-1234")
    source = table.text("source", PACKAGE, "write the name of the source package")
    reason = table.text("reason", r"(?s).*\S.*", "write why it is accepted")
    until = table.take("until")
    if "until" in table.value and type(until) is not date:
        table.problem("until", until, "write a date such as 2027-03-01")
    table.finish()
    return Accepted(name, source, reason, until if type(until) is date else date.min)
