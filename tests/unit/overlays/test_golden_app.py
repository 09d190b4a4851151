"""Settings of an external project as the image runs it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from tests.unit.golden_modules import golden_module
from tests.unit.helpers import ROOT

contracts = golden_module("golden.contract")
PATH = ROOT / "overlays/40-app/rootfs/usr/lib/golden-app/golden_app/adapt.py"
_spec = importlib.util.spec_from_file_location("golden_app_adapt", PATH)
assert _spec is not None
assert _spec.loader is not None
adapt = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(adapt)

# What `django-admin startproject` writes, as far as it matters here.
STOCK = {
    "SECRET_KEY": "django-insecure-x", "DEBUG": True, "ALLOWED_HOSTS": [], "MIDDLEWARE": ["a.Middleware"],
    "STATIC_URL": "static/",
    "DATABASES": {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": Path("db.sqlite3")}},
}  # fmt: skip


def test_a_stock_project_gets_what_it_needs() -> None:
    settings = adapt.adapted(STOCK, hosts="www.example.org web1", role="app_owner", secret="s" * 50)
    assert settings["DEBUG"] is False
    assert settings["SECRET_KEY"] == "s" * 50
    assert settings["ALLOWED_HOSTS"] == ["www.example.org", "web1"]
    assert settings["DATABASES"]["default"] == {
        "ENGINE": "django.db.backends.postgresql", "NAME": "app", "USER": "app_owner", "HOST": "/run/postgresql",
        "OPTIONS": {"connect_timeout": 2},
    }  # fmt: skip
    assert (settings["STATIC_URL"], settings["STATIC_ROOT"]) == ("/static/", "/var/www/static")
    assert (settings["MEDIA_URL"], settings["MEDIA_ROOT"]) == ("/media/", "/var/www/media")
    assert settings["SECURE_PROXY_SSL_HEADER"] == ("HTTP_X_FORWARDED_PROTO", "https")
    assert settings["SESSION_COOKIE_SECURE"] is True
    assert settings["MIDDLEWARE"] == [adapt.MIDDLEWARE, "a.Middleware"]
    # The project's own are not touched.
    assert STOCK["DEBUG"] is True


def test_what_the_project_decided_stays() -> None:
    given = {
        "SECRET_KEY": "k" * 60, "ALLOWED_HOSTS": ["shop.example.org"], "STATIC_URL": "https://cdn.example.org/",
        "SESSION_COOKIE_SECURE": False, "LANGUAGE_CODE": "de", "SILENCED_SYSTEM_CHECKS": ["models.W042"],
        "DATABASES": {
            "default": {
                "ENGINE": "django.contrib.gis.db.backends.postgis", "NAME": "shop", "USER": "shop", "PASSWORD": "x",
                "HOST": "localhost", "PORT": "5432", "CONN_MAX_AGE": 60, "OPTIONS": {"pool": True},
            },
            "other": {"ENGINE": "django.db.backends.sqlite3"},
        },
    }  # fmt: skip
    settings = adapt.adapted(given, hosts="web1", secret="s")
    assert settings["SECRET_KEY"] == "k" * 60
    assert settings["ALLOWED_HOSTS"] == ["shop.example.org", "web1"]
    assert settings["STATIC_URL"] == "https://cdn.example.org/"
    assert settings["SESSION_COOKIE_SECURE"] is False
    assert settings["LANGUAGE_CODE"] == "de"
    assert settings["SILENCED_SYSTEM_CHECKS"] == ["models.W042", "security.W004", "security.W008"]
    assert settings["DATABASES"] == {
        "default": {
            "ENGINE": "django.contrib.gis.db.backends.postgis", "NAME": "app", "USER": "app", "HOST": "/run/postgresql",
            "CONN_MAX_AGE": 60, "OPTIONS": {"connect_timeout": 2, "pool": True},
        },
        "other": {"ENGINE": "django.db.backends.sqlite3"},
    }  # fmt: skip


def test_another_database_server_is_left_alone() -> None:
    own = {"ENGINE": "django.db.backends.mysql", "NAME": "shop", "HOST": "db"}
    assert adapt.database({"DATABASES": {"default": own}}) == own


def test_logs_go_to_the_journal() -> None:
    given = {
        "version": 1,
        "handlers": {
            "file": {"class": "logging.handlers.RotatingFileHandler", "filename": "/var/log/shop.log", "level": "INFO"},
            "console": {"class": "logging.StreamHandler", "formatter": "plain"},
        },
    }
    settings = adapt.adapted({"LOGGING": given})
    assert settings["LOGGING"]["handlers"] == {
        "file": {"class": "logging.StreamHandler", "level": "INFO"},
        "console": {"class": "logging.StreamHandler", "formatter": "plain"},
    }
    assert settings["LOGGING"]["version"] == 1


MANAGE = """def main():
    os.environ.setdefault('DJANGO_SETTINGS_MODULE', '{}')
