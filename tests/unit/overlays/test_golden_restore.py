"""Restore and drill: what is installed, what is rolled back after a failure, and the result of a health check."""

from __future__ import annotations

import io
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from build.core import run
from tests.unit.golden_modules import golden_module
from tests.unit.overlays.conftest import Programs

core = golden_module("golden.core")
clients = golden_module("golden.clients")
application = golden_module("golden.application_data")
restore = golden_module("golden.restore")
drill = golden_module("golden.drill")
health = golden_module("golden.health")
OPENSSL_SECONDS = 60
MANIFEST = {
    "made": "today", "host": "clone", "versions": {"postgresql": "17.1"},
    "database": {"tables": {"public.a": {"rows": 3, "content": "x"}}}, "media": {"files": 1, "bytes": 5, "sha256": "y"},
}  # fmt: skip


class Server:
    """A database server of the test: the names of its databases, each with what is in it."""

    def __init__(self) -> None:
        self.databases = {"app": "before"}
        self.migrations = {"before": [["pages", "0001"]], "backup": [["pages", "0001"]]}

    def make(self, name: str) -> None:
        self.databases[name] = "backup"

    def drop(self, name: str) -> None:
        self.databases.pop(name, None)

    def exists(self, name: str) -> bool:
        return name in self.databases

    def ask(self, statement: str, *, database: str) -> list[list[str]]:
        return [["1"]] if "pg_tables" in statement else self.migrations[self.databases[database]]

    def administer(self, statements: str) -> None:
        lines = statements.splitlines()
        assert lines[0] == restore.DISCONNECT
        assert (lines[1], lines[-1]) == ("BEGIN;", "COMMIT;")
        for line in lines[2:-1]:
            _alter, _database, old, _rename, _to, new = line.rstrip(";").split()
            self.databases[new] = self.databases.pop(old)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, programs: Programs) -> Server:
    """A machine with a database and media, and a backup that restores into other ones."""
    server = Server()
    media, fresh = tmp_path / "media", tmp_path / ".media.restored"
    media.mkdir()
    (media / "old").touch()
    monkeypatch.setattr(application, "MEDIA", media)
    monkeypatch.setattr(application, "FRESH", fresh)
    monkeypatch.setattr(application, "MIGRATED", tmp_path / "migrated")
    (tmp_path / "migrated").touch()
    monkeypatch.setattr(restore, "Server", lambda: server)
    monkeypatch.setattr(restore, "check", lambda _backup: MANIFEST)
    monkeypatch.setattr(application, "adopt", lambda _media: None)
    monkeypatch.setattr(application, "wait_healthy", lambda: "")

    def fill(_backup: object, *, media: Path, **_options: object) -> list[str]:
        (media / "new").touch()
        return []

    monkeypatch.setattr(restore, "fill", fill)
    return server


BACKUP = restore.Source(Path("x.tar.age"), b"key", "0" * 64)


def files(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "media").iterdir())


def test_what_was_restored_takes_its_place(machine: Server, programs: Programs, tmp_path: Path) -> None:
    result = restore.restore(BACKUP)
    assert (result["rows"], result["media_files"], result["made"]) == (3, 1, "today")
    assert machine.databases == {"app": "backup"}
    assert files(tmp_path) == ["new"]
    assert not (tmp_path / ".media.restored").exists()
    verbs = [argv[0] for argv in programs.named("systemctl")]
    assert verbs == ["stop", "reset-failed", "start"]
    assert (tmp_path / "migrated").exists()


def test_a_backup_of_older_tables_is_migrated(machine: Server, programs: Programs, tmp_path: Path) -> None:
    machine.migrations["before"].append(["pages", "0002"])
    restore.restore(BACKUP)
    assert ["restart", "golden-migrate.service"] in programs.named("systemctl")
    assert not (tmp_path / "migrated").exists()


@pytest.mark.parametrize("failing", ["health", "start", "media", "differences"])
def test_all_is_as_it_was_when_something_fails(
    machine: Server, monkeypatch: pytest.MonkeyPatch, programs: Programs, tmp_path: Path, failing: str
) -> None:
    if failing == "health":
        monkeypatch.setattr(application, "wait_healthy", lambda: "/health: 500")
    elif failing == "start":
        programs.answer("start", "gunicorn.service", status=1, err="no\n")
    elif failing == "media":
        monkeypatch.setattr(restore, "exchange", lambda *_places: (_ for _ in ()).throw(core.Problem("no exchange")))
    else:
        monkeypatch.setattr(restore, "fill", lambda *_words, **_options: ["a table"])
    with pytest.raises(core.Problem):
        restore.restore(BACKUP)
    assert machine.databases == {"app": "before"}
    assert files(tmp_path) == ["old"]
    # The application runs again, unless it was never stopped.
    verbs = [argv[0] for argv in programs.named("systemctl")]
    assert verbs[-1:] == ([] if failing == "differences" else ["start"])


