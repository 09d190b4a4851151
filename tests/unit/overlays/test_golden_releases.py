"""Releases: the active one, the remains of an interrupted deployment, and which ones are kept."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.golden_modules import golden_module
from tests.unit.overlays.conftest import Programs

golden = golden_module("golden.core")
releases = golden_module("golden.releases")
deploy = golden_module("golden.deploy")
steps = golden_module("golden.steps")
A, B, C, D, E = (letter * 12 for letter in "abcde")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The directories of a clone, with the image's release."""
    monkeypatch.setattr(shutil, "chown", lambda *_arguments, **_names: None)
    monkeypatch.setattr(releases, "take", lambda _top: None)
    made = releases.Releases(tmp_path / "app", tmp_path / "static")
    (made.path("image") / "code").mkdir(parents=True)
    made.static.mkdir()
    (made.static / "site.000000000000.css").touch()
    (made.root / "current").symlink_to("releases/image")
    return made


def add(here: Any, name: str, *, static: tuple[str, ...] = (), deployed: str = "") -> None:
    (here.path(name) / "code").mkdir(parents=True)
    for file in static:
        (here.static / file).touch()
    facts = {"name": "app", "sha256": name * 5, "static": list(static)}
    here.complete(name, facts | ({"deployed": deployed} if deployed else {}))


def test_the_image_is_adopted_once(here: Any) -> None:
    assert here.listed() == []
    here.adopt()
    (one,) = here.listed()
    assert (one["release"], one["current"], one["previous"]) == ("image", True, False)
    assert here.record("image")["static"] == ["site.000000000000.css"]
    before = here.record("image")
    here.adopt()
    assert here.record("image") == before


def test_a_switch_is_remembered(here: Any) -> None:
    add(here, A)
    here.switch(A)
    assert (here.current(), here.previous()) == (A, "image")
    here.switch(A)
    assert (here.current(), here.previous()) == (A, "image")
    here.switch("image")
    assert (here.current(), here.previous()) == ("image", A)
    assert str((here.root / "current").readlink()) == "releases/image"


def test_a_link_to_nothing_is_no_release(here: Any) -> None:
    (here.root / "previous").symlink_to("releases/gone")
    assert here.previous() == ""


@pytest.mark.parametrize("left", ["", "{"])
def test_what_was_cut_off_is_removed(here: Any, left: str) -> None:
    (here.path(A) / "venv").mkdir(parents=True)
    if left:
        (here.path(A) / releases.RECORD).write_text(left)
    add(here, B)
    (here.path("mine")).mkdir()
    (here.root / ".current.new").symlink_to("releases/gone")
    here.remove_incomplete()
    assert sorted(path.name for path in (here.root / "releases").iterdir()) == [B, "image", "mine"]
    here.switch(B)
    assert here.current() == B


def test_the_newest_stay_and_what_serves(here: Any) -> None:
    here.adopt()
    for day, name in enumerate((A, B, C, D, E)):
        add(here, name, static=("shared.css", f"{name}.css"), deployed=f"2026-11-0{day + 1}T00:00:00+00:00")
    here.switch(A)
    record = here.record("image")
    here.complete("image", record | {"deployed": "2026-10-01T00:00:00+00:00"})
    assert here.prune(keep=2) == [C, B]
    assert sorted(path.name for path in here.static.iterdir()) == sorted(
        ["shared.css", "site.000000000000.css", f"{A}.css", f"{D}.css", f"{E}.css"]
    )
    assert here.current() == A
    assert here.previous() == "image"


def collect(here: Any, name: str, **files: str) -> None:
    """Put static files into a release; two underscores become a slash."""
    for file, text in files.items():
        path = here.path(name) / "static" / file.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_static_files_are_published(here: Any) -> None:
    add(here, A)
    collect(here, A, admin__a_css="new", admin__b_css="b")
    (here.static / "admin").mkdir()
    (here.static / "admin" / "a.css").write_text("old")
    assert here.publish(A, replace=False) == ["admin/a.css", "admin/b.css"]
    # The active release keeps its own.
    assert (here.static / "admin" / "a.css").read_text() == "old"
    assert (here.static / "admin" / "b.css").read_text() == "b"
    here.publish(A, replace=True)
    assert (here.static / "admin" / "a.css").read_text() == "new"
    assert (here.static / "admin" / "a.css").stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in (here.static / "admin").iterdir()) == ["a.css", "b.css"]


def test_static_files_that_are_none(here: Any) -> None:
    add(here, A)
    collect(here, A, admin__a_css="a")
    (here.path(A) / "static" / "link").symlink_to("/etc/passwd")
    with pytest.raises(golden.Problem, match="link: collectstatic made something that is no plain file"):
        here.publish(A, replace=False)


def test_static_files_with_the_name_of_a_directory(here: Any) -> None:
    add(here, A)
    collect(here, A, admin="a")
    (here.static / "admin").mkdir()
    with pytest.raises(golden.Problem, match="admin: the static files of two releases have a file and a directory"):
        here.publish(A, replace=False)


