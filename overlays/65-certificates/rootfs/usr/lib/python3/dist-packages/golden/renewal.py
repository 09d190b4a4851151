"""A certificate from an ACME authority, in three hands.

Root makes the key and the request, and puts the answer in its place after the checks that any pair has to pass. The
client that talks to the authority (golden-acme.service) has its own user, sees the request only, and never the key.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from golden.certificates import CERTIFICATE, KEY, WARN_DAYS, Certificate, judge, own_names, parse_chain, read_chain
from golden.core import Problem, pem_text, read_regular, run, write_whole
from golden.install import STATE, install

ORDER = Path("/run/golden-acme")
ANSWER = Path("/var/lib/golden-acme/certificate.pem")
ISSUED = STATE / "issued.json"
# Bytes. A chain of five RSA certificates has a fifth of it.
ANSWER_BYTES = 65536
# Longer than an authority takes to look at every name.
CLIENT_SECONDS = 600


def warn_days(leaf: Certificate) -> float:
    """Return how many days before its end a certificate is worth an alert.

    One that was renewed by itself may live shorter than the limit for those that people bring: a quarter of its life.
    """
    life = (leaf.ends - leaf.starts).total_seconds() / 86400
    return min(WARN_DAYS, life / 4) if leaf.serial == issued_serial() else WARN_DAYS


def issued_serial() -> str:
    """Return the serial number of the certificate that the authority gave last; empty when there is none."""
    try:
        return str(json.loads(ISSUED.read_text())["serial"])
    except FileNotFoundError:
        return ""


def reason_to_renew(leaf: Certificate, *, names: Sequence[str], directory: str, now: datetime) -> str:
    """Say why a new certificate is due; empty when none is. Two thirds of a life is when authorities suggest it."""
    if leaf.serial != issued_serial():
        return "the certificate in place is not one that this machine got by ACME"
    if json.loads(ISSUED.read_text())["directory"] != directory:
        return "the site names another authority"
    missing = [name for name in names if not leaf.covers(name)]
    if missing:
        return "not covered: " + " ".join(missing)
    if (leaf.ends - now) < (leaf.ends - leaf.starts) / 3:
        return f"{leaf.days_left(now):.1f} days are left"
    return ""


def public_names(settings: Mapping[str, Any]) -> list[str]:
    """Return the names to ask for: the site's, or else the first one of this machine. No authority signs short names."""
    names = [str(name) for name in settings["server_names"]] or list(own_names()[:1])
    wrong = [name for name in names if "." not in name]
    if wrong:
        raise Problem(f"no authority signs a name without a domain: {' '.join(wrong)}", hint="correct server_names")
    return names


def renew(settings: Mapping[str, Any], *, force: bool) -> dict[str, Any]:
    """Get and install a certificate when one is due; return what was done."""
    acme = settings["certificate"]["acme"]
    if acme is None:
        return {"ok": True, "renewed": False, "reason": "the site has no ACME authority"}
    names, leaf = public_names(settings), read_chain(CERTIFICATE)[0]
    reason = reason_to_renew(leaf, names=names, directory=acme["directory"], now=datetime.now(UTC))
    if not reason and not force:
        return {"ok": True, "renewed": False, "reason": f"{leaf.days_left(datetime.now(UTC)):.1f} days are left"}
    work = STATE / "renewal"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(mode=0o700)
    try:
        key = make_request(work, names)
        order(work / "request.csr", acme)
        seconds = take(key, names=names)
    finally:
        shutil.rmtree(work)
    serial = read_chain(CERTIFICATE)[0].serial
    write_whole(ISSUED, json.dumps({"serial": serial, "directory": acme["directory"]}).encode())
    return {"ok": True, "renewed": True, "reason": reason or "forced", "serial": serial, "served_after": round(seconds, 2)}


def make_request(work: Path, names: Sequence[str]) -> Path:
    """Make a key (ECDSA P-256) and a request for the names; return the key. A new key each time: an old one may be known."""
    key = work / KEY.name
    run(["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", key])
    key.chmod(0o600)
    alternatives = ",".join(f"DNS:{name}" for name in names)
    run(["openssl", "req", "-new", "-key", key, "-subj", "/", "-addext", f"subjectAltName={alternatives}",
         "-out", work / "request.csr"])  # fmt: skip
    return key


def order(request: Path, acme: Mapping[str, Any]) -> None:
    """Have the client ask for the certificate. The order's directory gives what is written there to the client's group."""
    contact = [f"mailto:{acme['email']}"] if acme["email"] else []
    write_whole(ORDER / "request.csr", request.read_bytes(), mode=0o640)
    if acme["ca"]:
        write_whole(ORDER / "authority.pem", pem_text(Path(acme["ca"]).read_bytes()).encode(), mode=0o640)
    else:
        (ORDER / "authority.pem").unlink(missing_ok=True)
    described = {"directory": acme["directory"], "contact": contact}
    write_whole(ORDER / "order.json", json.dumps(described).encode(), mode=0o640)
    try:
        run(["systemctl", "start", "golden-acme.service"], timeout=CLIENT_SECONDS)
    except Problem:
        raise Problem(
            f"the authority {acme['directory']} gave no certificate", hint="journalctl -u golden-acme.service"
        ) from None


def take(key: Path, *, names: Sequence[str]) -> float:
    """Check what the client brought, and install it; return the seconds until it was served."""
    # The directory is the client's: what is there may be a link to the key.
    chain = parse_chain(read_regular(ANSWER, limit=ANSWER_BYTES), ANSWER)
    failed = [f"{one.rule}: {one.found}" for one in judge(chain, key, names=names) if not one.ok]
    if failed:
        raise Problem("the authority's certificate is not taken: " + "; ".join(failed))
    return install(chain, key, name=names[0])
