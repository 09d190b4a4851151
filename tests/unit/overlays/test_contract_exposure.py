"""The exposure of a contract: shown as a difference, limited by the site, and compared with the running machine."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.golden_modules import golden_module

contracts = golden_module("golden.contract")
exposure = golden_module("golden.exposure")
grants = golden_module("golden.grants")
check = golden_module("golden.contract_check")
site = golden_module("golden.site")
verify = golden_module("golden.verify")

DECLARED = """
processes: {worker: {command: [celery, worker]}}
jobs: {clear: {command: [clearsessions], when: daily}}
web: {paths: [{path: /api/, methods: [GET, PUT], body: 5M}]}
destinations: ["smtp.example.org:587"]
"""


def parsed(text: str) -> dict[str, Any]:
    values, faults = contracts.parse(text.encode())
    assert faults == []
    content: dict[str, Any] = values
    return content


# --- the difference ---------------------------------------------------------------------------------------------------


def test_the_difference_between_two_releases() -> None:
    before, after = parsed("web: {paths: [{path: /old}]}\ndestinations: ['192.0.2.1:25']"), parsed(DECLARED)
    assert exposure.difference(before, after) == [
        "- destination: 192.0.2.1:25", "+ destination: smtp.example.org:587", "+ job: clear: clearsessions, daily",
        "+ process: worker: celery worker", "+ web: /api/ GET, PUT; body 5M; 30 s",
        "- web: /old GET, HEAD, POST; body 1M; 30 s",
    ]  # fmt: skip
    assert exposure.difference(after, after) == []


def test_without_a_release_before_all_is_shown() -> None:
    lines = exposure.difference(None, parsed("{}"))
    assert "+ web: / GET, HEAD, POST; body 1M; 30 s" in lines
    assert all(line.startswith("+ ") for line in lines)


# --- the ceiling ------------------------------------------------------------------------------------------------------

# A contract, the allow section that refuses it, a part of the reason, and the one that lets it pass.
CASES: list[tuple[str, str, str, str]] = [
    ("destinations: ['a.example.org:25']", "{}", "destinations: a.example.org:25", "destinations: ['a.example.org:25']"),
    ("web: {body: 200M}", "{}", "body: 200M", "body: 200M"),
    ("web: {paths: [{path: /x, body: 20M}]}", "body: 10M", "body: 20M", "body: 20M"),
    ("web: {timeout: 400}", "{}", "timeout: 400 s", "timeout: 400"),
    ("web: {administration: []}", "{}", "open to everybody: /admin, /django-admin", "administration: []"),
    ("web: {administration: [/admin]}", "{}", "open to everybody: /django-admin", "administration: [/admin]"),
    ("web: {methods: [GET, PUT]}", "methods: [GET, POST]", "methods: PUT", "methods: [GET, PUT]"),
    ("web: {paths: [{path: /a, methods: [PATCH]}]}", "methods: [GET, HEAD, POST]", "methods: PATCH",
     "methods: [GET, HEAD, POST, PATCH]"),
    ("{entry: {asgi: 'a.b:c'}, web: {websockets: [/ws/]}}", "websockets: false", "websockets: /ws/", "websockets: true"),
    ("processes: {a: {command: [x]}}", "processes: 0", "processes: 1", "processes: 1"),
    ("jobs: {a: {command: [x], when: daily}}", "jobs: 0", "jobs: 1", "jobs: 1"),
    ("database: {extensions: [pg_trgm]}", "extensions: false", "extensions: pg_trgm", "extensions: true"),
    ("media: {kinds: [{suffixes: [mp4], type: video/mp4, send: inline}]}", "inline_media: false", "inline: video/mp4",
     "inline_media: true"),
]  # fmt: skip


def allow(text: str) -> dict[str, Any]:
    """Return application.allow as the site settings read it."""
    content = yaml.safe_load(text)
    settings, faults = site.parse(yaml.safe_dump({"application": {"allow": content}}))
    assert faults == []
    found: dict[str, Any] = settings["application"]["allow"]
    return found


@pytest.mark.parametrize(("declared", "refusing", "reason", "allowing"), CASES)
def test_what_the_site_does_not_allow_is_refused(declared: str, refusing: str, reason: str, allowing: str) -> None:
    (problem,) = exposure.beyond(parsed(declared), allow(refusing))
    assert reason in problem
    assert exposure.beyond(parsed(declared), allow(allowing)) == []
    # The setting that the error message suggests makes it acceptable.
    written = problem.rpartition("site.yaml: ")[2].removesuffix(")")
    assert exposure.beyond(parsed(declared), allow(written)) == []


def test_the_default_contract_is_within_the_default_ceiling() -> None:
    assert exposure.beyond(parsed("{}"), {}) == []


@pytest.mark.parametrize(
    ("text", "key"),
    [("application: {allow: {methods: [PUSH]}}", "application.allow.methods[0]"),
     ("application: {allow: {destinations: [smtp]}}", "application.allow.destinations[0]"),
     ("application: {allow: {body: 1T}}", "application.allow.body"),
     ("application: {allow: {websockets: 1}}", "application.allow.websockets"),
     ("application: {bundle: /srv/x}", "application.sha256"),
     ("application: {secrets: {Key: /etc/golden/x}}", "application.secrets"),
     ("application: {secrets: {key: /tmp/x}}", "application.secrets"),
     ("application: {colour: x}", "application.colour")],
)  # fmt: skip
def test_a_wrong_setting_opens_nothing(text: str, key: str) -> None:
    settings, faults = site.parse(text)
    assert [fault.key for fault in faults] == [key]
    assert settings["application"] is None


# --- the running machine ----------------------------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A machine that grants what the contract of its release declares."""
    release = tmp_path / "opt/app/current"
    (release / "code").mkdir(parents=True)
    (release / "code" / contracts.NAME).write_text(DECLARED)
    grants.write(contracts.load(release / "code")[0], release)
    served = tmp_path / "run/golden/app"
    served.mkdir(parents=True)
    for path in (release / "grants/nginx").iterdir():
        (served / path.name).write_bytes(path.read_bytes())
    (tmp_path / "run/golden/site.json").write_text('{"application": {"allow": {"destinations": ["smtp.example.org:587"]}}}')
    return tmp_path


