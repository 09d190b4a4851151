"""The provenance has the format of in-toto, SLSA and Packer, and names the origin of every input."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from build.artifact import artifact, provenance
from build.artifact.artifact import Artifact
from tests import proven


@pytest.fixture
def made(tmp_path: Path) -> Artifact:
    (tmp_path / "image").write_bytes(b"the pristine disk")
    return proven.make(tmp_path / "artifacts", tmp_path / "image")


@pytest.fixture
def document(made: Artifact) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((made.path / artifact.PROVENANCE).read_text())
    return found


def test_it_is_an_in_toto_statement_about_the_image(made: Artifact, document: dict[str, Any]) -> None:
    assert document.keys() == {"_type", "subject", "predicateType", "predicate"}
    assert document["_type"] == "https://in-toto.io/Statement/v1"
    assert document["predicateType"] == "https://slsa.dev/provenance/v1"
    assert document["subject"] == [{"name": "image.qcow2", "digest": {"sha256": made.manifest.image.sha256}}]


def test_it_has_the_keys_of_slsa_and_of_packer(document: dict[str, Any]) -> None:
    definition, details = document["predicate"]["buildDefinition"], document["predicate"]["runDetails"]
    assert document["predicate"].keys() == {"buildDefinition", "runDetails"}
    assert definition.keys() == {"buildType", "externalParameters", "internalParameters", "resolvedDependencies"}
    assert details.keys() == {"builder", "metadata", "byproducts"}
    versions = {"goldsmith": "0.1.0", "packer": "Packer 1.11.2"}
    assert details["builder"] == {"id": "goldsmith:local-build", "version": versions}
    assert details["metadata"].keys() == {"invocationId", "startedOn", "finishedOn"}
    assert definition["internalParameters"]["packerVersion"] == "Packer 1.11.2"
    assert all(one.keys() == {"name", "digest"} for one in details["byproducts"])
    for one in definition["resolvedDependencies"]:
        assert {"uri", "digest"} <= one.keys() <= {"uri", "digest", "name", "annotations"}


def test_it_leads_from_the_commit_over_the_locks_to_the_disk(made: Artifact, document: dict[str, Any]) -> None:
    definition = document["predicate"]["buildDefinition"]
    checkout, *others = definition["resolvedDependencies"]
    assert checkout == {
        "uri": "git+https://example.org/golden.git", "name": "checkout", "digest": {"gitCommit": proven.COMMIT},
        "annotations": {"dirty": False},
    }  # fmt: skip
    digests = artifact.digests(made.path)
    assert [(one["name"], one["digest"]["sha256"]) for one in others[:3]] == [
        (name, digests[name]) for name in ("rootfs.lock", "installer.lock", proven.WHEEL_LOCK)
    ]
    packages, installer = proven.locks()
    hashes = {entry.sha256 for entry in packages.entries + installer.entries} | {one.sha256 for one in proven.WHEELS}
    assert {one["digest"]["sha256"] for one in others[3:]} == hashes
    byproducts = {one["name"]: one["digest"]["sha256"] for one in document["predicate"]["runDetails"]["byproducts"]}
    assert byproducts == {
        "rootfs.tar": "b" * 64, "filesystem.squashfs": "a" * 64, "installer.iso": "c" * 64,
        **{name: digests[name] for name in
           ("inputs.json", "rootfs.files.tsv", "verification/junit.xml", "sbom.cdx.json", "sbom.spdx.json")},
    }  # fmt: skip
    assert definition["externalParameters"]["spec"]["version"] == "1.2.3"


def test_a_medium_that_had_left_the_cache_is_not_made_up(made: Artifact) -> None:
    stages = tuple(one for one in made.manifest.stages if one.stage != "media")
    manifest = dataclasses.replace(made.manifest, stages=stages)
    found = provenance.statement(manifest, artifact.digests(made.path), ())
    assert "installer.iso" not in {one["name"] for one in found["predicate"]["runDetails"]["byproducts"]}


def test_outside_git_there_is_no_commit(made: Artifact) -> None:
    inputs = dataclasses.replace(made.manifest.inputs, commit="")
    manifest = dataclasses.replace(made.manifest, inputs=inputs)
    found = provenance.statement(manifest, artifact.digests(made.path), ())
    names = [one["name"] for one in found["predicate"]["buildDefinition"]["resolvedDependencies"]]
    assert names[0] == "rootfs.lock"


def test_who_builds_is_the_job_of_a_ci_system_or_this_host() -> None:
    times = {"key": "k", "started": "a", "finished": "b", "remote": ""}
    local = provenance.run_of({}, **times)
    assert local.builder == "goldsmith:local-build"
    assert local == provenance.run_of({}, **times)
    assert local.invocation != provenance.run_of({}, **{**times, "started": "c"}).invocation
    job = provenance.run_of({"CI_JOB_URL": "https://ci.example.org/7", "CI_PIPELINE_ID": "7"}, **times)
    assert (job.builder, job.invocation) == ("https://ci.example.org/7", "7")


def test_differences_are_named_where_they_are() -> None:
    one = {"a": [{"b": 1}, 2], "c": True, "d": "x"}
    assert list(provenance.differences(one, json.loads(json.dumps(one)))) == []
    assert list(provenance.differences(one, {"a": [{"b": 2}, 2], "c": 1, "e": "x"})) == ["a[0].b", "c", "d", "e"]
    assert list(provenance.differences([1, 2], [1])) == [""]
