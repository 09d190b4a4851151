"""What the image adds around every request of a project: the client's address, and the health check."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from .conftest import ROOT, Project

GOLDEN_APP = ROOT / "overlays/40-app/rootfs/usr/lib/golden-app"


@pytest.fixture
def middleware(project: Project, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, imported as the project's processes do."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(GOLDEN_APP)])
    return project.module("golden_app.middleware")


def answered(project: Project, middleware: Any, path: str, status: int, **headers: str) -> tuple[Any, Any]:
    """Return the request as a project's view sees it, and the response, of a project that answers with a status."""
    seen = []

    def view(request: Any) -> Any:
        seen.append(request)
        return project.module("django.http").HttpResponse("own", status=status)

    request = project.module("django.test").RequestFactory().get(path, **headers)
    return seen, middleware.surroundings(view)(request)


@pytest.mark.parametrize("status", [404, 301, 302, 403, 405])
def test_health_is_answered_for_a_project_without_it(project: Project, middleware: Any, status: int) -> None:
    _seen, response = answered(project, middleware, "/health", status)
    assert (response.status_code, json.loads(response.content)) == (200, {"db": "ok"})


@pytest.mark.parametrize("status", [200, 204, 400, 500, 503])
def test_the_projects_own_health_counts(project: Project, middleware: Any, status: int) -> None:
    _seen, response = answered(project, middleware, "/health", status)
    assert (response.status_code, response.content) == (status, b"own")


def test_other_pages_that_are_not_there_stay_so(project: Project, middleware: Any) -> None:
    _seen, response = answered(project, middleware, "/healthy", 404)
    assert response.status_code == 404


def test_health_without_a_database(project: Project, middleware: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def cursor() -> None:
        raise project.module("django.db").OperationalError("gone")

    monkeypatch.setattr(middleware.connection, "cursor", cursor)
    _seen, response = answered(project, middleware, "/health", 404)
    assert (response.status_code, json.loads(response.content)) == (503, {"db": "OperationalError"})


@pytest.mark.parametrize(
    ("given", "address"), [("192.0.2.7", "192.0.2.7"), ("2001:DB8::7", "2001:db8::7"), ("x", ""), ("", "")]
)
def test_the_address_is_the_one_of_the_web_server(project: Project, middleware: Any, given: str, address: str) -> None:
    (request,), _response = answered(project, middleware, "/", 200, HTTP_X_FORWARDED_FOR=given)
    assert request.META["REMOTE_ADDR"] == address


def test_asynchronous_projects(project: Project, middleware: Any) -> None:
    async def view(request: Any) -> Any:
        return project.module("django.http").HttpResponse("own", status=404)

    request = project.module("django.test").RequestFactory().get("/page", HTTP_X_FORWARDED_FOR="192.0.2.7")
    response = project.module("asgiref.sync").async_to_sync(middleware.surroundings(view))(request)
    assert (response.status_code, request.META["REMOTE_ADDR"]) == (404, "192.0.2.7")
