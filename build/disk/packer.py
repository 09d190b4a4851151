"""Packer: found on the host or compiled from locked sources, and configured by one JSON variables file.

This module prepares a working directory and returns the command that starts Packer there. The disk stage starts and
monitors it and checks the result: Packer reports success whenever QEMU ends, for any reason.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from build.core import files, host, log, run
from build.core.errors import HostError, StepFailed
from build.machines.acceleration import QEMU, Accelerator

OLDEST = (1, 6, 6)
# Since 1.10 Packer bundles no builder: the template has to require the plugin, which older ones reject or bundle.
FIRST_WITHOUT_BUILDERS = (1, 10, 0)
# The first Go that downloads the toolchain required by a go.mod.
OLDEST_GO = (1, 21)
QEMU_PLUGIN = "github.com/hashicorp/qemu"
PACKER_MODULE = "github.com/hashicorp/packer"
PLUGIN_MODULE = "github.com/hashicorp/packer-plugin-qemu"
PLUGIN_FILE = "packer-plugin-qemu_v*_x5.*_linux_*"

ANSWER_SECONDS = 60
VALIDATE_SECONDS = 120
COMPILE_SECONDS = 5400

GET_PACKER = (
    "Debian 12: apt-get install --yes packer   (as root). Debian 13 has no such package: install Go "
    "(apt-get install --yes golang-go) to compile Packer once from packer/tools, or set $PACKER to the path of a Packer"
)
PACKAGE = host.Tool("packer", "packer", "run the Debian installer", stages=("disk",))
COMPILER = host.Tool("go", "golang-go", "compile Packer, which is not packaged in this Debian release", stages=("disk",))


@dataclass(frozen=True)
class Packer:
    """A Packer that can build the template: its file, version, and plugin directory (None: the builder is inside)."""

    path: Path
    version: tuple[int, int, int]
    plugins: Path | None = None

    @property
    def name(self) -> str:
        """The version as text, for messages and manifests."""
        return "Packer " + ".".join(map(str, self.version))


@dataclass(frozen=True, kw_only=True)
class Job:
    """An installation by Packer: from ``medium`` to an empty disk. Sizes are in MiB, the timeout in seconds.

    ``compact`` rewrites the disk without its unused clusters, ``compress`` also compresses them; ``network`` gives the
    guest network access, which Goldsmith's installer ISO never needs.
    """

    medium: Path
    medium_sha256: str
    accelerator: Accelerator
    disk_mib: int
    memory_mib: int
    timeout: float
    machine_type: str = "pc"
    compact: bool = True
    compress: bool = True
    network: bool = False
    qemu: str = QEMU


@dataclass(frozen=True)
class Workspace:
    """A directory in which Packer can be started, and the paths of its results."""

    directory: Path
    packer: Packer

    @property
    def disk(self) -> Path:
        """The installed disk; its directory exists only while Packer runs and after success."""
        return self.directory / OUTPUT / DISK

    @property
    def console(self) -> Path:
        """The installer's output on the first serial port."""
        return self.directory / CONSOLE

    @property
    def syslog(self) -> Path:
        """The installer's system log, from the second serial port."""
        return self.directory / SYSLOG

    @property
    def log(self) -> Path:
        """Packer's detailed log, with QEMU's command line and output."""
        return self.directory / DETAILS

    def argv(self, verb: str = "build") -> list[str]:
        """Return the command, to be run in ``directory`` with ``environment()``."""
        options = ["-color=false"] if verb == "build" else []
        return [str(self.packer.path), verb, *options, f"-var-file={VARIABLES}", "."]

    def environment(self) -> dict[str, str]:
        """Return the variables that keep Packer inside its directory and off the network."""
        plugins = {} if self.packer.plugins is None else {"PACKER_PLUGIN_PATH": str(self.packer.plugins)}
        return {
            "HOME": str(self.directory / HOME),
            # Relative on purpose: Packer and its plugins use UNIX sockets below it, whose paths are limited to 107
            # characters.
            "TMPDIR": TEMPORARY,
            "PACKER_CACHE_DIR": CACHE,
            "PACKER_LOG": "1",
            "PACKER_LOG_PATH": DETAILS,
            "PACKER_NO_COLOR": "1",
            "CHECKPOINT_DISABLE": "1",
            **plugins,
        }


OUTPUT, DISK = "output", "disk.qcow2"
MEDIUM = "medium.iso"
CONSOLE, SYSLOG, DETAILS = "console.log", "syslog.log", "packer.log"
VARIABLES = "variables.pkrvars.json"
HOME, TEMPORARY, CACHE = "home", "tmp", "cache"


def locate(*, tools: Path, cache: Path, chosen: str = "") -> Packer:
    """Return the Packer to use; compile the locked one if the host has no Packer but Go.

    ``chosen`` is the value of $PACKER; ``tools`` the directory of the Go module, ``cache`` keeps the compiled one.
    Raises HostError with the packages to install if there is neither.
    """
    existing = find(tools=tools, cache=cache, chosen=chosen)
    if existing is not None:
        return existing
    if not has_go():
        raise HostError("there is no Packer on this host", hint=GET_PACKER)
    return compile_locked(tools=tools, cache=cache)


