"""The life of a foreign project on the image. The tests are its steps, one after the other: each stands on those before."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from typing import Any

import pytest
from testinfra.host import Host

from tests.image.under_load import under_load

from .conftest import BUNDLES, Browser, Bundle
from .making import FAILURE, Project

PASSWORD = "correct horse battery staple"
# What an operator of the site writes: who may administer, and a key for backups.
SITE = """
backup: {{recipient: {recipient}, target: "", keep_days: 14}}
admin_proxy: {{client_ca: /etc/golden/admin-ca.pem, cidrs: [127.0.0.0/8]}}
"""
AUTHORITY = f"""
set -eu
umask 077
mkdir -p {BUNDLES}
cd {BUNDLES}
new() {{ openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc "$@" 2>/dev/null; }}
new -x509 -keyout ca.key -subj /CN=authority -days 2 -addext keyUsage=critical,keyCertSign -out ca.pem
new -keyout admin.key -subj /CN=admin -out admin.csr
openssl x509 -req -in admin.csr -CA ca.pem -CAkey ca.key -days 2 -out admin.pem 2>/dev/null
cat admin.key >>admin.pem
install -m 0644 ca.pem /etc/golden/admin-ca.pem
age-keygen -o key 2>/dev/null
age-keygen -y key
"""
# As an operator without a terminal does it: the command asks for a password only there.
MAKE_ADMINISTRATOR = "golden-app run -- createsuperuser --noinput --username admin --email admin@example.org"
SET_PASSWORD = (
    "from django.contrib.auth import get_user_model; user = get_user_model().objects.get(is_superuser=True); "
    "user.set_password({password!r}); user.save()"
)


def picture(width: int = 300) -> bytes:
    """Return a picture (PNG) of one colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + b"\x20\x80\xff" * width for _ in range(width))
    head = struct.pack(">IIBBBBB", width, width, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.fixture(scope="session")
def kept() -> dict[str, Any]:
    """What one step leaves for the next."""
    return {}


def serving(host: Host) -> str:
    """Return the name of the release that serves."""
    return str(host.check_output("readlink /opt/app/current")).rsplit("/", 1)[-1]


def test_site_settings(host: Host) -> None:
    """The site names its administrators, and has a key for its backups"""
    recipient = host.check_output("sh -c %s", AUTHORITY).splitlines()[-1]
    host.check_output("umask 077; printf %%s %s >/etc/golden/site.yaml", SITE.format(recipient=recipient))
    host.check_output("golden-site apply")


def test_deployment(host: Host, bundles: dict[int, Bundle], project: Project) -> None:
    """The project deploys as it is, without settings for this machine"""
    done = host.run(bundles[1].deploy())
    assert done.rc == 0, done.stdout + done.stderr
    assert serving(host) == bundles[1].sha256[:12]


def test_pages(page: Browser, project: Project) -> None:
    """Its pages answer, and every static file that they name comes from the web server"""
    files = []
    for path in project.pages:
        answer = page.get(path)
        assert answer.status == 200, f"{path}: {answer}"
        files += [part.split('"')[0] for part in answer.body.split('="/static/')[1:]]
    for file in files:
        assert page.get(f"/static/{file}").status == 200, file


def test_administration(host: Host, page: Browser, project: Project) -> None:
    """An administrator is made by the project's own command, and logs in"""
    host.check_output(MAKE_ADMINISTRATOR)
    host.check_output("golden-app run -- shell -c %s", SET_PASSWORD.format(password=PASSWORD))
    login = f"{project.admin}login/"
    answer = page.form(login, {"username": "admin", "password": PASSWORD, "next": project.admin})
    assert answer.status == 302, answer
    first = page.get(project.admin)
    assert first.status == 200
    for file in {part.split('"')[0] for part in first.body.split('="/static/')[1:]}:
        assert page.get(f"/static/{file}").status == 200, file


def test_upload(host: Host, page: Browser, project: Project, kept: dict[str, Any]) -> None:
    """A picture that is uploaded in the administration is shown by the web server, whatever directory it went into"""
    content = base64.b64encode(picture()).decode()
    answer = page.form(project.upload, project.fields, {project.field: ("Blue sky.png", content)})
    assert answer.status == 302, answer
    where = answer.header("Location")[0]
    # The pages that show it name it, or one that the project made of it.
    shown = page.get(where).body
    for row in ("/change/", "/images/"):
        shown += "".join(page.get(link).body for link in links(shown, where) if row in link)
    stored = {part.split('"')[0] for part in shown.split('"/media/')[1:]}
    assert stored, shown
    kept["media"] = sorted(stored)
    for file in stored:
        shown_to_all = page.get(f"/media/{file}", certificate="")
        assert shown_to_all.status == 200, file
        assert shown_to_all.header("Content-Type") == ["image/png"]
    # The file as it was sent, and none that the project made of it.
    original = host.check_output(f"find /var/www/media -name 'Blue_sky*.png' -size {len(picture())}c | head -1")
    assert original
    kept["original"] = original.removeprefix("/var/www")
    assert page.get(kept["original"]).body.encode("latin-1") == picture()


def links(text: str, where: str) -> list[str]:
    """Return the addresses of this site in a page."""
    return [part.split('"')[0] for part in text.split('href="')[1:] if part.startswith("/")]


def test_second_version_under_load(
    host: Host, name: str, page: Browser, bundles: dict[int, Bundle], project: Project
) -> None:
    """A second version is deployed while visitors come: none of their requests is lost"""
    old = style(page, project)
    load = under_load(host, name, bundles[2].deploy(), paths=project.pages)
    assert load.status == 0, load.output
    assert serving(host) == bundles[2].sha256[:12]
    assert load.sent > 20
    assert load.lost == 0, load.failures
    assert style(page, project) == old + "\n/* version 2 */\n"


def style(page: Browser, project: Project) -> str:
    """Return the style sheet that the second version changes, under its plain name."""
    answer = page.get(f"/static/{project.style}")
    assert answer.status == 200, answer
    return answer.body


def test_migration_that_fails(host: Host, page: Browser, bundles: dict[int, Bundle], project: Project) -> None:
    """A migration that fails is named with its error, and the second version goes on"""
    done = host.run(bundles[3].deploy())
    assert done.rc == 1
    assert FAILURE in done.stdout + done.stderr
    assert serving(host) == bundles[2].sha256[:12]
    assert style(page, project).endswith("/* version 2 */\n")
    assert page.get(project.pages[0]).status == 200


def test_rollback(host: Host, page: Browser, bundles: dict[int, Bundle], project: Project, kept: dict[str, Any]) -> None:
    """The first version serves again, with its own style sheet, and with the pictures"""
    host.check_output("golden-deploy --rollback")
    assert serving(host) == bundles[1].sha256[:12]
    assert "version 2" not in style(page, project)
    assert page.get(kept["original"]).status == 200
    assert page.get(project.admin).status == 200


def test_backup_and_restore(host: Host, page: Browser, project: Project, kept: dict[str, Any]) -> None:
    """A picture that was lost, and its row, come back from a backup"""
    host.check_output("systemctl start golden-backup.service")
    newest = host.check_output("ls -t /var/backups/golden/*.age | head -1")
    host.check_output("rm -r /var/www/media/*")
    connect = "runuser -u golden-backup -- psql -h /run/postgresql -U app_owner app"
    host.check_output(f"{connect} -qc 'DELETE FROM django_session'")
    assert page.get(kept["original"]).status == 404
    # Django has the browser forget a session that does not exist.
    assert page.another().get(project.admin).status == 302
    done = host.run(f"golden-restore {newest} --identity {BUNDLES}/key")
    assert done.rc == 0, done.stdout + done.stderr
    assert page.get(kept["original"]).body.encode("latin-1") == picture()
    # The session is among the rows.
    assert page.get(project.admin).status == 200
    for file in kept["media"]:
        assert page.get(f"/media/{file}").status == 200, file


def test_machine_is_as_it_should_be(host: Host) -> None:
    """golden-verify finds nothing wrong with the machine"""
    done = host.run("golden-verify --json")
    result = json.loads(done.stdout)
    assert [(check["title"], check["problems"]) for check in result["checks"] if check["result"] == "FAIL"] == []


def test_nothing_failed(host: Host) -> None:
    """No unit is left failed but the migration that was made to fail"""
    failed = host.check_output("systemctl --failed --plain --no-legend | cut -d' ' -f1").split()
    assert [unit for unit in failed if not unit.startswith("golden-deploy-migrate@")] == []
