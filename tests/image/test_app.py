"""The application: code nobody can change, a pinned environment, a secret that is this clone's, and honest health."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from testinfra.host import Host

from .facts import Answer, Fact, ask, browse, gather, properties

LOCK = Path(__file__).parents[2] / "overlays" / "40-app" / "requirements.lock"
SECRET = "/etc/credstore/app.secret-key"
SECONDS_FOR_HEALTH = 3.0

# Asks /health and the page over gunicorn's socket, and says how long each took.
PROBE = r"""
import http.client, json, socket, sys, time

def get(path):
    started = time.monotonic()
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(60)
    connection.connect("/run/gunicorn.sock")
    lines = ["GET %s HTTP/1.1" % path, "Host: " + sys.argv[1], "X-Forwarded-Proto: https", "Connection: close", "", ""]
    connection.sendall("\r\n".join(lines).encode())
    response = http.client.HTTPResponse(connection)
    response.begin()
    body = response.read().decode()
    return {"status": response.status, "seconds": time.monotonic() - started, "body": body}

print(json.dumps([get("/health"), get("/")]))
"""


@pytest.fixture(scope="module")
def facts(host: Host) -> dict[str, Fact]:
    """Files, rights, environment and settings of the application."""
    return gather(
        host,
        {
            "unit": "systemctl show gunicorn -p ActiveState -p Type -p User -p Group -p WorkingDirectory -p KillMode "
            "-p PrivateTmp -p PrivateNetwork -p Restart -p TimeoutStopUSec -p MemoryMax "
            "-p OOMPolicy -p ReadWritePaths; sed -nE 's/^MemTotal: *([0-9]+) kB/MemTotal=\\1/p' /proc/meminfo",
            "exposure": "systemd-analyze security --no-pager gunicorn.service | tail -1",
            "writable": "runuser -u gunicorn -- find /opt /var/www /etc/gunicorn /var/log -writable 2>/dev/null",
            "open": "find /opt/app ! -type l -perm /007 | head; find /opt/app ! -type l ! -group gunicorn | head -3; "
            "find /opt/app ! -type l ! -user root | head -3",
            "static": "find /var/www/static -printf '%m %u:%g %y\\n' | sort -u; "
            "find /var/www -type f ! -path '/var/www/static/*' ! -path '/var/www/media/*'",
            "media": "stat -c '%a %U:%G' /var/www/media; findmnt -no OPTIONS --target /var/www",
            "web root": "find /var/www \\( -name '*.py' -o -name '*.env' -o -name '*.key' -o -name '*.html' \\)",
            "versions": '/opt/app/current/venv/bin/python -c "import importlib.metadata as m; '
            "print('\\n'.join(sorted(d.name.lower().replace('_', '-') + '==' + d.version "
            'for d in m.distributions())))"',
            "bytecode": "find /opt/app/current/code/ -name '*.pyc' | wc -l; "
            "find /opt/app/current/venv/ -name '*.pyc' | head -1 | wc -l",
            "secret": f"stat -c '%a %U:%G %s' {SECRET}; ls -A /etc/credstore",
            "secret in sight": f"key=$(cat {SECRET}); pid=$(systemctl show -p MainPID --value gunicorn); "
            "tr '\\0' '\\n' </proc/$pid/environ | grep -cF \"$key\"; systemctl show gunicorn | grep -cF \"$key\"; "
            'journalctl -b -o cat | grep -cF "$key"; '
            'grep -rcF "$key" /etc/gunicorn /opt/app/current/code | grep -vc :0$; true',
            "readers": f"for user in gunicorn nginx postgres; do runuser -u $user -- cat {SECRET}; done",
            "settings": "cd /opt/app/current/code && runuser -u gunicorn -- env SITE_HOSTS=x ../venv/bin/python -B -c "
            '"from project import settings as s; print(s.DEBUG, s.ALLOWED_HOSTS, repr(s.SECRET_KEY))"',
            "no secret": "cd /opt/app/current/code && runuser -u gunicorn -- ../venv/bin/python -B -c 'import project.wsgi'",
        },
    )


@pytest.fixture(scope="module")
def answers(host: Host, spec: SimpleNamespace) -> dict[str, Answer]:
    """What the application answers on its own socket, without the web server before it."""
    name = spec.application.server_name
    proxied = {"X-Forwarded-Proto": "https", "X-Request-ID": "0123456789abcdef" * 2}
    common = {"tls": False, "socket": "/run/gunicorn.sock", "headers": proxied}
    return browse(
        host,
        {
            "health": ask(name, "/health", **common),
            "page": ask(name, "/", **common),
            "absent": ask(name, "/absent", **common),
            "other host": ask(name, "/", **(common | {"host": "other.test"})),
            "forwarded host": ask(name, "/", **(common | {"headers": proxied | {"X-Forwarded-Host": "other.test"}})),
        },
    )


@pytest.mark.req("R15", "R16", "R17", "R22")
def test_unit(facts: dict[str, Fact]) -> None:
    """The service runs as its own user in its own directory, stops in bounded time, and starts again after a crash"""
    unit = properties(facts["unit"])
    assert unit["ActiveState"] == "active"
    assert (unit["Type"], unit["User"], unit["Group"]) == ("notify", "gunicorn", "gunicorn")
    assert (unit["WorkingDirectory"], unit["KillMode"], unit["Restart"]) == ("/opt/app/current/code", "mixed", "on-failure")
    assert (unit["PrivateTmp"], unit["PrivateNetwork"]) == ("yes", "yes")
    assert unit["TimeoutStopUSec"] == "30s"


@pytest.mark.req("F21")
def test_memory_is_bounded(facts: dict[str, Fact]) -> None:
    """The application has less than half of the machine's memory, and a worker that wants more is killed alone"""
    unit = properties(facts["unit"])
    assert int(unit["MemoryMax"]) < int(unit["MemTotal"]) * 1024 / 2
    assert unit["OOMPolicy"] == "continue"


