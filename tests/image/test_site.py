"""Site settings: the defaults are safe, errors are reported and open nothing, valid settings are applied at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from testinfra.host import Host

from .facts import Fact, ask, browse, gather, properties
from .remote import until

pytestmark = pytest.mark.story
BAD = "/run/golden-test-site.yaml"


@pytest.fixture(scope="module")
def facts(host: Host) -> Iterator[dict[str, Fact]]:
    """The command and the unit with the clone's settings, and with an invalid file."""
    yield gather(
        host,
        {
            "settings": "golden-site --show --json",
            "access": "stat -c '%a %U:%G' /run/golden/site.json /etc/golden",
            "unit": "systemctl show -p ActiveState -p Result -p OnFailure -p Before -p After golden-site.service",
            "order": "systemctl show -p After -p Wants golden-names.service",
            "exposure": "systemd-analyze security --no-pager golden-site.service | tail -1",
            "bad": f"printf 'admin_cidrs: [0.0.0.0/0, 192.0.2.0/24]\\nserver_nam: [x]\\n' >{BAD}; chmod 600 {BAD}; "
            f"golden-site --check {BAD} --json",
            "schema": "golden-site --schema | diff - /usr/share/golden/site.schema.json && golden-site --schema",
            "bad status": f"golden-site --check {BAD} >&2",
            "example": "golden-site --check /etc/golden/site.yaml.example",
            "again": "sha256sum /run/golden/* >/run/golden-test.before; systemctl restart golden-site.service; "
            "sha256sum /run/golden/* | diff /run/golden-test.before -",
        },
    )
    host.run("rm -f %s /run/golden-test.before", BAD)


@pytest.mark.req("R30", "R65")
def test_settings_are_complete(facts: dict[str, Fact], expected: dict[str, Any]) -> None:
    """The effective settings contain every key, and only root can read them"""
    found = json.loads(facts["settings"].text)
    assert set(found["settings"]) == set(expected["site_keys"])
    assert found["problems"] == []
    assert facts["access"].lines == ["600 root:root", "755 root:root"]


@pytest.mark.req("R9", "F33")
def test_unit_works_before_those_that_use_it(facts: dict[str, Fact], expected: dict[str, Any]) -> None:
    """The settings are read after cloud-init's files are written and before their users start, without a network"""
    unit = properties(facts["unit"])
    assert (unit["ActiveState"], unit["Result"]) == ("active", "success")
    assert "golden-alert@golden-site.service.service" in unit["OnFailure"]
    assert "cloud-init-network.service" in unit["After"].split()
    users = {"golden-names.service", "rsyslog.service"} | ({"nginx.service"} if 80 in expected["ports"] else set())
    assert users <= set(unit["Before"].split())
    assert "network-online.target" not in unit["After"]
    assert "golden-site.service" in properties(facts["order"])["Wants"].split()


@pytest.mark.layers("50-nginx")
@pytest.mark.req("R9")
def test_the_web_server_waits_for_the_settings(facts: dict[str, Fact]) -> None:
    """The settings are read before the web server starts, because its configuration includes their result"""
    assert "nginx.service" in properties(facts["unit"])["Before"].split()


@pytest.mark.req("R30")
def test_faults_are_named_and_open_nothing(facts: dict[str, Fact]) -> None:
    """Each error in a file is reported with its key and a fix, and invalid values are ignored"""
    found = json.loads(facts["bad"].text)
    assert facts["bad"].status == facts["bad status"].status == 3
    assert [one["key"] for one in found["problems"]] == ["admin_cidrs[0]", "server_nam"]
    assert all(one["remedy"] for one in found["problems"])
    assert found["settings"]["admin_cidrs"] == ["192.0.2.0/24"]
    assert "0.0.0.0/0" in facts["bad status"].text


@pytest.mark.req("R30")
def test_the_schema_has_the_keys_of_this_image(
    facts: dict[str, Fact], expected: dict[str, Any], spec: SimpleNamespace
) -> None:
    """The schema for editors has the keys of the image's layers, and an unknown key is an error with the image's name"""
    assert set(json.loads(facts["schema"].text)["properties"]) == set(expected["site_keys"])
    assert f"no layer of the image {spec.name} has this key" in facts["bad status"].text


@pytest.mark.req("R4")
def test_reading_again_changes_nothing(facts: dict[str, Fact]) -> None:
    """Reading the settings a second time creates the same files"""
    assert facts["again"].status == 0, facts["again"].text
    assert float(facts["exposure"].text.split("service: ")[1].split()[0]) <= 2.0


