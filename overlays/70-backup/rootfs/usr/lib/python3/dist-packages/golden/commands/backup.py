"""Back up the database and the media: encrypted for the site's public key, kept here, and sent off this machine."""

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from golden import backup, signature, targets
from golden.core import need_root, only_one, run_command


def back_up(arguments: argparse.Namespace) -> dict[str, Any]:
    """Do what the options ask for."""
    need_root()
    if arguments.signer:
        return {"signer": signature.signer()}
    if arguments.list:
        return {"archives": [_describe(path) for path in backup.archives()]}
    settings = backup.settings()
    target = settings["target"]
    if arguments.configured:
        return {"recipient": settings["recipient"]}
    result: dict[str, Any] = {"target": target, "sent": []}
    directory = backup.DIRECTORY
    with only_one("backup"):
        if not arguments.send:
            result |= _make(directory, settings["recipient"])
        if target and not arguments.no_send:
            result["sent"] = targets.send_pending(directory, target)
        result["removed"] = backup.prune(directory, keep_days=settings["keep_days"], target=target)
    return result


def _make(directory: Path, recipient: str) -> dict[str, Any]:
    started = time.monotonic()
    path, manifest = backup.make(recipient, directory)
    seconds = round(time.monotonic() - started, 1)
    result = {"archive": str(path), "bytes": path.stat().st_size, "seconds": seconds, "manifest": manifest}
    backup.note(directory, result)
    return result


def _describe(path: Path) -> dict[str, Any]:
    made = backup.made_at(path).isoformat()
    return {"archive": str(path), "made": made, "bytes": path.stat().st_size, "sent": backup.sent(path)}


def show(result: Mapping[str, Any]) -> str:
    """Return the result for people."""
    if "signer" in result:
        return str(result["signer"])
    if "archives" in result:
        lines = [f"{one['made']}  {one['bytes']:>12}  {one['archive']}  {one['sent'] or '-'}" for one in result["archives"]]
        return "\n".join(lines or ["no backup yet"])
    if "recipient" in result:
        return f"backups are encrypted for {result['recipient']}"
    sent = f"sent {len(result['sent'])} to {result['target'] or 'nowhere'}, removed {len(result['removed'])} old"
    if "manifest" not in result:
        return sent
    tables = result["manifest"]["database"]["tables"]
    rows = sum(table["rows"] for table in tables.values())
    media = result["manifest"]["media"]
    return (
        f"{result['archive']}: {result['bytes']} bytes in {result['seconds']} s; {len(tables)} tables with {rows} rows, "
        f"{media['files']} media files; {sent}"
    )


def main() -> None:
    """Read the command line and do what it asks."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="Exit codes: 0 done, 1 failed, 2 usage. Settings: `backup` in /etc/golden/site.yaml."
    )
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--list", action="store_true", help="list the backups that are here")
    choice.add_argument("--signer", action="store_true", help="print the public key of this machine's signatures")
    choice.add_argument("--configured", action="store_true", help="only say whether a recipient is set (exit code 0 or 1)")
    choice.add_argument("--no-send", action="store_true", help="make a backup and leave it here; the next run sends it")
    choice.add_argument("--send", action="store_true", help="only send what the target does not have yet")
    run_command(parser, back_up, show)
