"""The request path from end to end: nginx, gunicorn's socket, Django, PostgreSQL's socket, each with a separate user."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from types import SimpleNamespace

import pytest
from testinfra.host import Host

from .facts import Answer, Fact, ask, browse, gather, properties
from .remote import until
from .under_load import Load, under_load


@pytest.fixture(scope="module")
def answers(host: Host, spec: SimpleNamespace) -> dict[str, Answer]:
    """A request for /health, one for a page, and one with a forged identity."""
    name = spec.application.server_name
    return browse(
        host,
        {
            "health": ask(name, "/health"),
            "page": ask(name, "/"),
            "spoofed": ask(name, "/health", headers={"X-Request-ID": "f" * 32, "X-Forwarded-For": "203.0.113.66"}),
        },
    )


@pytest.fixture(scope="module")
def facts(host: Host, answers: dict[str, Answer]) -> dict[str, Fact]:
    """Logs and processes of each hop for these requests; the log is written within about a second."""
    identity = answers["health"].header("X-Request-ID")[0]
    spoofed = answers["spoofed"].header("X-Request-ID")[0]
    log = "/var/log/nginx/access.log"
    return gather(
        host,
        {
            "access log": until(f"grep {spoofed} {log}", 10, pause=0.5) + f"; grep {identity} {log}",
            "application log": f"journalctl -b -u gunicorn -o cat | grep {identity}",
            "spoofed": f"grep -c -e ffffffffffffffff -e 203.0.113.66 {log}; "
            "journalctl -b -u gunicorn -o cat | grep -c ffffffffffffffff",
            "log access": f"stat -c '%a %U:%G' {log}",
            "nginx": "ps -o user:16=,args= -C nginx",
            "gunicorn": "pid=$(systemctl show -p MainPID --value gunicorn); "
            "ps -o user:16= -p $pid; ps -o user:16= --ppid $pid",
            "database": "runuser -u postgres -- /usr/lib/postgresql/17/bin/psql -X -A -t "
            "-h /run/postgresql -d postgres -c "
            "\"SELECT DISTINCT usename, client_addr IS NULL FROM pg_stat_activity WHERE datname = 'app'\"",
            "postgres": "ps -o user:16= -p $(systemctl show -p MainPID --value postgresql@17-main)",
            "sockets": "stat -c '%F %a %U:%G %n' /run/gunicorn.sock; stat -f -c %T /run; ss -Hlx src /run/gunicorn.sock",
            "activation": "systemctl show -p TriggeredBy -p Requires gunicorn.service; "
            "systemctl show -p Triggers gunicorn.socket",
            "upstream": "grep -rhoE '^ *(proxy_pass |server unix:)[^;]+' /etc/nginx | sed 's/^ *//' | sort -u",
            "configured": "grep -E '^workers|^wsgi_app' /etc/gunicorn/gunicorn.conf.py",
        },
    )


@pytest.mark.layers("30-postgresql", "application")
@pytest.mark.req("R86", "R95", "R51")
def test_health_over_tls(answers: dict[str, Answer]) -> None:
    """https://HOST/health returns 200 and reports that the database answers; the certificate is for that name"""
    answer = answers["health"]
    assert (answer.status, answer.error) == (200, ""), answer
    assert json.loads(answer.body) == {"db": "ok"}


@pytest.mark.layers("30-postgresql", "application")
@pytest.mark.req("R75")
def test_page_from_the_database(answers: dict[str, Answer], spec: SimpleNamespace) -> None:
    """The page comes from the database, and links a static file with its hash in the name"""
    answer = answers["page"]
    assert answer.status == 200
    assert "This page came from the database" in answer.body
    assert re.search(r'href="/static/pages/site\.[0-9a-f]{12}\.css"', answer.body)
    assert spec.application.name in answer.body


@pytest.mark.layers("application")
@pytest.mark.req("R74")
def test_style_sheet_has_the_digest_of_the_page(host: Host, answers: dict[str, Answer], spec: SimpleNamespace) -> None:
    """The style sheet that the web server sends has the digest that the page names"""
    found = re.search(r'href="(/static/[^"]+)" integrity="sha384-([^"]+)"', answers["page"].body)
    assert found, answers["page"].body
    sheet = browse(host, {"sheet": ask(spec.application.server_name, found.group(1))})["sheet"]
    assert sheet.status == 200
    assert base64.b64encode(hashlib.sha384(sheet.body.encode()).digest()).decode() == found.group(2)


@pytest.mark.layers("application")
@pytest.mark.req("R13", "R47")
def test_one_identity_from_end_to_end(answers: dict[str, Answer], facts: dict[str, Fact]) -> None:
    """The response, the web server's log and the application's log have the same request id; the logs are JSON"""
    identity = answers["health"].header("X-Request-ID")[0]
    assert re.fullmatch(r"[0-9a-f]{32}", identity)
    logged = json.loads(facts["access log"].lines[-1])
    assert (logged["rid"], logged["status"], logged["uri"], logged["ip"]) == (identity, 200, "/health", "127.0.0.1")
    assert len(logged) >= 8
    assert logged["upstream_status"] == "200"
    handled = json.loads(facts["application log"].lines[-1])
    assert (handled["rid"], handled["status"], handled["path"]) == (identity, 200, "/health")