def test_a_machine_without_database_and_media_gets_both(machine: Server, tmp_path: Path) -> None:
    machine.databases.clear()
    (tmp_path / "media/old").unlink()
    (tmp_path / "media").rmdir()
    restore.restore(BACKUP)
    assert machine.databases == {"app": "backup"}
    assert files(tmp_path) == ["new"]


def test_media_that_do_not_fit_are_not_begun(machine: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    huge = MANIFEST | {"media": {"files": 1, "bytes": 1 << 60, "sha256": "y"}}
    monkeypatch.setattr(restore, "check", lambda _backup: huge)
    with pytest.raises(core.Problem, match="the media need"):
        restore.restore(BACKUP)
    assert files(tmp_path) == ["old"]


@pytest.fixture
def database_server(machine: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Server:
    """A machine that has only the database."""
    monkeypatch.setattr(clients, "application", lambda: None)
    monkeypatch.setattr(clients, "NO_MEDIA", tmp_path / "none")
    return machine


def test_a_database_server_restores_without_an_application(
    database_server: Server, monkeypatch: pytest.MonkeyPatch, programs: Programs, tmp_path: Path
) -> None:
    without = MANIFEST | {"media": {"files": 0, "bytes": 0, "sha256": "y"}}
    monkeypatch.setattr(restore, "check", lambda _backup: without)
    result = restore.restore(BACKUP)
    assert (result["rows"], result["media_files"]) == (3, 0)
    assert database_server.databases == {"app": "backup"}
    assert programs.named("systemctl") == []
    assert not (tmp_path / "none").exists()
    assert files(tmp_path) == ["old"]


def test_a_database_server_refuses_a_backup_with_media(database_server: Server, tmp_path: Path) -> None:
    with pytest.raises(core.Problem, match="1 media files, and this machine has no application") as caught:
        restore.restore(BACKUP)
    assert caught.value.code == core.CHECK_FAILED
    assert database_server.databases == {"app": "before"}


def test_the_application_is_part_of_the_image_with_its_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert clients.application() is application
    monkeypatch.setattr(clients, "MODULE", "golden.no_such_module")
    assert clients.application() is None


def test_two_directories_change_places(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"of {name}").touch()
    restore.exchange(tmp_path / "a", tmp_path / "b")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["of b"]
    restore.exchange(tmp_path / "a", tmp_path / "c")
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["of b"]
    with pytest.raises(core.Problem, match="cannot change places"):
        restore.exchange(tmp_path / "gone", tmp_path / "c")


def test_restored_media_hold_plain_files_only(tmp_path: Path) -> None:
    sink = restore.Into(io.BytesIO(), tmp_path)
    sink.directory("uploads", 0o777)
    sink.file("uploads/a", 0o4777, iter([b"one", b"two"]))
    assert (tmp_path / "uploads/a").read_bytes() == b"onetwo"
    assert (tmp_path / "uploads/a").stat().st_mode & 0o7777 == 0o600
    (tmp_path / "uploads/b").symlink_to("/etc/hostname")
    with pytest.raises(FileExistsError):
        sink.file("uploads/b", 0o644, iter([b"x"]))


@pytest.fixture
def drilled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, programs: Programs) -> list[str]:
    """A drill beside a database server of the test; returns the differences that it will find."""
    differences: list[str] = []
    programs.answer("age-keygen", out="# created: x\n# public key: age1public\nAGE-SECRET-KEY-1X\n")
    for name, path in {"STATE": "", "CLUSTER": "cluster", "MEDIA": "media"}.items():
        monkeypatch.setattr(drill, name, tmp_path / path)

    def make(recipient: str, directory: Path) -> tuple[Path, dict[str, Any]]:
        assert recipient == "age1public"
        (directory / "x.tar.age").touch()
        return directory / "x.tar.age", MANIFEST

    monkeypatch.setattr(drill, "make", make)
    monkeypatch.setattr(restore, "source", lambda archive, identity, **_options: (archive, identity))
    monkeypatch.setattr(restore, "check", lambda _backup: MANIFEST)
    monkeypatch.setattr(restore, "fill", lambda _backup, **_options: differences)
    return differences


def test_a_drill_restores_into_a_cluster_of_its_own(drilled: list[str], programs: Programs, tmp_path: Path) -> None:
    result = drill.drill(None)
    assert (result["ok"], result["own_backup"], result["rows"]) == (True, True, 3)
    assert json.loads((tmp_path / "last.json").read_text()) == result
    # Nothing of it stays: no backup, no cluster, no media, no key.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.json"]
    assert "AGE-SECRET-KEY" not in (tmp_path / "last.json").read_text()
    assert [argv[0] for argv in programs.named("systemctl")] == ["stop", "start", "stop"]
    assert any("golden-restore" in " ".join(argv) and str(drill.MAKE_CLUSTER) in argv for argv in programs.started)


def test_a_drill_that_finds_a_difference_fails_and_is_kept(drilled: list[str], programs: Programs, tmp_path: Path) -> None:
    drilled.append("public.a: 2 rows")
    with pytest.raises(core.Problem, match=r"public\.a: 2 rows") as caught:
        drill.drill(BACKUP)
    assert caught.value.code == core.CHECK_FAILED
    assert json.loads((tmp_path / "last.json").read_text())["ok"] is False
    assert programs.named("systemctl")[-1][0] == "stop"


@contextmanager
def answering(directory: Path, answer: bytes, *, way: Path | None = None) -> Iterator[int]:
    """Answer each connection over TLS by the same bytes, at a port or at the UNIX socket ``way``."""
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    run.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-subj", "/CN=a",
         "-keyout", key, "-out", certificate], timeout=OPENSSL_SECONDS,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with socket.socket(socket.AF_UNIX) if way else socket.socket() as listener:
        listener.bind(str(way) if way else ("127.0.0.1", 0))
        listener.listen()

        def serve() -> None:
            while True:
                try:
                    plain, _address = listener.accept()
                except OSError:
                    return
                with plain, context.wrap_socket(plain, server_side=True) as connection:
                    connection.recv(4096)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield 0 if way else listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize(
    ("answer", "seen"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", ""),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 12\r\n\r\nno database\n", "/health: 503 no database"),
        (b"what\r\n\r\n", "/health: BadStatusLine: what\r\n"),
    ],
)  # fmt: skip
def test_health_is_an_answer_over_tls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: bytes, seen: str) -> None:
    monkeypatch.setattr(health, "NAMES", tmp_path / "names")
    (tmp_path / "names").write_text("a.example b.example\n")
    with answering(tmp_path, answer) as port:
        monkeypatch.setattr(health, "ADDRESS", ("127.0.0.1", port))
        assert health.wait_healthy(seconds=0) == seen


