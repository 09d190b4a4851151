"""The publishing job of docs/ci: its shell script, and the arguments that it passes to nox, on a cluster."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from build.artifact import artifact
from build.cli import main
from build.publish import node_verify
from tests.contract.conftest import TOKEN
from tests.contract.shipping import NAME, Bench, make_artifact, write_spec
from tests.fakes import Fakes
from tests.unit import ci_files


@pytest.mark.parametrize("forge", tuple(ci_files.FILES))
def test_the_artifact_of_the_build_is_published_and_no_newer_one(
    bench: Bench, tmp_path: Path, fakes: Fakes, forge: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    checkout, store = tmp_path / "checkout", tmp_path / "store"
    checkout.mkdir()
    write_spec(checkout, bench.settings)
    built = make_artifact(tmp_path / "made")
    make_artifact(tmp_path / "made", fill=b"x", version="1.2.4")
    (tmp_path / "made" / "artifacts").rename(store)
    nox = fakes.command("nox")
    job = ci_files.jobs(forge)["publish"]
    script = ci_files.scripts(tmp_path, job)
    environment = {"PATH": os.environ["PATH"], "GOLDSMITH_ARTIFACTS": str(store), "ARTIFACT": built.path.name}
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", script], cwd=checkout, env=environment, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    ((_, verb, _, *words),) = (call.argv for call in nox.calls())
    tokens = [f"GOLDSMITH_PVE_TOKEN_{role}" for role in ("PUBLISHER", "VERIFIER")]
    for name in tokens:
        monkeypatch.setenv(name, f"{TOKEN.identity}={TOKEN.secret}")
    monkeypatch.setattr(node_verify.NodeVerifier, "verify", lambda _self, _subject: None)
    monkeypatch.chdir(checkout)
    assert main.main([verb, *words, "--cache", str(tmp_path / "cache")]) == 0
    out, err = capsys.readouterr()
    assert out == f"pve1/9000 {NAME}\n"
    assert TOKEN.secret not in out + err
    published = json.loads((checkout / "artifacts" / built.path.name / artifact.MANIFEST).read_text())
    assert published["version"] == "1.2.3"
