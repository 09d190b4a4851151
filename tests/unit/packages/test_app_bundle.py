"""Bundles: the same directory gives the same bytes, golden-deploy accepts them, and refuses everything else."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from build.core.errors import SpecError
from build.packages import app_bundle, wheels
from tests.unit.golden_modules import golden_module

golden = golden_module("golden.core")
receiver = golden_module("golden.bundle")
WSGI = "project.wsgi:application"


def wheel(directory: Path, name: str, version: str = "1.0", *, tag: str = "py3-none-any", metadata: str = "") -> Path:
    """Write a wheel with nothing in it."""
    path = directory / f"{name}-{version}-{tag}.whl"
    directory.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{metadata}"
        archive.writestr(zipfile.ZipInfo(f"{name}-{version}.dist-info/METADATA"), text)
    return path


def locked(*wheels_: Path) -> str:
    """Return the text of a lock for wheels."""
    names = [path.name.split("-")[:2] for path in wheels_]
    sums = [hashlib.sha256(path.read_bytes()).hexdigest() for path in wheels_]
    pairs = zip(names, sums, strict=True)
    return "".join(f"{name}=={version} \\\n    --hash=sha256:{one}\n" for (name, version), one in pairs)


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """The content of the package index."""
    for name in ("demo", "django", "gunicorn"):
        wheel(tmp_path / "house", name)
    return tmp_path / "house"


@pytest.fixture
def application(tmp_path: Path, house: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An application with everything that does and does not belong into its bundle."""
    directory = tmp_path / "My App"
    own = ("manage.py", "project/__init__.py", "project/static/a b.css")
    secret = ("db.sqlite3", "media/a.jpg", "server.key", "cert.pem", "node_modules/x/a.js", "venv/pyvenv.cfg", "venv/x.py")
    for path in (*own, "project/__pycache__/x.pyc", ".git/config", ".env", *secret):
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_text(path)
    (directory / "project/wsgi.py").write_text("application = 1\n")
    (directory / "requirements.lock").write_text(locked(*sorted(house.iterdir())))
    monkeypatch.setattr(wheels, "fetch", lambda _lock, **_names: house)
    return directory


def make(application: Path, name: str = "app.bundle") -> tuple[Path, str]:
    target = application.parent / name
    return target, app_bundle.make(application, target, cache=application.parent, wsgi=WSGI)


def problems(application: Path, **options: str) -> str:
    """Return what is reported about an application that cannot be bundled."""
    target = application.parent / "refused.bundle"
    with pytest.raises(SpecError, match="cannot be bundled") as caught:
        app_bundle.make(application, target, cache=application.parent, **{"wsgi": WSGI, **options})
    assert not target.exists()
    return caught.value.details


def altered(source: Path, change: Callable[[list[tuple[tarfile.TarInfo, bytes]]], Any]) -> tuple[Path, str]:
    """Write a bundle whose members were modified by ``change``; return it with its correct hash."""
    with tarfile.open(source) as archive:
        members = [(member, archive.extractfile(member).read()) for member in archive]  # type: ignore[union-attr]
    change(members)
    target = source.with_name("altered.bundle")
    with tarfile.open(target, "w") as archive:
        for member, content in members:
            member.size = len(content) if member.isreg() else 0
            archive.addfile(member, io.BytesIO(content))
    return target, hashlib.sha256(target.read_bytes()).hexdigest()


