"""The application: read-only code, a pinned environment, a secret key for each clone, and a correct health check."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from testinfra.host import Host

from .facts import Answer, Fact, ask, browse, gather, properties
from .people import play, story
from .remote import seconds

pytestmark = pytest.mark.story

LOCK = Path(__file__).parents[2] / "overlays" / "40-app" / "requirements.lock"
SECRET = "/etc/credstore/app.secret-key"
SECONDS_FOR_HEALTH = 3.0

# Requests /health and the page over gunicorn's socket, and prints how long each took.
PROBE = r"""
import http.client, json, os, socket, sys, time

def get(path):
    started = time.monotonic()
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(20 * int(os.environ["PACE"]))
    connection.connect("/run/gunicorn.sock")
    lines = ["GET %s HTTP/1.1" % path, "Host: " + sys.argv[1], "X-Forwarded-Proto: https", "Connection: close", "", ""]
    connection.sendall("\r\n".join(lines).encode())
    response = http.client.HTTPResponse(connection)
    response.begin()
    body = response.read().decode()
    return {"status": response.status, "seconds": time.monotonic() - started, "body": body}

print(json.dumps([get("/health"), get("/")]))
"""

# The life of the service in one run, with the workers in /run/golden-test: started by its socket, reloaded under load, its
# master killed, restarted under load with the original settings. Prints the observations of each step.
LIFE = r"""
import http.client, json, os, signal, socket, subprocess, sys, threading, time

PACE = int(os.environ["PACE"])
LIMIT = 60 * PACE

def output(*words):
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()

def shown(name):
    return output("systemctl", "show", "--property=" + name, "--value", "gunicorn.service")

def get():
    plain = socket.socket(socket.AF_UNIX)
    plain.settimeout(LIMIT)
    plain.connect("/run/gunicorn.sock")
    connection = http.client.HTTPConnection(sys.argv[1])
    connection.sock = plain
    connection.request("GET", "/health", headers={"X-Forwarded-Proto": "https"})
    return connection.getresponse().status

def workers():
    children = subprocess.run(["pgrep", "-P", shown("MainPID")], capture_output=True, text=True).stdout.split()
    return sorted(map(int, children))

def until(true):
    end = time.monotonic() + LIMIT
    while not true():
        if time.monotonic() > end:
            raise SystemExit("nothing came of it in %d s" % LIMIT)
        time.sleep(0.1)

def under_load(act):
    results, stop = [], threading.Event()
    def ask():
        while not stop.is_set():
            try:
                results.append(get())
            except (OSError, http.client.HTTPException) as error:
                results.append(repr(error))
    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    act()
    stop.set()
    for thread in threads:
        thread.join()
    return {"requests": len(results), "bad": [result for result in results if result != 200]}

def reload():
    before = workers()
    output("systemctl", "reload", "gunicorn.service")
    until(lambda: len(workers()) == 3 and not set(before) & set(workers()))

seen = {}
os.makedirs("/run/systemd/system/gunicorn.service.d", exist_ok=True)
drop_in = "/run/systemd/system/gunicorn.service.d/90-test.conf"
open("/run/golden-test", "w").write("WEB_CONCURRENCY=3\n")
open(drop_in, "w").write("[Service]\nEnvironmentFile=/run/golden-test\n")
try:
    output("systemctl", "daemon-reload")
    output("systemctl", "stop", "gunicorn.service")
    seen["stopped"] = shown("ActiveState")
    seen["first answer"] = get()
    seen["started"] = shown("ActiveState")
    until(lambda: len(workers()) == 3)
    master = shown("MainPID")
    seen["reload"] = under_load(reload)
    seen["same master"] = shown("MainPID") == master
    victim = workers()[0]
    half = "/var/www/media/.incoming-%d-test" % victim
    open(half, "w").close()
    os.kill(victim, signal.SIGKILL)
    until(lambda: len(workers()) == 3 and not os.path.exists(half))
    seen["half file"] = "removed"
    os.kill(int(master), signal.SIGKILL)
    until(lambda: shown("NRestarts") == "1" and shown("ActiveState") == "active")
    seen["after kill"] = get()
    invocation = output("journalctl", "--boot", "--output=cat", "--unit=gunicorn.service", "--since=-%dmin" % (3 * PACE))
    seen["cause"] = [line for line in invocation.splitlines() if "code=killed" in line]
finally:
    os.unlink(drop_in)
    output("systemctl", "daemon-reload")
