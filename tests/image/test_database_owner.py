"""An attacker who owns the application's tables: no definition there ever runs as the superuser of the database."""

from __future__ import annotations

import json
from typing import Any

import pytest
from testinfra.host import Host

pytestmark = pytest.mark.story

# Runs on the clone, as root. Each spy writes to the server's log which role evaluated it; a log entry is also written in a
# read-only transaction, and stays after a rollback.
ATTACK = r'''
import json, os, pathlib, re, subprocess, time

SITE = pathlib.Path("/run/golden/site.json")
BACKUPS = pathlib.Path("/var/backups/golden")
WORK = pathlib.Path("/run/golden-test-owner")
# A file that a shell started by psql can write, as any user.
TRACE = "/dev/shm/golden-test-spy"
results = {}

def run(*argv, stdin=b""):
    done = subprocess.run([str(word) for word in argv], input=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return {"code": done.returncode, "text": done.stdout.decode(errors="replace")}

def owner(statements):
    argv = ["runuser", "-u", "golden-backup", "--", "psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-h", "/run/postgresql",
            "-U", "app_owner", "app"]
    return run(*argv, stdin=statements.encode())

def spy(name, arguments, returns, value):
    place = name if "." in name else f"golden_spy.{name}"
    return (f"CREATE FUNCTION {place}({arguments}) RETURNS {returns} LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN "
            f"RAISE LOG 'golden spy {name}: % % % %', pg_catalog.current_setting('is_superuser'), current_user, "
            f"session_user, pg_catalog.current_setting('cluster_name'); RETURN {value}; END $$;\n")

DEFINED = (
    "CREATE SCHEMA golden_spy;\n"
    "CREATE TABLE public.golden_spied (id int, text text);\n"
    + spy("cast_row", "public.golden_spied", "text", "'cast'")
    + "CREATE CAST (public.golden_spied AS text) WITH FUNCTION golden_spy.cast_row(public.golden_spied) AS IMPLICIT;\n"
    + spy("operator_equal", "name, text", "boolean", "true")
    + spy("operator_concat", "text, name", "text", "'concat'")
    + "CREATE OPERATOR public.= (LEFTARG = name, RIGHTARG = text, FUNCTION = golden_spy.operator_equal);\n"
    "CREATE OPERATOR public.|| (LEFTARG = text, RIGHTARG = name, FUNCTION = golden_spy.operator_concat);\n"
    # Functions with names of the catalogue, before it in the search path of the database.
    + spy("public.encode", "bytea, text", "text", "'x'")
    + spy("default_value", "", "int", "7")
    + spy("check_value", "int", "boolean", "true")
    + spy("generated_value", "int", "int", "1")
    + spy("index_value", "int", "int", "1")
    + spy("policy_value", "int", "boolean", "true")
    + spy("domain_value", "int", "boolean", "true")
    + spy("view_value", "int", "int", "1")
    + "CREATE DOMAIN golden_spy.checked AS int CHECK (golden_spy.domain_value(VALUE));\n"
    "ALTER TABLE public.golden_spied ADD COLUMN a int DEFAULT golden_spy.default_value();\n"
    "ALTER TABLE public.golden_spied ADD COLUMN b int CHECK (golden_spy.check_value(b));\n"
    "ALTER TABLE public.golden_spied ADD COLUMN c int GENERATED ALWAYS AS (golden_spy.generated_value(id)) STORED;\n"
    "ALTER TABLE public.golden_spied ADD COLUMN d golden_spy.checked;\n"
    "CREATE INDEX ON public.golden_spied (golden_spy.index_value(id));\n"
    "CREATE FUNCTION golden_spy.trigger_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
    "RAISE LOG 'golden spy trigger: % % % %', current_setting('is_superuser'), current_user, session_user, "
    "current_setting('cluster_name'); RETURN NEW; END $$;\n"
    "CREATE TRIGGER spy BEFORE INSERT ON public.golden_spied FOR EACH ROW EXECUTE FUNCTION golden_spy.trigger_row();\n"
    "ALTER TABLE public.golden_spied ENABLE ALWAYS TRIGGER spy;\n"
    "ALTER TABLE public.golden_spied ENABLE ROW LEVEL SECURITY;\n"
    "CREATE POLICY spy ON public.golden_spied USING (golden_spy.policy_value(id));\n"
    "INSERT INTO public.golden_spied (id, text, b, d) SELECT i, 'x', 1, 1 FROM generate_series(1, 3) AS i;\n"
    "CREATE MATERIALIZED VIEW public.golden_spied_view AS SELECT golden_spy.view_value(id) AS v FROM public.golden_spied;\n"
    # A view with the name of a table that golden-restore reads, in a schema of the search path.
    "CREATE VIEW golden_spy.django_migrations AS SELECT golden_spy.view_value(1)::text AS app, 'x'::text AS name;\n"
    # A name with a newline: the next line would be a command of psql.
    "CREATE TABLE public.\"golden\n\\! touch " + TRACE + "\n\" (id int);\n"
    "INSERT INTO public.\"golden\n\\! touch " + TRACE + "\n\" VALUES (1);\n"
    # The search path of new connections.
    "ALTER DATABASE app SET search_path TO public, golden_spy, pg_catalog;\n"
    "ALTER ROLE app_owner SET search_path TO public, golden_spy, pg_catalog;\n"
)
UNDO = (
    "SET search_path TO pg_catalog; ALTER DATABASE app RESET search_path; ALTER ROLE app_owner RESET search_path;\n"
    "DROP TABLE IF EXISTS public.golden_spied CASCADE; DROP TABLE IF EXISTS public.\"golden\n\\! touch " + TRACE + "\n\";\n"
    "DROP SCHEMA IF EXISTS golden_spy CASCADE; DROP FUNCTION IF EXISTS public.encode(bytea, text);\n"
    "DROP OPERATOR IF EXISTS public.= (name, text); DROP OPERATOR IF EXISTS public.|| (text, name);"
)

def spied():
    """The log lines of the spies, of the real server and of the drill's; the definitions are logged, too."""
    text = run("sh", "-c", "cat /var/log/postgresql/*; journalctl -b -o cat -u golden-restore-server.service")["text"]
    return sorted(set(re.findall(r"golden spy ([a-z_.]+: (?:on|off) .*)", text)))

def server_of_drill():
    """Inspect the drill's server while it runs: user, AppArmor profile, socket and cluster."""
    drill = subprocess.Popen(["golden-restore", "--drill", "--json"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    seen = {}
    while drill.poll() is None:
        shown = run("systemctl", "show", "-p", "MainPID", "-p", "ActiveState", "golden-restore-server.service")["text"]
        # Before the unit is active, systemd is still setting up the sandbox of the process.
        if "ActiveState=active" in shown and not seen:
            pid = shown.split("MainPID=")[1].split()[0]
            try:
                label = pathlib.Path(f"/proc/{pid}/attr/current").read_text().strip("\0\n")
            except OSError:
                label = "no AppArmor"
            look = lambda *words: run("nsenter", "--target", pid, "--mount", "--", *words)
            seen = {
                "user": run("ps", "-o", "user:20=", "-p", pid)["text"].strip(),
                "profile": label,
                "named": run("systemctl", "show", "-p", "AppArmorProfile", "--value",
                             "golden-restore-server.service")["text"].strip(),
                "network": os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net"),
                "sockets": [look("stat", "-c", "%i", "/run/postgresql/.s.PGSQL.5432")["text"],
                            run("stat", "-c", "%i", "/run/postgresql/.s.PGSQL.5432")["text"]],
                "cluster": look("ls", "/var/lib/postgresql")["text"].split(),
                "connects": run("runuser", "-u", "golden-restore", "--", "psql", "-XAtq", "-h", "/run/postgresql", "-U",
                                "app_owner", "-d", "app", "-c", "SELECT 1"),
            }
        time.sleep(0.05)
    return seen, {"code": drill.returncode, "text": drill.stdout.read().decode()}

before = SITE.read_text() if SITE.exists() else ""
pathlib.Path(TRACE).unlink(missing_ok=True)
try:
    WORK.mkdir(mode=0o700)
    run("age-keygen", "-o", WORK / "key")
    settings = json.loads(before) if before else {}
    SITE.write_text(json.dumps(settings | {"backup": {
        "recipient": run("age-keygen", "-y", WORK / "key")["text"].strip(), "target": "", "keep_days": 14}}))
    results["defined"] = owner(DEFINED)
    results["event trigger"] = owner(
        "CREATE FUNCTION golden_spy.event() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'; "
        "CREATE EVENT TRIGGER spy ON ddl_command_start EXECUTE FUNCTION golden_spy.event();")
    results["superuser"] = run("runuser", "-u", "postgres", "--", "psql", "-h", "/run/postgresql", "-d", "app", "-c",
                               "SELECT 1")
    old = set(BACKUPS.glob("*.age"))
    results["backup"] = run("systemctl", "start", "golden-backup.service")
    # The backup starts this unit; wait for it, because the drill needs its lock.
    run("systemctl", "start", "golden-backup-send.service")
    (archive,) = set(BACKUPS.glob("*.age")) - old
    results["server"], results["drill"] = server_of_drill()
    results["verify"] = run("golden-verify")
    results["restore"] = run("golden-restore", archive, "--identity", WORK / "key", "--json")
    results["tables"] = owner("SELECT count(*) FROM public.golden_spied;")["text"].strip()
    results["spied"] = spied()
    results["shell"] = pathlib.Path(TRACE).exists()
    log = run("sh", "-c", "cat /var/log/postgresql/*")["text"]
    results["connections"] = log.count("authorized: user=postgres database=app")
finally:
    results["undone"] = owner(UNDO)
    run("rm", "-rf", WORK, *(set(BACKUPS.iterdir()) - old if "old" in globals() else ()))
    SITE.write_text(before) if before else SITE.unlink(missing_ok=True)
print(json.dumps(results))
'''


