"""The installer's initial RAM file system: a reduced version of Debian's, with everything that an installation needs.

``preseed/initrd.yaml`` lists included and omitted files, ``preseed/initrd/`` contains Goldsmith's files: each is
installed at its path; with the suffix ``.append`` it is appended to the file of that name; with the suffix ``.divert``
it replaces the installer's file, which gets the name that dpkg-divert would give it. All of it is done in memory, so it
needs no root and is bit-for-bit reproducible.
"""

from __future__ import annotations

import fnmatch
import gzip
import io
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from build.core import log
from build.core.errors import StepFailed
from build.core.files import scratch
from build.core.run import run, which
from build.core.yaml_table import Table, load_yaml, raise_problems
from build.media import cpio
from build.media.disk_ids import TABLE as IDENTITIES
from build.packages import deb

HOME = Path(__file__).parents[2] / "preseed"
PLAN = HOME / "initrd.yaml"
FILES = HOME / "initrd"
APPEND, DIVERT, DIVERTED = ".append", ".divert", ".distrib"
STATUS = "var/lib/dpkg/status"
INFO = "var/lib/dpkg/info"
MODULES = "usr/lib/modules"
TEMPLATES = "templates"
# The files written by depmod for modprobe and udev.
INDEXES = ("modules.*.bin", "modules.devname", "modules.softdep")
DEPMOD_SECONDS = 120
NAME = r"[a-z0-9][a-z0-9+.-]+"
PATH = r"[]A-Za-z0-9_+.*[/-]+"


@dataclass(frozen=True)
class Plan:
    """The content of ``initrd.yaml``: paths inside the netboot package, names of packages and modules, patterns of files."""

    kernel: str
    initrd: str
    packages_dropped: tuple[str, ...]
    files_dropped: tuple[str, ...]
    modules: tuple[str, ...]


def load_plan(path: Path = PLAN) -> Plan:
    """Read the plan; raise SpecError with every problem in it."""
    problems: list[str] = []
    table = Table(load_yaml(path), where="", problems=problems)
    plan = Plan(
        kernel=table.text("kernel", PATH, "write the kernel's path inside the netboot package"),
        initrd=table.text("initrd", PATH, "write the path of initrd.gz inside the netboot package"),
        packages_dropped=table.strings("packages_dropped", NAME, "write the name of a udeb"),
        files_dropped=table.strings("files_dropped", PATH, "write a shell pattern without a leading slash"),
        modules=table.strings("modules", r"[a-z0-9_-]+", "write the name of a kernel module"),
    )
    table.finish()
    raise_problems(path, problems)
    return plan


def build(
    plan: Plan, *, netboot: Path, udebs: Iterable[Path], preseed: str, identities: str, workdir: Path
) -> tuple[bytes, cpio.Tree]:
    """Return the kernel and the tree of the initial RAM file system.

    ``netboot`` is Debian's netboot package, ``preseed`` the text of the preseed file, ``identities`` the table of the
    file systems' UUIDs. Raises StepFailed if files of the plan are missing.
    """
    kernel, tree = assemble(plan, netboot=netboot, udebs=udebs)
    _keep_english(tree)
    index_modules(tree, workdir, wanted=plan.modules)
    _lay_files(tree, FILES)
    for name, text in (("preseed.cfg", preseed), (IDENTITIES, identities)):
        _make_parents(tree, name)
        tree[name] = cpio.file(text.encode())
    return kernel, tree


def assemble(plan: Plan, *, netboot: Path, udebs: Iterable[Path]) -> tuple[bytes, dict[str, cpio.Entry]]:
    """Return the kernel and the tree of Debian's netboot package, without dropped files, with the udebs unpacked."""
    members = deb.extract(netboot, frozenset({plan.kernel, plan.initrd}))
    drop = _Dropper(plan.files_dropped)
    with gzip.open(io.BytesIO(members.pop(plan.initrd))) as stream:
        tree = cpio.read(stream, wanted=drop.keeps)
    _drop_packages(tree, plan.packages_dropped)
    for path in sorted(udebs):
        _unpack(tree, path, drop)
    drop.warn_about_idle()
    return members[plan.kernel], tree


