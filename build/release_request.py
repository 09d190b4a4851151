"""What is asked of a release: the words of ``promote``, ``rollback``, ``history``, ``revoke``, ``restore`` and ``prune``.

Nothing is asked of the cluster here: what cannot be meant is refused before anything is looked at.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from build.errors import SpecError
from build.release_entry import one_line
from build.release_policy import STABLE

VERSION = re.compile(r"\d+\.\d+\.\d+(-[A-Za-z0-9.]+)?")
PROMOTE, ROLLBACK, HISTORY, REVOKE, RESTORE, PRUNE = "promote", "rollback", "history", "revoke", "restore", "prune"
VERBS = {
    PROMOTE: "point a channel at a published version, on every node; the gates of golden.yaml decide",
    ROLLBACK: "point a channel at what it pointed at before",
    HISTORY: "show who pointed which channel where, when and why; --rebuild makes the ledger anew from the cluster",
    REVOKE: "take a version out of use: nobody promotes, clones or publishes it",
    RESTORE: "take a revocation back",
    PRUNE: "show which templates nobody needs any more, and why; --apply removes them",
}
DAYS = 30


@dataclass(frozen=True)
class Request:
    """What is asked for; what is not said is empty. ``tag``: the release tag whose artifact is promoted."""

    verb: str
    version: str = ""
    channel: str = ""
    tag: str = ""
    reason: str = ""
    dry_run: bool = False
    rebuild: bool = False
    apply: bool = False
    days: int = DAYS
    secrets: Path | None = None
    as_json: bool = False


def options(parser: argparse.ArgumentParser, verb: str) -> None:
    """Add the options of a verb to its parser."""
    add = parser.add_argument
    if verb == PROMOTE:
        add("words", nargs="*", metavar="VERSION [CHANNEL]", help=f"with --tag only the channel (default: {STABLE})")
        add("--tag", default="", metavar="vVERSION", help="the version whose artifact was built from this tag's commit")
    elif verb in (REVOKE, RESTORE):
        add("words", nargs=1, metavar="VERSION", help="of the image")
    elif verb in (ROLLBACK, HISTORY):
        add("words", nargs="?" if verb == HISTORY else 1, default=[], metavar="CHANNEL", help="such as stable")
    if verb in (PROMOTE, ROLLBACK, REVOKE, RESTORE):
        add("--reason", default="", required=verb in (REVOKE, RESTORE), metavar="TEXT", help="kept in the ledger")
        add("--dry-run", action="store_true", help="say what would be done, and change nothing")
    if verb == HISTORY:
        add("--rebuild", action="store_true", help="make the ledger anew from its mirror on the cluster")
    if verb == PRUNE:
        add("--apply", action="store_true", help="remove them (default: only say which)")
        add("--dry-run", action="store_true", help="only say which: what happens without --apply")
        add("--days", type=int, default=DAYS, metavar="N", help="keep what is younger (default: %(default)s)")
    add("--secrets", type=Path, metavar="FILE", help="with the tokens, mode 0600 (see golden.yaml)")


def read(given: argparse.Namespace) -> Request:
    """Return the request that the options make; raise SpecError when it cannot be meant."""
    verb, own = str(given.verb), vars(given)
    found = own.get("words", [])
    words: Sequence[str] = [found] if isinstance(found, str) else found
    version, channel = _meant(verb, words, tag=own.get("tag", ""))
    if version and not VERSION.fullmatch(version):
        raise SpecError(f"{version!r} is no version", hint="write such as 1.4.0; a release tag is given with --tag v1.4.0")
    if own.get("apply") and own.get("dry_run"):
        raise SpecError("--apply and --dry-run contradict each other", hint="leave one of them out")
    if own.get("days", 0) < 0:
        raise SpecError(f"--days: {own['days']}: write a number of days", hint=f"without it, it is {DAYS}")
    reason = one_line("--reason", own.get("reason", ""))
    if verb in (REVOKE, RESTORE) and not reason:
        raise SpecError("--reason: it is empty", hint="say in one sentence why: whoever is stopped by it reads that")
    return Request(
        verb=verb, version=version, channel=channel, tag=own.get("tag", ""), reason=reason, secrets=given.secrets,
        dry_run=own.get("dry_run", False), rebuild=own.get("rebuild", False), apply=own.get("apply", False),
        days=own.get("days", DAYS), as_json=given.json,
    )  # fmt: skip


def _meant(verb: str, words: Sequence[str], *, tag: str) -> tuple[str, str]:
    """Return version and channel."""
    if verb != PROMOTE:
        word = words[0] if words else ""
        return (word, "") if verb in (REVOKE, RESTORE) else ("", word)
    if tag:
        if len(words) > 1:
            raise SpecError("with --tag, the tag names the version", hint=f"promote -- --tag {tag} [CHANNEL]")
        return "", words[0] if words else STABLE
    if not 1 <= len(words) <= 2:
        raise SpecError("promote needs a version, or --tag", hint="promote -- 1.4.0 [CHANNEL]; prune shows what is there")
    return words[0], words[1] if len(words) == 2 else STABLE
