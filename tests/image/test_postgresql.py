"""The database: no network, no passwords, known users only, few privileges, and a cluster created on the clone."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
from testinfra.host import Host

from .facts import Fact, gather, properties

pytestmark = pytest.mark.story

PSQL = "/usr/lib/postgresql/17/bin/psql -X -A -t -w -h /run/postgresql"
UNIT = "postgresql@17-main.service"
# The role that reads the application's database in these tests: the superuser cannot connect.
OWNER = {"user": "app-migrate", "role": "app_owner", "database": "app"}

SETTINGS = {
    "listen_addresses": "",
    "data_checksums": "on",
    "password_encryption": "scram-sha-256",
    "ssl": "off",
    "jit": "off",
    "log_connections": "on",
    "log_disconnections": "on",
    "unix_socket_directories": "/run/postgresql",
    "data_directory": "/var/lib/postgresql/17/main",
    "config_file": "/etc/postgresql/17/main/postgresql.conf",
    "log_statement": "ddl",
    "log_min_duration_statement": "1000",
    "log_rotation_age": "1440",
    "log_file_mode": "0640",
    "superuser_reserved_connections": "3",
    "reserved_connections": "5",
    "fsync": "on",
    "full_page_writes": "on",
}
# Connections that must be refused: (system user, role, database).
REFUSED = [
    ("root", "postgres", "postgres"),
    ("nginx", "app", "app"),
    ("www-data", "app", "app"),
    ("gunicorn", "app_owner", "app"),
    ("gunicorn", "postgres", "app"),
    ("gunicorn", "app", "postgres"),
    ("app-migrate", "postgres", "app"),
    ("postgres", "app", "app"),
    # A superuser must not connect to a database where the application's owner defines casts and operators.
    ("postgres", "postgres", "app"),
    ("postgres", "postgres", "template1"),
    ("golden-backup", "postgres", "postgres"),
    ("golden-restore", "app_owner", "app"),
    ("golden-restore", "postgres", "postgres"),
    ("gunicorn", "app", "app_restored"),
]
# Statements that the application's role must not run in its database.
FORBIDDEN = [
    "CREATE TABLE intruder (id int)",
    "DROP TABLE pages_page",
    "ALTER TABLE pages_page ADD COLUMN intruder int",
    "TRUNCATE pages_page",
    "CREATE SCHEMA intruder",
    "CREATE TEMPORARY TABLE intruder (id int)",
    "CREATE ROLE intruder",
    "CREATE DATABASE intruder",
    "SET ROLE app_owner",
    "COPY pages_page TO PROGRAM 'cat'",
    "SELECT pg_read_file('/etc/passwd')",
]


def needed(user: str, role: str, database: str) -> pytest.MarkDecorator:
    """Return the mark of the layers that create the users, roles and databases."""
    owners = {
        "nginx": "50-nginx", "gunicorn": "40-app", "app-migrate": "40-app", "golden-backup": "70-backup",
        "golden-restore": "70-backup", "app": "35-app-database", "app_owner": "35-app-database", "app_restored": "70-backup",
    }  # fmt: skip
    return pytest.mark.layers(*sorted({owners[word] for word in (user, role, database) if word in owners}))


def _mebibytes(text: str) -> int:
    """Return the value of a size setting in MiB."""
    return int(text[:-2]) * 1024 if text.endswith("GB") else int(text.removesuffix("MB"))


def _query(statement: str, *, user: str = "postgres", role: str = "postgres", database: str = "postgres") -> str:
    """Return the shell command that runs one statement as a system user and a role."""
    return f'runuser -u {user} -- {PSQL} -U {role} -d {database} -c "{statement}"'


@pytest.fixture(scope="module")
def facts(host: Host) -> dict[str, Fact]:
    """The settings of the server, and connections and statements that it refuses."""
    names = ",".join(f"'{name}'" for name in SETTINGS)
    commands = {
        "settings": _query(f"SELECT name || '=' || setting FROM pg_settings WHERE name IN ({names})"),
        "rules": _query("SELECT type, auth_method FROM pg_hba_file_rules WHERE error IS NULL")
        + "; "
        + _query("SELECT count(*) FROM pg_hba_file_rules WHERE error IS NOT NULL"),
        "roles": _query(
            "SELECT rolname, rolcanlogin, rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls "
            "FROM pg_roles WHERE rolname !~ '^pg_' ORDER BY 1"
        ),
        "passwords": _query("SELECT count(*) FROM pg_authid WHERE rolpassword IS NOT NULL"),
        "databases": _query(
            "SELECT datname, pg_get_userbyid(datdba), datlocprovider, datlocale, "
            "has_database_privilege('app', datname, 'CREATE') FROM pg_database WHERE NOT datistemplate ORDER BY 1"
        ),
        "tables": _query("SELECT tablename, tableowner FROM pg_tables WHERE schemaname = 'public' ORDER BY 1", **OWNER),
        "rights": _query(
            "SELECT privilege_type FROM information_schema.role_table_grants "
            "WHERE grantee = 'app' AND table_name = 'pages_page' ORDER BY 1",
            **OWNER,
        ),
        "application": _query("SELECT count(*) FROM pages_page", user="gunicorn", role="app", database="app"),
        "unit": f"systemctl show -p ActiveState -p Type -p Restart -p User -p PrivateNetwork {UNIT}",
        "exposure": f"systemd-analyze security --no-pager {UNIT} | tail -1",
        "access": "stat -c '%a %U:%G %n' /etc/postgresql/17/main/* /etc/postgresql/17/main /var/lib/postgresql/17 "
        "/var/lib/postgresql/17/main /var/log/postgresql /var/log/postgresql/* "
        "/etc/postgresql/17/main/hba.d/* /etc/postgresql/17/main/ident.d/*",
        "left": "ls -A /var/lib/postgresql/17",
        "log": "cat /var/log/postgresql/*",
        "tools": "pg_lsclusters --no-header",
        "marker": "stat -c '%U' /var/lib/golden-migrate/done",
        "fitted": _query(
            "SELECT name || '=' || current_setting(name) || ' ' || coalesce(sourcefile, '') FROM pg_settings "
            "WHERE sourcefile ~ 'memory'"
        ),
        "wanted": "test ! -e /etc/gunicorn/environment || . /etc/gunicorn/environment; "
        "golden-postgresql-memory --json --show --workers ${WEB_CONCURRENCY:-2}; "
        "getconf _PHYS_PAGES; getconf PAGE_SIZE",
        "schema": _query(
            "SELECT has_schema_privilege('public', 'public', 'CREATE'), has_schema_privilege('app', 'public', 'CREATE'), "
            "has_schema_privilege('app_owner', 'public', 'CREATE'), has_database_privilege('public', 'app', 'CONNECT'), "
            "pg_has_role('app', 'pg_use_reserved_connections', 'USAGE'), "
            "pg_has_role('app_owner', 'pg_use_reserved_connections', 'USAGE')",
            **OWNER,
        ),
        "snakeoil": "find /etc/ssl -name '*snakeoil*' -o -xtype l",
    }
    commands |= {
        f"refused {user} {role} {database}": _query("SELECT 1", user=user, role=role, database=database)
        for user, role, database in REFUSED
    }
    commands |= {
        f"forbidden {statement}": _query(statement, user="gunicorn", role="app", database="app") for statement in FORBIDDEN
    }
    return gather(host, commands)


@pytest.mark.req("R90", "R91", "R8", "R5")
@pytest.mark.parametrize("name", SETTINGS)
def test_setting(facts: dict[str, Fact], name: str) -> None:
    """The effective setting of the server has the chosen value"""
    assert properties(facts["settings"])[name] == SETTINGS[name]


@pytest.mark.req("R91")
def test_rules_admit_system_users_only(facts: dict[str, Fact]) -> None:
    """pg_hba.conf has only peer rules for the UNIX socket and a reject rule; no role has a password"""
    *rules, errors = facts["rules"].lines
    assert errors == "0"
    assert set(rules[:-1]) == {"local|peer"}
    assert rules[-1] == "local|reject"
    assert facts["passwords"].text == "0"


@pytest.mark.req("R89", "R91")
@pytest.mark.parametrize(("user", "role", "database"), [pytest.param(*one, marks=needed(*one)) for one in REFUSED])
def test_refused(facts: dict[str, Fact], user: str, role: str, database: str) -> None:
    """A system user cannot connect as another user's role"""
    fact = facts[f"refused {user} {role} {database}"]
    assert fact.status == 2, fact.text
    assert re.search(r"authentication failed|rejects connection", fact.text)