class _Dropper:
    """The patterns of omitted files, and which of them have matched."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns = {pattern: re.compile(fnmatch.translate(pattern)) for pattern in patterns}
        self._idle = set(self._patterns)

    def keeps(self, path: str) -> bool:
        for pattern, expression in self._patterns.items():
            if expression.match(path):
                self._idle.discard(pattern)
                return False
        return True

    def warn_about_idle(self) -> None:
        for pattern in sorted(self._idle):
            log.warn(f"{PLAN.name}: the installer has no file like {pattern}; nothing was omitted")


def _drop_packages(tree: dict[str, cpio.Entry], names: Iterable[str]) -> None:
    """Remove packages from the installer: their entries in dpkg's status and their maintainer scripts."""
    paragraphs = {_field(text, "Package"): text for text in _paragraphs(tree[STATUS].content)}
    for name in names:
        if paragraphs.pop(name, None) is None:
            log.warn(f"{PLAN.name}: the installer has no package {name}; nothing was omitted")
        for path in [path for path in tree if fnmatch.fnmatchcase(path, f"{INFO}/{name}.*")]:
            del tree[path]
    tree[STATUS] = cpio.file("".join(f"{text}\n\n" for text in paragraphs.values()).encode())


def _paragraphs(content: bytes) -> Iterator[str]:
    return (text for text in content.decode().split("\n\n") if text.strip())


def _field(paragraph: str, name: str) -> str:
    match = re.search(rf"^{name}: (.*)$", paragraph, re.MULTILINE)
    if match is None:
        raise StepFailed(f"a package of the installer has no field {name}", details=paragraph[:200])
    return match[1]


def _unpack(tree: dict[str, cpio.Entry], path: Path, drop: _Dropper) -> None:
    """Do the same as ``udpkg --unpack``: install the files, keep the maintainer scripts, write the status."""
    for item, content in deb.content(path):
        where = _merged(tree, item.name)
        if not drop.keeps(where):
            continue
        if item.isdir():
            _make_parents(tree, f"{where}/x")
        else:
            _make_parents(tree, where)
            tree[where] = _entry(tree, item, content)
    control = deb.control_files(path)
    paragraph = control.pop("control").decode().strip()
    name = _field(paragraph, "Package")
    control.pop("md5sums", None)
    for script, content in control.items():
        tree[f"{INFO}/{name}.{script}"] = cpio.file(content, 0o644 if script == TEMPLATES else 0o755)
    text = paragraph.replace("\n", "\nStatus: install ok unpacked\n", 1)
    tree[STATUS] = cpio.file(tree[STATUS].content + f"{text}\n\n".encode())


def _entry(tree: cpio.Tree, item: tarfile.TarInfo, content: bytes) -> cpio.Entry:
    if item.issym():
        return cpio.link(item.linkname)
    if item.islnk():
        return tree[_merged(tree, item.linkname.removeprefix("./"))]
    if item.isreg():
        return cpio.file(content, item.mode & 0o7777)
    raise StepFailed(f"{item.name} of the installer has an unsupported file type")


def _merged(tree: cpio.Tree, path: str) -> str:
    """Return ``path`` with the links /bin, /lib and so on resolved to /usr."""
    top, slash, rest = path.partition("/")
    target = tree.get(top)
    if target is None or not target.is_link:
        return path
    return f"{target.content.decode()}{slash}{rest}"


def _make_parents(tree: dict[str, cpio.Entry], path: str) -> None:
    for parent in PurePosixPath(path).parents:
        if str(parent) != ".":
            tree.setdefault(str(parent), cpio.directory())


def _keep_english(tree: dict[str, cpio.Entry]) -> None:
    """Remove the translations of all questions: debconf reads all of them at start."""
    for path in [path for path in tree if path.startswith(f"{INFO}/") and path.endswith(f".{TEMPLATES}")]:
        content = re.sub(rb"^[A-Za-z]+-[a-z@A-Z_]+\.UTF-8:.*\n(?:[ \t].*\n)*", b"", tree[path].content, flags=re.MULTILINE)
        tree[path] = cpio.file(content)


