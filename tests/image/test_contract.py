"""The contract of an application: its declarations are granted with its release, nothing more, and revoked with it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from testinfra.host import Host

from .test_deploy import STORY as DEPLOYMENT

pytestmark = pytest.mark.story

# The helpers of the deployment tests: bundles that are created on the machine.
HELPERS, _mark, _rest = DEPLOYMENT.partition("HOST = pathlib.Path")

STORY = r'''
import http.client, socket, ssl

MANAGE = """
import os, pathlib, sys, time
verb, here = sys.argv[1], pathlib.Path(__file__).parent
def facts():
    key = pathlib.Path(os.environ.get("CREDENTIALS_DIRECTORY", "/nowhere"), "app.test-key")
    return [os.environ.get(name, "-") for name in ("GREETING", "DATABASE_ROLE", "PGUSER", "PGHOST", "SITE_HOSTS")] + [
        key.read_text().strip() if key.exists() else "-", str(os.getuid()), os.getcwd()]
if verb == "collectstatic":
    (here / "staticfiles.json").write_text("{}")
if verb == "work":
    print("worker", *facts(), sep="|", flush=True)
    while True:
        time.sleep(1)
if verb == "tick":
    pathlib.Path("/var/www/media/golden-test-tick").write_text("|".join(facts()))
if verb == "probe":
    print("out", *facts(), sep="|")
    sys.stdout.flush()
    sys.stderr.write("read " + (sys.stdin.read() if "stdin" in sys.argv else "") + chr(10))
    for number in range(40):
        print("line", number, file=sys.stderr)
    sys.exit(7)
"""
# The result of a connection to the server outside.
REACH = """
import errno, os, socket
def reach(port):
    try:
        with socket.create_connection(("192.0.2.1", port), timeout=3 * int(os.environ.get("PACE", "3"))) as connection:
            return connection.recv(100).decode()
    except OSError as error:
        return errno.errorcode.get(error.errno, "timeout")
"""
WSGI = REACH + """
import os, pathlib
key = pathlib.Path(os.environ.get("CREDENTIALS_DIRECTORY", "/nowhere"), "app.test-key")
print("server", *(os.environ.get(name, "-") for name in ("GREETING", "DATABASE_ROLE", "PGUSER", "PGHOST", "SITE_HOSTS")),
      key.read_text().strip() if key.exists() else "-", os.getuid(), os.getcwd(), sep="|", flush=True)
def application(environ, start_response):
    length = int(environ.get("CONTENT_LENGTH") or 0)
    body = environ["wsgi.input"].read(length)
    start_response("200 OK", [("Content-Type", "text/plain")])
    path = environ["REQUEST_METHOD"] + " " + environ["PATH_INFO"] + " " + str(len(body))
    if environ["PATH_INFO"].startswith("/out/"):
        return [reach(int(environ["PATH_INFO"][5:])).encode()]
    return [path.encode() + b" " + os.environ.get("GREETING", "-").encode()]
"""
CONTRACT = """
environment: {GREETING: 'a "b" $HOME %h'}
secrets: [test-key]
processes: {worker: {command: [manage.py, work], memory: 5, stop: 5}}
jobs: {tick: {command: [tick], when: "*-*-* 04:00:00"}}
web:
  methods: [GET, POST]
  paths: [{path: /api/, methods: [GET, PUT, DELETE], body: 3M}]
  administration: [/admin, /django-admin, /back]
  well_known: [security.txt]
  suffixes: [ini]
