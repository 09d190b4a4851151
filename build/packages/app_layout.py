"""Where a Django project has what the image starts: manage.py, the settings module, the callable, the lock.

Each function returns problems or remedies for `nox -s bundle`. Files are given by their paths in the project.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from build.packages.app_contract import NAME, AppContract

ENTRY, LOCK = "manage.py", "requirements.lock"
# What other tools call their lock, and how they write it for pip, with hashes.
EXPORTS = {
    "uv.lock": f"uv export --format requirements-txt --no-dev --no-emit-project -o {LOCK}",
    "poetry.lock": f"poetry export --only main -o {LOCK} (poetry-plugin-export)",
    "pdm.lock": f"pdm export --prod -o {LOCK}",
    "Pipfile.lock": f"pipenv requirements --hash > {LOCK}",
}
# Of what a project's own files list, without a lock.
SOURCES = (
    "requirements.in", "requirements/production.in", "requirements/production.txt", "requirements.txt", "pyproject.toml",
)  # fmt: skip

Files = Mapping[str, Path]


def lock_remedy(directory: Path) -> str:
    """Return the command that writes the lock of a project without one, by the tool that the project uses."""
    for name, command in EXPORTS.items():
        if (directory / name).is_file():
            return f"{command}, from {name}"
    source = next((name for name in SOURCES if (directory / name).is_file()), "")
    return f"pip-compile --generate-hashes --output-file={LOCK}{f' {source}' if source else ''}, with Python 3.13"


def entry_point_problems(directory: Path) -> Iterator[str]:
    """Yield what is wrong with manage.py."""
    try:
        content = (directory / ENTRY).read_bytes()
    except OSError:
        below = sorted(path.parent.relative_to(directory).as_posix() for path in directory.glob(f"*/{ENTRY}"))
        where = f": bundle the directory that has it ({', '.join(below)})" if below else ""
        yield f"{ENTRY} is missing from the application's directory{where}"
        return
    try:
        ast.parse(content, ENTRY)
    except (SyntaxError, ValueError) as error:
        yield f"{ENTRY}: {error}: it must be valid Python"


def entry_problems(files: Files, contract: AppContract, wsgi: str) -> Iterator[str]:
    """Yield problems with the callable and the settings module. ``wsgi`` is the image's default callable."""
    yield from _callable_problems(files, contract.callable or wsgi)
    top = contract.settings.split(".")[0]
    # Settings may be in a package of the lock.
    inside = any(name.startswith((f"{top}/", f"{top}.py")) for name in files)
    if contract.settings and inside and _module(files, contract.settings) is None:
        yield (
            f"the settings module is {contract.settings}, but the application has no such file: "
            f"correct manage.py, or entry.settings of {NAME}"
        )
    manage = files.get(ENTRY)
    if not contract.settings and manage and b"DJANGO_SETTINGS_MODULE" in manage.read_bytes():
        yield (
            f"{ENTRY} chooses the settings module while it runs, and neither wsgi.py nor asgi.py names one: "
            f"write it into {NAME} (entry: {{settings: MODULE}})"
        )


def _module(files: Files, name: str) -> Path | None:
    """Return the file of a module of the application."""
    stem = name.replace(".", "/")
    return files.get(f"{stem}.py") or files.get(f"{stem}/__init__.py")


def _callable_problems(files: Files, entry: str) -> Iterator[str]:
    """Yield why the application server cannot start a callable."""
    if not entry:
        return
    module, _colon, name = entry.partition(":")
    source = _module(files, module)
    if source is None:
        paths = (path for path in files if PurePosixPath(path).name == "wsgi.py")
        modules = sorted(path.removesuffix(".py").replace("/", ".") for path in paths)
        known = f"; there is {', '.join(f'{other}:application' for other in modules)}" if modules else ""
        yield (
            f"the application server starts {entry}, but the application has no module {module}{known}: "
            f"write the callable into {NAME} (entry: {{wsgi: MODULE:CALLABLE}})"
        )
        return
    path = next(path for path, file in files.items() if file == source)
    try:
        tree = ast.parse(source.read_bytes(), str(source))
    except (SyntaxError, ValueError) as error:
        yield f"{path}: {error}: it must be valid Python"
        return
    names = set(_names(tree.body))
    if name not in names and "*" not in names:
        yield f"{path} has no {name}, but the application server starts {entry}: define it there"


def _names(body: Sequence[ast.stmt]) -> Iterator[str]:
    """Return the names that a module defines, also below if and try; ``*`` if it imports all names of another module."""
    for statement in body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name).partition(".")[0] for alias in statement.names)
        elif isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield statement.name
        elif isinstance(statement, ast.If | ast.Try | ast.With):
            yield from _names([*statement.body, *getattr(statement, "orelse", []), *getattr(statement, "finalbody", [])])
            for handler in getattr(statement, "handlers", []):
                yield from _names(handler.body)
        else:
            yield from (node.id for node in ast.walk(statement) if isinstance(node, ast.Name))


def notices(files: Files) -> Iterator[str]:
    """Yield what does not stop a deployment, but may surprise: translations that are not compiled."""
    texts = [PurePosixPath(path) for path in files if path.endswith(".po") and "/LC_MESSAGES/" in f"/{path}"]
    if missing := sorted(str(path) for path in texts if str(path.with_suffix(".mo")) not in files):
        yield f"translations without a compiled file (.mo), which have no effect: {', '.join(missing[:3])}: compilemessages"
