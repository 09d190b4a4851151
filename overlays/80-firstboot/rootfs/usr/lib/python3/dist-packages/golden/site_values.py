"""Kinds of values that keys of site.yaml have: each returns the value in its usual form, or raises Wrong with a remedy."""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
import stat
from pathlib import Path
from urllib.parse import urlsplit

from golden import core
from golden.site_table import Kind, Wrong, kind

HOST = r"(?=.{1,253}$)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
MAIL_ADDRESS = r"[A-Za-z0-9._%+=-]{1,64}@[A-Za-z0-9.-]{1,253}"
PATH = r"(/[A-Za-z0-9._@+-]+)+"
# The sandbox of the golden-* units hides these: ProtectHome= and PrivateTmp= (10-sandbox.conf).
HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")
LONGEST_PASSWORD = 1024
LARGEST_CERTIFICATES = 1 << 20
LARGEST_KEY = 1 << 16


def text_line(value: object) -> str:
    """Return a text in one line."""
    if not isinstance(value, str) or not value.isprintable():
        raise Wrong("write a text in one line")
    return value


@kind("A network such as 192.0.2.0/24 or 2001:db8::/64.")
def network(value: object) -> str:
    """Return a network in its usual form; a plain address is a network of one."""
    try:
        found = ipaddress.ip_network(text_line(value), strict=False)
        exact = ipaddress.ip_interface(text_line(value)).ip == found.network_address
    except ValueError:
        raise Wrong("write a network such as 192.0.2.0/24 or 2001:db8::/64") from None
    if not exact:
        raise Wrong(f"an address within a network; write {found} if you mean all of it")
    return str(found)


@kind("A host name such as www.example.org.")
def host_name(value: object) -> str:
    """Return a host name in lower case."""
    name = text_line(value).lower()
    if not re.fullmatch(HOST, name) or name.rpartition(".")[2].isdigit():
        raise Wrong("write a host name such as www.example.org (international names as xn--...)")
    return name


@kind("A host name or an IP address.")
def host_or_address(value: object) -> str:
    """Return a host name or an address."""
    try:
        address = ipaddress.ip_address(text_line(value))
    except ValueError:
        return str(host_name(value))
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        raise Wrong("write the address without the % and what follows it")
    return str(address)


def number(low: int, high: int) -> Kind:
    """Return what reads a whole number in a range."""

    @kind("", type="integer", minimum=low, maximum=high)
    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise Wrong(f"write a whole number from {low} to {high}")
        return value

    return read


def one_of(*words: str) -> Kind:
    """Return what reads one of some words."""

    @kind("", enum=list(words))
    def read(value: object) -> str:
        if value not in words:
            raise Wrong(f"write {' or '.join(words)}")
        return str(value)

    return read


@kind("A mail address such as admin@example.org.", pattern=f"^(?:{MAIL_ADDRESS})$")
def mail_address(value: object) -> str:
    """Return a mail address."""
    if not re.fullmatch(MAIL_ADDRESS, text_line(value)):
        raise Wrong("write a mail address such as admin@example.org")
    return str(value)


@kind("A URL that starts with https:// and names a host.", pattern="^https://")
def https_url(value: object) -> str:
    """Return an https URL without a user or password in it."""
    try:
        parts = urlsplit(text_line(value))
        good = parts.scheme == "https" and bool(parts.hostname) and not parts.username and (parts.port or 443) > 0
    except ValueError:
        good = False
    if not good or re.search(r"\s", str(value)):
        raise Wrong("write a URL that starts with https:// and names a host")
    return str(value)


@kind("An absolute path.", pattern=f"^(?:{PATH})$")
def absolute_path(value: object) -> str:
    """Return an absolute path without ".."."""
    path = text_line(value)
    if not re.fullmatch(PATH, path) or ".." in path.split("/"):
        raise Wrong("write an absolute path of letters, digits and ._@+- such as /etc/golden/ca.pem")
    return path


@kind("An absolute path, not below /home, /root, /run/user, /tmp or /var/tmp.", pattern=f"^(?:{PATH})$")
def unit_path(value: object) -> str:
    """Return an absolute path that the units can see."""
    path = str(absolute_path(value))
    # The path itself, and where it leads through links.
    for place in (path, os.path.realpath(path)):
        hidden = next((top for top in HIDDEN if place == top or place.startswith(f"{top}/")), None)
        if hidden:
            raise Wrong(f"the services see nothing below {hidden}: put the file into /etc/golden, owned by root")
    return path


