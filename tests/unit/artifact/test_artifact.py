"""An artifact is complete or absent, never changes, and every modification of it is detected."""

from __future__ import annotations

import hashlib
import json
import os
import queue
import threading
from pathlib import Path
from typing import Any

import pytest

from build.artifact import artifact
from build.artifact.artifact import Artifact
from build.core import files, run
from build.core.errors import SpecError, StepFailed
from tests.patience import PATIENCE_SECONDS
from tests.unit.artifacts import committable, parsed
from tests.unit.helpers import DATE

IMAGE = b"the pristine disk"


def manifest(image: bytes = IMAGE, *, key: str = "key-1", **changes: Any) -> dict[str, Any]:
    described = {"sha256": hashlib.sha256(image).hexdigest(), "bytes": len(image), "virtual_mib": 64}
    return committable(**{"image": described, "inputs": {"archive_date": DATE, "artifact_key": key}, **changes})


def contents(tmp_path: Path, image: bytes = IMAGE) -> dict[str, Path | str]:
    source = tmp_path / "source.qcow2"
    source.write_bytes(image)
    return {"image.qcow2": source, "verification/report.html": "<html>ü</html>", "logs/x.log": "log"}


def commit(tmp_path: Path, image: bytes = IMAGE, **changes: Any) -> Artifact:
    return artifact.commit(
        tmp_path / "artifacts", contents=contents(tmp_path, image), manifest=parsed(manifest(image, **changes))
    )


def unlock(path: Path) -> None:
    """Make an artifact writable again, as a user does who modifies it in spite of its permissions."""
    for one in [path, *path.rglob("*")]:
        one.chmod(0o755 if one.is_dir() else 0o644)


# --- committing -------------------------------------------------------------------------------------------------------


def test_an_artifact_is_named_by_its_image_and_holds_everything(tmp_path: Path) -> None:
    made = commit(tmp_path)
    checksum = hashlib.sha256(IMAGE).hexdigest()
    assert made.path.name == f"golden-1.2.3-{checksum[:12]}"
    assert (made.image, made.image.read_bytes()) == (made.path / "image.qcow2", IMAGE)
    found = sorted(path.relative_to(made.path).as_posix() for path in made.path.rglob("*") if path.is_file())
    assert found == ["SHA256SUMS", "image.qcow2", "logs/x.log", "manifest.json", "verification/report.html"]
    assert made.manifest.name == "golden"


def test_sums_are_what_sha256sum_reads(tmp_path: Path) -> None:
    made = commit(tmp_path)
    done = run.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=made.path, timeout=PATIENCE_SECONDS)
    assert done.stdout.count(": OK") == 4
    assert artifact.check(made.path) == []


def test_nothing_of_an_artifact_can_be_written(tmp_path: Path) -> None:
    made = commit(tmp_path)
    for path in [made.path, *made.path.rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o555 if path.is_dir() else 0o444), path


def test_it_is_read_only_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = files.commit_directory

    def look(hidden: Path, final: Path) -> None:
        assert not final.exists()
        seen.append((hidden / "image.qcow2").stat().st_mode & 0o777)
        real(hidden, final)

    monkeypatch.setattr(files, "commit_directory", look)
    commit(tmp_path)
    assert seen == [0o444]


def test_a_half_made_artifact_is_never_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "artifacts"

    def fail(directory: Path) -> str:
        assert (directory / "image.qcow2").is_file()
        assert artifact.committed(root) == []
        raise OSError("No space left on device")

    monkeypatch.setattr(artifact, "sums", fail)
    with pytest.raises(OSError, match="No space left"):
        commit(tmp_path)
    assert artifact.committed(root) == []
    assert sorted(path.name for path in root.iterdir()) == [".commit.lock", ".scratch.lock"]


def test_the_same_image_again_is_the_same_artifact(tmp_path: Path) -> None:
    first = commit(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in first.path.rglob("*")}
    assert commit(tmp_path).path == first.path
    assert {path: path.stat().st_mtime_ns for path in first.path.rglob("*")} == before
    assert len(artifact.committed(tmp_path / "artifacts")) == 1


def test_two_builds_may_commit_the_same_image_at_once(tmp_path: Path) -> None:
    parts, told = contents(tmp_path), parsed(manifest())
    for number in range(5):
        root, made = tmp_path / str(number), queue.SimpleQueue[Artifact]()

        def build(root: Path = root, made: queue.SimpleQueue[Artifact] = made) -> None:
            made.put(artifact.commit(root, contents=parts, manifest=told))

        crowd = [threading.Thread(target=build) for _ in range(4)]
        for thread in crowd:
            thread.start()
        for thread in crowd:
            thread.join()
        (path,) = artifact.committed(root)
        assert [made.get_nowait().path for _ in crowd] == [path] * 4


def test_another_image_is_another_artifact(tmp_path: Path) -> None:
    assert commit(tmp_path).path != commit(tmp_path, b"another disk").path
    assert len(artifact.committed(tmp_path / "artifacts")) == 2


