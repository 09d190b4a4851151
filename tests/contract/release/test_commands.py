"""The commands of releases: the output, as text and as JSON, the exit codes, and release tags."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from build.artifact import artifact
from build.cli import main
from build.core import run
from build.core.errors import SpecError
from build.pipeline import build
from build.release import tag as release_tag
from tests.contract.cloning import OPERATOR
from tests.contract.conftest import TOKEN
from tests.contract.releasing import FIRST, SECOND, Desk, on
from tests.contract.shipping import Bench, write_spec
from tests.fakes import Fakes
from tests.unit import ci_files

LEDGER = Path("artifacts/releases.jsonl")


@pytest.fixture
def desk(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Desk:
    """A checkout with golden.yaml and artifacts, whose cluster has 1.2.3 and 1.3.0."""
    bench.with_nodes("pve1", "pve2")
    made = Desk(bench, name="")
    made.publish(FIRST, SECOND)
    write_spec(bench.place, bench.settings)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GOLDSMITH_PVE_TOKEN_PUBLISHER", f"{TOKEN.identity}={TOKEN.secret}")
    monkeypatch.setenv("GOLDSMITH_PVE_TOKEN_OPERATOR", f"{OPERATOR.identity}={OPERATOR.secret}")
    return made


def line(desk: Desk, command: str, *words: str) -> int:
    place = desk.bench.place
    cache = ["--cache", str(place.parent / "cache")] if command == "promote" else []
    return main.main([command, *words, "--project", str(place), *cache])


def git(root: Path, *words: str) -> str:
    return run.run(["git", "-c", f"safe.directory={root}", *words], cwd=root, timeout=60).stdout.strip()


def checkout(desk: Desk) -> Path:
    """Make a repository of the checkout, with everything but artifacts in it, and a commit."""
    root = desk.bench.place
    (root / ".gitignore").write_text("/artifacts/\n/source-*\n")
    git(root, "init", "--quiet")
    git(root, "config", "user.name", "Jane Doe")
    git(root, "config", "user.email", "jane@example.org")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "a release")
    return root


def test_a_life_of_releases(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    assert line(desk, "promote", FIRST) == 0
    out = capsys.readouterr().out
    assert out.startswith("stable -> 1.2.3: done\n")
    assert "ledger: entry 2, " in out
    assert line(desk, "promote", SECOND, "stable", "--reason", "fixes the leak") == 0
    assert capsys.readouterr().out.startswith("stable -> 1.3.0 (before: 1.2.3): done\n")
    assert line(desk, "promote", SECOND) == 0
    assert "was so already" in capsys.readouterr().out
    assert line(desk, "rollback", "stable", "--dry-run") == 0
    assert "stable -> 1.2.3 (before: 1.3.0): would be done" in capsys.readouterr().out
    assert desk.tagged("stable") == on(SECOND)
    assert line(desk, "rollback", "stable", "--reason", "it leaks more") == 0
    assert line(desk, "revoke", SECOND, "--reason", "CVE-2026-3", "--json") == 0
    facts = json.loads(capsys.readouterr().out.partition("\n{")[2].join(["{", ""]))
    assert (facts["action"], facts["version"], facts["outcome"]) == ("revoke", SECOND, "done")
    assert line(desk, "promote", SECOND) == 2
    assert "CVE-2026-3" in capsys.readouterr().err
    assert line(desk, "history") == 0
    out = capsys.readouterr().out
    assert out.startswith("stable -> 1.2.3\nrevoked: 1.3.0: CVE-2026-3\n1  ")
    assert f"{TOKEN.identity}: fixes the leak" in out
    assert line(desk, "history", "stable", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert [one["number"] for one in facts["entries"]] == [1, 2, 3, 4, 5, 6]
    assert facts["channels"]["stable"]["version"] == FIRST
    assert line(desk, "restore", SECOND, "--reason", "the CVE does not apply") == 0
    assert line(desk, "drift") == 0
    assert line(desk, "prune") == 0
    out = capsys.readouterr().out
    assert "golden-1.2.3: keep: stable points at it" in out
    assert line(desk, "prune", "--days", "0", "--json") == 0
    assert {one["keep"] for one in json.loads(capsys.readouterr().out)} == {True}


def test_history_without_and_with_the_cluster(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    assert line(desk, "history") == 2
    assert "there is no ledger" in capsys.readouterr().err
    assert line(desk, "history", "--rebuild") == 2
    assert "neither" in capsys.readouterr().err
    line(desk, "promote", FIRST)
    (desk.bench.place / LEDGER).unlink()
    assert line(desk, "history", "--rebuild") == 0
    assert "has 2 entries, as the cluster mirrors them" in capsys.readouterr().out
    assert line(desk, "history", "edge") == 2
    path = desk.bench.place / LEDGER
    path.write_text(path.read_text().replace("1.2.3", "1.3.0"))
    assert line(desk, "history") == 3
    assert "line 1: it was modified" in capsys.readouterr().err
    assert line(desk, "drift") == 1
    assert "was modified or is damaged" in capsys.readouterr().out


def test_what_is_unfinished_is_shown(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.bench.proxmox.set_node_offline("pve2")
    assert line(desk, "promote", FIRST) == 1
    assert "missing is pve2" in capsys.readouterr().err
    assert line(desk, "history") == 0
    assert "NOT FINISHED: promote of 1.2.3 in stable" in capsys.readouterr().out
    desk.bench.proxmox.set_node_offline("pve2", offline=False)
    assert line(desk, "drift") == 3
    out = capsys.readouterr().out
    assert "not finished: 1  " in out
    assert "-> nox -s promote -- 1.2.3 stable" in out
    assert line(desk, "promote", FIRST) == 0
    assert "was begun before, and is finished now" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["promote"], "needs a version"), (["promote", "v1.2.3"], "is not a valid version"),
        (["promote", "1", "2", "3"], "needs a version"),
        (["promote", "1.2.3", "stable", "--tag", "v1.2.3"], "the tag names the version"),
        (["promote", "--tag", "1.2.3"], "is not a release tag"), (["revoke", "1.2.3", "--reason", " "], "--reason is empty"),
        (["revoke", "1.2.3", "--reason", "x" * 400], "not a single line"), (["prune", "--apply", "--dry-run"], "contradict"),
        (["prune", "--days", "-1"], "write a number"), (["rollback", "edge"], "no channel edge"),
        (["revoke", "9.9.9", "--reason", "x"], "unknown version"),
    ],
)  # fmt: skip
def test_words_that_cannot_be_meant(desk: Desk, words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert line(desk, words[0], *words[1:]) == 2
    assert text in capsys.readouterr().err
    assert not (desk.bench.place / LEDGER).exists()


def test_a_policy_that_asks_for_signatures(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    path = desk.bench.place / "golden.yaml"
    path.write_text(path.read_text() + "\nreleases: {signers: docs/signers}\n")
    assert line(desk, "promote", FIRST) == 3
    assert "a signature" in capsys.readouterr().err
    assert desk.tagged("stable") == []


# --- release tags -----------------------------------------------------------------------------------------------------


def built(desk: Desk, commit: str, version: str = "1.4.0", **changes: Any) -> None:
    desk.publish(version, checkout={"commit": commit, "dirty": False} | changes)


def own_key(desk: Desk, version: str = "1.4.0") -> str:
    """Return the key of a published artifact; before it is published, a key of no artifact."""
    found = [one for one in artifact.committed(desk.bench.place / "artifacts") if f"-{version}-" in one.name]
    return str(artifact.load(found[0]).manifest.inputs.artifact_key) if found else "none"


def test_a_tag_promotes_the_artifact_of_its_commit(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    root = checkout(desk)
    commit = git(root, "rev-parse", "HEAD")
    git(root, "tag", "-a", "v1.4.0", "-m", "a release")
    git(root, "commit", "--quiet", "--allow-empty", "-m", "and on it goes")
    assert line(desk, "promote", "--tag", "v1.4.0") == 2
    err = capsys.readouterr().err
    assert f"no verified artifact of golden of v1.4.0 (commit {commit[:12]})" in err
    assert "nox -s build" in err
    built(desk, commit)
    (root / "README").write_text("the checkout may go on")
    assert line(desk, "promote", "--tag", "v1.4.0", "stable") == 0
    assert desk.tagged("stable") == on("1.4.0")
    last = json.loads((root / LEDGER).read_text().splitlines()[-1])
    assert (last["who"], last["commit"]) == ("Jane Doe <jane@example.org>", commit)


def artifacts_of(desk: Desk, tag: str = "v1.4.0", key: str = "") -> list[str]:
    root = desk.bench.place
    wanted = key or own_key(desk)
    found = release_tag.artifacts_of(root, root / "artifacts", tag, name="golden", ledger=LEDGER, key=lambda: wanted)
    return [one.manifest.version for one in found]


def test_a_rebuild_finds_the_older_artifact_by_its_key(desk: Desk) -> None:
    root = checkout(desk)
    git(root, "tag", "v1.4.0")
    built(desk, "0" * 40)
    assert artifacts_of(desk) == ["1.4.0"]
    with pytest.raises(SpecError, match="no verified artifact"):
        artifacts_of(desk, key="k2")
    (root / "README").write_text("not committed")
    with pytest.raises(SpecError, match="no verified artifact"):
        artifacts_of(desk)


def test_what_was_built_from_changed_files(desk: Desk) -> None:
    root = checkout(desk)
    git(root, "tag", "v1.4.0")
    built(desk, git(root, "rev-parse", "HEAD"), dirty=True)
    with pytest.raises(SpecError, match="no verified artifact") as caught:
        artifacts_of(desk, key="k2")
    assert "with uncommitted changes" in caught.value.details


def test_a_tag_whose_version_is_not_the_manifests(desk: Desk) -> None:
    root = checkout(desk)
    git(root, "tag", "v2.0.0")
    built(desk, git(root, "rev-parse", "HEAD"))
    with pytest.raises(SpecError, match=r"v2\.0\.0 is on commit .*, whose artifact is version 1\.4\.0"):
        artifacts_of(desk, "v2.0.0")


def test_a_tag_that_is_not_there(desk: Desk) -> None:
    with pytest.raises(SpecError, match="has no tag v1"):
        artifacts_of(desk)
    checkout(desk)
    with pytest.raises(SpecError, match="has no tag v1"):
        artifacts_of(desk)


def test_the_ledger_in_the_repository_does_not_make_it_dirty(desk: Desk) -> None:
    root = checkout(desk)
    git(root, "tag", "v1.4.0")
    built(desk, "0" * 40)
    ledger = Path("docs/releases.jsonl")
    (root / "docs").mkdir()
    for name in ("releases.jsonl", ".releases.jsonl.lock"):
        (root / "docs" / name).write_text("")
    found = release_tag.artifacts_of(
        root, root / "artifacts", "v1.4.0", name="golden", ledger=ledger, key=lambda: own_key(desk)
    )
    assert len(found) == 1


def test_the_key_is_the_pipelines(desk: Desk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The command line passes on the key that a build would look for."""
    root = checkout(desk)
    git(root, "tag", "v1.4.0")
    built(desk, "0" * 40)

    class Key:
        key = own_key(desk)

    class Gathered:
        keys = {"artifact": Key}  # noqa: RUF012

    asked: list[bool] = []

    def gather(_options: build.Options, *, settle: bool) -> Any:
        asked.append(settle)
        return Gathered

    monkeypatch.setattr(build, "gather", gather)
    monkeypatch.setenv("GOLDSMITH_MIRROR", "http://one.example/debian")
    monkeypatch.setenv("GOLDSMITH_SECURITY_MIRROR", "http://one.example/security")
    assert line(desk, "promote", "--tag", "v1.4.0") == 0, capsys.readouterr().err
    assert asked == [False]
    assert desk.tagged("stable") == on("1.4.0")


@pytest.mark.parametrize("forge", tuple(ci_files.FILES))
def test_the_job_of_docs_ci_promotes_its_tag(desk: Desk, fakes: Fakes, forge: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own shell text, and the words that it hands to nox, in a checkout whose artifacts lie elsewhere."""
    root = checkout(desk)
    git(root, "tag", "v1.4.0")
    built(desk, git(root, "rev-parse", "HEAD"))
    store = (root / "artifacts").rename(root.parent / "store")
    nox, script = fakes.command("nox"), ci_files.scripts(root.parent, ci_files.jobs(forge)["promote"])
    tag = {"TAG": "v1.4.0", "CI_COMMIT_TAG": "v1.4.0", "GOLDSMITH_ARTIFACTS": str(store)}
    run.run(["bash", "-e", "-o", "pipefail", script], cwd=root, timeout=60, env=tag)
    # GitLab's link is made by what all of its jobs begin with.
    if not (root / "artifacts").exists():
        (root / "artifacts").symlink_to(store)
    ((_, verb, _, *words),) = (call.argv for call in nox.calls())
    monkeypatch.chdir(root)
    assert main.main([verb, *words, "--cache", str(root.parent / "cache")]) == 0
    assert desk.tagged("stable") == on("1.4.0")
