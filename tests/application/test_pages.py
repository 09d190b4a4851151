from __future__ import annotations

import io
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from .conftest import HOST, Project

NAMES = re.compile(r'(?:href|src)="(/static/[^"]+)"')


def test_page_comes_from_the_database(project: Project) -> None:
    answer = project.client().get("/")
    assert answer.status_code == 200
    assert "This page came from the database" in answer.content.decode()
    assert not answer.cookies


@pytest.mark.req("R81")
def test_django_finds_nothing_to_improve(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    project.module("django.core.management").call_command("check", deploy=True, fail_level="WARNING")
    assert "no issues" in capfd.readouterr().out


def test_models_and_migrations_agree(project: Project) -> None:
    project.module("django.core.management").call_command("makemigrations", check=True, dry_run=True, verbosity=0)


def test_health(project: Project) -> None:
    answer = project.client().get("/health")
    assert (answer.status_code, answer.json()) == (200, {"db": "ok"})
    assert project.client().post("/health").status_code == 405


@pytest.mark.req("R81", "F25")
def test_other_hosts_are_refused(project: Project) -> None:
    assert project.client().get("/", headers={"Host": "other.test"}).status_code == 400
    assert project.client().get("/", headers={"Host": HOST, "X-Forwarded-Host": "other.test"}).status_code == 200


@pytest.mark.req("R74")
@pytest.mark.parametrize("path", ["/", "/login", "/admin/login/"])
def test_scripts_and_styles_name_their_digest(project: Project, path: str) -> None:
    page = project.client().get(path).content.decode()
    tags = [tag for tag in re.findall(r"<(?:script|link)\b[^>]*>", page) if NAMES.search(tag)]
    assert tags
    assert all(re.search(r' integrity="sha384-[A-Za-z0-9+/]{64}"/?>$', tag) for tag in tags)
    assert not re.findall(r"<script(?![^>]*\bsrc=)[^>]*>|<style|\son[a-z]+=|\sstyle=", page)


@pytest.mark.req("R74", "R75")
def test_digests_are_those_of_the_collected_files(project: Project) -> None:
    known = json.loads((project.directory / "integrity.json").read_text())
    integrity = project.module("project.integrity")
    assert integrity.read_digests()
    static = Path(project.module("django.conf").settings.STATIC_ROOT)
    for address, digest in known.items():
        path = static / address.removeprefix("/static/")
        assert re.search(r"\.[0-9a-f]{12}\.(css|js)$", address)
        assert project.module("project.static").digest_of(path.read_bytes()) == digest


def test_the_manifest_does_not_depend_on_the_file_system(project: Project) -> None:
    """Django lists the names in the order of the directories: two builds would differ on ext4 and tmpfs."""
    storage = project.module("project.static").HashedStorage()
    storage.hashed_files = {"b.css": "b.1.css", "a.css": "a.2.css"}
    saved: dict[str, bytes] = {}

    def save(name: str, content: Any) -> None:
        saved[name] = content.read()

    storage.manifest_storage = SimpleNamespace(exists=lambda _name: False, delete=lambda _name: None, save=save, _save=save)
    storage.open = lambda _name: io.BytesIO(b"")
    storage.save_manifest()
    assert list(json.loads(saved["staticfiles.json"])["paths"]) == ["a.css", "b.css"]


def test_health_when_the_database_is_away(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    database = project.module("django.db")

    def fail(*_args: object, **_kwargs: object) -> None:
        raise database.OperationalError("no server at /run/postgresql")

    monkeypatch.setattr("django.db.backends.base.base.BaseDatabaseWrapper.cursor", fail)
    health, page = project.client().get("/health"), project.client().get("/")
    assert (health.status_code, health.json()) == (503, {"db": "down"})
    assert page.status_code == 503
    assert "/run/postgresql" not in page.content.decode()


@pytest.mark.req("R49")
@pytest.mark.parametrize(
    ("given", "seen"), [("192.0.2.7", "192.0.2.7"), ("2001:db8::1", "2001:db8::1"), ("x, 192.0.2.7", ""), ("", "")]
)
def test_address_is_the_web_servers_word_or_nothing(project: Project, given: str, seen: str) -> None:
    request = project.module("django.test").RequestFactory().get("/", headers={"X-Forwarded-For": given})
    assert project.module("project.middleware").client_address(request) == seen
