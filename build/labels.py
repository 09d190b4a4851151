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

from build.artifact import DIGEST_HEX, Artifact

SCHEMA = 1
MARK = re.compile(r"<!-- goldsmith: (?P<facts>\{.*\}) -->")
# Every template carries it; the channel (candidate, stable) is a tag of its own, and moves.
PRODUCT_TAG = "golden"
CANDIDATE = "candidate"


class State(StrEnum):
    """How far a machine on the cluster is: being made, or a finished template."""

    PUBLISHING = "publishing"
    TEMPLATE = "template"


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
        return ";".join(sorted({PRODUCT_TAG, f"v{self.version}".lower(), digest_tag(self.digest), *channels}))

    def become(self, state: State) -> Label:
        """Return the label of the same image in another state."""
        return replace(self, state=state)

    def describe(self) -> str:
        """Return the description of the machine on the cluster."""
        advice = {
            State.TEMPLATE: "Golden Debian image, published by Goldsmith: clone it, do not change it.",
            State.PUBLISHING: "Goldsmith is publishing this image: it is not verified yet. Do not use it.",
        }
        # What was installed on the cluster has no artifact: its digest is that of the medium.
        what = "image" if self.artifact else "installation medium"
        lines = [
            f"# {self.name} {self.version}", "", advice[self.state], "", f"* SHA-256 of the {what}: `{self.digest}`",
            *([f"* Artifact: `{self.artifact}`"] if self.artifact else []), f"* Published: {self.published}",
            *(f"* {title}: `{text}`" for title, text in self.provenance.items()),
            "", f"<!-- goldsmith: {_comment(asdict(self) | {'schema': SCHEMA})} -->",
        ]  # fmt: skip
        return "\n".join(lines)


def of(found: Artifact, *, state: State, published: str, run: str) -> Label:
    """Return the label of an artifact."""
    manifest = found.manifest
    provenance = {"Debian archive as of": str(manifest["inputs"].get("archive_date", ""))}
    provenance["Root file system"] = str(manifest["inputs"].get("rootfs_tar_sha256", ""))
    provenance["Commit"] = str(manifest["inputs"].get("commit", ""))
    return Label(
        name=manifest["name"], version=manifest["version"], digest=manifest["image"]["sha256"], artifact=found.path.name,
        state=state, published=published, run=run, provenance={title: text for title, text in provenance.items() if text},
    )  # fmt: skip


def digest_tag(digest: str) -> str:
    """Return the tag that names an image by its content."""
    return f"sha256-{digest[:DIGEST_HEX]}"


def split_tags(text: str) -> frozenset[str]:
    """Return tags as Proxmox answers with them, as a set."""
    return frozenset(tag for tag in re.split(r"[;, ]+", text) if tag)


def parse(description: str) -> Label | None:
    """Return the label in a description, or None when there is none that this version understands."""
    found = MARK.search(description or "")
    if not found:
        return None
    try:
        facts = json.loads(found["facts"])
        if facts.pop("schema") != SCHEMA:
            return None
        return Label(**{**facts, "state": State(facts["state"])})
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _comment(facts: Mapping[str, object]) -> str:
    """Return JSON that cannot end the comment it stands in."""
    return json.dumps(facts, sort_keys=True, separators=(",", ":")).replace(">", "\\u003e")
