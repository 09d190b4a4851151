"""The site of two machines: requests, rights, backup and restore, and another machine for the application."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from testinfra.host import Host

from build.machines import nspawn
from tests.image.facts import ask, browse, gather, properties
from tests.image.remote import until

from . import joining
from .conftest import entered

# A row that the application writes, and a page shows.
TITLE = "a row of two machines"
MANAGE = 'golden-app run -- shell -c "from pages.models import Page; %s"'
WRITE = MANAGE % f"Page.objects.create(slug='two-machines', title='{TITLE}', text='')"
COUNT = MANAGE % f"print(Page.objects.filter(title='{TITLE}').count())"
REACH = f"import socket; socket.create_connection(('{joining.DATABASE}', 5432), 5)"
AS_OWNER = "sudo -u golden-backup psql -XAtq -h /run/postgresql -U app_owner app -c "


def health(host: Host, spec: SimpleNamespace) -> int:
    """Return the status of the health check, through the web server."""
    name = spec.application.server_name
    return browse(host, {"health": ask(name, "/health")})["health"].status


def await_healthy(host: Host, spec: SimpleNamespace) -> None:
    """Wait until the application is healthy."""
    name = spec.application.server_name
    request = f"curl -sk --max-time 10 --resolve {name}:443:127.0.0.1 -o /dev/null -w '%{{http_code}}' https://{name}/health"
    host.run(until(f'test "$({request})" = 200', 60, pause=1))
    assert health(host, spec) == 200


def test_the_application_is_healthy(app: Host, spec: SimpleNamespace) -> None:
    """With the database joined, the tables are made there, and the health check, which asks it, answers 200"""
    await_healthy(app, spec)
    assert health(app, spec) == 200
    assert app.check_output("systemctl show -p Result -p ActiveState golden-migrate.service").split() == [
        "Result=success", "ActiveState=active",
    ]  # fmt: skip


def test_rows_are_on_the_other_machine(app: Host, database: Host) -> None:
    """What the application writes is in the database of the other machine"""
    app.check_output(WRITE)
    assert app.check_output(COUNT).split()[-1] == "1"
    assert database.check_output(AS_OWNER + f"\"SELECT count(*) FROM pages_page WHERE title = '{TITLE}'\"") == "1"


def test_connections_are_the_applications(app: Host, database: Host) -> None:
    """Connections come from the machine of the settings, over TLS 1.3, with its certificate, as the application's role"""
    query = (
        "SELECT DISTINCT usename, client_addr, version, client_dn FROM pg_stat_activity JOIN pg_stat_ssl USING (pid) "
        "WHERE client_addr IS NOT NULL"
    )
    rows = database.check_output(f'sudo -u postgres psql -XAtq -h /run/postgresql postgres -c "{query}"').splitlines()
    assert f"app|{joining.APP}|TLSv1.3|/CN={joining.NAME}" in rows
    assert {row.split("|")[1] for row in rows} == {joining.APP}
    unit = properties(gather(app, {"unit": "systemctl show -p PrivateNetwork -p User gunicorn.service"})["unit"])
    assert unit == {"PrivateNetwork": "yes", "User": "gunicorn"}


def test_one_user_reaches_the_database(app: Host) -> None:
    """On the application's machine only the user of the connection reaches the port, and only it reads the key"""
    for user, may in (("golden-remote-database", True), ("gunicorn", False), ("nginx", False), ("nobody", False)):
        reached = app.run(f'runuser -u {user} -- python3 -c "{REACH}"')
        assert (reached.rc == 0) is may, user
        read = app.run(f"runuser -u {user} -- cat /run/golden/database-client.key")
        assert (read.rc == 0) is may, user


def test_another_user_has_no_role(app: Host) -> None:
    """At the local socket a user gets the role of ident.conf and no other"""
    program = (
        "import psycopg; psycopg.connect(host='/run/postgresql', dbname='app', user='%s').execute('SELECT 1')"
    )  # fmt: skip
    python = "/opt/app/current/venv/bin/python"
    attempts = {("gunicorn", "app"): True, ("gunicorn", "app_owner"): False, ("app-migrate", "app_owner"): True,
                ("app-migrate", "app"): False, ("root", "app_owner"): False}  # fmt: skip
    for (user, role), may in attempts.items():
        done = app.run(f'setpriv --reuid={user} --regid=gunicorn --init-groups -- {python} -c "{program % role}"')
        assert (done.rc == 0) is may, (user, role, done.stderr)


def test_backup_and_restore(app: Host, database: Host, spec: SimpleNamespace) -> None:
    """The database's machine backs up and restores; the application goes on with the restored rows"""
    found = gather(
        database,
        {
            "key": "age-keygen -o /root/backup.key 2>/dev/null && age-keygen -y /root/backup.key",
            "settings": 'echo "backup: {recipient: $(age-keygen -y /root/backup.key)}" >>/etc/golden/site.yaml; '
            "golden-site apply --json",
            "backup": "systemctl start golden-backup.service; golden-backup --list --json",
            "lost": AS_OWNER + '"DELETE FROM pages_page"',
        },
    )
    assert found["settings"].status == 0, found["settings"].text
    archives = json.loads(found["backup"].text)["archives"]
    assert len(archives) == 1
    assert app.check_output(COUNT).split()[-1] == "0"
    done = database.run(f"golden-restore {archives[0]['archive']} --identity /root/backup.key --json")
    assert done.rc == 0, done.stdout + done.stderr
    await_healthy(app, spec)
    assert app.check_output(COUNT).split()[-1] == "1"


def test_a_database_that_is_away(app: Host, database: Host, spec: SimpleNamespace) -> None:
    """While the database is down the health check fails; when it is back, the application is healthy again by itself"""
    database.check_output("systemctl stop postgresql@17-main.service")
    assert health(app, spec) in (500, 503)
    database.check_output("systemctl start postgresql@17-main.service")
    await_healthy(app, spec)


def test_another_machine_for_the_application(
    context: dict[str, Any], leaders: dict[str, int], app: Host, spec: SimpleNamespace
) -> None:
    """A new machine with the settings of the lost one serves the rows that were confirmed before"""
    scratch = Path(context["scratch"])
    app.backend.close()
    # As a power cut: the machine is gone, and the cable with it.
    os.kill(leaders["app"], signal.SIGKILL)
    place = scratch / "another"
    place.mkdir()
    with (
        nspawn.booted(Path(context["squashfs"]), spec=spec, scratch=place) as leader,  # type: ignore[arg-type]
        joining.cable(leader, leaders["database"]),
    ):
        joining.settle("app", place / "root", leader, scratch / "authority")
        other = entered("another", leader)
        await_healthy(other, spec)
        assert other.check_output(COUNT).split()[-1] == "1"
        other.backend.close()