def test_static_files_of_a_release_that_came_to_nothing_are_removed(here: Any) -> None:
    add(here, A, static=("shared.css",))
    here.adopt()
    collect(here, B, shared_css="", own_css="b")
    names = here.publish(B, replace=False)
    here.withdraw(names)
    assert sorted(path.name for path in here.static.iterdir()) == ["shared.css", "site.000000000000.css"]


def test_a_release_brings_its_static_files_back(here: Any, answers: Any) -> None:
    add(here, A)
    add(here, B)
    collect(here, A, site_css="a")
    collect(here, B, site_css="b")
    answers("", "/health: 500", "")
    deploy.activate(here, A)
    assert (here.static / "site.css").read_text() == "a"
    with pytest.raises(golden.Problem, match="is not healthy"):
        deploy.activate(here, B)
    assert (here.static / "site.css").read_text() == "a"


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Owners of the image do not exist on the host."""
    monkeypatch.setattr(releases, "take", lambda _top: None)


@pytest.mark.parametrize("target", ["/usr/bin/python3", "python", "../lib"])
def test_links_inside_and_to_the_interpreter(here: Any, own: None, target: str) -> None:
    add(here, A)
    bin_directory = here.path(A) / "venv" / "bin"
    bin_directory.mkdir(parents=True)
    (bin_directory / "link").symlink_to(target)
    (bin_directory / "tool").write_text("")
    (bin_directory / "tool").chmod(0o4777)
    (bin_directory / "data").write_text("")
    (bin_directory / "data").chmod(0o666)
    here.close(A)
    assert (bin_directory / "tool").stat().st_mode & 0o7777 == 0o750
    assert (bin_directory / "data").stat().st_mode & 0o7777 == 0o640
    assert bin_directory.stat().st_mode & 0o7777 == 0o750


@pytest.mark.parametrize("target", ["/etc/shadow", "../../../../image/code", "/usr/bin/../../etc/shadow"])
def test_links_out_of_a_release(here: Any, own: None, target: str) -> None:
    add(here, A)
    (here.path(A) / "code" / "link").symlink_to(target)
    with pytest.raises(golden.Problem, match="out of its release"):
        here.close(A)


def test_pipes_are_no_part_of_a_release(here: Any, own: None) -> None:
    add(here, A)
    os.mkfifo(here.path(A) / "code" / "pipe")
    with pytest.raises(golden.Problem, match="neither a file nor a directory"):
        here.close(A)


# --- activation -------------------------------------------------------------------------------------------------------


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """Set the results of restarts, one after the other; return the list of those that took place."""

    def set_up(*seen: str, page: str = "") -> list[str]:
        left, done = list(seen), []

        def restart(_releases: Any, _before: str) -> str:
            done.append("restart")
            return left.pop(0)

        monkeypatch.setattr(deploy, "restart", restart)
        monkeypatch.setattr(deploy, "page_problem", lambda: page)
        return done

    return set_up


def test_a_healthy_release_stays(here: Any, answers: Any) -> None:
    add(here, A)
    restarts = answers("")
    deploy.activate(here, A)
    assert (here.current(), here.previous(), len(restarts)) == (A, "image", 1)


@pytest.mark.parametrize(
    ("after", "message"), [("", "image serves again"), ("/health: 503", "image not healthy either: /health: 503")]
)
def test_an_ill_release_is_taken_back(here: Any, answers: Any, after: str, message: str) -> None:
    add(here, A)
    add(here, B)
    here.switch(B)
    here.switch("image")
    restarts = answers("/health: 500", after)
    with pytest.raises(golden.Problem, match=rf"the release {A} is not healthy \(/health: 500\); {message}"):
        deploy.activate(here, A)
    assert (here.current(), here.previous(), len(restarts)) == ("image", B, 2)


def test_a_release_whose_page_fails_is_taken_back(here: Any, answers: Any) -> None:
    add(here, A)
    answers("", "", page="/: 500 Server Error")
    with pytest.raises(golden.Problem, match=rf"the release {A} is not healthy \(/: 500 Server Error\); image serves again"):
        deploy.activate(here, A)
    assert here.current() == "image"


def test_the_first_ill_release_leaves_nothing_to_go_back_to(here: Any, answers: Any) -> None:
    add(here, A)
    answers("/health: 500", "")
    with pytest.raises(golden.Problem) as caught:
        deploy.activate(here, A)
    assert caught.value.code == golden.CHECK_FAILED
    assert (here.current(), here.previous()) == ("image", "")


@pytest.mark.parametrize(
    ("application", "done", "wanted"),
    [
        (None, "", None),
        ({"bundle": "/x", "sha256": "1"}, "", ("/x", "1")),
        ({"bundle": "/x", "sha256": "1"}, "1\n", None),
        ({"bundle": "/y", "sha256": "2"}, "1\n", ("/y", "2")),
    ],
)
def test_the_sites_bundle_is_deployed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, application: object, done: str, wanted: object
) -> None:
    monkeypatch.setattr(deploy, "site", lambda: {"application": application})
    monkeypatch.setattr(deploy, "SITE_DONE", tmp_path / "done")
    if done:
        (tmp_path / "done").write_text(done)
    assert deploy.wanted() == wanted


def test_a_record_is_json_that_people_can_read(here: Any) -> None:
    add(here, A)
    assert json.loads((here.path(A) / releases.RECORD).read_text())["name"] == "app"


CHECK = """System check identified some issues:

