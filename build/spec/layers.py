"""Layers: the directories of ``overlays/`` read, checked, rendered, and packed into deterministic archives.

A layer is ``NN-noun/layer.yaml`` and ``NN-noun/rootfs/`` mirroring ``/``. Owners and modes come from ``layer.yaml``
alone, never from the checkout. Unknown keys, stray files, a declaration that matches nothing and a path in two layers
are errors, all reported at once.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import jinja2

from build.core import files
from build.core.errors import SpecError
from build.core.yaml_table import Table, load_yaml, raise_problems
from build.spec import expected_yaml
from build.spec.golden_yaml import Spec
from build.spec.layer_yaml import LAYER_NAME, PROVIDED, Access, Command, Declared, read

TEMPLATE_SUFFIX = ".j2"
FILE_MODE = 0o644
DIRECTORY_MODE = 0o755
SYSUSERS_DIRECTORIES = ("/usr/lib/sysusers.d/", "/etc/sysusers.d/")
TMPFILES_DIRECTORIES = ("/usr/lib/tmpfiles.d/", "/etc/tmpfiles.d/")
DPKG_OPTIONS_DIRECTORY = "/etc/dpkg/dpkg.cfg.d/"
# The directory of a layer's parts for other layers.
PARTS = "with"
# In every image, whatever its layers ask for.
ALWAYS = ("apt", "debian-archive-keyring")


@dataclass(frozen=True)
class Venv:
    """A Python virtual environment in the image, filled from a hash-locked wheelhouse."""

    path: str
    requirements: Path


@dataclass(frozen=True)
class Node:
    """One path that a layer installs: a file with its content, a directory, or a symbolic link."""

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
    """One layer, read and checked, or a part of one that is there with another layer only.

    ``directory``: where its layer.yaml is; ``requires``: layers, or what layers provide; ``mounts``: the partitions that
    it needs, and the mount options of each.
    """

    name: str
    directory: Path
    requires: tuple[str, ...]
    provides: tuple[str, ...]
    mounts: Mapping[str, tuple[str, ...]]
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
        paths = {path for layer in self.layers for path in layer.early}
        return tuple(node for node in self.nodes if node.path in paths)

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
    """Read the layers that the spec names from ``root`` (the directory ``overlays/``), or from where the spec names.

    A layer's parts for other layers of the spec (``with/NN-noun/``) follow it. Raises SpecError listing every problem of
    every layer.
    """
    problems: list[str] = []
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False, trim_blocks=True, lstrip_blocks=True
    )
    reader = _Loader(root.parent, spec, environment, problems)
    layers = [layer for place in directories(root, spec, problems) if (layer := reader.load(place, place.name))]
    words = {word for layer in layers for word in (layer.name, *layer.provides)}
    layers = [each for layer in layers for each in (layer, *reader.parts(layer, words))]
    _check_overlaps(layers, problems)
    _check_provided(layers, spec, problems)
    _check_mounts(layers, spec, problems)
    own = all(problem.startswith(f"{spec.file}: ") for problem in problems)
    raise_problems(Path(spec.file) if own else root, problems)
    return Stack(tuple(layers))


def without(layers: Sequence[Layer], name: str) -> tuple[str, ...]:
    """Return the names of the layers that are left without ``name`` and those that require it, directly or not."""
    whole = [layer for layer in layers if f"/{PARTS}/" not in layer.name]
    gone = {name}
    while True:
        left = [layer for layer in whole if layer.name not in gone]
        words = {word for layer in left for word in (layer.name, *layer.provides)}
        unmet = {layer.name for layer in left if not words.issuperset(layer.requires)}
        if not unmet:
            return tuple(layer.name for layer in left)
        gone |= unmet


def directories(root: Path, spec: Spec, problems: list[str]) -> list[Path]:
    """Return the directories of the spec's layers, in order; a layer without one is a problem."""
    places = [spec.outside.get(name, root / name) for name in spec.layers]
    for place in places:
        if not place.is_dir():
            parent = root.name if place.parent == root else str(place.parent)
            there = [path.name for path in sorted(place.parent.glob("*/")) if LAYER_NAME.fullmatch(path.name)]
            remedy = f"correct the name; there are {', '.join(there)}" if there else "correct the path, or make the layer"
            problems.append(f"{spec.file}: layers: {place.name!r}: there is no such directory in {parent}/: {remedy}")
    return [place for place in places if place.is_dir()]


