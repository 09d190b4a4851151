"""The rules of the house that a machine can check: style, types, who imports whom, and what no file may name."""

from __future__ import annotations

import ast
import graphlib
import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import build
from build import run

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "build"
LINT_SECONDS = 300
ASK_SECONDS = 60

# From the inside out. A module imports only from rings further in, or from its own without a circle.
RINGS = {
    "plumbing": {
        "errors", "log", "run", "files",
    },
    "nouns": {
        "tables", "spec", "lock", "layers", "preseed", "project", "cache", "cpio", "debs", "artifact", "report",
        "requirements", "cluster", "roles", "labels", "faults_report", "audit_ledger", "audit_results",
        "audit_tailoring", "clone_request", "release_policy", "wheel_lock", "sbom", "provenance", "statement",
        "versions", "sources", "accepted", "vulnerability_data", "release_entry", "release_ledger", "release_state",
        "release_mirror", "release_gates", "release_request", "cases", "boot_plot", "inventory", "plots", "pages",
        "stored", "compare", "compare_text", "compare_page", "debian_changelog",
    },
    "engines": {
        "apt", "accel", "packer", "console", "host", "vm", "seed", "sealed", "initrd", "wheels", "container",
        "stories", "image_tests", "locksmith", "bundle", "pve", "pve_guest", "qm", "preflight", "publish_media",
        "publish_machine", "faults_machines", "audit_tools", "audit_place", "audit_field", "packer_proxmox",
        "clone_source", "clone_machine", "clone_reach", "drift_config", "drift_disk", "checkout", "origins",
        "signing", "updates", "debsecan", "vulnerabilities", "channels", "drift_channels", "release_git",
        "release_tag", "release_view", "release_moves", "disk_contents", "disk_difference", "git", "identities",
        "stocktaking", "changelogs", "release_notes", "desk",
    },
    "stages": {
        "base", "rootfs", "media", "disk", "verify", "inputs", "assemble", "plain", "publish", "proxmox_verify",
        "proxmox_build", "clone", "drift", "proof_checks", "proof", "releases", "prune", "release_rebuild",
    },
    "top": {
        "pipeline", "workshop", "doctor", "audit", "bench", "hardening", "faults", "ship", "clone_verb",
        "drift_verb", "proof_verbs", "words", "cli", "__main__", "updates_verb", "vulnerabilities_verb", "release_verbs",
        "reproduce", "reproduce_verb", "compare_verbs",
    },
}  # fmt: skip

# What starts other programs; build/run.py alone may use it.
PROCESS_MODULES = {"subprocess", "pty", "multiprocessing", "pexpect"}
PROCESS_CALLS = {
    *(f"os.{name}" for name in ("system", "popen", "fork", "forkpty", "posix_spawn", "execv", "execve", "execvp")),
    "asyncio.create_subprocess_exec", "asyncio.create_subprocess_shell",
}  # fmt: skip


def modules() -> list[Path]:
    return sorted(PACKAGE.glob("*.py"))


def imported(path: Path) -> set[str]:
    """Return the modules of our package that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "build":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("build."):
            names.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("build.")}
    return {name for name in names if (PACKAGE / f"{name}.py").exists()}


def project_files() -> list[Path]:
    """Return the files that are, or would be, in the repository."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        listed = run.run(
            ["git", "-c", f"safe.directory={ROOT}", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
            cwd=ROOT, timeout=ASK_SECONDS,
        ).stdout  # fmt: skip
        found = [ROOT / name for name in listed.split("\0") if name]
    else:
        found = [path for path in ROOT.rglob("*") if not any(part.startswith(".") for part in path.parts)]
    return [path for path in found if path.is_file() and not path.is_symlink()]


def texts() -> Iterator[tuple[Path, str]]:
    for path in project_files():
        try:
            yield path, path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def tool(name: str) -> list[str]:
    """Return how to start a linter of this Python; one that is missing is a failure, not a skip."""
    if importlib.util.find_spec(name) is None:
        pytest.fail(f"{name} is not installed beside this Python\n  -> python -m pip install {name}, or: nox -s tests")
    return [sys.executable, "-m", name]


# --- tools ------------------------------------------------------------------------------------------------------------


def test_ruff_is_content() -> None:
    done = run.run([*tool("ruff"), "check", "--no-cache", "--quiet", "--output-format=concise", "."],
                   cwd=ROOT, timeout=LINT_SECONDS, check=False)  # fmt: skip
    assert done.returncode == 0, f"\n{done.stdout}{done.stderr}"


def test_mypy_is_content() -> None:
    done = run.run([*tool("mypy"), "--no-error-summary"], cwd=ROOT, timeout=LINT_SECONDS, check=False)
    assert done.returncode == 0, f"\n{done.stdout}{done.stderr}"


