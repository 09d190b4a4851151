"""certificate of site.yaml: who signs the certificate of the web server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from golden.site_table import Key, Table
from golden.site_values import certificate_file, https_url, mail_address


def read(site: Table, key: str) -> dict[str, Any]:
    """Return the setting."""
    part = site.part(key, about="The certificate of the web server.")
    acme = "An ACME authority. Without one the machine signs its certificate itself, until you bring yours."
    found = {"acme": part.whole("acme", _acme, about=acme)}
    part.refuse_others()
    return found


def _acme(part: Table) -> dict[str, Any]:
    return {
        "directory": part.needed("directory", https_url, about="The authority's directory."),
        "email": part.value("email", mail_address, about="The address that the authority writes to."),
        "ca": part.value("ca", certificate_file, about="The authority of the ACME server itself, if it is your own."),
    }


def outgoing(certificate: Mapping[str, Any]) -> Iterable[tuple[str, str | None]]:
    """Return the authority that golden-acme.service calls."""
    acme = certificate["acme"]
    return [("golden-acme", acme and acme["directory"])]


KEY = Key(read, outgoing=outgoing)