@pytest.fixture(scope="module")
def attack(host: Host) -> dict[str, Any]:
    """All kinds of definitions of an owner of tables, then a backup, a drill, a verification and a restore."""
    output = host.check_output("python3 -c %s", ATTACK)
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


@pytest.mark.req("R89", "R91")
def test_no_superuser_in_the_applications_database(attack: dict[str, Any]) -> None:
    """The superuser cannot connect to the application's database, and never did"""
    assert attack["superuser"]["code"] == 2, attack["superuser"]["text"]
    assert "rejects connection" in attack["superuser"]["text"]
    assert attack["connections"] == 0


@pytest.mark.req("R89", "R92", "F20")
def test_nothing_of_the_owner_runs_as_superuser(attack: dict[str, Any]) -> None:
    """Backup and restore run the owner's casts, operators, checks, generated columns and views as the owner"""
    assert attack["defined"]["code"] == 0, attack["defined"]["text"]
    evaluated = {line.split(":")[0] for line in attack["spied"]}
    # The restore evaluates these: without them the test would not test anything.
    assert {"check_value", "generated_value", "domain_value", "index_value", "view_value"} <= evaluated
    assert {line.split(": ")[1].split()[0] for line in attack["spied"]} == {"off"}
    assert {tuple(line.split(": ")[1].split()[1:3]) for line in attack["spied"]} == {("app_owner", "app_owner")}
    assert "cast_row" not in evaluated
    # The spies were evaluated in both servers.
    assert {line.split(" ", 4)[4] for line in attack["spied"]} == {"17/main", "restore drill"}