def index_modules(tree: dict[str, cpio.Entry], workdir: Path, *, wanted: Iterable[str] | None = None) -> None:
    """Write the indexes of the kernel modules; keep only the wanted modules (default: all) and their dependencies."""
    version = _kernel_version(tree)
    with scratch(workdir) as home:
        base = home / MODULES / version
        inside = f"{MODULES}/{version}/"
        for path in [path for path in tree if path.startswith(inside) and not tree[path].is_directory]:
            (home / path).parent.mkdir(parents=True, exist_ok=True)
            (home / path).write_bytes(tree.pop(path).content)
        (home / "lib").symlink_to("usr/lib")
        _depmod(home, version)
        dependencies = (base / "modules.dep").read_text()
        kept = _paths(dependencies) if wanted is None else _closure(dependencies, wanted)
        for module in base.rglob("*.ko*"):
            if str(module.relative_to(base)) not in kept:
                module.unlink()
        _depmod(home, version)
        names = [*kept, "modules.builtin", *(p.name for pattern in INDEXES for p in base.glob(pattern))]
        for name in sorted(names):
            tree[inside + name] = cpio.file((base / name).read_bytes())
    for path in [path for path in tree if path.startswith(inside) and _is_empty(tree, path)]:
        del tree[path]


def _kernel_version(tree: cpio.Tree) -> str:
    versions = {path.split("/")[3] for path in tree if path.startswith(f"{MODULES}/") and path.count("/") > 3}
    if len(versions) != 1:
        raise StepFailed(
            f"the installer's kernel modules are for {len(versions)} kernels, not one",
            details="\n".join(sorted(versions)),
            hint="update the lock: nox -s lock",
        )
    return versions.pop()


def _is_empty(tree: cpio.Tree, path: str) -> bool:
    return tree[path].is_directory and not any(other.startswith(f"{path}/") for other in tree)


def _depmod(home: Path, version: str) -> None:
    run([which("depmod", reason="index the installer's kernel modules"), "-b", home, version], timeout=DEPMOD_SECONDS)


def _paths(dependencies: str) -> set[str]:
    return {line.partition(":")[0] for line in dependencies.splitlines()}


def _closure(dependencies: str, wanted: Iterable[str]) -> set[str]:
    """Return the paths of the wanted modules and of all their dependencies, from the text of ``modules.dep``."""
    needs = {path: rest.split() for path, _, rest in (line.partition(":") for line in dependencies.splitlines())}
    by_name = {PurePosixPath(path).name.partition(".")[0].replace("-", "_"): path for path in needs}
    missing = sorted(name for name in wanted if name.replace("-", "_") not in by_name)
    if missing:
        raise StepFailed(
            f"the installer lacks kernel modules: {', '.join(missing)}",
            hint="update the lock (nox -s lock), or correct preseed/initrd.yaml",
        )
    kept: set[str] = set()
    for name in wanted:
        path = by_name[name.replace("-", "_")]
        kept |= {path, *needs[path]}
    return kept


def _lay_files(tree: dict[str, cpio.Entry], home: Path) -> None:
    """Install Goldsmith's files. A file that starts with ``#!`` is a program: the modes of a checkout are ignored."""
    for path in sorted(path for path in home.rglob("*") if path.is_file()):
        where, content = str(path.relative_to(home)), path.read_bytes()
        name = where.removesuffix(APPEND).removesuffix(DIVERT)
        if name != where and name not in tree:
            raise StepFailed(f"preseed/initrd/{where}: the installer has no {name}")
        if where.endswith(APPEND):
            tree[name] = cpio.file(tree[name].content + content, tree[name].mode & 0o7777)
            continue
        if where.endswith(DIVERT):
            tree[name + DIVERTED] = tree[name]
        _make_parents(tree, name)
        tree[name] = cpio.file(content, 0o755 if content.startswith(b"#!") else 0o644)