def missing_tool(*, tools: Path, cache: Path, chosen: str = "") -> host.Tool | None:
    """Return the tool to install before :func:`locate` can return a Packer: Debian's package of it, or else Go.

    None if nothing is missing. Raises HostError if the chosen Packer cannot be used.
    """
    if find(tools=tools, cache=cache, chosen=chosen) is not None:
        return None
    if host.has_package(PACKAGE.package):
        return PACKAGE
    return None if has_go() else COMPILER


def find(*, tools: Path, cache: Path, chosen: str = "") -> Packer | None:
    """Return an existing Packer: the chosen one, one in PATH, or a compiled one; else None.

    Raises HostError if the chosen one cannot be used; an unsuitable Packer in PATH is skipped with a warning.
    """
    if chosen:
        path = shutil.which(chosen, path=run.search_path())
        if path is None:
            raise HostError(f"$PACKER names {chosen}, which is not an executable file", hint=GET_PACKER)
        return inspect(Path(path), tools=tools, cache=cache)
    path = shutil.which("packer", path=run.search_path())
    if path is not None:
        try:
            return inspect(Path(path), tools=tools, cache=cache)
        except HostError as error:
            log.warn(f"{error.brief}; looking for another Packer")
    return compiled(tools=tools, cache=cache)


def inspect(path: Path, *, tools: Path, cache: Path) -> Packer:
    """Return the Packer at ``path`` with its version and the plugins it needs; raise HostError if it is unsuitable."""
    version = packer_version(path)
    if version < OLDEST:
        raise HostError(f"{path} is {Packer(path, version).name}, older than the oldest supported version", hint=GET_PACKER)
    if version < FIRST_WITHOUT_BUILDERS:
        return Packer(path, version)
    plugins = installed_plugins(path) or plugin_directory(locked_directory(tools=tools, cache=cache))
    if plugins is None:
        raise HostError(
            f"{path} is {Packer(path, version).name} and lacks its qemu plugin",
            hint=f"{path} plugins install {QEMU_PLUGIN}   (once, needs the network)",
        )
    return Packer(path, version, plugins)


def packer_version(path: Path) -> tuple[int, int, int]:
    """Return the version of Packer. Raises HostError for other programs of that name (cracklib has one)."""
    done = run.run([path, "version"], timeout=ANSWER_SECONDS, env={"CHECKPOINT_DISABLE": "1"}, check=False)
    match = re.match(r"Packer v(\d+)\.(\d+)\.(\d+)", done.stdout)
    if done.returncode != 0 or match is None:
        raise HostError(f"{path} is not HashiCorp's Packer", details=run.tail(done.stdout + done.stderr, 3), hint=GET_PACKER)
    return int(match[1]), int(match[2]), int(match[3])


def installed_plugins(path: Path) -> Path | None:
    """Return the user's plugin directory if it contains the qemu plugin, else None."""
    done = run.run([path, "plugins", "installed"], timeout=ANSWER_SECONDS, env={"CHECKPOINT_DISABLE": "1"}, check=False)
    for line in done.stdout.splitlines():
        plugin = Path(line.strip())
        if plugin.match(f"{QEMU_PLUGIN}/{PLUGIN_FILE}"):
            return plugin.parents[len(Path(QEMU_PLUGIN).parts)]
    return None


def plugin_directory(compiled_into: Path) -> Path | None:
    """Return the directory of compiled plugins, or None."""
    plugins = compiled_into / "plugins"
    return plugins if any((plugins / QEMU_PLUGIN).glob(PLUGIN_FILE)) else None


def has_go() -> bool:
    """Return True if Go is installed in a version that can compile the locked tools."""
    go = shutil.which("go", path=run.search_path())
    if go is None:
        return False
    match = re.search(r"go(\d+)\.(\d+)", run.run([go, "version"], timeout=ANSWER_SECONDS, check=False).stdout)
    return match is not None and (int(match[1]), int(match[2])) >= OLDEST_GO


def locked_directory(*, tools: Path, cache: Path) -> Path:
    """Return the directory of the compiled tools: its name contains the digest of the lock."""
    lock = {name: files.sha256_file(tools / name) for name in ("go.mod", "go.sum")}
    return cache / f"packer-{files.digest(lock)[:16]}"


def compiled(*, tools: Path, cache: Path) -> Packer | None:
    """Return the locked Packer if it was compiled before."""
    directory = locked_directory(tools=tools, cache=cache)
    path = directory / "packer"
    return Packer(path, packer_version(path), plugin_directory(directory)) if path.exists() else None


