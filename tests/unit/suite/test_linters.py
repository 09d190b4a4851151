"""The project's rules that can be checked automatically: style, types, imports, and names that no file may contain."""

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
from build.core import run
from tests.packers import packers

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "build"
LINT_SECONDS = 300
ASK_SECONDS = 60
# A shell script by its first line, or a part of one that names its shell for shellcheck.
SHELL_SCRIPT = re.compile(r"\A#! ?/(usr/)?bin/(env )?(ba|da)?sh\b|^# shellcheck shell=", re.MULTILINE)

# Words that codespell takes for typing errors: each is a name, or an error that a test makes or reads on purpose.
WORDS = {
    "atleast": "a wrong key, in a test", "bootup": "systemd's own word", "chage": "a program", "gost": "a cipher",
    "iif": "a keyword of nftables", "missmatch": "as Proxmox VE writes it", "ngnix": "a wrong name, in a test",
    "pasword": "a wrong name, in a test", "permited": "as rsyslog writes it", "te": "a header of HTTP",
}  # fmt: skip
# Texts of others, and data.
NOT_OURS = re.compile(r"LICENSE|.+\.(lock|sum|json|svg)|tests/data/.+|\.ci/.+\.txt")

# From the lowest to the highest. A package imports only from packages on lower floors; packages of one floor do not know
# each other.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("core",),
    ("packages",),
    ("spec", "vulnerabilities"),
    ("machines", "media", "rootfs"),
    ("disk", "verify"),
    ("artifact",),
    ("report", "proxmox"),
    ("pipeline", "release"),
    ("publish", "clone", "audit", "faults", "reproduce"),
    ("drift", "bench", "replace"),
    ("fleet",),
    ("cli",),
)
# Modules of the package itself: the version, and the entry point.
OUTSIDE = {"__init__", "__main__"}

# What starts other programs; build/core/run.py alone may use it.
PROCESS_MODULES = {"subprocess", "pty", "multiprocessing", "pexpect"}
PROCESS_CALLS = {
    *(f"os.{name}" for name in ("system", "popen", "fork", "forkpty", "posix_spawn", "execv", "execve", "execvp")),
    "asyncio.create_subprocess_exec", "asyncio.create_subprocess_shell",
}  # fmt: skip


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """Return a module's name below ``build``, such as ``rootfs.base``."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imported(path: Path) -> set[str]:
    """Return the modules of our package that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("build."):
            module = str(node.module).removeprefix("build.")
            names |= {module} if is_module(module) else {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name.removeprefix("build.") for alias in node.names if alias.name.startswith("build.")}
    return {name for name in names if is_module(name)}


def is_module(name: str) -> bool:
    return (PACKAGE / f"{name.replace('.', '/')}.py").is_file()


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
        pytest.fail(f"{name} is not installed beside this Python\n  -> nox -s tests, or install .ci/requirements/checks.txt")
    return [sys.executable, "-m", name]


# --- tools ------------------------------------------------------------------------------------------------------------


def test_ruff_is_content() -> None:
    done = run.run([*tool("ruff"), "check", "--no-cache", "--quiet", "--output-format=concise", "."],
                   cwd=ROOT, timeout=LINT_SECONDS, check=False)  # fmt: skip
    assert done.returncode == 0, f"\n{done.stdout}{done.stderr}"


def test_ruff_format_is_content() -> None:
    done = run.run([*tool("ruff"), "format", "--no-cache", "--check", "."], cwd=ROOT, timeout=LINT_SECONDS, check=False)
    assert done.returncode == 0, f"\n{done.stdout}{done.stderr}\n  -> ruff format ."


@pytest.mark.slow
def test_mypy_is_content() -> None:
    done = run.run([*tool("mypy"), "--no-error-summary"], cwd=ROOT, timeout=LINT_SECONDS, check=False)
    assert done.returncode == 0, f"\n{done.stdout}{done.stderr}"


def shell_scripts() -> list[str]:
    return [str(path.relative_to(ROOT)) for path, text in texts() if path.suffix != ".py" and SHELL_SCRIPT.search(text)]


def test_shellcheck_is_content() -> None:
    if shutil.which("shellcheck") is None:
        pytest.fail("shellcheck is not installed\n  -> apt-get install shellcheck, or: nox -s tests")
    done = run.run(["shellcheck", "--external-sources", "--format=gcc", *shell_scripts()], cwd=ROOT, timeout=LINT_SECONDS,
                   check=False)  # fmt: skip
    assert done.returncode == 0, f"\n{done.stdout}{done.stderr}"


