"""Deployments: verified, built beside the running release, switched in one step, and rolled back if not healthy."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from testinfra.host import Host

from .facts import Fact, gather, properties

pytestmark = pytest.mark.story

UNITS = (
    "golden-deploy.service", "golden-deploy-build@0123456789ab.service", "golden-deploy-migrate@0123456789ab.service",
    "golden-deploy-accept.service", "golden-deploy-fetch.service", "golden-deploy-web.service",
)  # fmt: skip

# A failure of this unit is reported by golden-deploy, which starts it.
CANDIDATE = "application-candidate.service"

# A small application, so that emulated machines build it in seconds. It has the parts that golden-deploy requires (manage.py
# with check, collectstatic and migrate; a WSGI callable; /health), and gunicorn, whose wheel is rebuilt from the installed
# package, so that no package index is needed.
STORY = r'''
import base64, csv, hashlib, io, json, os, pathlib, re, shutil, subprocess, sys, tarfile, threading, time, zipfile

WORK = pathlib.Path("/root/golden-test-deploy")
APP = pathlib.Path("/opt/app")
STATIC = pathlib.Path("/var/www/static")
STATE = pathlib.Path("/var/lib/golden-deploy")
SITE = pathlib.Path("/run/golden/site.json")
BACKUPS = pathlib.Path("/var/backups/golden")
FAILS = pathlib.Path("/run/golden/test-deploy")
WANTED = pathlib.Path("/run/golden/site-has-application")
AUTHORITY = pathlib.Path("/run/golden/test-authority.pem")
TRUST = pathlib.Path("/run/systemd/system/golden-deploy-fetch.service.d/99-test.conf")
results = {}

MANAGE = """
import os, pathlib, sys
verb, here = sys.argv[1], pathlib.Path(__file__).parent
def attempt(act):
    try:
        act()
    except OSError as error:
        return type(error).__name__
    return "done"
if verb == "collectstatic":
    static = pathlib.Path("/var/www/static")
    (static / "golden-test").mkdir()
    (static / "golden-test" / "app.@NAME@00000000.css").write_text("/* @NAME@ */")
    (here / "staticfiles.json").write_text("{}")
    import socket
    print("probe root:", attempt(lambda: os.listdir("/root")), "etc:", attempt(lambda: open("/etc/golden-test", "w")),
          "other release:", attempt(lambda: open("/opt/app/releases/image/code/x", "w")),
          "database:", attempt(lambda: socket.socket(socket.AF_UNIX).connect("/run/postgresql/.s.PGSQL.5432")),
          "network:", attempt(lambda: socket.create_connection(("127.0.0.1", 443), 2)), "uid:", os.getuid())
if verb == "migrate":
    print("role:", os.environ["DATABASE_ROLE"], "migrations of @NAME@")
    # The name in this file is that of the release whose migrations fail.
    failing = pathlib.Path("/run/golden/test-deploy")
    sys.exit(7 if failing.exists() and failing.read_text() == "@NAME@" else 0)
"""
WSGI = """
import os
ANSWER = "@ANSWER@" if "GOLDEN_CANDIDATE" in os.environ else "@LATER@" or "@ANSWER@"
def application(environ, start_response):
    start_response(ANSWER, [("Content-Type", "text/plain")])
    return [b"release @NAME@"]
"""
LOGS = """
import logging

class JsonFormatter(logging.Formatter):
    pass
