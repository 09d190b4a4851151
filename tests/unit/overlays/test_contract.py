"""The contract of an application: defaults, errors with key and hint, and the grants that are generated from it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from build.spec import json_schema
from tests.unit.golden_modules import golden_module
from tests.unit.helpers import ROOT

contracts = golden_module("golden.contract")
keys = golden_module("golden.contract_keys")
grants = golden_module("golden.grants")
fields = golden_module("golden.fields")
database = golden_module("golden.app_database")
units = golden_module("golden.app_units")
web = golden_module("golden.web_rules")

PAGE = (ROOT / "docs/reference/golden-app-yaml.md").read_text(encoding="utf-8")
EXAMPLE = PAGE.partition("```yaml\n")[2].partition("```")[0]
DEMO = ROOT / "overlays/40-app/rootfs/opt/app/releases/image/code"

# A value that is wrong by itself (reader and schema refuse it), with its key and a part of the hint.
WRONG: dict[str, tuple[str, str]] = {
    "entry: {wsgi: mysite}": ("entry.wsgi", "MODULE:CALLABLE"),
    "entry: {settings: my-site}": ("entry.settings", "name of a module"),
    "environment: {'A B': x}": ("environment (a name)", "environment variable"),
    "environment: {A: 1}": ("environment.A", "in quotes"),
    "secrets: [Key]": ("secrets[0]", "lower-case"),
    "processes: {worker: {}}": ("processes.worker.command", "missing"),
    "processes: {worker: {command: []}}": ("processes.worker.command", "list of 1 to 64"),
    "processes: {worker: {command: [a], memory: 90}}": ("processes.worker.memory", "from 1 to 40"),
    "processes: {my-worker: {command: [a]}}": ("processes (a name)", "letters and digits"),
    "jobs: {a: {command: [x], when: sometimes}}": ("jobs.a.when", "systemd.time"),
    "web: {methods: [TRACE]}": ("web.methods[0]", "PATCH"),
    "web: {methods: []}": ("web.methods", "list of 1 to 7"),
    "web: {body: 1048576}": ("web.body", "a size"),
    "web: {headers: 12X}": ("web.headers", "a size"),
    "web: {paths: [{path: upload}]}": ("web.paths[0].path", "such as /api/"),
    "web: {paths: [{path: '/a b'}]}": ("web.paths[0].path", "such as /api/"),
    "web: {paths: [{path: '/a{b'}]}": ("web.paths[0].path", "such as /api/"),
    "web: {suffixes: [exe]}": ("web.suffixes[0]", "php"),
    "web: {administration: [/admin/]}": ("web.administration[0]", "without a slash"),
    "media: {kinds: [{suffixes: [.mp4], type: video/mp4}]}": ("media.kinds[0].suffixes[0]", "without its dot"),
    "media: {kinds: [{suffixes: [mp4], type: video}]}": ("media.kinds[0].type", "video/mp4"),
    "media: {kinds: [{suffixes: [mp4], type: video/mp4, send: open}]}": ("media.kinds[0].send", "inline"),
    "database: {extensions: [plpython3u]}": ("database.extensions[0]", "pg_trgm"),
    "database: {temporary_tables: 'yes'}": ("database.temporary_tables", "true or false"),
    "destinations: [smtp.example.org]": ("destinations[0]", "HOST:PORT"),
    "colour: red": ("colour", "there is no such key"),
    "web: {paths: [{path: /a, colour: red}]}": ("web.paths[0].colour", "there is no such key"),
}  # fmt: skip
# What is wrong by a rule that a schema does not have.
WRONG_BESIDES: dict[str, tuple[str, str]] = {
    "environment: {PGHOST: x}": ("environment (a name)", "set by the image"),
    "environment: {DJANGO_SETTINGS_MODULE: x}": ("environment (a name)", "set by the image"),
    "secrets: [secret-key]": ("secrets[0]", "made on each clone"),
    "secrets: [a, a]": ("secrets[1]", "duplicate"),
    "entry: {wsgi: 'a.b:c', asgi: 'a.b:d'}": ("entry.asgi", "one entry"),
    "web: {websockets: [/ws/]}": ("web.websockets", "entry.asgi"),
    "web: {body: 100G}": ("web.body", "from 1K to 10G"),
    "web: {paths: [{path: /a}, {path: /a, body: 2M}]}": ("web.paths", "twice"),
    "web: {paths: [{path: /admin/files/}]}": ("web.paths", "closes /admin"),
    "web: {paths: [{path: /a/../b}]}": ("web.paths[0].path", "begins with a dot"),
    "web: {well_known: [acme-challenge]}": ("web.well_known[0]", "own certificate"),
    "media: {kinds: [{suffixes: [svg], type: image/svg+xml, send: inline}]}": ("media.kinds", "attachment"),
    "destinations: ['127.0.0.1:25']": ("destinations[0]", "of this machine"),
    "destinations: ['192.0.2.300:25']": ("destinations[0]", "neither"),
    "destinations: ['smtp.example.org:99999']": ("destinations[0]", "1 to 65535"),
    "database: {schemas: [pg_x]}": ("database.schemas[0]", "another one"),
    "processes: {run: {command: [a]}}": ("processes (a name)", "the image's"),
    "processes: {candidate: {command: [a]}}": ("processes (a name)", "the image's"),
    "health: {pages: [/admin/login/]}": ("health.pages", "web.administration closes it"),
    "health: {path: /static/a.css}": ("health.path", "name a page"),
    "health: {path: /status.py}": ("health.path", "web.suffixes"),
    "{health: {pages: [/media/bills/a.txt]}, media: {private: [bills]}}": ("health.pages", "media.private"),
    "{health: {pages: [/hook]}, web: {paths: [{path: /hook, methods: [POST]}]}}": ("health.pages", "add GET"),
    "{health: {pages: [/api/x]}, web: {paths: [{path: /api/, methods: [PUT]}]}}": ("health.pages", "add GET"),
    "{health: {path: /}, web: {methods: [POST]}}": ("health.path", "add GET"),
    "{jobs: {a: {command: [x], when: daily}}, processes: {a: {command: [x]}}}": ("jobs", "another one"),
    "web: {body: 1M": ("golden-app.yaml", "correct the YAML"),
    "web: {body: 1M}\nweb: {body: 2M}": ("golden-app.yaml", "twice"),
    "secrets: &a [a]\nwell_known: *a": ("well_known", "there is no such key"),
    "secrets: [a]\ndestinations: &a [b]\nweb: {well_known: *a}": ("web.well_known", "write a list"),
    "[a]": ("the file", "keys and values"),
}  # fmt: skip


def parsed(text: str) -> tuple[dict[str, Any], list[Any]]:
    content, faults = contracts.parse(text.encode())
    return content, faults


def granted(text: str) -> dict[str, str]:
    content, faults = parsed(text)
    assert faults == []
    files: dict[str, str] = grants.files(content)
    return files


@pytest.mark.parametrize("text", [*WRONG, *WRONG_BESIDES])
def test_a_fault_has_key_and_remedy(text: str) -> None:
    key, remedy = (WRONG | WRONG_BESIDES)[text]
    _content, faults = parsed(text)
    matches = [fault for fault in faults if fault.key == key and remedy in fault.remedy]
    assert matches, [str(fault) for fault in faults]


@pytest.mark.parametrize(
    "text",
    ["health: {path: /up, pages: [/, /static/a.css, /administration]}",
     "{health: {path: /up}, web: {methods: [POST]}}",
     "{health: {path: /up.py}, web: {suffixes: [py]}}",
     "{health: {pages: [/api/x]}, web: {methods: [POST], paths: [{path: /api/, methods: [GET]}]}}"],
)  # fmt: skip
def test_pages_of_the_health_check_that_the_web_server_passes_on(text: str) -> None:
    assert parsed(text)[1] == []


def test_all_faults_at_once() -> None:
    text = "web: {methods: [X], body: x}\nentry: {wsgi: x}\nbogus: 1\njobs: {a: {command: [x], when: y}}\n"
    _content, faults = parsed(text)
    assert [fault.key for fault in faults] == ["entry.wsgi", "jobs.a.when", "web.methods[0]", "web.body", "bogus"]


def test_reader_and_schema_refuse_the_same_values(tmp_path: Path) -> None:
    paths = {}
    for number, text in enumerate([*WRONG, EXAMPLE, (DEMO / contracts.NAME).read_text(encoding="utf-8")]):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text, encoding="utf-8")
        paths[str(path)] = text
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--output-format", "json", "--schemafile",
         ROOT / json_schema.path_of(contracts.NAME), *paths], capture_output=True, check=False,
    )  # fmt: skip
    assert {paths[error["filename"]] for error in json.loads(done.stdout)["errors"]} == WRONG.keys()


def test_the_example_of_the_page_is_a_contract() -> None:
    content, faults = parsed(EXAMPLE)
    assert faults == []
    assert yaml.safe_load(EXAMPLE).keys() == content.keys()


@pytest.mark.parametrize(
    "when",
    ["daily", "Mon..Fri *-*-* 04:00", "*-*-* 04:00:00", "*:0/15", "Sat,Sun 10:00", "*-*-01 06:30", "weekly", "Mon",
     "2026-12-24", "*-02~03", "00/2:30"],
)  # fmt: skip
def test_calendar_expressions_that_systemd_takes(when: str) -> None:
    _content, faults = parsed(f"jobs: {{a: {{command: [x], when: '{when}'}}}}")
    assert faults == []
    subprocess.run(["systemd-analyze", "calendar", when], check=True, capture_output=True)


@pytest.mark.parametrize(("size", "text"), [(1024, "1K"), (1536, "1536"), (9 << 20, "9M"), (10 << 30, "10G")])
def test_sizes_are_written_as_they_are_read(size: int, text: str) -> None:
    assert fields.size_text(size) == text
    assert fields.size_bytes(text) == size
    assert [fields.size_bytes(word) for word in ("", "0", "-1", "1T", "1.5M", "K")] == [-1] * 6


# --- without a file ---------------------------------------------------------------------------------------------------


def project(directory: Path, *paths: str, settings: str = "mysite.settings") -> Path:
    for path in ("manage.py", *paths):
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_text("application = 1\n")
    (directory / "manage.py").write_text(
        f"import os\ndef main():\n    os.environ.setdefault('DJANGO_SETTINGS_MODULE', '{settings}')\n"
    )
    return directory


@pytest.mark.parametrize(
    ("settings", "wsgi"),
    [("mysite.settings", "mysite.wsgi:application"), ("mysite.settings.production", "mysite.wsgi:application"),
     # The only one of the project.
     ("config.settings", "mysite.wsgi:application"), ("a.b.settings", "a.b.wsgi:application")],
)  # fmt: skip
def test_entry_and_settings_of_the_usual_layouts(tmp_path: Path, settings: str, wsgi: str) -> None:
    project(tmp_path, "mysite/wsgi.py", "a/b/wsgi.py", "config/settings.py", settings=settings)
    content, faults = contracts.load(tmp_path)
    assert faults == []
    assert content["entry"] == {"wsgi": wsgi, "asgi": "", "settings": settings}


def test_a_callable_in_the_root_and_one_of_several(tmp_path: Path) -> None:
    content, _faults = contracts.load(project(tmp_path, "wsgi.py", settings="settings"))
    assert content["entry"]["wsgi"] == "wsgi:application"
    content, _faults = contracts.load(project(tmp_path, "mysite/wsgi.py", settings="settings"))
    assert content["entry"]["wsgi"] == ""


def test_a_declared_entry_wins(tmp_path: Path) -> None:
    project(tmp_path, "mysite/wsgi.py")
    (tmp_path / contracts.NAME).write_text("entry: {asgi: 'mysite.asgi:application', settings: mysite.settings.live}")
    content, faults = contracts.load(tmp_path)
    assert faults == []
    assert content["entry"] == {"wsgi": "", "asgi": "mysite.asgi:application", "settings": "mysite.settings.live"}


def test_without_a_file_nothing_is_opened(tmp_path: Path) -> None:
    content, faults = contracts.load(project(tmp_path, "mysite/wsgi.py"))
    assert faults == []
    files = grants.files(content)
    assert not [name for name in files if name.startswith("systemd/")]
    assert "limit_except GET POST { deny all; }" in files["nginx/locations.conf"]
    assert files["nginx/server.conf"] == "client_max_body_size 1m;\nlarge_client_header_buffers 4 8k;\n"
    assert files["nginx/machine-made.conf"] == files["nginx/websocket.conf"] == files["nginx/disposition.conf"] == ""
    assert 'GOLDEN_SETTINGS="mysite.settings"' in files["environment"].splitlines()


def test_a_file_that_cannot_be_read_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / contracts.NAME).mkdir()
    content, faults = contracts.load(tmp_path)
    assert [fault.key for fault in faults] == [contracts.NAME]
    assert content["destinations"] == []


# --- the web server's rules -------------------------------------------------------------------------------------------


def location(text: str, head: str) -> list[str]:
    """Return the lines of a location."""
    match = re.search(rf"^{re.escape(head)} \{{\n(.*?)^\}}", text, re.MULTILINE | re.DOTALL)
    assert match, f"no {head} in\n{text}"
    return [line.strip() for line in match[1].splitlines()]


def test_methods_sizes_and_times_of_paths() -> None:
    files = granted(
        "web: {methods: [GET, POST, PUT], body: 3M, timeout: 60, headers: 32K, "
        "paths: [{path: /api/, methods: [GET, DELETE], body: 1536K, timeout: 300}, {path: /hook, methods: [HEAD, POST]}]}"
    )
    text = files["nginx/locations.conf"]
    api = location(text, "location /api/")
    assert {"client_max_body_size 1536k;", "limit_except GET DELETE { deny all; }", "proxy_read_timeout 305s;",
            "proxy_pass http://application/api/;"} <= {*api}  # fmt: skip
    assert "limit_except HEAD POST { deny all; }" in location(text, "location = /hook")
    assert {"limit_except GET POST PUT { deny all; }", "proxy_read_timeout 65s;"} <= {*location(text, "location /")}
    assert files["nginx/server.conf"] == "client_max_body_size 3m;\nlarge_client_header_buffers 4 32k;\n"
    # Pages of this application send these methods: they are not the mark of a scanner.
    assert files["nginx/machine-made.conf"] == '"~^(?:DELETE|PUT) \\S+ HTTP/(?:1\\.1|2\\.0)$" $no_browser;\n'
    assert 'GOLDEN_TIMEOUT="300"' in files["environment"]
    assert 'GOLDEN_HEADER="32766"' in files["environment"]


def test_the_administration_is_closed_as_a_whole_word() -> None:
    text = granted("web: {administration: [/admin, /django-admin]}")["nginx/locations.conf"]
    for head in ("location = /admin", "location ^~ /admin/", "location = /django-admin", "location ^~ /django-admin/"):
        assert location(text, head)[0] == "include /etc/nginx/snippets/administration.conf;"
    closed = [re.compile(rule) for rule in re.findall(r'location ~ "(\^/(?:django\\-)?admin.+)" \{ return 404; \}', text)]
    assert len(closed) == 2
    assert [path for path in ("/admin.", "/admin;x/", "/admin~") if not any(rule.search(path) for rule in closed)] == []
    assert [path for path in ("/admin/", "/administration-guide/", "/admin-x") if any(r.search(path) for r in closed)] == []
    assert "location" not in granted("web: {administration: []}")["nginx/locations.conf"].partition("/admin")[2]


@pytest.mark.parametrize(
    ("declared", "path", "closed"),
    [("['*']", "/.well-known/security.txt", False), ("['*']", "/.well-knownx", True), ("['*']", "/.env", True),
     ("['*']", "/.well-known/.env", True),
     ("[]", "/.well-known/security.txt", True), ("[security.txt]", "/.well-known/security.txt", False),
     ("[security.txt]", "/.well-known/security.txt2", True), ("[security.txt]", "/.well-known/securityXtxt", True),
     ("[security.txt]", "/x/.well-known/security.txt", True), ("[security.txt]", "/.env", True),
     ("[openid/config]", "/.well-known/openid/config", False), ("[a.b]", "/.well-known/a.b/.env", True)],
)  # fmt: skip
def test_well_known_names(declared: str, path: str, closed: bool) -> None:  # noqa: FBT001
    text = granted(f"web: {{well_known: {declared}}}")["nginx/locations.conf"]
    match = re.match(r'location ~ "(.+)" \{ return 404; \}\n', text)
    assert match
    assert bool(re.search(match[1], path)) is closed


def test_suffixes_that_belong_to_the_application() -> None:
    text = granted("web: {suffixes: [ini, php]}")["nginx/locations.conf"]
    match = re.search(r'location ~\* "(.+)" \{ return 404; \}\n', text)
    assert match
    assert [suffix for suffix in keys.CLOSED_SUFFIXES if not re.search(match[1], f"/api/x.{suffix}")] == ["ini", "php"]


def test_kinds_of_media_and_private_directories() -> None:
    files = granted(
        "media: {kinds: [{suffixes: [mp4, m4v], type: video/mp4, send: inline}, "
        "{suffixes: [tar.gz], type: application/gzip}], private: [invoices]}"
    )
    text = files["nginx/locations.conf"]
    heads = re.findall(r'^location ~\* "(\^/media/.+)" \{$', text, re.MULTILINE)
    for path in ("/media/a/b.c.mp4", "/media/Ein Film (2) ä.mp4", "/media/a b/[c]'d.M4V"):
        assert re.search(heads[0], path, re.IGNORECASE), path
    assert not [path for path in ("/media/.a.mp4", "/media/.a/b.mp4", "/media/mp4") if re.search(heads[0], path)]
    assert re.search(heads[1], "/media/x.tar.gz")
    assert "types { video/mp4 mp4 m4v; }" in text
    assert files["nginx/disposition.conf"] == '"~*^/media/.+\\.(?:mp4|m4v)$" "";\n'
    assert "location ^~ /media/invoices/ { return 404; }" in text
    assert location(text, "location ^~ /.private/invoices/") == ["internal;", "alias /var/www/media/invoices/;"]


def test_websockets_and_log_ins() -> None:
    files = granted(
        "{entry: {asgi: 'a.asgi:application'}, web: {websockets: [/ws/], paths: [{path: /login/, login: true}, "
        "{path: /up/, ask: /may}]}}"
    )
    assert files["nginx/websocket.conf"] == '"~^/ws/" $http_upgrade;\n'
    text = files["nginx/locations.conf"]
    assert "proxy_read_timeout 3600s;" in location(text, "location /ws/")
    login = location(text, "location /login/")
    assert login[0] == "include /etc/nginx/snippets/limits.conf;"
    assert "limit_req zone=all_logins burst=15;" in login
    assert "auth_request /.ask-1;" in location(text, "location /up/")
    assert "error_page 401 =303 https://$host/login/?next=/up/;" in location(text, "location /up/")
    assert "proxy_pass http://application/may;" in location(text, "location = /.ask-1")
    assert 'if ($request_uri !~ "^/up/") { return 404; }' in location(text, "location = /.ask-1-undecided")


def test_every_way_to_the_application_passes_its_own_path() -> None:
    text = granted(EXAMPLE)["nginx/locations.conf"]
    assert text.count("proxy_pass http://application/") == text.count("snippets/application.conf;")


# --- the database -----------------------------------------------------------------------------------------------------


def test_sql_of_the_database() -> None:
    files = granted("database: {extensions: [pg_trgm], schemas: [tenants], temporary_tables: true, statement_seconds: 30}")
    assert files["database/roles.sql"] == ("SET search_path TO pg_catalog;\nALTER ROLE app SET statement_timeout = '30s';\n")
    owner = files["database/owner.sql"]
    first = "SET search_path TO pg_catalog;\nALTER ROLE app_owner SET statement_timeout = '0s';\n"
    assert owner.startswith(f"{first}GRANT TEMPORARY ON DATABASE app TO app;\n")
    assert 'CREATE EXTENSION IF NOT EXISTS "pg_trgm" WITH SCHEMA public;' in owner
    assert "NOT nspname = ANY (ARRAY['tenants']::name[])" in owner
    assert 'GRANT USAGE ON SCHEMA "tenants" TO app;' in owner
    assert set(database.files(parsed("{}")[0])) == {"roles.sql", "owner.sql"}
    assert granted("{}")["database/owner.sql"].startswith(f"{first}REVOKE TEMPORARY ON DATABASE app FROM app;\n")
    assert "statement_timeout = '10s'" in granted("{}")["database/roles.sql"]


# --- units ------------------------------------------------------------------------------------------------------------

UNITS = """
secrets: [payment-key]
processes: {worker: {command: [celery, -A, "sh op", worker, "50%", "$HOME", 'a"b\\c'], memory: 15, stop: 60}}
jobs: {sessions: {command: [clearsessions], when: "Mon..Fri 04:00", timeout: 60}}
destinations: ["smtp.example.org:587"]
"""


def written(text: str, place: Path) -> Path:
    content, faults = parsed(text)
    assert faults == []
    grants.write(content, place)
    return place / "grants"


def test_units_that_systemd_takes(tmp_path: Path) -> None:
    top = written(UNITS, tmp_path) / "systemd"
    files = sorted(path for path in top.iterdir() if path.is_file())
    assert [path.name for path in files] == [
        "application-job-sessions.service", "application-job-sessions.timer", "application-worker.service",
    ]  # fmt: skip
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *files],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    # The interpreter is on the clone.
    lines = [line for line in done.stderr.splitlines() if "is not executable" not in line]
    assert [line for line in lines if "golden-alert" not in line] == []
    links = {path: path.readlink() for path in top.rglob("*") if path.is_symlink()}
    assert {str(path.relative_to(top)): str(target) for path, target in links.items()} == {
        "timers.target.wants/golden-destinations.timer": "/etc/systemd/system/golden-destinations.timer",
        "multi-user.target.wants/application-worker.service": "../application-worker.service",
        "timers.target.wants/application-job-sessions.timer": "../application-job-sessions.timer",
    }


def test_commands_are_taken_literally() -> None:
    text = granted(UNITS)["systemd/application-worker.service"]
    assert (
        'ExecStart="/opt/app/current/venv/bin/python" "/opt/app/current/venv/bin/celery" "-A" "sh op" "worker" '
        '"50%%" "$$HOME" "a\\"b\\\\c"\n'
    ) in text


def test_what_the_sandbox_opens() -> None:
    files = granted(UNITS)
    names = ("gunicorn.service.d", "application-.service.d")
    service = files["systemd/gunicorn.service.d/80-contract.conf"]
    assert service.startswith("[Unit]\nWants=application-worker.service\n\n[Service]\n")
    drop_ins = {files[f"systemd/{name}/80-contract.conf"].rpartition("[Service]\n")[2] for name in names}
    assert len(drop_ins) == 1
    lines = drop_ins.pop().splitlines()
    assert "LoadCredential=app.payment-key:/run/golden/app-secret-payment-key" in lines
    assert "PrivateNetwork=false" in lines
    assert "SocketBindDeny=any" in lines
    # The first line empties what the sandbox has; this machine's own services stay closed.
    assert lines[lines.index("IPAddressDeny=") + 1] == "IPAddressDeny=localhost link-local multicast"


def test_the_environment_is_quoted_for_systemd() -> None:
    text = granted("environment: {TITLE: 'a \"b\" $c `d` \\e'}")["environment"]
    assert 'TITLE="a \\"b\\" \\$c \\`d\\` \\\\e"\n' in text


def test_grants_are_the_same_again_and_replace_others(tmp_path: Path) -> None:
    top = written(UNITS, tmp_path)
    before = {path: path.read_bytes() for path in top.rglob("*") if path.is_file()}
    written(UNITS, tmp_path)
    assert before == {path: path.read_bytes() for path in top.rglob("*") if path.is_file()}
    written("{}", tmp_path)
    assert [*(top / "systemd").iterdir()] == []
    assert grants.read(tmp_path) == parsed("{}")[0]
    (top / "contract.json").write_text("[")
    assert grants.read(tmp_path) is None


def test_the_contract_of_the_demonstration_application() -> None:
    content, faults = contracts.load(DEMO)
    assert faults == []
    assert content["entry"] == {"wsgi": "project.wsgi:application", "asgi": "", "settings": "project.settings"}
    files = grants.files(content)
    assert not [name for name in files if name.startswith("systemd/")]
    assert "client_max_body_size 9m;" in location(files["nginx/locations.conf"], "location = /upload")