def compile_locked(*, tools: Path, cache: Path) -> Packer:
    """Compile Packer and its plugin from the locked modules; needs about 5 min on two CPUs, once.

    Go checks every module against go.sum. The result is complete or absent. Raises StepFailed.
    """
    final = locked_directory(tools=tools, cache=cache)
    with files.lock(cache / f"{final.name}.lock", waiting="another run is compiling Packer: waiting for it"):
        existing = compiled(tools=tools, cache=cache)
        if existing is not None:
            return existing
        doing = "Compiling Packer and its qemu plugin from locked sources, once (some minutes)"
        with log.step(doing), files.scratch(cache) as scratch:
            compile_into(scratch, tools=tools)
            files.commit_directory(scratch, final)
    existing = compiled(tools=tools, cache=cache)
    if existing is None or existing.plugins is None:
        raise StepFailed(f"Packer was compiled, but {final} does not contain it")
    return existing


def compile_into(directory: Path, *, tools: Path) -> None:
    """Compile both programs into ``directory`` and let Packer install its plugin below ``directory/plugins``."""
    flags = ["-mod=readonly", "-trimpath", "-buildvcs=false"]
    run.run(
        ["go", "build", *flags, "-o", f"{directory}/", PACKER_MODULE, PLUGIN_MODULE],
        cwd=tools,
        timeout=COMPILE_SECONDS,
        contained=True,
        env={"CGO_ENABLED": "0", "GOTOOLCHAIN": "auto", "GOWORK": "off"},
        hint="check Go's proxy settings (go env GOPROXY), or use another Packer: " + GET_PACKER,
    )
    plugin, home = directory / Path(PLUGIN_MODULE).name, directory / HOME
    home.mkdir()
    run.run(
        [directory / "packer", "plugins", "install", "--path", plugin, QEMU_PLUGIN],
        timeout=VALIDATE_SECONDS,
        env={"CHECKPOINT_DISABLE": "1", "HOME": str(home), "PACKER_PLUGIN_PATH": str(directory / "plugins")},
    )
    plugin.unlink()
    files.remove_tree(home)


def variables(job: Job) -> dict[str, Any]:
    """Return the values of the template's variables; paths are relative to the workspace."""
    return {
        "iso": MEDIUM,
        "iso_checksum": f"sha256:{job.medium_sha256}",
        "qemu_binary": job.qemu,
        "accelerator": str(job.accelerator.kind),
        "machine_type": job.machine_type,
        "cpu": job.accelerator.cpu,
        "cpus": job.accelerator.cpus,
        "memory": job.memory_mib,
        "disk_size": f"{job.disk_mib}M",
        "output_directory": OUTPUT,
        "vm_name": DISK,
        "headless": True,
        "console_log": CONSOLE,
        "syslog_log": SYSLOG,
        "shutdown_timeout": f"{round(job.timeout)}s",
        "skip_compaction": not job.compact,
        "disk_compression": job.compress,
        "restrict": "off" if job.network else "on",
    }


def prepare(directory: Path, *, packer: Packer, templates: Path, job: Job) -> Workspace:
    """Prepare ``directory`` (which must exist) for one run of Packer and return the workspace.

    Raises HostError if its path cannot be passed to QEMU, and StepFailed if it contains files of an earlier run.
    """
    if "," in str(directory.resolve()) or "," in str(job.medium.resolve()):
        raise HostError(
            f"the path {directory} or {job.medium} contains a comma, which Packer cannot pass to QEMU",
            hint="move the checkout to a directory without one",
        )
    workspace = Workspace(directory, packer)
    if workspace.disk.parent.exists():
        raise StepFailed(f"{workspace.disk.parent} already exists", hint="use a separate directory for each run")
    sources = sorted(templates.glob("*.pkr.hcl"))
    if packer.version >= FIRST_WITHOUT_BUILDERS:
        sources += sorted((templates / "plugins").glob("*.pkr.hcl"))
    for source in sources:
        shutil.copyfile(source, directory / source.name)
    for name in (HOME, TEMPORARY, CACHE):
        (directory / name).mkdir()
    (directory / MEDIUM).symlink_to(job.medium.resolve())
    (directory / VARIABLES).write_text(json.dumps(variables(job), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return workspace


def validate(workspace: Workspace) -> None:
    """Check template and variables with Packer; raise StepFailed with its output."""
    run.run(
        workspace.argv("validate"), cwd=workspace.directory, env=workspace.environment(), timeout=VALIDATE_SECONDS,
        hint=f"{workspace.packer.name} does not accept packer/*.pkr.hcl with {VARIABLES}",
    )  # fmt: skip


def complaints(workspace: Workspace) -> str:
    """Return the errors of QEMU and Packer in the detailed log: one line each, without time stamps."""
    if not workspace.log.exists():
        return ""
    errors = []
    for line in workspace.log.read_text(encoding="utf-8", errors="replace").splitlines():
        match = re.search(r"(?:Qemu stderr: |ui error: |\[ERR(?:OR)?\] )(.*\S)", line)
        if match and match[1] not in errors:
            errors.append(match[1])
    return "\n".join(errors)
