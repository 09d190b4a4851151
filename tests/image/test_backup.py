"""Backups: encrypted for a key on another host, sent off the clone, refused when damaged, and restored completely."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from testinfra.host import Host

from .facts import Fact, gather, properties

pytestmark = pytest.mark.story

UNITS = ("golden-backup.service", "golden-backup-send.service", "golden-restore-drill.service")
ROWS = 2000
MARK = "a row that must not be read by others"

# Runs on the clone, as root, in one run: a round trip takes longer than most of the steps. Prints the results of all steps.
STORY = r'''
import contextlib, hashlib, json, os, pathlib, subprocess, sys, time

ROWS, MARK = int(sys.argv[1]), sys.argv[2]
SITE = pathlib.Path("/run/golden/site.json")
BACKUPS = pathlib.Path("/var/backups/golden")
ETC = pathlib.Path("/etc/golden")
MEDIA = pathlib.Path("/var/www/media")
WORK = pathlib.Path("/run/golden-test-backup")
TARGET = WORK / "target"
PORT = "2222"
# On a database server there are neither an application nor its media.
APPLICATION = pathlib.Path("/opt/app/current").exists()
results = {"application": APPLICATION}

def run(*argv, stdin=b""):
    done = subprocess.run([str(word) for word in argv], input=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return {"code": done.returncode, "text": done.stdout.decode(errors="replace")}

def step(name, *argv, **options):
    results[name] = run(*argv, **options)
    return results[name]

def sql(statements):
    argv = ["runuser", "-u", "golden-backup", "--", "psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-h", "/run/postgresql",
            "-U", "app_owner", "app"]
    return run(*argv, stdin=statements.encode())

def settings(backup):
    content = {"backup": backup}
    with contextlib.suppress(FileNotFoundError):
        content = json.loads(before) | content if before else content
    SITE.write_text(json.dumps(content))

def prints():
    """The data of the clone, read independently of the commands under test."""
    tables = sql("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")["text"].split()
    asked = " ".join(
        f"SELECT '{t}', count(*), md5(coalesce(string_agg(x::text, chr(10) ORDER BY x::text), '')) FROM public.{t} x;"
        for t in tables)
    rights = "SELECT relname, relacl::text, pg_get_userbyid(relowner) FROM pg_class " \
             "WHERE relnamespace = 'public'::regnamespace ORDER BY 1;" \
             "SELECT defaclacl::text FROM pg_default_acl ORDER BY 1;" \
             "SELECT nspacl::text, pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = 'public';" \
             "SELECT datacl::text, pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'app';" \
             "SELECT count(*) FROM pg_database WHERE NOT datistemplate;"
    files = {}
    for path in sorted(MEDIA.rglob("*")) if MEDIA.is_dir() else []:
        found = path.lstat()
        body = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        files[str(path)] = [oct(found.st_mode), path.owner(), path.group(), body]
    return {"rows": sql(asked)["text"], "rights": sql(rights)["text"], "files": files,
            "beside": sorted(p.name for p in MEDIA.parent.iterdir()) if APPLICATION else []}

def upload(path, content):
    path.write_bytes(content)
    path.chmod(0o640)

before = SITE.read_text() if SITE.exists() else ""
had_media, had_etc = MEDIA.is_dir(), ETC.is_dir()
sshd = None
try:
    TARGET.mkdir(parents=True, mode=0o700)
    keys = {}
    for name in ("right", "wrong"):
        run("age-keygen", "-o", WORK / name)
        keys[name] = run("age-keygen", "-y", WORK / name)["text"].strip()
    for name in ("host", "other", "login"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", WORK / name)
    host, other = ((WORK / f"{name}.pub").read_text() for name in ("host", "other"))
    ETC.mkdir(exist_ok=True)
    (ETC / "backup_key").write_bytes((WORK / "login").read_bytes())
    (ETC / "backup_key").chmod(0o600)
    (ETC / "backup_known_hosts").write_text(f"[127.0.0.1]:{PORT} {host}")
    place = f"scp://root@127.0.0.1:{PORT}{TARGET}"

    # No settings.
    settings(None)
    step("unset by hand", "golden-backup")
    step("unset unit", "systemctl", "start", "golden-backup.service")
    step("unset result", "systemctl", "show", "-p", "Result", "-p", "ActiveState", "golden-backup.service")

    # The data to back up.
    sql("CREATE TABLE public.golden_test (id int PRIMARY KEY, text text);"
        f"INSERT INTO public.golden_test SELECT i, '{MARK} ' || i || E'\\t\\n\\\\ä' FROM generate_series(1, {ROWS}) AS i;")
    if APPLICATION:
        (MEDIA / "golden-test").mkdir(parents=True)
        run("chown", "-R", "gunicorn:www-data", MEDIA)
        run("chmod", "2750", MEDIA, MEDIA / "golden-test")
        upload(MEDIA / "golden-test" / "one.bin", os.urandom(5 << 20))
        upload(MEDIA / "golden-test" / "a name with spaces \u00e4.txt", b"text")
        upload(MEDIA / "golden-test" / "empty", b"")
        upload(MEDIA / "golden-test" / ".incoming", b"not complete")
        (MEDIA / "golden-test" / "link").symlink_to("/etc/shadow")
        run("chown", "-Rh", "gunicorn:www-data", MEDIA)
    # These two are not uploads: they are not backed up.
    original = prints()
    original["files"] = {name: of for name, of in original["files"].items() if not name.endswith(("/link", "/.incoming"))}
    results["original"] = original

    # The target does not answer: the backup is created and kept.
    settings({"recipient": keys["right"], "target": place, "keep_days": 14})
    step("first", "systemctl", "start", "golden-backup.service")
    step("unreachable", "systemctl", "start", "golden-backup-send.service")
    step("unreachable log", "journalctl", "-b", "-o", "cat", "-u", "golden-backup-send.service", "-n", "20")
    step("alert", "systemctl", "show", "-p", "OnFailure", "golden-backup.service", "golden-backup-send.service")
    made = sorted(BACKUPS.glob("*.age"))
    results["made"] = [path.name for path in made]
    archive = made[0]
    results["access"] = run("stat", "-c", "%a %U:%G", BACKUPS, archive)["text"].split("\n")
    content = archive.read_bytes()
    results["head"] = content[:21].decode()
    results["plain"] = [MARK.encode() in content, b"COPY public" in content, b"golden_test" in content]
    results["listing"] = json.loads(run("golden-backup", "--list", "--json")["text"])

    # It answers with another host key than the known one; then with the known one, and the kept backup is sent.
    (WORK / "sshd.conf").write_text(
        f"Port {PORT}\nListenAddress 127.0.0.1\nHostKey {WORK}/host\nAuthorizedKeysFile {WORK}/login.pub\nUsePAM yes\n"
        f"PermitRootLogin prohibit-password\nStrictModes no\nPidFile none\nSubsystem sftp internal-sftp\n")
    sshd = subprocess.Popen(["/usr/sbin/sshd", "-D", "-e", "-f", WORK / "sshd.conf"], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 20 * int(os.environ["PACE"])
    while PORT not in run("ss", "-Hltn")["text"] and time.monotonic() < deadline:
        time.sleep(0.1)
    (ETC / "backup_known_hosts").write_text(f"[127.0.0.1]:{PORT} {other}")
    step("other host key", "golden-backup", "--send")
    results["sent to other"] = sorted(path.name for path in TARGET.iterdir())
    (ETC / "backup_known_hosts").write_text(f"[127.0.0.1]:{PORT} {host}")
    run("systemctl", "reset-failed", "golden-backup-send.service")
    step("catch up", "systemctl", "start", "golden-backup-send.service")
    results["sent"] = sorted(path.name for path in TARGET.iterdir())
    results["sent sums"] = run("sh", "-c", f"cd {TARGET} && sha256sum -c *.sha256")
    sshd.terminate()

    settings({"recipient": keys["right"], "target": "rclone:far:backups", "keep_days": 14})
    step("rclone", "golden-backup", "--send")
    with open("/run/golden-lock/golden-backup.lock", "w") as lock:
        import fcntl
        fcntl.flock(lock, fcntl.LOCK_EX)
        step("two at once", "golden-backup")

    # All data is lost.
    sql("DROP TABLE public.golden_test;")
    if APPLICATION:
        sql("DELETE FROM public.pages_page;")
        run("rm", "-rf", MEDIA)
    results["lost"] = lost = prints()

    # Backups that must be refused, and change nothing.
    flipped, truncated = WORK / "flipped.tar.age", WORK / "truncated.tar.age"
    foreign, unsigned = WORK / "foreign.tar.age", WORK / "unsigned.tar.age"
    signature = archive.with_name(f"{archive.name}.sig").read_bytes()
    step("signer", "golden-backup", "--signer")
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", WORK / "stranger")
    # A backup of another machine, or of an attacker who knows the public key and can write to the target.
    foreign.write_bytes(content)
    sums = f"{hashlib.sha256(content).hexdigest()}\n".encode()
    made = run("sh", "-c", f"ssh-keygen -q -Y sign -f {WORK}/stranger -n golden-backup 2>/dev/null", stdin=sums)
    foreign.with_name(f"{foreign.name}.sig").write_text(made["text"])
    unsigned.write_bytes(content)
    middle = len(content) // 2
    flipped.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1:])
    truncated.write_bytes(content[:-100])
    step("wrong key", "golden-restore", archive, "--identity", WORK / "wrong")
    flipped.with_name(f"{flipped.name}.sig").write_bytes(signature)
    step("signature", "golden-restore", flipped, "--identity", WORK / "right")
    step("foreign", "golden-restore", foreign, "--identity", WORK / "right")
    step("foreign drill", "golden-restore", "--drill", foreign, "--identity", WORK / "right")
    step("without signature", "golden-restore", unsigned, "--identity", WORK / "right")
    # An old backup with the name of the newest: its signature is valid.
    renamed = WORK / archive.name.replace(archive.name[:4], "2999", 1)
    renamed.write_bytes(content)
    renamed.with_name(f"{renamed.name}.sig").write_bytes(signature)
    step("renamed", "golden-restore", renamed, "--identity", WORK / "right")
    step("flipped", "golden-restore", flipped, "--identity", WORK / "right", "--unsigned")
    step("truncated", "golden-restore", truncated, "--identity", WORK / "right", "--unsigned")
    step("no key", "golden-restore", archive)
    results["after refusals"] = prints()
    # With the matching option they are accepted; --check changes nothing.
    stranger = (WORK / "stranger.pub").read_text().strip()
    step("named", "golden-restore", "--check", foreign, "--identity", WORK / "right", "--signer", stranger)
    step("named unsigned", "golden-restore", "--check", unsigned, "--identity", WORK / "right", "--unsigned")

    # The application is not healthy afterwards: everything is rolled back.
    if APPLICATION:
        step("rollback", "python3", "-c", "import pathlib, sys\n"
             "from golden import application_data, core, restore\n"
             "application_data.wait_healthy = lambda: 'set by the test'\n"
             "archive, identity = map(pathlib.Path, sys.argv[1:])\n"
             "try: restore.restore(restore.source(archive, identity, signers=[]))\n"
             "except core.Problem as problem: print(problem)", archive, WORK / "right")
        results["after rollback"] = prints()

    step("restore", "golden-restore", archive, "--identity", WORK / "right", "--json")
    results["restored"] = prints()
    # The key from standard input is not written to a disk of the clone.
    step("again", "golden-restore", archive, "--identity", "-", "--json", stdin=(WORK / "right").read_bytes())
    results["restored again"] = prints()

    step("drill", "systemctl", "start", "golden-restore-drill.service")
    results["drilled"] = json.loads(pathlib.Path("/var/lib/golden-restore/last.json").read_text())
    step("drill left", "find", "/var/lib/golden-restore", "/run/golden-restore", "-mindepth", "1", "!", "-name", "last.json")
finally:
    if sshd:
        sshd.terminate()
    sql("DROP TABLE IF EXISTS public.golden_test")
    run("rm", "-rf", WORK, MEDIA / "golden-test", ETC / "backup_key", ETC / "backup_known_hosts", *BACKUPS.iterdir())
    if APPLICATION and not had_media:
        run("rm", "-rf", MEDIA)
    if not had_etc:
        run("rmdir", ETC)
    SITE.write_text(before) if before else SITE.unlink(missing_ok=True)
    run("systemctl", "reset-failed", "golden-backup.service", "golden-backup-send.service")
print(json.dumps(results))
'''


@pytest.fixture(scope="module")
def story(host: Host) -> dict[str, Any]:
    """A backup, its transfer off the clone, the loss of all data, and the restore."""
    output = host.check_output("python3 -c %s %s %s", STORY, str(ROWS), MARK)
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def facts(host: Host) -> dict[str, Fact]:
    """The properties of the units."""
    commands = {f"unit {unit}": f"systemctl show -p OnFailure -p CapabilityBoundingSet {unit}" for unit in UNITS}
    commands |= {f"exposure {unit}": f"systemd-analyze security --no-pager {unit} | tail -1" for unit in UNITS}
    timers = ("golden-backup.timer", "golden-restore-drill.timer")
    commands |= {
        f"timer {timer}": f"systemctl show -p ActiveState -p Persistent -p RandomizedDelayUSec -p TimersCalendar {timer}"
        for timer in timers
    }
    return gather(host, commands)


@pytest.mark.req("R92", "R97", "R77")
def test_timers(facts: dict[str, Fact]) -> None:
    """A backup runs every night and a restore drill every quarter; a missed run is made up for at the next boot"""
    for timer, calendar in (("golden-backup", "*-*-* 02:00:00"), ("golden-restore-drill", "*-01,04,07,10-02 04:00:00")):
        found = properties(facts[f"timer {timer}.timer"])
        assert (found["ActiveState"], found["Persistent"]) == ("active", "yes")
        assert found["RandomizedDelayUSec"] != "0"
        assert calendar in found["TimersCalendar"]


@pytest.mark.req("R92", "F31")
@pytest.mark.parametrize("unit", UNITS)
def test_units(facts: dict[str, Fact], unit: str) -> None:
    """Each unit raises an alert when it fails, and systemd rates its sandbox 2.0 or better"""
    assert properties(facts[f"unit {unit}"])["OnFailure"] == f"golden-alert@{unit}.service"
    found = re.search(r"level for \S+: ([0-9.]+)", facts[f"exposure {unit}"].text)
    assert found, facts[f"exposure {unit}"].text
    assert float(found.group(1)) <= 2.0


@pytest.mark.req("R92", "R97")
def test_without_a_recipient(story: dict[str, Any]) -> None:
    """Without a recipient the nightly unit is skipped, and the command names the setting and its file"""
    assert story["unset unit"]["code"] == 0
    assert "ActiveState=inactive" in story["unset result"]["text"]
    assert "Result=exec-condition" in story["unset result"]["text"]
    assert story["unset by hand"]["code"] == 1
    assert "/etc/golden/site.yaml" in story["unset by hand"]["text"]
    assert "recipient: age1" in story["unset by hand"]["text"]


@pytest.mark.req("R92", "R97")
def test_backup_is_encrypted(story: dict[str, Any]) -> None:
    """A backup is an age file that only root can read, and contains no plain text"""
    assert story["first"]["code"] == 0
    assert story["head"] == "age-encryption.org/v1"
    assert story["plain"] == [False, False, False]
    assert story["access"][:2] == ["700 root:root", "600 root:root"]
    assert [one["sent"] for one in story["listing"]["archives"]] == [""]


@pytest.mark.req("R92", "F31")
def test_unreachable_target_fails_the_unit_and_the_next_run_catches_up(story: dict[str, Any]) -> None:
    """If the target does not answer, the unit fails, the backup is kept, and the next run sends it completely"""
    assert story["unreachable"]["code"] != 0
    assert re.search(r"1 not sent; they are kept and sent by the next run", story["unreachable log"]["text"])
    assert story["catch up"]["code"] == 0
    (name,) = story["made"]
    assert story["sent"] == [name, f"{name}.sha256", f"{name}.sig"]
    assert story["sent sums"]["code"] == 0, story["sent sums"]["text"]


@pytest.mark.req("R92")
def test_unknown_host_is_refused(story: dict[str, Any]) -> None:
    """Nothing is sent to a target with another host key than the known one"""
    assert story["other host key"]["code"] == 1
    assert "Host key verification failed" in story["other host key"]["text"]
    assert story["sent to other"] == []


@pytest.mark.req("R92")
def test_missing_rclone_is_named(story: dict[str, Any]) -> None:
    """With an rclone target and no rclone, the error names the missing package"""
    assert story["rclone"]["code"] == 1
    assert "apt-get install rclone" in story["rclone"]["text"]


@pytest.mark.req("R92", "F30")
def test_two_at_once(story: dict[str, Any]) -> None:
    """While one backup runs, another is refused"""
    assert story["two at once"]["code"] == 1
    assert "another golden-backup is running" in story["two at once"]["text"]


@pytest.mark.req("F20")
@pytest.mark.parametrize(
    ("what", "message"), [("wrong key", "no identity matched"), ("flipped", "age on"), ("truncated", "age on")]
)
def test_broken_backups_are_refused(story: dict[str, Any], what: str, message: str) -> None:
    """A wrong key, one changed bit or a missing end is detected before anything is changed"""
    assert story[what]["code"] == 3, story[what]["text"]
    assert message in story[what]["text"]
    assert story["after refusals"] == story["lost"]


@pytest.mark.req("F20", "R92")
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("foreign", r"is signed by SHA256:\S+, and this machine does not know that signer"),
        ("foreign drill", r"is signed by SHA256:\S+, and this machine does not know that signer"),
        ("without signature", "is not signed"),
        ("signature", "is not a signature of this file"),
    ],
)
def test_backups_of_others_are_refused(story: dict[str, Any], what: str, message: str) -> None:
    """A backup without a signature, from another signer, or changed after signing is refused before it is read"""
    assert story[what]["code"] == 3, story[what]["text"]
    assert re.search(message, story[what]["text"])
    assert story["after refusals"] == story["lost"]


@pytest.mark.req("F20", "R92")
def test_renamed_backup_is_refused(story: dict[str, Any]) -> None:
    """An old backup with a valid signature and the name of a newer one is refused before anything is changed"""
    assert story["renamed"]["code"] == 3, story["renamed"]["text"]
    assert "has the name of a backup of 2999-" in story["renamed"]["text"]
    assert story["after refusals"] == story["lost"]


@pytest.mark.req("F20", "R92")
def test_another_signer_can_be_named(story: dict[str, Any]) -> None:
    """A backup of a named signer is accepted, and with --unsigned one without a signature"""
    assert re.fullmatch(r"ssh-ed25519 \S+", story["signer"]["text"].strip())
    for step in ("named", "named unsigned"):
        assert story[step]["code"] == 0, story[step]["text"]


@pytest.mark.req("F20")
def test_restore_without_a_key(story: dict[str, Any]) -> None:
    """A restore without a key is a usage error that names the missing option"""
    assert story["no key"]["code"] == 2
    assert "--identity" in story["no key"]["text"]


def _files(state: dict[str, Any]) -> int:
    """Count the uploads: those of this test, and of the application's tests. A directory has no content."""
    return sum(1 for *_rights, body in state["files"].values() if body)


