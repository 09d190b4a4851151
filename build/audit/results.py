"""What the auditors write, read into figures. Nothing is started here: a file or a text comes in, figures go out.

Each reader raises StepFailed when what it reads is not the whole result of its auditor: an audit that did not take
place must not look like a good one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from build.audit.ledger import Better, Figure
from build.audit.tailoring import PREFIX, XCCDF
from build.core import json_text
from build.core.errors import StepFailed

# From the worst to the best: testssl.sh's grades. T and M: the certificate is not trusted, or is another's.
GRADES = ("T", "M", "F", "E", "D", "C", "B", "A-", "A", "A+")
SEVERITIES = ("LOW", "MEDIUM", "HIGH", "CRITICAL", "FATAL")
# Results of rules that were checked. The others do not count in a score (XCCDF 1.2, section 7.3.2 and table 39); those for
# which the content has no check are a separate figure.
JUDGED = ("pass", "fail", "error", "unknown", "fixed")
# The kinds of kernel-hardening-checker that the image decides; the kernel's configuration is Debian's.
KERNEL_KINDS = {"sysctl": "sysctl", "cmdline": "command line"}
UNCHECKED = "notchecked"
_EXPOSURE = re.compile(r"Overall exposure level for (\S+): ([0-9.]+)")


def exposures(text: str, *, units: Mapping[str, float | None]) -> list[Figure]:
    """Read ``systemd-analyze security UNIT...``; ``units`` are those that were asked about, with their limits."""
    values = {name: float(value) for name, value in _EXPOSURE.findall(text)}
    missing = sorted(set(units) - set(values))
    if missing:
        raise StepFailed(f"systemd-analyze has no result for {', '.join(missing)}", details=text[-1500:])
    return [
        Figure(f"systemd.{name}", values[name], Better.LOWER, limit, f"{values[name]:.1f}")
        for name, limit in sorted(units.items())
    ]


@dataclass(frozen=True)
class Scan:
    """One OpenSCAP evaluation: the result of each rule by its short id."""

    results: Mapping[str, str]
    benchmark: str

    def having(self, *results: str) -> set[str]:
        """Return the rules with one of these results."""
        return {rule for rule, result in self.results.items() if result in results}

    @property
    def selected(self) -> set[str]:
        return set(self.results) - self.having("notselected")

    @property
    def judged(self) -> set[str]:
        return self.having(*JUDGED)

    @property
    def failing(self) -> set[str]:
        """The rules that were checked and did not pass: an evaluation that broke off counts as failed."""
        return self.judged - self.having("pass", "fixed")


def scan(document: str) -> Scan:
    """Read the XCCDF result file of ``oscap xccdf eval``."""
    try:
        root = ElementTree.fromstring(document)
    except ElementTree.ParseError as error:
        raise StepFailed(f"oscap left no readable result: {error}") from error
    names = {"x": XCCDF}
    result = root.find(".//x:TestResult", names)
    if result is None:
        raise StepFailed("oscap's result file holds no result")
    rules = {
        (rule.get("idref") or "").removeprefix(PREFIX): rule.findtext("x:result", "", names)
        for rule in result.findall("x:rule-result", names)
    }
    profile = Scan(rules, result.get("version") or "")
    if not profile.judged:
        raise StepFailed("oscap checked no rule", details=str(Counter(rules.values())))
    return profile


def compliance(raw: Scan, exceptions: Collection[str]) -> list[Figure]:
    """Return the figures of the published profile, and of it without the rules of ``exceptions``."""
    bad, skipped, unchecked = raw.failing, raw.having("notapplicable"), raw.having(UNCHECKED)
    kept, rest = raw.judged - set(exceptions), bad - set(exceptions)
    idle = tuple(sorted(set(exceptions) - bad))
    return [
        _share("cis.raw", len(raw.judged) - len(bad), len(raw.judged), 97.0),
        _share("cis.tailored", len(kept) - len(rest), len(kept), 100.0, tuple(sorted(rest))),
        Figure("cis.failing", len(bad), Better.LOWER, items=tuple(sorted(bad))),
        Figure("cis.unchecked", len(unchecked), Better.LOWER, items=tuple(sorted(unchecked))),
        Figure("cis.idle exceptions", len(idle), Better.LOWER, 0, items=idle),
        Figure("cis.profile", len(raw.selected), Better.SAME, text=f"{len(raw.selected)} rules, content {raw.benchmark}"),
        Figure("cis.judged", len(raw.judged), Better.HIGHER, text=f"{len(raw.judged)} rules, {len(skipped)} not applicable"),
    ]


def _share(name: str, part: int, whole: int, limit: float, items: tuple[str, ...] = ()) -> Figure:
    value = 100 * part / whole
    return Figure(name, round(value, 2), Better.HIGHER, limit, f"{value:.1f} % ({part} of {whole})", items, f"{limit:g} %")


def lynis(report: str) -> list[Figure]:
    """Read lynis' report file (``name=value`` lines)."""
    values: dict[str, list[str]] = {}
    for line in report.splitlines():
        name, _, value = line.partition("=")
        values.setdefault(name.removesuffix("[]"), []).append(value)
    if "hardening_index" not in values or "lynis_tests_done" not in values:
        raise StepFailed("lynis wrote no whole report", details=report[-1500:])

    index = int(values["hardening_index"][-1])
    tests = int(values["lynis_tests_done"][-1])
    warnings, suggestions = (tuple(map(_finding, values.get(kind, []))) for kind in ("warning", "suggestion"))
    return [
        Figure("lynis.index", index, Better.HIGHER, 90, f"{index} ({tests} tests)"),
        Figure("lynis.warnings", len(warnings), Better.LOWER, 0, items=warnings),
        Figure("lynis.suggestions", len(suggestions), Better.LOWER, items=suggestions),
    ]


