"""The CI files of docs/ci are valid for their forges' schemas, bash, nox and the command line, and protect secrets."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from build.cli import main
from build.core import run
from tests.patience import PATIENCE_SECONDS
from tests.unit import ci_files
from tests.unit.ci_files import Job
from tests.unit.helpers import ROOT

FORGES = tuple(ci_files.FILES)
SCHEMAS = {
    "github": ["--builtin-schema", "vendor.github-workflows"],
    "gitlab": ["--builtin-schema", "vendor.gitlab-ci", "--data-transform", "gitlab-ci"],
}
VALUES = {"ARTIFACT": "golden-0.1.0-0123456789ab", "TAG": "v1.4.0", "CI_COMMIT_TAG": "v1.4.0"}
ALL = [job for forge in FORGES for job in ci_files.jobs(forge).values()]
JOBS = pytest.mark.parametrize("job", ALL, ids=lambda job: f"{job.forge}-{job.name}")
PROXMOX = {"publish": {"PUBLISHER", "VERIFIER"}, "promote": {"PUBLISHER"}}


@pytest.fixture(scope="module")
def sessions() -> set[str]:
    listed = run.run([sys.executable, "-m", "nox", "--list"], cwd=ROOT, timeout=60).stdout
    return set(re.findall(r"^[-*] ([a-z-]+)", listed, re.MULTILINE))


@pytest.mark.parametrize("forge", FORGES)
def test_the_schema_of_the_forge_is_content(forge: str) -> None:
    """The schemas are those that check-jsonschema contains: no network is needed."""
    words = [sys.executable, "-m", "check_jsonschema", *SCHEMAS[forge], "--verbose", str(ci_files.FILES[forge])]
    done = run.run(words, timeout=120, check=False)
    assert done.returncode == 0, f"\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("forge", FORGES)
def test_the_schema_is_not_content_with_anything(forge: str, tmp_path: Path) -> None:
    broken = tmp_path / "ci.yml"
    text = ci_files.FILES[forge].read_text(encoding="utf-8")
    broken.write_text(re.sub(r"^( +)(runs-on|script):", r"\1nonsense:", text, flags=re.MULTILINE))
    done = run.run([sys.executable, "-m", "check_jsonschema", *SCHEMAS[forge], broken], timeout=120, check=False)
    assert done.returncode == 1


def test_both_files_do_the_same() -> None:
    one, other = (ci_files.jobs(forge) for forge in FORGES)
    assert set(one) == set(other) == {"tests", "lock-check", "build", "publish", "promote", "nightly", "offer"}
    for name in one:
        assert one[name].nox(VALUES) == other[name].nox(VALUES), name


@JOBS
def test_bash_reads_every_script(job: Job, tmp_path: Path) -> None:
    run.run(["bash", "-n", ci_files.scripts(tmp_path, job)], timeout=PATIENCE_SECONDS)


@JOBS
def test_every_nox_session_is_there_and_its_command_takes_the_arguments(job: Job, sessions: set[str]) -> None:
    commands = job.nox(VALUES)
    assert len(commands) == job.script.count("nox -s "), "a command was not recognised"
    for session, *words in commands:
        assert session in sessions
        if session != "tests":
            assert main.parse([session, *words]).command == session


@JOBS
def test_a_job_gets_the_secrets_of_its_environment_alone(job: Job) -> None:
    """Each token belongs to one environment; a job without one has none."""
    wanted = {f"GOLDSMITH_PVE_TOKEN_{role}" for role in PROXMOX.get(job.name, ())}
    assert bool(job.place) == (job.name in PROXMOX or (job.forge, job.name) == ("gitlab", "offer"))
    if job.forge == "github":
        taken = {name: value for name, value in job.environment.items() if "secrets." in str(value)}
        assert taken == {name: f"${{{{ secrets.{name} }}}}" for name in wanted}
    else:
        text = ci_files.FILES["gitlab"].read_text(encoding="utf-8")
        comment = text[: text.index(f"\n{job.name}:")].rpartition("\n\n")[2]
        assert set(re.findall(r"GOLDSMITH_PVE_TOKEN_\w+", comment)) == wanted, "the comment lists the environment's tokens"


@JOBS
def test_no_script_says_a_secret_or_takes_text_of_the_forge(job: Job) -> None:
    """Only variables are used: an expression is pasted into the script with any characters of a branch or a tag."""
    assert "${{" not in job.script
    assert "GOLDSMITH_PVE_TOKEN" not in job.script
    assert not re.search(r"^\s*(set -x|env|printenv|export)\b", job.script, re.MULTILINE)
    if "PUSH_TOKEN" in job.script:
        assert job.script.count("PUSH_TOKEN") == 1
        assert "credential.helper='!f() { printf" in job.script


def test_github_lets_one_job_write() -> None:
    content = ci_files.read("github")
    assert content["permissions"] == {"contents": "read"}
    writing = {name for name, raw in content["jobs"].items() if "permissions" in raw}
    assert writing == {"offer"}
    assert ci_files.jobs("github")["offer"].nox(VALUES) == [], "the job that may write runs nothing of the build"
    for name, raw in content["jobs"].items():
        for step in raw["steps"]:
            if step.get("uses", "").startswith("actions/checkout@"):
                kept = step.get("with", {}).get("persist-credentials", True)
                assert kept is (name == "offer")


def test_github_pins_actions_by_their_major_version_and_says_how_to_pin_them_by_hash() -> None:
    text = ci_files.FILES["github"].read_text(encoding="utf-8")
    used = re.findall(r"uses: (\S+)$", text, re.MULTILINE)
    assert used
    assert [name for name in used if not re.fullmatch(r"actions/[a-z-]+@v\d+", name)] == []
    assert "Pin each by the hash of a commit" in text


@JOBS
def test_a_strangers_change_never_reaches_our_machines(job: Job) -> None:
    """Jobs on the machine with the caches, or near the cluster, run for the project's branches, tags and schedules only."""
    ours = "goldsmith" in (job.raw.get("runs-on") or job.raw.get("tags") or ())
    assert ours == (job.name in {"build", "publish", "promote", "nightly"})
    if job.forge == "github" and ours:
        assert re.match(r"github\.event_name == '(push|schedule)' && ", job.raw["if"])
    elif ours:
        for rule in job.raw["rules"]:
            assert re.search(r'PIPELINE_SOURCE == "(push|schedule)"|CI_COMMIT_TAG =~', rule["if"])


@JOBS
def test_what_changes_the_cluster_runs_one_at_a_time(job: Job) -> None:
    alone = job.raw.get("concurrency", {}).get("group") if job.forge == "github" else job.raw.get("resource_group")
    assert (alone == "goldsmith-cluster") is (job.name in PROXMOX)