@pytest.mark.req("R89")
def test_an_event_trigger_is_refused(attack: dict[str, Any]) -> None:
    """The owner cannot define event triggers, which would run in other roles' sessions"""
    assert attack["event trigger"]["code"] == 3
    assert "permission denied to create event trigger" in attack["event trigger"]["text"]


@pytest.mark.req("R92", "F20")
def test_no_name_of_a_table_is_a_command(attack: dict[str, Any]) -> None:
    """A table name that contains a line with a psql command does not start a shell"""
    assert not attack["shell"]


@pytest.mark.req("R92", "R97", "F20")
@pytest.mark.parametrize("step", ["backup", "drill", "restore", "undone"])
def test_the_work_is_done_all_the_same(attack: dict[str, Any], step: str) -> None:
    """Backup, drill and restore succeed with all these definitions in the database"""
    assert attack[step]["code"] == 0, attack[step]["text"]
    assert attack["tables"] == "3"


@pytest.mark.req("R89")
def test_verification_still_sees_the_database(attack: dict[str, Any]) -> None:
    """golden-verify checks the database without using any definition of the owner"""
    lines = [line for line in attack["verify"]["text"].splitlines() if "R89" in line]
    # The checks of the database, of the application's roles, and of the requirements of the backup.
    assert len(lines) == 3, attack["verify"]["text"]
    assert all(line.startswith("PASS ") for line in lines), lines


@pytest.mark.req("R77", "R92", "F20")
def test_the_drills_server_is_apart(attack: dict[str, Any]) -> None:
    """The drill's server runs as a separate user, without a network, and sees only its own cluster and socket"""
    server = attack["server"]
    assert server["user"] == "golden-restore"
    assert server["network"]
    assert server["sockets"][0] != server["sockets"][1]
    assert server["cluster"] == ["main"]
    assert server["connects"]["code"] == 2
    assert "authentication failed" in server["connects"]["text"]


@pytest.mark.req("R77", "F20")
def test_the_drills_server_is_confined(attack: dict[str, Any], target: str) -> None:
    """AppArmor confines the drill's server like the real one; in a container its unit names the profile"""
    # test_mac tests that a unit does not start without its profile.
    assert attack["server"]["named"] == "postgres"
    if target != "container":
        assert attack["server"]["profile"] == "postgres (enforce)"
