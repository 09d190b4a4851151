"""database of site.yaml: the application's database on another machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from golden.site_table import Key, Table
from golden.site_values import certificate_file, key_file, number, other_machine, pair_problem

USER = "golden-remote-database"
ABOUT = "The application's database on another machine, reached over TLS with a certificate."


def read(site: Table, key: str) -> dict[str, Any] | None:
    """Return the setting, or None without it, or with a fault in it."""
    before = len(site.faults)
    found: dict[str, Any] | None = site.whole(key, _database, about=ABOUT)
    return found if len(site.faults) == before else None


def _database(part: Table) -> dict[str, Any]:
    server = "The address of the server; its certificate has to name it (subjectAltName IP)."
    found = {
        "address": part.needed("address", other_machine, about=server),
        "port": part.value("port", number(1, 65535), default=5432, about="The port of the server."),
        "authority": part.needed("authority", certificate_file, about="The authority that signed the server's certificate."),
        "certificate": part.needed("certificate", certificate_file, about="The certificate of this machine."),
        "key": part.needed("key", key_file, about="The private key of that certificate."),
    }
    if problem := pair_problem(found["certificate"], found["key"]):
        part.complain("key", found["key"], problem)
    return found


def destinations(setting: Mapping[str, Any] | None) -> Mapping[str, Sequence[tuple[str, str, int]]]:
    """Return the server, which the user of the connection may reach."""
    return {"database": [(USER, setting["address"], setting["port"])] if setting else []}


KEY = Key(read, destinations=destinations)
