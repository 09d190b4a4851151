"""Makes the foreign projects: by their own tools, out of locked wheels, with only the additional files that a test needs.

``make`` writes one of three versions: the first; a second with another style sheet and a migration; a third whose migration
fails.
"""

from __future__ import annotations

import shutil
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from build.core import run
from build.packages import wheels

HERE = Path(__file__).parent
MAKING_SECONDS = 120
FAILURE = "this migration fails on purpose"


@dataclass(frozen=True)
class Project:
    """A foreign project: the command that makes it, and where what a test looks for is."""

    # Arguments of a Python that has the project's wheels.
    command: tuple[str, ...]
    # The Django application that gets migrations in the second and third version, and its last migration.
    app: str
    last_migration: str
    # The administration, and pages that answer 200 to everybody.
    admin: str
    pages: tuple[str, ...]
    # The form for a picture: its path, the field for the file, and other fields.
    upload: str
    field: str
    fields: Mapping[str, str]
    # A static file that the second version changes, below static/ of the application.
    style: str
    # What a developer adds to the settings that the tool wrote: the module, and the lines.
    settings: tuple[str, str] = ("", "")


DATABASE = """
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "mysite",
        "USER": "mysite",
        "PASSWORD": "secret",
        "HOST": "localhost",
        "PORT": "5432",
    }
}
"""
SETTINGS = "project/settings.py"
GALLERY = f'INSTALLED_APPS += ["gallery"]{DATABASE}'
COMPILED = f"""{GALLERY}
PASSWORD_HASHERS = ["django.contrib.auth.hashers.Argon2PasswordHasher"]
STORAGES = {{
    "default": {{"BACKEND": "django.core.files.storage.FileSystemStorage"}},
    "staticfiles": {{"BACKEND": "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"}},
}}
"""
REST = f"""INSTALLED_APPS += ["accounts", "api", "rest_framework", "corsheaders", "drf_spectacular"]
MIDDLEWARE = ["corsheaders.middleware.CorsMiddleware", *MIDDLEWARE]
AUTH_USER_MODEL = "accounts.User"
CORS_ALLOWED_ORIGINS = ["https://pages.example.org"]
REST_FRAMEWORK = {{"DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema"}}
LOGGING = {{
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {{"file": {{"class": "logging.FileHandler", "filename": "/var/log/mysite/debug.log"}}}},
    "root": {{"handlers": ["file"], "level": "INFO"}},
}}
{DATABASE}"""
CHANNELS = f"""INSTALLED_APPS = ["channels", *INSTALLED_APPS, "shop"]
ASGI_APPLICATION = "project.asgi.application"
{DATABASE}"""

PROJECTS = {
    "startproject": Project(
        command=("-m", "django", "startproject", "project", "."), app="gallery", last_migration="0001_initial",
        admin="/admin/", pages=("/health", "/static/gallery/site.css", "/static/admin/css/base.css"),
        upload="/admin/gallery/picture/add/", field="file", fields={"title": "A picture", "_save": "Save"},
        style="gallery/site.css", settings=(SETTINGS, GALLERY),
    ),
    "wagtail": Project(
        command=("-m", "wagtail.bin.wagtail", "start", "project", "."), app="home", last_migration="0002_create_homepage",
        admin="/admin/", pages=("/", "/health"), upload="/admin/images/add/", field="file",
        fields={"title": "A picture"}, style="css/welcome_page.css",
    ),
    "compiled": Project(
        command=("-m", "django", "startproject", "project", "."), app="gallery", last_migration="0001_initial",
        admin="/admin/", pages=("/compiled", "/health", "/static/gallery/site.css"),
        upload="/admin/gallery/picture/add/", field="file", fields={"title": "A picture", "_save": "Save"},
        style="gallery/site.css", settings=(SETTINGS, COMPILED),
    ),
    "rest": Project(
        command=("-m", "django", "startproject", "project", "."), app="api", last_migration="0001_initial",
        admin="/admin/", pages=("/api/items/", "/health", "/static/api/site.css"),
        upload="/admin/api/item/add/", field="file", fields={"title": "A picture", "_save": "Save"},
        style="api/site.css", settings=(SETTINGS, REST),
    ),
    "channels": Project(
        command=("-m", "django", "startproject", "project", "."), app="shop", last_migration="0001_initial",
        admin="/admin/", pages=("/done", "/health", "/static/shop/site.css"),
        upload="/admin/shop/order/add/", field="file", fields={"title": "A picture", "_save": "Save"},
        style="shop/site.css", settings=(SETTINGS, CHANNELS),
    ),
}  # fmt: skip

MIGRATION = '''"""Made by the test."""

from django.db import migrations


def run(apps, schema_editor):
    {body}


class Migration(migrations.Migration):
    dependencies = [("{app}", "{before}")]
    operations = [migrations.RunPython(run, migrations.RunPython.noop)]
'''


def make(name: str, directory: Path, *, version: int, cache: Path) -> None:
    """Write a version (1, 2 or 3) of a project into an empty directory. Raises GoldsmithError when its tool fails."""
    project, own = PROJECTS[name], HERE / name
    house = wheels.fetch(own / "requirements.lock", cache=cache)
    with_wheels = directory.with_name(f"{directory.name}-wheels")
    for wheel in house.glob("*.whl"):
        # What the tools need is Python; compiled parts are for the clone's.
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(with_wheels)
    # Not isolated: the packages are found by the environment. Nothing of the project's own is run here but its tool.
    environment = {"PYTHONPATH": str(with_wheels), "PYTHONDONTWRITEBYTECODE": "1"}
    run.run([sys.executable, *project.command], cwd=directory, env=environment, timeout=MAKING_SECONDS)
    shutil.rmtree(with_wheels)
    shutil.copy(own / "requirements.lock", directory)
    if (own / "files").is_dir():
        shutil.copytree(own / "files", directory, dirs_exist_ok=True)
    module, lines = project.settings
    if module:
        (directory / module).write_text((directory / module).read_text() + lines)
    before = project.last_migration
    for number in range(2, version + 1):
        body = "pass" if number == 2 else f"raise RuntimeError({FAILURE!r})"
        made = f"9{number:03}_test"
        path = directory / project.app / "migrations" / f"{made}.py"
        path.write_text(MIGRATION.format(body=body, app=project.app, before=before))
        before = made
    if version > 1:
        (style,) = (path for path in directory.glob(f"*/static/{project.style}"))
        style.write_text(f"{style.read_text()}\n/* version {version} */\n")
