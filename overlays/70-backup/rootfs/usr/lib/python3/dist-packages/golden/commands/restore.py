"""Restore a backup of database and media, or prove that one can be restored.

The backup is decrypted, read to its end and restored beside what is there before anything is touched. What was there
before is gone when the application is healthy with what was restored: take a backup of it first (golden-backup).
"""

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from golden import drill, restore, signature
from golden.core import USAGE, Problem, need_root, only_one, run, run_command, site


def act(arguments: argparse.Namespace) -> dict[str, Any]:
    """Check, drill or restore, as the options say."""
    need_root()
    archive: Path | None = arguments.archive
    identity = _identity(arguments.identity)
    if (archive is None) != (identity is None) or (archive is None and not arguments.drill):
        raise Problem("a backup and the key to it are needed", hint="golden-restore FILE --identity KEYFILE", code=USAGE)
    signers = _signers(arguments)
    with only_one("restore"), only_one("backup"):
        if archive is None or identity is None:
            return {"drill": drill.drill(None)}
        if arguments.drill or arguments.check:
            backup = restore.source(archive, identity, signers=signers)
            return {"drill": drill.drill(backup)} if arguments.drill else {"checked": restore.check(backup)}
        return {"restored": _restore(archive, identity, signers)}


def _signers(arguments: argparse.Namespace) -> list[str] | None:
    """Return the public keys of the signers that are known, besides this machine's; None with --unsigned."""
    if arguments.unsigned:
        return None
    given = [signature.public_key(text) for text in arguments.signer]
    return [*given, *((site().get("backup") or {}).get("signers") or [])]


def _restore(archive: Path, identity: Path | bytes, signers: list[str] | None) -> dict[str, Any]:
    """Restore, and say so in the journal, whatever came of it: afterwards the site has other data."""
    who = os.environ.get("SUDO_USER", "root") + (" (with --unsigned)" if signers is None else "")
    try:
        done = restore.restore(restore.source(archive, identity, signers=signers))
    except Problem as problem:
        _log("auth.err", f"{who} could not restore {archive}: {problem.brief}")
        raise
    _log("auth.warning", f"{who} restored {archive}: {done['rows']} rows and {done['media_files']} files of {done['made']}")
    return done


def _log(priority: str, line: str) -> None:
    run(["logger", "--priority", priority, "--tag", "golden-restore", "--", line], check=False)


def _identity(given: str | None) -> Path | bytes | None:
    if given is None:
        return None
    if given == "-":
        return sys.stdin.buffer.read()
    if not Path(given).is_file():
        raise Problem(f"{given} is not there", hint="the private key that belongs to the site's recipient", code=USAGE)
    return Path(given)


def show(result: Mapping[str, Any]) -> str:
    """Return the result for people."""
    if "drill" in result:
        found = result["drill"]
        rows = "\n".join(f"  {name}: {table['rows']} rows, {table['content']}" for name, table in found["tables"].items())
        return (
            f"the backup of {found['made']} was restored into a scratch cluster in {found['rto_seconds']} s:\n{rows}\n"
            f"  media: {found['media']['files']} files, {found['media']['bytes']} bytes, {found['media']['sha256']}"
        )
    if "checked" in result:
        manifest = result["checked"]
        return f"whole and readable: {manifest['host']} at {manifest['made']}, {len(manifest['database']['tables'])} tables"
    found = result["restored"]
    return (
        f"restored {found['rows']} rows in {len(found['tables'])} tables and {found['media_files']} media files of "
        f"{found['made']} in {found['rto_seconds']} s, of which {found['downtime_seconds']} s without the application"
    )


def main() -> None:
    """Read the command line and do what it asks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit codes: 0 done, 1 failed, 2 usage, 3 wrong key, unknown signer, broken backup; 1 to 3: as it was.",
    )  # fmt: skip
    parser.add_argument("archive", nargs="?", type=Path, metavar="FILE", help="a backup: TIME-HOST.tar.age")
    parser.add_argument("--identity", metavar="KEYFILE", help="the private key of age; - reads it from standard input")
    trust = parser.add_mutually_exclusive_group()
    signer_text = "the public key of the machine that made the backup (golden-backup --signer there); may be given again"
    trust.add_argument("--signer", action="append", default=[], metavar="PUBLIC-KEY", help=signer_text)
    trust.add_argument("--unsigned", action="store_true", help="ask for no signature: you trust FILE for another reason")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--check", action="store_true", help="only decrypt and read it to its end")
    drill_text = "restore into a scratch cluster and compare; without FILE a backup that is made for this"
    choice.add_argument("--drill", action="store_true", help=drill_text)
    run_command(parser, act, show)
