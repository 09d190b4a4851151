"""How a published image is known on a cluster: its name, its tags, and a description that people and programs read.

The description is Markdown; its last line is an HTML comment, which Proxmox does not show, with the facts as JSON.
What carries no such line was not made by Goldsmith, and is never touched.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

from build.artifact import DIGEST_HEX, Artifact
from build.statement import Seal, Statement

SCHEMA = 1
MARK = re.compile(r"<!-- goldsmith: (?P<facts>\{.*\}) -->")
CLONE_MARK = re.compile(r"<!-- goldsmith-clone: (?P<facts>\{.*\}) -->")
# Every template carries it; a channel (candidate, stable) is a tag of its own, and moves.
PRODUCT_TAG = "golden"
# Nothing is cloned of a template that bears it.
REVOKED_TAG = "revoked"
# A machine that an operator made of a template; the tags of its version and digest say which one.
CLONE_TAG = "golden-clone"


class State(StrEnum):
    """How far a machine on the cluster is: being made, or a finished template."""

    PUBLISHING = "publishing"
    TEMPLATE = "template"


class CloneState(StrEnum):
    """How far an operator's machine is: being made, or handed over."""

    MAKING = "making"
    MADE = "made"


@dataclass(frozen=True)
class Label:
    """What is known of a published image. ``run`` names the run that made it, so that no other one takes it away."""

    name: str
    version: str
    digest: str
    artifact: str
    state: State
    published: str
    run: str
    provenance: Mapping[str, str] = field(default_factory=dict)
    # With which settings of golden.yaml it was made: the file may say something else by now.
    machine: Mapping[str, str] = field(default_factory=dict)
    # The digests and signatures of the statement about the artifact (build/statement.py, Seal).
    proof: Mapping[str, Any] = field(default_factory=dict)

    @property
    def template(self) -> str:
        """The template's name on the cluster."""
        return f"{self.name}-{self.version}"

    @property
    def medium(self) -> str:
        """The file name of the uploaded image: another image has another name."""
        return f"{self.template}-{self.digest[:DIGEST_HEX]}.qcow2"

    def clone_name(self, letter: str = "") -> str:
        """Return the name of a clone that is tested on a node, or with no letter what all such names begin with.

        Without a dot: Proxmox's cloud-init drive makes what stands before the first one the host name, and all clones of
        all versions 0.x would share it.
        """
        return f"{self.template.replace('.', '-')}-check-{letter}"

    def tags(self, *channels: str) -> str:
        """Return the tags as Proxmox takes them."""
        return ";".join(sorted({PRODUCT_TAG, version_tag(self.version), digest_tag(self.digest), *channels}))

    def become(self, state: State) -> Label:
        """Return the label of the same image in another state."""
        return replace(self, state=state)

    def describe(self) -> str:
        """Return the description of the machine on the cluster."""
        advice = {
            State.TEMPLATE: "Golden Debian image, published by Goldsmith: clone it, do not change it.",
            State.PUBLISHING: "Goldsmith is publishing this image: it is not verified yet. Do not use it.",
        }
        lines = [
            f"# {self.name} {self.version}", "", advice[self.state], "", *_made_of(self.digest, self.artifact),
            f"* Published: {self.published}",
            # Sorted: a label that is read back has its keys in that order.
            *(f"* {title}: `{text}`" for title, text in sorted(self.provenance.items())),
            "", f"<!-- goldsmith: {_comment(asdict(self) | {'schema': SCHEMA})} -->",
        ]  # fmt: skip
        return "\n".join(lines)


@dataclass(frozen=True)
class CloneLabel:
    """What is known of an operator's machine: the template and the image it came from, and the run that made it."""

    template: str
    version: str
    digest: str
    artifact: str
    state: CloneState
    cloned: str
    run: str
    # A linked clone needs its template for ever.
    linked: bool = False

    def tags(self) -> str:
        """Return the tags as Proxmox takes them."""
        return ";".join(sorted({CLONE_TAG, version_tag(self.version), digest_tag(self.digest)}))

    def become(self, state: CloneState) -> CloneLabel:
        """Return the label of the same machine in another state."""
        return replace(self, state=state)

    def describe(self) -> str:
        """Return the description of the machine on the cluster."""
        kind = "linked" if self.linked else "full"
        lines = [
            f"A {kind} clone of **{self.template}**.", "", *_made_of(self.digest, self.artifact),
            f"* Cloned: {self.cloned}", "",
            f"<!-- goldsmith-clone: {_comment(asdict(self) | {'schema': SCHEMA})} -->",
        ]  # fmt: skip
        return "\n".join(lines)


