"""Python packages: resolved and fetched by the real pip from an index on the loopback interface, checked by hash."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from build.core import files
from build.core.errors import CommandFailed, SpecError, StepFailed
from build.packages import wheel_lock, wheels
from build.packages.wheel_lock import Pin, Wheel
from tests.fakes import Fakes
from tests.unit.helpers import Mirror


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    """An index that pip takes for the only one."""
    (tmp_path / "index").mkdir()
    with Mirror(tmp_path / "index") as server:
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.address}/simple")
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        yield server


def add(index: Mirror, name: str, version: str, *, needs: str = "", tag: str = "py3-none-any") -> Wheel:
    """Put a tiny wheel onto the index."""
    simple = index.root / "simple" / name.lower().replace("_", "-")
    simple.mkdir(parents=True, exist_ok=True)
    path = simple / f"{name}-{version}-{tag}.whl"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + (f"Requires-Dist: {needs}\n" if needs else "")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", "")
        archive.writestr(f"{name}-{version}.dist-info/METADATA", metadata)
        archive.writestr(f"{name}-{version}.dist-info/WHEEL", f"Wheel-Version: 1.0\nGenerator: test\nTag: {tag}\n")
        archive.writestr(f"{name}-{version}.dist-info/RECORD", "")
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    with (simple / "index.html").open("a") as stream:
        stream.write(f'<a href="{path.name}#sha256={checksum}">{path.name}</a>\n')
    return Wheel(name.lower().replace("_", "-"), version, checksum)


def test_what_is_resolved_is_rendered_and_fetched(index: Mirror, tmp_path: Path) -> None:
    helper = add(index, "a_helper", "0.5", tag="cp313-cp313-manylinux_2_17_x86_64")
    add(index, "a_helper", "0.6", tag="cp312-cp312-manylinux_2_17_x86_64")  # not for the guest's Python
    demo = add(index, "Demo", "1.0", needs="a_helper")
    requirements = tmp_path / "requirements.in"
    requirements.write_text("demo\n")
    found = wheels.resolve(requirements, scratch=tmp_path)
    assert found == (helper, demo)

    lock = tmp_path / "requirements.lock"
    lock.write_text(wheel_lock.render(found))
    house = wheels.fetch(lock, cache=tmp_path / "cache")
    assert sorted(path.name for path in house.iterdir()) == [
        "Demo-1.0-py3-none-any.whl",
        "a_helper-0.5-cp313-cp313-manylinux_2_17_x86_64.whl",
    ]
    asked = len(index.requests)
    assert wheels.fetch(lock, cache=tmp_path / "cache") == house
    assert len(index.requests) == asked, "what is here is not asked for again"


def test_a_wheel_with_another_hash_is_refused_and_nothing_is_kept(index: Mirror, tmp_path: Path) -> None:
    add(index, "demo", "1.0")
    lock = tmp_path / "requirements.lock"
    lock.write_text(wheel_lock.render([Wheel("demo", "1.0", "0" * 64)]))
    with pytest.raises(StepFailed) as caught:
        wheels.fetch(lock, cache=tmp_path / "cache")
    assert caught.value.brief == f"pip cannot fetch the wheels of {lock}"
    assert "DO NOT MATCH THE HASHES" in caught.value.details
    assert caught.value.hint == (
        "check that the package index is reachable; if a hash differs, write the lock again: nox -s lock"
    )
    assert sorted(path.name for path in (tmp_path / "cache" / "wheels").iterdir()) == [".fetch.lock", ".scratch.lock"]


def test_two_that_fetch_at_once_share_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, downloads = tmp_path / "requirements.lock", list[Path]()
    lock.write_text(wheel_lock.render([Wheel("demo", "1.0", "0" * 64)]))

    def download(_lock: Path, wheelhouse: Path, **_names: Path) -> None:
        downloads.append(wheelhouse)
        wheelhouse.mkdir()

    monkeypatch.setattr(wheels, "_download", download)
    with ThreadPoolExecutor() as pool, files.lock(tmp_path / "cache" / "wheels" / ".fetch.lock"):
        first, second = (pool.submit(wheels.fetch, lock, cache=tmp_path / "cache") for _ in range(2))
        assert not wait([first, second], timeout=0.2).done, "both wait for the lock"
    assert first.result() == second.result() == downloads[0]
    assert len(downloads) == 1


def test_every_package_without_a_wheel_is_named(index: Mirror, tmp_path: Path) -> None:
    good = add(index, "demo", "1.0", tag="cp313-cp313-manylinux_2_34_x86_64")
    for name in ("docopt", "other"):
        (index.root / "simple" / name).mkdir()
        source = f"{name}-0.6.2.tar.gz"
        (index.root / "simple" / name / "index.html").write_text(f'<a href="{source}#sha256={"1" * 64}">{source}</a>\n')
    lock = tmp_path / "requirements.lock"
    lock.write_text(wheel_lock.render([good, Wheel("docopt", "0.6.2", "1" * 64), Wheel("other", "0.6.2", "1" * 64)]))
    with pytest.raises(StepFailed, match="only wheels are installed on a clone, and the package index has none") as caught:
        wheels.fetch(lock, cache=tmp_path / "cache")
    assert caught.value.details.splitlines() == [
        "docopt 0.6.2 has no wheel for CPython 3.13 on x86_64", "other 0.6.2 has no wheel for CPython 3.13 on x86_64",
    ]  # fmt: skip
    assert "put it into wheels/ of the project" in caught.value.hint


def test_markers_are_evaluated_for_the_guest(index: Mirror, tmp_path: Path) -> None:
    needs = ["new; python_version >= '3.13'", "old; python_version < '3.13'", "windows; sys_platform == 'win32'"]
    demo = add(index, "demo", "1.0", needs="\nRequires-Dist: ".join(needs))
    new = add(index, "new", "1.0")
    (tmp_path / "requirements.in").write_text("demo\n")
    assert wheels.resolve(tmp_path / "requirements.in", scratch=tmp_path) == (demo, new)


def test_a_requirement_that_does_not_exist_is_told(index: Mirror, tmp_path: Path) -> None:
    requirements = tmp_path / "requirements.in"
    requirements.write_text("absent\n")
    with pytest.raises(CommandFailed) as caught:
        wheels.resolve(requirements, scratch=tmp_path)
    assert "No matching distribution found for absent" in caught.value.details
    assert caught.value.hint == f"check {requirements}, and that the package index is reachable"


def test_a_wheel_without_a_hash_is_refused(fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = {"install": [{"download_info": {}, "metadata": {"name": "Demo", "version": "1.0"}}]}
    fake = fakes.command("pip", write={str(tmp_path / "report.json"): json.dumps(report)})
    monkeypatch.setattr(wheels, "pip", lambda *words: [str(fake.path), *words])
    with pytest.raises(StepFailed, match=r"demo 1\.0 comes without a hash from the package index"):
        wheels.resolve(tmp_path / "requirements.in", scratch=tmp_path)


def test_the_lock_is_in_pips_own_format() -> None:
    assert wheel_lock.render([Wheel("a", "1", "0" * 64), Wheel("b", "2", "1" * 64)]) == (
        "# Wheels for CPython 3.13 on x86_64, written by `nox -s lock` from requirements.in.\n"
        f"a==1 \\\n    --hash=sha256:{'0' * 64}\n"
        f"b==2 \\\n    --hash=sha256:{'1' * 64}\n"
    )


def test_a_lock_is_read_as_it_is_written_and_as_others_write_it(tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text(wheel_lock.render([Wheel("b", "2", "1" * 64), Wheel("a", "1+x", "0" * 64)]))
    assert wheel_lock.parse(lock) == (Pin("a", "1+x", ("0" * 64,)), Pin("b", "2", ("1" * 64,)))
    lock.write_text(f"Zope.Web_x[extra]==1.0 \\\n  --hash=sha256:{'2' * 64} \\\n  --hash=sha256:{'1' * 64}\n    # via y\n")
    assert wheel_lock.parse(lock) == (Pin("zope-web-x", "1.0", ("1" * 64, "2" * 64)),)


@pytest.mark.parametrize("line", ["django", "django>=5"])
def test_a_line_that_names_no_file_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "requirements.lock").write_text(line + "\n")
    with pytest.raises(SpecError) as caught:
        wheel_lock.parse(tmp_path / "requirements.lock")
    assert caught.value.render() == (
        f"{tmp_path}/requirements.lock: {line!r} is not NAME==VERSION with its --hash=sha256: {wheel_lock.REMEDY}\n"
        "  -> write it again: nox -s lock -- wheels"
    )