"""

def run(*argv):
    done = subprocess.run([str(word) for word in argv], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)
    return {"code": done.returncode, "text": done.stdout.decode(errors="replace")}

def repacked(name):
    """Return a wheel with the files of an installed package."""
    site = next((APP / "current" / "venv" / "lib").glob("python3.*")) / "site-packages"
    record = next(site.glob(f"{name}-*.dist-info/RECORD"))
    rows, body = [], io.BytesIO()
    with zipfile.ZipFile(body, "w") as wheel:
        for path, *_ in csv.reader(record.read_text().splitlines()):
            own = path.split("/")[-1]
            if path.startswith("..") or path.endswith(".pyc") or own in ("RECORD", "INSTALLER", "REQUESTED"):
                continue
            content = (site / path).read_bytes()
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            rows.append(f"{path},sha256={digest},{len(content)}")
            wheel.writestr(path, content)
        inside = f"{record.parent.name}/RECORD"
        wheel.writestr(inside, "\n".join([*rows, f"{inside},,", ""]))
    version = record.parent.name.removesuffix(".dist-info")
    return f"{version}-py3-none-any.whl", body.getvalue()

def packed(name, *, files=None, changes=None, link=""):
    """Write a bundle and return its path and hash; ``changes`` are in the archive and not in its manifest."""
    content = dict(files)
    facts = {path: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for path, data in content.items()}
    content |= changes or {}
    manifest = json.dumps({"format": 1, "name": name, "files": facts}).encode()
    path = WORK / f"{name}.bundle"
    with tarfile.open(path, "w") as archive:
        for inside, data in [("manifest.json", manifest), *sorted(content.items())]:
            info = tarfile.TarInfo(inside)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        if link:
            info = tarfile.TarInfo("code/link")
            info.type, info.linkname = tarfile.SYMTYPE, link
            archive.addfile(info)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()

def application(name, *, answer="200 OK", later=""):
    def fill(text):
        return text.replace("@NAME@", name).replace("@ANSWER@", answer).replace("@LATER@", later).encode()
    files = {"code/manage.py": fill(MANAGE), "code/project/__init__.py": b"", "code/project/wsgi.py": fill(WSGI),
             "code/project/logs.py": LOGS.encode(), "requirements.lock": LOCK, f"wheels/{WHEEL}": BODY}
    return files

def deploy(path, digest, *words):
    return run("golden-deploy", path, "--sha256", digest, *words)

class Visitor(threading.Thread):
    """Requests a page repeatedly, and records failed requests."""

    def __init__(self):
        super().__init__(daemon=True)
        self.names, self.failed, self.going = [], [], True

    def run(self):
        import http.client, socket
        while self.going:
            try:
                connection = http.client.HTTPConnection("localhost")
                connection.sock = socket.socket(socket.AF_UNIX)
                connection.sock.settimeout(20 * int(os.environ["PACE"]))
                connection.sock.connect("/run/gunicorn.sock")
                connection.request("GET", "/", headers={"Host": HOST, "X-Forwarded-Proto": "https"})
                answer = connection.getresponse()
                body = answer.read().decode(errors="replace")
                if answer.status != 200:
                    self.failed.append(f"{answer.status}")
                found = body if body.startswith("release ") else "release image"
                if found not in self.names:
                    self.names.append(found)
                connection.close()
            except Exception as error:
                self.failed.append(repr(error))
            time.sleep(0.1)

def bundle_server():
    """Serve the bundles over HTTPS on the loopback interface, with a certificate that the unit trusts; return the server."""
    import functools, http.server, ssl
    key = WORK / "server.key"
    run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
        "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2", "-keyout", key, "-out", AUTHORITY)
    AUTHORITY.chmod(0o644)
    TRUST.parent.mkdir()
    TRUST.write_text(f"[Service]\nEnvironment=SSL_CERT_FILE={AUTHORITY}\n")
    run("systemctl", "daemon-reload")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=WORK)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(AUTHORITY, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server

def state():
    links = {name: os.readlink(APP / name) if (APP / name).is_symlink() else "" for name in ("current", "previous")}
    releases = sorted(path.name for path in (APP / "releases").iterdir())
    return {"links": links, "releases": releases,
            "static": sorted(str(p.relative_to(STATIC)) for p in STATIC.rglob("*") if "golden-test" in str(p))}

HOST = pathlib.Path("/run/golden/names").read_text().split()[0]
before = SITE.read_text() if SITE.exists() else ""
first = os.readlink(APP / "current").split("/")[-1]
record = APP / "releases" / first / "release.json"
adopted = not record.exists()
kept = {path.name for path in BACKUPS.glob("*")}
had_application = WANTED.exists()
try:
    WORK.mkdir(mode=0o700)
    WHEEL, BODY = repacked("gunicorn")
    name, version = WHEEL.split("-")[:2]
    LOCK = f"{name}=={version} --hash=sha256:{hashlib.sha256(BODY).hexdigest()}\n".encode()
    results["start"] = state()

    # A bundle that does not match its hash or manifest changes nothing.
    good = application("one")
    one, one_hash = packed("one", files=good)
    results["no hash"] = run("golden-deploy", one)
    results["other hash"] = deploy(one, "0" * 64)
    bad = {"changed": dict(files=good, changes={"code/manage.py": b"print()"}),
           "added": dict(files=good, changes={"code/more.py": b"print()"}),
           "traversal": dict(files=good | {"code/../../x": b"x"}),
           "absolute": dict(files=good | {"/etc/x": b"x"}),
           "hidden": dict(files=good | {"code/.env": b"x"}),
           "linked": dict(files=good, link="/etc/shadow"),
           "without code": dict(files={"requirements.lock": LOCK}),
           "without hashes": dict(files=good | {"requirements.lock": f"{name}=={version}\n".encode()})}
    results["refused"] = {name: deploy(*packed(name.replace(" ", "-"), **how)) for name, how in bad.items()}
    results["after refusals"] = state()

    server = bundle_server()
    place = f"https://localhost:{server.server_address[1]}"
    results["no such bundle"] = deploy(f"{place}/none.bundle", "0" * 64)
    results["left"] = [str(path) for path in pathlib.Path("/var/lib/golden-fetch").iterdir()]

    # The site settings name a bundle: fetched and deployed by the unit, once, under load, after a backup, beside an
    # incomplete release.
    (APP / "releases" / "0123456789ab" / "code").mkdir(parents=True)
    recipient = ""
    if shutil.which("age-keygen"):
        run("age-keygen", "-o", WORK / "key")
        recipient = run("age-keygen", "-y", WORK / "key")["text"].strip()
    content = json.loads(before) if before else {}
    keep = {"recipient": recipient, "target": "", "keep_days": 14}
    wish = {"bundle": f"{place}/{one.name}", "sha256": one_hash}
    SITE.write_text(json.dumps(content | {"backup": keep, "application": wish}))
    results["wanted"] = run("golden-deploy", "--wanted")
    visitor = Visitor()
    visitor.start()
    WANTED.touch()
    results["one"] = run("systemctl", "start", "golden-deploy.service")
    results["one"]["text"] += run("journalctl", "--boot", "--output=cat", "--unit=golden-deploy*")["text"]
    assert results["one"]["code"] == 0, results["one"]["text"]
    results["wanted again"] = run("golden-deploy", "--wanted")
    results["backups"] = len({path.name for path in BACKUPS.glob("*.age")} - kept)
    results["one state"] = state()
    results["one hash"] = one_hash
    top = APP / "releases" / one_hash[:12]
    results["owners"] = sorted(set(run("find", top, "-printf", "%u:%g %y %m\\n")["text"].split("\n")) - {""})
    results["held"] = sorted(path.name for path in top.iterdir())
    results["pip"] = run("find", top / "venv", "-name", "pip", "-o", "-name", "setuptools")["text"]
    results["compiled"] = len(list(top.rglob("*.pyc")))
    results["writable"] = run("runuser", "-u", "gunicorn", "--", "find", APP, STATIC, "-writable", "!", "-type", "l")["text"]
    results["again"] = deploy(one, one_hash)
    log = ("journalctl", "-b", "-o", "cat", "-u")
    results["probe"] = run(*log, f"golden-deploy-build@{one_hash[:12]}.service")["text"]
    results["migrated"] = run(*log, f"golden-deploy-migrate@{one_hash[:12]}.service")["text"]

    # A release that fails: in its migrations, and at the second attempt as a candidate. The previous release keeps serving.
    SITE.write_text(json.dumps(content | {"backup": None}))
    ill = packed("ill", files=application("ill", answer="503 Service Unavailable"))
    FAILS.write_text("ill")
    results["bad migration"] = deploy(*ill)
    results["bad migration state"] = state()
    FAILS.unlink()
    results["ill"] = deploy(*ill)
    results["ill state"] = state()
    results["ill visitor"] = list(visitor.failed)
    results["candidate"] = run("systemctl", "show", "-p", "ActiveState", "application-candidate.service")["text"]
    results["candidate link"] = os.path.lexists("/run/golden/candidate")

    # A release that is healthy until it serves.
    results["late"] = deploy(*packed("late", files=application("late", later="503 Service Unavailable")))
    results["late state"] = state()
    visitor.going = False
    visitor.join()
    results["visitor"] = {"names": visitor.names, "failed": visitor.failed[:5]}

    # A rollback, and the list of releases.
    results["rollback"] = run("golden-deploy", "--rollback")
    results["rollback state"] = state()
    results["list"] = json.loads(run("golden-deploy", "--list", "--json")["text"])
    with open("/run/golden-lock/golden-deploy.lock", "w") as lock:
        import fcntl
        fcntl.flock(lock, fcntl.LOCK_EX)
        results["two at once"] = deploy(one, one_hash)
    server.shutdown()
finally:
    if not had_application:
        WANTED.unlink(missing_ok=True)
    if os.readlink(APP / "current").split("/")[-1] != first:
        # Restores the grants of the release too: rules of the web server, units.
        again = f"from golden import deploy; from golden.releases import Releases; deploy.activate(Releases(), '{first}')"
        run("python3", "-I", "-c", again)
    (APP / "previous").unlink(missing_ok=True)
    for path in (APP / "releases").iterdir():
        if re.fullmatch("[0-9a-f]{12}", path.name) and path.name != first and path.name not in results["start"]["releases"]:
            run("rm", "-rf", path)
    if adopted:
        record.unlink(missing_ok=True)
    run("rm", "-rf", WORK, FAILS, AUTHORITY, TRUST.parent, STATIC / "golden-test", STATE / "site.sha256",
        *(path for path in BACKUPS.glob("*") if path.name not in kept))
    SITE.write_text(before) if before else SITE.unlink(missing_ok=True)
    run("systemctl", "daemon-reload")
    run("sh", "-c", "systemctl reset-failed 'golden-deploy*' 'golden-backup*'")
print(json.dumps(results))
'''


@pytest.fixture(scope="module")
def story(host: Host) -> dict[str, Any]:
    """Bundles that are refused, one that is deployed, those that fail, and the rollback."""
    found: dict[str, Any] = json.loads(host.check_output("python3 -c %s", STORY).splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def facts(host: Host) -> dict[str, Fact]:
    """The properties of the units."""
    commands = {f"unit {unit}": f"systemctl show -p OnFailure -p User {unit}" for unit in UNITS}
    exposed = (*UNITS, CANDIDATE)
    commands |= {f"exposure {unit}": f"systemd-analyze security --no-pager '{unit}' | tail -1" for unit in exposed}
    return gather(host, commands)


@pytest.mark.req("R18", "R75")
@pytest.mark.parametrize("unit", UNITS)
def test_units(facts: dict[str, Fact], unit: str) -> None:
    """Each unit raises an alert when it fails, and systemd rates its sandbox 1.5 or better"""
    assert properties(facts[f"unit {unit}"])["OnFailure"] == f"golden-alert@{unit}.service"
    found = re.search(r"level for \S+: ([0-9.]+)", facts[f"exposure {unit}"].text)
    assert found, facts[f"exposure {unit}"].text
    assert float(found.group(1)) <= 1.5


@pytest.mark.req("R18", "R75")
def test_a_release_that_is_tried_has_the_sandbox_of_the_service(facts: dict[str, Fact]) -> None:
    """systemd rates the sandbox of a candidate like that of the service, 0.3 or better"""
    found = re.search(r"level for \S+: ([0-9.]+)", facts[f"exposure {CANDIDATE}"].text)
    assert found, facts[f"exposure {CANDIDATE}"].text
    assert float(found.group(1)) <= 0.3


@pytest.mark.req("R18")
def test_a_hash_is_required_and_must_be_the_one(story: dict[str, Any]) -> None:
    """A bundle without a hash, or with a wrong one, is refused before it is opened"""
    assert story["no hash"]["code"] == 2
    assert "--sha256" in story["no hash"]["text"]
    assert story["other hash"]["code"] == 3
    assert "was asked for" in story["other hash"]["text"]


@pytest.mark.req("R18", "R37")
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("changed", "is not what the manifest says"),
        ("added", "is not in the manifest"),
        ("traversal", "is not a name for a file of a bundle"),
        ("absolute", "is not a name for a file of a bundle"),
        ("hidden", "is not a name for a file of a bundle"),
        ("linked", "is not a plain file"),
        ("without code", "code/manage.py is missing"),
        ("without hashes", "has no hash"),
    ],
)
def test_bundles_that_are_refused(story: dict[str, Any], how: str, message: str) -> None:
    """A bundle with a changed, added, hidden or linked file, or a path outside its directory, changes nothing"""
    assert story["refused"][how]["code"] == 3
    assert message in story["refused"][how]["text"]
    assert story["after refusals"] == story["start"]


@pytest.mark.req("R18", "R37")
def test_a_bundle_that_cannot_be_fetched(story: dict[str, Any]) -> None:
    """An unprivileged unit fetches a bundle by HTTPS; what the server answers instead is reported, and nothing is left"""
    assert story["no such bundle"]["code"] == 1
    assert "none.bundle cannot be fetched" in story["no such bundle"]["text"]
    assert "404" in story["no such bundle"]["text"]
    assert story["left"] == []


@pytest.mark.req("R18", "R75", "R83")
def test_deployment(story: dict[str, Any]) -> None:
    """A release is built offline from its bundle, belongs to root, and serves after the change of one link"""
    assert story["one"]["code"] == 0, story["one"]["text"]
    name = story["one hash"][:12]
    assert story["one state"]["links"]["current"] == f"releases/{name}"
    assert story["one state"]["links"]["previous"] == story["start"]["links"]["current"]
    assert story["held"] == ["code", "grants", "release.json", "requirements.lock", "static", "venv"]
    kinds = {line.rpartition(" ")[0] for line in story["owners"]}
    assert kinds <= {"root:gunicorn d", "root:gunicorn f", "root:gunicorn l"}
    assert all(line.endswith(("0", "l 777")) for line in story["owners"])
    assert story["pip"] == ""
    assert story["compiled"] > 10
    assert [line for line in story["writable"].splitlines() if not line.startswith("find:")] == []
    assert "golden-test/app.one00000000.css" in story["one state"]["static"]


@pytest.mark.layers("70-backup")
@pytest.mark.req("R18", "R92")
def test_backup_before_migrations(story: dict[str, Any]) -> None:
    """If a recipient for backups is set, a backup precedes the migrations, which run as the owner of the tables"""
    assert story["backups"] == 1
    assert "role: app_owner migrations of one" in story["migrated"]


@pytest.mark.req("R18", "R37")
def test_code_is_built_without_rights(story: dict[str, Any]) -> None:
    """During the build, a bundle's code runs without root, network, database and write access to other releases"""
    found = re.search(
        r"probe root: (\w+) etc: (\w+) other release: (\w+) database: (\w+) network: (\w+) uid: (\d+)", story["probe"]
    )
    assert found, story["probe"]
    assert "done" not in found.groups()
    assert found.group(6) != "0"


