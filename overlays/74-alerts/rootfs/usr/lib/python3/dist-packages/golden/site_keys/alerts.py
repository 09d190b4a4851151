"""alerts of site.yaml: where failures are reported, besides the journal and the console."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from golden.site_table import Key, Table, Wrong, kind
from golden.site_values import (
    host_or_address,
    https_url,
    mail_address,
    one_of,
    public_certificate_file,
    read_secret,
    secret_file,
    text_line,
)  # fmt: skip

SUBMISSION_PORT, SUBMISSIONS_PORT = 587, 465
MAIL_TLS = ("starttls", "implicit")
MAIL_PASSWORD = "mail-password"  # noqa: S105 (the file's name)


@kind("ASCII text.")
def login(value: object) -> str:
    """Return the name of an account of a mail server."""
    if not text_line(value).isascii():
        raise Wrong("a login to a mail server is ASCII text here")
    return str(value)


@kind("A mail address, or a list of them.", type=["string", "array"], items=mail_address.schema, minItems=1)
def mail_addresses(value: object) -> list[str]:
    """Return one or more mail addresses."""
    given = value if isinstance(value, list) else [value]
    if not given:
        raise Wrong("write a mail address, or a list of them")
    return list(dict.fromkeys(mail_address(address) for address in given))


@kind("HOST or HOST:PORT, an IPv6 address in brackets; port 587 if none is named.")
def mail_server(value: object) -> str:
    """Return HOST:PORT of a mail server, an IPv6 address in brackets."""
    text = text_line(value)
    if text.count(":") > 1 and not text.startswith("["):
        text = f"[{text}]"
    found = re.fullmatch(r"(?:\[(?P<address>[^][]+)\]|(?P<host>[^][:]+))(?::(?P<port>[0-9]{1,5}))?", text)
    try:
        host = host_or_address(found["address"] or found["host"]) if found else ""
    except Wrong:
        host = ""
    port = int(found["port"] or SUBMISSION_PORT) if found else 0
    if found is None or not host or not 1 <= port <= 65535 or bool(found["address"]) != (":" in host):
        raise Wrong("write HOST or HOST:PORT, such as mail.example.org:587, 192.0.2.25:465 or [2001:db8::25]:465")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def read(site: Table, key: str) -> dict[str, Any]:
    """Return the setting."""
    part = site.part(key, about="Where failures are reported, besides the journal and the console.")
    found = {
        "mail": part.whole("mail", _mail, about="A mail server, over verified TLS."),
        "webhook": part.value("webhook", https_url, secret=True, about="Where alerts are sent by POST, as JSON."),
        "ca": part.value("ca", public_certificate_file, about="Your own authority, if one of the two needs it."),
    }
    part.refuse_others()
    return found


def _mail(part: Table) -> dict[str, Any]:
    user = part.value("user", login, about="The account, for a server that wants a login.")
    if bool(user) != bool(part.content.get("password_file")):
        part.complain("password_file" if user else "user", None, "user and password_file go together")
    tls = "How TLS begins; implicit is from the first byte, and the default on port 465."
    return {
        "server": part.needed("server", mail_server, about="The server that takes mail."),
        "from": part.needed("from", mail_address, about="The sender."),
        "to": part.needed("to", mail_addresses, about="The recipients."),
        "tls": part.value("tls", one_of(*MAIL_TLS), default=_mail_tls(part.content.get("server")), about=tls),
        "user": user,
        "password_file": part.value("password_file", secret_file, about="The account's password."),
    }


def _mail_tls(server: object) -> str:
    """Return how TLS begins on a server's port: at once on that of RFC 8314, by STARTTLS on the others."""
    return MAIL_TLS[str(server).endswith(f":{SUBMISSIONS_PORT}")]


def files(alerts: Mapping[str, Any]) -> Mapping[str, bytes]:
    """Return the password for LoadCredential=, which takes a file that is not there for a failure: empty without one."""
    return {MAIL_PASSWORD: read_secret((alerts["mail"] or {}).get("password_file")).encode()}


def outgoing(alerts: Mapping[str, Any]) -> Iterable[tuple[str, str | None]]:
    """Return the servers that golden-alert-send.service calls."""
    mail = alerts["mail"]
    return [("golden-alert", mail and f"smtp://{mail['server']}"), ("golden-alert", alerts["webhook"])]


KEY = Key(read, files, outgoing=outgoing)