@pytest.mark.layers("35-app-database")
@pytest.mark.req("R89")
def test_roles(facts: dict[str, Fact]) -> None:
    """There are three roles, and only the administrator's has privileged attributes"""
    assert facts["roles"].lines == ["app|t|f", "app_owner|t|f", "postgres|t|t"]


@pytest.mark.layers("35-app-database")
@pytest.mark.req("R89")
def test_databases(facts: dict[str, Fact]) -> None:
    """The application's database belongs to the migrations' role, and sorts text the same on every system"""
    assert facts["databases"].lines == ["app|app_owner|b|C.UTF-8|f", "postgres|postgres|b|C.UTF-8|f"]


@pytest.mark.layers("40-app")
@pytest.mark.req("R89")
def test_application_reads_and_writes_rows_only(facts: dict[str, Fact]) -> None:
    """The tables belong to the migrations' role; the application can only read and write rows"""
    owners = {line.split("|")[0]: line.split("|")[1] for line in facts["tables"].lines}
    assert "pages_page" in owners
    assert set(owners.values()) == {"app_owner"}
    assert facts["rights"].lines == ["DELETE", "INSERT", "SELECT", "UPDATE"]
    assert facts["application"].text == "1"


@pytest.mark.layers("40-app")
@pytest.mark.req("R89")
@pytest.mark.parametrize("statement", FORBIDDEN)
def test_application_may_not(facts: dict[str, Fact], statement: str) -> None:
    """The application's role cannot change the schema, switch to another role, or access files"""
    fact = facts[f"forbidden {statement}"]
    assert fact.status == 1
    assert re.search(r"permission denied|must be owner", fact.text), fact.text