@pytest.mark.req("R4", "F30")
def test_same_bundle_again(story: dict[str, Any]) -> None:
    """Deploying the active bundle again changes nothing and succeeds"""
    assert story["again"]["code"] == 0
    assert "serves already" in story["again"]["text"]


@pytest.mark.req("R18", "R22")
def test_failing_migration(story: dict[str, Any]) -> None:
    """A failed migration ends the deployment before the switch"""
    assert story["bad migration"]["code"] == 1
    assert "the migrations failed, and the old release goes on" in story["bad migration"]["text"]
    assert story["bad migration state"]["links"] == story["one state"]["links"]


@pytest.mark.req("R18", "R75")
def test_ill_release_never_serves(story: dict[str, Any]) -> None:
    """A release that is not healthy gets no request of a visitor; a second attempt does not build it again"""
    assert story["ill"]["code"] == 3
    assert "is not healthy, and never served: /health: 503" in story["ill"]["text"]
    assert story["ill state"]["links"] == story["one state"]["links"]
    assert story["ill visitor"] == []
    assert story["candidate"].strip() == "ActiveState=inactive"
    assert story["candidate link"] is False


@pytest.mark.req("R18", "R75")
def test_release_that_falls_ill_is_taken_back(story: dict[str, Any]) -> None:
    """A release that is not healthy when it serves is rolled back automatically"""
    assert story["late"]["code"] == 3
    assert "is not healthy (/health: 503" in story["late"]["text"]
    assert "serves again" in story["late"]["text"]
    assert story["late state"]["links"] == story["one state"]["links"]


