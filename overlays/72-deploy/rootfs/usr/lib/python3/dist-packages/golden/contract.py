"""The contract of an application: what golden-app.yaml in its root declares, read by one program everywhere.

`nox -s bundle` reads it on the workstation, the build of the image for the application that is in it, golden-deploy on the
clone. Without the file every key has its default: nothing beyond the database, the web server and its files is opened.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from golden import site_yaml
from golden.contract_keys import CLOSED_SUFFIXES, CONTRACT, MODULE
from golden.fields import MOST_FAULTS
from golden.site_table import Fault, Schema, shown

NAME = "golden-app.yaml"
LARGEST_FILE = 64 * 1024
# A settings module of this name beside one for development is what the project's authors mean to be served.
DEVELOPMENT, PRODUCTION = ("dev", "develop", "development", "local"), ("production", "prod")


def load(directory: Path) -> tuple[dict[str, Any], list[Fault]]:
    """Return the contract of the application in ``directory``, every key present, and all that is wrong with it.

    Without a file it is the default one. The entry and the settings module are looked up where they are not declared.
    """
    path = directory / NAME
    try:
        with path.open("rb") as stream:
            content = stream.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        content = b""
    except OSError as error:
        return _default(), [Fault(NAME, error.strerror or "", "make it a readable text file")]
    contract, faults = parse(content)
    complete_entry(contract, directory)
    return contract, faults


def parse(content: bytes) -> tuple[dict[str, Any], list[Fault]]:
    """Return the contract that a file's content declares, and every fault."""
    faults: list[Fault] = []
    if len(content) > LARGEST_FILE:
        return _default(), [Fault(NAME, f"more than {LARGEST_FILE} bytes", "shorten it")]
    try:
        found = site_yaml.load(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return _default(), [Fault(NAME, f"byte {error.start} is not UTF-8", "save it as UTF-8")]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line = f"line {mark.line + 1}" if mark else "the file"
        return _default(), [Fault(NAME, line, f"correct the YAML there: {site_yaml.message(error)}")]
    contract = CONTRACT.read({} if found is None else found, "", faults)
    faults += _joint_faults(contract)
    return contract, faults[:MOST_FAULTS]


def _default() -> dict[str, Any]:
    return CONTRACT.read({}, "", [])


def _joint_faults(contract: Mapping[str, Any]) -> Iterator[Fault]:
    """Yield what is wrong between keys."""
    entry, web = contract["entry"], contract["web"]
    if entry["wsgi"] and entry["asgi"]:
        yield Fault("entry.asgi", entry["asgi"], "declare wsgi or asgi: an application has one entry")
    if web["websockets"] and not entry["asgi"]:
        yield Fault("web.websockets", shown(web["websockets"]), "WebSockets need entry.asgi")
    yield from _path_faults(web)
    yield from _health_faults(contract)
    suffixes = [suffix for kind in contract["media"]["kinds"] for suffix in kind["suffixes"]]
    for suffix in _repeated(suffixes):
        yield Fault("media.kinds", suffix, "two kinds have this suffix: remove one")
    for kind in contract["media"]["kinds"]:
        if kind["send"] == "inline" and re.search(r"html|xml|javascript|svg", kind["type"]):
            yield Fault("media.kinds", kind["type"], "a browser runs what is in it: send it as attachment")
    for name in sorted({*contract["processes"]} & {*contract["jobs"]}):
        yield Fault("jobs", name, "a process has this name: choose another one")


def _path_faults(web: Mapping[str, Any]) -> Iterator[Fault]:
    """Yield the paths for which two rules would hold."""
    paths = [rule["path"] for rule in web["paths"]]
    for path in _repeated(paths):
        yield Fault("web.paths", path, "the path is there twice: join the two")
    for path in sorted({*paths} & {*web["websockets"]}):
        yield Fault("web.websockets", path, "the path is in web.paths as well: remove one of the two")
    for closed in web["administration"]:
        for path in (*paths, *web["websockets"]):
            if path == closed or path.startswith(f"{closed}/"):
                yield Fault("web.paths", path, f"web.administration closes {closed} and all below it: remove one of the two")


def _health_faults(contract: Mapping[str, Any]) -> Iterator[Fault]:
    """Yield the paths of the health check that the web server would not pass on by the rules of the same contract."""
    health, web = contract["health"], contract["web"]
    suffixes = [suffix for suffix in CLOSED_SUFFIXES if suffix not in web["suffixes"]]
    private = [f"/media/{directory}/" for directory in contract["media"]["private"]]
    for key, path in (("health.path", health["path"]), *(("health.pages", page) for page in health["pages"])):
        file = path.startswith(("/static/", "/media/"))
        if key == "health.path" and file:
            yield Fault(key, path, "a file is not an answer of the application: name a page")
        elif any(path == closed or path.startswith(f"{closed}/") for closed in web["administration"]):
            yield Fault(key, path, "web.administration closes it: name another page")
        elif path.startswith((*private, *web["websockets"])):
            yield Fault(key, path, "a browser cannot get it as a page (media.private, web.websockets): name another one")
        elif not file and re.search(rf"\.(?:{'|'.join(suffixes)})$", path, re.IGNORECASE):
            yield Fault(key, path, "the web server closes this suffix: add it to web.suffixes, or name another page")
        elif not file and "GET" not in _methods_of(web, path, health["path"]):
            yield Fault(key, path, "web.methods or web.paths have no GET for it: add GET, or name another page")


def _methods_of(web: Mapping[str, Any], path: str, health: str) -> Sequence[str]:
    """Return the methods that the web server passes on for a path (golden/web_rules.py)."""
    own = [rule for rule in web["paths"] if rule["path"] == path]
    if not own and path == health and not path.endswith("/"):
        return ["GET"]
    above = [rule for rule in web["paths"] if rule["path"].endswith("/") and path.startswith(rule["path"])]
    longest = max(own or above, key=lambda rule: len(rule["path"]), default=web)
    found: Sequence[str] = longest["methods"] or web["methods"]
    return found


def _repeated(values: Sequence[str]) -> list[str]:
    return sorted({value for value in values if values.count(value) > 1})


def complete_entry(contract: dict[str, Any], directory: Path) -> None:
    """Fill in the settings module and the WSGI callable of the project, where they are not declared."""
    entry = contract["entry"]
    named = _named_in(directory / "manage.py")
    entry["settings"] = entry["settings"] or _served_settings(directory, named)
    if entry["wsgi"] or entry["asgi"] or not entry["settings"]:
        return
    above = _beside(entry["settings"])
    others = [path.relative_to(directory) for path in [*directory.glob("*/wsgi.py"), *directory.glob("wsgi.py")]]
    # One that is not beside the settings has to be the only one.
    for path in (*(place / "wsgi.py" for place in above), *(others if len(others) == 1 else ())):
        if (directory / path).is_file():
            entry["wsgi"] = f"{'.'.join(path.with_suffix('').parts)}:application"
            return


def _beside(module: str) -> list[Path]:
    """Return the packages that a settings module is in, the innermost first.

    mysite.settings and mysite.settings.production belong to mysite/wsgi.py.
    """
    parts = module.split(".")[:-1]
    return [Path(*parts[:length]) for length in range(len(parts), 0, -1)]


def _served_settings(directory: Path, named: str) -> str:
    """Return the settings module that a server of the project uses; golden_app/adapt.py (layer 40-app) has the same rule.

    It is the one that wsgi.py names, otherwise asgi.py, otherwise manage.py (``named``). Where that is one for development
    and one for production is beside it, the latter.
    """
    places = [*(directory / place for place in _beside(named)), *sorted(path.parent for path in directory.glob("*/wsgi.py")),
              directory]  # fmt: skip
    found = (_named_in(place / file) for file in ("wsgi.py", "asgi.py") for place in places)
    module = next((name for name in found if name), named)
    package, _dot, last = module.rpartition(".")
    if package and last in DEVELOPMENT:
        beside = directory.joinpath(*package.split("."))
        production = (name for name in PRODUCTION if (beside / f"{name}.py").is_file() or (beside / name).is_dir())
        module = next((f"{package}.{name}" for name in production), module)
    return module


def _named_in(path: Path) -> str:
    """Return the settings module that a file sets in the environment, or nothing."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
    for node in ast.walk(tree):
        words: Sequence[ast.expr] = ()
        if isinstance(node, ast.Call):
            words = node.args
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
            words = (node.targets[0].slice, node.value)
        texts = [word.value for word in words if isinstance(word, ast.Constant)]
        if len(texts) == 2 and texts[0] == "DJANGO_SETTINGS_MODULE" and re.fullmatch(MODULE.pattern, str(texts[1])):
            return str(texts[1])
    return ""


def schema() -> Schema:
    """Return the JSON Schema of golden-app.yaml."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": NAME, **CONTRACT.schema()}
