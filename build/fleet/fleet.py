"""Every clone on a cluster: its template, channel and state, and the results of its checks.

Read-only. The cluster's lists and the configuration of each VM show where a machine comes from; on a running machine, the
guest agent reads the results that its own units store: golden-verify, AIDE, backup, certificate, pending restart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from cryptography import x509

from build.clone import data_disk
from build.clone.health import CERTIFICATE, PEM
from build.core import json_text
from build.core.units import stamp
from build.proxmox import guest_list, labels
from build.proxmox.api_errors import ApiError
from build.proxmox.client import Api, each
from build.proxmox.guest_agent import HOST_KEY
from build.proxmox.labels import CloneLabel
from build.proxmox.preflight import MOST_CONNECTIONS
from build.replace import settings
from build.replace.preflight import BACKUP

# Written by the image's own units (overlays/78-verify, 15-audit) and by Debian's packages after an upgrade.
VERIFY, AIDE, RESTART = "/var/lib/golden-verify/last.json", "/var/lib/aide/last.json", "/run/reboot-required"
RUNNING = "running"


@dataclass(frozen=True)
class Difference:
    """A difference from the template, or a failed check, and the time since when it is known (UTC; may be empty)."""

    what: str
    since: str = ""


@dataclass
class Fact:
    """A machine. Times are UTC; ``None`` and empty: not known, for example if it is stopped or its agent does not answer."""

    name: str
    node: str
    vmid: int
    status: str
    template: str = ""
    version: str = ""
    channels: list[str] = field(default_factory=list)
    newest: str = ""
    revoked: bool = False
    linked: bool = False
    kept: bool = False
    data_gib: int = 0
    healthy: bool | None = None
    verified: str = ""
    backup: str = ""
    certificate_until: str = ""
    restart: bool | None = None
    problem: str = ""
    differences: list[Difference] = field(default_factory=list)


@dataclass(frozen=True)
class Templates:
    """The published templates by name: the channels that point at each, which are revoked, the newest of the channel."""

    channels: Mapping[str, frozenset[str]]
    revoked: frozenset[str]
    newest: str


def fleet(api: Api, product: str, known: Sequence[str], channel: str) -> list[Fact]:
    """Return every clone that the token may see, by name; ``known`` are the channels, ``channel`` is compared with."""
    guests = guest_list.listed(api)
    templates = templates_of(guests, product, known, channel)
    clones = [guest for guest in guests if _is_clone(guest)]
    facts = each(api, lambda connection, guest: _read(connection, guest, templates), clones, most=MOST_CONNECTIONS)
    return sorted(facts, key=lambda fact: (fact.kept, fact.name, fact.vmid))


def _is_clone(guest: Mapping[str, Any]) -> bool:
    return not guest.get("template") and labels.CLONE_TAG in _tags(guest)


def _tags(guest: Mapping[str, Any]) -> frozenset[str]:
    return labels.split_tags(str(guest.get("tags", "")))


def templates_of(guests: Sequence[Mapping[str, Any]], product: str, known: Sequence[str], channel: str) -> Templates:
    """Return the templates by the tags in the list."""
    published = [
        guest for guest in guests
        if guest.get("template") and labels.PRODUCT_TAG in _tags(guest) and str(guest.get("name")).startswith(f"{product}-")
    ]  # fmt: skip
    channels: dict[str, frozenset[str]] = {}
    for guest in published:
        channels[str(guest["name"])] = channels.get(str(guest["name"]), frozenset()) | (_tags(guest) & frozenset(known))
    pointed = [guest for guest in published if channel in _tags(guest)]
    newest = max(pointed, key=lambda guest: labels.order(_tags(guest)), default={})
    revoked = {str(guest["name"]) for guest in published if labels.REVOKED_TAG in _tags(guest)}
    return Templates(channels, frozenset(revoked), str(newest.get("name", "")))


def _read(api: Api, guest: Mapping[str, Any], templates: Templates) -> Fact:
    """Return the facts about one machine; if some cannot be read, that is its ``problem``."""
    fact = Fact(str(guest.get("name", "")), str(guest["node"]), int(guest["vmid"]), str(guest.get("status", "unknown")))
    fact.kept = settings.KEPT_TAG in _tags(guest)
    path = f"/nodes/{fact.node}/qemu/{fact.vmid}"
    try:
        config: Mapping[str, Any] = api.get(f"{path}/config")
    except ApiError as error:
        fact.problem = error.brief
        return fact
    fact.name, fact.data_gib = str(config.get("name", fact.name)), data_disk.size_gib(config)
    label = labels.parse_clone(str(config.get("description", "")))
    _origin(fact, label, _tags(config), templates)
    if fact.status == RUNNING:
        _ask(api, path, fact, web=label is None or label.web)
    return fact


def _origin(fact: Fact, label: CloneLabel | None, tags: frozenset[str], templates: Templates) -> None:
    """Compare the label and tags of a clone with the templates."""
    if label is None:
        fact.differences.append(Difference("its description has no label of Goldsmith: its template is unknown"))
        return
    fact.template, fact.version, fact.linked = label.template, label.version, label.linked
    fact.channels = sorted(templates.channels.get(label.template, ()))
    fact.newest, fact.revoked = templates.newest, label.template in templates.revoked
    missing = {labels.version_tag(label.version), labels.digest_tag(label.digest)} - tags
    if missing:
        fact.differences.append(Difference(f"its tags lack {', '.join(sorted(missing))}"))
    if fact.revoked:
        fact.differences.append(Difference(f"its template {label.template} is revoked", label.cloned))
    if templates.newest and templates.newest != label.template and not fact.kept:
        behind = f"its system is {label.template}, and the channel has {templates.newest}"
        fact.differences.append(Difference(behind, label.cloned))


def _ask(api: Api, path: str, fact: Fact, *, web: bool) -> None:
    """Read the results of the machine's own checks through the guest agent; the certificate is that of its web server."""

    def read(name: str) -> str | None:
        try:
            return str(api.get(f"{path}/agent/file-read", file=name).get("content", ""))
        except ApiError as error:
            problems.append(error.brief)
            return None

    problems: list[str] = []
    identity = read(CERTIFICATE if web else HOST_KEY)
    if identity is None:
        fact.problem = f"its guest agent cannot be asked: {problems[0]}"
        return
    fact.certificate_until = not_after(identity) if web else ""
    fact.backup = _json_of(read(BACKUP)).get("manifest", {}).get("made", "")
    # The file has a line of text; an agent that finds none answers with an error or with nothing.
    fact.restart = bool((read(RESTART) or "").strip())
    if fact.restart:
        fact.differences.append(Difference("an update needs a restart"))
    verify, aide = _json_of(read(VERIFY)), _json_of(read(AIDE))
    fact.healthy = verify.get("ok") if isinstance(verify.get("ok"), bool) else None
    fact.verified = str(verify.get("time", ""))
    fact.differences += [
        Difference(f"{check.get('title', 'a check')}: not as required", fact.verified)
        for check in verify.get("checks", ()) if check.get("result") == "FAIL"
    ]  # fmt: skip
    if aide and not aide.get("ok", True):
        seen = str(aide.get("time", ""))
        fact.differences.append(Difference("files differ from AIDE's database: golden-aide check", seen))


def _json_of(text: str | None) -> dict[str, Any]:
    """Return the object in a file of a machine; empty if there is none."""
    try:
        content = json_text.parse(text or "{}")
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def not_after(text: str) -> str:
    """Return the expiry time of the first certificate of a PEM text, in UTC; empty if it cannot be read."""
    match = PEM.search(text)
    if not match:
        return ""
    try:
        return stamp(x509.load_pem_x509_certificate(match[0].encode()).not_valid_after_utc)
    except ValueError:
        return ""


def attention(facts: Sequence[Fact]) -> list[Fact]:
    """Return the machines that differ or cannot be queried, without the kept ones."""
    return [fact for fact in facts if not fact.kept and (fact.differences or fact.problem)]


def days_left(text: str, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> int | None:
    """Return the days until a time; negative if it is in the past, None if it is not known."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return None
    return int((when - now()).total_seconds() // 86400)
