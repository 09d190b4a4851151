"""A deployment from bundle to switch, with recorded programs: refusals, the order of the steps, the rollback."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.unit.golden_modules import golden_module
from tests.unit.overlays.conftest import Programs

bundles = golden_module("golden.bundle")
core = golden_module("golden.core")
deploy = golden_module("golden.deploy")
grants = golden_module("golden.grants")
releases = golden_module("golden.releases")
trial = golden_module("golden.trial")

TRIAL = (
    "start application-candidate.service",
    "stop application-candidate.socket application-candidate.service",
)  # fmt: skip
WORKER = "processes: {worker: {command: [manage.py, work]}}\n"


class Machine:
    """Releases in a directory of the test, and bundles."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.releases = releases.Releases(top / "app", top / "static")
        (top / "app/releases/image/code").mkdir(parents=True)
        (top / "static").mkdir()
        (top / "app/current").symlink_to("releases/image")
        grants.write(deploy.contract.load(top / "app/releases/image/code")[0], top / "app/releases/image")

    def bundle(self, name: str, contract: str) -> tuple[str, str]:
        files = {"code/manage.py": b"", "code/golden-app.yaml": contract.encode(), "requirements.lock": b""}
        facts = {path: {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()} for path, body in files.items()}
        manifest = json.dumps({"format": bundles.FORMAT, "name": name, "files": facts}).encode()
        path = self.top / f"{name}.bundle"
        with tarfile.open(path, "w") as archive:
            for inside, body in {"manifest.json": manifest, **files}.items():
                info = tarfile.TarInfo(inside)
                info.size = len(body)
                archive.addfile(info, io.BytesIO(body))
        return str(path), hashlib.sha256(path.read_bytes()).hexdigest()

    def site(self, **application: Any) -> None:
        (self.top / "site.json").write_text(json.dumps({"application": application}))

    def served(self) -> str:
        return (self.top / "served/app/locations.conf").read_text()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, programs: Programs) -> Machine:
    """A machine on which all programs succeed and the application is healthy."""
    found = Machine(tmp_path)
    monkeypatch.setattr(deploy, "Releases", lambda: found.releases)
    for module in (core, deploy):
        monkeypatch.setattr(module, "SITE", tmp_path / "site.json")
    monkeypatch.setattr(grants, "SERVED", tmp_path / "served/app")
    for name in ("wait_healthy", "page_problem", "missing_page"):
        for module in (deploy, trial):
            monkeypatch.setattr(module, name, lambda *_words: "")
    monkeypatch.setattr(trial, "CANDIDATE", tmp_path / "candidate")
    monkeypatch.setattr(shutil, "chown", lambda *_words, **_names: None)
    monkeypatch.setattr(deploy, "lend", lambda *_words: None)
    monkeypatch.setattr(releases, "take", lambda *_words: None)
    monkeypatch.setattr(deploy.static_files, "check", lambda *_words: None)
    return found


def calls(programs: Programs) -> list[str]:
    """Return the commands to systemd, without queries."""
    return [" ".join(argv) for argv in programs.named("systemctl") if argv[0] not in ("show", "reset-failed")]


def test_the_steps_of_a_deployment(machine: Machine, programs: Programs) -> None:
    path, digest = machine.bundle("shop", WORKER)
    result = deploy.deploy(path, digest, backup=False)
    name = digest[:12]
    assert calls(programs) == [
        f"start golden-deploy-build@{name}.service", f"start golden-deploy-check@{name}.service",
        f"start golden-deploy-roles@{name}.service", f"start golden-deploy-owner@{name}.service",
        "daemon-reload", f"start golden-deploy-migrate@{name}.service", *TRIAL, "daemon-reload",
        "restart gunicorn.service application-worker.service", "reload nginx.service",
        "start --no-block golden-deploy-accept.service",
    ]  # fmt: skip
    (verified,) = programs.named("systemd-analyze")
    assert verified[-2:] == ["gunicorn.service", "application-worker.service"]
    assert result["opens"] == ["+ process: worker: manage.py work"]
    assert machine.releases.current() == name
    assert machine.served() == (machine.releases.path(name) / "grants/nginx/locations.conf").read_text()


