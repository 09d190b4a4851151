"""database_clients of site.yaml: machines that may use the application's database over the network."""

from __future__ import annotations

import ipaddress
import os
import ssl
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from golden.site_table import Key, Table, Wrong, kind
from golden.site_values import certificate_file, host_name, readable, text_line, unit_path

LARGEST_KEY = 64 * 1024
ABOUT = "Machines that may use the application's database over the network, with TLS and a certificate each."
CLIENTS = "The machines. Without any, the server has no network."


class _Encrypted(Exception):
    """The key asks for a password."""


@kind("The path of a PEM file with a private key without a password, which root alone can read.", pattern="^/")
def key_file(value: object) -> str:
    """Return the path of a private key that root alone can read."""
    path = readable(unit_path(value))
    status = Path(path).stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST_KEY:
        raise Wrong(f"write the path of a regular file of at most {LARGEST_KEY} bytes")
    if status.st_mode & 0o077 or status.st_uid:
        raise Wrong(f"others than root can read it: chown root: {path}; chmod 0600 {path}")
    if b"PRIVATE KEY-----" not in Path(path).read_bytes():
        raise Wrong("no private key in PEM form is in it")
    return path


@kind("The IP address of a machine, such as 192.0.2.10 or 2001:db8::10.")
def address(value: object) -> str:
    """Return the address of another machine, in its usual form."""
    try:
        found = ipaddress.ip_address(text_line(value))
    except ValueError:
        raise Wrong("write an IP address, such as 192.0.2.10 or 2001:db8::10; no name and no network") from None
    if found.is_loopback or found.is_unspecified or found.is_multicast or found.is_link_local:
        raise Wrong("write the address of another machine")
    return str(found)


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
    if len(site.faults) == before and found["certificate"] and found["key"]:
        _need_pair(part, found["certificate"], found["key"])
    return found if len(site.faults) == before else dict.fromkeys(found) | {"clients": []}


def _client(part: Table) -> dict[str, Any]:
    return {
        "name": part.needed("name", host_name, about="The name in its certificate (the common name of the subject)."),
        "address": part.needed("address", address, about="The address that it connects from."),
    }


def _need_pair(part: Table, certificate: str, key: str) -> None:
    """Complain about a key that does not belong to the certificate, or has a password."""

    def refuse() -> str:
        raise _Encrypted

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, refuse)
    except _Encrypted:
        part.complain("key", key, "it has a password: openssl pkey -in KEY -out NEW writes it without one")
    except OSError as error:  # SSLError is one
        reason = getattr(error, "reason", None) or error.strerror or error
        part.complain("key", key, f"it does not belong to the certificate {os.fspath(certificate)} ({reason})")


def networks(setting: Mapping[str, Any]) -> Mapping[str, Sequence[str]]:
    """Return the addresses that reach the database."""
    return {"database": [client["address"] for client in setting["clients"]]}


KEY = Key(read, networks=networks)