def readable(path: str, *, everyone: bool = False) -> str:
    """Return the path of a file that the units can read: root without the right to pass by modes, or every user."""
    try:
        real = Path(os.path.realpath(path))
        for place in dict.fromkeys([Path(path), *Path(path).parents, real, *real.parents]):
            status = place.stat()
            needed = 0o5 if place.is_dir() else 0o4
            root = status.st_uid == 0 and status.st_mode & needed << 6 == needed << 6
            if not (status.st_mode & needed == needed or (root and not everyone)):
                who = "not every user" if everyone else "root without capabilities does not"
                raise Wrong(f"{who} read {place}: chown root: {place}; chmod {'a+rX' if everyone else 'u+rX'} {place}")
    except OSError as error:
        raise Wrong(f"{error.strerror}; put the file there first") from None
    return path


@kind("The path of a PEM file with certificates.", pattern=f"^(?:{PATH})$")
def certificate_file(value: object) -> str:
    """Return the path of a file with certificates that the units of root can read, with the line ends of any system."""
    return pem_file(readable(unit_path(value)))


@kind("The path of a PEM file with certificates that every user can read.", pattern=f"^(?:{PATH})$")
def public_certificate_file(value: object) -> str:
    """Return the path of a file with certificates that a unit with its own user can read."""
    return pem_file(readable(unit_path(value), everyone=True))


def pem_file(path: str) -> str:
    """Return a path; raise Wrong unless the file is a regular one with certificates in PEM form."""
    try:
        # A device or a named pipe would be read without an end.
        _need_plain(path)
        text = core.pem_certificates(Path(path).read_bytes())
        if not text:
            raise Wrong("no certificate in PEM form is in it: openssl x509 -inform DER -in FILE -out NEW converts one")
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except OSError as error:  # SSLError is one
        reason = error.strerror or error
        raise Wrong(f"no certificate in PEM form can be read there ({reason}); put it there first") from None
    return path


@kind("The path of a PEM file with a private key without a password, which root alone can read.", pattern=f"^(?:{PATH})$")
def key_file(value: object) -> str:
    """Return the path of a private key that root alone can read."""
    path = readable(unit_path(value))
    try:
        status = os.stat(path)  # noqa: PTH116 (as secret_file)
        if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST_KEY:
            raise Wrong(f"write the path of a regular file of at most {LARGEST_KEY} bytes")
        if status.st_mode & 0o077 or status.st_uid:
            raise Wrong(f"others than root can read it: chown root: {path}; chmod 0600 {path}")
        if b"PRIVATE KEY-----" not in Path(path).read_bytes():
            raise Wrong("no private key in PEM form is in it")
    except OSError as error:
        raise Wrong(f"{error.strerror}; put the file there first") from None
    return path


def pair_problem(certificate: str | None, key: str | None) -> str:
    """Return why a private key cannot be used with a certificate; nothing when it can, or one of them is missing."""

    def refuse() -> str:
        raise Wrong(f"it has a password: openssl pkey -in {key} -out NEW writes it without one")

    if not certificate or not key:
        return ""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, refuse)
    except Wrong as wrong:
        return str(wrong)
    except OSError as error:  # SSLError is one
        reason = getattr(error, "reason", None) or error.strerror or error
        return f"it does not belong to the certificate {certificate} ({reason})"
    return ""


@kind("The IP address of another machine, such as 192.0.2.10 or 2001:db8::10.")
def other_machine(value: object) -> str:
    """Return the address of another machine, in its usual form."""
    try:
        found = ipaddress.ip_address(text_line(value))
    except ValueError:
        raise Wrong("write an IP address, such as 192.0.2.10 or 2001:db8::10; no name and no network") from None
    if found.is_loopback or found.is_unspecified or found.is_multicast or found.is_link_local:
        raise Wrong("write the address of another machine")
    return str(found)


@kind("The path of a file with one line, which root alone can read.", pattern=f"^(?:{PATH})$")
def secret_file(value: object) -> str:
    """Return the path of a file with a secret in one line, which root alone can read."""
    path = readable(unit_path(value))
    if os.stat(path).st_mode & 0o077 or os.stat(path).st_uid:  # noqa: PTH116
        raise Wrong(f"others than root can read it: chown root: {path}; chmod 0600 {path}")
    if not read_secret(path):
        raise Wrong(f"it has to hold one line of ASCII text, of at most {LONGEST_PASSWORD} characters")
    return path


def read_secret(path: str | None) -> str:
    """Return the secret of a file, without its line end; empty when there is none, or not just one line."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig").rstrip("\r\n") if path else ""
    except (OSError, UnicodeDecodeError):
        return ""
    return text if text.isprintable() and text.isascii() and len(text) <= LONGEST_PASSWORD else ""


def _need_plain(path: str) -> None:
    """Raise Wrong unless a path names a regular file of bounded size."""
    status = Path(path).stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST_CERTIFICATES:
        raise Wrong(f"write the path of a regular file of at most {LARGEST_CERTIFICATES} bytes")
