"""database_clients of site.yaml: machines that may use the application's database over the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from golden.site_table import Key, Table
from golden.site_values import certificate_file, host_name, key_file, other_machine, pair_problem

ABOUT = "Machines that may use the application's database over the network, with TLS and a certificate each."
CLIENTS = "The machines. Without any, the server has no network."


def read(site: Table, key: str) -> dict[str, Any]:
    """Return the setting; with a fault in it there are no clients."""
    part = site.part(key, about=ABOUT)
    before = len(site.faults)
    found = {
        "certificate": part.value("certificate", certificate_file, about="The server's certificate, and its chain."),
        "key": part.value("key", key_file, about="The private key of that certificate."),
        "authority": part.value("authority", certificate_file, about="The authority that signs the clients' certificates."),
        "clients": part.parts("clients", _client, about=CLIENTS),
    }
    part.refuse_others()
    for name in ("certificate", "key", "authority"):
        if part.content.get("clients") and part.content.get(name) is None:
            part.complain(name, None, "is needed for clients")
    if problem := pair_problem(found["certificate"], found["key"]):
        part.complain("key", found["key"], problem)
    return found if len(site.faults) == before else dict.fromkeys(found) | {"clients": []}


def _client(part: Table) -> dict[str, Any]:
    return {
        "name": part.needed("name", host_name, about="The name in its certificate (the common name of the subject)."),
        "address": part.needed("address", other_machine, about="The address that it connects from."),
    }


def networks(setting: Mapping[str, Any] | None) -> Mapping[str, Sequence[str]]:
    """Return the addresses that reach the database."""
    return {"database": [client["address"] for client in setting["clients"]] if setting else []}


KEY = Key(read, networks=networks)