def test_a_bundle_with_an_address_is_fetched_by_a_unit(
    machine: Machine, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, digest = machine.bundle("shop", "")
    address, fetched, seen = machine.top / "address", machine.top / "fetched", []
    monkeypatch.setattr(deploy, "ADDRESS", address)
    monkeypatch.setattr(bundles, "FETCHED", fetched)
    start = deploy.steps.start

    def fetch(unit: str, what: str, seconds: float) -> None:
        if unit == deploy.FETCH_SERVICE:
            seen.append((address.read_text(), address.stat().st_mode & 0o777))
            shutil.copyfile(path, fetched)
        start(unit, what, seconds)

    monkeypatch.setattr(deploy.steps, "start", fetch)
    assert deploy.deploy("https://files.example.org/shop.bundle", digest, backup=False)["changed"]
    assert seen == [("https://files.example.org/shop.bundle", 0o600)]
    assert calls(programs)[0] == "start golden-deploy-fetch.service"
    assert not address.exists()
    assert not fetched.exists()
    programs.answer("golden-deploy-fetch.service", status=1)
    with pytest.raises(core.Problem, match=r"https://files\.example\.org/other cannot be fetched"):
        deploy.deploy("https://files.example.org/other", "0" * 64, backup=False)
    assert not address.exists()
    assert not fetched.exists()
    with pytest.raises(core.Problem, match="a path or an https:// address"):
        deploy.deploy("http://files.example.org/other", "0" * 64, backup=False)
    assert len(seen) == 2


def test_a_link_in_place_of_the_fetched_bundle_is_not_followed(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    path, digest = machine.bundle("shop", "")
    link = machine.top / "fetched"
    link.symlink_to(path)
    assert bundles.read(link, digest).name == "shop"
    monkeypatch.setattr(bundles, "FETCHED", link)
    with pytest.raises(core.Problem, match="fetched"):
        bundles.read(link, digest)


def test_a_refusal_changes_nothing(machine: Machine, programs: Programs) -> None:
    path, digest = machine.bundle("shop", "destinations: ['a.example.org:25']\nsecrets: [key]\n")
    with pytest.raises(core.Problem, match="opens more than the site allows") as caught:
        deploy.deploy(path, digest, backup=False)
    assert caught.value.code == core.CHECK_FAILED
    assert 'destinations: ["a.example.org:25"]' in str(caught.value)
    assert "application.secrets of /etc/golden/site.yaml: key" in str(caught.value)
    assert calls(programs) == []
    assert machine.releases.current() == "image"
    assert [path.name for path in (machine.top / "app/releases").iterdir()] == ["image"]
    machine.site(bundle=None, allow={"destinations": ["a.example.org:25"]}, secrets={"key": "/etc/golden/key"})
    assert deploy.deploy(path, digest, backup=False)["changed"]
    assert "start golden-destinations.service" in calls(programs)


def test_what_a_bundle_opens_is_shown_and_nothing_changed(
    machine: Machine, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploy, "STATE", machine.top)
    path, digest = machine.bundle("shop", f"{WORKER}destinations: ['a.example.org:25']\n")
    before = sorted(machine.top.rglob("*"))
    shown = deploy.compare(path, digest)
    assert shown["opens"] == ["+ destination: a.example.org:25", "+ process: worker: manage.py work"]
    assert (shown["ok"], len(shown["not_allowed"])) == (False, 1)
    assert "a.example.org:25" in shown["not_allowed"][0]
    machine.site(bundle=None, allow={"destinations": ["a.example.org:25"]})
    assert deploy.compare(path, digest)["ok"]
    (machine.top / "site.json").unlink()
    assert sorted(machine.top.rglob("*")) == before
    assert programs.named("systemctl") == []


def test_faults_of_a_contract_are_shown(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploy, "STATE", machine.top)
    with pytest.raises(core.Problem, match=r"golden-app\.yaml") as caught:
        deploy.compare(*machine.bundle("shop", "processes: 3\n"))
    assert caught.value.code == core.CHECK_FAILED


def test_rules_that_nginx_does_not_take_are_refused(machine: Machine, programs: Programs) -> None:
    path, digest = machine.bundle("shop", "{}")
    programs.answer("systemctl", "start", f"golden-deploy-check@{digest[:12]}.service", status=1)
    programs.answer("journalctl", out="nginx: [emerg] unknown directive\n")
    with pytest.raises(core.Problem, match="the web server does not take the rules") as caught:
        deploy.deploy(path, digest, backup=False)
    assert "unknown directive" in caught.value.hint
    assert not any("migrate" in call for call in calls(programs))
    assert [path.name for path in (machine.top / "app/releases").iterdir()] == ["image"]


def test_units_that_systemd_does_not_take_are_refused(machine: Machine, programs: Programs) -> None:
    path, digest = machine.bundle("shop", WORKER)
    top = machine.releases.path(digest[:12]) / "grants/systemd"
    programs.answer("systemd-analyze", err=f"{top}/application-worker.service:3: Unknown key, ignoring.\n")
    with pytest.raises(core.Problem, match="Unknown key"):
        deploy.deploy(path, digest, backup=False)
    assert machine.releases.current() == "image"


def test_grants_go_back_with_a_release_that_is_not_well(
    machine: Machine, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, digest = machine.bundle("shop", f"{WORKER}web: {{body: 5M}}\n")
    answers = iter(["/health: 503", ""])
    monkeypatch.setattr(deploy, "wait_healthy", lambda *_words: next(answers))
    with pytest.raises(core.Problem, match="is not healthy"):
        deploy.deploy(path, digest, backup=False)
    assert machine.releases.current() == "image"
    assert calls(programs)[-7:] == [
        "reload nginx.service", "start golden-deploy-roles@image.service", "start golden-deploy-owner@image.service",
        "stop -- application-worker.service", "daemon-reload", "restart gunicorn.service", "reload nginx.service",
    ]  # fmt: skip
    assert machine.served() == (machine.releases.path("image") / "grants/nginx/locations.conf").read_text()


def test_a_rollback_takes_the_grants_along(machine: Machine, programs: Programs) -> None:
    path, digest = machine.bundle("shop", WORKER)
    deploy.deploy(path, digest, backup=False)
    programs.started.clear()
    deploy.roll_back()
    assert calls(programs)[:5] == [
        "start golden-deploy-roles@image.service", "start golden-deploy-owner@image.service",
        "stop -- application-worker.service", "daemon-reload", "restart gunicorn.service",
    ]  # fmt: skip
    assert machine.releases.current() == "image"


def test_an_unhealthy_release_never_serves(machine: Machine, programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    path, digest = machine.bundle("shop", "health: {path: /up, pages: [/, /about, /media/a.txt]}\n")
    name = digest[:12]
    asked: list[tuple[object, ...]] = []

    def answer(*words: object) -> str:
        asked.append(words)
        return "/about: 500" if words[0] == ["/", "/about"] else ""

    monkeypatch.setattr(trial, "wait_healthy", answer)
    monkeypatch.setattr(trial, "missing_page", answer)
    programs.answer("journalctl", out="KeyError: 'price'\n")
    with pytest.raises(core.Problem, match=r"is not healthy, and never served: /about: 500; image goes on") as caught:
        deploy.deploy(path, digest, backup=False)
    assert caught.value.code == core.CHECK_FAILED
    assert "KeyError: 'price'" in caught.value.hint
    assert asked == [([],), (deploy.HEALTHY_SECONDS, "/up", trial.SOCKET), (["/", "/about"], trial.SOCKET)]
    assert calls(programs)[4:] == [
        "daemon-reload", f"start golden-deploy-migrate@{name}.service", *TRIAL,
        "start golden-deploy-roles@image.service", "start golden-deploy-owner@image.service",
    ]  # fmt: skip
    assert machine.releases.current() == "image"
    assert not trial.CANDIDATE.is_symlink()


def test_a_release_that_does_not_start_never_serves(machine: Machine, programs: Programs) -> None:
    path, digest = machine.bundle("shop", "{}")
    programs.answer("systemctl", "start", trial.SERVICE, status=1)
    programs.answer(
        "journalctl", out="Traceback (most recent call last):\n  File x\nModuleNotFoundError: No module named 'shop'\n"
    )
    with pytest.raises(core.Problem, match="never served: it does not start; image goes on") as caught:
        deploy.deploy(path, digest, backup=False)
    assert "No module named 'shop'" in caught.value.hint
    assert f"stop {trial.SOCKET_UNIT} {trial.SERVICE}" in calls(programs)
    assert machine.releases.current() == "image"


def test_a_release_is_tried_with_its_own_grants(
    machine: Machine, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.site(bundle=None, allow={"destinations": ["a.example.org:25"]})
    path, digest = machine.bundle("shop", "destinations: ['a.example.org:25']\n")
    tried = []

    def look(*_words: object) -> str:
        tried.append(grants.read(trial.CANDIDATE)["destinations"])
        return ""

    monkeypatch.setattr(trial, "wait_healthy", look)
    deploy.deploy(path, digest, backup=False)
    assert tried == [["a.example.org:25"]]
    assert [call for call in calls(programs) if "destinations" in call or "candidate" in call] == [
        "start golden-destinations.service", *TRIAL, "start golden-destinations.service",
        "start golden-destinations.service", "restart gunicorn.service golden-destinations.timer",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("collected", "problem"), [("a.css", ""), ("b.css", "/static/a.css: collectstatic has not made it")]
)
def test_a_static_file_that_the_contract_names_is_of_the_release(
    tmp_path: Path, programs: Programs, monkeypatch: pytest.MonkeyPatch, collected: str, problem: str
) -> None:
    monkeypatch.setattr(trial, "CANDIDATE", tmp_path / "candidate")
    for name in ("wait_healthy", "page_problem", "missing_page"):
        monkeypatch.setattr(trial, name, lambda *_words: "")
    (tmp_path / "static").mkdir()
    (tmp_path / "static" / collected).touch()
    contract = deploy.contract.parse(b"health: {pages: [/static/a.css]}")[0]
    found = trial.problem(tmp_path, contract, 1)
    assert (found.brief if found else "") == problem


def test_a_page_that_the_contract_names_has_to_answer(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    path, digest = machine.bundle("shop", "health: {pages: [/, /about]}\n")
    asked: list[list[str]] = []

    def missing(pages: list[str]) -> str:
        asked.append(pages)
        return "/about: 500"

    monkeypatch.setattr(deploy, "missing_page", missing)
    with pytest.raises(core.Problem, match="/about: 500"):
        deploy.deploy(path, digest, backup=False)
    assert asked == [["/", "/about"]]
