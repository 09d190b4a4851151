"""Builds an artifact again from its own inputs, in a separate cache, and compares the result with what was recorded.

The code of the artifact's own commit builds it. When this checkout is that code (by the keys of the stages), it works
here; else the commit is taken out of git into a scratch directory, and its own Goldsmith does the work.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from build.artifact import artifact, contents, find
from build.artifact.artifact import Artifact
from build.artifact.stage_facts import open_cache
from build.core import files, git, host, log, run
from build.core.cache import StageResult
from build.core.errors import SpecError, VerificationFailed
from build.machines import disk_image
from build.media.iso_image import MediaFacts
from build.packages import lock as locks
from build.pipeline import build
from build.pipeline.build import Gathered, Options
from build.reproduce import disk_contents, disk_difference
from build.reproduce.disk_difference import Verdict
from build.rootfs import base, rootfs
from build.rootfs.rootfs import RootfsFacts

STAGES = ["base", "rootfs", "media"]
# What is addressed by hash, and may be shared with the ordinary cache: it shapes no result.
SHARED = ("files", "packer", "wheels")
GIT_SECONDS = 120
HELP_SECONDS = 60
SAME, DIFFERS, UNKNOWN = "same", "differs", "not recorded"
MOST_NAMED = 20
# Runs the Goldsmith of another directory: with no path but that one, wherever we are.
ELSEWHERE = "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); runpy.run_module('build', run_name='__main__')"


@dataclass(frozen=True)
class Row:
    """One thing that was recorded, and what came now; ``details`` name what differs inside of it."""

    what: str
    expected: str
    found: str
    verdict: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """The rows; the comparison of the disks, if any; tools whose versions are not those of the recorded build."""

    artifact: str
    rows: tuple[Row, ...]
    disk: Verdict | None
    tools: tuple[str, ...]

    @property
    def same(self) -> bool:
        return all(row.verdict != DIFFERS for row in self.rows) and not (self.disk and self.disk.forbidden)

    @property
    def whole(self) -> bool:
        """Whether the medium, which holds everything else, could be compared."""
        return any(row.what == "ISO" and row.verdict != UNKNOWN for row in self.rows)

    def facts(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "artifact": self.artifact, "same": self.same, "compared": self.whole, "tools": list(self.tools),
            "rows": [dataclasses.asdict(row) for row in self.rows], "disk": self.disk.facts() if self.disk else None,
        }  # fmt: skip


def load(options: Options, directory: Path | None) -> Artifact:
    """Return the artifact; raise VerificationFailed when it is not what it was: nothing could be compared with it."""
    loaded = artifact.load(directory) if directory else find.newest(options.project)
    if problems := artifact.check(loaded.path):
        raise VerificationFailed(f"{loaded.path} is not what was committed", details="\n".join(problems))
    return loaded


def gather(options: Options, found: Artifact) -> Gathered:
    """Return this checkout's inputs with the artifact's own locks."""
    rootfs_lock = locks.parse(found.path / artifact.ROOTFS_LOCK)
    return build.gather_locked(options, rootfs_lock, locks.parse(found.path / artifact.INSTALLER_LOCK))


def strange(found: Artifact, gathered: Gathered, *, with_disk: bool) -> list[str]:
    """Return the stages whose keys are not those of the artifact: this checkout, or this host's mirror, is another."""
    recorded = found.manifest.inputs.stage_keys or {}
    return [stage for stage in _stages(with_disk=with_disk) if recorded.get(stage) != gathered.keys[stage].key]


def _stages(*, with_disk: bool) -> list[str]:
    return [*STAGES, "disk"] if with_disk else STAGES


def here(options: Options, found: Artifact, gathered: Gathered, *, with_disk: bool) -> Report:
    """Build the stages again in a separate cache, which is removed afterwards, and compare."""
    with files.scratch(options.cache.root / "reproduce", remove=base.remove_mapped) as scratch:
        own = open_cache(scratch / "cache")
        for name in SHARED:
            (options.cache.root / name).mkdir(parents=True, exist_ok=True)
            own.root.mkdir(exist_ok=True)
            (own.root / name).symlink_to(options.cache.root.resolve() / name)
        results = build.make(dataclasses.replace(options, cache=own), gathered, _stages(with_disk=with_disk))
        verdict = _compare_disks(found, results["disk"], scratch) if with_disk else None
        return Report(found.path.name, tuple(_rows(found, results)), verdict, tuple(_tools(found)))


def _rows(found: Artifact, results: Mapping[str, StageResult]) -> Iterator[Row]:
    recorded, now = found.manifest.inputs, results["rootfs"].facts_as(RootfsFacts)
    tree = _row("root file system (tar)", recorded.rootfs_tar_sha256, now.tar_sha256)
    if tree.verdict == DIFFERS:
        named = _lines(found.path / artifact.TREE, results["rootfs"].path / rootfs.MANIFEST)
        tree = dataclasses.replace(tree, details=tuple(named))
    yield tree
    yield _row("squashfs", recorded.squashfs_sha256, now.squashfs_sha256)
    media, medium = found.manifest.stage("media"), results["media"].facts_as(MediaFacts)
    facts = media.facts if media else {}
    yield _row("initrd", facts.get("initrd_sha256"), medium.initrd_sha256)
    yield _row("ISO", facts.get("iso_sha256"), medium.iso_sha256)


def _row(what: str, expected: object, got: str) -> Row:
    if not expected:
        return Row(what, "", got, UNKNOWN)
    return Row(what, str(expected), got, SAME if expected == got else DIFFERS)


