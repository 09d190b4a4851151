"""The command vulnerabilities: an error without data, exit codes by the available fixes, accepted until a date."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from build.artifact import artifact
from build.artifact.artifact import Artifact
from build.cli import main
from build.core.errors import SpecError
from build.core.project import Project
from build.machines import disk_image
from build.packages import source_packages
from build.packages.source_packages import Origin, Source
from build.report import vulnerability_survey
from build.spec.release_policy import Policy
from build.vulnerabilities import accepted, findings
from build.vulnerabilities.findings import Finding
from tests.fakes import Fakes
from tests.unit.artifact.test_artifact import manifest
from tests.unit.artifacts import parsed
from tests.unit.helpers import entry, make_checkout, write_lock

ORIGINS = {
    "libssl3t64": Origin(Source("openssl", "3.5.4-1")), "openssl": Origin(Source("openssl", "3.5.4-1")),
    "linux-image": Origin(Source("linux-signed", "6.12+1"), (Source("linux", "6.12-1"),)),
}  # fmt: skip
VERSIONS = {"libssl3t64": "3.5.4-1+b1", "openssl": "3.5.4-1", "linux-image": "6.12-1"}
FIXED = {"status": "resolved", "fixed_version": "3.5.4-1+deb13u1", "urgency": "high"}


@dataclass
class Place:
    """A checkout with an artifact, and the tracker's JSON, which a test fills."""

    root: Path
    made: Artifact

    def tracker(self, **entries: dict[str, str]) -> Path:
        """Write the tracker's data: names such as openssl_1 for CVE-2026-1 of openssl."""
        told: dict[str, Any] = {"another": {"CVE-2026-9": {"releases": {"trixie": {"status": "open"}}}}}
        for key, judged in entries.items():
            source, _, number = key.rpartition("_")
            told.setdefault(source, {})[f"CVE-2026-{number}"] = {"releases": {"trixie": judged}}
        path = self.root.parent / "tracker.json"
        path.write_text(json.dumps(told))
        return path

    def accept(self, **changes: Any) -> None:
        row = {"id": "CVE-2026-1", "source": "openssl", "reason": "we do not use it", "until": date(2999, 1, 1)}
        path = self.root / accepted.PAGE
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump({"accepted": [row | changes]}))

    def run(self, capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
        cache = ["--project", str(self.root), "--cache", str(self.root.parent / "cache")]
        code = main.main(["vulnerabilities", *cache, *map(str, words)])
        return code, *capsys.readouterr()


@pytest.fixture
def place(tmp_path: Path, only_fakes: Fakes) -> Place:
    project = make_checkout(tmp_path / "checkout")
    write_lock(project.rootfs_lock, entry("openssl", version="3.5.4-1"))
    (project.root / vulnerability_survey.GO_SUM).unlink()
    (tmp_path / "image").write_bytes(b"image")
    facts = manifest() | {"packages": VERSIONS, "sources": source_packages.facts(ORIGINS)}
    facts["inputs"] |= {"spec": {"release": "trixie"}}
    made = artifact.commit(project.artifacts, contents={disk_image.IMAGE: tmp_path / "image"}, manifest=parsed(facts))
    return Place(project.root, made)


def test_without_data_nobody_looked_and_that_is_no_success(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = place.run(capsys)
    assert (code, out) == (2, "")
    assert "known vulnerabilities were not looked at: there is no data" in err
    assert "--tracker FILE" in err


def test_nothing_known_is_told_with_what_was_looked_at(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = place.run(capsys, "--tracker", place.tracker())
    assert code == 0
    assert out.splitlines() == [
        f"{place.made.path.name}: 3 packages of 3 sources; data: tracker tracker.json",
        "0 with a fix; 0 without; 0 accepted",
    ]
    seen = vulnerability_survey.kept(place.made.path)
    assert seen
    assert (seen[1]["fixable"], abs(datetime.now(UTC) - seen[0]) < timedelta(hours=1)) == (0, True)


def test_data_that_golden_yaml_names_is_looked_up(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    path = place.tracker(openssl_1=FIXED).rename(place.root / "tracker.json")
    spec = place.root / "golden.yaml"
    spec.write_text(f"{spec.read_text()}\nreleases: {{vulnerabilities: {{data: {{tracker: [tracker.json]}}}}}}\n")
    assert place.run(capsys)[0] == 3
    path.unlink()
    code, _, err = place.run(capsys)
    assert (code, "the vulnerability data of golden.yaml does not exist" in err) == (2, True)


def test_a_build_looks_and_never_fails_for_it(place: Place, only_fakes: Fakes) -> None:
    project = Project(place.root)

    def look(policy: Policy) -> str:
        return vulnerability_survey.at_build(
            place.made, policy, project=project, cache=place.root.parent / "cache", now=datetime.now(UTC)
        )  # fmt: skip

    assert look(Policy()).startswith("not looked up: golden.yaml names no data")
    assert look(Policy(vulnerability_data=(("tracker", "gone.json"),))).startswith("not looked up: the vulnerability data")
    assert vulnerability_survey.kept(place.made.path) is None
    place.tracker(openssl_1=FIXED).rename(place.root / "tracker.json")
    assert look(Policy(vulnerability_data=(("tracker", "tracker.json"),))) == "1 fixable, 1 high"
    assert vulnerability_survey.kept(place.made.path)


def test_one_with_a_fix_is_due(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = place.run(capsys, "--tracker", place.tracker(openssl_1=FIXED, linux_2={"status": "open"}))
    assert code == 3
    assert out.splitlines()[1:3] == [
        "high        CVE-2026-1      openssl 3.5.4-1 (libssl3t64, openssl): fixed in 3.5.4-1+deb13u1",
        "1 with a fix; 1 without (1 unassigned); 0 accepted   (--all lists every one)",
    ]
    assert out.endswith(f"-> nox -s lock, then nox -s build; or accept one for a time, with a reason, in {accepted.PAGE}\n")


def test_one_without_a_fix_is_told_and_due_only_by_strict(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    path = place.tracker(linux_2={"status": "open", "urgency": "low"})
    assert place.run(capsys, "--tracker", path)[0] == 0
    code, out, _ = place.run(capsys, "--tracker", path, "--all", "--strict")
    assert (code, "low         CVE-2026-2      linux 6.12-1 (inside linux-image): no fix\n" in out) == (3, True)
    path = place.tracker(linux_2={"status": "open", "urgency": "unimportant"})
    assert place.run(capsys, "--tracker", path, "--strict")[0] == 0


def test_a_fix_that_the_committed_lock_has_wants_a_build(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    lock = place.root / "overlays" / "rootfs.lock"
    newer = [entry(name, version="3.5.4-1+deb13u1") for name in ("libssl3t64", "openssl")]
    paths = [f"pool/main/o/openssl/{one.filename}" for one in newer]
    write_lock(lock, *(type(one)(**{**vars(one), "path": path}) for one, path in zip(newer, paths, strict=True)))
    code, out, _ = place.run(capsys, "--tracker", place.tracker(openssl_1=FIXED))
    assert code == 3
    assert "fixed in 3.5.4-1+deb13u1, which the committed lock has\n" in out
    assert out.endswith("-> the committed lock has fixes already: nox -s build\n")


def test_an_accepted_one_is_not_due_until_its_day_is_over(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    path = place.tracker(openssl_1=FIXED)
    today = datetime.now(UTC).date()
    place.accept(until=today)
    code, out, _ = place.run(capsys, "--tracker", path, "--all")
    assert (code, "; accepted: we do not use it\n" in out, "0 with a fix; 0 without; 1 accepted" in out) == (0, True, True)
    place.accept(until=today - timedelta(days=1))
    code, out, _ = place.run(capsys, "--tracker", path)
    assert (code, "; accepted: we do not use it (until a day that is over)\n" in out) == (3, True)


def test_what_is_accepted_of_another_source_or_found_no_more(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.accept(source="curl")
    code, out, _ = place.run(capsys, "--tracker", place.tracker(openssl_1=FIXED))
    assert code == 3
    assert f"note: CVE-2026-1 of curl is accepted in {accepted.PAGE} and found no more\n" in out


def test_several_sources_of_data_make_one_finding(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    data = place.root.parent / "trixie"
    data.write_text("VERSION 1\nCVE-2026-1,,about\n\nopenssl,0,SM  ,3.6-1,\n\n")
    code, out, _ = place.run(capsys, "--tracker", place.tracker(openssl_1=FIXED), "--debsecan", data, "--json")
    told = json.loads(out)
    (found,) = told["findings"]
    assert code == 3
    assert (found["urgency"], found["fixed"], found["data"]) == ("high", "3.5.4-1+deb13u1", ["debsecan", "tracker"])
    assert [(one["kind"], len(one["sha256"])) for one in told["data"]] == [("debsecan", 64), ("tracker", 64)]


def test_an_older_artifact_is_looked_up_by_paths_and_that_is_said(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    locked = write_lock(tmp_path / "locked", entry("openssl", version="3.5.4-1"))
    (tmp_path / "old").write_bytes(b"older")
    facts = manifest(image=b"older") | {"packages": {"openssl": "3.5.4-1"}}
    contents = {disk_image.IMAGE: tmp_path / "old", "rootfs.lock": locked}
    made = artifact.commit(tmp_path / "others", contents=contents, manifest=parsed(facts))
    code, out, _ = place.run(capsys, made.path, "--tracker", place.tracker(openssl_1=FIXED))
    assert (code, "note: the source of 1 packages was guessed from their paths in the archive\n" in out) == (3, True)


# --- the tool debsecan ------------------------------------------------------------------------------------------------


def test_debsecan_is_asked_about_the_image_where_it_is_installed(
    place: Place, only_fakes: Fakes, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "CVE-2026-1 libssl3t64 (fixed, remotely exploitable, high urgency)\nCVE-2026-1 openssl (fixed)\n"
    said += "CVE-2026-3 openssl\n"
    only_fakes.real("cp", "sh")
    fake = only_fakes.directory / "debsecan"
    fake.write_text(f'#!/bin/sh\necho "$1 $2 $3 $5 $6" >{place.root}/asked\ncp "$4" {place.root}/status\ncat <<E\n{said}E\n')
    fake.chmod(0o755)
    only_fakes.real("cat")
    code, out, _ = place.run(capsys, "--all")
    assert code == 3
    assert "high        CVE-2026-1      openssl 3.5.4-1 (libssl3t64, openssl): fixed in a newer version\n" in out
    assert "unassigned  CVE-2026-3      openssl 3.5.4-1 (libssl3t64, openssl): no fix\n" in out
    assert (place.root / "asked").read_text() == "--suite trixie --status --format summary\n"
    stanzas = (place.root / "status").read_text().split("\n\n")
    assert len(stanzas) == 3
    assert (
        "Package: libssl3t64\nStatus: install ok installed\nArchitecture: amd64\n"
        "Source: openssl (3.5.4-1)\nVersion: 3.5.4-1+b1"
    ) in stanzas


def test_a_debsecan_that_fetches_nothing_is_no_success(
    place: Place, only_fakes: Fakes, capsys: pytest.CaptureFixture[str]
) -> None:
    only_fakes.command("debsecan", stderr="error: while downloading: no route to host\n", status=1)
    code, out, err = place.run(capsys)
    assert (code, out) == (1, "")
    assert "debsecan failed: known vulnerabilities were not checked" in err
    assert "no route to host" in err


def test_a_debsecan_that_says_something_unknown_is_no_success(
    place: Place, only_fakes: Fakes, capsys: pytest.CaptureFixture[str]
) -> None:
    only_fakes.command("debsecan", stdout="CVE-2026-1 a-package-of-the-host\n")
    assert place.run(capsys)[0] == 1


# --- what is accepted -------------------------------------------------------------------------------------------------


def test_the_projects_own_list_can_be_read() -> None:
    accepted.load(Path(__file__).parents[3] / accepted.PAGE)


def test_no_file_accepts_nothing(tmp_path: Path) -> None:
    assert accepted.load(tmp_path / "nothing.yaml") == ()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "openssl"}, "accepted[0].id"),
        ({"reason": " "}, "accepted[0].reason"),
        ({"until": "some day"}, "accepted[0].until: 'some day': write a date"),
        ({"until": datetime(2027, 1, 1, tzinfo=UTC)}, "write a date"),
        ({"source": "Open SSL"}, "accepted[0].source"),
        ({"why": "x"}, "unknown key"),
    ],
)
def test_a_wrong_row_is_told(place: Place, row: dict[str, Any], message: str) -> None:
    place.accept(**row)
    with pytest.raises(SpecError) as caught:
        accepted.load(place.root / accepted.PAGE)
    assert message in caught.value.details


def test_a_row_without_its_day_or_given_twice_is_told(tmp_path: Path) -> None:
    row = {"id": "CVE-2026-1", "source": "openssl", "reason": "x"}
    path = tmp_path / "accepted.yaml"
    path.write_text(yaml.safe_dump({"accepted": [row, row]}))
    with pytest.raises(SpecError) as caught:
        accepted.load(path)
    assert "accepted[1].until: None: this key is missing" in caught.value.details
    assert "CVE-2026-1 of openssl: duplicate entry" in caught.value.details


def test_a_fix_in_the_lock_counts_when_every_package_has_it() -> None:
    finding = Finding("CVE-2026-1", "openssl", "1-1", ("a", "b"), inside=False, urgency="low", fixed="1-2", data=("osv",))
    lock = {"a": Origin(Source("openssl", "1-2")), "b": Origin(Source("openssl", "1-1"))}
    judged = findings.judge([finding], (), lock, today=date(2026, 1, 1))
    assert [one.in_lock for one in judged] == [False]
