from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest

from .conftest import PASSWORD, Project, code_of, forget_codes


def attempt(project: Project, path: str = "/login", **fields: str) -> Any:
    forget_codes(project)
    return project.client().post(path, {"username": "member", "password": PASSWORD, "token": ""} | fields)


def errors(answer: Any) -> tuple[str, ...]:
    found = tuple(re.findall(r'<ul class="errorlist.*?</ul>', answer.content.decode(), re.DOTALL))
    assert found
    return found


@pytest.mark.req("R98")
def test_password_and_code_together_are_a_login(project: Project, member: dict[str, Any]) -> None:
    answer = attempt(project, token=code_of(member["otpauth"]))
    assert (answer.status_code, answer["Location"]) == (302, "/upload")
    cookie = answer.cookies["__Host-session"]
    assert (cookie["secure"], cookie["httponly"], cookie["path"], cookie["samesite"]) == (True, True, "/", "Lax")


@pytest.mark.req("R98")
def test_who_fails_is_not_told_at_what(project: Project, member: dict[str, Any]) -> None:
    code = code_of(member["otpauth"])
    wrong = f"{(int(code) + 1) % 1_000_000:06d}"
    answers = [
        attempt(project, password="wrong" * 4, token=code), attempt(project, token=wrong),
        attempt(project, username="nobody", token=code),
    ]  # fmt: skip
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert len({errors(answer) for answer in answers}) == 1
    assert errors(attempt(project)) == errors(attempt(project, password="wrong" * 4))


@pytest.mark.req("R98")
def test_code_is_good_once(project: Project, member: dict[str, Any]) -> None:
    code = code_of(member["otpauth"])
    assert attempt(project, token=code).status_code == 302
    again = project.client().post("/login", {"username": "member", "password": PASSWORD, "token": code})
    assert again.status_code == 200


@pytest.mark.req("R98")
def test_guessing_codes_is_slowed_down(project: Project, member: dict[str, Any]) -> None:
    code = code_of(member["otpauth"])
    assert attempt(project, token="000000" if code != "000000" else "000001").status_code == 200
    devices = project.module("django_otp.plugins.otp_totp.models").TOTPDevice.objects.filter(user__username="member")
    assert devices.get().throttling_failure_count == 1
    # The eighth time: two minutes instead of one second, however slow this host is.
    devices.update(throttling_failure_count=8)
    at_once = project.client().post("/login", {"username": "member", "password": PASSWORD, "token": code})
    assert at_once.status_code == 200
    forget_codes(project)


@pytest.mark.req("R98")
def test_administration_wants_staff_and_code(
    project: Project, member: dict[str, Any], administrator: dict[str, Any]
) -> None:
    assert project.client().get("/admin/")["Location"] == "/admin/login/?next=/admin/"
    path = "/admin/login/?next=/admin/"
    assert attempt(project, path, token=code_of(member["otpauth"])).status_code == 200
    assert attempt(project, path, username="chief").status_code == 200
    forget_codes(project)
    client = project.client()
    answer = client.post(path, {"username": "chief", "password": PASSWORD, "token": code_of(administrator["otpauth"])})
    assert (answer.status_code, answer["Location"]) == (302, "/admin/")
    for page in ("/admin/", "/admin/pages/page/", "/admin/pages/page/add/", "/admin/pages/upload/", "/admin/auth/user/"):
        assert client.get(page).status_code == 200, page


@pytest.mark.req("R98")
def test_password_alone_does_not_administer(project: Project, administrator: dict[str, Any]) -> None:
    assert administrator["administrator"]
    client = project.client()
    client.force_login(project.module("django.contrib.auth").get_user_model().objects.get(username="chief"))
    assert client.get("/admin/").status_code == 302
    assert client.get("/upload")["Location"] == "/login?next=/upload"


@pytest.mark.req("R81")
@pytest.mark.parametrize("password", ["short", "thirteen-char", "12345678901234567890", "password", "newcomer-newcomer"])
def test_weak_passwords_are_refused(project: Project, password: str) -> None:
    error = project.module("django.core.management").CommandError
    with pytest.raises(error, match="password"):
        project.account("newcomer-newcomer", password=password)
    assert not project.module("django.contrib.auth").get_user_model().objects.filter(username="newcomer-newcomer")


def test_account_again_renews_password_and_device(project: Project) -> None:
    first = project.account("renewed")
    second = project.account("renewed", password="another long passphrase")
    assert first["otpauth"] != second["otpauth"]
    fields = {"username": "renewed", "token": code_of(second["otpauth"])}
    assert attempt(project, **fields).status_code == 200
    assert attempt(project, **fields, password="another long passphrase").status_code == 302


@pytest.mark.req("R99")
def test_accounts_are_listed_and_closed(project: Project, member: dict[str, Any]) -> None:
    otpauth = project.account("leaver")["otpauth"]
    assert project.command("account", "leaver", "--disable") == {"name": "leaver", "active": False}
    assert attempt(project, username="leaver", token=code_of(otpauth)).status_code == 200
    accounts = {account["name"]: account for account in project.command("accounts")}
    assert accounts["leaver"]["active"] is False
    assert accounts["member"]["one_time_code"] is True
    assert accounts["member"]["administrator"] is False
    assert member["name"] in accounts


def test_login_is_logged_with_the_clients_address(
    project: Project, member: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "app.login")
    attempt(project, token=code_of(member["otpauth"]))
    attempt(project, password="wrong" * 4, token="1")
    attempt(project, token="000000" if code_of(member["otpauth"]) != "000000" else "000001")
    said = [(record.getMessage(), vars(record)["fields"]["ip"]) for record in caplog.records if record.name == "app.login"]
    assert said == [("login", "192.0.2.7"), ("login refused", "192.0.2.7"), ("one-time code refused", "192.0.2.7")]
    assert PASSWORD not in caplog.text


def test_expired_sessions_are_forgotten(project: Project, member: dict[str, Any]) -> None:
    sessions = project.module("django.contrib.sessions.models").Session.objects
    old = project.module("django.utils.timezone").now().replace(year=2020)
    sessions.create(session_key="old", session_data="", expire_date=old)
    attempt(project, token=code_of(member["otpauth"]))
    assert not sessions.filter(session_key="old")


@pytest.mark.parametrize("given", ["https://other.test/", "//other.test/"])
def test_login_leads_nowhere_else(project: Project, member: dict[str, Any], given: str) -> None:
    assert attempt(project, token=code_of(member["otpauth"]), next=given)["Location"] == "/upload"


def test_forms_want_their_token(project: Project) -> None:
    answer = project.client(enforce_csrf_checks=True).post("/login", {"username": "member"})
    assert answer.status_code == 403


@pytest.mark.req("R48", "R98")
def test_password_needs_a_place(project: Project, member: dict[str, Any], tmp_path: Path) -> None:
    """All workers but one hash passwords; further logins get 503 at once, and later the normal answer"""
    hashing = project.module("project.hashing")
    override = project.module("django.test.utils").override_settings
    with override(HASHING_PLACES=1, HASHING_DIRECTORY=str(tmp_path)):
        with hashing.place(str(tmp_path), 1):
            answer = attempt(project, password="wrong" * 4)
            assert (answer.status_code, answer["Retry-After"]) == (503, "5")
            with pytest.raises(hashing.NoPlace), hashing.place(str(tmp_path), 1):
                pass
            with hashing.place(str(tmp_path), 2):
                pass
        assert attempt(project, password="wrong" * 4).status_code == 200
    assert project.module("django.conf").settings.HASHING_PLACES == 0
