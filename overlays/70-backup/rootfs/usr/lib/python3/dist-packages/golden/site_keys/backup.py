"""backup of site.yaml: for whom backups are encrypted, where they go, how long they stay."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from golden.site_table import Key, Table, Wrong, kind
from golden.site_values import number, text_line

TARGET = r"|scp://[A-Za-z0-9._-]+@[A-Za-z0-9.:\[\]-]+(/[A-Za-z0-9._@+-]+)+/?|rclone:[A-Za-z0-9._-]+:[^\s]*"
SSH_KEY = r"((?:sk-)?(?:ssh|ecdsa)-[a-z0-9@.-]{3,60} [A-Za-z0-9+/]{32,2000}={0,3})(?: [ -~]*)?"
BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
RECIPIENT = rf"age1[{BECH32}]{{58}}"


@kind("scp://user@host/path or rclone:remote:path.", pattern=f"^(?:{TARGET})$")
def backup_target(value: object) -> str:
    """Return where backups go besides the local disk."""
    text = text_line(value)
    if not re.fullmatch(TARGET, text):
        raise Wrong("write scp://user@host/path or rclone:remote:path, or nothing")
    return text


@kind("A public key of OpenSSH, in one line.", pattern=f"^(?:{SSH_KEY})$")
def ssh_public_key(value: object) -> str:
    """Return a public key of OpenSSH without its comment."""
    found = re.fullmatch(SSH_KEY, text_line(value))
    if not found:
        raise Wrong("write the line that golden-backup --signer prints on the other machine: ssh-ed25519 AAAA...")
    return found[1]


@kind("A public key of age, as age-keygen prints it.", pattern=f"^(?:{RECIPIENT})$")
def age_recipient(value: object) -> str:
    """Return age's public key, its check sum verified: with a mistyped one no backup could ever be read."""
    text = text_line(value)
    if not re.fullmatch(RECIPIENT, text) or not _bech32_holds(text):
        raise Wrong("write the public key that age-keygen prints: age1 and 58 more characters")
    return text


def _bech32_holds(text: str) -> bool:
    """Return whether the check sum of BIP 173 holds."""
    prefix, _one, data = text.rpartition("1")
    values = [*(ord(one) >> 5 for one in prefix), 0, *(ord(one) & 31 for one in prefix)]
    values += [BECH32.index(one) for one in data]
    check_sum = 1
    for value in values:
        top = check_sum >> 25
        check_sum = (check_sum & 0x1FFFFFF) << 5 ^ value
        for bit, part in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            check_sum ^= part if (top >> bit) & 1 else 0
    return check_sum == 1


def read(site: Table, key: str) -> dict[str, Any] | None:
    """Return the setting."""
    return site.whole(key, _backup, about="Encrypted backups of the database and the media, every night.")


def _backup(part: Table) -> dict[str, Any]:
    signers = "Machines whose backups may be restored here, besides this one: what golden-backup --signer prints there."
    return {
        "recipient": part.needed("recipient", age_recipient, about="The public key that backups are encrypted for."),
        "target": part.value("target", backup_target, default="", about="Where backups go besides this disk."),
        "keep_days": part.value("keep_days", number(1, 3650), default=14, about="For how many days backups are kept."),
        "signers": part.items("signers", ssh_public_key, about=signers),
    }


def outgoing(backup: Mapping[str, Any]) -> Iterable[tuple[str, str | None]]:
    """Return the target that golden-backup-send.service calls."""
    return [("root", backup["target"])]


KEY = Key(read, outgoing=outgoing)