def test_a_name_that_another_image_has_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact, "DIGEST_HEX", 0)
    made = commit(tmp_path)
    with pytest.raises(StepFailed) as caught:
        commit(tmp_path, b"another disk")
    assert caught.value.render() == f"{made.path} exists and holds another image\n  -> raise the version in golden.yaml"
    assert made.image.read_bytes() == IMAGE


def test_a_damaged_artifact_is_not_taken_for_the_one_that_was_built(tmp_path: Path) -> None:
    made = commit(tmp_path)
    unlock(made.path)
    made.image.write_bytes(b"tampered disk")
    with pytest.raises(StepFailed) as caught:
        commit(tmp_path)
    assert caught.value.render() == f"{made.path} is damaged\n    image.qcow2: changed\n  -> remove it, and build again"


def test_a_manifest_without_its_keys_is_never_committed(tmp_path: Path) -> None:
    broken = manifest()
    del broken["packages"], broken["retries"]
    with pytest.raises(SpecError) as caught:
        artifact.commit(tmp_path / "artifacts", contents=contents(tmp_path), manifest=parsed(broken))
    assert caught.value.brief == "manifest.json is not a manifest of schema 2"
    assert caught.value.details == "missing: packages, retries"
    assert not (tmp_path / "artifacts").exists()


# --- finding ----------------------------------------------------------------------------------------------------------


def test_an_artifact_is_found_by_the_key_of_its_inputs(tmp_path: Path) -> None:
    first, second = commit(tmp_path, key="key-1"), commit(tmp_path, b"another disk", key="key-2")
    root = tmp_path / "artifacts"
    for made, key in ((first, "key-1"), (second, "key-2")):
        found = artifact.find(root, key)
        assert found is not None
        assert found.path == made.path
    assert artifact.find(root, "key-3") is None
    assert artifact.find(tmp_path / "nowhere", "key-1") is None


def test_the_newest_is_the_one_committed_last(tmp_path: Path) -> None:
    for number, image in enumerate((b"b", b"a", b"c")):
        os.utime(commit(tmp_path, image).path, (number, number))
    assert artifact.newest(tmp_path / "artifacts").image.read_bytes() == b"c"


def test_without_an_artifact_a_remedy_is_told(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        artifact.newest(tmp_path / "artifacts")
    assert caught.value.render() == f"there is no artifact in {tmp_path}/artifacts\n  -> build one: nox -s build"


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 1}', '"x"', b"\xff"])
def test_one_damaged_artifact_does_not_hide_the_others(
    tmp_path: Path, text: str | bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "artifacts"
    broken = root / "golden-0.0.1-000000000000"
    broken.mkdir(parents=True)
    (broken / "manifest.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    made = commit(tmp_path)
    found = artifact.find(root, "key-1")
    assert found is not None
    assert found.path == made.path
    assert f"warning: {broken}" in capsys.readouterr().err


def test_an_artifact_of_another_schema_is_refused_by_name(tmp_path: Path) -> None:
    made = commit(tmp_path)
    unlock(made.path)
    (made.path / "manifest.json").write_text(json.dumps({**made.manifest.as_json(), "schema": 3}))
    with pytest.raises(SpecError) as caught:
        artifact.load(made.path)
    assert caught.value.render() == (
        f"{made.path}/manifest.json is not a manifest of schema 2\n"
        "  -> it is damaged, or another version of Goldsmith wrote it: build the artifact again"
    )


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_what_is_no_artifact_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SpecError, match="is not an artifact: "):
        artifact.load(tmp_path / name)


# --- checking ---------------------------------------------------------------------------------------------------------


def _change(path: Path) -> None:
    (path / "image.qcow2").write_bytes(IMAGE[:-1] + b"X")


def _truncate(path: Path) -> None:
    (path / "logs" / "x.log").write_bytes(b"")


def _remove(path: Path) -> None:
    (path / "verification" / "report.html").unlink()


def _add(path: Path) -> None:
    (path / "logs" / "added.log").touch()


def _forget(path: Path) -> None:
    sums = path / "SHA256SUMS"
    sums.write_text("".join(line for line in sums.read_text().splitlines(keepends=True) if "manifest" not in line))


def _lose(path: Path) -> None:
    (path / "SHA256SUMS").unlink()


TAMPERING = {
    "image.qcow2: changed": _change,
    "logs/x.log: changed": _truncate,
    "verification/report.html: missing": _remove,
    "logs/added.log: not listed in SHA256SUMS": _add,
    "manifest.json: not listed in SHA256SUMS": _forget,
    "SHA256SUMS: missing": _lose,
}


@pytest.mark.parametrize("problem", TAMPERING)
def test_tampering_is_found(tmp_path: Path, problem: str) -> None:
    made = commit(tmp_path)
    unlock(made.path)
    TAMPERING[problem](made.path)
    assert artifact.check(made.path) == [problem]


def test_all_tampering_is_told_at_once(tmp_path: Path) -> None:
    made = commit(tmp_path)
    unlock(made.path)
    for tamper in (_change, _remove, _add):
        tamper(made.path)
    assert len(artifact.check(made.path)) == 3


def test_the_manifest_is_plain_data(tmp_path: Path) -> None:
    made = commit(tmp_path).manifest.as_json()
    assert json.loads(json.dumps(made)) == made
