"""The data disk of this machine: what outlives its operating system.

  golden-data status    what is on the disk, and since when this system uses it
  golden-data grow      after the disk was enlarged: makes its file system as large, while everything runs

A second disk with the serial number golden-data is used from the next start of the machine. The units call attach and save.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from golden import core
from golden import data as disks
from golden import kept as kept_module

RUN = Path("/run/golden-data")
# Written at each start of the machine when its file systems are mounted (tmpfiles.d).
STARTED, REFUSED = RUN / "started", RUN / "refused"


def main() -> None:
    """Parse the command line and do what it asks for."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="golden-data", description=__doc__, formatter_class=form)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("status", help="show the data disk; exit status 3 if one is missing or refused")
    commands.add_parser("grow", help="make the file system as large as the disk")
    commands.add_parser("attach", help="the unit at the start of the machine: make, check and mount")
    commands.add_parser("save", help="the unit: copy changed single files to the disk")
    core.run_command(parser, act, show)


def act(arguments: argparse.Namespace) -> Mapping[str, Any]:
    """Return what the command did."""
    core.need_root()
    if arguments.command == "status":
        return status()
    with core.only_one("data"):
        return {"attach": attach, "save": save, "grow": grow}[arguments.command]()


def attach() -> dict[str, Any]:
    """Attach the data disk, if this machine has one; a refusal is kept for status."""
    if STARTED.exists() and not REFUSED.exists() and not os.path.ismount(disks.MOUNTED):
        return {"attached": False, "reason": "the machine runs already: a data disk is used from its next start"}
    RUN.mkdir(mode=0o755, exist_ok=True)
    try:
        result = _attach()
    except core.Problem as problem:
        REFUSED.write_text(f"{problem.brief}\n")
        raise
    REFUSED.unlink(missing_ok=True)
    return result


def _attach() -> dict[str, Any]:
    expected, own = disks.expected_site(), disks.own_site()
    device = disks.find(wait=disks.DEVICE_SECONDS if expected or own else 0)
    if device is None:
        if not (expected or own):
            return {"attached": False, "reason": "this machine has no data disk"}
        raise core.Problem(
            f"the data disk of the site {expected or own} is missing",
            hint=f"attach a disk with the serial number {disks.SERIAL}, then start the machine again; "
            f"to begin without it, remove {disks.OWN}",
        )
    kept = kept_module.read()
    store = kept_module.Store(disks.MOUNTED)
    if os.path.ismount(disks.MOUNTED):
        disks.bind(kept, store)
        return {"attached": True, "site": own, "device": device}
    marker = disks.attach(kept, store, disks.probe(device), expected=expected)
    return {"attached": True, "site": marker["site"], "device": device}


def save() -> dict[str, Any]:
    """Copy the single files to the disk, if one is attached."""
    if not os.path.ismount(disks.MOUNTED):
        return {"saved": False}
    return {"saved": kept_module.Store(disks.MOUNTED).save(kept_module.read())}


def grow() -> dict[str, Any]:
    """Make the file system as large as the disk."""
    device = disks.find(wait=0)
    if device is None or not os.path.ismount(disks.MOUNTED):
        raise core.Problem("no data disk is in use", hint="golden-data status")
    before = _bytes()
    disks.grow(device)
    return {"device": device, "bytes_before": before, "bytes": _bytes()}


def _bytes() -> int:
    facts = os.statvfs(disks.MOUNTED)
    return facts.f_blocks * facts.f_frsize


def status() -> dict[str, Any]:
    """Return the state of the data disk; not ok if this machine should have one and does not use it."""
    if not os.path.ismount(disks.MOUNTED):
        reason = REFUSED.read_text().strip() if REFUSED.exists() else "this machine has no data disk"
        return {"ok": not (REFUSED.exists() or disks.own_site()), "attached": False, "reason": reason}
    facts = os.statvfs(disks.MOUNTED)
    kept, marker = kept_module.read(), disks.read_marker(disks.MOUNTED) or {}
    store = kept_module.Store(disks.MOUNTED)
    lost = [entry.path for entry in kept.directories if not Path(entry.path).samefile(store.place(entry.path))]
    return {
        "ok": not lost, "attached": True, "device": disks.find(wait=0), "site": marker.get("site"),
        "layout": marker.get("layout"), "versions": marker.get("versions"), "bytes": facts.f_blocks * facts.f_frsize,
        "bytes_free": facts.f_bavail * facts.f_frsize, "not_mounted": lost,
        "directories": [entry.path for entry in kept.directories], "files": list(kept.files),
    }  # fmt: skip


def show(result: Mapping[str, Any]) -> str:
    """Return the result for people."""
    if "bytes_before" in result:
        return f"{result['device']}: {result['bytes_before'] >> 20} MiB before, {result['bytes'] >> 20} MiB now"
    if "saved" in result:
        return "changed files are on the data disk now" if result["saved"] else "nothing to copy"
    if not result["attached"]:
        return str(result["reason"])
    lines = [f"data disk {result['device']} of the site {result['site']}"]
    if "bytes" in result:
        lines += [f"layout {result['layout']}, {result['bytes'] >> 20} MiB, {result['bytes_free'] >> 20} MiB free"]
        lines += [f"not mounted: {path}" for path in result["not_mounted"]]
        lines += [f"kept: {path}" for path in (*result["directories"], *result["files"])]
    return "\n".join(lines)
