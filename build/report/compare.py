"""Compares two artifacts: sections of changes, computed only from the files of the artifacts.

An artifact of an older Goldsmith may lack a part; then the section is reported as missing, not as equal. Values that are
measured in each build (times) are listed, but do not count as differences.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from build.artifact import artifact
from build.artifact.contents import COLUMNS, Side
from build.artifact.manifest import Manifest
from build.report.requirements import Requirement
from build.verify import inventory
from build.verify.inventory import Inventory

DIGEST_HEX = 12
SETUID, SETGID = 0o4000, 0o2000
# Package, version before and after (empty: not installed) -> the changelog's lines about that.
Explain = Callable[[str, str, str], tuple[str, ...]]


@dataclass(frozen=True)
class Change:
    """One difference; an empty ``before`` means that it was added, an empty ``after`` that it was removed."""

    name: str
    before: str
    after: str
    notes: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        return "changed" if self.before and self.after else "added" if self.after else "removed"


@dataclass(frozen=True)
class Section:
    """The changes of one kind; ``missing``: why they are not known; ``measured``: they do not count as differences."""

    key: str
    title: str
    changes: tuple[Change, ...] = ()
    missing: str = ""
    measured: bool = False

    def count(self, kind: str) -> int:
        """Return the number of changes of a kind: ``added``, ``removed`` or ``changed``."""
        return sum(change.kind == kind for change in self.changes)


@dataclass(frozen=True)
class Comparison:
    """Two artifacts and all sections, in the order of the output."""

    before: Side
    after: Side
    sections: tuple[Section, ...]

    @property
    def differs(self) -> bool:
        """True if anything differs, other than values that are measured in each build."""
        return any(section.changes and not section.measured for section in self.sections)

    def section(self, key: str) -> Section:
        """Return the section with this key."""
        return next(section for section in self.sections if section.key == key)


def _no_explanation(_package: str, _before: str, _after: str) -> tuple[str, ...]:
    return ()


def compare(
    before: Side, after: Side, *, requirements: Sequence[Requirement] = (), explain: Explain = _no_explanation
) -> Comparison:
    """Compare two artifacts. ``requirements``: for their texts; ``explain`` returns lines of a package's changelog."""
    pair = (before, after)
    texts = {requirement.name: requirement.text for requirement in requirements}
    old, new = before.manifest, after.manifest
    packages = [
        Change(change.name, change.before, change.after, explain(change.name, change.before, change.after))
        for change in changes(old.packages, new.packages)
    ]
    return Comparison(before, after, (
        Section("packages", "Packages", tuple(packages)),
        _both("requirements", "Requirements", pair, lambda side: side.requirements, artifact.JUNIT, notes=texts),
        _audit(pair),
        _both("tests", "Image tests", pair, lambda side: side.results, artifact.JUNIT),
        *_inventories(pair),
        _files(pair),
        Section("configuration", "Specification and layers", tuple(changes(_configuration(old), _configuration(new)))),
        Section("installer", "Installer", tuple(changes(old.installer, new.installer))),
        Section("sizes", "Sizes", tuple(changes(_sizes(before), _sizes(after)))),
        Section("boot", "Boot", tuple(changes(_boot(before), _boot(after))), measured=True),
        Section("stages", "Stages of the build", tuple(changes(_stages(old), _stages(new))), measured=True),
    ))  # fmt: skip


def changes(before: Mapping[str, str], after: Mapping[str, str], notes: Mapping[str, str] | None = None) -> list[Change]:
    """Return the differences between two mappings of text, by name."""
    differences = []
    for name in sorted(before.keys() | after.keys(), key=_order):
        was, now = before.get(name), after.get(name)
        if was != now:
            note = (notes or {}).get(name)
            differences.append(Change(name, _shown(was), _shown(now), (note,) if note else ()))
    return differences