seen["restart"] = under_load(lambda: output("systemctl", "restart", "gunicorn.service"))
seen["restarts"] = shown("NRestarts")
print(json.dumps(seen))
"""

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(32)
PHP = b"<?php system($_GET['c']); ?>"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


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
    """Responses of the application on its own socket, without the web server."""
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
    """The service runs as a dedicated user in its own directory, stops in a limited time, and restarts after a crash"""
    unit = properties(facts["unit"])
    assert unit["ActiveState"] == "active"
    assert (unit["Type"], unit["User"], unit["Group"]) == ("notify", "gunicorn", "gunicorn")
    assert (unit["WorkingDirectory"], unit["KillMode"], unit["Restart"]) == ("/opt/app/current/code", "mixed", "on-failure")
    assert (unit["PrivateTmp"], unit["PrivateNetwork"]) == ("yes", "yes")
    assert unit["TimeoutStopUSec"] == "30s"


@pytest.mark.req("F21")
def test_memory_is_bounded(facts: dict[str, Fact]) -> None:
    """The application is limited to less than half of the memory, and only the worker that exceeds it is killed"""
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
    """Code and environment belong to root, only the application may read them, and it can write to its media only"""
    assert {line for line in facts["writable"].lines if not line.startswith("/var/www/media/")} == {"/var/www/media"}
    assert properties(facts["unit"])["ReadWritePaths"] == "/var/www/media"
    assert facts["open"].lines == []


@pytest.mark.req("R7", "R37")
def test_static_files(facts: dict[str, Fact]) -> None:
    """Static files belong to root and are readable by the web server's group; nothing else is in the web root"""
    lines = facts["static"].lines
    assert [line for line in lines if not line.startswith("/")] == ["640 root:www-data f", "750 root:www-data d"]
    assert [line for line in lines if line.startswith("/")] == []
    assert facts["web root"].lines == []


@pytest.mark.req("R7", "R69")
def test_media_directory(facts: dict[str, Fact], target: str) -> None:
    """Uploads are written by the application, readable by the web server's group, and never executable"""
    access, options = facts["media"].lines
    assert access == "2750 gunicorn:www-data"
    if target != "container":
        assert {"noexec", "nosuid", "nodev"} <= set(options.split(","))


@pytest.mark.req("R18")
def test_environment_is_the_locked_one(facts: dict[str, Fact]) -> None:
    """The Python environment contains exactly the packages of the lock file"""
    locked = sorted(re.findall(r"^(\S+==\S+)", LOCK.read_text(), re.MULTILINE))
    assert facts["versions"].lines == locked


@pytest.mark.req("R18")
def test_byte_code_is_there(facts: dict[str, Fact]) -> None:
    """The code was compiled when the image was built; nothing is compiled at start"""
    own, environment = facts["bytecode"].words
    assert int(own) >= 10
    assert environment == "1"


@pytest.mark.req("R37", "R81", "R82")
def test_secret_key(facts: dict[str, Fact]) -> None:
    """The secret key is a file that only root can read, is long enough, and is passed to the service by systemd"""
    access, *names = facts["secret"].lines
    mode, owner, size = access.split()
    assert (mode, owner) == ("600", "root:root")
    assert int(size) >= 64
    assert names == ["app.secret-key"]
    assert len(facts["readers"].lines) == 3
    assert all("Permission denied" in line for line in facts["readers"].lines)


@pytest.mark.req("R37", "F34")
def test_secret_key_is_nowhere_else(facts: dict[str, Fact]) -> None:
    """The secret key is not in any environment, unit, journal or file of the application"""
    assert facts["secret in sight"].words == ["0", "0", "0", "0"]


@pytest.mark.req("R81")
def test_settings(facts: dict[str, Fact]) -> None:
    """Debugging is off, host names come from the environment, and without its credential there is no secret key"""
    assert facts["settings"].text == "False ['x'] ''"
    assert facts["no secret"].status != 0
    assert "The SECRET_KEY setting must not be empty" in facts["no secret"].text


@pytest.mark.req("R81", "R49", "F25")
def test_other_hosts_are_refused(answers: dict[str, Answer]) -> None:
    """The application itself also refuses a host name that is not the clone's"""
    assert answers["other host"].status == 400
    assert answers["forwarded host"].status == 200
    assert "other.test" not in answers["other host"].body


@pytest.mark.req("R81")
def test_errors_tell_nothing(answers: dict[str, Answer]) -> None:
    """An error page shows no setting, path or stack trace"""
    answer = answers["absent"]
    assert answer.status == 404
    assert not re.search(r"DEBUG|Traceback|urlpatterns|/opt/app|ROOT_URLCONF", answer.body)


