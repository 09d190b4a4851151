"""Layers: the directories of ``overlays/`` read, checked, rendered, and packed into deterministic archives.

A layer is ``NN-noun/layer.yaml`` and ``NN-noun/rootfs/`` mirroring ``/``. Owners and modes come from ``layer.yaml``
alone, never from the checkout. Unknown keys, stray files, a declaration that matches nothing and a path in two layers
are errors, all told at once.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import jinja2

from build.errors import SpecError
from build.spec import Spec
from build.tables import PACKAGE, Table, load_yaml, raise_problems

TEMPLATE_SUFFIX = ".j2"
MODE = r"0[0-7]{3,4}"
ABSOLUTE = r"/[^\s]+"
ACCOUNT = r"[a-z_][a-z0-9_-]*"
FILE_MODE = 0o644
DIRECTORY_MODE = 0o755
SYSUSERS_DIRECTORIES = ("/usr/lib/sysusers.d/", "/etc/sysusers.d/")
TMPFILES_DIRECTORIES = ("/usr/lib/tmpfiles.d/", "/etc/tmpfiles.d/")
DPKG_OPTIONS_DIRECTORY = "/etc/dpkg/dpkg.cfg.d/"


@dataclass(frozen=True)
class Access:
    """Who owns a path and what its mode is."""

    owner: str = "root"
    group: str = "root"
    mode: int | None = None


@dataclass(frozen=True)
class Venv:
    """A Python virtual environment in the image, filled from a hash-locked wheelhouse."""

    path: str
    requirements: Path


@dataclass(frozen=True)
class Command:
    """A command for the chroot, and why no declaration could do its work."""

    argv: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Node:
    """One path that a layer lays: a file with its content, a directory, or a symbolic link."""

    path: str
    kind: str
    content: bytes
    target: str
    access: Access
    layer: str

    @property
    def mode(self) -> int:
        default = DIRECTORY_MODE if self.kind == "directory" else FILE_MODE
        return default if self.access.mode is None else self.access.mode

    def as_input(self) -> list[object]:
        """Return what identifies the node in a cache key."""
        body = hashlib.sha256(self.content).hexdigest()
        return [self.path, self.kind, body, self.target, self.access.owner, self.access.group, f"{self.mode:04o}"]


@dataclass(frozen=True)
class Layer:
    """One layer, read and checked."""

    name: str
    packages: tuple[str, ...]
    nodes: tuple[Node, ...]
    early: tuple[str, ...]
    absent: tuple[str, ...]
    replaces: tuple[str, ...]
    venvs: tuple[Venv, ...]
    commands: tuple[Command, ...]
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Stack:
    """All layers of a spec in order: what the image adds to its packages."""

    layers: tuple[Layer, ...]

    @property
    def packages(self) -> tuple[str, ...]:
        return tuple(sorted({package for layer in self.layers for package in layer.packages}))

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Every path once; a declared replacement hides the earlier one."""
        last = {node.path: node for layer in self.layers for node in layer.nodes}
        return tuple(last[path] for path in sorted(last))

    @property
    def early(self) -> tuple[Node, ...]:
        """The files that must lie there before packages are installed."""
        wanted = {path for layer in self.layers for path in layer.early}
        return tuple(node for node in self.nodes if node.path in wanted)

    @property
    def absent(self) -> tuple[str, ...]:
        return tuple(path for layer in self.layers for path in layer.absent)

    @property
    def venvs(self) -> tuple[Venv, ...]:
        return tuple(venv for layer in self.layers for venv in layer.venvs)

    @property
    def commands(self) -> tuple[Command, ...]:
        return tuple(command for layer in self.layers for command in layer.commands)

    def below(self, directories: Iterable[str]) -> tuple[Node, ...]:
        """Return the nodes that lie directly or deeper in one of ``directories``."""
        return tuple(node for node in self.nodes if node.path.startswith(tuple(directories)))

    def dpkg_options(self) -> tuple[str, ...]:
        """Return the lines of the layers' dpkg configuration: they must hold from the first package on."""
        text = b"\n".join(node.content for node in self.below([DPKG_OPTIONS_DIRECTORY])).decode()
        return tuple(line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#"))

    def as_inputs(self) -> dict[str, object]:
        """Return what identifies the stack in a cache key."""
        return {
            "nodes": [node.as_input() for node in self.nodes],
            "absent": list(self.absent),
            "commands": [list(command.argv) for command in self.commands],
            "venvs": [[venv.path, hashlib.sha256(venv.requirements.read_bytes()).hexdigest()] for venv in self.venvs],
        }


def load_stack(root: Path, spec: Spec) -> Stack:
    """Read the layers that the spec names from ``root`` (the directory ``overlays/``).

    Raises SpecError listing every problem of every layer.
    """
    problems: list[str] = []
    known = {path.name for path in root.iterdir() if path.is_dir()}
    for name in spec.layers:
        if name not in known:
            problems.append(f"golden.yaml: layers: {name!r}: there is no such directory in {root.name}/")
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False, trim_blocks=True, lstrip_blocks=True
    )
    layers = []
    for name in spec.layers:
        if name in known:
            try:
                layers.append(_Reader(root / name, spec, environment, problems).layer())
            except SpecError as error:
                problems.append(f"{error.brief}: {error.hint}")
    _check_overlaps(layers, problems)
    raise_problems(root, problems)
    return Stack(tuple(layers))


