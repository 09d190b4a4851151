"""Links among the served files: the users that write these cannot make the web server follow a link to the TLS key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from testinfra.host import Host

from .facts import Answer, Fact, ask, browse, gather
from .remote import until

pytestmark = [pytest.mark.story, pytest.mark.layers("40-app", "65-certificates")]

CHALLENGES, MEDIA, STATIC = "/run/golden-challenges", "/var/www/media", "/var/www/static"
KEY = "/run/nginx-tls/app.key"
SECRET = re.compile(r"PRIVATE KEY|root:|BEGIN|\bproof\b")


def token(case: str) -> str:
    """Return a unique name in the form of a token."""
    return f"links-{case}".ljust(32, "_")


# Files that the ACME client's user creates with a valid name, and that must not be served. "$at": the name.
CHALLENGE_ATTACKS = {
    "key": f"ln -s {KEY} $at",
    "roots-key": "ln -s /etc/ssl/private/app.key $at",
    "accounts": "ln -s /etc/passwd $at",
    "relative": "ln -s ../nginx-tls/app.key $at",
    "process": "ln -s /proc/self/environ $at",
    "link-to-link": f"ln -s {KEY} $at.next; ln -s $at.next $at",
    "own-file": f"ln -s {CHALLENGES}/{token('good')} $at",
    "pipe": "mkfifo -m 0644 $at",
    "directory": "mkdir -m 0755 $at; echo proof >$at/index.html",
    "socket": "python3 -c 'import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])' $at",
}
# Names that are not those of a token.
CHALLENGE_NAMES = [
    "short", "dots.in.a.name.of.a.token", ".hidden-name-of-a-token-form", "a" * 129, "with%20space-in-a-long-name",
    "../nginx-tls/app.key", "..%2fnginx-tls%2fapp.key", f"{token('good')}/", f"{token('good')}/app.key",
    f"{token('good')}%00", f"{token('good')}%2f..%2fapp.key",
]  # fmt: skip
# The same for the application's user among uploads, with a name that is served.
MEDIA_ATTACKS = {
    "key.txt": f"ln -s {KEY} $at",
    "accounts.txt": "ln -s /etc/passwd $at",
    "own.txt": f"ln -s {MEDIA}/links-good.txt $at",
    "pipe.txt": "mkfifo -m 0644 $at",
    "folder.txt": "mkdir -m 0755 $at",
}
# A link in the middle of a path.
MEDIA_FOLDER = "links-folder"


def attacks(user: str, directory: str, cases: dict[str, str], name: str) -> dict[str, str]:
    """Return the commands that run the attacks as a service's user; ``name`` is a format for the file name."""
    return {
        f"{user} {case}": f"at={directory}/{name.format(token(case) if user == 'golden-acme' else case)}; export at; "
        f"runuser -u {user} -- sh -c 'umask 022; cd {directory} || exit 1; {command.replace(chr(39), chr(34))}'"
        for case, command in cases.items()
    }


@pytest.fixture(scope="module")
def planted(host: Host) -> Iterator[dict[str, Fact]]:
    """The users of two services and root create links in the served directories; all is removed afterwards."""
    host.check_output(
        f"umask 022; echo proof >{CHALLENGES}/{token('good')} && echo proof >{MEDIA}/links-good.txt && "
        f"mkdir {MEDIA}/links-real && echo proof >{MEDIA}/links-real/notes.txt"
    )
    commands = (
        attacks("golden-acme", CHALLENGES, CHALLENGE_ATTACKS, "{}")
        | attacks("gunicorn", MEDIA, MEDIA_ATTACKS, "links-{}")
        | {
            "folder": f"runuser -u gunicorn -- ln -s {MEDIA}/links-real {MEDIA}/{MEDIA_FOLDER}",
            # Only root can write here. The rule applies to all files.
            "static": f"ln -s /etc/passwd {STATIC}/links.0123456789ab.css",
            "static folder": f"mkdir {STATIC}/links-real; echo proof >{STATIC}/links-real/x.0123456789ab.css; "
            f"ln -s links-real {STATIC}/links-folder",
            "hard link": f"runuser -u golden-acme -- ln {KEY} {CHALLENGES}/{token('hard')}",
            "hard link to accounts": f"runuser -u golden-acme -- ln /etc/shadow {CHALLENGES}/{token('hard')}",
            "units": "systemctl show -p InaccessiblePaths golden-acme.service",
            "reads the key": f"runuser -u golden-acme -- cat {KEY}; runuser -u gunicorn -- cat {KEY}",
        }
    )
    yield gather(host, commands)
    host.check_output(f"rm -rf {CHALLENGES}/links-* {MEDIA}/links-* {STATIC}/links*")


@pytest.fixture(scope="module")
def answers(host: Host, spec: SimpleNamespace, planted: dict[str, Fact]) -> dict[str, Answer]:
    """The web server's responses for these files."""
    name = spec.application.server_name
    challenge = "/.well-known/acme-challenge/"
    requests = {case: ask(name, challenge + token(case), tls=False) for case in [*CHALLENGE_ATTACKS, "good"]}
    requests |= {f"name {path}": ask(name, challenge + path, tls=False) for path in CHALLENGE_NAMES}
    requests |= {f"media {case}": ask(name, f"/media/links-{case}") for case in [*MEDIA_ATTACKS, "good.txt"]}
    requests |= {
        "media folder": ask(name, f"/media/{MEDIA_FOLDER}/notes.txt"),
        "media real folder": ask(name, "/media/links-real/notes.txt"),
        "static": ask(name, "/static/links.0123456789ab.css"),
        "static folder": ask(name, "/static/links-folder/x.0123456789ab.css"),
        "static real folder": ask(name, "/static/links-real/x.0123456789ab.css"),
    }
    return browse(host, requests)