@pytest.fixture(scope="module")
def life(host: Host, spec: SimpleNamespace) -> dict[str, Any]:
    """The observations of the service's life."""
    output = host.check_output("python3 -c %s %s", LIFE, spec.application.server_name)
    seen: dict[str, Any] = json.loads(output.splitlines()[-1])
    return seen


@pytest.mark.req("R19", "R20", "R21")
def test_socket_starts_the_service(life: dict[str, Any]) -> None:
    """A request on the socket starts the stopped service, with the number of workers of its environment"""
    assert life["stopped"] == "inactive"
    assert (life["first answer"], life["started"]) == (200, "active")


@pytest.mark.req("R22", "F03")
def test_reload_loses_nothing(life: dict[str, Any]) -> None:
    """A reload under load replaces every worker, keeps the master, and no request fails"""
    assert life["reload"]["bad"] == []
    assert life["reload"]["requests"] >= 2
    assert life["same master"]


@pytest.mark.req("R69", "F01")
def test_killed_worker_leaves_nothing(life: dict[str, Any]) -> None:
    """A killed worker is replaced, and the file that it had not completely written is removed"""
    assert life["half file"] == "removed"


@pytest.mark.req("R23", "F02")
def test_killed_master_is_seen_and_replaced(life: dict[str, Any]) -> None:
    """systemd logs the signal that killed the master, and restarts the service"""
    assert life["after kill"] == 200
    assert any("status=9/KILL" in line for line in life["cause"]), life["cause"]


@pytest.mark.req("R21", "F03")
def test_restart_loses_nothing(life: dict[str, Any]) -> None:
    """No request fails during a restart under load: requests wait in the socket that systemd holds"""
    assert life["restart"]["bad"] == []
    assert life["restart"]["requests"] >= 2
    assert life["restarts"] == "0"


@pytest.fixture(scope="module")
def people(host: Host, spec: SimpleNamespace) -> dict[str, list[dict[str, Any]]]:
    """Responses to two users: one uploads files through the web server, one administers on the application's socket."""
    png, php, svg = (base64.b64encode(content).decode() for content in (PNG, PHP, SVG))
    sender = story(
        ("get", "/upload"), ("password alone", "/login"), ("login", "/login"), ("get", "/upload"),
        ("upload", "photo.png", png), ("upload", "shell.jpg", php), ("upload", "image.png", svg),
        ("large upload", "photo.png", png, 8 << 20), ("large upload", "photo.png", png, 9 << 20), ("get upload", 4),
        ("large upload", "photo.png", png, 5 << 20), ("hammer", "/login", 20),
    )  # fmt: skip
    chief = story(
        ("get", "/admin/"), ("password alone", "/admin/login/"), ("get", "/admin/"), ("login", "/admin/login/"),
        ("get", "/admin/"), administrator=True, direct=True,
    )  # fmt: skip
    return play(host, spec.application.server_name, {"test-sender": sender, "test-chief": chief})


@pytest.mark.req("R69")
def test_uploads(host: Host, people: dict[str, list[dict[str, Any]]]) -> None:
    """A logged-in user may upload a picture; code or markup with a picture's name is refused, and so is a large file"""
    _, _, _, page, stored, php, svg, too_large, far_too_large, _, large, *_ = people["test-sender"]
    assert page["status"] == 200
    assert [answer["status"] for answer in (stored, php, svg, too_large, far_too_large)] == [201, 415, 415, 413, 413]
    assert large["status"] == 201
    name = re.findall(r'href="/media/([0-9a-f]{32}\.png)"', stored["body"])[0]
    modes, *names = host.check_output("stat -c '%%a %%U:%%G %%s' /var/www/media/%s; ls -A /var/www/media", name).splitlines()
    assert modes == f"640 gunicorn:www-data {len(PNG)}"
    assert [line for line in names if not re.fullmatch(r"[0-9a-f]{32}\.(png|jpg|pdf|txt)", line)] == []


@pytest.mark.req("R69", "R84")
def test_media_are_data(people: dict[str, list[dict[str, Any]]]) -> None:
    """An upload is served as an attachment, without content sniffing, scripts or privileges"""
    answer = people["test-sender"][9]
    headers = {name.lower(): value for name, value in answer["headers"]}
    assert answer["status"] == 200
    assert (headers["content-type"], headers["x-content-type-options"]) == ("image/png", "nosniff")
    assert headers["content-disposition"] == "attachment"
    assert "sandbox" in headers["content-security-policy"]


