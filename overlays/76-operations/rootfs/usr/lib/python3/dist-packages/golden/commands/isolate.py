"""An incident: fence this machine off from the network, and keep evidence, in one step.

  golden-isolate --keep 192.0.2.7 --reason "what was seen"    SSH from there only; everything else ends, also after a restart
  golden-isolate --dry-run --keep 192.0.2.7                   what would be done
  golden-isolate --evidence-only --reason drill               the archive without the fence: for a drill, or a first look
  golden-isolate --release                                    the end of it

Without --keep, the console is the only way in. The application stays up behind the fence: its state can be looked at.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from golden import core
from golden import evidence as collector
from golden import fence as fences


def main() -> None:
    """Parse the command line and do what it asks for."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="golden-isolate", description=__doc__, formatter_class=form)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--status", action="store_true", help="show whether the fence is up (exit code 3: it is)")
    what.add_argument("--dry-run", action="store_true", help="show the fence, change nothing")
    what.add_argument("--evidence-only", action="store_true", help="collect evidence, put up no fence")
    what.add_argument("--release", action="store_true", help="take the fence away")
    what.add_argument("--resume", action="store_true", help="what the unit does at the start of the machine")
    parser.add_argument("--keep", action="append", default=[], metavar="ADDRESS", help="may still reach SSH (repeatable)")
    parser.add_argument("--reason", default="not given", help="goes into the evidence and the journal")
    parser.add_argument("--no-evidence", action="store_true", help="only the fence")
    place = collector.DIRECTORY
    parser.add_argument("--directory", type=Path, default=place, help="where the evidence goes (default: %(default)s)")
    core.run_command(parser, act, show)


def act(arguments: argparse.Namespace) -> Mapping[str, Any]:
    """Return what the command did."""
    core.need_root()
    keep = fences.networks(arguments.keep)
    if arguments.dry_run:
        return {"rules": fences.rules(keep), "lines": [_warning(keep)] if _warning(keep) else []}
    if arguments.resume:
        return {"lines": [f"fence: {fences.resume()['keep']}"]}
    if arguments.status:
        return {"ok": fences.standing() is None, "fence": fences.standing()}
    if arguments.release:
        with core.only_one("isolate"):
            return fences.down()
    return isolate(arguments, keep)


def isolate(arguments: argparse.Namespace, keep: list[str]) -> dict[str, Any]:
    """Look at the connections, put up the fence, collect the rest. The fence does not depend on the evidence."""
    result: dict[str, Any] = {"lines": [_warning(keep)] if _warning(keep) else []}
    before = collector.first_sight()
    if not arguments.evidence_only:
        # The fence does not wait for another run that collects evidence.
        with core.only_one("isolate"):
            result["fence"] = fences.up(keep, reason=arguments.reason)
        line = f"FENCED by {os.environ.get('SUDO_USER', 'root')}: {arguments.reason}"
        core.run(["logger", "-p", "auth.alert", "-t", "golden-isolate", line], check=False)
    if not arguments.no_evidence:
        result["evidence"] = collector.collect(reason=arguments.reason, before=before, directory=arguments.directory)
    return result


def _warning(keep: list[str]) -> str:
    """Return a word to an operator who is about to lock himself out."""
    here = _coming_from()
    if here is None or any(here in ipaddress.ip_network(one) for one in keep):
        return ""
    return f"warning: you come from {here}, and that address is not kept: this connection ends"


def _coming_from() -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return where the SSH session comes from that this command runs in; sudo keeps that from its environment."""
    process = os.getpid()
    while process > 1:
        environment = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
        for line in environment:
            if line.startswith(b"SSH_CONNECTION="):
                return ipaddress.ip_address(line.split(b"=", 1)[1].split()[0].decode())
        process = int(Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    return None


def show(result: Mapping[str, Any]) -> str:
    """Return a result as text."""
    lines = [*result.get("lines", [])]
    if "rules" in result:
        lines.append(result["rules"].rstrip())
    if "released" in result:
        lines.append("the fence is down" if result["released"] else "there was no fence")
    if fence := result.get("fence"):
        lines.append(f"fenced since {fence['since']} ({fence['reason']}); SSH from: {', '.join(fence['keep']) or 'nowhere'}")
        lines.append(f"packet filter: {fence.get('firewall', 'see golden-firewall status')}")
    elif "fence" in result:
        lines.append("no fence")
    if evidence := result.get("evidence"):
        lines.append(f"evidence: {evidence['archive']} ({evidence['bytes'] >> 10} KiB, {evidence['members']} members)")
        lines.append(f"SHA-256, to be written down elsewhere: {evidence['sha256']}")
    return "\n".join(lines)