LONGEST = ".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 61])
ONCE = "/run/systemd/system/nginx.service.d"
RESTORE = (
    "rm -f /etc/nginx/conf.d/99-broken.conf /etc/golden/site.yaml; test ! -e /run/golden-test.kept || "
    "mv /run/golden-test.kept /etc/golden/site.yaml; systemctl reset-failed nginx.service; golden-site apply >/dev/null"
)


@pytest.mark.layers("50-nginx")
@pytest.mark.minutes
@pytest.mark.req("R4", "F30")
def test_apply_tries_the_web_server_and_starts_it_again(host: Host) -> None:
    """golden-site apply: a name of 253 characters works; a refusal by nginx changes nothing; a failed nginx is started"""
    broken = "/etc/nginx/conf.d/99-broken.conf"
    found = gather(
        host,
        {
            "keep": "test ! -e /etc/golden/site.yaml || cp -p /etc/golden/site.yaml /run/golden-test.kept",
            "long": f"echo 'server_names: [{LONGEST}]' >/etc/golden/site.yaml; golden-site apply --json",
            "stranger": "systemd-run --quiet --unit golden-test-stranger false; "
            f"echo 'no_such_directive;' >{broken}; echo 'server_names: [www.example.org]' >/etc/golden/site.yaml",
            "refused": "golden-site apply",
            "unchanged": "cut -d' ' -f1 /run/golden/names; systemctl is-active nginx.service; ls -d /run/golden-trial-*",
            # systemd would restart it for a minute.
            "dead": f"mkdir -p {ONCE}; printf '[Service]\\nRestart=no\\n' >{ONCE}/99-test.conf; systemctl daemon-reload; "
            f"systemctl restart nginx.service; {until('systemctl is-failed -q nginx.service', 30, pause=1)}; "
            f"rm -r {broken} {ONCE}; systemctl daemon-reload; systemctl is-failed nginx.service",
            "mended": "golden-site apply --json",
            "active": "systemctl is-active nginx.service; cut -d' ' -f1 /run/golden/names",
        },
    )
    answers = browse(host, {"new": ask("www.example.org", "/", tls=False)})
    restored = host.run(f"{RESTORE}; systemctl reset-failed golden-test-stranger.service; systemctl is-active nginx.service")
    assert found["long"].status == 0, found["long"].text
    assert found["refused"].status == 3
    assert "no_such_directive" in found["refused"].text
    assert "nothing was changed" in found["refused"].text
    assert found["unchanged"].lines[:2] == [LONGEST, "active"]
    assert len(found["unchanged"].lines) == 2 or "No such file" in found["unchanged"].text
    assert found["dead"].lines[-1] == "failed", found["dead"].text
    assert found["mended"].status == 0, found["mended"].text
    assert found["active"].lines == ["active", "www.example.org"]
    assert answers["new"].status == 308
    assert restored.stdout.strip() == "active"


@pytest.mark.layers("50-nginx")
@pytest.mark.req("R4", "F30")
def test_apply_brings_a_name_to_the_web_server(host: Host, spec: SimpleNamespace) -> None:
    """golden-site apply: a new server name is the main one at once; an invalid file is refused and changes nothing"""
    name = "site-test.example.org"
    found = gather(
        host,
        {
            "keep": "test ! -e /etc/golden/site.yaml || cp -p /etc/golden/site.yaml /run/golden-test.kept",
            "bad": "echo 'admin_cidrs: 7' >/etc/golden/site.yaml; golden-site apply",
            "unchanged": "systemctl is-active golden-site.service; cat /run/golden/names",
            "good": f"echo 'server_names: [{name}]' >/etc/golden/site.yaml; golden-site apply",
            "names": "cat /run/golden/names",
        },
    )
    answers = browse(host, {"new": ask(name, "/", tls=False), "other": ask("elsewhere.example.org", "/", tls=False)})
    restored = host.run(
        "rm /etc/golden/site.yaml; test ! -e /run/golden-test.kept || mv /run/golden-test.kept /etc/golden/site.yaml; "
        "golden-site apply >/dev/null; cat /run/golden/names"
    )
    assert found["bad"].status == 3
    assert found["unchanged"].lines[0] == "active"
    assert name not in found["unchanged"].text
    assert found["good"].status == 0, found["good"].text
    assert found["names"].words[0] == name
    assert spec.application.server_name in found["names"].words
    assert answers["new"].status == 308
    assert answers["other"].error
    assert restored.stdout.strip() == found["unchanged"].lines[-1]
