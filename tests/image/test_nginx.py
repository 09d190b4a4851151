"""The web server: unprivileged, without access to the network, and it answers only for the names of the clone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from testinfra.host import Host

from .facts import Answer, Fact, ask, browse, gather, properties

pytestmark = pytest.mark.story

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
ONCE = (
    *HEADERS,
    "Content-Security-Policy",
    "Permissions-Policy",
    "Strict-Transport-Security",
    "X-Request-ID",
)
# Paths of code, configuration, keys, backups or listings; then paths that leave the site's directory.
HIDDEN = [
    "/.env", "/.git/config", "/.htpasswd", "/.ssh/id_ed25519", "/static/.env", "/media/.env", "/settings.py",
    "/project/settings.py", "/manage.py", "/project/__pycache__/settings.pyc", "/static/site.sql", "/backup.bak",
    "/db.sqlite3", "/dump.sql", "/config.yaml", "/config.yml", "/pyproject.toml", "/app.ini", "/app.log", "/app.key",
    "/app.pem", "/app.crt", "/index.php", "/install.sh", "/nginx.conf.old", "/index.html~",
    "/static/pages/site.css.orig", "/page.swp", "/site.save", "/static/", "/static/pages/", "/static/pages",
    "/static", "/media/", "/media", "/media/x.html", "/media/x.svg", "/media/x.php", "/media/x.jpg.php",
    "/media/.x.jpg", "/etc/passwd",
]  # fmt: skip
TRAVERSAL = [
    "/static../etc/passwd", "/static/../../etc/passwd", "/static/../../../../../../etc/passwd",
    "/static/%2e%2e/%2e%2e/etc/passwd", "/static/..%2f..%2fetc/passwd", "/static/%252e%252e/etc/passwd",
    "/static/..%5c..%5cetc/passwd", "/static/....//....//etc/passwd", "/media../etc/passwd", "/media/../../etc/passwd",
    "/media/%2e%2e/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/static/..%c0%af..%c0%afetc/passwd",
    "/media/..;/..;/etc/passwd", "/static/%00/../../etc/passwd",
]  # fmt: skip
# Modules besides the built-in ones, by the layer that installs them.
MODULES = {"50-mod-http-headers-more-filter.conf"}
SITES = {"00-default", "10-app"}
# An account without privileges.
UNPRIVILEGED = "nobody"
# Modules of the optional layer 55-waf.
FIREWALL_MODULES = {"50-mod-http-modsecurity.conf", "10-mod-http-ndk.conf", "50-mod-http-ndk.conf"}
# Uploads of a user, and whether they are served.
MEDIA = {
    "photo.jpg": True, "notes.txt": True, "photo.max-165x165.jpg": True, "PHOTO.JPG": True, "film.mp4": True,
    "letter.docx": True, "copy.tar.gz": True, "LICENSE": True, "page.html": False, "page.xhtml": False, "picture.svg": False,
    "feed.xml": False, "code.mjs": False, "script.php": False, "photo.jpg.php": False, "link.txt": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def facts(host: Host) -> dict[str, Fact]:
    """The service's processes, files and rights."""
    return gather(
        host,
        {
            "unit": "systemctl show nginx -p ActiveState -p Type -p User -p NonBlocking -p Restart -p PrivateNetwork "
            "-p CapabilityBoundingSet -p UMask -p Requires -p DropInPaths -p NRestarts",
            "exposure": "systemd-analyze security --no-pager nginx.service | tail -1",
            "processes": "ps -o pid=,ppid=,user:16=,args= -C nginx",
            "rights": "for pid in $(pgrep -x nginx); do "
            "grep -E '^(Uid|Gid|Cap...|NoNewPrivs|Seccomp):' /proc/$pid/status; done",
            "networks": "readlink /proc/1/ns/net; for pid in $(pgrep -x nginx); do readlink /proc/$pid/ns/net; done",
            "mounts": "grep -E ' (/|/etc|/usr|/var/log) ' /proc/$(systemctl show -p MainPID --value nginx)/mountinfo",
            "access": "stat -c '%a %U:%G %n' /etc/nginx /etc/nginx/nginx.conf /etc/nginx/conf.d/* "
            "/etc/nginx/sites-enabled/* /etc/nginx/snippets/* /var/log/nginx /var/cache/nginx /run/nginx-syslog",
            "sites": "ls /etc/nginx/sites-enabled",
            "modules": "ls /etc/nginx/modules-enabled",
            "pages": "ls -A /var/www",
            "temporary": "find /var/cache/nginx -mindepth 1 -maxdepth 1 ! -name lost+found -printf '%m %u:%g %f\\n'",
            "configuration": "nginx -T",
            "autoindex": "grep -rE '^[^#]*autoindex +on' /etc/nginx",
            "key": "stat -c '%a %U:%G %n' /etc/ssl/private/app.key /etc/ssl/certs/app.pem /run/nginx-tls/app.key",
            "certificate": "openssl x509 -noout -text -in /etc/ssl/certs/app.pem",
            "pair": "openssl pkey -in /etc/ssl/private/app.key -pubout | sha256sum; "
            "openssl x509 -in /etc/ssl/certs/app.pem -noout -pubkey | sha256sum",
            "others": f"for user in nginx $(getent passwd gunicorn postgres | cut -d: -f1) {UNPRIVILEGED}; do "
            "runuser -u $user -- cat /etc/ssl/private/app.key; done",
            "writable": "runuser -u nginx -- find /etc/nginx /var/www /var/log /opt -writable 2>/dev/null",
            "readable": "runuser -u nginx -- ls /opt/app /var/lib/postgresql /etc/credstore",
            "names": "cat /run/golden/names",
            "host name": "hostname",
            "reload": "systemctl show -p MainPID --value nginx; "
            "systemctl reload nginx && systemctl show -p MainPID --value nginx",
            "versions": "nginx -v",
        },
    )