def test_a_unit_without_network_reaches_the_web_server_by_a_socket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(health, "NAMES", tmp_path / "names")
    (tmp_path / "names").write_text("a.example\n")
    monkeypatch.setattr(health, "ADDRESS", ("127.0.0.1", 0))
    monkeypatch.setenv(health.WEB_SERVER, str(tmp_path / "web.sock"))
    assert "FileNotFoundError" in health.wait_healthy(seconds=0)
    with answering(tmp_path, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", way=tmp_path / "web.sock"):
        assert health.wait_healthy(seconds=0) == ""


def test_the_path_is_that_of_the_contract(tmp_path: Path) -> None:
    contract = tmp_path / "contract.json"
    assert health.declared_path(contract) == "/health"
    contract.write_text('{"health": {"path": "/status/live"}}')
    assert health.declared_path(contract) == "/status/live"
    for damaged in ("[", "[]", '{"health": null}'):
        contract.write_text(damaged)
        assert health.declared_path(contract) == "/health"


def test_a_page_answers_or_leads_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"/": 200, "/login": 302, "/gone": 404, "/broken": 500, "/none": 0}
    monkeypatch.setattr(health, "_status", lambda path, _server: (answers[path], f"{path}: {answers[path]}"))
    assert health.missing_page(["/", "/login"]) == ""
    problems = [health.missing_page(["/", path]) for path in ("/gone", "/broken", "/none")]
    assert problems == ["/gone: 404", "/broken: 500", "/none: 0"]


def test_a_server_that_does_not_serve_yet_is_asked_at_its_socket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(health, "NAMES", tmp_path / "names")
    (tmp_path / "names").write_text("a.example b.example\n")
    asked = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "server"))
        listener.listen()

        def serve() -> None:
            connection, _address = listener.accept()
            with connection:
                asked.append(connection.recv(4096).decode())
                connection.sendall(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        assert health.missing_page(["/about"], tmp_path / "server") == ""
        thread.join()
    assert asked[0].split("\r\n") == [
        "GET /about HTTP/1.1", "Host: a.example", "X-Forwarded-For: 127.0.0.1", "X-Forwarded-Proto: https",
        "Connection: close", "", "",
    ]  # fmt: skip
    assert "FileNotFoundError" in health.page_problem("/", tmp_path / "none")


def test_no_web_server_is_not_healthy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(health, "NAMES", tmp_path / "names")
    monkeypatch.setattr(health, "PAUSE_SECONDS", 0)
    assert "FileNotFoundError" in health.wait_healthy(seconds=0)
    answers = iter(["not yet", "not yet", ""])
    monkeypatch.setattr(health, "_ask", lambda _path, _server: next(answers))
    assert health.wait_healthy() == ""
    assert list(answers) == []
