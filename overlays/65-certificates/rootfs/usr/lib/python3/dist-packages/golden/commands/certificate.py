"""The web server's certificate: shown, checked, requested, installed, renewed, scanned.

A pair is checked before anything is touched, takes its place whole, and is served before the command ends; when the web
server does not take it, the former pair is back. The private key stays in /etc/ssl/private, root's.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from golden import certificates, core, renewal
from golden import install as installer
from golden import scan as scanner
from golden.core import Problem

STATE = installer.STATE
SCAN = STATE / "scan.json"
HSTS = STATE / "hsts"
HSTS_LINE = Path("/run/golden/hsts.conf")
HSTS_SECONDS = 63072000
REQUESTED = STATE / "requested"


def site() -> dict[str, Any]:
    """Return the site's settings; those of a site that set nothing when there are none."""
    try:
        return core.site()
    except Problem:
        return {"server_names": [], "certificate": {"acme": None}}


def required_names() -> list[str]:
    """Return the names that a certificate must cover: the site's, or else the first one of this machine."""
    return [str(name) for name in site()["server_names"]] or list(certificates.own_names()[:1])


def authority() -> Path | None:
    """Return the site's own certificate authority, if it has one."""
    acme = site()["certificate"]["acme"]
    return Path(acme["ca"]) if acme and acme["ca"] else None


def show(_arguments: argparse.Namespace) -> dict[str, Any]:
    """Say what is in place."""
    chain = certificates.read_chain(certificates.CERTIFICATE)
    return {
        "certificate": chain[0].summary(datetime.now(UTC)), "chain": [one.subject for one in chain[1:]],
        "trusted": certificates.trusted(chain, authority=authority()), "hsts": HSTS.is_file(),
        "acme": site()["certificate"]["acme"], "issued_by_acme": chain[0].serial == renewal.issued_serial(),
    }  # fmt: skip


def check(arguments: argparse.Namespace) -> dict[str, Any]:
    """Judge a pair: the one in place, or one that is given."""
    chain = certificates.read_chain(arguments.certificate)
    days = renewal.warn_days(chain[0]) if arguments.days is None else arguments.days
    return _verdicts(certificates.judge(chain, arguments.key, names=required_names(), days=days))


def _verdicts(verdicts: list[certificates.Verdict]) -> dict[str, Any]:
    return {"ok": all(one.ok for one in verdicts), "verdicts": [vars(one) for one in verdicts]}


def request(arguments: argparse.Namespace) -> dict[str, Any]:
    """Make a new key, which stays here, and a request for an authority to sign."""
    core.need_root()
    REQUESTED.mkdir(mode=0o700, exist_ok=True)
    key = renewal.make_request(REQUESTED, arguments.name or required_names())
    text = (REQUESTED / "request.csr").read_text()
    return {"request": text, "key": str(key)}


def install(arguments: argparse.Namespace) -> dict[str, Any]:
    """Check a pair, and put it in its place."""
    core.need_root()
    with core.only_one("certificate"):
        chain = certificates.read_chain(arguments.certificate)
        key = arguments.key or _key_of(chain[0])
        failed = [one for one in certificates.judge(chain, key, names=required_names()) if not one.ok]
        if failed:
            told = "; ".join(f"not so: {one.rule} ({one.found})" for one in failed)
            raise Problem(f"the pair is not taken: {told}", hint="nothing was changed", code=core.CHECK_FAILED)
        seconds = installer.install(chain, key, name=required_names()[0])
        return {"serial": chain[0].serial, "served_after": round(seconds, 2)}


def _key_of(leaf: certificates.Certificate) -> Path:
    """Return the key that belongs to a certificate: of the last request, or the one in place."""
    wanted = core.run(["openssl", "x509", "-noout", "-pubkey"], stdin=leaf.pem).stdout
    for key in (REQUESTED / certificates.KEY.name, certificates.KEY):
        if key.is_file() and certificates.public_half(key) == wanted:
            return key
    raise Problem("no key of this machine belongs to the certificate", hint="give it: --key FILE")


