"""Adapts the settings of a project to this machine: a function from settings to settings.

It replaces settings that can have only one value here: the locations of files and of the database, and DEBUG, so that no
traceback is shown. It adds settings that a project of `django-admin startproject` does not have. All others are unchanged.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MIDDLEWARE = "golden_app.middleware.surroundings"
STATIC_ROOT, MEDIA_ROOT = "/var/www/static", "/var/www/media"
ZONES = Path("/usr/share/zoneinfo")
# Django's default for uploads.
FILE_MODE = 0o644
# Settings with directories of the code.
OF_THE_CODE = ("BASE_DIR", "STATICFILES_DIRS", "TEMPLATES", "LOCALE_PATHS", "FIXTURE_DIRS")
POSTGRESQL = "django.db.backends.postgresql"
# Settings of a database with its location and the user; for SQLite, the others are dropped too.
PLACE = ("NAME", "USER", "PASSWORD", "HOST", "PORT")
# Keys of django-admin startproject start with this: they are committed to repositories.
INSECURE = "django-insecure-"
# HSTS and the redirection to HTTPS, which are nginx's.
SILENCED = ("security.W004", "security.W008")
MODULE = r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*"
# A module of this name beside one for development is the one for servers.
DEVELOPMENT, PRODUCTION = ("dev", "develop", "development", "local"), ("production", "prod")


def settings_module(code: Path) -> str:
    """Return the settings module that a server of the project uses; golden/contract.py (layer 72-deploy) has the same rule.

    It is the one that wsgi.py names, otherwise asgi.py, otherwise manage.py; empty when none does. If that is one for
    development, and one for production is in the same directory, it is the latter.
    """
    named = _named_in(code / "manage.py")
    parts = named.split(".")[:-1]
    above = [code.joinpath(*parts[:length]) for length in range(len(parts), 0, -1)]
    places = [*above, *sorted(path.parent for path in code.glob("*/wsgi.py")), code]
    found = (_named_in(place / file) for file in ("wsgi.py", "asgi.py") for place in places)
    module = next((name for name in found if name), named)
    package, _dot, last = module.rpartition(".")
    if package and last in DEVELOPMENT:
        beside = code.joinpath(*package.split("."))
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
        if len(texts) == 2 and texts[0] == "DJANGO_SETTINGS_MODULE" and re.fullmatch(MODULE, str(texts[1])):
            return str(texts[1])
    return ""


def adapted(given: Mapping[str, Any], *, hosts: str = "", role: str = "", secret: str = "") -> dict[str, Any]:
    """Return a project's settings for this machine.

    ``hosts``: its names, separated by blanks; ``role``: of the database, by default the application's; ``secret``: its key.
    """
    settings = dict(given)
    settings["DEBUG"] = False
    settings["ALLOWED_HOSTS"] = list(dict.fromkeys([*(given.get("ALLOWED_HOSTS") or []), *hosts.split()]))
    key = given.get("SECRET_KEY") or ""
    if secret and (not key or str(key).startswith(INSECURE)):
        settings["SECRET_KEY"] = secret
    settings["DATABASES"] = {**(given.get("DATABASES") or {}), "default": database(given, role)}
    for setting, directory in (("STATIC_ROOT", STATIC_ROOT), ("MEDIA_ROOT", MEDIA_ROOT)):
        settings |= moved(settings, str(given.get(setting) or ""), directory, str(given.get("BASE_DIR") or ""))
        settings[setting] = directory
    if given.get("STORAGES"):
        settings["STORAGES"] = storages(settings["STORAGES"])
    settings |= readable(given)
    if zone := given.get("TIME_ZONE"):
        settings["TIME_ZONE"] = time_zone(str(zone))
    for setting, address in (("STATIC_URL", "/static/"), ("MEDIA_URL", "/media/")):
        # Files on another host are that host's.
        if "//" not in str(given.get(setting) or ""):
            settings[setting] = address
    # nginx ends TLS and sets this header itself.
    settings["SECURE_PROXY_SSL_HEADER"] = ("HTTP_X_FORWARDED_PROTO", "https")
    for setting in ("SESSION_COOKIE_SECURE", "CSRF_COOKIE_SECURE"):
        settings.setdefault(setting, True)
    settings["SILENCED_SYSTEM_CHECKS"] = [*(given.get("SILENCED_SYSTEM_CHECKS") or []), *SILENCED]
    settings["MIDDLEWARE"] = [MIDDLEWARE, *(given.get("MIDDLEWARE") or [])]
    if logs := given.get("LOGGING"):
        settings["LOGGING"] = logging(logs)
    return settings


def moved(settings: Mapping[str, Any], root: str, target: str, base: str) -> dict[str, Any]:
    """Return the settings that name a file or directory below ``root``, with ``target`` in its place.

    Projects derive others from STATIC_ROOT and MEDIA_ROOT: locations of storages, of thumbnails, a list of built scripts.
    What is read from the code stays, and so does all when the project itself (``base``) is below the root.
    """
    place = Path(root)
    if not place.is_absolute() or place == Path("/") or (base and Path(base).is_relative_to(place)):
        return {}
    return {name: _moved(value, place, target) for name, value in settings.items() if name not in OF_THE_CODE}


def _moved(value: Any, root: Path, target: str) -> Any:
    """Return a value with the paths below ``root`` moved."""
    if isinstance(value, dict):
        return {key: _moved(entry, root, target) for key, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_moved(entry, root, target) for entry in value)
    if isinstance(value, (str, Path)) and Path(value).is_absolute() and Path(value).is_relative_to(root):
        path = Path(target, Path(value).relative_to(root))
        return path if isinstance(value, Path) else f"{path}{'/' if value.endswith('/') else ''}"
    return value


def storages(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the storages; the default one and that of static files store nothing in a directory that does not exist.

    Others stay where they are: a directory below MEDIA_ROOT is public.
    """
    found = dict(given)
    for alias, directory in (("default", MEDIA_ROOT), ("staticfiles", STATIC_ROOT)):
        options = (found.get(alias) or {}).get("OPTIONS") or {}
        location = Path(str(options.get("location") or directory))
        if location.is_absolute() and not location.is_relative_to(directory):
            found[alias] = {**found[alias], "OPTIONS": {**options, "location": directory}}
    return found