@pytest.mark.req("R38", "R3")
def test_exposure(facts: dict[str, Fact]) -> None:
    """systemd rates the unit's sandbox 0.3 or better"""
    found = re.search(r"level for \S+: ([0-9.]+)", facts["exposure"].text)
    assert found, facts["exposure"].text
    assert float(found.group(1)) <= 0.3


@pytest.mark.req("R7", "R18", "R83")
def test_code_cannot_be_changed(facts: dict[str, Fact]) -> None:
    """Code and environment are root's, read by the application, closed to others; it can write to its media, and no more"""
    assert {line for line in facts["writable"].lines if not line.startswith("/var/www/media/")} == {"/var/www/media"}
    assert properties(facts["unit"])["ReadWritePaths"] == "/var/www/media"
    assert facts["open"].lines == []


@pytest.mark.req("R7", "R37")
def test_static_files(facts: dict[str, Fact]) -> None:
    """Static files are root's and read by the web server's group; nothing else is in the web root"""
    lines = facts["static"].lines
    assert [line for line in lines if not line.startswith("/")] == ["640 root:www-data f", "750 root:www-data d"]
    assert [line for line in lines if line.startswith("/")] == []
    assert facts["web root"].lines == []


@pytest.mark.req("R7", "R69")
def test_media_directory(facts: dict[str, Fact], target: str) -> None:
    """What users send is written by the application, read by the web server's group, and never run"""
    access, options = facts["media"].lines
    assert access == "2750 gunicorn:www-data"
    if target == "vm":
        assert {"noexec", "nosuid", "nodev"} <= set(options.split(","))


@pytest.mark.req("R18")
def test_environment_is_the_locked_one(facts: dict[str, Fact]) -> None:
    """The Python environment holds exactly the packages of the lock"""
    locked = sorted(re.findall(r"^(\S+==\S+)", LOCK.read_text(), re.MULTILINE))
    assert facts["versions"].lines == locked