"""


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({"manage.py": MANAGE.format("mysite.settings")}, "mysite.settings"),
        ({"manage.py": MANAGE.format("a.settings.dev"), "config/wsgi.py": MANAGE.format("a.live")}, "a.live"),
        ({"manage.py": 'os.environ["DJANGO_SETTINGS_MODULE"] = "mysite.settings"\n'}, "mysite.settings"),
        ({"manage.py": MANAGE.format("a.settings.dev"), "a/settings/production.py": ""}, "a.settings.production"),
        ({"manage.py": MANAGE.format("a.settings.local"), "a/settings/prod.py": ""}, "a.settings.prod"),
        ({"manage.py": MANAGE.format("a.settings.dev"), "a/settings/production/__init__.py": ""}, "a.settings.production"),
        ({"manage.py": MANAGE.format("a.settings.dev")}, "a.settings.dev"),
        # As cookiecutter-django writes it.
        (
            {
                "manage.py": MANAGE.format("config.settings.local"),
                "config/settings/local.py": "",
                "config/wsgi.py": "# setdefault('DJANGO_SETTINGS_MODULE', 'x.y')\n"
                + MANAGE.format("config.settings.production"),
            },
            "config.settings.production",
        ),
        (
            {
                "manage.py": MANAGE.format("b.settings"),
                "a/wsgi.py": MANAGE.format("a.live"),
                "b/wsgi.py": MANAGE.format("b.live"),
            },
            "b.live",
        ),
        ({"manage.py": MANAGE.format("a.settings.dev"), "a/asgi.py": MANAGE.format("a.settings.live")}, "a.settings.live"),
        ({"manage.py": MANAGE.format("settings"), "wsgi.py": MANAGE.format("settings")}, "settings"),
        ({"manage.py": 'os.environ.setdefault("DJANGO_SETTINGS_MODULE", f"a.settings.{kind}")\n'}, ""),
        ({"manage.py": "import django\n"}, ""),
    ],
)
def test_the_settings_module_is_the_one_that_is_served(tmp_path: Path, files: dict[str, str], name: str) -> None:
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert adapt.settings_module(tmp_path) == name
    # The workstation and the units have it from the contract.
    assert contracts.load(tmp_path)[0]["entry"]["settings"] == name


def test_what_is_below_the_projects_directories_is_moved_with_them() -> None:
    base = Path("/home/me/shop")
    given = {
        "BASE_DIR": base, "STATIC_ROOT": str(base / "static"), "MEDIA_ROOT": base / "media",
        "COMPRESS_ROOT": f"{base}/static/", "STATICFILES_DIRS": [base / "static/src"], "SITE_ID": 1,
        "THUMBNAILS": {"dir": str(base / "media/thumbs"), "sizes": (1, 2)}, "DIRS": [base / "media/a", base / "templates"],
        "VITE": {"default": {"manifest_path": base / "static" / "manifest.json"}}, "NAME": "media/x",
        "STORAGES": {
            "default": {"BACKEND": "a.Storage", "OPTIONS": {"location": "/srv/uploads", "base_url": "/media/"}},
            "private": {"BACKEND": "a.Storage", "OPTIONS": {"location": "/srv/private"}},
            "bills": {"BACKEND": "a.Storage", "OPTIONS": {"location": str(base / "media/bills")}},
            "staticfiles": {"BACKEND": "b.Storage"},
        },
    }  # fmt: skip
    settings = adapt.adapted(given)
    assert (settings["COMPRESS_ROOT"], settings["SITE_ID"]) == ("/var/www/static/", 1)
    assert settings["STATICFILES_DIRS"] == [base / "static/src"]
    assert settings["THUMBNAILS"] == {"dir": "/var/www/media/thumbs", "sizes": (1, 2)}
    assert settings["DIRS"] == [Path("/var/www/media/a"), base / "templates"]
    assert settings["VITE"] == {"default": {"manifest_path": Path("/var/www/static/manifest.json")}}
    assert settings["NAME"] == "media/x"
    assert settings["STORAGES"] == {
        "default": {"BACKEND": "a.Storage", "OPTIONS": {"location": "/var/www/media", "base_url": "/media/"}},
        # Below the media it would be sent to everybody.
        "private": {"BACKEND": "a.Storage", "OPTIONS": {"location": "/srv/private"}},
        "bills": {"BACKEND": "a.Storage", "OPTIONS": {"location": "/var/www/media/bills"}},
        "staticfiles": {"BACKEND": "b.Storage"},
    }


def test_a_project_without_storages_has_those_of_django() -> None:
    assert "STORAGES" not in adapt.adapted(STOCK)


@pytest.mark.parametrize("root", ["", "/", "media", "/home/me/shop", "/home/me"])
def test_a_root_that_is_none_moves_nothing(root: str) -> None:
    given = {"BASE_DIR": Path("/home/me/shop"), "MEDIA_ROOT": root, "A": "/home/me/shop/a", "B": "/srv/b"}
    settings = adapt.adapted(given)
    assert (settings["A"], settings["B"], settings["BASE_DIR"]) == ("/home/me/shop/a", "/srv/b", Path("/home/me/shop"))


@pytest.mark.parametrize(
    ("given", "modes"),
    [({}, (0o644, None)), ({"FILE_UPLOAD_PERMISSIONS": None}, (0o644, None)),
     ({"FILE_UPLOAD_PERMISSIONS": 0o600, "FILE_UPLOAD_DIRECTORY_PERMISSIONS": 0o700}, (0o640, 0o750))],
)  # fmt: skip
def test_the_web_server_reads_uploads(given: dict[str, Any], modes: tuple[int, int | None]) -> None:
    settings = adapt.adapted(given)
    assert (settings["FILE_UPLOAD_PERMISSIONS"], settings.get("FILE_UPLOAD_DIRECTORY_PERMISSIONS")) == modes


def test_a_former_name_of_a_time_zone(tmp_path: Path) -> None:
    (tmp_path / "Europe").mkdir()
    (tmp_path / "Europe/Vienna").touch()
    assert adapt.time_zone("US/Eastern", tmp_path) == "US/Eastern"
    (tmp_path / "tzdata.zi").write_text("# version 2026a\nL America/New_York US/Eastern\nL Europe/Kyiv Europe/Kiev\n")
    names = {name: adapt.time_zone(name, tmp_path) for name in ("US/Eastern", "Europe/Kiev", "Europe/Vienna", "Mars/Phobos")}
    assert names == {
        "US/Eastern": "America/New_York", "Europe/Kiev": "Europe/Kyiv", "Europe/Vienna": "Europe/Vienna",
        "Mars/Phobos": "Mars/Phobos",
    }  # fmt: skip


@pytest.mark.parametrize("hosts", [None, []])
def test_no_hosts_of_the_project(hosts: Any) -> None:
    assert adapt.adapted({"ALLOWED_HOSTS": hosts})["ALLOWED_HOSTS"] == []
