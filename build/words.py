"""The words that verbs take, where they have no module of their own for them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from build import accel
from build.audit_field import AUDITORS


def default_cache() -> Path:
    """Return the cache directory of this user (XDG base directory specification)."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "goldsmith"


def build(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb ``build``."""
    parser.add_argument("--plan", action="store_true", help="print what would be made and why, and stop")
    parser.add_argument("--on", choices=["proxmox"], help="run the installer on a node of golden.yaml's cluster instead")
    parser.add_argument("--node", action="append", default=[], metavar="NAME", help="for --on: this node, not the first one")
    parser.add_argument("--secrets", type=Path, metavar="FILE", help="for --on: with the tokens, mode 0600")
    parser.add_argument(
        "--install-minutes", type=int, default=15, metavar="N", help="for --on: how long an installation takes at most"
    )


def publish(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb ``publish``."""
    parser.add_argument("--artifact", type=Path, metavar="DIR", help="this artifact instead of the newest")
    parser.add_argument("--node", action="append", default=[], metavar="NAME", help="only this node; may be repeated")
    parser.add_argument("--secrets", type=Path, metavar="FILE", help="with the tokens, mode 0600 (see golden.yaml)")
    parser.add_argument("--ssh", action="store_true", help="for Proxmox VE before 8.4: the image over SSH, qm disk import")


def drift(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb ``drift``."""
    parser.add_argument("--ssh", action="store_true", help="read the disks too, on their nodes over SSH; takes minutes")
    parser.add_argument("--secrets", type=Path, metavar="FILE", help="with the tokens, mode 0600 (see golden.yaml)")


def doctor(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb ``doctor``."""
    parser.add_argument("--proxmox", action="store_true", help="look at the cluster of golden.yaml instead")
    parser.add_argument("--roles", action="store_true", help="print the commands that grant our tokens what they need")
    parser.add_argument("--pve", type=int, choices=[8, 9], metavar="8|9", help="for --roles: the version (default: ask)")
    parser.add_argument("--secrets", type=Path, metavar="FILE", help="with the tokens, mode 0600")


def audit(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb ``audit``."""
    parser.add_argument("auditor", nargs="*", choices=[*AUDITORS, []], help="only these (default: all)")
    parser.add_argument("--artifact", type=Path, metavar="DIR", help="this artifact instead of the newest")
    parser.add_argument("--unverified", action="store_true", help="the newest disk of the cache, verified or not")
    parser.add_argument("--context", type=Path, metavar="FILE", help="a machine that runs already")
    parser.add_argument("--update", action="store_true", help="write what was measured into the ledger")
    parser.add_argument("--lock", action="store_true", help="lock the auditors' newest packages, and stop")


def common() -> argparse.ArgumentParser:
    """Return a parser of the options that every verb takes, to be its parent."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--project", type=Path, default=Path.cwd(), metavar="DIR", help="the checkout (default: here)")
    parser.add_argument("--cache", type=Path, default=default_cache(), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--locked", action="store_true", help="take the committed locks or fail; for releases")
    parser.add_argument("--no-install", dest="install", action="store_false", help="never install host tools, name them")
    parser.add_argument("--accel", type=accel.Kind, choices=list(accel.Kind), help="default: kvm if a guest runs on it")
    parser.add_argument("--mirror", help="Debian archive (default: the host's; also $GOLDSMITH_MIRROR)")
    parser.add_argument("--security-mirror", help="security archive (default: the host's; also $GOLDSMITH_SECURITY_MIRROR)")
    parser.add_argument("--snapshot", help="snapshot archive for files that left the mirror (also $GOLDSMITH_SNAPSHOT)")
    parser.add_argument("--packer", default="", metavar="PATH", help="default: $PACKER, else from PATH, else compiled")
    parser.add_argument("--json", action="store_true", help="log as one JSON object a line")
    parser.add_argument("--verbose", action="store_true", help="say more")
    return parser
