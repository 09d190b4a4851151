"""Certificates and keys as openssl reads them, and what must hold before the web server gets a pair.

``judge`` returns the result of each rule (a ``Verdict``), so that a refusal lists all problems at once. Nothing here writes.
"""

from __future__ import annotations

import re
import ssl
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

from golden.core import Problem, pem_text, run

KEY = Path("/etc/ssl/private/app.key")
CERTIFICATE = Path("/etc/ssl/certs/app.pem")
NAMES = Path("/run/golden/names")
TRUST = Path("/etc/ssl/certs/ca-certificates.crt")
# The monitor's limit (requirement R63).
WARN_DAYS = 21

CURVES = {"prime256v1", "secp384r1"}
RSA_BITS = 2048
WEAK_DIGESTS = ("md5", "sha1")
# A chain with every certificate that an authority has ever had is smaller.
LARGEST_FILE = 1 << 20
SHOWN = ("-subject", "-issuer", "-serial", "-startdate", "-enddate")
PEM = re.compile(r"-----BEGIN (?:X509 )?CERTIFICATE-----\n(?P<base64>.+?)-----END (?:X509 )?CERTIFICATE-----\n", re.DOTALL)
# Files that hold no certificate in PEM form: how they are recognised, what they are, what to do.
OTHER_FILES = (
    (rb"-----BEGIN PKCS7", "it is a PKCS #7 file", "openssl pkcs7 -print_certs -in FILE -out NEW"),
    (rb"-----BEGIN (NEW )?CERTIFICATE REQUEST", "it is a request that has not been signed", "ask your authority to sign it"),
    (rb"-----BEGIN TRUSTED", "it is a certificate with OpenSSL's trust settings", "openssl x509 -in FILE -out NEW"),
    (rb"-----BEGIN CERT", "the certificate is cut off", "copy the whole file, up to the last -----END CERTIFICATE-----"),
    (rb"-----BEGIN [A-Z0-9 ]*PRIVATE KEY", "it is a private key", "name the certificate here, and the key with --key"),
    (rb"\x30[\x80-\x84]", "it is in DER form", "openssl x509 -inform DER -in FILE -out NEW; .pfx: openssl pkcs12 -in FILE"),
    (rb"\s*\Z", "it is empty", "copy it again"),
)


@dataclass(frozen=True)
class Certificate:
    """The fields of a certificate."""

    pem: bytes
    subject: str
    issuer: str
    serial: str
    starts: datetime
    ends: datetime
    names: tuple[str, ...]
    algorithm: str
    strength: str
    digest: str
    authority: bool
    usages: tuple[str, ...]
    ocsp: str
    must_staple: bool

    @property
    def self_signed(self) -> bool:
        return self.subject == self.issuer

    @property
    def digest_is_weak(self) -> bool:
        return any(name in self.digest.lower().replace("-", "") for name in WEAK_DIGESTS)

    def days_left(self, now: datetime) -> float:
        return (self.ends - now) / timedelta(days=1)

    def covers(self, name: str) -> bool:
        """Return True if a host name is one of the certificate's, or matches its wildcard for one label."""
        return name in self.names or ("." in name and f"*.{name.split('.', 1)[1]}" in self.names)

    def summary(self, now: datetime) -> dict[str, object]:
        """Return what people want to know of it."""
        return {
            "subject": self.subject, "issuer": self.issuer, "serial": self.serial, "names": list(self.names),
            "starts": self.starts.isoformat(), "ends": self.ends.isoformat(), "days_left": round(self.days_left(now), 1),
            "key": f"{self.algorithm} {self.strength}", "signature": self.digest, "self_signed": self.self_signed,
            "ocsp": self.ocsp or None,
        }  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """Whether a rule holds, and what was found."""

    rule: str
    ok: bool
    found: str


def read_chain(path: Path) -> tuple[Certificate, ...]:
    """Return the certificates of a PEM file in its order, the server's first. Raises Problem when there is none."""
    try:
        with path.open("rb") as stream:
            content = stream.read(LARGEST_FILE + 1)
    except OSError as error:
        raise Problem(f"{path}: {error.strerror}") from None
    if len(content) > LARGEST_FILE:
        raise Problem(f"{path} is larger than {LARGEST_FILE} bytes", hint="one chain of certificates in PEM form")
    return parse_chain(content, path)