UNITS = ("application-worker.service", "application-job-clear.timer", "golden-destinations.timer")


def compared(machine: Path, state: str = "active") -> list[str]:
    def properties(unit: str, _names: Iterable[str]) -> dict[str, str]:
        assert unit in UNITS
        return {"ActiveState": state}

    found: list[str] = check.compare(lambda path: machine / path.lstrip("/"), properties)
    return found


def test_a_machine_that_grants_the_contract(machine: Path) -> None:
    assert compared(machine) == []


@pytest.mark.parametrize(
    ("path", "reason"),
    [("run/golden/app/locations.conf", "locations.conf differs from the contract"),
     ("run/golden/app/more.conf", "more.conf is not of the contract"),
     ("opt/app/current/grants/environment", "environment differs from the contract"),
     ("opt/app/current/grants/systemd/application-worker.service", "application-worker.service differs"),
     ("run/golden/site.json", "destinations: smtp.example.org:587")],
)  # fmt: skip
def test_a_machine_that_differs(machine: Path, path: str, reason: str) -> None:
    (machine / path).write_text("{}")
    (problem,) = compared(machine)
    assert reason in problem


def test_a_process_that_does_not_run(machine: Path) -> None:
    assert compared(machine, "failed") == [f"{unit} is failed" for unit in UNITS]


def test_golden_verify_skips_an_application_without_a_contract(tmp_path: Path) -> None:
    system = verify.System(tmp_path)
    with pytest.raises(verify.Skip):
        golden_module("golden.verify_kinds.contract").find(system, {})