def _order(name: str) -> list[tuple[int, str]]:
    """Return the key for natural order: R9 before R10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]


def _shown(value: str | None) -> str:
    return "" if value is None else value or "(empty)"


def _both(
    key: str, title: str, pair: tuple[Side, Side], ask: Callable[[Side], Mapping[str, str] | None], source: str,
    *, notes: Mapping[str, str] | None = None,
) -> Section:  # fmt: skip
    """Return the section of a value that both artifacts have; a missing one if an artifact does not have it."""
    was, now = (ask(side) for side in pair)
    if was is None or now is None:
        return Section(key, title, missing=_lacking(pair, (was, now), source))
    return Section(key, title, tuple(changes(was, now, notes)))


def _lacking(pair: tuple[Side, Side], answers: tuple[object, object], source: str) -> str:
    names = [side.name for side, answer in zip(pair, answers, strict=True) if answer is None]
    return f"no {source} in {' and '.join(dict.fromkeys(names))}"


def _inventories(pair: tuple[Side, Side]) -> Iterable[Section]:
    def part(key: str, title: str, take: Callable[[Inventory], Mapping[str, str]]) -> Section:
        def ask(side: Side) -> Mapping[str, str] | None:
            return None if side.inventory is None else take(side.inventory)

        return _both(key, title, pair, ask, inventory.FILE)

    yield part("units", "Units", lambda content: {
        name: f"{unit.state}, preset {unit.preset or 'none'}" for name, unit in content.units.items()
    })  # fmt: skip
    yield part("exposure", "Exposure of services (systemd-analyze security, 10 is worst)", lambda content: {
        name: f"{unit.exposure:.1f}" for name, unit in content.units.items() if unit.exposure is not None
    })  # fmt: skip
    yield part("listening", "Listening sockets", lambda content: content.listening)
    if any(side.inventory is None for side in pair):
        yield _both("privileged", "Setuid and setgid files (capabilities are not known)", pair, _setuid, artifact.TREE)
    else:
        title = "Files with setuid, setgid or capabilities"
        yield part("privileged", title, lambda content: content.privileged)
    yield part("sysctl", "Kernel settings", lambda content: content.sysctl)
    yield part("modules", "Kernel modules", lambda content: {
        **dict.fromkeys(content.modules.loaded, "loaded"), **dict.fromkeys(content.modules.denied, "denied"),
    })  # fmt: skip
    yield part("users", "Users", lambda content: {
        name: f"uid {account.uid}, gid {account.gid}, {account.home}, {account.shell}, password {account.password}"
        for name, account in content.users.items()
    })  # fmt: skip
    yield part("groups", "Groups", lambda content: {
        name: f"gid {account.gid}" + (f": {', '.join(account.members)}" if account.members else "")
        for name, account in content.groups.items()
    })  # fmt: skip
    yield part("mounts", "Mounts", lambda content: content.mounts)


def _setuid(side: Side) -> Mapping[str, str] | None:
    """Return the setuid and setgid files from the list of files, which every artifact has."""
    if side.paths is None:
        return None
    return {
        path: f"{columns[1]} {columns[2]}" for path, columns in side.paths.items()
        if columns[0] == "file" and int(columns[1], 8) & (SETUID | SETGID)
    }  # fmt: skip


def _files(pair: tuple[Side, Side]) -> Section:
    """Return the paths that differ; for a path that is in both artifacts, only the columns that differ."""
    was, now = (side.paths for side in pair)
    if was is None or now is None:
        return Section("files", "Files", missing=_lacking(pair, (was, now), artifact.TREE))
    differences = []
    for path in sorted(was.keys() | now.keys()):
        old, new = was.get(path), now.get(path)
        if old != new:
            differing = [number for number in range(len(COLUMNS)) if not old or not new or old[number] != new[number]]
            differences.append(Change(path, _columns(old, differing), _columns(new, differing)))
    return Section("files", "Files", tuple(differences))


def _columns(columns: tuple[str, ...] | None, numbers: Sequence[int]) -> str:
    if columns is None:
        return ""
    shown = []
    for number in numbers:
        name, value = COLUMNS[number], columns[number]
        if name == "bytes":
            value = f"{value} bytes"
        elif name == "content":
            value = f"-> {value}" if columns[0].endswith("link") else value[:DIGEST_HEX]
        if value:
            shown.append(value)
    return " ".join(shown) or "(nothing)"


def _audit(pair: tuple[Side, Side]) -> Section:
    was, now = (side.manifest.audit or None for side in pair)
    title = "Auditors"
    if was is None or now is None:
        return Section("audit", title, missing=_lacking(pair, (was, now), "audit"))
    limits = {name: f"must be {metric.limit}" for name, metric in now.items() if metric.limit}
    shown = [{name: metric.shown for name, metric in side.items()} for side in (was, now)]
    return Section("audit", title, tuple(changes(shown[0], shown[1], limits)))


def _configuration(manifest: Manifest) -> dict[str, str]:
    inputs = manifest.inputs
    layers = {f"layer {name}": value[:DIGEST_HEX] for name, value in (inputs.layers or {}).items()}
    return {**_flat(inputs.spec or {}, ""), **layers, "archive date": inputs.archive_date}


def _flat(value: object, name: str) -> dict[str, str]:
    """Return a tree of settings as one mapping: ``disk.partitions.0.mount`` -> ``/``."""
    items: Iterable[tuple[object, object]]
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        return {name: str(value)}
    return {key: text for part, inner in items for key, text in _flat(inner, f"{name}.{part}".lstrip(".")).items()}


def _sizes(side: Side) -> dict[str, str]:
    image, rootfs = side.manifest.image, side.manifest.stage("rootfs")
    sizes = {"image": f"{image.bytes:,} bytes", "disk": f"{image.virtual_mib} MiB"}
    if rootfs and "squashfs_bytes" in rootfs.facts:
        sizes["squashfs"] = f"{rootfs.facts['squashfs_bytes']:,} bytes"
    sizes["packages"] = str(len(side.manifest.packages))
    if side.paths is not None:
        sizes["paths"] = str(len(side.paths))
        sizes["files"] = f"{sum(int(columns[3]) for columns in side.paths.values()):,} bytes"
    return sizes


def _boot(side: Side) -> dict[str, str]:
    clones = side.manifest.verification.boot
    shown = {f"clone {name}, {what}": f"{value} s" for name, times in clones.items() for what, value in times.items()}
    if side.inventory is not None:
        shown |= {f"systemd, {part}": f"{value} s" for part, value in side.inventory.boot.startup.items()}
    return shown


def _stages(manifest: Manifest) -> dict[str, str]:
    return {stage.stage: f"{stage.seconds} s" for stage in manifest.stages}