def test_shell_scripts_are_found_by_what_they_are() -> None:
    assert {
        ".ci/run", "overlays/80-firstboot/rootfs/usr/lib/golden/names", "overlays/10-base/rootfs/etc/profile.d/golden.sh",
        "preseed/initrd/usr/lib/live-installer/zz-golden", "tests/audit/stock.sh",
    } <= {*shell_scripts()}  # fmt: skip
    names = [str(path.relative_to(ROOT)) for path in project_files() if path.suffix in {".sh", ".postinst"}]
    assert {*names} <= {*shell_scripts()}, "a script has neither a first line with its shell nor `# shellcheck shell=`"


def test_codespell_is_content() -> None:
    names = [str(path.relative_to(ROOT)) for path, _ in texts()]
    own = [name for name in names if not NOT_OURS.fullmatch(name)]
    done = run.run([*tool("codespell_lib"), "--ignore-words-list", ",".join(WORDS), *own], cwd=ROOT, timeout=LINT_SECONDS,
                   check=False)  # fmt: skip
    assert done.returncode == 0, f"\n{done.stdout}{done.stderr}"


def test_packer_fmt_is_content() -> None:
    found = packers()
    if not found:
        pytest.skip("there is no Packer on this host; the contract tests say how to get one")
    for directory in sorted({path.parent for path in (ROOT / "packer").rglob("*.pkr.hcl")}):
        done = run.run([found[0].path, "fmt", "-check", "-diff", directory], timeout=ASK_SECONDS, check=False)
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


# --- imports ----------------------------------------------------------------------------------------------------------


def test_every_module_is_in_a_package_that_has_a_floor() -> None:
    placed = [name for floor in FLOORS for name in floor]
    assert len(placed) == len(set(placed)), "a package is on two floors"
    assert {path.parent.name for path in modules() if path.parent != PACKAGE} == set(placed)
    assert {path.stem for path in modules() if path.parent == PACKAGE} == OUTSIDE


@pytest.mark.parametrize("path", [path for path in modules() if path.parent != PACKAGE], ids=name_of)
def test_imports_go_down(path: Path) -> None:
    floor_of = {name: number for number, floor in enumerate(FLOORS) for name in floor}
    own = path.parent.name
    wrong = sorted(
        name for name in imported(path)
        if (package := name.split(".")[0]) != own and floor_of[package] >= floor_of[own]
    )  # fmt: skip
    assert not wrong, f"{name_of(path)} imports from a package that is not below its own: {wrong}"


def test_imports_have_no_circle() -> None:
    graph = {name_of(path): imported(path) for path in modules()}
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("package", [name for floor in FLOORS for name in floor])
def test_a_package_says_what_it_does_and_exports_nothing(package: str) -> None:
    tree = ast.parse((PACKAGE / package / "__init__.py").read_text(encoding="utf-8"))
    assert len(tree.body) == 1
    assert re.fullmatch(r"[^\n]+\.\n\nImports (?:from|nothing) [^\n]+\.", ast.get_docstring(tree) or "")


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_only_run_starts_programs(path: Path) -> None:
    if name_of(path) == "core.run":
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


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_json_is_parsed_in_one_place(path: Path) -> None:
    """Other readers forget the texts for which json.loads raises RecursionError, or a ValueError without a line."""
    if name_of(path) != "core.json_text":
        assert not re.search(r"\bjson\.loads?\(", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_modules_promise_something_and_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), "a module's docstring describes what the module guarantees"
    assert len(text.splitlines()) <= 400


def test_a_unit_test_is_in_the_directory_of_its_package() -> None:
    assert not [path.name for path in (ROOT / "tests" / "unit").glob("test_*.py")]


# --- what no file may name --------------------------------------------------------------------------------------------


def hosts_of_this_machine() -> set[str]:
    """Return the names of the archives and registries that this machine is configured to use."""
    questions = (
        ["apt-get", "indextargets", "--format", "$(REPO_URI)"],
        [sys.executable, "-m", "pip", "config", "list"],
        ["npm", "config", "get", "registry"],
        ["go", "env", "GOPROXY", "GOSUMDB"],
    )
    said = [value for name, value in os.environ.items() if name.upper() in {"PIP_INDEX_URL", "HTTP_PROXY", "HTTPS_PROXY"}]
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
    # The image has a /root too: that name does not identify this machine.
    own |= {home} if home not in ("/", "/root") else set()
    pattern = re.compile("|".join(rf"(?<![\w.-]){re.escape(name)}(?![\w-])" for name in own) or r"(?!)")
    named = [str(path.relative_to(ROOT)) for path, text in texts() if pattern.search(text)]
    assert not named, f"these files name {' or '.join(own)}"


def test_texts_end_with_a_line_and_have_no_stray_white_space() -> None:
    stray = re.compile(r"[ \t]+$|\r|\n\n\Z|[^\n]\Z", re.MULTILINE)
    kinds = {".py", ".hcl", ".yaml", ".toml", ".md", ".j2", ".cfg", ".conf"}
    wrong = [str(path.relative_to(ROOT)) for path, text in texts() if path.suffix in kinds and stray.search(text)]
    assert not wrong