@pytest.mark.req("R18")
def test_byte_code_is_there(facts: dict[str, Fact]) -> None:
    """The code was compiled when the image was built: nothing is compiled at a start"""
    own, environment = facts["bytecode"].words
    assert int(own) >= 10
    assert environment == "1"


@pytest.mark.req("R37", "R81", "R82")
def test_secret_key(facts: dict[str, Fact]) -> None:
    """The secret key is a file that only root reads, long enough, and given to the service by systemd"""
    access, *names = facts["secret"].lines
    mode, owner, size = access.split()
    assert (mode, owner) == ("600", "root:root")
    assert int(size) >= 64
    assert names == ["app.secret-key"]
    assert len(facts["readers"].lines) == 3
    assert all("Permission denied" in line for line in facts["readers"].lines)


@pytest.mark.req("R37", "F34")
def test_secret_key_is_nowhere_else(facts: dict[str, Fact]) -> None:
    """The secret key stands in no environment, unit, journal or file of the application"""
    assert facts["secret in sight"].words == ["0", "0", "0", "0"]


@pytest.mark.req("R81")
def test_settings(facts: dict[str, Fact]) -> None:
    """Debugging is off, host names come from outside, and without its credential there is no key to use"""
    assert facts["settings"].text == "False ['x'] ''"
    assert facts["no secret"].status != 0
    assert "The SECRET_KEY setting must not be empty" in facts["no secret"].text


@pytest.mark.req("R81", "R49", "F25")
def test_other_hosts_are_refused(answers: dict[str, Answer]) -> None:
    """Past the web server, the application too refuses a name that is not this clone's"""
    assert answers["other host"].status == 400
    assert answers["forwarded host"].status == 200
    assert "other.test" not in answers["other host"].body


@pytest.mark.req("R81")
def test_errors_tell_nothing(answers: dict[str, Answer]) -> None:
    """An error page shows no setting, path or trace"""
    answer = answers["absent"]
    assert answer.status == 404
    assert not re.search(r"DEBUG|Traceback|urlpatterns|/opt/app|ROOT_URLCONF", answer.body)


@pytest.mark.req("R95")
def test_health(answers: dict[str, Answer]) -> None:
    """/health says that the database answers"""
    assert answers["health"].status == 200
    assert answers["health"].header("Content-Type") == ["application/json"]
    assert json.loads(answers["health"].body) == {"db": "ok"}


@pytest.mark.req("R95", "F08")
def test_health_without_database(host: Host, spec: SimpleNamespace) -> None:
    """Without the database /health is 503 within 3 s, pages are a plain 503, and all recovers by itself"""
    unit = "postgresql@17-main"
    name = spec.application.server_name
    output = host.check_output(
        "systemctl stop %s; python3 -c %s %s; systemctl start %s; python3 -c %s %s",
        unit,
        PROBE,
        name,
        unit,
        PROBE,
        name,
    )
    down, up = [json.loads(line) for line in output.splitlines()]
    health, page = down
    assert health["status"] == 503
    assert json.loads(health["body"]) == {"db": "down"}
    assert health["seconds"] < SECONDS_FOR_HEALTH
    assert page["status"] == 503
    assert not re.search(r"Traceback|psycopg|OperationalError|/run/postgresql", page["body"])
    assert [answer["status"] for answer in up] == [200, 200]


@pytest.mark.req("R95", "F08")
def test_health_with_a_hanging_database(host: Host, spec: SimpleNamespace) -> None:
    """When the database hangs, /health is 503 within 3 s all the same"""
    unit = "postgresql@17-main"
    name = spec.application.server_name
    output = host.check_output(
        "systemctl kill --signal=STOP %s; python3 -c %s %s; systemctl kill --signal=CONT %s; python3 -c %s %s",
        unit, PROBE.replace(', get("/")', ""), name, unit, PROBE, name,
    )  # fmt: skip
    hanging, after = [json.loads(line) for line in output.splitlines()]
    assert hanging[0]["status"] == 503
    assert hanging[0]["seconds"] < SECONDS_FOR_HEALTH
    assert [answer["status"] for answer in after] == [200, 200]