def test_packer_fmt_is_content() -> None:
    packer = shutil.which("packer", path=run.search_path())
    if packer is None:
        pytest.skip("no packer in PATH; the contract tests say how to get one")
    for directory in sorted({path.parent for path in (ROOT / "packer").rglob("*.pkr.hcl")}):
        done = run.run([packer, "fmt", "-check", "-diff", directory], timeout=ASK_SECONDS, check=False)
        assert done.returncode == 0, f"\n{done.stdout}{done.stderr}"


# --- the package called build -----------------------------------------------------------------------------------------


def test_build_is_our_package() -> None:
    assert Path(str(build.__file__)).resolve() == PACKAGE / "__init__.py"


def test_ruff_looks_at_every_file_of_the_package() -> None:
    shown = run.run([*tool("ruff"), "check", "--show-files", "."], cwd=ROOT, timeout=LINT_SECONDS).stdout.splitlines()
    assert {str(path) for path in modules()} <= {str(Path(line).resolve()) for line in shown}


def test_gitignore_does_not_hide_the_package() -> None:
    lines = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert not {"build", "build/", "/build", "/build/", "build/*"} & {line.strip() for line in lines}


# --- who imports whom -------------------------------------------------------------------------------------------------


def test_every_module_has_its_ring() -> None:
    placed = [name for ring in RINGS.values() for name in ring]
    assert len(placed) == len(set(placed)), "a module stands in two rings"
    unplaced = {path.stem for path in modules()} - set(placed) - {"__init__"}
    assert not unplaced, f"say in RINGS where these belong: {sorted(unplaced)}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.stem)
def test_imports_point_inwards(path: Path) -> None:
    ring_of = {name: number for number, ring in enumerate(RINGS.values()) for name in ring}
    mine = ring_of.get(path.stem, -1 if path.stem == "__init__" else len(RINGS))
    outward = sorted(name for name in imported(path) if ring_of.get(name, 0) > mine)
    assert not outward, f"{path.stem} imports from a ring further out: {outward}"


def test_imports_have_no_circle() -> None:
    graph = {path.stem: imported(path) for path in modules()}
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.stem)
def test_only_run_starts_programs(path: Path) -> None:
    if path.stem == "run":
        return
    used: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            used += [alias.name for alias in node.names if alias.name.split(".")[0] in PROCESS_MODULES]
        elif isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in PROCESS_MODULES:
            used.append(str(node.module))
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in PROCESS_CALLS:
            used.append(ast.unparse(node))
    assert not used, f"{path.stem} starts programs by itself: {used}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.stem)
def test_modules_promise_something_and_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), "a module's docstring says what the module promises"
    assert len(text.splitlines()) <= 400


# --- what no file may name --------------------------------------------------------------------------------------------


def hosts_of_this_machine() -> set[str]:
    """Return the names of the archives and registries that this machine is configured to use."""
    questions = (
        ["apt-get", "indextargets", "--format", "$(REPO_URI)"],
        [sys.executable, "-m", "pip", "config", "list"],
        ["npm", "config", "get", "registry"],
        ["go", "env", "GOPROXY", "GOSUMDB"],
    )
    said = [
        value for name, value in os.environ.items() if name.upper() in {"PIP_INDEX_URL", "HTTP_PROXY", "HTTPS_PROXY"}
    ]
    for question in questions:
        if shutil.which(question[0]):
            said.append(run.run(question, timeout=ASK_SECONDS, check=False).stdout)
    found = {urlsplit(url).hostname or "" for url in re.findall(r"\b[a-z]+://[^\s'\",|]+", "\n".join(said))}
    return {host for host in found if "." in host and not host.startswith("127.")}


def test_no_file_names_this_machines_archives() -> None:
    hosts = hosts_of_this_machine()
    named = [f"{path.relative_to(ROOT)}: {host}" for path, text in texts() for host in hosts if host in text]
    assert not named, "the mirror is the host's; no file may name one"


def test_no_file_names_a_directory_of_this_machine() -> None:
    own = {str(ROOT)} if len(ROOT.parts) > 2 else set()
    home = str(Path.home())
    # The image has a /root too: that name says nothing about this machine.
    own |= {home} if home not in ("/", "/root") else set()
    pattern = re.compile("|".join(rf"(?<![\w.-]){re.escape(name)}(?![\w-])" for name in own) or r"(?!)")
    named = [str(path.relative_to(ROOT)) for path, text in texts() if pattern.search(text)]
    assert not named, f"these files name {' or '.join(own)}"


def test_texts_end_with_a_line_and_have_no_stray_white_space() -> None:
    stray = re.compile(r"[ \t]+$|\r|\n\n\Z|[^\n]\Z", re.MULTILINE)
    kinds = {".py", ".hcl", ".yaml", ".toml", ".md", ".j2", ".cfg", ".conf"}
    wrong = [str(path.relative_to(ROOT)) for path, text in texts() if path.suffix in kinds and stray.search(text)]
    assert not wrong