@pytest.fixture(scope="module")
def brought(host: Host) -> Iterator[None]:
    """Files in the directories that the web server reads and cannot write: uploads, and a challenge."""
    media, token = "/var/www/media/golden-test", "/run/golden-challenges/golden-test-token-as-long-as-one"
    # umask: missing parent directories are created readable for the web server.
    made = f"umask 022 && mkdir -p {media} && cd {media} && touch {' '.join(MEDIA)} && ln -sf /etc/passwd link.txt"
    host.check_output(f"{made} && echo proof >{token} && chgrp nginx {token} && chmod 640 {token}")
    yield
    host.check_output(f"rm -r {media} {token}")


@pytest.fixture(scope="module")
def answers(host: Host, facts: dict[str, Fact], spec: SimpleNamespace, brought: None) -> dict[str, Answer]:
    """The server's responses to valid and invalid requests."""
    name = spec.application.server_name
    requests = {
        "page": ask(name, "/"),
        "health": ask(name, "/health"),
        "absent": ask(name, "/no-such-page"),
        "plain": ask(name, "/some/page?with=query", tls=False),
        "plain line end": ask(name, "/some%0d%0aSet-Cookie:%20a=b", tls=False),
        "challenge": ask(name, "/.well-known/acme-challenge/golden-test-token-as-long-as-one", tls=False),
        "challenges": ask(name, "/.well-known/acme-challenge/", tls=False),
        "long path": ask(name, "/" + "x" * 20000),
        "bad method": ask(name, "/", method="G@T"),
        "bad version": ask(name, "/", headers={"Transfer-Encoding": "gzip"}),
        "plain other host": ask(name, "/", tls=False, host="other.test"),
        "plain no host": ask(name, "/", tls=False, host=""),
        "plain address": ask(name, "/", tls=False, host="127.0.0.1"),
        "other name": ask(name, "/", sni="other.test", host="other.test"),
        "right name, other host": ask(name, "/", host="other.test"),
        "right name, address": ask(name, "/", host="127.0.0.1"),
        "old TLS": ask(name, "/", newest_tls="1.1"),
        "large header": ask(name, "/", headers={"X-Large": "x" * 65536}),
        "large body": ask(name, "/", method="POST", headers={"Content-Length": str(1 << 30)}),
        "delete": ask(name, "/", method="DELETE"),
        "trace": ask(name, "/", method="TRACE"),
        "post health": ask(name, "/health", method="POST", headers={"Content-Length": "0"}),
    }
    requests |= {f"own name {own}": ask(own, "/health") for own in facts["names"].words}
    requests |= {f"hidden {path}": ask(name, path) for path in (*HIDDEN, *TRAVERSAL)}
    requests |= {f"media {file}": ask(name, f"/media/golden-test/{file}") for file in MEDIA}
    first = browse(host, requests)
    if "40-app" not in spec.layers:
        return first
    found = re.search(r'href="(/static/[^"]+)"', first["page"].body)
    assert found, first["page"]
    plain = re.sub(r"\.[0-9a-f]{12}\.", ".", found.group(1))
    kept = first | browse(host, {"static": ask(name, found.group(1)), "plain static": ask(name, plain)})
    known = {"If-None-Match": "".join(kept["plain static"].header("ETag"))}
    return kept | browse(host, {"known static": ask(name, plain, headers=known)})