def _lines(recorded: Path, now: Path) -> list[str]:
    """Return the paths whose lines differ between two manifests of a root file system, with what differs."""
    sides = [contents.columns_of(path.read_text(encoding="utf-8")) for path in (recorded, now)]
    lines = []
    for path in sorted(sides[0].keys() | sides[1].keys()):
        a, b = sides[0].get(path), sides[1].get(path)
        if a is None or b is None:
            lines.append(f"{path}: only {'now' if a is None else 'in the artifact'}")
        elif a != b:
            lines.append(f"{path}: {', '.join(name for name, x, y in zip(contents.COLUMNS, a, b, strict=True) if x != y)}")
    return lines or ["no path differs: times or extended attributes do"]


def _compare_disks(found: Artifact, made: StageResult, scratch: Path) -> Verdict:
    images = (found.image, made.path / disk_image.IMAGE)
    with log.step("Comparing the installed disks"):
        sides = [disk_contents.read(image, scratch) for image in images]
        return disk_difference.compare(*sides, same_bits=disk_difference.identical(*images))


def _tools(found: Artifact) -> Iterator[str]:
    """Yield tools of this host whose versions are not those that the artifact was made with: a reason for differences."""
    recorded = found.manifest.tools
    for tool in host.needed():
        now = host.version(tool)
        if now and recorded.get(tool.probe, now) != now:
            yield f"{tool.probe}: {recorded[tool.probe]} then, {now} now"


# --- another commit ---------------------------------------------------------------------------------------------------


@contextmanager
def checkout(options: Options, commit: str) -> Iterator[Path]:
    """Yield a directory with the files of a commit; it is gone afterwards, and git is left as it was.

    Raises SpecError when the commit is not here, or is of a time before Goldsmith could do this.
    """
    words = git.argv(options.project.root)
    # Not git.ask: a host without git is another error than a checkout without the commit.
    known = run.run([*words, "cat-file", "-e", f"{commit}^{{commit}}"], timeout=GIT_SECONDS, check=False)
    if known.returncode:
        raise SpecError(f"the commit {commit} is not in this checkout", hint="git fetch, or use a checkout that has it")
    with files.scratch(options.cache.root / "reproduce") as scratch:
        tar, tree = scratch / "commit.tar", scratch / "checkout"
        run.run([*words, "archive", "--format=tar", f"--output={tar}", commit], timeout=GIT_SECONDS)
        tree.mkdir()
        # Not tarfile: Debian 12's Python has its safe filters not yet.
        run.run(["tar", "--extract", "--file", tar, "--directory", tree], timeout=GIT_SECONDS)
        if not (tree / "build" / "reproduce").is_dir() and not (tree / "build" / "reproduce.py").is_file():
            raise SpecError(f"the Goldsmith of {commit[:12]} is older than reproduce", hint="check it out and build there")
        yield tree


def elsewhere(tree: Path, words: list[str]) -> int:
    """Run the Goldsmith of another directory; return its exit code. Its output goes to the output of this process."""
    return run.attach([sys.executable, "-P", "-c", ELSEWHERE, str(tree), *words, "--project", str(tree), "--here"])


def help_elsewhere(tree: Path) -> str:
    """Return the help of ``reproduce`` of the Goldsmith of another directory: which options it has."""
    argv = [sys.executable, "-P", "-c", ELSEWHERE, str(tree), "reproduce", "--help"]
    return run.run(argv, timeout=HELP_SECONDS, check=False).stdout


def commit_of(found: Artifact) -> str:
    """Return the commit that the artifact's manifest names, or nothing."""
    commit = found.manifest.inputs.commit or ""
    return commit if re.fullmatch(r"[0-9a-f]{40}", commit) else ""


# --- the report -------------------------------------------------------------------------------------------------------


def render(report: Report, *, as_json: bool) -> str:
    """Return the report as JSON, or for people."""
    if as_json:
        return json.dumps(report.facts(), indent=1, sort_keys=True)
    lines = [f"{report.artifact}: {'reproduced' if report.same and report.whole else _failure(report)}"]
    for row in report.rows:
        lines.append(f"  {row.what:<22} {row.verdict:<12} {row.found}")
        if row.verdict == DIFFERS:
            lines.append(f"    recorded: {row.expected}")
            lines += _some([f"    {detail}" for detail in row.details])
    if report.disk:
        lines += _disk_lines(report.disk)
    if not report.same:
        lines += [f"  note: another version: {tool}" for tool in report.tools]
    return "\n".join(lines)


def _failure(report: Report) -> str:
    return "not the same" if not report.same else "not compared: its manifest does not tell the medium's hash"


def _disk_lines(disk: Verdict) -> list[str]:
    allowed = [row for row in disk.differences if row.allowed]
    state = DIFFERS if disk.forbidden else SAME
    counts = f"{disk.paths} paths; {len(disk.forbidden)} differences that must not be, {len(allowed)} that may"
    laid = ", ".join(f"{len(paths)} paths of another {what}" for what, paths in disk.laid.items())
    lines = [
        f"  {'disk, content':<22} {state:<12} {counts}",
        f"  {'disk, bits':<22} {SAME if disk.identical else DIFFERS:<12} {laid}",
    ]
    lines += _some([f"    {row.where}: {row.what}: {row.expected} then, {row.found} now" for row in disk.forbidden])
    return lines + _some([f"    may differ: {row.where}: {row.what}: {row.allowed}" for row in allowed])


def _some(lines: list[str]) -> list[str]:
    more = len(lines) - MOST_NAMED
    return [*lines[:MOST_NAMED], f"    … and {more} more (--json names all)"] if more > 0 else lines