@dataclass(frozen=True)
class _Loader:
    """Reads the layers of a spec; every problem goes onto the common list."""

    checkout: Path
    spec: Spec
    environment: jinja2.Environment
    problems: list[str]

    def load(self, directory: Path, name: str) -> Layer | None:
        """Return the layer in a directory, or None for one whose layer.yaml cannot be read."""
        try:
            return _Reader(directory, name, self.checkout, self.spec, self.environment, self.problems).layer()
        except SpecError as error:
            self.problems.append(f"{error.brief}: {error.hint}")
            return None

    def parts(self, layer: Layer, words: Collection[str]) -> list[Layer]:
        """Return the parts of a layer that are for one of ``words``: layers, or what layers provide."""
        root = layer.directory / PARTS
        names = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
        for name in names:
            if not (LAYER_NAME.fullmatch(name) or re.fullmatch(PROVIDED, name)):
                self.problems.append(f"{layer.name}/{PARTS}/{name}: name the directory after a layer, or what one provides")
        parts = [self.load(root / name, f"{layer.name}/{PARTS}/{name}") for name in names if name in words]
        return [part for part in parts if part]


def _check_provided(layers: Sequence[Layer], spec: Spec, problems: list[str]) -> None:
    """Add a problem for what a layer requires and no layer provides, and for what two provide."""
    providers: dict[str, list[str]] = {}
    for layer in layers:
        for word in (layer.name, *layer.provides):
            providers.setdefault(word, []).append(layer.name)
    for word, names in providers.items():
        if len(names) > 1:
            problems.append(f"{spec.file}: layers: {' and '.join(names)} both provide {word!r}: remove one of them")
    for layer in layers:
        for word in layer.requires:
            if word not in providers:
                what = "it" if LAYER_NAME.fullmatch(word) else "a layer that provides it"
                problems.append(
                    f"{spec.file}: layers: {layer.name} requires {word!r}, which is not in the image: add {what}, "
                    f"or remove {layer.name}"
                )


def _check_mounts(layers: Sequence[Layer], spec: Spec, problems: list[str]) -> None:
    """Add a problem for a partition that a layer needs and the spec lacks, and for its mount options."""
    partitions = {partition.mount: partition.options for partition in spec.disk.partitions}
    for layer in layers:
        for mount, options in layer.mounts.items():
            if mount not in partitions:
                problems.append(f"{spec.file}: disk.partitions: {mount} is missing, and {layer.name} needs it: add it")
                continue
            for option in sorted(set(options) - set(partitions[mount])):
                problems.append(f"{spec.file}: disk.partitions: {mount} must be mounted {option} for {layer.name}: add it")


