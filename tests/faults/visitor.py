"""A user with an account: logs in with name, password and one-time code, and uploads files, as a browser does."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import struct
from urllib.parse import parse_qs, urlencode, urlsplit

from testinfra.host import Host

from .traffic import Reply, Traffic

PASSWORD = "a-long-password-for-the-faults-4711"
BOUNDARY = "----faults"


class Visitor:
    """A browser with cookies, and an account made for it."""

    def __init__(self, host: Host, traffic: Traffic) -> None:
        self.host, self.traffic = host, traffic
        self.cookies: dict[str, str] = {}

    def log_in(self) -> None:
        """Make an account with golden-app, and log in to it."""
        made = json.loads(self.host.check_output(f"echo {PASSWORD} | golden-app --json account visitor"))
        secret = parse_qs(urlsplit(made["otpauth"]).query)["secret"][0]
        self.ask("GET", "/login")
        form = {
            "username": "visitor", "password": PASSWORD, "token": one_time_code(secret, self.now()),
            "csrfmiddlewaretoken": self.cookies[self.csrf], "next": "",
        }  # fmt: skip
        reply = self.ask("POST", "/login", urlencode(form).encode(), "application/x-www-form-urlencoded")
        assert reply.statuses == [302], reply.data[-2000:]

    def now(self) -> int:
        """Return the machine's time, which its codes are made from."""
        return int(self.host.check_output("date +%s"))

    @property
    def csrf(self) -> str:
        """The name of the cookie that proves where a form came from."""
        return next(name for name in self.cookies if "csrf" in name)

    def upload(self, size: int) -> int:
        """Upload a text file of so many bytes; return the status of the answer."""
        content = (b"a line of a text file, again and again\n" * (size // 39 + 1))[:size]
        parts = [
            ('name="csrfmiddlewaretoken"', "", self.cookies[self.csrf].encode()),
            ('name="file"; filename="faults.txt"', "Content-Type: text/plain\r\n", content),
        ]
        body = b"".join(
            f"--{BOUNDARY}\r\nContent-Disposition: form-data; {name}\r\n{kind}\r\n".encode() + data + b"\r\n"
            for name, kind, data in parts
        )
        kind = f"multipart/form-data; boundary={BOUNDARY}"
        reply = self.ask("POST", "/upload", body + f"--{BOUNDARY}--\r\n".encode(), kind)
        assert reply.statuses, reply
        return reply.statuses[0]

    def ask(self, method: str, path: str, body: bytes = b"", kind: str = "") -> Reply:
        """Send a request with the cookies, and keep those that come back."""
        cookies = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        lines = [
            f"{method} {path} HTTP/1.1", f"Host: {self.traffic.name}", "Connection: close",
            f"Content-Length: {len(body)}", f"Referer: https://{self.traffic.name}{path}",
            f"Origin: https://{self.traffic.name}",
            *([f"Content-Type: {kind}"] if kind else []), *([f"Cookie: {cookies}"] if cookies else []),
        ]  # fmt: skip
        payload = "\r\n".join([*lines, "", ""]).encode() + body
        reply = self.traffic.wire({"request": payload})["request"]
        head = reply.data.partition(b"\r\n\r\n")[0].decode("latin-1")
        for name, value in re.findall(r"(?im)^set-cookie: *([^=;\s]+)=([^;\r]*)", head):
            self.cookies[name] = value
        return reply


def one_time_code(secret: str, moment: int) -> str:
    """Return the code of RFC 6238 (SHA-1, 30 s, six digits) for a base32 secret."""
    key = base64.b32decode(secret + "=" * (-len(secret) % 8))
    digest = hmac.new(key, struct.pack(">Q", moment // 30), hashlib.sha1).digest()
    offset = digest[-1] & 15
    number: int = struct.unpack(">I", digest[offset : offset + 4])[0]
    return f"{(number & 0x7FFFFFFF) % 1_000_000:06}"