@pytest.mark.req("R27", "R38", "R45")
def test_unit(facts: dict[str, Fact]) -> None:
    """The service starts as a dedicated user, gets its listening sockets from systemd, and restarts after a crash"""
    unit = properties(facts["unit"])
    assert unit["ActiveState"] == "active"
    assert (unit["Type"], unit["User"], unit["Restart"], unit["NonBlocking"]) == ("exec", "nginx", "on-failure", "yes")
    assert unit["PrivateNetwork"] == "yes"
    assert unit["CapabilityBoundingSet"] == ""
    assert "nginx.socket" in unit["Requires"].split()
    assert "/etc/systemd/system/nginx.service.d/hardening.conf" in unit["DropInPaths"].split()


@pytest.mark.req("R38", "R40", "R41", "R42", "R43")
def test_exposure(facts: dict[str, Fact]) -> None:
    """systemd rates the unit's sandbox 0.7 or better"""
    found = re.search(r"level for \S+: ([0-9.]+)", facts["exposure"].text)
    assert found, facts["exposure"].text
    assert float(found.group(1)) <= 0.7


@pytest.mark.req("R39", "R42", "R43", "R45")
def test_processes_have_no_rights(facts: dict[str, Fact]) -> None:
    """Master and workers run as nginx, without capabilities and new privileges, with a system call filter"""
    rights = facts["rights"].lines
    assert len(facts["processes"].lines) >= 2
    assert {line.split()[2] for line in facts["processes"].lines} == {"nginx"}
    for line in rights:
        name, *values = line.split()
        if name.startswith("Cap"):
            assert set(values[0]) == {"0"}, line
        elif name in ("Uid:", "Gid:"):
            assert "0" not in values, line
    assert {line for line in rights if line.startswith("NoNewPrivs")} == {"NoNewPrivs:\t1"}
    assert {line for line in rights if line.startswith("Seccomp:")} == {"Seccomp:\t2"}


@pytest.mark.req("R3", "R44")
def test_no_network_of_its_own(facts: dict[str, Fact]) -> None:
    """No process of the web server is in the machine's network namespace: it cannot open connections"""
    machine, *processes = facts["networks"].lines
    assert len(processes) >= 2
    assert machine not in processes


@pytest.mark.req("R40")
def test_root_is_read_only(facts: dict[str, Fact]) -> None:
    """The service sees the system's files read-only"""
    root = [line.split() for line in facts["mounts"].lines if line.split()[4] == "/"]
    assert root
    assert all("ro" in fields[5].split(",") for fields in root)