@pytest.mark.req("R3", "R87")
def test_planted(planted: dict[str, Fact], answers: dict[str, Answer]) -> None:
    """The attacker's links exist, and regular files beside them are served"""
    for case, fact in planted.items():
        if not case.startswith(("hard link", "reads", "units")):
            assert (fact.status, fact.text) == (0, ""), case
    for case in ("good", "media good.txt", "media real folder", "static real folder"):
        assert (answers[case].status, answers[case].body) == (200, "proof\n"), case


@pytest.mark.req("R3", "R60", "R37")
@pytest.mark.parametrize("case", CHALLENGE_ATTACKS)
def test_challenges_are_regular_files(answers: dict[str, Answer], case: str) -> None:
    """The response for a link of the ACME client's user among the challenges is 404"""
    answer = answers[case]
    assert answer.status == 404, answer
    assert not SECRET.search(answer.body)


@pytest.mark.req("R3", "R86")
@pytest.mark.parametrize("path", CHALLENGE_NAMES)
def test_challenges_have_names_of_tokens(answers: dict[str, Answer], path: str) -> None:
    """Only challenges with the name of a token are served over HTTP"""
    answer = answers[f"name {path}"]
    assert answer.status in (308, 400, 404), answer
    assert not SECRET.search(answer.body)


@pytest.mark.req("R3", "R60", "R69", "R84")
@pytest.mark.parametrize("case", [*(f"media {case}" for case in MEDIA_ATTACKS), "media folder", "static", "static folder"])
def test_no_link_is_followed(answers: dict[str, Answer], case: str) -> None:
    """A link among uploads or static files is not followed, neither as the file nor as a parent directory"""
    answer = answers[case]
    assert answer.status in (301, 403, 404), answer
    assert not SECRET.search(answer.body)


@pytest.mark.req("R3", "R60")
def test_key_is_out_of_reach(planted: dict[str, Fact]) -> None:
    """The users that write the served files can neither read the key nor create a hard link to it"""
    assert planted["hard link"].status != 0
    assert planted["hard link to accounts"].status != 0
    assert [line.endswith("Permission denied") for line in planted["reads the key"].lines] == [True, True]
    # The directory of the key is not accessible in the client's service.
    assert {"-/run/nginx-tls", "-/etc/ssl/private"} <= set(planted["units"].text.split("=")[1].split())


@pytest.mark.req("R3", "R36")
def test_rule_has_no_exception(host: Host) -> None:
    """One rule for all of the web server forbids links, and no location overrides it"""
    text = host.check_output("nginx -T 2>/dev/null")
    rules = re.findall(r"^\s*(disable_symlinks [^;]*);", text, re.MULTILINE)
    assert rules == ["disable_symlinks on"]
    # In the block that contains all servers.
    assert re.search(r"^http \{\n(?:    .*\n|\n)*    disable_symlinks on;$", text, re.MULTILINE)


@pytest.mark.req("R87", "R60")
def test_answer_of_the_client_is_a_regular_file(host: Host) -> None:
    """Root reads the result of the ACME client only from a regular file: a link or a pipe is reported as an error"""
    program = (
        "import sys; from pathlib import Path; from golden import renewal; "
        "renewal.ANSWER = Path(sys.argv[1]); renewal.take(Path('/dev/null'), names=['a.test'])"
    )
    facts = gather(
        host,
        {
            "link": "d=$(mktemp -d); ln -s /etc/ssl/private/app.key $d/c.pem; "
            f'timeout $((10 * PACE)) python3 -c "{program}" $d/c.pem; status=$?; rm -r $d; exit $status',
            "pipe": "d=$(mktemp -d); mkfifo $d/c.pem; "
            f'timeout $((10 * PACE)) python3 -c "{program}" $d/c.pem; status=$?; rm -r $d; exit $status',
        },
    )
    assert facts["link"].status == 1
    assert "Too many levels of symbolic links" in facts["link"].text
    assert facts["pipe"].status == 1
    assert "is not a regular file" in facts["pipe"].text


# Links that an attacker with the web server's user creates in its directories, for root to follow.
TRAPS = """
rm -rf /run/golden-trap && mkdir -m 0755 /run/golden-trap
at=/run/nginx; runuser -u nginx -- sh -c "rm -rf $at/tls; ln -s /run/golden-trap $at/tls"
for name in body proxy fastcgi uwsgi scgi; do
    of=/var/cache/nginx
    runuser -u nginx -- sh -c "mv $of/$name $of/.$name 2>/dev/null && ln -s /run/golden-trap $of/$name"
done
runuser -u nginx -- sh -c "rm -f $at/nginx.pid; ln -s /run/golden-trap/made $at/nginx.pid"
"""
SPRING = "systemctl reload nginx.service; nginx -t -e stderr; ls -A /run/golden-trap; stat -c %U /run/golden-trap"
CLEAR = """
rm -rf /run/golden-trap /run/nginx/tls /run/nginx/nginx.pid
for name in body proxy fastcgi uwsgi scgi; do
    [ ! -L /var/cache/nginx/$name ] || { rm /var/cache/nginx/$name; mv /var/cache/nginx/.$name /var/cache/nginx/$name; }
done
systemctl restart nginx.service
"""


@pytest.mark.req("R3", "R60")
def test_root_follows_no_link_of_the_web_server(host: Host) -> None:
    """When root reloads or tests nginx, no file is created or changes its owner in the target of nginx's links"""
    host.run(TRAPS)
    try:
        command = host.run(SPRING)
        left, owner = command.stdout.split()[:-1], command.stdout.split()[-1]
    finally:
        host.check_output(CLEAR + until("[ $(pgrep -cx nginx) -ge 2 ]", 10))
    assert (left, owner) == ([], "root"), command.stderr