@pytest.mark.layers("application")
@pytest.mark.req("R13", "R49")
def test_identity_and_address_cannot_be_spoofed(answers: dict[str, Answer], facts: dict[str, Fact]) -> None:
    """A request id or address in a client's headers is not written to either log"""
    assert answers["spoofed"].status == 200
    assert answers["spoofed"].header("X-Request-ID") != ["f" * 32]
    assert facts["spoofed"].words == ["0", "0"]


@pytest.mark.layers("application")
@pytest.mark.req("R13")
def test_every_request_is_recorded(host: Host, answers: dict[str, Answer], spec: SimpleNamespace) -> None:
    """Requests for static files are in the access log, also those for missing files"""
    found = re.search(r'href="(/static/[^"]+)"', answers["page"].body)
    assert found, answers["page"].body
    name = spec.application.server_name
    asked = {"sheet": ask(name, found.group(1)), "absent": ask(name, "/static/absent.css"), "health": ask(name, "/health")}
    replies = browse(host, asked)
    assert [replies[one].status for one in asked] == [200, 404, 200]
    log = "/var/log/nginx/access.log"
    for one, path in (("sheet", found.group(1)), ("absent", "/static/absent.css"), ("health", "/health")):
        identity = replies[one].header("X-Request-ID")[0]
        wait = until(f"grep -q {identity} {log}", 10, pause=0.5)
        lines = host.check_output(f"{wait}; grep {identity} {log}").splitlines()
        assert [(entry["uri"], entry["status"]) for entry in map(json.loads, lines)] == [(path, replies[one].status)]


# Runs as nginx's user: tries to read or remove the pipes, and to write the logs.
TAKEN_OVER = """
import os
for name, mode in (("requests", os.O_RDONLY), ("answers", os.O_RDONLY)):
    try:
        os.open(f"/run/nginx-syslog/{name}", mode | os.O_NONBLOCK)
        print("reads", name)
    except PermissionError:
        pass
for name in ("requests", "answers"):
    try:
        os.unlink(f"/run/nginx-syslog/{name}")
        print("removes", name)
    except PermissionError:
        pass
for name in ("access.log", "access.log.1", "refused.log"):
    try:
        os.open(f"/var/log/nginx/{name}", os.O_WRONLY)
        print("writes", name)
    except PermissionError:
        pass
"""


@pytest.mark.req("R13", "R35")
def test_web_server_cannot_change_what_is_recorded(host: Host) -> None:
    """An attacker with the web server's user can only add lines to the log, not read or replace pipes or files"""
    assert host.check_output("runuser -u nginx -- python3 -c %s", TAKEN_OVER) == ""


@pytest.mark.req("R35", "R3")
def test_access_log_is_out_of_reach(facts: dict[str, Fact]) -> None:
    """The access log belongs to root, administrators can read it, web server and application cannot write it"""
    assert facts["log access"].text == "640 root:adm"


@pytest.mark.layers("application")
@pytest.mark.req("R16", "R20", "R21")
def test_socket_between_nginx_and_gunicorn(facts: dict[str, Fact]) -> None:
    """nginx connects to the application over one UNIX socket in memory, which systemd holds"""
    access, filesystem, listening = facts["sockets"].lines
    assert access == "socket 660 gunicorn:www-data /run/gunicorn.sock"
    assert filesystem == "tmpfs"
    assert "LISTEN" in listening
    targets = facts["upstream"].lines
    assert targets[-1] == "server unix:/run/gunicorn.sock max_fails=0"
    assert all(target.startswith("proxy_pass http://application/") for target in targets[:-1]), targets
    assert "gunicorn.socket" in properties(facts["activation"])["Requires"].split()
    assert properties(facts["activation"])["Triggers"] == "gunicorn.service"


@pytest.mark.layers("application")
@pytest.mark.req("R19")
def test_workers(facts: dict[str, Fact], spec: SimpleNamespace) -> None:
    """The number of workers and the WSGI callable are those of the spec; all workers run as gunicorn's user"""
    users = facts["gunicorn"].words
    assert users == ["gunicorn"] * (1 + spec.application.workers)
    (configured,) = [line for line in facts["configured"].lines if line.startswith("wsgi_app = ")]
    assert configured.endswith(f'"{spec.application.wsgi}"')


@pytest.mark.req("R45")
def test_web_workers(facts: dict[str, Fact]) -> None:
    """nginx has a master and workers, all as user nginx"""
    lines = [line.split(maxsplit=1) for line in facts["nginx"].lines]
    assert {user for user, _ in lines} == {"nginx"}
    assert sum("worker process" in arguments for _, arguments in lines) >= 1
    assert sum("master process" in arguments for _, arguments in lines) == 1


