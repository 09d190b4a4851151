"""Who may reach the application's administration: the site's settings as lines for the web server.

Closed is the default. It opens only to whoever has both: an address of the list, and a certificate of the site's own
authority. A wrong setting closes it, and is reported.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from golden.core import Problem, pem_text, run, write_whole

TARGET = Path("/run/golden")
AUTHORITY = "client-authority.pem"
CLIENT_CERTIFICATES = "client-certificates.conf"
ACCESS = "admin-access.conf"


def access_lines(cidrs: Sequence[str]) -> str:
    """Return the lines for the location of the administration. Raises Problem for what is no network."""
    try:
        networks = [ipaddress.ip_network(cidr) for cidr in cidrs]
    except ValueError as error:
        raise Problem(f"admin_proxy.cidrs: {error}", hint="write a network as 192.0.2.0/24") from None
    # The certificate is asked for before the address is: a rewrite comes before access rules.
    return "if ($ssl_client_verify != SUCCESS) { return 404; }\n" + "".join(f"allow {one};\n" for one in networks)


def authority_lines(directory: Path) -> str:
    """Return the lines for the server: a client may bring a certificate of this authority."""
    return f"ssl_client_certificate {directory / AUTHORITY};\nssl_verify_client optional;\nssl_verify_depth 2;\n"


def read_authority(path: Path) -> bytes:
    """Return the certificates of the authority. Raises Problem unless each is a certificate that may sign others."""
    try:
        content = pem_text(path.read_bytes()).encode()
    except OSError as error:
        raise Problem(f"admin_proxy.client_ca: {path}: {error.strerror}") from None
    end = b"-----END CERTIFICATE-----"
    blocks = [block[block.find(b"-----BEGIN") :] + end + b"\n" for block in content.split(end)[:-1]]
    if not blocks:
        raise Problem(f"admin_proxy.client_ca: {path} holds no certificate", hint="it has to be PEM")
    for block in blocks:
        text = run(["openssl", "x509", "-noout", "-ext", "basicConstraints"], stdin=block).stdout
        if b"CA:TRUE" not in text:
            raise Problem(f"admin_proxy.client_ca: {path} holds a certificate that is no authority's")
    return b"".join(blocks)


def apply(settings: Mapping[str, Any], *, target: Path = TARGET) -> dict[str, Any]:
    """Write what the settings ask for, or remove it; return what holds now."""
    for name in (ACCESS, CLIENT_CERTIFICATES, AUTHORITY):
        (target / name).unlink(missing_ok=True)
    authority, cidrs = settings["client_ca"], settings["cidrs"]
    if not authority and not cidrs:
        return {"ok": True, "open": False, "reason": "nothing is set"}
    if not authority or not cidrs:
        missing = "client_ca" if cidrs else "cidrs"
        raise Problem(
            f"admin_proxy: {missing} is not set, so that the administration stays closed",
            hint="it opens with both; for every address, write 0.0.0.0/0 and ::/0",
        )
    access, certificates = access_lines(cidrs), read_authority(Path(authority))
    write_whole(target / AUTHORITY, certificates, mode=0o644)
    write_whole(target / CLIENT_CERTIFICATES, authority_lines(target).encode(), mode=0o644)
    write_whole(target / ACCESS, access.encode(), mode=0o644)
    return {"ok": True, "open": True, "cidrs": list(cidrs)}
