"""A small ACME server (RFC 8555) for one test: it requests the file that validates a name, and signs validated names.

``python3 acme_server.py DIRECTORY``: certificates and keys are read from there (authority.pem and authority.key of the
authority, server.pem and server.key of the web server). Every request's signature, nonce and address are verified. It uses
the standard library and the openssl command only.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import http.server
import json
import os
import re
import secrets
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

PORT = 14000
BASE = f"https://localhost:{PORT}"
DAYS = "60"


class Refused(Exception):
    """The client violated the protocol."""


def openssl(*words: str, stdin: bytes = b"") -> bytes:
    return subprocess.run(["openssl", *words], input=stdin, capture_output=True, check=True).stdout


def decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def encode(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def der(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    size = len(body).to_bytes((len(body).bit_length() + 7) // 8 or 1)
    return bytes([tag]) + (size if len(body) < 128 else bytes([0x80 + len(size)]) + size) + body


def public_key(jwk: dict[str, str]) -> bytes:
    """Return an RSA key as DER (RFC 5280, SubjectPublicKeyInfo)."""
    kind = der(0x30, bytes.fromhex("06092a864886f70d0101010500"))
    return der(0x30, kind, der(3, b"\0", der(0x30, number(jwk["n"]), number(jwk["e"]))))


def number(text: str) -> bytes:
    content = decode(text)
    return der(2, b"\0" + content if content[0] & 0x80 else content)


def thumbprint(jwk: dict[str, str]) -> str:
    canonical = json.dumps({key: jwk[key] for key in ("e", "kty", "n")}, sort_keys=True, separators=(",", ":"))
    return encode(hashlib.sha256(canonical.encode()).digest())


class Authority:
    """Accounts, nonces and the current order; there is only one at a time."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.nonces: set[str] = set()
        self.accounts: dict[str, dict[str, str]] = {}
        self.order: dict[str, Any] = {}
        self.proofs: dict[str, dict[str, Any]] = {}
        self.certificate = b""

    def nonce(self) -> str:
        fresh = secrets.token_hex(16)
        self.nonces.add(fresh)
        return fresh

    def verify(self, path: str, message: dict[str, str]) -> tuple[dict[str, Any], str]:
        """Return a request's payload and its account; raise Refused if the request is invalid."""
        head = json.loads(decode(message["protected"]))
        if head["nonce"] not in self.nonces or head["url"] != BASE + path or head["alg"] != "RS256":
            raise Refused("nonce, address or algorithm")
        self.nonces.discard(head["nonce"])
        account = head.get("kid") or f"{BASE}/account/{thumbprint(head['jwk'])}"
        jwk = self.accounts[account] if "kid" in head else head["jwk"]
        pem = openssl("pkey", "-pubin", "-inform", "DER", stdin=public_key(jwk))
        (self.directory / "signature").write_bytes(decode(message["signature"]))
        signed = f"{message['protected']}.{message['payload']}".encode()
        (self.directory / "account.pem").write_bytes(pem)
        openssl("dgst", "-sha256", "-verify", str(self.directory / "account.pem"),
                "-signature", str(self.directory / "signature"), stdin=signed)  # fmt: skip
        self.accounts.setdefault(account, jwk)
        return (json.loads(decode(message["payload"])) if message["payload"] else {}), account

    def answer(self, path: str, payload: dict[str, Any], account: str) -> tuple[int, Any, str]:
        """Return status, content and location of the response to a verified request."""
        kind, _, name = path.strip("/").partition("/")
        if kind == "new-order":
            self.start([one["value"] for one in payload["identifiers"]])
        elif kind == "challenge":
            self.prove(name, account)
        elif kind == "finalize":
            self.sign(decode(payload["csr"]))
        contents: dict[str, Callable[[], Any]] = {
            "authorization": lambda: self.authorization(name), "certificate": lambda: self.certificate,
            "new-account": lambda: {"status": "valid"}, "challenge": lambda: {"status": self.proofs[name]["status"]},
            "account": lambda: {"status": "valid", "contact": payload.get("contact", [])},
        }  # fmt: skip
        make = contents.get(kind)
        content = make() if make else self.order
        location = account if "account" in kind else f"{BASE}/order"
        return (201 if kind.startswith("new-") else 200), content, location

    def start(self, names: list[str]) -> None:
        """Create an order with a separate token for each name."""
        self.proofs = {one: {"token": secrets.token_urlsafe(24), "status": "pending"} for one in names}
        self.order = {
            "status": "pending", "identifiers": [{"type": "dns", "value": one} for one in names],
            "finalize": f"{BASE}/finalize", "authorizations": [f"{BASE}/authorization/{one}" for one in names],
        }  # fmt: skip

    def authorization(self, name: str) -> dict[str, Any]:
        proof = self.proofs[name]
        challenge = {"type": "http-01", "url": f"{BASE}/challenge/{name}", **proof}
        return {"status": proof["status"], "identifier": {"type": "dns", "value": name}, "challenges": [challenge]}

    def prove(self, name: str, account: str) -> None:
        """Request the file of a name from the web server, as a public authority does."""
        proof = self.proofs[name]
        expected = f"{proof['token']}.{thumbprint(self.accounts[account])}"
        connection = http.client.HTTPConnection("127.0.0.1", 80, timeout=20 * int(os.environ["PACE"]))
        connection.request("GET", f"/.well-known/acme-challenge/{proof['token']}", headers={"Host": name})
        answer = connection.getresponse()
        proof["status"] = "valid" if answer.status == 200 and answer.read().decode() == expected else "invalid"

    def sign(self, request: bytes) -> None:
        """Sign a request if its names are those of the order and all are validated."""
        file = self.directory / "request.der"
        file.write_bytes(request)
        text = openssl("req", "-inform", "DER", "-in", str(file), "-verify", "-noout", "-text").decode()
        asked = sorted(re.findall(r"DNS:([^\s,]+)", text))
        if asked != sorted(self.proofs) or any(one["status"] != "valid" for one in self.proofs.values()):
            raise Refused("names that were not proven")
        extensions = self.directory / "extensions"
        extensions.write_text(
            "basicConstraints = critical, CA:FALSE\nkeyUsage = critical, digitalSignature\nextendedKeyUsage = serverAuth\n"
            f"subjectAltName = critical,{','.join('DNS:' + one for one in asked)}\n"
        )
        leaf = openssl("x509", "-req", "-inform", "DER", "-in", str(file), "-CA", str(self.directory / "authority.pem"),
                       "-CAkey", str(self.directory / "authority.key"), "-days", DAYS, "-sha256",
                       "-extfile", str(extensions), "-set_serial", str(secrets.randbits(120)))  # fmt: skip
        self.certificate = leaf + (self.directory / "authority.pem").read_bytes()
        self.order |= {"status": "valid", "certificate": f"{BASE}/certificate"}


class Handler(http.server.BaseHTTPRequestHandler):
    """The HTTP server of the authority."""

    authority: Authority

    def do_GET(self) -> None:
        if self.path == "/directory":
            self.reply(200, {f"new{one}": f"{BASE}/new-{one.lower()}" for one in ("Nonce", "Account", "Order")}, "")
        else:
            self.reply(204, b"", "")

    def do_POST(self) -> None:
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        try:
            payload, account = self.authority.verify(self.path, message)
            status, content, location = self.authority.answer(self.path, payload, account)
        except (Refused, KeyError, subprocess.CalledProcessError) as error:
            status, content, location = 403, {"type": "urn:ietf:params:acme:error:unauthorized", "detail": repr(error)}, ""
        self.reply(status, content, location)

    def reply(self, status: int, content: Any, location: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Replay-Nonce", self.authority.nonce())
        if location:
            self.send_header("Location", location)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main(directory: Path) -> None:
    Handler.authority = Authority(directory)
    server = http.server.HTTPServer(("127.0.0.1", PORT), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "server.pem", directory / "server.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
