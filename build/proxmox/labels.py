"""Name, tags and description of a published template.

The description is Markdown; its last line is an HTML comment, which Proxmox does not show, with the facts as JSON. A VM
without such a line was not created by Goldsmith, and is never changed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

from build.artifact.artifact import DIGEST_HEX, Artifact
from build.artifact.statement import Seal, Statement
from build.core import json_text

VERSION = re.compile(r"v(?P<numbers>\d+\.\d+\.\d+)(-(?P<before>[a-z0-9]+))?")
# The name of a template: product and version.
TEMPLATE = re.compile(r"(.+?)-\d+\.\d+\.\d+(-[a-z0-9]+)?")

SCHEMA = 1
MARK = re.compile(r"<!-- goldsmith: (?P<facts>\{.*\}) -->")
CLONE_MARK = re.compile(r"<!-- goldsmith-clone: (?P<facts>\{.*\}) -->")
# Every template has it; a channel (candidate, stable) is a separate tag, which moves.
PRODUCT_TAG = "golden"
# Templates with this tag are not cloned.
REVOKED_TAG = "revoked"
# The title of the image's own administrator in a label.
ADMINISTRATOR = "Administrator"
# The title of the image's web server; of an image without one, such as a database's, the text is NO_WEB_SERVER.
WEB_SERVER, NO_WEB_SERVER = "Web server", "none"
_WEB_SERVER_PACKAGE = "nginx"
# The title of the image's major version of PostgreSQL, and Debian's package of a server.
POSTGRESQL = "PostgreSQL"
_SERVER = re.compile(r"postgresql-(\d+)")
# A VM that an operator cloned from a template; the tags of version and digest identify the template.
CLONE_TAG = "golden-clone"


class State(StrEnum):
    """The state of a VM on the cluster: being published, or a finished template."""

    PUBLISHING = "publishing"
    TEMPLATE = "template"


class CloneState(StrEnum):
    """The state of a clone: being created, finished, or being removed by the run that created it."""

    MAKING = "making"
    MADE = "made"
    REMOVING = "removing"


@dataclass(frozen=True)
class Label:
    """The facts of a published image. ``run`` identifies the run that created it, so that no other run removes it."""

    name: str
    version: str
    digest: str
    artifact: str
    state: State
    published: str
    run: str
    provenance: Mapping[str, str] = field(default_factory=dict)
    # The settings of golden.yaml at publication: the file may have changed since.
    machine: Mapping[str, str] = field(default_factory=dict)
    # The digests and signatures of the statement about the artifact (build/artifact/statement.py, Seal).
    proof: Mapping[str, Any] = field(default_factory=dict)
    # The number of heartbeats of the run that works on the VM (build/publish/heartbeat.py); 0 if no run works on it.
    beat: int = 0

    @property
    def template(self) -> str:
        """The template's name on the cluster."""
        return f"{self.name}-{self.version}"

    @property
    def web(self) -> bool:
        """Whether the image has a web server, and with it a health page; the labels of older releases do not say it."""
        return self.provenance.get(WEB_SERVER) != NO_WEB_SERVER

    @property
    def medium(self) -> str:
        """The file name of the uploaded image: another image has another name."""
        return f"{self.template}-{self.digest[:DIGEST_HEX]}.qcow2"

    def clone_name(self, letter: str = "") -> str:
        """Return the name of a test clone on a node, or without a letter the prefix of these names.

        It has no dot: Proxmox's cloud-init drive uses the part before the first dot as host name, and all clones of all
        versions 0.x would share it.
        """
        return f"{self.template.replace('.', '-')}-check-{letter}"

    def tags(self, *channels: str) -> str:
        """Return the tags in Proxmox's format."""
        return ";".join(sorted({PRODUCT_TAG, version_tag(self.version), digest_tag(self.digest), *channels}))

    def become(self, state: State) -> Label:
        """Return the label of the same image in another state."""
        return replace(self, state=state)

    def describe(self) -> str:
        """Return the description of the VM on the cluster."""
        advice = {
            State.TEMPLATE: "Golden Debian image, published by Goldsmith: clone it, do not change it.",
            State.PUBLISHING: "Goldsmith is publishing this image: it is not verified yet. Do not use it.",
        }
        lines = [
            f"# {self.name} {self.version}", "", advice[self.state], "", *_made_of(self.digest, self.artifact),
            f"* Published: {self.published}",
            # Sorted: a label that is read back has its keys in that order.
            *(f"* {title}: `{text}`" for title, text in sorted(self.provenance.items())),
            "", f"<!-- goldsmith: {_comment(_written(self, 'beat'))} -->",
        ]  # fmt: skip
        return "\n".join(lines)


@dataclass(frozen=True)
class CloneLabel:
    """The facts of an operator's clone: its template and image, and the run that created it."""

    template: str
    version: str
    digest: str
    artifact: str
    state: CloneState
    cloned: str
    run: str
    # A linked clone depends on its template permanently.
    linked: bool = False
    # Whether its image has a web server.
    web: bool = True

    def tags(self) -> str:
        """Return the tags in Proxmox's format."""
        return ";".join(sorted({CLONE_TAG, version_tag(self.version), digest_tag(self.digest)}))

    def become(self, state: CloneState) -> CloneLabel:
        """Return the label of the same clone in another state."""
        return replace(self, state=state)

    def describe(self) -> str:
        """Return the description of the VM on the cluster."""
        kind = "linked" if self.linked else "full"
        lines = [
            f"A {kind} clone of **{self.template}**.", "", *_made_of(self.digest, self.artifact),
            f"* Cloned: {self.cloned}", "",
            f"<!-- goldsmith-clone: {_comment(_written(self, 'web'))} -->",
        ]  # fmt: skip
        return "\n".join(lines)