def renew(arguments: argparse.Namespace) -> dict[str, Any]:
    """Get a certificate from the site's ACME authority when one is due."""
    core.need_root()
    with core.only_one("certificate"):
        return renewal.renew(site(), force=arguments.force)


def scan(_arguments: argparse.Namespace) -> dict[str, Any]:
    """Look at the web server's TLS as a client does, and keep the result."""
    core.need_root()
    result = scanner.scan(required_names()[0], authority=authority())
    result["time"] = datetime.now(UTC).isoformat(timespec="seconds")
    core.write_whole(SCAN, json.dumps(result, indent=1).encode(), mode=0o644)
    return result


def hsts(arguments: argparse.Namespace) -> dict[str, Any]:
    """Say, or change, for how long browsers may insist on HTTPS. Two years are asked for after a good scan only."""
    if arguments.on:
        core.need_root()
        result = scan(arguments)
        if not result["ok"] or not result["trusted"]:
            why = "the scan found something" if not result["ok"] else "no browser trusts the certificate"
            raise Problem(f"HSTS stays short: {why}", hint="golden-certificate scan", code=core.CHECK_FAILED)
        line = f"max-age={HSTS_SECONDS}" + ("; includeSubDomains" if arguments.subdomains else "")
        core.write_whole(HSTS, line.encode(), mode=0o644)
    elif arguments.off:
        core.need_root()
        HSTS.unlink(missing_ok=True)
    if arguments.on or arguments.off:
        boot(arguments)
        core.run(["systemctl", "reload", "nginx.service"])
    return {"hsts": HSTS.read_text() if HSTS.is_file() else "max-age=300"}


def boot(_arguments: argparse.Namespace) -> dict[str, Any]:
    """Before the web server starts: end an installation that a power cut broke off, and write the line for HSTS."""
    core.need_root()
    if HSTS.is_file():
        core.write_whole(HSTS_LINE, f'on "{HSTS.read_text()}";\n'.encode(), mode=0o644)
    else:
        HSTS_LINE.unlink(missing_ok=True)
    return {"finished": installer.finish()}


def tell(result: Mapping[str, Any]) -> str:
    """Return a result as text."""
    if "request" in result:
        return str(result["request"]).strip()
    lines = [f"{'ok    ' if one['ok'] else 'FAILED'} {one['rule']}: {one['found']}" for one in result.get("verdicts", ())]
    rest = {key: value for key, value in result.items() if key not in ("certificate", "verdicts")}
    flat = {**result.get("certificate", {}), **rest}
    return "\n".join([*lines, *(f"{key}: {value}" for key, value in flat.items())])


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = top.add_subparsers(required=True, metavar="VERB")

    def verb(function: Any, text: str = "") -> argparse.ArgumentParser:
        help_text = text or str(function.__doc__)
        made = verbs.add_parser(function.__name__, help=help_text, description=help_text)
        made.set_defaults(function=function)
        # The option of every command, also behind the verb.
        made.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        return made

    verb(show)
    checked = verb(check)
    checked.add_argument("--certificate", type=Path, default=certificates.CERTIFICATE, help="default: %(default)s")
    checked.add_argument("--key", type=Path, default=certificates.KEY, help="default: %(default)s")
    checked.add_argument("--days", type=float, help=f"how many have to be left (default: {certificates.WARN_DAYS})")
    verb(request).add_argument("--name", action="append", help="a name to ask for (default: the site's)")
    installed = verb(install)
    installed.add_argument("--certificate", type=Path, required=True, help="PEM: the server's, then those that signed it")
    installed.add_argument("--key", type=Path, help="PEM (default: that of the last request, or the one in place)")
    verb(renew).add_argument("--force", action="store_true", help="also when none is due")
    verb(scan)
    insisted = verb(hsts)
    choice = insisted.add_mutually_exclusive_group()
    choice.add_argument("--on", action="store_true", help="two years, if a scan is good and browsers trust it")
    choice.add_argument("--off", action="store_true", help="five minutes")
    insisted.add_argument("--subdomains", action="store_true", help="for all names below as well")
    verb(boot)
    return top


def main() -> None:
    """Read the command line and do what it asks."""
    core.run_command(parser(), lambda arguments: arguments.function(arguments), tell)