def _finding(value: str) -> str:
    """Return ``TEST text (detail)`` for what lynis writes as ``TEST|text|detail|solution|``."""
    test, text, *more = value.split("|")
    return f"{test} {text}" + (f" ({more[0]})" if more and more[0] not in ("", "-") else "")


def kernel_checks(document: str) -> list[dict[str, str]]:
    """Read what ``kernel-hardening-checker -m json`` prints: its checks of settings and of the command line."""
    checks = _json(document, "kernel-hardening-checker")
    try:
        return [
            {"name": str(check["option_name"]), "kind": str(check["type"]), "result": str(check["check_result"])}
            for check in checks if check["type"] in KERNEL_KINDS
        ]  # fmt: skip
    except (TypeError, KeyError) as error:
        raise StepFailed(f"kernel-hardening-checker printed other JSON than expected: {error}") from error


def kernel(checks: Iterable[Mapping[str, str]], reasons: Collection[str]) -> list[Figure]:
    """Return how many checks of each kind pass, those that fail without a reason, and reasons that nothing needs.

    Raises StepFailed when a kind was not checked at all.
    """
    figures: list[Figure] = []
    failing: set[str] = set()
    every = list(checks)
    for kind, name in KERNEL_KINDS.items():
        mine = [check for check in every if check["kind"] == kind]
        if not mine:
            raise StepFailed(f"kernel-hardening-checker checked nothing of the kind {kind}")
        bad = sorted({check["name"] for check in mine if not check["result"].startswith("OK")})
        failing |= {*bad}
        good = sum(check["result"].startswith("OK") for check in mine)
        figures.append(
            Figure(f"kernel.{name}", round(100 * good / len(mine), 2), Better.HIGHER, None,
                   f"{100 * good / len(mine):.1f} % ({good} of {len(mine)})", tuple(bad))
        )  # fmt: skip
    unexplained, idle = sorted(failing - set(reasons)), sorted(set(reasons) - failing)
    figures.append(Figure("kernel.unexplained", len(unexplained), Better.LOWER, 0, items=tuple(unexplained)))
    figures.append(Figure("kernel.idle exceptions", len(idle), Better.LOWER, 0, items=tuple(idle)))
    return figures


def ssh_policy(document: str, *, policy: str) -> list[Figure]:
    """Read ``ssh-audit --json --policy``; ``policy`` is the one that was asked for."""
    result = _json(document, "ssh-audit")
    if not isinstance(result, dict) or "passed" not in result or policy not in str(result.get("policy")):
        raise StepFailed(f"ssh-audit did not check by the policy {policy}", details=document[-1500:])
    errors = tuple(
        f"{error['mismatched_field']}: is {_list(error['actual'])}, should be {_list(error['expected_required'])}"
        for error in result["errors"]
    )
    return [Figure("ssh.policy", float(bool(result["passed"])), Better.HIGHER, 1.0,
                   f"{result['policy']}: {'passed' if result['passed'] else 'failed'}", errors)]  # fmt: skip


def _list(words: Iterable[object]) -> str:
    return ",".join(map(str, words))


def tls(document: str) -> list[Figure]:
    """Read testssl.sh's flat JSON: a list of findings."""
    findings = _json(document, "testssl.sh")
    grades = [entry["finding"] for entry in findings if entry["id"] == "overall_grade"] if isinstance(findings, list) else []
    if len(grades) != 1 or grades[0] not in GRADES:
        raise StepFailed("testssl.sh gave no grade", details=document[-1500:])
    caps = [str(entry["finding"]) for entry in findings if str(entry["id"]).startswith("grade_cap_reason")]
    score = next((float(entry["finding"]) for entry in findings if entry["id"] == "final_score"), 0.0)
    listed = sorted({f"{entry['id']} ({entry['severity']})" for entry in findings if entry["severity"] in SEVERITIES})
    return [
        Figure("tls.grade", GRADES.index(grades[0]), Better.HIGHER, GRADES.index("A+"), grades[0], tuple(caps), "A+"),
        Figure("tls.score", score, Better.HIGHER),
        Figure("tls.findings", len(listed), Better.LOWER, items=tuple(listed)),
    ]


def _json(document: str, tool: str) -> Any:
    try:
        return json_text.parse(document)
    except ValueError as error:
        raise StepFailed(f"{tool} wrote no JSON: {error}", details=document[-1500:]) from error
