"""The settings that Django reads on this machine ($DJANGO_SETTINGS_MODULE): the project's, adapted (golden_app/adapt.py).

The project's settings module is $GOLDEN_SETTINGS, else the one that its wsgi.py or manage.py names.
"""

import importlib
import os
import sys
from pathlib import Path

from golden_app import adapt


def _project() -> str:
    """Return the name of the project's settings module."""
    if name := os.environ.get("GOLDEN_SETTINGS"):
        return name
    places = (Path(entry or ".") for entry in (*sys.path, ""))
    code = next((place for place in places if (place / "manage.py").is_file()), Path())
    name = adapt.settings_module(code)
    if not name:
        raise ImportError(f"neither wsgi.py nor manage.py in {code.resolve()} names DJANGO_SETTINGS_MODULE")
    return name


def _secret() -> str:
    """Return the clone's secret key; empty for a process that is given none."""
    path = Path(os.environ.get("CREDENTIALS_DIRECTORY", "/nonexistent"), "app.secret-key")
    return path.read_text().strip() if path.is_file() else ""


# Variables that projects read and fail without: the settings are replaced afterwards, or the values are this machine's.
_HOSTS = ",".join(os.environ.get("SITE_HOSTS", "").split())
for _name, _value in {
    "SECRET_KEY": adapt.INSECURE, "DJANGO_SECRET_KEY": adapt.INSECURE, "ALLOWED_HOSTS": _HOSTS,
    "DJANGO_ALLOWED_HOSTS": _HOSTS, "DATABASE_URL": "postgres://app@%2Frun%2Fpostgresql/app",
}.items():  # fmt: skip
    os.environ.setdefault(_name, _value)
_module = importlib.import_module(_project())
globals().update(
    adapt.adapted(
        {name: getattr(_module, name) for name in dir(_module) if name.isupper()},
        hosts=os.environ.get("SITE_HOSTS", ""), role=os.environ.get("DATABASE_ROLE", ""), secret=_secret(),
    )
)  # fmt: skip