CRITICALS:
?: (app.C001) The licence is over.

ERRORS:
shop.Order.customer: (fields.E300) Field defines a relation with model 'Customer', which is not installed.
\tHINT: Install it.
shop.Order: (models.E005) The property 'total' clashes.

WARNINGS:
{warnings}

System check identified 43 issues (0 silenced).
failed: /opt/app/venv/bin/python manage.py check --deploy"""


def test_errors_of_the_checks_are_shown_and_not_their_warnings() -> None:
    text = CHECK.format(warnings="\n".join(f"?: (security.W{number:03}) You have not set this." for number in range(40)))
    assert steps.reason(text.splitlines()) == [
        "CRITICALS:", "?: (app.C001) The licence is over.", "ERRORS:",
        "shop.Order.customer: (fields.E300) Field defines a relation with model 'Customer', which is not installed.",
        "\tHINT: Install it.", "shop.Order: (models.E005) The property 'total' clashes.",
        "failed: /opt/app/venv/bin/python manage.py check --deploy",
    ]  # fmt: skip


def test_the_exception_of_a_traceback_is_shown() -> None:
    text = """Traceback (most recent call last):
  File "a.py", line 1, in <module>
    x
ValueError: first

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "b.py", line 1, in <module>
    y
django.core.exceptions.ImproperlyConfigured: Set SECRET
of two lines
failed: manage.py migrate"""
    assert steps.reason(text.splitlines()) == [
        "django.core.exceptions.ImproperlyConfigured: Set SECRET", "of two lines", "failed: manage.py migrate",
    ]  # fmt: skip


def test_without_either_the_last_lines_are_shown() -> None:
    lines = [f"line {number}" for number in range(100)]
    assert steps.reason(lines) == lines[-steps.SHOWN_LINES :]
    assert steps.reason([]) == []


def test_the_application_servers_lines_are_read_as_they_were_meant(programs: Programs) -> None:
    trace = 'Traceback (most recent call last):\n  File "a.py", line 1\nValueError: no entry for a.css'
    event = {"level": "ERROR", "msg": "Internal Server Error: /", "trace": trace}
    programs.answer("journalctl", out=f"{json.dumps(event)}\n{{no JSON\n")
    assert steps.said("a.service").splitlines() == [
        "journalctl -u a.service:", "      ValueError: no entry for a.css", "      {no JSON",
    ]  # fmt: skip


# --- migrations -------------------------------------------------------------------------------------------------------


@pytest.fixture
def units(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Set the results of units, one after the other: nothing, or the lines of a failure; return the list of runs."""

    def set_up(*ends: str) -> list[str]:
        left, done = list(ends), []

        def start(unit: str, what: str, _seconds: float) -> None:
            done.append(unit)
            if end := left.pop(0):
                raise golden.Problem(what, hint=end)

        monkeypatch.setattr(steps, "start", start)
        return done

    return set_up


REFUSED = "django.db.migrations.exceptions.InconsistentMigrationHistory: Migration admin.0001_initial is applied before ..."
MIGRATE = f"golden-deploy-migrate@{A}.service"


def test_tables_of_the_demonstration_go_aside_for_another_user_model(here: Any, units: Any) -> None:
    add(here, A)
    ran = units(REFUSED, "", "")
    assert deploy.migrate(here, A) is True
    assert ran == [MIGRATE, deploy.PUT, MIGRATE]


def test_tables_come_back_when_the_migrations_fail_all_the_same(here: Any, units: Any) -> None:
    add(here, A)
    ran = units(REFUSED, "", "ValueError: no", "")
    with pytest.raises(golden.Problem, match="the migrations failed"):
        deploy.migrate(here, A)
    assert ran == [MIGRATE, deploy.PUT, MIGRATE, deploy.BACK]


def test_used_tables_stay_where_they_are(here: Any, units: Any) -> None:
    add(here, A)
    ran = units(REFUSED, "division by zero")
    with pytest.raises(golden.Problem, match="are in use"):
        deploy.migrate(here, A)
    assert ran == [MIGRATE, deploy.PUT]


@pytest.mark.parametrize(("current", "hint"), [("image", "ValueError: no"), (B, REFUSED)])
def test_other_failures_touch_no_table(here: Any, units: Any, current: str, hint: str) -> None:
    add(here, A)
    add(here, B)
    here.switch(current)
    ran = units(hint)
    with pytest.raises(golden.Problem, match="the migrations failed"):
        deploy.migrate(here, A)
    assert ran == [MIGRATE]