media: {kinds: [{suffixes: [m4v], type: video/mp4, send: inline}], private: [golden-test-private]}
health: {path: /up, pages: [/, /api/x]}
"""
SECRET = pathlib.Path("/run/golden/app-secret-test-key")
MEDIA = pathlib.Path("/var/www/media")
RULES = pathlib.Path("/run/golden/app")

def app(name, contract):
    files = {"code/manage.py": MANAGE.encode(), "code/project/__init__.py": b"", "code/project/wsgi.py": WSGI.encode(),
             "code/project/logs.py": LOGS.encode(), "code/golden-app.yaml": contract.encode(), "requirements.lock": LOCK,
             f"wheels/{WHEEL}": BODY}
    return packed(name, files=files)

def request(method, path, body=b""):
    """Return status and beginning of the web server's response."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    plain = socket.create_connection(("127.0.0.1", 443), timeout=30 * int(os.environ["PACE"]))
    with context.wrap_socket(plain, server_hostname=HOST) as connection:
        head = f"{method} {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        try:
            connection.sendall(head.encode() + body)
        except OSError:
            pass
        answer = http.client.HTTPResponse(connection, method=method)
        answer.begin()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        return [answer.status, answer.read(200).decode(errors="replace"), headers.get("content-type", ""),
                headers.get("content-disposition", "")]

def asked():
    big = b"x" * (2 << 20)
    found = {f"{method} {path}": request(method, path) for method, path in (
        ("GET", "/"), ("POST", "/"), ("PUT", "/"), ("DELETE", "/api/x"), ("PATCH", "/api/x"), ("POST", "/api/x"),
        ("GET", "/.well-known/security.txt"), ("GET", "/.well-known/other"), ("GET", "/schema.ini"), ("GET", "/schema.py"),
        ("GET", "/admin/"), ("GET", "/administration-guide/"), ("GET", "/back/x"), ("GET", "/media/golden-test/film.m4v"),
        ("GET", "/media/golden-test/Ein%20Film%20(2)%20%C3%A4.m4v"),
        ("GET", "/media/golden-test-private/a.txt"), ("GET", "/.private/golden-test-private/a.txt"))}
    found["PUT /api/x 2M"] = request("PUT", "/api/x", big)
    found["PUT /api/x 4M"] = request("PUT", "/api/x", big * 2)
    found["POST / 2M"] = request("POST", "/", big)
    return found

OUTSIDE = "golden-outside"
SERVER = """
import selectors, socket, sys, time
listeners = selectors.DefaultSelector()
for port in (25, 26):
    listeners.register(socket.create_server(("192.0.2.1", port)), selectors.EVENT_READ)
print("ready", flush=True)
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    for key, _ in listeners.select(1):
        connection, _address = key.fileobj.accept()
        connection.sendall(b"welcome")
        connection.close()
"""

def outside():
    """Join a network namespace with a server at 192.0.2.1 to this machine; return the server's process."""
    for argv in (("netns", "add", OUTSIDE),
                 ("link", "add", "goutside0", "type", "veth", "peer", "name", "goutside1", "netns", OUTSIDE),
                 ("address", "add", "192.0.2.2/24", "dev", "goutside0"), ("link", "set", "goutside0", "up"),
                 ("-n", OUTSIDE, "address", "add", "192.0.2.1/24", "dev", "goutside1"),
                 ("-n", OUTSIDE, "link", "set", "goutside1", "up")):
        subprocess.run(["ip", *argv], check=True)
    argv = ["ip", "netns", "exec", OUTSIDE, "python3", "-c", SERVER, str(60 * int(os.environ["PACE"]))]
    server = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    server.stdout.readline()
    return server

def reached():
    """Return which users reach which port of the server outside."""
    probe = REACH + "import sys; print(reach(int(sys.argv[1])))"
    found = {f"{user} 25": run("setpriv", f"--reuid={user}", "--clear-groups", "python3", "-c", probe, 25)["text"].strip()
             for user in ("www-data", "nobody")}
    return found | {f"application {port}": request("GET", f"/out/{port}")[1] for port in (25, 26)}

def shown(unit, *names):
    text = run("systemctl", "show", *(f"--property={name}" for name in names), unit)["text"]
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)

SANDBOX = ("User", "Group", "PrivateNetwork", "PrivateUsers", "ProtectSystem", "NoNewPrivileges", "CapabilityBoundingSet",
           "RestrictAddressFamilies", "SystemCallFilter", "ReadWritePaths", "InaccessiblePaths", "MemoryDenyWriteExecute",
           "IPAddressDeny", "UMask", "EnvironmentFiles", "WorkingDirectory", "LoadCredential")