@pytest.mark.req("R50", "R98")
def test_guessing_passwords_is_slow(people: dict[str, list[dict[str, Any]]]) -> None:
    """The web server allows an address a few password attempts, then a few per minute"""
    tries = people["test-sender"][11]["statuses"]
    assert set(tries) <= {403, 429}
    assert tries.count(429) >= len(tries) / 2


@pytest.mark.req("R98", "R69")
def test_login_wants_password_and_code(people: dict[str, list[dict[str, Any]]]) -> None:
    """An upload needs a login, and a login needs a one-time code"""
    stranger, password, both, *_ = people["test-sender"]
    assert (stranger["status"], dict(stranger["headers"])["Location"]) == (302, "/login?next=/upload")
    assert password["status"] == 200
    assert (both["status"], dict(both["headers"])["Location"]) == (302, "/upload")
    cookies = [value for name, value in both["headers"] if name.lower() == "set-cookie" and "session" in value]
    assert cookies
    assert all({"Secure", "HttpOnly", "SameSite=Lax", "Path=/"} <= set(cookie.split("; ")) for cookie in cookies)


@pytest.mark.req("R98")
def test_administration_wants_password_and_code(people: dict[str, list[dict[str, Any]]]) -> None:
    """Only staff with a password and a one-time code reach the administration"""
    stranger, password, after, both, inside = people["test-chief"]
    assert (stranger["status"], password["status"], after["status"], both["status"]) == (302, 200, 302, 302)
    assert inside["status"] == 200
    assert "Site administration" in inside["body"]


@pytest.mark.req("R99")
def test_accounts_are_listed_and_closed(host: Host, people: dict[str, list[dict[str, Any]]]) -> None:
    """golden-app lists the accounts of the application with their last login, and disables one"""
    closed = host.run("golden-app close test-chief")
    accounts = {one["name"]: one for one in json.loads(host.check_output("golden-app --json accounts"))["accounts"]}
    assert set(people) <= set(accounts)
    assert closed.rc == 0
    assert accounts["test-chief"]["administrator"]
    assert not accounts["test-chief"]["active"]
    assert accounts["test-sender"]["one_time_code"]
    assert accounts["test-sender"]["last_login"]
    assert host.run("golden-app close no-such-account").rc == 1


@pytest.mark.req("R74")
def test_every_script_names_its_digest(people: dict[str, list[dict[str, Any]]]) -> None:
    """Every script and style sheet has an integrity attribute, in Django's pages and in the application's"""
    for page in (people["test-sender"][3], people["test-chief"][4]):
        tags = re.findall(r"<(?:script|link)\b[^>]*>", page["body"])
        assert tags
        assert all(re.search(r' integrity="sha384-[A-Za-z0-9+/]{64}"/?>$', tag) for tag in tags), tags
        assert not re.search(r"<script>|<style|\son[a-z]+=\"", page["body"])


@pytest.mark.req("R95")
def test_health(answers: dict[str, Answer]) -> None:
    """/health reports that the database answers"""
    assert answers["health"].status == 200
    assert answers["health"].header("Content-Type") == ["application/json"]
    assert json.loads(answers["health"].body) == {"db": "ok"}


@pytest.mark.layers("30-postgresql")
@pytest.mark.req("R95", "F08")
def test_health_without_database(host: Host, spec: SimpleNamespace) -> None:
    """Without the database /health returns 503 within 3 s, pages return a plain 503, and both recover by themselves"""
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
    assert health["seconds"] < seconds(host, SECONDS_FOR_HEALTH)
    assert page["status"] == 503
    assert not re.search(r"Traceback|psycopg|OperationalError|/run/postgresql", page["body"])
    assert [answer["status"] for answer in up] == [200, 200]


@pytest.mark.layers("30-postgresql")
@pytest.mark.req("R95", "F08")
def test_health_with_a_hanging_database(host: Host, spec: SimpleNamespace) -> None:
    """When the database hangs, /health also returns 503 within 3 s"""
    unit = "postgresql@17-main"
    name = spec.application.server_name
    output = host.check_output(
        "systemctl kill --signal=STOP %s; python3 -c %s %s; systemctl kill --signal=CONT %s; python3 -c %s %s",
        unit, PROBE.replace(', get("/")', ""), name, unit, PROBE, name,
    )  # fmt: skip
    hanging, after = [json.loads(line) for line in output.splitlines()]
    assert hanging[0]["status"] == 503
    assert hanging[0]["seconds"] < seconds(host, SECONDS_FOR_HEALTH)
    assert [answer["status"] for answer in after] == [200, 200]
