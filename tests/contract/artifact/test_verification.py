"""An artifact that does not verify is neither published nor cloned; signatures are added with the template, or later."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from build.artifact.artifact import Artifact
from build.artifact.verification import Trust
from build.cli import attest, main
from build.cli.attest import Keys
from build.core.errors import VerificationFailed
from build.core.project import Project
from build.drift import drift
from build.proxmox import client, labels, template_trust
from build.publish import node_verify, publish
from tests import proven
from tests.contract.cloning import Field, Guests
from tests.contract.conftest import TOKEN
from tests.contract.shipping import Bench, make_artifact, write_spec

ALICE, BOB = "alice@example.org", "bob@example.org"


@pytest.fixture
def proxmox_class() -> type[Guests]:
    return Guests


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, Path]:
    return {name: proven.make_key(tmp_path / "keys", name) for name in (ALICE, BOB)}


@pytest.fixture
def trust(tmp_path: Path, keys: dict[str, Path]) -> Trust:
    return Trust(proven.allow(tmp_path / "signers", keys[ALICE]), 1)


def sign(found: Artifact, key: Path) -> None:
    attest.attest(Project(found.path.parent.parent), found, Keys(key, "", ""))


def description(bench: Bench, vmid: int = 9000) -> dict[str, Any]:
    config: dict[str, Any] = bench.proxmox.vm(vmid).config
    return config


def test_an_artifact_that_nobody_signed_is_not_published_when_somebody_must(
    bench: Bench, keys: dict[str, Path], trust: Trust
) -> None:
    found = make_artifact(bench.place)
    with pytest.raises(VerificationFailed, match="does not verify") as caught:
        bench.publish(found, trust=trust)
    assert "0 of 1 required signatures are by allowed signers" in caught.value.details
    sign(found, keys[BOB])
    with pytest.raises(VerificationFailed) as caught:
        bench.publish(found, trust=trust)
    assert f"{BOB}: the key is not allowed" in caught.value.details
    assert bench.proxmox.calls.total() == 0


def test_a_contradiction_is_not_published_though_its_sums_fit(bench: Bench) -> None:
    found = make_artifact(bench.place)
    with proven.opened(found.path) as path:
        bill = json.loads((path / "sbom.cdx.json").read_text())
        bill["components"].pop()
        (path / "sbom.cdx.json").write_text(json.dumps(bill))
        proven.rewrite_sums(path)
    with pytest.raises(VerificationFailed) as caught:
        bench.publish(found)
    assert "FAILED       bills" in caught.value.details
    assert bench.proxmox.calls.total() == 0


def test_a_signed_artifact_is_published_with_its_signatures(bench: Bench, keys: dict[str, Path], trust: Trust) -> None:
    found = make_artifact(bench.place)
    for key in keys.values():
        sign(found, key)
    [made] = bench.publish(found, trust=trust)
    label = labels.parse(str(description(bench, made.vmid)["description"]))
    assert label is not None
    # Whose signature does not count here has no place there.
    assert list(label.proof["signatures"]) == [ALICE]
    assert template_trust.require_template(label, trust, where="it") == (ALICE,)


def test_signatures_that_come_later_are_brought_and_nothing_else_changes(
    bench: Bench, keys: dict[str, Path], trust: Trust
) -> None:
    found = make_artifact(bench.place)
    [made] = bench.publish(found)
    config = description(bench, made.vmid)
    before = dict(config)
    # As a user does who keeps further text in the description.
    config["description"] = f"head\n\n{config['description']}\n\ntail"
    sign(found, keys[ALICE])
    [again] = bench.publish(found, trust=trust)
    assert again == publish.Template(made.node, made.vmid, made.name, publish.Outcome.THERE)
    after = description(bench, made.vmid)
    assert {key: value for key, value in after.items() if before.get(key) != value}.keys() <= {"description", "digest"}
    assert str(after["description"]).startswith("head\n\n# golden 1.2.3")
    assert str(after["description"]).endswith("-->\n\ntail")
    label = labels.parse(str(after["description"]))
    assert label is not None
    assert template_trust.require_template(label, trust, where="it") == (ALICE,)
    bench.proxmox.calls.clear()
    bench.publish(found, trust=trust)
    assert {method for method, _ in bench.proxmox.calls} == {"GET"}


def test_a_description_that_somebody_rewrote_is_left_alone(
    bench: Bench, keys: dict[str, Path], trust: Trust, capsys: pytest.CaptureFixture[str]
) -> None:
    found = make_artifact(bench.place)
    [made] = bench.publish(found)
    config = description(bench, made.vmid)
    config["description"] = rewritten = str(config["description"]).replace("clone it", "take it")
    sign(found, keys[ALICE])
    bench.publish(found, trust=trust)
    assert description(bench, made.vmid)["description"] == rewritten
    assert "was edited manually, so the signatures are not added" in capsys.readouterr().err


def test_a_template_that_nobody_vouches_for_is_not_cloned(field: Field, keys: dict[str, Path], trust: Trust) -> None:
    before = field.proxmox.inventory()
    with pytest.raises(VerificationFailed, match=r"golden-1.2.3 on pve1 \(VM 9000\) does not verify") as caught:
        field.clone(trust)
    assert caught.value.details == "0 of 1 required signatures are by allowed signers"
    assert field.proxmox.inventory() == before
    found = make_artifact(field.bench.place)
    sign(found, keys[ALICE])
    field.bench.publish(found, trust=trust)
    assert field.clone(trust).name == "web1"


@pytest.mark.parametrize("change", ["signature", "sums", "none", "digest"])
def test_a_template_whose_label_was_edited_is_not_cloned(
    field: Field, keys: dict[str, Path], trust: Trust, change: str
) -> None:
    found = make_artifact(field.bench.place)
    sign(found, keys[ALICE])
    field.bench.publish(found, trust=trust)
    config = description(field.bench)
    label = labels.parse(str(config["description"]))
    assert label is not None
    values = dict(vars(label))
    if change == "digest":
        # Another image under its name and tag, with the signature of the first.
        values |= {"digest": "0" * 64, "artifact": "golden-1.2.3-000000000000"}
        config["tags"] = str(config["tags"]).replace(labels.digest_tag(label.digest), labels.digest_tag("0" * 64))
    else:
        changed: dict[str, dict[str, Any]] = {
            "signature": {**label.proof, "signatures": {ALICE: label.proof["signatures"][ALICE][:-8] + "AAAAAAAA"}},
            "sums": {**label.proof, "sums": "0" * 64}, "none": {},
        }  # fmt: skip
        values["proof"] = changed[change]
    config["description"] = labels.Label(**values).describe()
    before = field.proxmox.inventory()
    with pytest.raises(VerificationFailed):
        field.clone(trust)
    assert field.proxmox.inventory() == before


def test_golden_yaml_says_who_must_sign(
    bench: Bench, keys: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "checkout"
    root.mkdir()
    write_spec(root, bench.settings)
    text = yaml.safe_load((root / "golden.yaml").read_text()) | {"releases": {"signers": "signers"}}
    (root / "golden.yaml").write_text(yaml.safe_dump(text))
    proven.allow(root / "signers", keys[ALICE])
    found = make_artifact(root)
    monkeypatch.setenv("GOLDSMITH_PVE_TOKEN", f"{TOKEN.identity}={TOKEN.secret}")
    words = ["publish", "--project", str(root), "--cache", str(tmp_path / "cache")]
    assert main.main(words) == 3
    assert "if only signatures are missing: nox -s attest" in capsys.readouterr().err
    assert bench.proxmox.calls.total() == 0
    assert main.main(["attest", str(found.path), "--project", str(root), "--key", str(keys[ALICE])]) == 0
    monkeypatch.setattr(node_verify.NodeVerifier, "verify", lambda _self, _subject: None)
    assert main.main(words) == 0
    label = labels.parse(str(description(bench)["description"]))
    assert label is not None
    assert list(label.proof["signatures"]) == [ALICE]


def test_drift_takes_signatures_for_part_of_what_was_published(bench: Bench, keys: dict[str, Path], trust: Trust) -> None:
    found = make_artifact(bench.place)
    sign(found, keys[ALICE])
    bench.publish(found, trust=trust)

    def changed() -> list[str]:
        with client.Api(bench.settings, bench.token) as api:
            job = drift.Job(api=api, settings=bench.settings, product="golden", artifacts=found.path.parent)
            [verdict] = drift.drift(job)
        return [one.key for one in verdict.changes]

    assert changed() == []
    # A signature that came beside the artifact since then is no change of the template.
    sign(found, keys[BOB])
    assert changed() == []
    config = description(bench)
    label = labels.parse(str(config["description"]))
    assert label is not None
    config["description"] = labels.Label(**{**vars(label), "proof": {**label.proof, "sums": "0" * 64}}).describe()
    assert changed() == ["description"]
