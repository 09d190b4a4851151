"""The optional request filter: it detects attacks, accepts the application's requests, and does not weaken the sandbox.

Not in golden.yaml: `nox -s container -- --layer 55-waf` builds an image with it and runs these tests.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from testinfra.host import Host

from .facts import Answer, Fact, ask, browse, gather
from .wire import reloading

LAYER = "55-waf"
ATTACKS = {
    "script": "/?q=<script>alert(1)</script>",
    "encoded script": "/?q=%3Cscript%3Ealert(1)%3C/script%3E",
    "sql": "/?id=1%27%20OR%20%271%27=%271%20UNION%20SELECT%20password%20FROM%20users--",
    "file": "/?page=../../../../etc/passwd",
    "command": "/?run=;cat%20/etc/passwd",
}
BROWSER = {"User-Agent": "Mozilla/5.0", "Accept": "text/html", "Accept-Language": "en"}


@pytest.fixture(scope="module", autouse=True)
def _is_there(spec: SimpleNamespace) -> None:
    if LAYER not in spec.layers:
        pytest.skip(f"the image has no layer {LAYER}")


@pytest.fixture(scope="module")
def watched(host: Host, spec: SimpleNamespace, _is_there: None) -> dict[str, Answer]:
    """Responses to attacks while the filter only detects, which is the default."""
    return browse(host, {name: ask(spec.application.server_name, path, headers=BROWSER) for name, path in ATTACKS.items()})


@pytest.fixture(scope="module")
def mode(host: Host, watched: dict[str, Answer]) -> Iterator[dict[str, Fact]]:
    """The filter refuses; afterwards its mode is restored."""
    yield gather(
        host,
        {
            "before": "golden-waf --json",
            "refuse": reloading("golden-waf refuse --json"),
            "exposure": "systemd-analyze security --no-pager nginx.service | tail -1",
            "memory": "systemctl show -p MemoryDenyWriteExecute nginx; grep -l modsecurity /proc/[0-9]*/maps | wc -l; "
            "cat /proc/$(systemctl show -p MainPID --value nginx)/maps | grep -c ' rwx'",
        },
    )
    host.check_output("golden-waf watch")


@pytest.fixture(scope="module")
def answers(host: Host, spec: SimpleNamespace, mode: dict[str, Fact]) -> dict[str, Answer]:
    """Responses to attacks and to the application's requests when the filter refuses."""
    name = spec.application.server_name
    requests = {one: ask(name, path, headers=BROWSER) for one, path in ATTACKS.items()}
    own = ("/", "/health", "/?page=2&q=two+words", "/?q=Fran%C3%A7ois")
    requests |= {path: ask(name, path, headers=BROWSER) for path in own}
    first = browse(host, requests)
    # All requests that the page causes.
    linked = {path: ask(name, path, headers=BROWSER) for path in re.findall(r'(?:href|src)="(/[^"]*)"', first["/"].body)}
    assert linked
    return first | browse(host, linked)


@pytest.mark.req("R71")
@pytest.mark.parametrize("attack", ATTACKS)
def test_attack_is_refused(answers: dict[str, Answer], watched: dict[str, Answer], attack: str) -> None:
    """An attack is refused with 403 in mode `refuse`, and passes in mode `watch`"""
    assert answers[attack].status == 403
    assert watched[attack].status == 200
    assert not re.search(r"nginx|modsecurity", answers[attack].body, re.IGNORECASE)
    assert len(answers[attack].header("Content-Security-Policy")) == 1


@pytest.mark.req("R71")
def test_own_requests_pass(answers: dict[str, Answer], host: Host) -> None:
    """None of the application's requests is refused or logged as suspicious"""
    own = {path: answer for path, answer in answers.items() if path not in ATTACKS}
    assert len(own) >= 5
    assert {path: answer.status for path, answer in own.items() if answer.status != 200} == {}
    identities = [answer.header("X-Request-ID")[0] for answer in own.values()]
    log = host.check_output("journalctl --sync; journalctl -b -u nginx -o cat --grep ModSecurity")
    assert [one for one in identities if one in log] == []
    assert "ModSecurity: Access denied with code 403" in log


@pytest.mark.req("R71", "R38", "R43")
def test_sandbox_holds(mode: dict[str, Fact]) -> None:
    """The filter needs no writable and executable memory, and the sandbox has the same rating as without it"""
    assert json.loads(mode["before"].text)["mode"] == "watch"
    assert json.loads(mode["refuse"].text)["mode"] == "refuse"
    found = re.search(r"level for \S+: ([0-9.]+)", mode["exposure"].text)
    assert found, mode["exposure"].text
    assert float(found.group(1)) <= 0.7
    setting, loaded, executable = mode["memory"].lines
    assert setting == "MemoryDenyWriteExecute=yes"
    assert int(loaded) >= 2
    assert executable == "0"
