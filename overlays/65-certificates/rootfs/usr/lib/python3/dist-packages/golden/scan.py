"""The web server's TLS as a client meets it: handshakes with openssl over the loopback, rule by rule.

Smaller than a scanner from outside, and always there: no download, no network, a few seconds.
"""

from __future__ import annotations

import http.client
import re
import ssl
from collections.abc import Mapping
from pathlib import Path

from golden.certificates import CERTIFICATE, KEY, Verdict, judge, read_chain, trusted
from golden.core import run
from golden.renewal import warn_days

HANDSHAKE_SECONDS = 20
# Everything but what forward secrecy and authenticated encryption leave.
WEAK = "ALL:COMPLEMENTOFALL:!ECDHE+AESGCM:!ECDHE+CHACHA20:@SECLEVEL=0"
# An answer over TLS carries each of these once.
HEADERS = (
    "Strict-Transport-Security", "Content-Security-Policy", "X-Content-Type-Options", "X-Frame-Options", "Referrer-Policy",
)  # fmt: skip


def scan(name: str, *, authority: Path | None) -> dict[str, object]:
    """Return the result of every rule for what is served for a name, and whether browsers would trust the certificate."""
    chain = read_chain(CERTIFICATE)
    verdicts = [
        *judge(chain, KEY, names=[name], days=warn_days(chain[0])),
        *_protocols(name), *_sessions(name), *_names(name), *_headers(name),
    ]  # fmt: skip
    return {
        "ok": all(one.ok for one in verdicts),
        "name": name,
        "trusted": trusted(chain, authority=authority),
        "verdicts": [vars(one) for one in verdicts],
    }


def handshake(*options: str, name: str) -> tuple[bool, str]:
    """Try to connect; return whether there is a connection, and the output of openssl."""
    server = ["-servername", name] if name else ["-noservername"]
    argv = ["openssl", "s_client", "-connect", "127.0.0.1:443", *server, *options]
    done = run(argv, check=False, timeout=HANDSHAKE_SECONDS)
    text = done.stdout.decode(errors="replace") + done.stderr.decode(errors="replace")
    return done.returncode == 0 and "Cipher is (NONE)" not in text, text


def _refused(rule: str, *options: str, name: str) -> Verdict:
    there, said = handshake(*options, name=name)
    # The server's alert: an option that openssl itself refuses would prove nothing.
    refused = not there and "SSL alert number" in said
    return Verdict(rule, refused, "refused" if refused else "accepted" if there else "no answer")


def _accepted(rule: str, *options: str, name: str) -> Verdict:
    there, said = handshake(*options, name=name)
    found = re.search(r"Cipher is (\S+)", said)
    return Verdict(rule, there, found.group(1) if found and there else "refused")


def _protocols(name: str) -> list[Verdict]:
    old = ("-cipher", "ALL:@SECLEVEL=0")
    return [
        _refused("TLS 1.0 is refused", "-tls1", *old, name=name),
        _refused("TLS 1.1 is refused", "-tls1_1", *old, name=name),
        _accepted("TLS 1.2 is spoken", "-tls1_2", name=name),
        _accepted("TLS 1.3 is spoken", "-tls1_3", name=name),
        _refused("ciphers without forward secrecy or authentication are refused", "-tls1_2", "-cipher", WEAK, name=name),
        _accepted("the post-quantum group X25519MLKEM768 is offered", "-tls1_3", "-groups", "X25519MLKEM768", name=name),
    ]


def _sessions(name: str) -> list[Verdict]:
    there, said = handshake("-tls1_2", name=name)
    return [
        Verdict("no session ticket is given", there and "TLS session ticket:" not in said, "TLS 1.2"),
        Verdict("nothing is compressed", "Compression: NONE" in said, "TLS 1.2"),
        Verdict("renegotiation is secure", "Secure Renegotiation IS supported" in said, "TLS 1.2"),
    ]


def _names(name: str) -> list[Verdict]:
    return [
        _refused("another name is refused", name=f"not-{name}"),
        _refused("no name is refused", name=""),
    ]


def _headers(name: str) -> list[Verdict]:
    secured = _answer(_Secured("127.0.0.1", 443, timeout=HANDSHAKE_SECONDS), name)
    plain = _answer(http.client.HTTPConnection("127.0.0.1", 80, timeout=HANDSHAKE_SECONDS), name)
    counts = {header: len(secured.get(header.lower(), [])) for header in HEADERS}
    location = " ".join(plain.get("location", []))
    return [
        Verdict("every security header is there once", set(counts.values()) == {1}, _odd(counts)),
        Verdict("the server does not name itself", "server" not in secured, " ".join(secured.get("server", [])) or "no"),
        Verdict("plain HTTP leads to HTTPS", location.startswith(f"https://{name}/"), location or "no redirect"),
    ]


def _odd(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{header}: {count}" for header, count in counts.items() if count != 1) or "all"


class _Secured(http.client.HTTPConnection):
    """Names another server in the handshake than the address that it connects to; who it is, other rules ask."""

    def secure(self, name: str) -> None:
        """Connect, and do the handshake for a name."""
        self.connect()
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self.sock = context.wrap_socket(self.sock, server_hostname=name)


def _answer(connection: http.client.HTTPConnection, name: str) -> dict[str, list[str]]:
    """Return the headers of the answer for /health by their lower-case names; none when there is no answer."""
    found: dict[str, list[str]] = {}
    try:
        if isinstance(connection, _Secured):
            connection.secure(name)
        connection.request("GET", "/health", headers={"Host": name})
        for key, value in connection.getresponse().getheaders():
            found.setdefault(key.lower(), []).append(value)
    except (OSError, http.client.HTTPException):
        return {}
    finally:
        connection.close()
    return found