@pytest.mark.req("R35")
def test_configuration_access(facts: dict[str, Fact]) -> None:
    """The configuration belongs to root and is readable only by nginx; the log directory is closed to others too"""
    for line in facts["access"].lines:
        mode, owner, path = line.split()
        if path in ("/run/nginx-syslog", "/var/cache/nginx"):
            assert (mode, owner) == ("750", "root:nginx")
        elif path == "/var/log/nginx":
            assert (mode, owner) == ("750", "root:adm")
        else:
            assert owner == "root:nginx", path
            assert mode in ("640", "750"), path


@pytest.mark.req("R3", "R7", "R41")
def test_writes_nothing_reads_no_secrets(facts: dict[str, Fact]) -> None:
    """The web server's user cannot write configuration, pages or logs, nor read code, database or secrets"""
    assert facts["writable"].lines == []
    assert facts["readable"].status != 0
    assert all(re.search("Permission denied|No such file", line) for line in facts["readable"].lines)


@pytest.mark.req("R10", "R36", "R58")
def test_no_example_sites(facts: dict[str, Fact]) -> None:
    """There are no example sites, no unknown modules and no directory listings"""
    assert set(facts["sites"].lines) == SITES
    assert MODULES <= set(facts["modules"].lines) <= MODULES | FIREWALL_MODULES
    assert set(facts["pages"].lines) <= {"static", "media", "sites", "lost+found"}
    assert facts["autoindex"].lines == []


@pytest.mark.req("R68")
def test_temporary_files(facts: dict[str, Fact]) -> None:
    """Temporary files are in separate directories of the web server, closed to others"""
    found = {line.split()[2]: tuple(line.split()[:2]) for line in facts["temporary"].lines}
    assert set(found) == {"body", "proxy", "fastcgi", "uwsgi", "scgi"}
    assert set(found.values()) <= {("700", "nginx:nginx"), ("750", "nginx:nginx")}


@pytest.mark.vm
@pytest.mark.req("R68", "R32")
def test_temporary_files_mount(host: Host) -> None:
    """No program can be run from the directory of temporary files"""
    options = host.check_output("findmnt -no OPTIONS /var/cache/nginx")
    assert {"nodev", "nosuid", "noexec"} <= set(options.split(","))


@pytest.mark.req("R57", "R12", "R15")
def test_limits_of_each_server(facts: dict[str, Fact], spec: SimpleNamespace) -> None:
    """Each server includes the limits; each kind of setting has one file, and headers are set in no other file"""
    text = facts["configuration"].text
    assert facts["configuration"].status == 0, text
    parts = re.split(r"^# configuration file (\S+):\n", text, flags=re.MULTILINE)
    files = dict(zip(parts[1::2], parts[2::2], strict=True))
    for path in ("/etc/nginx/sites-enabled/00-default", "/etc/nginx/sites-enabled/10-app"):
        servers = re.findall("^server {", files[path], re.MULTILINE)
        assert files[path].count("\n    include /etc/nginx/snippets/limits.conf;") == len(servers)
    for setting in ("limit_req zone=requests", "limit_conn connections"):
        assert setting in files["/etc/nginx/snippets/limits.conf"]
    # The default; the server of the application has the limit of its contract.
    assert "client_max_body_size 1m;" in files["/etc/nginx/conf.d/20-limits.conf"]
    if "40-app" in spec.layers:
        assert files["/run/golden/app/server.conf"].startswith("client_max_body_size 1m;")
    assert [path for path, content in files.items() if "add_header" in content] == ["/etc/nginx/conf.d/40-headers.conf"]
    assert not re.search(r"^\s*(auth_basic|autoindex on|ssl_stapling on|proxy_add_x_forwarded_for)", text, re.MULTILINE)


@pytest.mark.req("R60", "R61", "F29")
def test_key_and_certificate(facts: dict[str, Fact]) -> None:
    """Key and certificate match: ECDSA P-256, the key for root only, with a copy for nginx in memory"""
    assert facts["key"].lines == [
        "600 root:root /etc/ssl/private/app.key",
        "644 root:root /etc/ssl/certs/app.pem",
        "400 nginx:nginx /run/nginx-tls/app.key",
    ]
    private, public = facts["pair"].lines
    assert private == public
    text = facts["certificate"].text
    assert "prime256v1" in text
    assert "CA:FALSE" in text
    names = set(re.findall(r"DNS:([^\s,]+)", text))
    assert names == set(facts["names"].words)