class _Reader:
    """Reads one layer; every problem goes onto the common list."""

    def __init__(self, directory: Path, spec: Spec, environment: jinja2.Environment, problems: list[str]) -> None:
        self.directory = directory
        self.spec = spec
        self.environment = environment
        self.problems = problems
        self.where = f"{directory.name}/layer.yaml"

    def layer(self) -> Layer:
        table = Table(load_yaml(self.directory / "layer.yaml"), where=self.where, problems=self.problems)
        table.text("about", r".{10,}", "say in one sentence what the layer is for")
        access = self._access(table)
        venvs = self._venvs(table)
        nodes = self._nodes(access, allowed=self._beside(venvs))
        layer = Layer(
            name=self.directory.name,
            packages=table.strings("packages", PACKAGE, "write the name of a Debian package"),
            nodes=nodes,
            early=table.strings("early", ABSOLUTE, "write an absolute path"),
            absent=table.strings("absent", ABSOLUTE, "write an absolute path"),
            replaces=table.strings("replaces", ABSOLUTE, "write an absolute path"),
            venvs=venvs,
            commands=self._commands(table),
            tests=table.strings("tests", r"tests/image/test_[a-z0-9_]+\.py", "name a file such as tests/image/test_x.py"),
        )
        table.finish()
        self._check(table, layer, access)
        return layer

    def _check(self, table: Table, layer: Layer, access: Mapping[str, Access]) -> None:
        paths = {node.path for node in layer.nodes}
        for key, named in (("paths", access), ("early", layer.early), ("replaces", layer.replaces)):
            for path in sorted(set(named) - paths):
                table.problem(key, path, "this layer's rootfs/ has no such path: correct or remove the entry")
        for path in sorted(set(layer.absent) & paths):
            table.problem("absent", path, "this layer lays the path itself: remove one of the two")
        if not layer.tests:
            table.problem("tests", [], "name at least one test that proves the layer")
        for test in layer.tests:
            if not (self.directory.parent.parent / test).is_file():
                table.problem("tests", test, "there is no such file: write the test or correct the name")

    def _beside(self, venvs: Sequence[Venv]) -> set[str]:
        names = {"layer.yaml", "rootfs", "README.md"}
        return names | ({"requirements.in"} | {venv.requirements.name for venv in venvs} if venvs else set())

    def _access(self, table: Table) -> dict[str, Access]:
        entries = table.take("paths", {})
        if not isinstance(entries, dict):
            table.problem("paths", entries, "write a mapping from path to {owner, group, mode, reason}")
            return {}
        found: dict[str, Access] = {}
        for path, entry in entries.items():
            inner = Table(entry, where=f"{self.where}: paths.{path}", problems=self.problems)
            mode = inner.take("mode", "")
            if "mode" in inner.value and not (isinstance(mode, str) and re.fullmatch(MODE, mode)):
                inner.problem("mode", mode, 'write the mode in octal and in quotes, such as "0640"')
                mode = ""
            owner = inner.text("owner", ACCOUNT, "write an account name", default="root")
            group = inner.text("group", ACCOUNT, "write a group name", default="root")
            if ("owner" in inner.value) != ("group" in inner.value):
                inner.problem("owner", inner.value, "give owner and group together")
            inner.text("reason", r".+", "say why", default="default")
            inner.finish()
            found[str(path)] = Access(owner, group, int(mode, 8) if mode else None)
        return found

    def _venvs(self, table: Table) -> tuple[Venv, ...]:
        value = table.take("python", {})
        if not value:
            return ()
        inner = Table(value, where=f"{self.where}: python", problems=self.problems)
        path = inner.text("venv", ABSOLUTE, "write the absolute path of the virtual environment")
        name = inner.text("requirements", r"[a-z0-9.-]+\.lock", "write the name of the lock file beside layer.yaml")
        inner.finish()
        requirements = self.directory / name
        if name and not requirements.is_file():
            inner.problem("requirements", name, "there is no such file beside layer.yaml: nox -s lock writes it")
            return ()
        return (Venv(path, requirements),) if path and name else ()

    def _commands(self, table: Table) -> tuple[Command, ...]:
        entries = table.take("commands", ())
        if not isinstance(entries, list | tuple):
            table.problem("commands", entries, "write a list of {run: [...], reason: ...}")
            return ()
        commands = []
        for index, entry in enumerate(entries):
            inner = Table(entry, where=f"{self.where}: commands[{index}]", problems=self.problems)
            argv = inner.strings_repeated("run", "write the command as a list of words")
            commands.append(Command(argv, inner.text("reason", r".{10,}", "say why no declaration can do it")))
            inner.finish()
        return tuple(commands)

    def _nodes(self, access: Mapping[str, Access], *, allowed: set[str]) -> tuple[Node, ...]:
        for path in sorted(self.directory.iterdir()):
            if path.name not in allowed:
                self.problems.append(f"{self.directory.name}/{path.name}: stray file: move it below rootfs/ or remove it")
        root = self.directory / "rootfs"
        nodes = []
        for path in sorted(root.rglob("*")) if root.is_dir() else ():
            if "__pycache__" in path.parts:
                continue
            inside = "/" + path.relative_to(root).as_posix()
            if path.is_symlink():
                nodes.append(self._node(inside, "link", target=path.readlink().as_posix(), access=access))
            elif path.is_file():
                nodes.append(self._file(path, inside, access))
            elif inside in access:
                nodes.append(self._node(inside, "directory", access=access))
        return tuple(nodes)

    def _file(self, path: Path, inside: str, access: Mapping[str, Access]) -> Node:
        content = path.read_bytes()
        if path.suffix == TEMPLATE_SUFFIX:
            inside = inside.removesuffix(TEMPLATE_SUFFIX)
            try:
                content = self.environment.from_string(content.decode()).render(spec=self.spec).encode()
            except (jinja2.TemplateError, UnicodeDecodeError) as error:
                line = getattr(error, "lineno", None)
                where = f", line {line}" if line else ""
                self.problems.append(f"{path.relative_to(self.directory.parent)}{where}: {error}: correct the template")
        return self._node(inside, "file", content=content, access=access)

    def _node(
        self, inside: str, kind: str, *, access: Mapping[str, Access], content: bytes = b"", target: str = ""
    ) -> Node:
        return Node(inside, kind, content, target, access.get(inside, Access()), self.directory.name)