def test_a_bundle_that_changes_while_it_is_read_is_refused(application: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who may write to the file replaces its content after it was hashed."""
    path, digest = make(application)
    (application / "manage.py").write_text("another")
    other, _digest = make(application, "other.bundle")
    monkeypatch.setattr(receiver.hashlib, "file_digest", _exchanging(path, other.read_bytes()))
    with pytest.raises(golden.Problem, match="changed while it was read"):
        receiver.read(path, digest)


def _exchanging(path: Path, content: bytes) -> Callable[..., Any]:
    real = hashlib.file_digest

    def digest(stream: Any, kind: str) -> Any:
        found = real(stream, kind)
        path.write_bytes(content)
        return found

    return digest


def test_a_named_pipe_is_no_bundle(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(golden.Problem, match="not a regular file"):
        receiver.read(tmp_path / "pipe", "0" * 64)


def info(name: str, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, "/etc/passwd"
    return made


# --- making -----------------------------------------------------------------------------------------------------------


def test_what_is_made_is_taken(application: Path, tmp_path: Path) -> None:
    path, digest = make(application)
    found = receiver.read(path, digest)
    assert (found.name, found.digest) == ("my-app", digest[:12])
    into = tmp_path / "release"
    into.mkdir()
    receiver.unpack(found, into)
    assert sorted(str(one.relative_to(into)) for one in into.rglob("*") if one.is_file()) == [
        "code/manage.py", "code/project/__init__.py", "code/project/static/a b.css", "code/project/wsgi.py",
        "requirements.lock", *(f"wheels/{name}-1.0-py3-none-any.whl" for name in ("demo", "django", "gunicorn")),
    ]  # fmt: skip
    assert (into / "code/manage.py").read_text() == "manage.py"
    assert {one.stat().st_mode & 0o777 for one in into.rglob("*") if one.is_file()} == {0o600}
    assert receiver.changed(into, found.files) == []
    (into / "code/manage.py").write_text("other")
    (into / "requirements.lock").unlink()
    assert receiver.changed(into, found.files) == ["code/manage.py", "requirements.lock"]


def test_same_directory_same_bytes(application: Path) -> None:
    first, digest = make(application)
    for path in application.rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o700)
    second, again = make(application, "again.bundle")
    assert first.read_bytes() == second.read_bytes()
    assert digest == again == hashlib.sha256(first.read_bytes()).hexdigest()


@pytest.mark.parametrize("missing", ["manage.py", "requirements.lock"])
def test_what_an_application_needs(application: Path, missing: str) -> None:
    (application / missing).unlink()
    assert f"{missing} is missing" in problems(application)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("other==1.0", "other==1.0 has no hash"),
        ("other==1.0 --hash=md5:0", "no SHA-256 hash"),
        ("-r other.txt", "refers to another file"),
        ("-e .", "is not a wheel"),
        ("other @ https://example.org/other.whl", "is an address"),
        ("./other", "is an address"),
        ("other>=1.0", "is not NAME==VERSION"),
        ("--no-binary :all:", "only wheels are installed"),
        ("--frobnicate", "an unknown option"),
        ("demo==2.0 --hash=sha256:" + "1" * 64, "demo is in it twice, as 1.0 and 2.0"),
        ("other==1.0 ; frobnicate == '3'", "other==1.0"),
    ],
)
def test_lines_of_a_lock_that_cannot_be_used(application: Path, line: str, reason: str) -> None:
    with (application / "requirements.lock").open("a") as stream:
        stream.write(f"# a comment\n\n{line}\n")
    assert reason in problems(application)


@pytest.mark.parametrize(
    "line",
    [
        "--index-url https://user:secret@index.example.org/simple", "-i https://index.example.org", "--find-links=wheels",
        "--extra-index-url https://index.example.org", "--trusted-host index.example.org", "--only-binary :all:", "--pre",
        f"other==1.0 ; python_version < '3.13' --hash=sha256:{'1' * 64}",
        f"other==1.0 ; sys_platform == 'win32' \\\n    --hash=sha256:{'1' * 64}",
    ],
)  # fmt: skip
def test_lines_of_a_lock_that_tools_write(application: Path, line: str) -> None:
    plain = make(application)[0].read_bytes()
    lock = application / "requirements.lock"
    lock.write_bytes(b"\xef\xbb\xbf" + f"{line}\n\n{lock.read_text()}".replace("\n", "\r\n").encode())
    assert make(application)[0].read_bytes() == plain, "what travels is the pins for the clone, and no address"


def test_markers_are_those_of_the_clone(application: Path, house: Path) -> None:
    new = wheel(house, "audioop_lts")
    lock = application / "requirements.lock"
    marked = locked(new).replace(" \\", " ; python_version >= '3.13' and platform_machine == 'x86_64' \\")
    lock.write_text(lock.read_text() + marked)
    path, digest = make(application)
    assert "audioop-lts==1.0 \\" in _content(path, "requirements.lock").decode()
    assert "wheels/audioop_lts-1.0-py3-none-any.whl" in receiver.read(path, digest).files


def _content(path: Path, name: str) -> bytes:
    with tarfile.open(path) as archive:
        stream = archive.extractfile(name)
        assert stream is not None
        return stream.read()


@pytest.mark.parametrize("name", ["django", "gunicorn"])
def test_a_package_that_the_image_needs(application: Path, house: Path, name: str) -> None:
    others = [path for path in sorted(house.iterdir()) if name not in path.name]
    (application / "requirements.lock").write_text(locked(*others))
    assert f"{name} is missing, but the image needs it" in problems(application)


@pytest.mark.parametrize(
    ("drivers", "problem"),
    [(["psycopg", "psycopg_binary"], ""), (["psycopg2_binary"], ""), (["psycopg", "psycopg2_binary"], ""),
     ([], "no driver for PostgreSQL"), (["psycopg"], "psycopg alone looks for a library that a clone does not open")],
)  # fmt: skip
def test_a_driver_for_postgresql(application: Path, house: Path, drivers: list[str], problem: str) -> None:
    (application / "project/settings.py").write_text("DATABASES = {'a': {'ENGINE': 'django.db.backends.postgresql'}}\n")
    for driver in drivers:
        wheel(house, driver)
    (application / "requirements.lock").write_text(locked(*sorted(house.iterdir())))
    if problem:
        assert problem in problems(application)
    else:
        make(application)


@pytest.mark.parametrize(
    ("file", "remedy"),
    [("uv.lock", "uv export --format requirements-txt --no-dev --no-emit-project -o requirements.lock, from uv.lock"),
     ("poetry.lock", "poetry export --only main"), ("Pipfile.lock", "pipenv requirements --hash"),
     ("pyproject.toml", "pip-compile --generate-hashes --output-file=requirements.lock pyproject.toml, with Python 3.13"),
     ("README", "pip-compile --generate-hashes --output-file=requirements.lock, with Python 3.13")],
)  # fmt: skip
def test_a_lock_is_written_by_the_projects_own_tool(application: Path, file: str, remedy: str) -> None:
    (application / "requirements.lock").unlink()
    (application / file).touch()
    assert f"requirements.lock is missing: {remedy}" in problems(application)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_a_lock_as_powershell_writes_it(application: Path, encoding: str) -> None:
    lock = application / "requirements.lock"
    lock.write_bytes(lock.read_text().replace("\n", "\r\n").encode(encoding))
    make(application)


def test_a_lock_that_is_no_text_is_a_problem(application: Path) -> None:
    (application / "requirements.lock").write_bytes(b"django==5.2\n# f\xfcr\n")
    assert "requirements.lock: byte 15 is not UTF-8" in problems(application)


def test_a_package_that_pip_compile_leaves_out(application: Path, house: Path) -> None:
    wheel(house, "demo", metadata="Requires-Dist: setuptools\n")
    (application / "requirements.lock").write_text(locked(*sorted(house.iterdir())))
    assert "demo needs setuptools on Python 3.13, but the lock lacks it: pip-compile leaves it out without" in problems(
        application
    )


def test_the_directory_above_the_project(application: Path) -> None:
    (application / "backend").mkdir()
    (application / "manage.py").rename(application / "backend/manage.py")
    assert "bundle the directory that has it (backend)" in problems(application)


def test_a_manage_py_that_is_not_valid(application: Path) -> None:
    (application / "manage.py").write_text("print 'x'\n")
    assert "manage.py: " in problems(application)


def test_settings_that_are_chosen_while_manage_py_runs(application: Path) -> None:
    chosen = "import os\nos.environ.setdefault('DJANGO_SETTINGS_MODULE', 'a.' + os.environ['KIND'])\n"
    (application / "manage.py").write_text(chosen)
    assert "write it into golden-app.yaml (entry: {settings: MODULE})" in problems(application)
    declare(application, "entry: {settings: a.live}\n")
    make(application)


def test_a_package_with_the_name_of_the_uploads(application: Path) -> None:
    (application / "media/__init__.py").touch()
    path, digest = make(application)
    assert "code/media/__init__.py" in receiver.read(path, digest).files


def test_translations_that_are_not_compiled_are_named(application: Path, capsys: pytest.CaptureFixture[str]) -> None:
    messages = application / "project/locale/de/LC_MESSAGES"
    messages.mkdir(parents=True)
    (messages / "django.po").touch()
    make(application)
    assert "project/locale/de/LC_MESSAGES/django.po: compilemessages" in capsys.readouterr().err
    (messages / "django.mo").touch()
    make(application)
    assert "compilemessages" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ("Requires-Dist: more>=2; python_version>='3.13'\n", "demo needs more>=2 on Python 3.13, but the lock lacks it"),
        ("Requires-Dist: django>=2\n", "demo needs django>=2 on Python 3.13, but the lock has 1.0"),
        ("Requires-Python: >=3.14\n", "it needs Python >=3.14, but the clone has 3.13"),
        ("Requires-Dist: lacking; python_version<'3.13'\n", ""),
        ("Requires-Dist: lacking; extra=='more'\nRequires-Python: >=3.8\n", ""),
    ],
)
def test_what_wheels_need_is_in_the_lock(application: Path, house: Path, metadata: str, reason: str) -> None:
    wheel(house, "demo", metadata=metadata)
    (application / "requirements.lock").write_text(locked(*sorted(house.iterdir())))
    if reason:
        assert reason in problems(application)
    else:
        make(application)


def test_wheels_of_the_project(application: Path, house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fetch(lock: Path, **_names: object) -> Path:
        asked.append(lock.read_text())
        return house

    monkeypatch.setattr(wheels, "fetch", fetch)
    own = wheel(application / "wheels", "docopt", "0.6.2", tag="py2.py3-none-any")
    built = wheel(application / "wheels", "fast_c", tag="cp313-cp313-linux_x86_64")
    lock = application / "requirements.lock"
    lock.write_text(f"{lock.read_text()}docopt==0.6.2 --hash=sha256:{'1' * 64}\nfast-c==1.0\n")
    path, digest = make(application)
    assert {f"wheels/{own.name}", f"wheels/{built.name}"} <= set(receiver.read(path, digest).files)
    assert hashlib.sha256(own.read_bytes()).hexdigest() in _content(path, "requirements.lock").decode()
    assert "docopt" not in asked[0]
    wheel(application / "wheels", "old_c", tag="cp311-cp311-linux_x86_64")
    wheel(application / "wheels", "stray")
    (application / "wheels/damaged-1.0-py3-none-any.whl").write_bytes(b"x")
    (application / "wheels/README").write_text("x")
    told = problems(application)
    assert "wheels/old_c-1.0-cp311-cp311-linux_x86_64.whl is not for CPython 3.13" in told
    assert "the lock has no line stray==1.0" in told
    assert "wheels/damaged-1.0-py3-none-any.whl is damaged" in told
    assert "wheels/README does not have the name of a wheel" in told


@pytest.mark.parametrize(
    ("wsgi", "content", "reason"),
    [
        ("mysite.wsgi:application", "application = 1\n", "there is project.wsgi:application: write"),
        ("project.wsgi:app", "application = 1\n", "project/wsgi.py has no app"),
        ("project.wsgi:application", "application = = 1\n", "project/wsgi.py: invalid syntax"),
        ("project.wsgi:App", "class App: pass\n", ""),
        ("project.wsgi:application", "try:\n    from x import application\nexcept ImportError:\n    application = 1\n", ""),
        ("project.wsgi:application", "from other import *\n", ""),
        ("project.wsgi:application", "import newrelic\napplication = newrelic.wrap(get())\n", ""),
    ],
)
def test_the_callable_that_the_image_starts(application: Path, wsgi: str, content: str, reason: str) -> None:
    (application / "project/wsgi.py").write_text(content)
    if reason:
        assert reason in problems(application, wsgi=wsgi)
    else:
        app_bundle.make(application, application.parent / "app.bundle", cache=application.parent, wsgi=wsgi)


def declare(application: Path, text: str) -> None:
    (application / "golden-app.yaml").write_text(text)


def test_the_contract_is_checked_with_everything_else(application: Path) -> None:
    declare(application, "web: {methods: [PUSH]}\ndestinations: [smtp]\n")
    (application / "requirements.lock").unlink()
    text = problems(application)
    assert "golden-app.yaml: web.methods[0]: 'PUSH': write one of GET" in text
    assert "golden-app.yaml: destinations[0]: 'smtp': write HOST:PORT" in text
    assert "requirements.lock is missing" in text


def test_the_contract_travels(application: Path) -> None:
    declare(application, "web: {body: 5M}\n")
    path, digest = make(application)
    assert "code/golden-app.yaml" in receiver.read(path, digest).files


def test_a_declared_entry_has_to_be_there(application: Path) -> None:
    declare(application, "entry: {wsgi: 'mysite.wsgi:application', settings: project.live}\n")
    text = problems(application, wsgi=WSGI)
    assert "starts mysite.wsgi:application, but the application has no module mysite.wsgi; there is project.wsgi" in text
    assert "the settings module is project.live, but the application has no such file" in text


def test_a_project_in_the_usual_layout_declares_nothing(application: Path) -> None:
    (application / "mysite").mkdir()
    for name in ("settings.py", "wsgi.py"):
        (application / "mysite" / name).write_text("application = 1\n")
    (application / "manage.py").write_text("import os\nos.environ.setdefault('DJANGO_SETTINGS_MODULE', 'mysite.settings')\n")
    app_bundle.make(application, application.parent / "app.bundle", cache=application.parent, wsgi="other.wsgi:application")


def test_an_asgi_entry_needs_its_server(application: Path, house: Path) -> None:
    (application / "project/asgi.py").write_text("application = 1\n")
    declare(application, "entry: {asgi: 'project.asgi:application'}\nweb: {websockets: [/ws/]}\n")
    text = problems(application)
    assert "uvicorn is missing" in text
    assert "uvicorn-worker is missing" in text
    assert "no package for WebSockets" in text
    for name in ("uvicorn", "uvicorn_worker", "websockets"):
        wheel(house, name)
    (application / "requirements.lock").write_text(locked(*sorted(house.iterdir())))
    make(application)


def test_a_check_writes_nothing(application: Path) -> None:
    before = sorted(application.parent.rglob("*"))
    assert app_bundle.make(application, None, cache=application.parent, wsgi=WSGI) == ""
    assert sorted(application.parent.rglob("*")) == before
    (application / "project/wsgi.py").unlink()
    with pytest.raises(SpecError, match="cannot be bundled"):
        app_bundle.make(application, None, cache=application.parent, wsgi=WSGI)


def test_what_is_left_out_is_shown(application: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (application / ".goldenignore").write_text("# the office's\n/project/drafts/\n!cert.pem\n.env\n")
    for name in ("project/drafts/a.txt", "project/static/media/logo.svg", ".well-known/security.txt"):
        (application / name).parent.mkdir(parents=True, exist_ok=True)
        (application / name).write_text("x")
    path, digest = make(application)
    names = set(receiver.read(path, digest).files)
    assert {"code/cert.pem", "code/project/static/media/logo.svg", "code/.well-known/security.txt"} <= names
    kept_back = ("drafts", ".git", "node_modules", ".env", "venv", "sqlite")
    assert not [name for name in names if any(part in name for part in kept_back)]
    shown = capsys.readouterr().err
    for line in (".git/ (.*)", "db.sqlite3 (*.sqlite3)", "media/ (/media/)", "server.key (*.key)", ".env (.env)",
                 "node_modules/ (node_modules/)", "venv/ (a virtual environment)", "project/__pycache__/ (__pycache__/)",
                 "project/drafts/ (/project/drafts/)"):  # fmt: skip
        assert f"left out: {line}" in shown


@pytest.mark.parametrize(
    "name",
    [
        "Screenshot 2024-01-01 at 10:00:00.png", "Übersicht für Björn.pdf", "日本語.txt", "it's & 100 %.txt", '"quoted".txt',
        "a" * 200 + ".txt", "-rf", "$HOME;x", "#1.css", "a+b=c@2x.png", "été.js", "{{ cookie }}.html",
        "a/" * 90 + "deep.txt",
    ],
)  # fmt: skip
def test_names_that_projects_have(application: Path, tmp_path: Path, name: str) -> None:
    (application / "project" / name).parent.mkdir(parents=True, exist_ok=True)
    (application / "project" / name).write_text("x")
    path, digest = make(application)
    found = receiver.read(path, digest)
    assert f"code/project/{name}" in found.files
    (tmp_path / "into").mkdir()
    receiver.unpack(found, tmp_path / "into")
    assert (tmp_path / "into/code/project" / name).read_text() == "x"


def test_secrets_are_never_taken_in(application: Path) -> None:
    (application / ".goldenignore").write_text("!.env\n!*.env\n!.git/\n")
    told = problems(application)
    assert "'.env': secrets and repositories are never in a bundle" in told
    assert "'.git/config': secrets" in told


def test_every_problem_at_once(application: Path) -> None:
    (application / "link").symlink_to("/etc/passwd")
    (application / "inside").symlink_to("manage.py")
    (application / "gone").symlink_to("nowhere")
    (application / "shared").symlink_to("project")
    os.mkfifo(application / "fifo")
    (application / "new\nline").write_text("x")
    (application / "back\\slash").write_text("x")
    (application / ("ü" * 121)).write_text("x")
    (os.fsencode(application) + b"/\xff").decode("utf-8", "surrogateescape")
    with open(os.fsencode(application) + b"/latin-\xfc", "wb") as stream:  # noqa: PTH123 (a name that is not text)
        stream.write(b"x")
    (application / "manage.py").unlink()
    told = problems(application, wsgi="other:app")
    for reason in (
        "'link' is a link to a file outside",
        "'inside' cannot be read",
        "'gone' cannot be read",
        "'shared' is a link to a directory",
        "'fifo' is neither a file nor a directory",
        "'new\\nline'",
        "'back\\\\slash'",
        "the name is longer than 240 bytes",
        "'latin-\\udcfc'",
        "manage.py is missing",
        "no module other",
    ):
        assert reason in told, reason


def test_a_link_within_the_project_is_the_file(application: Path) -> None:
    (application / "inside.py").symlink_to("manage.py")
    path, _digest = make(application)
    assert _content(path, "code/inside.py") == b"manage.py"


def test_both_sides_have_the_same_limits() -> None:
    for limit in ("NEVER_TAKEN", "LONGEST_PART", "LONGEST_NAME", "LARGEST_FILE", "LARGEST_BUNDLE", "MOST_FILES"):
        assert getattr(app_bundle, limit) == getattr(receiver, limit), limit


@pytest.mark.parametrize("limit", ["LARGEST_FILE", "LARGEST_BUNDLE", "MOST_FILES"])
def test_what_is_too_large(application: Path, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(app_bundle, limit, 3)
    assert problems(application)


def test_a_directory_of_any_name(application: Path) -> None:
    for name in ("日本", "-x-", "A" * 80):
        moved = application.rename(application.with_name(name))
        path, digest = make(moved)
        assert receiver.read(path, digest).name in ("application", "x", "a" * 64)
        moved.rename(application)


# --- taking -----------------------------------------------------------------------------------------------------------


def refused(path: Path, digest: str) -> str:
    with pytest.raises(golden.Problem) as caught:
        receiver.read(path, digest)
    assert caught.value.code == golden.CHECK_FAILED
    return str(caught.value)


def test_another_hash(application: Path) -> None:
    path, digest = make(application)
    assert f"has the hash {digest}, and {'1' * 64} was asked for" in refused(path, "1" * 64)


@pytest.mark.parametrize("given", ["", "abc", "g" * 64, "0" * 63])
def test_what_is_no_hash(given: str) -> None:
    with pytest.raises(golden.Problem, match="is no SHA-256"):
        receiver.checked_digest(given)
    assert receiver.checked_digest("A" * 64 + "\n") == "a" * 64


@pytest.mark.parametrize(
    "name",
    [
        "code/../x", "code/./x", "code//x", "code", "code/", "/code/x", "other/x", "code/a\nb", "code/\u200e/x",
        "code/a\u2028b",
        "code/.env", "code/a/.git/x", "code/.env.local", "code/a\\b", "code/\x1b[0m",
        "code/" + "a" * 241, "code/" + "ü" * 121, "code/" + "a/" * 600, "../x",
        "wheels/../../x", "",
    ],
)  # fmt: skip
def test_names_that_are_refused(application: Path, name: str) -> None:
    assert not receiver.safe(name)
    if name:
        path, digest = altered(make(application)[0], lambda members: members.append((info(name), b"x")))
        assert "the bundle is refused" in refused(path, digest)


# The header of a GNU sparse file contains its size.
KINDS = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE]


@pytest.mark.parametrize("kind", KINDS)
def test_only_plain_files(application: Path, kind: bytes) -> None:
    path, digest = altered(make(application)[0], lambda members: members.append((info("code/x", kind), b"")))
    assert "is not a plain file" in refused(path, digest)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda members: members.append((info("code/more.py"), b"x")), "'code/more.py' is not in the manifest"),
        (lambda members: members.append(members[1]), "is there twice"),
        (lambda members: members.pop(), "in the manifest is not there"),
        (lambda members: members.reverse(), "it does not begin with manifest.json"),
        (lambda members: members.__setitem__(1, (members[1][0], b"other")), "is not what the manifest says"),
        (lambda members: members.__setitem__(0, (members[0][0], b"{")), "manifest.json: JSONDecodeError"),
        (lambda members: members.__setitem__(0, (members[0][0], b"[]")), "manifest.json: TypeError"),
        (lambda members: members.clear(), "it does not begin with manifest.json"),
    ],
)
def test_what_is_not_as_the_manifest_says(application: Path, change: Callable[[Any], Any], message: str) -> None:
    assert message in refused(*altered(make(application)[0], change))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", 2, "it has format 2"),
        ("name", "../x", "is no name of an application"),
        ("files", {}, "code/manage.py is missing"),
    ],
)
def test_manifests_that_are_refused(application: Path, key: str, value: object, message: str) -> None:
    def change(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        member, content = members[0]
        members[0] = (member, json.dumps(json.loads(content) | {key: value}).encode())

    assert message in refused(*altered(make(application)[0], change))


def test_a_lock_without_hashes_is_refused(application: Path) -> None:
    def change(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        lock = b"demo==1.0\n"
        manifest = json.loads(members[0][1])
        manifest["files"]["requirements.lock"] = {"bytes": len(lock), "sha256": hashlib.sha256(lock).hexdigest()}
        for number, (member, _content) in enumerate(members):
            if member.name in ("manifest.json", "requirements.lock"):
                members[number] = (member, json.dumps(manifest).encode() if number == 0 else lock)

    assert "requirements.lock: 'demo==1.0' has no hash" in refused(*altered(make(application)[0], change))


def test_sizes_are_bounded(application: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, digest = make(application)
    monkeypatch.setattr(receiver, "LARGEST_FILE", 3)
    assert "is larger than 3 bytes" in refused(path, digest)
    monkeypatch.undo()
    monkeypatch.setattr(receiver, "MOST_FILES", 2)
    assert "more than 2 files" in refused(path, digest)


def test_every_missing_end_is_found(application: Path) -> None:
    whole = make(application)[0].read_bytes()
    for length in range(0, len(whole) - tarfile.RECORDSIZE, 1024):
        short = application.parent / "short.bundle"
        short.write_bytes(whole[:length])
        assert "the bundle is refused" in refused(short, hashlib.sha256(whole[:length]).hexdigest())


def test_compressed_archives_are_refused(application: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.bundle"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(application, "code")
    assert "it is no tar archive" in refused(path, hashlib.sha256(path.read_bytes()).hexdigest())


def test_a_bundle_that_changes_after_the_check(application: Path, tmp_path: Path) -> None:
    path, digest = make(application)
    found = receiver.read(path, digest)
    changed, _ = altered(path, lambda members: members.__setitem__(2, (members[2][0], b"other")))
    changed.replace(path)
    (tmp_path / "into").mkdir()
    with pytest.raises(golden.Problem, match="changed while it was unpacked"):
        receiver.unpack(found, tmp_path / "into")


def test_addresses_are_https() -> None:
    for address in ("http://a.example/x", "file:///etc/passwd", "ftp://a.example/x"):
        with pytest.raises(golden.Problem, match="a bundle is a path or an https:// address"):
            receiver.checked_address(address)