@pytest.mark.req("R8", "R9")
def test_unit(facts: dict[str, Fact]) -> None:
    """systemd runs the server directly, as a dedicated user, without a network, and restarts it after a crash"""
    unit = properties(facts["unit"])
    assert unit["ActiveState"] == "active"
    assert (unit["Type"], unit["Restart"], unit["User"]) == ("notify", "on-failure", "postgres")
    assert unit["PrivateNetwork"] == "yes"


@pytest.mark.vm
@pytest.mark.req("F21")
def test_server_survives_its_backends(host: Host) -> None:
    """The OOM killer may kill a backend, and spares the server"""
    server, *backends = host.check_output(
        f"pid=$(systemctl show -p MainPID --value {UNIT}); cat /proc/$pid/oom_score_adj; "
        "for child in $(pgrep -P $pid); do cat /proc/$child/oom_score_adj; done"
    ).split()
    assert server == "-900"
    assert backends
    assert set(backends) == {"0"}


@pytest.mark.req("R8")
def test_exposure(facts: dict[str, Fact]) -> None:
    """systemd rates the unit's sandbox 0.5 or better"""
    found = re.search(r"level for \S+: ([0-9.]+)", facts["exposure"].text)
    assert found, facts["exposure"].text
    assert float(found.group(1)) <= 0.5


@pytest.mark.req("R8", "R19")
def test_memory_is_fitted(facts: dict[str, Fact], spec: SimpleNamespace) -> None:
    """At boot the server's memory was derived from the machine's memory, and its connections from the workers"""
    *text, pages, size = facts["wanted"].lines
    wanted = json.loads("\n".join(text))
    assert wanted["memory"] == int(pages) * int(size)
    assert wanted["workers"] == spec.application.workers
    lines = dict(line.split("=", 1) for line in facts["fitted"].lines)
    assert set(lines) == set(wanted["settings"])
    for name, value in wanted["settings"].items():
        actual, source = lines[name].split()
        assert source == "/run/golden/postgresql-memory.conf"
        assert _mebibytes(actual) == _mebibytes(value), name
    assert int(wanted["settings"]["max_connections"]) >= 2 * spec.application.workers + 8


@pytest.mark.layers("40-app")
@pytest.mark.req("R89")
def test_only_the_owner_makes_tables(facts: dict[str, Fact]) -> None:
    """Only the migrations' role can create objects in the schema, and it has reserved connections"""
    assert facts["schema"].text == "f|f|t|f|f|t"


@pytest.mark.req("R8", "R3")
def test_access(facts: dict[str, Fact]) -> None:
    """The server can read its configuration and cannot change it; data and log are closed to others"""
    entries = {line.split()[2]: tuple(line.split()[:2]) for line in facts["access"].lines}
    for path, (mode, owner) in entries.items():
        if path.startswith("/etc/"):
            assert owner == "root:postgres"
            assert mode == ("750" if path.endswith(("/main", ".d")) else "640"), path
        elif path.startswith("/var/lib/"):
            assert (mode, owner) == ("700", "postgres:postgres"), path
        elif path == "/var/log/postgresql":
            assert (mode, owner) == ("2750", "postgres:adm")
        else:
            assert (mode, owner) == ("640", "postgres:adm"), path


@pytest.mark.req("F18")
def test_cluster_is_whole(facts: dict[str, Fact]) -> None:
    """The cluster is complete, and no incomplete one is left"""
    assert facts["left"].lines == ["main"]


@pytest.mark.layers("40-app")
@pytest.mark.req("F18")
def test_tables_are_made_once(facts: dict[str, Fact]) -> None:
    """The marker of completed migrations was written by the user that ran them"""
    assert facts["marker"].text == "app-migrate"


@pytest.mark.req("R8")
def test_log(facts: dict[str, Fact]) -> None:
    """The server logs connections and disconnections in a separate log"""
    text = facts["log"].text
    assert re.search(r"connection authorized: user=postgres database=postgres", text)
    assert "disconnection:" in text


@pytest.mark.req("R8")
def test_debian_tools_know_the_cluster(facts: dict[str, Fact]) -> None:
    """Debian's tools list the cluster with its state"""
    assert facts["tools"].words[:5] == ["17", "main", "5432", "online", "postgres"]


@pytest.mark.req("R60")
def test_no_snakeoil(facts: dict[str, Fact]) -> None:
    """Debian's snakeoil certificate is not in the image"""
    assert facts["snakeoil"].lines == []