class _Reader:
    """Reads one layer; every problem goes onto the common list."""

    def __init__(
        self, directory: Path, name: str, checkout: Path, spec: Spec, environment: jinja2.Environment, problems: list[str]
    ) -> None:
        self.directory = directory
        self.name = name
        self.checkout = checkout
        self.spec = spec
        self.environment = environment
        self.problems = problems
        self.where = f"{name}/layer.yaml"

    def layer(self) -> Layer:
        table = Table(load_yaml(self.directory / "layer.yaml"), where=self.where, problems=self.problems)
        declared = read(table)
        venvs = self._venvs(declared)
        nodes = self._nodes(declared.access, allowed=self._beside(venvs))
        layer = Layer(
            name=self.name, directory=self.directory, requires=declared.requires, provides=declared.provides,
            mounts=declared.mounts, packages=declared.packages, nodes=nodes, early=declared.early, absent=declared.absent,
            replaces=declared.replaces, venvs=venvs, commands=declared.commands, tests=declared.tests,
        )  # fmt: skip
        table.finish()
        self._check_expected()
        self._check(table, layer, declared.access)
        return layer

    def _check(self, table: Table, layer: Layer, access: Mapping[str, Access]) -> None:
        paths = {node.path for node in layer.nodes}
        for key, named in (("paths", access), ("early", layer.early), ("replaces", layer.replaces)):
            for path in sorted(set(named) - paths):
                table.problem(key, path, "this layer's rootfs/ has no such path: correct or remove the entry")
        for path in sorted(set(layer.absent) & paths):
            table.problem("absent", path, "this layer installs the path itself: remove one of the two")
        for test in layer.tests:
            if not (self.checkout / test).is_file():
                table.problem("tests", test, "there is no such file: write the test or correct the name")

    def _check_expected(self) -> None:
        path = self.directory / expected_yaml.NAME
        try:
            if path.is_file():
                expected_yaml.read(path)
        except SpecError as error:
            self.problems += error.details.splitlines() or [f"{error.brief}: {error.hint}"]

    def _beside(self, venvs: Sequence[Venv]) -> set[str]:
        names = {"layer.yaml", "rootfs", "README.md", PARTS, expected_yaml.NAME}
        return names | ({"requirements.in"} | {venv.requirements.name for venv in venvs} if venvs else set())

    def _venvs(self, declared: Declared) -> tuple[Venv, ...]:
        path, name = declared.venv, declared.requirements
        requirements = self.directory / name
        if name and not requirements.is_file():
            remedy = "there is no such file beside layer.yaml: nox -s lock writes it"
            self.problems.append(f"{self.where}: python.requirements: {name!r}: {remedy}")
            return ()
        return (Venv(path, requirements),) if path and name else ()

    def _nodes(self, access: Mapping[str, Access], *, allowed: set[str]) -> tuple[Node, ...]:
        for path in sorted(self.directory.iterdir()):
            if path.name not in allowed:
                self.problems.append(f"{self.name}/{path.name}: stray file: move it below rootfs/ or remove it")
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
                self.problems.append(f"{self.name}/{path.relative_to(self.directory)}{where}: {error}: correct the template")
        return self._node(inside, "file", content=content, access=access)

    def _node(self, inside: str, kind: str, *, access: Mapping[str, Access], content: bytes = b"", target: str = "") -> Node:
        return Node(inside, kind, content, target, access.get(inside, Access()), self.name)


def _check_overlaps(layers: Sequence[Layer], problems: list[str]) -> None:
    owner: dict[str, str] = {}
    for layer in layers:
        for node in layer.nodes:
            if node.path in owner and node.path not in layer.replaces:
                problems.append(
                    f"{layer.name}: {node.path}: {owner[node.path]} installs it too: "
                    "list it under replaces in the later layer, or remove one"
                )
            owner[node.path] = layer.name
        for path in layer.replaces:
            if path in {node.path for node in layer.nodes} and not any(
                path in {node.path for node in earlier.nodes} for earlier in layers[: layers.index(layer)]
            ):
                problems.append(f"{layer.name}: replaces: {path}: no earlier layer installs it: remove the entry")


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


def requested_packages(spec: Spec, stack: Stack) -> tuple[str, ...]:
    """Return the names that the image asks for; their dependencies follow from them."""
    return tuple(sorted({*stack.packages, *spec.packages, *ALWAYS, spec.kernel.package}))


def request_digest(spec: Spec, stack: Stack) -> str:
    """Return the hash of the question that a package lock answers."""
    return files.digest({"release": spec.release, "packages": requested_packages(spec, stack)})