def _check_overlaps(layers: Sequence[Layer], problems: list[str]) -> None:
    owner: dict[str, str] = {}
    for layer in layers:
        for node in layer.nodes:
            if node.path in owner and node.path not in layer.replaces:
                problems.append(
                    f"{layer.name}: {node.path}: {owner[node.path]} lays it too: "
                    "list it under replaces in the later layer, or remove one"
                )
            owner[node.path] = layer.name
        for path in layer.replaces:
            if path in {node.path for node in layer.nodes} and not any(
                path in {node.path for node in earlier.nodes} for earlier in layers[: layers.index(layer)]
            ):
                problems.append(f"{layer.name}: replaces: {path}: no earlier layer lays it: remove the entry")


def pack(nodes: Iterable[Node], *, epoch: int) -> bytes:
    """Return a tar archive of the nodes: sorted, owners by name, every time stamp ``epoch``."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for node in sorted(nodes, key=lambda node: node.path):
            info = tarfile.TarInfo(str(PurePosixPath(node.path).relative_to("/")))
            info.mtime = epoch
            info.mode = node.mode if node.kind != "link" else 0o777
            info.uname, info.gname = node.access.owner, node.access.group
            if node.kind == "link":
                info.type, info.linkname = tarfile.SYMTYPE, node.target
            elif node.kind == "directory":
                info.type = tarfile.DIRTYPE
            else:
                info.size = len(node.content)
            archive.addfile(info, io.BytesIO(node.content) if node.kind == "file" else None)
    return buffer.getvalue()
