"""An API: the methods that it declares, pages of other origins, and the client that it sees."""

from __future__ import annotations

import json

from .conftest import Browser

JSON = {"Content-Type": "application/json"}
ORIGIN = "https://pages.example.org"


def test_methods(page: Browser) -> None:
    """An item is made, replaced, changed, read and removed; a method that is not declared is refused"""
    made = page.get("/api/items/", method="POST", body=json.dumps({"title": "one"}), headers=JSON)
    assert made.status == 201, made
    path = f"/api/items/{json.loads(made.body)['id']}/"
    assert page.get(path, method="PUT", body=json.dumps({"title": "two"}), headers=JSON).status == 200
    assert page.get(path, method="PATCH", body=json.dumps({"title": "three"}), headers=JSON).status == 200
    assert json.loads(page.get(path).body)["title"] == "three"
    assert page.get(path, method="DELETE").status == 204
    assert page.get(path).status == 404
    assert page.get(path, method="TRACE").status in (403, 405)


def test_pages_of_other_origins(page: Browser) -> None:
    """A browser asks before it sends a request from a page of another site, and gets what may be sent"""
    question = {"Origin": ORIGIN, "Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "content-type"}
    answer = page.get("/api/items/", method="OPTIONS", headers=question)
    assert answer.status == 200, answer
    assert answer.header("Access-Control-Allow-Origin") == [ORIGIN]
    assert "PUT" in answer.header("Access-Control-Allow-Methods")[0]
    assert page.get("/api/items/", headers={"Origin": ORIGIN}).header("Access-Control-Allow-Origin") == [ORIGIN]


def test_description(page: Browser) -> None:
    """The description of the API has the suffix of a file, and is the application's"""
    answer = page.get("/api/openapi.yaml")
    assert answer.status == 200
    assert answer.body.startswith("openapi:")


def test_client(page: Browser) -> None:
    """The application knows the client's address, and that it came over TLS; a header of the client changes neither"""
    said = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "http"}
    assert json.loads(page.get("/api/whoami", headers=said).body) == {"address": "127.0.0.1", "secure": True}