@pytest.mark.layers("30-postgresql", "application")
@pytest.mark.req("R8", "R89", "R90")
def test_database_connection(facts: dict[str, Fact]) -> None:
    """The application is connected as its least privileged role, over the UNIX socket"""
    assert facts["database"].lines == ["app|t"]
    assert facts["postgres"].text == "postgres"


# --- while requests arrive ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rotated(host: Host, spec: SimpleNamespace) -> tuple[Load, dict[str, Fact]]:
    """The log is rotated under load; its lines are counted when all have arrived, or after a timeout."""
    load = under_load(host, spec.application.server_name, "logrotate --force /etc/logrotate.d/nginx")
    files, log = "/var/log/nginx/access.log /var/log/nginx/access.log.1", "/var/log/nginx/access.log"
    count = f"cat {files} | grep -c {load.mark}"
    return load, gather(
        host,
        {
            "lines": until(f"[ $({count}) -ge {load.sent} ]", 10, pause=0.5) + f"; {count}",
            "new file": f"grep -c {load.mark} {log}",
            "access": f"stat -c '%a %U:%G' /var/log/nginx {files}",
            "settings": "logrotate --debug /etc/logrotate.d/nginx; cat /etc/logrotate.d/nginx",
            "services": "systemctl show -p NRestarts --value nginx golden-access-log",
        },
    )


@pytest.mark.layers("application")
@pytest.mark.req("R64", "R94", "F16")
def test_rotation_loses_nothing(rotated: tuple[Load, dict[str, Fact]]) -> None:
    """The access log is rotated under load: no request fails, no line is lost, and the new file is used at once"""
    load, facts = rotated
    assert load.status == 0, load.output
    assert (load.lost, load.failures) == (0, ())
    # A request that was sent twice may have been logged twice.
    assert load.sent <= int(facts["lines"].text) <= load.sent + load.retried
    assert int(facts["new file"].text) >= 1
    assert facts["services"].words == ["0", "0"]


@pytest.mark.vm
@pytest.mark.req("R64", "R94", "R35")
def test_rotation_keeps_access(rotated: tuple[Load, dict[str, Fact]]) -> None:
    """Only root and administrators can read rotated logs; they are kept for fourteen days"""
    facts = rotated[1]
    assert facts["access"].lines == ["750 root:adm", "640 root:adm", "640 root:adm"]
    assert "after 1 days" in facts["settings"].text
    assert "(14 rotations)" in facts["settings"].text
    for word in ("daily", "compress", "missingok", "notifempty"):
        assert f"\t{word}\n" in facts["settings"].text


@pytest.fixture(scope="module")
def upgraded(host: Host, spec: SimpleNamespace) -> tuple[Load, dict[str, Fact]]:
    """An upgrade of nginx under load: the scripts of the packages, called as by dpkg."""
    environment = "env DPKG_MAINTSCRIPT_NAME=postinst DPKG_MAINTSCRIPT_PACKAGE"
    scripts = " && ".join(
        f"{environment}={package} /var/lib/dpkg/info/{package}.postinst configure 1.26.0-1"
        for package in ("nginx-common", "nginx")
    )
    load = under_load(host, spec.application.server_name, scripts)
    return load, gather(
        host,
        {
            "access": "stat -c '%a %U:%G %n' /etc/nginx /etc/nginx/nginx.conf /var/log/nginx",
            "sites": "ls /etc/nginx/sites-enabled",
            "unit": "systemctl show -p ActiveState -p FragmentPath -p User nginx; systemctl is-enabled nginx",
            "workers": "ps -o user= -C nginx | sort | uniq -c",
            "clean": "rm -rf /var/www/html",
        },
    )


@pytest.mark.layers("application")
@pytest.mark.story
@pytest.mark.req("R34", "R35", "R36", "F05", "F19")
def test_upgrade_of_nginx(upgraded: tuple[Load, dict[str, Fact]]) -> None:
    """An upgrade of Debian's nginx loses no request, and does not change the modes, sites and unit of the layers"""
    load, facts = upgraded
    assert load.status == 0, load.output
    assert (load.lost, load.failures) == (0, ())
    assert facts["access"].lines == [
        "750 root:nginx /etc/nginx", "640 root:nginx /etc/nginx/nginx.conf", "750 root:adm /var/log/nginx",
    ]  # fmt: skip
    assert facts["sites"].words == ["00-default", "10-app"]
    unit = properties(facts["unit"])
    assert (unit["ActiveState"], unit["User"]) == ("active", "nginx")
    assert unit["FragmentPath"] == "/etc/systemd/system/nginx.service"
    assert facts["unit"].lines[-1] == "enabled"
    assert {line.split()[1] for line in facts["workers"].lines} == {"nginx"}
