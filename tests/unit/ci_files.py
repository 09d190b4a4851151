"""The CI files of docs/ci, as jobs with scripts, environments and permissions."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.unit.helpers import ROOT

FILES = {"github": ROOT / "docs" / "ci" / "github.yml", "gitlab": ROOT / "docs" / "ci" / "gitlab.yml"}
# Names that GitLab reserves (its reference, "keywords"), and the keys beside the jobs in the project's file.
NO_JOBS = {"workflow", "stages", "variables", "default"}
NOX = re.compile(r"\bnox (-s [^|;)\n]*?)(?= \d?>|[|;)\n]|$)")


@dataclass(frozen=True)
class Job:
    """One job: its shell text, the environment that the file sets, and the job as the file has it."""

    forge: str
    name: str
    script: str
    environment: Mapping[str, str] = field(default_factory=dict)
    raw: Mapping[str, Any] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """The environment that holds the job's secrets, or nothing."""
        found = self.raw.get("environment", "")
        return str(found["name"] if isinstance(found, dict) else found)

    def nox(self, variables: Mapping[str, str]) -> list[list[str]]:
        """Return the words of each nox command, the session first, with variables filled in."""
        said = []
        for words in NOX.findall(self.script):
            _, session, *rest = (_fill(word, variables) for word in shlex.split(words))
            assert rest[:1] in ([], ["--"]), words
            said.append([session, *rest[1:]])
        return said


def _fill(word: str, variables: Mapping[str, str]) -> str:
    return re.sub(r"\$\{?(\w+)\}?", lambda found: variables[found[1]], word)


def read(forge: str) -> dict[str, Any]:
    """Return a file as plain data."""
    found: dict[str, Any] = yaml.safe_load(FILES[forge].read_text(encoding="utf-8"))
    return found


def jobs(forge: str) -> dict[str, Job]:
    """Return the jobs of a forge's file by name."""
    made = _github(read(forge)) if forge == "github" else _gitlab(read(forge))
    return {job.name: job for job in made}


def _github(content: Mapping[str, Any]) -> list[Job]:
    found = []
    for name, raw in content["jobs"].items():
        steps = [step for step in raw["steps"] if "run" in step]
        environment = {**raw.get("env", {})}
        for step in steps:
            environment |= step.get("env", {})
        found.append(Job("github", name, "\n".join(step["run"].rstrip() for step in steps), environment, raw))
    return found


def _gitlab(content: Mapping[str, Any]) -> list[Job]:
    found = []
    for name, own in content.items():
        if name in NO_JOBS or name.startswith("."):
            continue
        raw = {**content.get(str(own.get("extends")), {}), **own}
        lines = [*raw.get("before_script", []), *raw["script"]]
        environment = {**content["variables"], **raw.get("variables", {})}
        found.append(Job("gitlab", name, "\n".join(lines), environment, raw))
    return found


def scripts(directory: Path, job: Job) -> Path:
    """Write a job's script to a file."""
    path = directory / f"{job.forge}-{job.name}.sh"
    path.write_text(job.script + "\n", encoding="utf-8")
    return path