@pytest.mark.req("R3", "R60")
def test_key_is_closed(facts: dict[str, Fact]) -> None:
    """No user of a service can read the TLS key"""
    assert len(facts["others"].lines) >= 2
    assert all("Permission denied" in line for line in facts["others"].lines)


@pytest.mark.req("R59", "F29")
def test_names_are_the_clones(facts: dict[str, Fact], spec: SimpleNamespace, answers: dict[str, Answer]) -> None:
    """The clone answers for the server name of the spec and for its host name, short and fully qualified"""
    own = facts["host name"].text
    assert facts["names"].words == [spec.application.server_name, f"{own}.{spec.domain}", own]
    for name in facts["names"].words:
        answer = answers[f"own name {name}"]
        assert (answer.status, answer.error) == (200 if "40-app" in spec.layers else 404, ""), name


@pytest.mark.req("R59", "F25")
def test_other_names_get_no_answer(answers: dict[str, Answer]) -> None:
    """Requests for another name are refused: by HTTP, by TLS, and with a Host header that differs from the TLS name"""
    for case in ("plain other host", "plain address"):
        assert answers[case].error in ("RemoteDisconnected", "ConnectionResetError"), case
    assert answers["plain no host"].status == 400
    assert answers["other name"].error == "SSLError"
    for case in ("right name, other host", "right name, address"):
        assert answers[case].status == 421, case
        assert "other.test" not in answers[case].body


@pytest.mark.req("R86")
def test_redirect(answers: dict[str, Answer], spec: SimpleNamespace) -> None:
    """Plain HTTP is redirected permanently to HTTPS, with path and query"""
    answer = answers["plain"]
    assert answer.status == 308
    assert answer.header("Location") == [f"https://{spec.application.server_name}/some/page?with=query"]


@pytest.mark.req("R51")
def test_old_tls_is_refused(answers: dict[str, Answer]) -> None:
    """TLS 1.1 and older are refused"""
    assert answers["old TLS"].error == "SSLError"


@pytest.mark.req("R86", "R87")
def test_redirect_is_clean(answers: dict[str, Answer]) -> None:
    """A newline in the path is refused; only a challenge of the certificate authority is served over HTTP"""
    answer = answers["plain line end"]
    assert (answer.status, answer.header("Set-Cookie")) == (400, [])
    assert answer.header("Strict-Transport-Security") == []
    assert (answers["challenge"].status, answers["challenge"].body) == (200, "proof\n")
    assert answers["challenge"].header("Content-Type") == ["text/plain"]
    assert answers["challenges"].status == 308


@pytest.mark.req("R56", "R55", "R46", "R12", "R88")
@pytest.mark.parametrize(
    "case",
    [
        "page", "health", "absent", pytest.param("static", marks=pytest.mark.layers("40-app")),
        "delete", "hidden /.env", "hidden /media/", "media photo.jpg",
        "media page.html", "large body", "large header", "long path", "bad method", "bad version", "trace",
        "right name, other host",
    ],
)  # fmt: skip
def test_headers(answers: dict[str, Answer], case: str) -> None:
    """Every response has the security headers exactly once, and neither a server's name nor a version"""
    answer = answers[case]
    assert answer.error == "", answer
    assert {name: len(answer.header(name)) for name in ONCE} == dict.fromkeys(ONCE, 1)
    assert {name: answer.header(name)[0] for name in HEADERS} == HEADERS
    assert "frame-ancestors 'none'" in answer.header("Content-Security-Policy")[0]
    assert "default-src 'none'" in answer.header("Content-Security-Policy")[0]
    assert answer.header("Server") == []
    assert not re.search(r"nginx|gunicorn|Python|Django|openresty", answer.body)
    assert not answer.header("X-Powered-By")
    assert not answer.header("X-XSS-Protection")


