"""The shipped project, set up once: rendered files, locked wheels, SQLite instead of PostgreSQL."""

from __future__ import annotations

import base64
import hmac
import importlib
import io
import json
import os
import secrets
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from build.cli import options as cli_options
from build.packages import wheels
from build.spec import layers
from build.spec.golden_yaml import load

ROOT = Path(__file__).parents[2]
CODE = "/opt/app/releases/image/code/"
HOST = "golden.test"
PASSWORD = "correct horse battery staple"
# The tests change these: another database, and separate directories.
SETTINGS = """
from project.settings import *

DATABASES = {{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": {database!r}}}}}
STATIC_ROOT = {static!r}
MEDIA_ROOT = {media!r}
"""
# They need PostgreSQL's library or a server, and nothing here imports them.
LEFT_OUT = ("psycopg", "gunicorn")


@dataclass(frozen=True)
class Project:
    """The project, ready for requests."""

    directory: Path
    media: Path

    def module(self, name: str) -> Any:
        """Return a module of the project or of Django; neither can be imported before the project is set up."""
        return importlib.import_module(name)

    def client(self, **options: Any) -> Any:
        """Return a browser that comes through the web server."""
        forwarded = {"HTTP_X_FORWARDED_PROTO": "https", "HTTP_X_FORWARDED_FOR": "192.0.2.7"}
        return self.module("django.test").Client(SERVER_NAME=HOST, **forwarded, **options)

    def account(self, name: str, *options: str, password: str = PASSWORD) -> dict[str, Any]:
        """Make an account as golden-app does, and return what the command answers."""
        made: dict[str, Any] = self.command("account", name, *options, said=f"{password}\n")
        return made

    def command(self, *words: str, said: str = "") -> Any:
        """Run a management command that answers as JSON."""
        output, before = io.StringIO(), sys.stdin
        sys.stdin = io.StringIO(said)
        try:
            self.module("django.core.management").call_command(*words, stdout=output)
        finally:
            sys.stdin = before
        return json.loads(output.getvalue())


def code_of(otpauth: str, *, steps: int = 0) -> str:
    """Return the one-time code (RFC 6238) that belongs to an otpauth address, ``steps`` periods from now."""
    secret = base64.b32decode(parse_qs(urlsplit(otpauth).query)["secret"][0])
    mac = hmac.digest(secret, (int(time.time()) // 30 + steps).to_bytes(8, "big"), "sha1")
    start = mac[-1] & 15
    return f"{(int.from_bytes(mac[start : start + 4], 'big') & 0x7FFFFFFF) % 1_000_000:06d}"


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """The project, with its tables made and its static files collected."""
    top = tmp_path_factory.mktemp("application")
    code, library, media = top / "code", top / "library", top / "media"
    media.mkdir()
    stack = layers.load_stack(ROOT / "overlays", load(ROOT / "golden.yaml"))
    for node in stack.below([CODE]):
        path = code / node.path.removeprefix(CODE)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(node.content)
    (venv,) = [venv for venv in stack.venvs if venv.path.startswith("/opt/app/")]
    for wheel in sorted(wheels.fetch(venv.requirements, cache=cli_options.default_cache()).glob("*.whl")):
        if not wheel.name.startswith(LEFT_OUT):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(library)
    (top / "app.secret-key").write_text(secrets.token_urlsafe(48))
    text = SETTINGS.format(database=os.fspath(top / "database"), static=os.fspath(top / "static"), media=os.fspath(media))
    (code / "host_settings.py").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(os.fspath(library))
        patch.syspath_prepend(os.fspath(code))
        patch.setenv("DJANGO_SETTINGS_MODULE", "host_settings")
        patch.setenv("CREDENTIALS_DIRECTORY", os.fspath(top))
        patch.setenv("SITE_HOSTS", HOST)
        importlib.import_module("django").setup()
        found = Project(code, media)
        for command in ("collectstatic", "migrate"):
            found.module("django.core.management").call_command(command, interactive=False, verbosity=0)
        yield found
        found.module("django.db").connections.close_all()


@pytest.fixture(scope="session")
def member(project: Project) -> dict[str, Any]:
    """An account that may upload files."""
    return project.account("member")


@pytest.fixture(scope="session")
def administrator(project: Project) -> dict[str, Any]:
    """An account that may administer."""
    return project.account("chief", "--administrator")


@pytest.fixture(scope="session")
def logged_in(project: Project, member: dict[str, Any]) -> Any:
    """A browser whose user has logged in with password and code."""
    client = project.client()
    forget_codes(project)
    answer = client.post("/login", {"username": "member", "password": PASSWORD, "token": code_of(member["otpauth"])})
    assert answer.status_code == 302, answer.content
    return client


def forget_codes(project: Project) -> None:
    """Let a code be used once more, and the next attempt come at once: the tests are faster than people."""
    devices = project.module("django_otp.plugins.otp_totp.models").TOTPDevice.objects
    devices.update(last_t=-1, throttling_failure_count=0, throttling_failure_timestamp=None)
