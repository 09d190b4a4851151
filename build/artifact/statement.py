"""What people sign: one small statement that binds an artifact's name to its bytes, and the short form of a signature.

The statement is canonical JSON with a line end, a pure function of the artifact: whoever verifies writes it anew, and two
people who sign the same artifact sign the same bytes. It names the digest of SHA256SUMS, which names every other file.

A signature is OpenSSH's (PROTOCOL.sshsig): base64 between two lines. A template's description has 8 KiB for everything, so
there only the base64 stands, without line ends; the rest of the statement follows from the label.
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
# Who may sign under which name is decided by the allowed signers; the name is a file's, too.
IDENTITY = re.compile(r"[A-Za-z0-9][A-Za-z0-9@._+-]{0,99}")


@dataclass(frozen=True)
class Statement:
    """The directory's name, and SHA-256 of the image, of SHA256SUMS and of the provenance, as hexadecimal."""

    artifact: str
    image: str
    sums: str
    provenance: str

    @classmethod
    def of(cls, found: Artifact) -> Self:
        """Return the statement about an artifact as its files are now. Raises OSError when one is missing."""
        return cls(
            found.path.name, found.manifest.image.sha256, files.sha256_file(found.path / artifact.SUMS),
            files.sha256_file(found.path / artifact.PROVENANCE),
        )  # fmt: skip

    @property
    def text(self) -> str:
        """The bytes that are signed."""
        return files.canonical_json({"kind": KIND, "schema": SCHEMA, **vars(self)}).decode() + "\n"

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


def short(armoured: str) -> str:
    """Return the base64 of an OpenSSH signature; empty when the text is none."""
    found = re.fullmatch(rf"{BEGIN}\s+(?P<body>[A-Za-z0-9+/=\s]+?)\s*{END}\s*", armoured)
    body = re.sub(r"\s", "", found["body"]) if found else ""
    return body if BASE64.fullmatch(body) else ""


def armoured(body: str) -> str:
    """Return an OpenSSH signature as ssh-keygen reads it, from its base64."""
    lines = [body[start : start + LINE] for start in range(0, len(body), LINE)]
    return "\n".join([BEGIN, *lines, END, ""])


@dataclass(frozen=True)
class Seal:
    """A statement's digests and its signatures by identity, as a template's label carries them."""

    sums: str
    provenance: str
    signatures: Mapping[str, str]

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> Self | None:
        """Read it from a label; None when it is not there, or is not what publish writes."""
        signatures = value.get("signatures")
        digests = [value.get(name) for name in ("sums", "provenance")]
        good = isinstance(signatures, dict) and all(isinstance(one, str) and len(one) == 64 for one in digests)
        if not good or not all(IDENTITY.fullmatch(str(name)) for name in signatures or {}):
            return None
        return cls(str(digests[0]), str(digests[1]), {name: str(one) for name, one in (signatures or {}).items()})

    def as_label(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"sums": self.sums, "provenance": self.provenance, "signatures": dict(self.signatures)}
