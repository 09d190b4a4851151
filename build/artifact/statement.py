"""The signed statement, which binds an artifact's name to its content, and the short form of a signature.

The statement is canonical JSON with a newline at the end, and a pure function of the artifact: verification computes it
again, and all signers of an artifact sign the same bytes. It has the digest of SHA256SUMS, which lists every other file.

The signatures have OpenSSH's format (PROTOCOL.sshsig): base64 between two marker lines. A template's description is limited
to 8 KiB, so it has only the base64, without newlines; the rest of the statement follows from the label.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from build.artifact import artifact
from build.artifact.artifact import Artifact
from build.core import files

KIND = "goldsmith-artifact"
SCHEMA = 1
BEGIN, END = "-----BEGIN SSH SIGNATURE-----", "-----END SSH SIGNATURE-----"
LINE = 70
BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")
# The allowed signers file decides who may sign under which name. The name is also used as a file name.
IDENTITY = re.compile(r"[A-Za-z0-9][A-Za-z0-9@._+-]{0,99}")


@dataclass(frozen=True)
class Statement:
    """The directory's name, and SHA-256 of the image, of SHA256SUMS and of the provenance, as hexadecimal."""

    artifact: str
    image: str
    sums: str
    provenance: str

    @classmethod
    def of(cls, signed: Artifact) -> Self:
        """Return the statement about an artifact as its files are now. Raises OSError when one is missing."""
        return cls(
            signed.path.name, signed.manifest.image.sha256, files.sha256_file(signed.path / artifact.SUMS),
            files.sha256_file(signed.path / artifact.PROVENANCE),
        )  # fmt: skip

    @property
    def text(self) -> str:
        """The bytes that are signed."""
        return files.canonical_json({"kind": KIND, "schema": SCHEMA, **vars(self)}).decode() + "\n"

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


def short(armoured: str) -> str:
    """Return the base64 of an OpenSSH signature; empty when the text is not a signature."""
    match = re.fullmatch(rf"{BEGIN}\s+(?P<body>[A-Za-z0-9+/=\s]+?)\s*{END}\s*", armoured)
    body = re.sub(r"\s", "", match["body"]) if match else ""
    return body if BASE64.fullmatch(body) else ""


def armoured(body: str) -> str:
    """Return an OpenSSH signature in the form that ssh-keygen reads, from its base64."""
    lines = [body[start : start + LINE] for start in range(0, len(body), LINE)]
    return "\n".join([BEGIN, *lines, END, ""])


@dataclass(frozen=True)
class Seal:
    """A statement's digests and its signatures by identity, as they are in a template's label."""

    sums: str
    provenance: str
    signatures: Mapping[str, str]

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> Self | None:
        """Read it from a label; None when it is missing, or does not have the form that ``publish`` writes."""
        signatures = value.get("signatures")
        digests = [value.get(name) for name in ("sums", "provenance")]
        valid = isinstance(signatures, dict) and all(isinstance(digest, str) and len(digest) == 64 for digest in digests)
        if not valid or not all(IDENTITY.fullmatch(str(name)) for name in signatures or {}):
            return None
        return cls(str(digests[0]), str(digests[1]), {name: str(body) for name, body in (signatures or {}).items()})

    def as_label(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"sums": self.sums, "provenance": self.provenance, "signatures": dict(self.signatures)}
