from __future__ import annotations

import errno
import hashlib
import stat
from pathlib import Path
from typing import Any, NoReturn

import pytest

from .conftest import Project

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + b"\0" * 32
JPEG = b"\xff\xd8\xff\xe0\0\x10JFIF\0" + b"\0" * 32
PDF = b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n%%EOF\n"
TEXT = "Grüße\n".encode()
PHP = b"<?php system($_GET['c']); ?>"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
HTML = b"<!doctype html><script>alert(1)</script>"


def send(project: Project, client: Any, name: str, content: bytes) -> Any:
    sent = project.module("django.core.files.uploadedfile").SimpleUploadedFile(name, content)
    return client.post("/upload", {"file": sent})


def left(project: Project) -> set[str]:
    return {path.name for path in project.media.iterdir()}


@pytest.mark.req("R69")
@pytest.mark.parametrize(
    ("name", "content", "suffix"),
    [
        ("photo.PNG", PNG, ".png"), ("photo.jpeg", JPEG, ".jpg"), ("photo.jpg", JPEG, ".jpg"), ("paper.pdf", PDF, ".pdf"),
        ("notes.txt", TEXT, ".txt"), ("../../etc/notes.txt", TEXT, ".txt"),
    ],
)  # fmt: skip
def test_known_kinds_are_stored_under_a_name_of_ours(
    project: Project, logged_in: Any, name: str, content: bytes, suffix: str
) -> None:
    before = left(project)
    answer = send(project, logged_in, name, content)
    assert answer.status_code == 201
    (new,) = left(project) - before
    path = project.media / new
    assert path.suffix == suffix
    assert path.read_bytes() == content
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    row = project.module("pages.models").Upload.objects.get(name=new)
    assert (row.size, row.sha256, row.original) == (len(content), hashlib.sha256(content).hexdigest(), Path(name).name)
    assert f'href="/media/{new}"' in answer.content.decode()


@pytest.mark.req("R69")
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("shell.php", PHP), ("shell.jpg", PHP), ("shell.txt", PHP), ("image.svg", SVG), ("image.jpg", SVG),
        ("image.png", SVG), ("page.html", HTML), ("page.jpg", HTML), ("page.txt", b"\xef\xbb\xbf \n" + HTML),
        ("run.txt", b"#!/bin/sh\n"), ("photo.png", JPEG), ("photo.jpg", PNG), ("photo.php", PNG), ("photo.png.php", PNG),
        ("notes.txt", b"\xff\xfe\0"), ("notes.txt", b"a\0b"), ("paper.pdf", b"%PDX-1.7"), ("empty.txt", b""), ("png", PNG),
        ("short.png", PNG[:12]),
    ],
)  # fmt: skip
def test_everything_else_is_refused(project: Project, logged_in: Any, name: str, content: bytes) -> None:
    before = left(project)
    assert send(project, logged_in, name, content).status_code == 415
    assert left(project) == before


@pytest.mark.req("R69")
def test_too_large_is_refused(project: Project, logged_in: Any) -> None:
    limit = project.module("django.conf").settings.UPLOAD_MAX_BYTES
    before = left(project)
    assert send(project, logged_in, "large.png", PNG + b"\0" * limit).status_code == 413
    assert left(project) == before
    assert send(project, logged_in, "large.png", PNG + b"\0" * (limit - len(PNG))).status_code == 201


@pytest.mark.req("R69", "F12")
@pytest.mark.parametrize("call", ["os.fsync", "pathlib.Path.rename"])
def test_full_disk_is_507_and_leaves_nothing(
    project: Project, logged_in: Any, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_args: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(call, fail)
    before = left(project)
    assert send(project, logged_in, "photo.png", PNG).status_code == 507
    assert left(project) == before


def test_file_without_its_row_is_removed(project: Project, logged_in: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object, **_options: object) -> NoReturn:
        raise project.module("django.db").OperationalError("gone")

    monkeypatch.setattr(project.module("pages.models").Upload, "save", fail)
    before = left(project)
    assert send(project, logged_in, "photo.png", PNG).status_code == 503
    assert left(project) == before


def test_file_goes_with_its_row(project: Project, logged_in: Any) -> None:
    before = left(project)
    send(project, logged_in, "photo.png", PNG)
    (new,) = left(project) - before
    project.module("pages.models").Upload.objects.get(name=new).delete()
    assert left(project) == before


def test_nothing_sent_is_said_so(logged_in: Any) -> None:
    assert logged_in.post("/upload", {}).status_code == 400


@pytest.mark.req("R69")
def test_strangers_send_nothing(project: Project) -> None:
    before = left(project)
    assert send(project, project.client(), "photo.png", PNG).status_code == 302
    assert left(project) == before


def test_uploads_of_others_are_not_shown(project: Project, logged_in: Any) -> None:
    send(project, logged_in, "mine.txt", TEXT)
    other = project.module("django.contrib.auth").get_user_model().objects.create(username="other")
    fields = {"name": "x" * 32, "original": "theirs.txt", "size": 1, "sha256": "", "owner": other}
    project.module("pages.models").Upload.objects.create(**fields)
    page = logged_in.get("/upload").content.decode()
    assert "mine.txt" in page
    assert "theirs.txt" not in page


def test_web_server_is_told_who_may_upload(project: Project, member: dict[str, Any]) -> None:
    """The web server's query before it reads a file: only a user who is logged in with a code may upload"""
    client = project.client()
    assert client.get("/upload/allowed").status_code == 401
    assert client.post("/upload/allowed").status_code == 405
    client.force_login(project.module("django.contrib.auth.models").User.objects.get(username="member"))
    assert client.get("/upload/allowed").status_code == 401