HOST = pathlib.Path("/run/golden/names").read_text().split()[0]
before = SITE.read_text() if SITE.exists() else ""
first = os.readlink(APP / "current").split("/")[-1]
record = APP / "releases" / first / "release.json"
adopted = not record.exists()
results["start"] = {"releases": sorted(path.name for path in (APP / "releases").iterdir())}
rules = {path.name: path.read_text() for path in RULES.iterdir()}
server = None
try:
    WORK.mkdir(mode=0o700)
    WHEEL, BODY = repacked("gunicorn")
    name, version = WHEEL.split("-")[:2]
    LOCK = f"{name}=={version} --hash=sha256:{hashlib.sha256(BODY).hexdigest()}\n".encode()
    content = json.loads(before) if before else {}
    SITE.write_text(json.dumps(content | {"backup": None, "application": None}))
    (MEDIA / "golden-test").mkdir()
    (MEDIA / "golden-test-private").mkdir()
    (MEDIA / "golden-test" / "film.m4v").write_bytes(b"film")
    (MEDIA / "golden-test" / "Ein Film (2) \u00e4.m4v").write_bytes(b"film")
    (MEDIA / "golden-test-private" / "a.txt").write_bytes(b"private")
    run("chown", "-R", "gunicorn:www-data", MEDIA / "golden-test", MEDIA / "golden-test-private")
    run("chmod", "-R", "u=rwX,g=rX,o=", MEDIA / "golden-test", MEDIA / "golden-test-private")

    # A contract with errors, and one that the site does not allow: refused, with all reasons.
    results["faulty"] = deploy(*app("faulty", "web: {methods: [PUSH]}\njobs: {a: {command: [x], when: never}}\n"))
    results["beyond"] = deploy(*app("beyond", CONTRACT + "destinations: ['smtp.example.org:587']\n"))
    results["after refusals"] = {"current": os.readlink(APP / "current"), "rules": rules == {
        path.name: path.read_text() for path in RULES.iterdir()}}

    # The site settings name the secret: granted.
    SECRET.write_text("the-secret")
    allowed = {"bundle": None, "sha256": None, "secrets": {"test-key": "/x"}, "allow": {}}
    SITE.write_text(json.dumps(content | {"backup": None, "application": allowed}))
    results["image answers"] = asked()
    one = app("one", CONTRACT)
    results["one"] = deploy(*one)
    results["answers"] = asked()
    results["worker"] = shown("application-worker.service", "ActiveState", "OnFailure", "MemoryMax", *SANDBOX)
    results["service"] = shown("gunicorn.service", *SANDBOX)
    results["timer"] = shown("application-job-tick.timer", "ActiveState", "NextElapseUSecRealtime")
    results["job start"] = run("systemctl", "start", "application-job-tick.service")
    results["job"] = shown("application-job-tick.service", "Result", *SANDBOX)
    tick = MEDIA / "golden-test-tick"
    results["tick"] = tick.read_text() if tick.exists() else ""
    results["exposure"] = {unit: run("sh", "-c", f"systemd-analyze security --no-pager {unit} | tail -1")["text"]
                           for unit in ("gunicorn.service", "application-worker.service", "application-job-tick.service")}
    results["candidate log"] = run("journalctl", "-b", "-o", "cat", "-u", "application-candidate.service")["text"]
    results["worker log"] = run("journalctl", "-b", "-o", "cat", "-u", "application-worker.service")["text"]
    shell = "golden-app run -- probe a 'b c' 2>/run/golden/test-contract.err; echo code $?"
    results["run"] = run("sh", "-c", shell) | {"err": pathlib.Path("/run/golden/test-contract.err").read_text()}
    results["run stdin"] = run("sh", "-c", "echo from-stdin | golden-app run -- probe stdin")
    results["run owner"] = run("golden-app", "run", "--owner", "--", "probe")
    results["run terminal"] = run("script", "-qec", "golden-app run -- probe", "/dev/null")
    results["run nothing"] = run("golden-app", "run")
    results["contract"] = run("golden-contract")
    results["after a reload"] = run("sh", "-c", "systemctl daemon-reload; systemctl is-active application-worker.service")

    # Rollback: the grants are revoked with the release.
    results["rollback"] = run("golden-deploy", "--rollback")
    results["rollback answers"] = asked()
    results["rollback worker"] = shown("application-worker.service", "LoadState", "ActiveState")
    results["rollback timer"] = shown("application-job-tick.timer", "LoadState", "ActiveState")
    results["rollback rules"] = rules == {path.name: path.read_text() for path in RULES.iterdir()}
    results["forward"] = run("golden-deploy", "--rollback")
    results["forward answers"] = {"PUT /api/x": request("PUT", "/api/x")}
    results["forward worker"] = shown("application-worker.service", "ActiveState")

    # A server outside: opened in the packet filter and the sandbox, and closed with the release.
    allowed["allow"] = {"destinations": ["192.0.2.1:25"]}
    SITE.write_text(json.dumps(content | {"backup": None, "application": allowed}))
    results["out"] = deploy(*app("out", "destinations: ['192.0.2.1:25']\n"))
    network = ("PrivateNetwork", "RestrictAddressFamilies", "SocketBindDeny", "IPAddressDeny")
    results["out unit"] = shown("gunicorn.service", *network)
    results["out set"] = run("nft", "list", "set", "inet", "golden", "application_out4")["text"]
    server = outside()
    results["out reached"] = reached()
    results["out exposure"] = run("sh", "-c", "systemd-analyze security --no-pager gunicorn.service | tail -1")["text"]
    results["out rollback"] = run("golden-deploy", "--rollback")
    results["closed unit"] = shown("gunicorn.service", *network)
    probe = REACH + "print(reach(25))"
    results["closed probe"] = run("setpriv", "--reuid=gunicorn", "--clear-groups", "python3", "-c", probe)
    results["closed set"] = run("nft", "list", "set", "inet", "golden", "application_out4")["text"]