def of(
    found: Artifact, *, state: State, published: str, run: str, machine: Mapping[str, str] | None = None,
    seal: Seal | None = None,
) -> Label:  # fmt: skip
    """Return the label of an artifact; ``machine`` is what it is made with, ``seal`` who vouches for it."""
    manifest = found.manifest
    provenance = {"Debian archive as of": str(manifest["inputs"].get("archive_date", ""))}
    provenance["Root file system"] = str(manifest["inputs"].get("rootfs_tar_sha256", ""))
    provenance["Commit"] = str(manifest["inputs"].get("commit", ""))
    if seal:
        image = manifest["image"]["sha256"]
        provenance["Statement"] = Statement(found.path.name, image, seal.sums, seal.provenance).digest
        provenance["Signed by"] = ", ".join(sorted(seal.signatures))
    return Label(
        name=manifest["name"], version=manifest["version"], digest=manifest["image"]["sha256"], artifact=found.path.name,
        state=state, published=published, run=run, provenance={title: text for title, text in provenance.items() if text},
        machine=dict(machine or {}), proof=seal.as_label() if seal else {},
    )  # fmt: skip


def version_tag(version: str) -> str:
    """Return the tag that names a version."""
    return f"v{version}".lower()


def digest_tag(digest: str) -> str:
    """Return the tag that names an image by its content."""
    return f"sha256-{digest[:DIGEST_HEX]}"


def split_tags(text: str) -> frozenset[str]:
    """Return tags as Proxmox answers with them, as a set."""
    return frozenset(tag for tag in re.split(r"[;, ]+", text) if tag)


def parse(description: str) -> Label | None:
    """Return the label in a description, or None when there is none that this version understands."""
    try:
        facts = _facts(MARK, description)
        return Label(**{**facts, "state": State(facts["state"])}) if facts else None
    except (ValueError, TypeError, KeyError):
        return None


def parse_clone(description: str) -> CloneLabel | None:
    """Return the label of an operator's machine in a description, or None."""
    try:
        facts = _facts(CLONE_MARK, description)
        return CloneLabel(**{**facts, "state": CloneState(facts["state"])}) if facts else None
    except (ValueError, TypeError, KeyError):
        return None


def relabel(description: str, label: Label) -> str:
    """Return a description with another label of the same image; what others wrote beside ours stays.

    Raises ValueError when ours does not stand there as it was written.
    """
    old = parse(description)
    if old is None or old.describe() not in description:
        raise ValueError("the description is not the one that was written")
    return description.replace(old.describe(), label.describe())


def run_of(description: str) -> str:
    """Return the run that made a machine, template or clone; empty when it was none of ours."""
    label = parse(description) or parse_clone(description)
    return label.run if label else ""


def _facts(mark: re.Pattern[str], description: str) -> dict[str, Any]:
    found = mark.search(description or "")
    facts = json.loads(found["facts"]) if found else {}
    if not isinstance(facts, dict) or facts.pop("schema", None) != SCHEMA:
        return {}
    return facts


def _made_of(digest: str, artifact: str) -> list[str]:
    """Return the lines that say which image it is: what was installed on the cluster has the medium's digest alone."""
    what = "image" if artifact else "installation medium"
    return [f"* SHA-256 of the {what}: `{digest}`", *([f"* Artifact: `{artifact}`"] if artifact else [])]


def _comment(facts: Mapping[str, object]) -> str:
    """Return JSON that cannot end the comment it stands in."""
    return json.dumps(facts, sort_keys=True, separators=(",", ":")).replace(">", "\\u003e")