def readable(given: Mapping[str, Any]) -> dict[str, int]:
    """Return modes of uploads with which the web server's group reads them, where the project has others."""
    file = given.get("FILE_UPLOAD_PERMISSIONS", FILE_MODE)
    directory = given.get("FILE_UPLOAD_DIRECTORY_PERMISSIONS")
    modes = {"FILE_UPLOAD_PERMISSIONS": FILE_MODE if file is None else file | 0o040}
    return modes if directory is None else {**modes, "FILE_UPLOAD_DIRECTORY_PERMISSIONS": directory | 0o050}


def time_zone(name: str, zones: Path = ZONES) -> str:
    """Return the present name of a time zone whose former name Debian has in another package (US/Eastern)."""
    if (zones / name).is_file():
        return name
    try:
        lines = (zones / "tzdata.zi").read_text(encoding="utf-8").splitlines()
    except OSError:
        return name
    # L TARGET NAME
    links = (line.split() for line in lines if line.startswith("L "))
    return next((words[1] for words in links if words[2:] == [name]), name)


def database(given: Mapping[str, Any], role: str = "") -> dict[str, Any]:
    """Return the settings of the default database: this machine's, reached as this role, with the project's options.

    A backend for PostgreSQL stays (PostGIS, tenants, metrics); Django's own replaces SQLite, whose file could not
    be written. One for another server stays as it is, and cannot be reached.
    """
    own = dict((given.get("DATABASES") or {}).get("default") or {})
    engine = str(own.get("ENGINE", ""))
    if not engine or "sqlite" in engine or engine.endswith(".dummy"):
        own = {"ENGINE": POSTGRESQL}
    elif "postg" not in engine and "psqlextra" not in engine:
        return own
    options = {"connect_timeout": 2, **(own.get("OPTIONS") or {})}
    kept = {name: value for name, value in own.items() if name not in PLACE}
    return {**kept, "NAME": "app", "USER": role or "app", "HOST": "/run/postgresql", "OPTIONS": options}


def logging(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the log, with the journal instead of files, which the application cannot write."""
    handlers = {}
    for name, handler in (given.get("handlers") or {}).items():
        if str(handler.get("class", "")).endswith("FileHandler"):
            kept = {key: value for key, value in handler.items() if key in ("level", "formatter", "filters")}
            handlers[name] = {**kept, "class": "logging.StreamHandler"}
        else:
            handlers[name] = handler
    return {**given, "handlers": handlers}
