"""The verb ``clone``: from golden.yaml and the operator's words to a machine, and what is told of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from build import clone, files, log, ship
from build import spec as specs
from build.cache import Cache
from build.clone_reach import HEALTH
from build.clone_request import Request
from build.cluster import Role
from build.project import Project
from build.proof import Trust


def run(project: Project, cache: Cache, request: Request, *, secrets: Path | None, as_json: bool) -> str:
    """Make the machine on the cluster of golden.yaml with the operator's token; return what there is to tell."""
    spec = specs.load(project.spec)
    settings = ship.settings_of(spec)
    if not request.admin_cidrs and not spec.admin.cidrs:
        log.warn("no network may reach SSH on it: neither --admin-cidr nor golden.yaml names one")
    lock = files.lock(cache.root / f"clone-{request.name}.lock", waiting=f"another clone is making {request.name}: waiting")
    with lock, ship.connect(settings, Role.OPERATOR, secrets) as api:
        made = clone.clone(
            clone.Job(api=api, settings=settings, request=request, product=spec.name, user=spec.admin.user,
                      trust=Trust.of(spec.releases, project.root))
        )  # fmt: skip
    facts = facts_of(made, request, user=spec.admin.user)
    return json.dumps(facts, indent=1, sort_keys=True) if as_json else text_of(facts)


def facts_of(made: clone.Made, request: Request, *, user: str) -> dict[str, Any]:
    """Return what is known of the machine, for programs."""
    facts: dict[str, Any] = {
        "name": made.name, "node": made.machine.node, "vmid": made.machine.vmid, "template": made.template,
        "image_sha256": made.digest, "outcome": made.outcome.value, "running": made.running, "linked": made.linked,
    }  # fmt: skip
    if found := made.reached:
        facts |= {
            "address": found.address, "ssh": f"ssh {user}@{found.address}", "host_key": found.fingerprint,
            "known_hosts": f"{found.address} {found.host_key}", "url": f"https://{request.main_name}{HEALTH}",
            "certificate_sha256": found.certificate,
        }  # fmt: skip
    return facts


def text_of(facts: dict[str, Any]) -> str:
    """Return what is known of the machine, for people."""
    kind = "linked" if facts["linked"] else "full"
    lines = [
        f"{facts['name']} is VM {facts['vmid']} on {facts['node']}: it {_verb(facts['outcome'])}",
        f"template     {facts['template']}, {kind} clone; SHA-256 of the image {facts['image_sha256']}",
    ]
    if "address" not in facts:
        state = "runs; nobody waited for it" if facts["running"] else f"is stopped; start it: qm start {facts['vmid']}"
        return "\n".join([*lines, f"state        it {state}"])
    return "\n".join([
        *lines, f"ssh          {facts['ssh']}",
        f"host key     {facts['host_key']} (read through the guest agent)",
        f"known_hosts  {facts['known_hosts']}",
        f"https        {facts['url']} answers 200 at {facts['address']}",
        f"certificate  SHA-256 {facts['certificate_sha256']}",
        "             it is the one that the guest agent told of; no authority has signed for it, as far as we know",
    ])  # fmt: skip


def _verb(outcome: str) -> str:
    return "was made" if outcome == clone.Outcome.CLONED else outcome