@pytest.mark.req("R18", "R22", "R75", "F03")
def test_no_request_is_lost(story: dict[str, Any]) -> None:
    """No connection fails while releases change: requests wait in the socket"""
    assert story["visitor"]["names"][:2] == ["release image", "release one"]
    assert [error for error in story["visitor"]["failed"] if error != "503"] == []


@pytest.mark.req("R75")
def test_rollback(story: dict[str, Any]) -> None:
    """--rollback activates the previous release again, and --list marks the current and the previous one"""
    assert story["rollback"]["code"] == 0, story["rollback"]["text"]
    links = story["one state"]["links"]
    assert story["rollback state"]["links"] == {"current": links["previous"], "previous": links["current"]}
    marked = {one["release"]: (one["current"], one["previous"]) for one in story["list"]["releases"]}
    assert marked[links["previous"].split("/")[-1]] == (True, False)
    assert marked[links["current"].split("/")[-1]] == (False, True)


@pytest.mark.req("F30")
def test_two_at_once(story: dict[str, Any]) -> None:
    """While one deployment runs, another is refused"""
    assert story["two at once"]["code"] == 1
    assert "another golden-deploy is running" in story["two at once"]["text"]


@pytest.mark.req("R4", "F18")
def test_bundle_of_the_site(story: dict[str, Any]) -> None:
    """The bundle of the site settings is deployed once; an incomplete release of a power failure is removed"""
    assert story["wanted"]["code"] == 0
    assert story["one"]["code"] == 0, story["one"]["text"]
    assert story["wanted again"]["code"] == 1
    assert "0123456789ab" not in story["one state"]["releases"]
