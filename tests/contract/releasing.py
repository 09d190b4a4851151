"""Fixtures for tests of releases: a cluster with published versions, and a desk to release them from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from build.artifact import artifact
from build.artifact.artifact import Artifact
from build.drift import drift
from build.proxmox import client, labels
from build.release import promote as release_promote
from build.release import prune
from build.release.ledger import LedgerFile
from build.release.operation import Report
from build.release.preconditions import Job
from build.spec.release_policy import Policy
from tests.contract.cloning import OPERATOR
from tests.contract.shipping import Bench, make_artifact

FIRST, SECOND, THIRD = "1.2.3", "1.3.0", "1.4.0"
BEGIN = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)


class Clock:
    """A clock that advances by one minute whenever it is read."""

    def __init__(self, begin: datetime = BEGIN) -> None:
        self.now = begin

    def __call__(self) -> datetime:
        self.now += timedelta(minutes=1)
        return self.now


@dataclasses.dataclass
class Desk:
    """A machine that releases: its ledger, its clock, its policy."""

    bench: Bench
    who: str = "Jane <jane@example.org>"
    policy: Policy = dataclasses.field(default_factory=Policy)
    clock: Clock = dataclasses.field(default_factory=Clock)
    name: str = "here"
    before: Callable[[client.Api], None] = lambda _api: None
    signatures: Any = None

    @property
    def book(self) -> LedgerFile:
        return LedgerFile(self.bench.place / self.name / self.policy.ledger)

    def version(self, version: str, **changes: Any) -> Artifact:
        fill = bytes([sum(int(part) for part in version.split(".")) + 1])
        return make_artifact(self.bench.place, fill=fill, **{"version": version} | changes)

    def publish(self, *versions: str, **changes: Any) -> None:
        for version in versions:
            self.bench.publish(self.version(version, **changes))

    def job(self, api: client.Api, **changes: Any) -> Job:
        made = Job(
            api=api, settings=self.bench.settings, product="golden", policy=self.policy, book=self.book, who=self.who,
            artifacts=self.bench.place / "artifacts", clock=self.clock, signatures=self.signatures,
        )  # fmt: skip
        return dataclasses.replace(made, **changes)

    def do(self, work: Callable[[Job], Any], **changes: Any) -> Any:
        with client.Api(self.bench.settings, self.bench.token) as api:
            self.before(api)
            return work(self.job(api, **changes))

    def promote(self, version: str, channel: str = "stable", **words: Any) -> Report:
        report: Report = self.do(lambda job: release_promote.promote(job, version, channel, **words))
        return report

    def rollback(self, channel: str = "stable", **words: Any) -> Report:
        report: Report = self.do(lambda job: release_promote.rollback(job, channel, **words))
        return report

    def revoke(self, version: str, reason: str = "CVE-2026-1", **words: Any) -> Report:
        report: Report = self.do(lambda job: release_promote.revoke(job, version, reason=reason, **words))
        return report

    def restore(self, version: str, reason: str = "it was not so bad") -> Report:
        report: Report = self.do(lambda job: release_promote.restore(job, version, reason=reason))
        return report

    def prune(self, *, days: int = 30, apply: bool = False) -> dict[str, prune.Decision]:
        def work(job: Job) -> list[prune.Decision]:
            with client.Api(self.bench.settings, OPERATOR) as viewer:
                return prune.prune(job, viewer, days=days, apply=apply)

        return {f"{one.template.place} {one.template.name}": one for one in self.do(work)}

    def drift(self, *, ledger: bool = True) -> list[drift.TemplateReport]:
        with client.Api(self.bench.settings, OPERATOR) as api:
            return drift.drift(
                drift.Job(
                    api=api, settings=self.bench.settings, product="golden", artifacts=self.bench.place / "artifacts",
                    policy=self.policy, book=self.book if ledger else None,
                )
            )  # fmt: skip

    def another(self, name: str, who: str) -> Desk:
        """A second machine, with the same ledger as this one has now."""
        other = dataclasses.replace(self, name=name, who=who, clock=Clock(self.clock.now))
        if self.book.exists():
            other.book.path.parent.mkdir(parents=True, exist_ok=True)
            other.book.path.write_bytes(self.book.path.read_bytes())
        return other

    def tagged(self, tag: str) -> list[str]:
        """Return the templates that have a tag, by node and name."""
        return sorted(
            f"{vm.node} {vm.name}" for vm in self.bench.proxmox.vms
            if vm.template and tag in labels.split_tags(str(vm.config.get("tags", "")))
        )  # fmt: skip

    def machine(self, node: str, version: str) -> Any:
        return next(vm for vm in self.bench.proxmox.vms if (vm.node, vm.name) == (node, f"golden-{version}"))


def on(version: str, *nodes: str) -> list[str]:
    return [f"{node} golden-{version}" for node in nodes or ("pve1", "pve2")]


def forget(place: Path) -> None:
    """Remove every artifact from a machine."""
    for path in artifact.committed(place):
        path.chmod(0o755)
        (path / artifact.MANIFEST).chmod(0o644)
        (path / artifact.MANIFEST).unlink()