@pytest.mark.req("R46", "R56")
@pytest.mark.parametrize("case", ["plain", "plain no host", "challenge"])
def test_headers_in_clear(answers: dict[str, Answer], case: str) -> None:
    """Responses over plain HTTP have the same headers, except HSTS"""
    answer = answers[case]
    expected = dict.fromkeys(ONCE, 1) | {"Strict-Transport-Security": 0}
    assert {name: len(answer.header(name)) for name in ONCE} == expected
    assert answer.header("Server") == []
    assert not re.search(r"nginx/|\d\.\d", answer.body)


@pytest.mark.req("R55")
def test_strict_transport_security_is_short(answers: dict[str, Answer]) -> None:
    """The max-age of HSTS is five minutes, unless an operator has set it to two years"""
    assert answers["page"].header("Strict-Transport-Security") == ["max-age=300"]


@pytest.mark.req("R69", "R84")
@pytest.mark.parametrize("file", MEDIA)
def test_media(answers: dict[str, Answer], file: str) -> None:
    """Of the uploads only data files are served: as attachments, and sandboxed if a browser shows them"""
    answer = answers[f"media {file}"]
    if not MEDIA[file]:
        assert answer.status in (403, 404), answer
        return
    assert answer.status == 200, answer
    assert answer.header("Content-Disposition") == ["attachment"]
    assert answer.header("X-Content-Type-Options") == ["nosniff"]
    assert "sandbox" in answer.header("Content-Security-Policy")[0]
    assert "script-src" not in answer.header("Content-Security-Policy")[0]
    assert answer.header("Cache-Control") == []


@pytest.mark.layers("40-app")
@pytest.mark.req("R75")
def test_static_files_are_kept(answers: dict[str, Answer]) -> None:
    """A file with its hash in the name is served by nginx, and may be cached permanently"""
    answer = answers["static"]
    assert answer.status == 200
    assert answer.header("Content-Type") == ["text/css"]
    assert answer.header("Cache-Control") == ["public, max-age=31536000, immutable"]
    assert answers["absent"].header("Cache-Control") != answer.header("Cache-Control")


@pytest.mark.layers("40-app")
@pytest.mark.req("R75")
def test_static_files_without_a_hash_are_asked_for_again(answers: dict[str, Answer]) -> None:
    """A file without a hash in its name is served, and a browser must revalidate its cached copy"""
    answer = answers["plain static"]
    assert (answer.status, answer.header("Content-Type")) == (200, ["text/css"])
    assert answer.header("Cache-Control") == ["no-cache"]
    assert answers["known static"].status == 304


@pytest.mark.req("R84", "R37", "F28")
@pytest.mark.parametrize("path", [*HIDDEN, *TRAVERSAL])
def test_hidden(answers: dict[str, Answer], path: str) -> None:
    """Code, configuration, backups, listings and files outside the site are never served"""
    answer = answers[f"hidden {path}"]
    assert answer.status in (400, 403, 404)
    assert "root:" not in answer.body


@pytest.mark.req("R48", "R57", "F27")
def test_limits(answers: dict[str, Answer]) -> None:
    """Requests that are too large and methods that the site does not support are refused at once"""
    assert answers["large header"].status in (400, 431)
    assert answers["long path"].status == 414
    assert answers["large body"].status == 413
    for case in ("delete", "trace"):
        assert answers[case].status in (403, 405), case


@pytest.mark.layers("application")
@pytest.mark.req("R48", "R57")
def test_health_is_only_read(answers: dict[str, Answer]) -> None:
    """The health check accepts no other method than GET and HEAD"""
    assert answers["post health"].status in (403, 405)


@pytest.mark.req("R76")
def test_reload(facts: dict[str, Fact]) -> None:
    """A reload tests and applies the configuration without a restart"""
    assert facts["reload"].status == 0, facts["reload"].text
    before, after = facts["reload"].lines
    assert before == after
