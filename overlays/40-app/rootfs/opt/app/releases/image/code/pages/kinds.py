"""The kind of a file, recognized by its content: its name is chosen by the sender."""

import re
from dataclasses import dataclass
from pathlib import PurePath


@dataclass(frozen=True)
class Kind:
    """A kind of file that may be stored: the suffix it is stored with, and the suffixes a sender may give it."""

    suffix: str
    named: tuple[str, ...]


PNG = Kind(".png", (".png",))
JPEG = Kind(".jpg", (".jpg", ".jpeg"))
PDF = Kind(".pdf", (".pdf",))
TEXT = Kind(".txt", (".txt",))

SIGNATURES = (
    (re.compile(rb"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"), PNG),
    (re.compile(rb"\xff\xd8\xff[\xc0-\xfe]"), JPEG),
    (re.compile(rb"%PDF-[12]\.[0-9]"), PDF),
)
# Tab, line feed and carriage return are text; no other control character is.
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
# Markup and scripts are text too, but are not accepted.
ACTIVE = re.compile(r"\ufeff?\s*(?:<|#!)")


def kind_of(content: bytes) -> Kind | None:
    """Return the kind of the content, or None when it may not be stored."""
    for signature, kind in SIGNATURES:
        if signature.match(content):
            return kind
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return None if not text or CONTROL.search(text) or ACTIVE.match(text) else TEXT


def accept(name: str, content: bytes) -> Kind | None:
    """Return the kind of a file whose content matches its name, or None."""
    kind = kind_of(content)
    return kind if kind and PurePath(name).suffix.lower() in kind.named else None
