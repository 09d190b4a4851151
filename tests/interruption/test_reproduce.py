"""The command reproduce on the whole pipeline: equal and different results, and that nothing is left behind."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from build.artifact import artifact
from build.cli import main
from build.core import files, host, log, run
from tests.interruption.test_line import Line, built, line, mirror
from tests.unit.helpers import make_disk_image

__all__ = ["built", "line", "mirror"]


@pytest.fixture
def made(line: Line) -> Iterator[Line]:
    """A line whose artifact is there, and whose stages have to be made again wherever they are asked for."""
    before = snapshot(line)
    yield line
    assert snapshot(line) == before, "neither the checkout nor the ordinary cache is touched"
    assert line.scratch() == []


def snapshot(line: Line) -> list[tuple[str, int]]:
    places = (line.cache / "stages", line.project.root)
    return sorted((str(path), path.lstat().st_mtime_ns) for place in places for path in place.rglob("*") if path.is_file())


def reproduce(line: Line, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    capsys.readouterr()
    try:
        code = main.main(["reproduce", *line.words()[1:], *words])
    finally:
        log.configure()
    line.out, line.err = capsys.readouterr()
    return code, line.out


def change(line: Line, act: Callable[[dict[str, Any]], None]) -> Path:
    """Return a copy of the artifact with another manifest, whole by its sums."""
    (path,) = line.published()
    copy = line.root / "others" / path.name
    shutil.copytree(path, copy)
    for one in [copy, *copy.rglob("*")]:
        one.chmod(0o755 if one.is_dir() else 0o644)
    manifest = json.loads((copy / artifact.MANIFEST).read_text())
    act(manifest)
    files.write_json(copy / artifact.MANIFEST, manifest)
    (copy / artifact.SUMS).write_text(artifact.sums(copy))
    return copy


def test_the_same_inputs_give_the_same_bytes(made: Line, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = reproduce(made, capsys)
    (path,) = made.published()
    facts = {one.stage: one.facts for one in artifact.load(path).manifest.stages}["media"]
    assert code == 0, made.err
    lines = out.splitlines()
    assert lines[0] == f"{path.name}: reproduced"
    assert [line.split()[-2:] for line in lines[3:]] == [["same", facts["initrd_sha256"]], ["same", facts["iso_sha256"]]]


def test_a_path_that_differs_is_named(made: Line, capsys: pytest.CaptureFixture[str]) -> None:
    with tarfile.open(made.root / "rootfs.tar", "w") as archive:
        for name, content in (("./etc/hostname", b"silver\n"), ("./etc/new", b"")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, BytesIO(content))
    code, out = reproduce(made, capsys)
    assert code == 3
    assert "    /etc/hostname: content\n    /etc/new: only now\n" in out
    assert "  squashfs               differs" in out
    code, out = reproduce(made, capsys, "--json")
    told = json.loads(out)
    assert (code, told["same"], [row["verdict"] for row in told["rows"]][:2]) == (3, False, ["differs", "differs"])


def test_what_was_not_recorded_is_no_success(made: Line, capsys: pytest.CaptureFixture[str]) -> None:
    def forget(manifest: dict[str, Any]) -> None:
        manifest["stages"] = [one for one in manifest["stages"] if one["stage"] != "media"]

    code, out = reproduce(made, capsys, str(change(made, forget)))
    assert (code, "not compared: its manifest does not tell the medium's hash" in out) == (1, True)
    assert "  ISO                    not recorded" in out


def test_tools_of_other_versions_are_a_hint(
    made: Line, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def older(manifest: dict[str, Any]) -> None:
        manifest["inputs"]["squashfs_sha256"] = "00" * 32
        manifest["tools"]["uname"] = "0.1"

    tool = host.Tool("uname", "coreutils", "x", ("uname", "-r"))
    monkeypatch.setattr("build.core.host.needed", lambda *_stages, **_options: (tool,))
    code, out = reproduce(made, capsys, "--no-install", str(change(made, older)))
    assert (code, "  note: another version: uname: 0.1 then, " in out) == (3, True)


def test_an_artifact_that_was_changed_is_refused(made: Line, capsys: pytest.CaptureFixture[str]) -> None:
    copy = change(made, lambda _manifest: None)
    (copy / "rootfs.files.tsv").write_text("another")
    assert reproduce(made, capsys, str(copy))[0] == 3
    assert "rootfs.files.tsv: changed" in made.err


def test_a_locked_file_that_nobody_has_any_more_is_told(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    one = line.locked()
    line.stored(one).unlink()
    there = line.mirror.path(one)
    content = there.read_bytes()
    there.unlink()
    try:
        assert reproduce(line, capsys)[0] == 2
    finally:
        there.write_bytes(content)
    assert "the archive no longer has 1 of the 2 locked files\n    nginx_1.0-1_amd64.deb" in line.err
    assert "--snapshot" in line.err
    assert line.scratch() == []


# --- the disk ---------------------------------------------------------------------------------------------------------


def test_an_installed_disk_of_the_same_bits(made: Line, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = reproduce(made, capsys, "--disk")
    assert code == 0, made.err
    assert "  disk, content          same" in out
    assert "  disk, bits             same         0 paths of another mtime, 0 paths of another inode" in out


def test_an_installed_disk_with_another_file(made: Line, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = tmp_path / "another"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc" / "backdoor").write_text("x")
    raw = make_disk_image(tmp_path, {"/": tree})
    run.run(["qemu-img", "convert", "-O", "qcow2", raw, tmp_path / "another.qcow2"], timeout=60)
    (tmp_path / "another.qcow2").rename(made.root / "image.qcow2")
    code, out = reproduce(made, capsys, "--disk")
    assert code == 3
    assert "    /etc/backdoor: kind: absent then, file now\n" in out
    assert "  disk, bits             differs" in out


# --- another commit ---------------------------------------------------------------------------------------------------

OTHER = '''"""Another Goldsmith."""
import sys

print("\\n".join(sys.argv[1:]))
if "--help" in sys.argv:
    print("OPTIONS")
sys.exit(3)
'''


def git(line: Line, *words: str) -> str:
    identity = ["-c", "user.name=A Test", "-c", "user.email=test@example.org", "-C", str(line.project.root)]
    return run.run(["git", *identity, *words], timeout=60, env={"HOME": str(line.root)}).stdout.strip()


@pytest.mark.parametrize(
    ("package", "options"), [("reproduce/reproduce.py", "--json --log-json"), ("reproduce.py", "--json")],
    ids=["package", "module of older releases"],
)  # fmt: skip
def test_another_commit_is_built_by_its_own_goldsmith(
    line: Line, package: str, options: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The checkout has gone on; the artifact's commit is taken out of git, and its own code is run on the artifact."""
    git(line, "init", "--quiet")
    (line.project.root / "build" / "__init__.py").touch()
    (line.project.root / "build" / "__main__.py").write_text(OTHER.replace("OPTIONS", options))
    (line.project.root / "build" / package).parent.mkdir(exist_ok=True)
    (line.project.root / "build" / package).touch()
    git(line, "add", "--all")
    git(line, "commit", "--quiet", "--message", "Then")
    commit = git(line, "rev-parse", "HEAD")
    copy = change(line, lambda manifest: manifest["inputs"].update(commit=commit))
    (line.project.overlays / "10-base" / "rootfs" / "etc" / "x").write_text("the checkout has gone on")
    code = main.main(["reproduce", *line.words()[1:], str(copy), "--disk", "--json", "--log-json"])
    log.configure()
    words = capfd.readouterr().out.splitlines()
    assert code == 3
    assert words[:2] == ["reproduce", str(copy)]
    assert {"--disk", "--json", "--no-install", "--here"} <= set(words)
    assert ("--log-json" in words) is ("--log-json" in options), "older code has --json alone, for result and log"
    tree = Path(words[words.index("--project") + 1])
    assert not tree.exists(), "the commit's files are gone afterwards"
    assert line.scratch() == []
    assert git(line, "worktree", "list").count("\n") == 0


@pytest.mark.parametrize(
    ("commit", "words", "message"),
    [
        ("", [], "the artifact names no commit"),
        ("f" * 40, ["--here"], f"the artifact names the commit {'f' * 40}"),
        ("f" * 40, [], "is not in this checkout"),
    ],
)
def test_a_checkout_that_does_not_build_it_says_so(
    line: Line, capsys: pytest.CaptureFixture[str], commit: str, words: list[str], message: str
) -> None:
    git(line, "init", "--quiet")
    copy = change(line, lambda manifest: manifest["inputs"].update(commit=commit))
    lock = line.project.overlays / "10-base" / "rootfs" / "etc" / "early"
    lock.write_text("the checkout has gone on")
    assert reproduce(line, capsys, str(copy), *words)[0] == 2
    assert message in line.err


def test_another_mirror_is_thought_of(made: Line, capsys: pytest.CaptureFixture[str]) -> None:
    copy = change(made, lambda _manifest: None)
    assert reproduce(made, capsys, str(copy), "--security-mirror", "http://127.0.0.1:1/other")[0] == 2
    assert "other inputs of rootfs, media" in made.err
    assert "are the mirrors (--mirror, --security-mirror)?" in made.err