finally:
    if server:
        server.kill()
        server.wait()
    run("ip", "link", "delete", "goutside0")
    run("ip", "netns", "delete", OUTSIDE)
    if os.readlink(APP / "current").split("/")[-1] != first:
        again = f"from golden import deploy; from golden.releases import Releases; deploy.activate(Releases(), '{first}')"
        run("python3", "-I", "-c", again)
    (APP / "previous").unlink(missing_ok=True)
    for path in (APP / "releases").iterdir():
        if re.fullmatch("[0-9a-f]{12}", path.name) and path.name != first and path.name not in results["start"]["releases"]:
            run("rm", "-rf", path)
    if adopted:
        record.unlink(missing_ok=True)
    run("rm", "-rf", WORK, SECRET, MEDIA / "golden-test", MEDIA / "golden-test-private", MEDIA / "golden-test-tick",
        "/run/golden/test-contract.err", "/var/lib/systemd/timers/stamp-application-job-tick.timer")
    SITE.write_text(before) if before else SITE.unlink(missing_ok=True)
    run("sh", "-c", "systemctl reset-failed 'golden-deploy*' 'application-*'")
print(json.dumps(results))
'''


@pytest.fixture(scope="module")
def story(host: Host) -> dict[str, Any]:
    """A release with a contract: refused, granted, rolled back, and granted again."""
    found: dict[str, Any] = json.loads(host.check_output("python3 -c %s", HELPERS + STORY).splitlines()[-1])
    return found


@pytest.mark.req("R18")
def test_a_faulty_contract_is_refused_with_every_fault(story: dict[str, Any]) -> None:
    """A release with errors in its contract is refused, and each error names its key and fix"""
    assert story["faulty"]["code"] == 3
    assert "web.methods[0]: 'PUSH': write one of GET" in story["faulty"]["text"]
    assert "jobs.a.when: 'never': write an expression of systemd.time(7)" in story["faulty"]["text"]


@pytest.mark.req("R18")
def test_what_the_site_does_not_allow_is_refused(story: dict[str, Any]) -> None:
    """A release that opens more than the site allows changes nothing; the error names the lines of site.yaml to add"""
    text = story["beyond"]["text"]
    assert story["beyond"]["code"] == 3
    assert 'application.allow of /etc/golden/site.yaml: destinations: ["smtp.example.org:587"]' in text
    assert "secret: test-key (application.secrets of /etc/golden/site.yaml: test-key: /etc/golden/FILE)" in text
    assert story["after refusals"]["rules"] is True


@pytest.mark.req("R18")
def test_what_a_release_opens_is_shown(story: dict[str, Any]) -> None:
    """A deployment lists the grants that the release adds and removes"""
    assert story["one"]["code"] == 0, story["one"]["text"]
    lines = [line.strip() for line in story["one"]["text"].splitlines()]
    assert "+ web: /api/ GET, PUT, DELETE; body 3M; 30 s" in lines
    assert "+ process: worker: manage.py work" in lines
    assert "+ job: tick: tick, *-*-* 04:00:00" in lines
    assert "- web: /upload GET, HEAD, POST; body 9M; 30 s" in lines


# Method and path, and the status: of the release with the contract, and of the image's application.
ANSWERS = {
    "GET /": (200, None), "POST /": (200, None), "PUT /": (403, 403), "DELETE /api/x": (200, 403),
    "PATCH /api/x": (403, 403),
    "POST /api/x": (403, None), "GET /.well-known/security.txt": (200, 404), "GET /.well-known/other": (404, None),
    "GET /schema.ini": (200, 404), "GET /schema.py": (404, 404), "GET /admin/": (404, 404), "GET /back/x": (404, None),
    "GET /administration-guide/": (200, None), "GET /media/golden-test/film.m4v": (200, None),
    "GET /media/golden-test/Ein%20Film%20(2)%20%C3%A4.m4v": (200, None),
    "GET /media/golden-test-private/a.txt": (404, None), "GET /.private/golden-test-private/a.txt": (404, 404),
    "PUT /api/x 2M": (200, 413), "PUT /api/x 4M": (413, None), "POST / 2M": (413, 413),
}  # fmt: skip


@pytest.mark.req("R57", "R67")
@pytest.mark.parametrize("request_", ANSWERS)
def test_the_web_server_passes_what_is_declared(story: dict[str, Any], request_: str) -> None:
    """Methods, sizes, names and kinds of files are those of the contract, only while its release is active"""
    granted, image = ANSWERS[request_]
    assert story["answers"][request_][0] == granted, story["answers"][request_]
    for when in ("image answers", "rollback answers"):
        assert image in (None, story[when][request_][0]), (when, story[when][request_])
    if granted == 200 and "/media/" not in request_:
        assert story["answers"][request_][1].startswith(" ".join(request_.split()[:2]))


@pytest.mark.req("R57")
def test_a_declared_kind_of_media_is_shown(story: dict[str, Any]) -> None:
    """A media type that the contract declares as inline has its Content-Type and no Content-Disposition"""
    for name in ("film.m4v", "Ein%20Film%20(2)%20%C3%A4.m4v"):
        assert story["answers"][f"GET /media/golden-test/{name}"][1:] == ["film", "video/mp4", ""]


@pytest.mark.req("R16", "R18", "R79")
def test_processes_and_jobs_have_the_sandbox_of_the_service(story: dict[str, Any]) -> None:
    """Processes and jobs run in the sandbox and as the user of the application server, and raise alerts"""
    sandbox = story["service"]
    assert {name: story["worker"][name] for name in sandbox} == sandbox
    assert {name: story["job"][name] for name in sandbox} == sandbox
    assert story["worker"]["ActiveState"] == "active"
    assert "golden-alert@application-worker.service.service" in story["worker"]["OnFailure"]
    assert story["timer"]["ActiveState"] == "active"
    assert story["job start"]["code"] == 0
    for unit, text in story["exposure"].items():
        match = re.search(r"level for \S+: ([0-9.]+)", text)
        assert match, text
        assert float(match.group(1)) <= 0.3, unit


def facts(line: str) -> list[str]:
    return line.strip().split("|")[-8:]


@pytest.mark.req("R16", "R81")
def test_one_environment(story: dict[str, Any]) -> None:
    """Process, job and command have the same variables, secrets, database role, host names and directory"""
    worker = next(line for line in story["worker log"].splitlines() if line.startswith("worker|"))
    greeting, role, user, socket, hosts, key, uid, place = facts(worker)
    assert (greeting, role, user, socket) == ('a "b" $HOME %h', "app", "app", "/run/postgresql")
    assert hosts
    assert key == "the-secret"
    assert uid != "0"
    assert place.startswith("/opt/app/releases/")
    assert facts(story["tick"]) == facts(worker)
    # The candidate had the same environment before the switch.
    tried = [line for line in story["candidate log"].splitlines() if line.startswith("server|")]
    assert facts(worker) in map(facts, tried), tried
    assert facts(story["run"]["text"].splitlines()[0]) == facts(worker)
    assert story["answers"]["GET /"][1].endswith('a "b" $HOME %h')


@pytest.mark.req("R18")
def test_any_management_command(story: dict[str, Any]) -> None:
    """golden-app run passes on input, output, all error lines and the exit code of the command"""
    assert story["run"]["text"].splitlines()[-1] == "code 7"
    lines = [line for line in story["run"]["err"].splitlines() if line.startswith("line ")]
    assert lines == [f"line {number}" for number in range(40)]
    assert story["run stdin"]["code"] == 7
    assert "read from-stdin" in story["run stdin"]["text"]
    assert story["run terminal"]["code"] == 7
    assert "line 39" in story["run terminal"]["text"]
    # Here both outputs are one pipe, which keeps their order.
    first, *rest = story["run owner"]["text"].splitlines()
    assert first.startswith("out|")
    assert facts(first)[1:3] == ["app_owner", "app_owner"]
    assert rest == ["read ", *lines]
    assert story["run nothing"]["code"] == 2


@pytest.mark.req("R18")
def test_rollback_takes_the_grants(story: dict[str, Any]) -> None:
    """A rollback restores the previous grants, and a second rollback grants again"""
    assert story["rollback"]["code"] == 0, story["rollback"]["text"]
    assert story["rollback worker"] == {"LoadState": "not-found", "ActiveState": "inactive"}
    assert story["rollback timer"] == {"LoadState": "not-found", "ActiveState": "inactive"}
    assert story["rollback rules"] is True
    assert story["after a reload"]["text"].strip() == "active"
    assert story["forward answers"]["PUT /api/x"][0] == 200
    assert story["forward worker"]["ActiveState"] == "active"


# Errors of a connection that the packet filter refuses, and of a process without a network.
REFUSED = ("ECONNREFUSED", "EACCES", "EPERM", "EHOSTUNREACH", "ENETUNREACH", "timeout")


@pytest.mark.req("R16", "R18")
def test_a_destination_is_open_for_the_application_alone(story: dict[str, Any]) -> None:
    """Only the application reaches a server of the contract, by address and port, and only with its release"""
    assert story["out"]["code"] == 0, story["out"]["text"]
    assert "+ destination: 192.0.2.1:25" in story["out"]["text"]
    assert re.search(r"\. 192\.0\.2\.1 \. 25", story["out set"]), story["out set"]
    unit = story["out unit"]
    assert unit["PrivateNetwork"] == "no"
    assert {"AF_INET", "AF_INET6", "AF_UNIX"} == {*unit["RestrictAddressFamilies"].split()}
    assert "127.0.0.0/8" in unit["IPAddressDeny"]
    match = re.search(r"level for \S+: ([0-9.]+)", story["out exposure"])
    assert match, story["out exposure"]
    assert float(match.group(1)) <= 1.1
    assert story["out rollback"]["code"] == 0, story["out rollback"]["text"]
    reached = story["out reached"]
    assert reached["application 25"] == "welcome"
    for who in ("application 26", *(f"{user} 25" for user in ("www-data", "nobody"))):
        assert reached[who] in REFUSED, (who, reached)
    assert "192.0.2.1" not in story["closed set"]
    assert story["closed probe"]["text"].strip() in REFUSED, story["closed probe"]
    assert story["closed unit"]["PrivateNetwork"] == "yes"