def parse_chain(content: bytes, path: Path) -> tuple[Certificate, ...]:
    """Return the certificates in the content of a PEM file; ``path`` is its name in errors. Raises Problem as read_chain."""
    text = pem_text(content)
    blocks = [found["base64"] for found in PEM.finditer(text)]
    if not blocks or len(blocks) < text.count("-----BEGIN CERTIFICATE-----"):
        raise _no_certificate(path, content, text)
    return tuple(parse(_whole(path, number, block)) for number, block in enumerate(blocks, 1))


def _whole(path: Path, number: int, base64: str) -> bytes:
    """Return a certificate as PEM in its usual form. Raises Problem when its text is damaged."""
    try:
        return ssl.DER_cert_to_PEM_cert(b64decode("".join(base64.split()), validate=True)).encode()
    except ValueError as error:
        raise Problem(f"{path}: certificate {number} is damaged ({error})", hint="copy the file again, unchanged") from None


def _no_certificate(path: Path, content: bytes, text: str) -> Problem:
    """Return what is wrong with a file in which no certificate can be read."""
    for start, reason, hint in OTHER_FILES:
        if re.match(start, content) or (start.startswith(b"-") and re.search(start.decode(), text)):
            return Problem(f"{path} holds no certificate that can be read: {reason}", hint=hint.replace("FILE", str(path)))
    return Problem(f"{path} holds no certificate", hint="it has to be PEM: the server's, then those that signed it")


def parse(pem: bytes) -> Certificate:
    """Read one certificate. Raises Problem for one that openssl cannot read, or that lacks a name, a number or a time."""
    shown = run(["openssl", "x509", "-noout", "-text", "-nameopt", "RFC2253", *SHOWN], stdin=pem).stdout
    try:
        # Names in a certificate are bytes of any kind.
        return _certificate(pem, shown.decode(errors="replace"))
    except (KeyError, ValueError) as error:
        raise Problem(f"the certificate has no usable subject, issuer, serial number or time: {error}",
                      hint="ask the authority for another one") from None  # fmt: skip


def _certificate(pem: bytes, text: str) -> Certificate:
    """Return a certificate from what openssl prints about it."""
    values = dict(re.findall(r"^(subject|issuer|serial|notBefore|notAfter)=(.*)$", text, re.MULTILINE))
    algorithm = _first(r"Public Key Algorithm: (\S+)", text)
    curve, bits = _first(r"ASN1 OID: (\S+)", text), _first(r"Public-Key: \((\d+) bit", text)
    usage = _first(r"X509v3 Extended Key Usage:[^\n]*\n\s+([^\n]+)", text)
    return Certificate(
        pem=pem, subject=values["subject"], issuer=values["issuer"], serial=values["serial"],
        starts=_moment(values["notBefore"]), ends=_moment(values["notAfter"]),
        names=tuple(name.lower() for name in re.findall(r"DNS:([^\s,]+)", text)),
        algorithm={"id-ecPublicKey": "EC", "rsaEncryption": "RSA"}.get(algorithm, algorithm), strength=curve or bits,
        digest=_first(r"Signature Algorithm: (\S+)", text), authority="CA:TRUE" in text,
        usages=tuple(part.strip() for part in usage.split(",") if part.strip()),
        ocsp=_first(r"OCSP - URI:(\S+)", text), must_staple="status_request" in text,
    )  # fmt: skip


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found.group(1) if found else ""


def _moment(text: str) -> datetime:
    return datetime.strptime(text, "%b %d %H:%M:%S %Y GMT").replace(tzinfo=UTC)


def public_half(key: Path) -> bytes:
    """Return the public half of a private key. Raises Problem for a file that is none, or that needs a passphrase."""
    if not key.is_file():
        raise Problem(f"{key} is not there")
    done = run(["openssl", "pkey", "-passin", "pass:", "-pubout"], stdin=read_key(key), check=False)
    if done.returncode != 0:
        text = pem_text(key.read_bytes())
        why = "it has a passphrase" if "ENCRYPTED" in text else "" if "PRIVATE KEY" in text else "not a key in PEM form"
        raise Problem(f"{key} is no private key that can be used" + (f": {why}" if why else ""),
                      hint=f"PEM, without a passphrase: openssl pkey -in {key} -out NEW")  # fmt: skip
    return done.stdout


