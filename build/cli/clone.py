"""The command ``clone``: clones a VM from a published template, and waits until it is reachable."""

from __future__ import annotations

import argparse
import json
from typing import Any

from build.artifact.verification import Trust
from build.cli import cluster
from build.cli import options as common
from build.clone import clone
from build.clone import request as requests
from build.clone.request import Request
from build.core import files, log
from build.spec import golden_yaml as specs
from build.spec.cluster import Role


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``clone``."""
    common.add_project(parser)
    common.add_cache(parser)
    requests.options(parser)
    common.add_secrets(parser)
    common.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Clone the VM on the cluster of golden.yaml with the operator's token; print how to reach it."""
    project, cache = common.project_of(arguments), common.cache_of(arguments)
    request = requests.read(arguments)
    spec = specs.load(project.spec)
    settings = cluster.settings_of(spec)
    if not request.admin_cidrs and not spec.admin.cidrs:
        log.warn("no network may reach SSH on it: neither --admin-cidr nor golden.yaml names one")
    lock = files.lock(cache.root / f"clone-{request.name}.lock", waiting=f"another clone is making {request.name}: waiting")
    with lock, cluster.connect(settings, Role.OPERATOR, arguments.secrets) as api:
        cloned = clone.clone(
            clone.Job(api=api, settings=settings, request=request, product=spec.name, user=spec.admin.user,
                      trust=Trust.of(spec.releases, project.root))
        )  # fmt: skip
    facts = facts_of(cloned, request, user=spec.admin.user)
    print(json.dumps(facts, indent=1, sort_keys=True) if arguments.json else text_of(facts))
    return 0


def facts_of(made: clone.Made, request: Request, *, user: str) -> dict[str, Any]:
    """Return what is known of the machine, for programs."""
    facts: dict[str, Any] = {
        "name": made.name, "node": made.machine.node, "vmid": made.machine.vmid, "template": made.template,
        "image_sha256": made.digest, "outcome": made.outcome.value, "running": made.running, "linked": made.linked,
    }  # fmt: skip
    if reached := made.reached:
        facts |= {
            "address": reached.address, "ssh": f"ssh {user}@{reached.address}", "host_key": reached.fingerprint,
            "known_hosts": f"{reached.address} {reached.host_key}",
        }  # fmt: skip
        if reached.certificate:
            facts |= {"url": f"https://{request.main_name}{reached.page}", "certificate_sha256": reached.certificate}
    return facts


def text_of(facts: dict[str, Any]) -> str:
    """Return what is known of the machine, for people."""
    kind = "linked" if facts["linked"] else "full"
    lines = [
        f"{facts['name']} is VM {facts['vmid']} on {facts['node']}: it {_result(facts['outcome'])}",
        f"template     {facts['template']}, {kind} clone; SHA-256 of the image {facts['image_sha256']}",
    ]
    if "address" not in facts:
        state = "runs; it was not waited for" if facts["running"] else f"is stopped; start it: qm start {facts['vmid']}"
        return "\n".join([*lines, f"state        it {state}"])
    lines += [
        f"ssh          {facts['ssh']}",
        f"host key     {facts['host_key']} (read through the guest agent)",
        f"known_hosts  {facts['known_hosts']}",
    ]
    if "url" not in facts:
        return "\n".join([*lines, "services     the image has no web server: golden-verify on the machine checks them"])
    return "\n".join([
        *lines, f"https        {facts['url']} answers at {facts['address']}",
        f"certificate  SHA-256 {facts['certificate_sha256']}",
        "             reported by the guest agent; no authority has signed for it, as far as is known",
    ])  # fmt: skip


def _result(outcome: str) -> str:
    return "was made" if outcome == clone.Outcome.CLONED else outcome
