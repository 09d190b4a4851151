"""log_collector of site.yaml: where all logs go as well."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping
from typing import Any

from golden.site_table import Key, Table, Wrong, kind
from golden.site_values import PATH, certificate_file, host_or_address, number, one_of

SYSLOG_TLS_PORT = 6514
PROTOCOLS = ("relp", "syslog")


@kind("The path of a PEM file with certificates, saved as plain text.", pattern=f"^(?:{PATH})$")
def plain_certificate_file(value: object) -> str:
    """Return the path of a file with certificates for a program that reads the file itself: rsyslog."""
    path = str(certificate_file(value))
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=path)
    except OSError:
        raise Wrong("rsyslog cannot read it as it was saved: save it as plain text (UTF-8, LF), without a mark") from None
    return path


def read(site: Table, key: str) -> dict[str, Any] | None:
    """Return the setting."""
    return site.whole(key, _collector, about="Where all logs go as well, over TLS.")


def _collector(part: Table) -> dict[str, Any]:
    host = part.needed("host", host_or_address, about="The collector.")
    protocol = "relp confirms every line; of syslog (RFC 5425), lines under way are lost when a collector ends."
    return {
        "host": host,
        "protocol": part.value("protocol", one_of(*PROTOCOLS), default=PROTOCOLS[0], about=protocol),
        "port": part.value("port", number(1, 65535), default=SYSLOG_TLS_PORT, about="The collector's port."),
        "ca": part.needed("ca", plain_certificate_file, about="The authority that signed the collector's certificate."),
        "peer": part.value("peer", host_or_address, default=host, about="The name in that certificate, if it is not host."),
    }


def outgoing(collector: Mapping[str, Any]) -> Iterable[tuple[str, str | None]]:
    """Return the collector, which rsyslog.service calls."""
    return [("root", f"syslog://collector:{collector['port']}")]


KEY = Key(read, outgoing=outgoing)