def read_key(key: Path) -> bytes:
    """Return a private key's PEM with plain line ends, as OpenSSL and the web server read it."""
    return pem_text(key.read_bytes()).encode()


def own_names() -> tuple[str, ...]:
    """Return the names that this machine answers to, the site's first."""
    try:
        return tuple(NAMES.read_text().split())
    except FileNotFoundError:
        raise Problem(f"{NAMES} is not there", hint="systemctl status golden-names.service") from None


def judge(
    chain: Sequence[Certificate], key: Path, *, names: Sequence[str], days: float = 0, now: datetime | None = None
) -> list[Verdict]:
    """Return the result of each rule for the pair; it has to cover ``names``, and to be valid for ``days`` more days."""
    leaf, moment = chain[0], now or datetime.now(UTC)
    missing = " ".join(name for name in names if not leaf.covers(name))
    left, kind = leaf.days_left(moment), f"{leaf.algorithm} {leaf.strength}"
    outside = ", ".join(one.subject for one in chain if not one.starts <= moment < one.ends)
    weak = ", ".join(one.subject for one in chain if one.digest_is_weak)
    usages = "an authority's" if leaf.authority else ", ".join(leaf.usages) or "any use"
    return [
        Verdict("the key belongs to the certificate", public_half(key) == _public_of(leaf), kind),
        Verdict("the key is ECDSA P-256 or P-384, or RSA of 2048 bits or more", _strong(leaf), kind),
        Verdict("no signature uses SHA-1 or MD5", not weak, weak or leaf.digest),
        Verdict("every certificate is valid now", not outside, outside or leaf.ends.isoformat()),
        Verdict(f"at least {days:g} days are left", left >= days, f"{left:.1f} days"),
        Verdict("the names of this machine are covered", not missing, f"missing: {missing}" if missing else " ".join(names)),
        Verdict("it is a server's certificate", _serves(leaf), usages),
        Verdict("each certificate is signed by the next", chained(chain), f"{len(chain)} in the file"),
        # A browser would refuse the certificate without a stapled answer, and this web server has no network to get one.
        Verdict("it does not demand OCSP stapling", not leaf.must_staple, "it does" if leaf.must_staple else "no"),
    ]


def _public_of(leaf: Certificate) -> bytes:
    return run(["openssl", "x509", "-noout", "-pubkey"], stdin=leaf.pem).stdout


def _strong(leaf: Certificate) -> bool:
    if leaf.algorithm == "EC":
        return leaf.strength in CURVES
    return leaf.algorithm == "RSA" and leaf.strength.isdecimal() and int(leaf.strength) >= RSA_BITS


def _serves(leaf: Certificate) -> bool:
    return not leaf.authority and (not leaf.usages or "TLS Web Server Authentication" in leaf.usages)


def chained(chain: Sequence[Certificate]) -> bool:
    """Return True if each certificate of the file was signed by the next one."""
    return all(_signed_by(one, above) for one, above in pairwise(chain))


def _signed_by(one: Certificate, above: Certificate) -> bool:
    # Dates are another rule's business.
    options = ("-no_check_time", "-partial_chain", "-no-CAfile", "-no-CApath")
    return one.issuer == above.subject and above.authority and _verify(one, above.pem, options=options)


def trusted(chain: Sequence[Certificate], *, authority: Path | None = None) -> bool:
    """Return True if the chain leads to an authority that this system trusts, or to the site's own."""
    stores = [store for store in (TRUST, authority) if store is not None and store.is_file()]
    between = b"".join(one.pem for one in chain[1:])
    return any(_verify(chain[0], store.read_bytes(), between=between) for store in stores)


def _verify(leaf: Certificate, anchors: bytes, *, between: bytes = b"", options: Sequence[str] = ()) -> bool:
    with TemporaryDirectory(prefix="golden-certificates-") as name:
        files = {"leaf": leaf.pem, "trusted": anchors, "untrusted": between}
        for file, content in files.items():
            (Path(name) / file).write_bytes(content)
        argv = ["openssl", "verify", *options, "-trusted", f"{name}/trusted"]
        argv += ["-untrusted", f"{name}/untrusted"] if between else []
        return run([*argv, f"{name}/leaf"], check=False).returncode == 0