@pytest.mark.layers("40-app")
@pytest.mark.req("F20")
def test_unhealthy_restore_goes_back(story: dict[str, Any]) -> None:
    """If the application is not healthy after a restore, the database and media are rolled back"""
    assert story["rollback"]["code"] == 0
    assert "is not healthy" in story["rollback"]["text"], story["rollback"]["text"]
    assert story["after rollback"] == story["lost"]


@pytest.mark.req("F20", "R92", "R97")
def test_restore_gives_everything_back(story: dict[str, Any]) -> None:
    """After the loss of database and media, all rows, rights and files are restored, and the downtime is reported"""
    assert story["lost"]["rows"] != story["original"]["rows"]
    assert story["restore"]["code"] == 0, story["restore"]["text"]
    assert story["restored"] == story["original"]
    result = json.loads(story["restore"]["text"])["restored"]
    assert result["tables"]["public.golden_test"] == ROWS
    assert result["media_files"] == _files(story["original"])
    # A database server only changes two names: that takes less than the tenth of a second that is shown.
    assert result["downtime_seconds"] <= result["rto_seconds"]
    assert result["downtime_seconds"] > 0 or not story["application"]


@pytest.mark.req("F20")
def test_restoring_twice_gives_the_same(story: dict[str, Any]) -> None:
    """A second restore of the same backup, with the key from standard input, leads to the same state"""
    assert story["again"]["code"] == 0, story["again"]["text"]
    assert story["restored again"] == story["original"]


@pytest.mark.req("R77", "R92", "F20")
def test_drill(story: dict[str, Any]) -> None:
    """The quarterly drill restores a backup into a separate cluster, compares every table, and stores its result"""
    assert story["drill"]["code"] == 0, story["drill"]["text"]
    result = story["drilled"]
    assert result["ok"]
    assert result["differences"] == []
    assert result["tables"]["public.golden_test"]["rows"] == ROWS
    assert result["media"]["files"] == _files(story["original"])
    assert result["rto_seconds"] > 0
    assert story["drill left"]["text"].split() == ["/var/lib/golden-restore/cluster"]