def of(
    image: Artifact, *, state: State, published: str, run: str, machine: Mapping[str, str] | None = None,
    seal: Seal | None = None,
) -> Label:  # fmt: skip
    """Return the label of an artifact.

    ``machine`` are the settings of the VM, ``seal`` the statement with its signatures.
    """
    manifest = image.manifest
    provenance = {"Debian archive as of": manifest.inputs.archive_date}
    provenance["Root file system"] = manifest.inputs.rootfs_tar_sha256 or ""
    provenance["Commit"] = manifest.inputs.commit or ""
    provenance[ADMINISTRATOR] = manifest.inputs.administrator
    provenance |= servers_of(manifest.packages)
    if seal:
        digest = manifest.image.sha256
        provenance["Statement"] = Statement(image.path.name, digest, seal.sums, seal.provenance).digest
        provenance["Signed by"] = ", ".join(sorted(seal.signatures))
    return Label(
        name=manifest.name, version=manifest.version, digest=manifest.image.sha256, artifact=image.path.name,
        state=state, published=published, run=run, provenance={title: text for title, text in provenance.items() if text},
        machine=dict(machine or {}), proof=seal.as_label() if seal else {},
    )  # fmt: skip


def servers_of(packages: Collection[str]) -> dict[str, str]:
    """Return the text of a label about the servers among the packages of an image."""
    versions = [match[1] for package in packages if (match := _SERVER.fullmatch(package))]
    return {
        WEB_SERVER: _WEB_SERVER_PACKAGE if _WEB_SERVER_PACKAGE in packages else NO_WEB_SERVER,
        POSTGRESQL: versions[0] if len(versions) == 1 else "",
    }


def product_of(template: str) -> str:
    """Return the product in the name of a template: the name without the version; empty for another name."""
    match = TEMPLATE.fullmatch(template)
    return match[1] if match else ""


def version_tag(version: str) -> str:
    """Return the tag that names a version."""
    return f"v{version}".lower()


def digest_tag(digest: str) -> str:
    """Return the tag that names an image by its content."""
    return f"sha256-{digest[:DIGEST_HEX]}"


def split_tags(text: str) -> frozenset[str]:
    """Return the tags in a response of Proxmox as a set."""
    return frozenset(tag for tag in re.split(r"[;, ]+", text) if tag)


def unnamed_clones(guests: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return NODE/VMID of each clone in a list of guests that has no name: its node does not answer."""
    return [
        f"{guest['node']}/{guest['vmid']}" for guest in guests
        if "name" not in guest and CLONE_TAG in split_tags(str(guest.get("tags", "")))
    ]  # fmt: skip


def parse(description: str) -> Label | None:
    """Return the label in a description, or None if there is none that this version can read."""
    try:
        facts = _facts(MARK, description)
        return Label(**{**facts, "state": State(facts["state"])}) if facts else None
    except (ValueError, TypeError, KeyError):
        return None


def parse_clone(description: str) -> CloneLabel | None:
    """Return the label of a clone in a description, or None."""
    try:
        facts = _facts(CLONE_MARK, description)
        return CloneLabel(**{**facts, "state": CloneState(facts["state"])}) if facts else None
    except (ValueError, TypeError, KeyError):
        return None


def relabel(description: str, label: Label) -> str:
    """Return a description with another label of the same image; other text in it is kept.

    Raises ValueError if the old label was modified.
    """
    old = parse(description)
    if old is None or old.describe() not in description:
        raise ValueError("the description is not the one that was written")
    return description.replace(old.describe(), label.describe())


def run_of(description: str) -> str:
    """Return the run that created a VM, template or clone; empty if Goldsmith did not create it."""
    label = parse(description) or parse_clone(description)
    return label.run if label else ""


def _facts(mark: re.Pattern[str], description: str) -> dict[str, Any]:
    match = mark.search(description or "")
    facts = json_text.parse(match["facts"]) if match else {}
    if not isinstance(facts, dict) or facts.pop("schema", None) != SCHEMA:
        return {}
    return facts


def _written(label: Label | CloneLabel, newer: str) -> dict[str, Any]:
    """Return the facts as they are written: the field ``newer``, unknown to earlier releases, only if it is set."""
    facts = asdict(label) | {"schema": SCHEMA}
    if facts[newer] == getattr(type(label), newer):
        del facts[newer]
    return facts


def _made_of(digest: str, artifact: str) -> list[str]:
    """Return the lines that identify the image; an image installed on the cluster has only the installer ISO's digest."""
    what = "image" if artifact else "installation medium"
    return [f"* SHA-256 of the {what}: `{digest}`", *([f"* Artifact: `{artifact}`"] if artifact else [])]


def _comment(facts: Mapping[str, object]) -> str:
    """Return JSON that cannot end the HTML comment around it."""
    return json.dumps(facts, sort_keys=True, separators=(",", ":")).replace(">", "\\u003e")


def order(tags: Collection[str]) -> tuple[tuple[int, ...], bool, str]:
    """Order versions by a template's tags: 1.10.0 is newer than 1.9.0, and 1.0.0 than 1.0.0-rc1."""
    version = next((match for tag in tags if (match := VERSION.fullmatch(tag))), None)
    if version is None:
        return (), False, ""
    numbers = tuple(int(part) for part in version["numbers"].split("."))
    return numbers, not version["before"], version["before"] or ""
