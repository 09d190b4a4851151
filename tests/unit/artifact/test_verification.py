"""A valid artifact verifies; every kind of tampering with it, its signatures and its template is detected."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from build.artifact import artifact, statement, verification
from build.artifact.artifact import Artifact
from build.artifact.statement import Seal, Statement
from build.artifact.verification import NO_TRUST, Trust
from build.cli import attest
from build.cli.attest import Keys
from build.core import run
from build.core.errors import SpecError, VerificationFailed
from build.core.project import Project
from build.proxmox import labels, template_trust
from build.proxmox.labels import State
from build.spec.release_policy import Policy
from tests import proven

ALICE, BOB = "alice@example.org", "bob@example.org"


@pytest.fixture
def found(tmp_path: Path) -> Artifact:
    image = tmp_path / "image"
    image.write_bytes(b"the pristine disk")
    return proven.make(tmp_path / "artifacts", image)


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, Path]:
    return {name: proven.make_key(tmp_path / "keys", name) for name in (ALICE, BOB)}


@pytest.fixture
def trust(tmp_path: Path, keys: dict[str, Path]) -> Trust:
    return Trust(proven.allow(tmp_path / "signers", *keys.values()), 1)


def sign(found: Artifact, key: Path, identity: str = "") -> Path:
    [path] = attest.attest(Project(found.path.parent), found, Keys(key, identity, ""))
    return path


def failed(found: Artifact, trust: Trust = NO_TRUST) -> dict[str, tuple[str, ...]]:
    """Return the checks that fail and the problems that each reports."""
    return {check.name: check.problems for check in verification.verify(artifact.load(found.path), trust) if check.problems}


def test_what_was_built_verifies(found: Artifact) -> None:
    checks = verification.verify(found, NO_TRUST)
    assert [(check.name, check.status) for check in checks] == [
        *((name, "ok") for name in
          ("files", "manifest", "name", "image", "locks", "bills", "provenance", "chain", "tests")),
        ("signatures", "not checked"),
    ]  # fmt: skip
    verification.require(found, NO_TRUST)


def test_it_verifies_wherever_it_is_copied_to(found: Artifact, tmp_path: Path, keys: dict[str, Path], trust: Trust) -> None:
    sign(found, keys[ALICE])
    there = proven.copy(found, tmp_path / "elsewhere")
    shutil.rmtree(found.path.parent, onerror=lambda *_: None)
    assert failed(there, trust) == {}


# --- tampering --------------------------------------------------------------------------------------------------------


def edit(path: Path, name: str, change: Callable[[Any], object]) -> None:
    """Change a JSON file of the artifact."""
    value = json.loads((path / name).read_text())
    change(value)
    (path / name).write_text(json.dumps(value))


def replace(path: Path, name: str, old: str, new: str) -> None:
    text = (path / name).read_text()
    assert old in text
    (path / name).write_text(text.replace(old, new))


def manifest(*keys: str, value: Any) -> Callable[[Path], None]:
    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        assert content[keys[-1]] != value
        content[keys[-1]] = value

    return lambda path: edit(path, "manifest.json", change)


def component(document: Any, name: str) -> Any:
    return next(one for one in document.get("components", document.get("packages")) if one["name"] == name)


def drop_line(path: Path, start: str) -> None:
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if not line.startswith(start)))


def definition(document: Any) -> Any:
    return document["predicate"]["buildDefinition"]


def drop_component(document: Any) -> None:
    document["components"] = [one for one in document["components"] if one["name"] != "nginx"]


def add_package(document: Any) -> None:
    document["packages"].append({**component(document, "nginx"), "name": "extra"})


AGE = "pool/main/a/age/age_1.2.1-1+b5_amd64.deb"
TAMPERING: dict[str, tuple[Callable[[Path], object], str]] = {
    "a byte of the image": (lambda path: (path / "image.qcow2").write_bytes(b"the pristine disK"), "image"),
    "the manifest's version": (manifest("version", value="9.9.9"), "name"),
    "the manifest's image": (manifest("image", "sha256", value="0" * 64), "image"),
    "the manifest's commit": (manifest("inputs", "commit", value="f" * 40), "provenance"),
    "a commit that is none": (manifest("inputs", "commit", value="main"), "manifest"),
    "whether it was dirty": (manifest("inputs", "dirty", value=True), "provenance"),
    "the spec in the manifest": (manifest("inputs", "spec", "layers", value=[]), "chain"),
    "a package in the manifest": (manifest("packages", "nginx", value="2.0-1"), "locks"),
    "a wheel in the manifest": (manifest("wheels", "40-app", "packages", "django", value="6.0"), "locks"),
    "a stage's key": (manifest("inputs", "stage_keys", "disk", value="0" * 16), "chain"),
    "the squashfs in the manifest": (manifest("inputs", "squashfs_sha256", value="0" * 64), "chain"),
    "how many tests passed": (manifest("verification", "passed", value=999), "tests"),
    "who built it": (manifest("built", "builder", value="https://ci.example.org/job/1"), "provenance"),
    "a line of the lock": (lambda path: replace(path, "rootfs.lock", "nginx\t1.0-1", "nginx\t1.0-2"), "bills"),
    "a hash in the lock": (lambda path: replace(path, "rootfs.lock", AGE, AGE.replace("b5", "b6")), "provenance"),
    "a line taken from the lock": (lambda path: drop_line(path / "rootfs.lock", "age\t"), "locks"),
    "the installer's lock": (lambda path: replace(path, "installer.lock", "1.0-1", "1.0-2"), "locks"),
    "a wheel's lock": (lambda path: replace(path, proven.WHEEL_LOCK, "d" * 64, "0" * 64), "bills"),
    "a hash in CycloneDX": (
        lambda path: edit(path, "sbom.cdx.json", lambda x: component(x, "nginx")["hashes"][0].update(content="0" * 64)),
        "bills"),
    "a version in CycloneDX": (
        lambda path: edit(path, "sbom.cdx.json", lambda x: component(x, "django").update(version="6.0")), "bills"),
    "a component taken from CycloneDX": (lambda path: edit(path, "sbom.cdx.json", drop_component), "bills"),
    "a package put into SPDX": (lambda path: edit(path, "sbom.spdx.json", add_package), "bills"),
    "a purl in SPDX": (
        lambda path: edit(path, "sbom.spdx.json",
                          lambda x: component(x, "age")["externalRefs"][0].update(referenceLocator="pkg:deb/debian/x@1")),
        "bills"),
    "a licence in SPDX": (
        lambda path: edit(path, "sbom.spdx.json", lambda x: component(x, "nginx").update(licenseComments="MIT")),
        "provenance"),
    "the provenance's subject": (
        lambda path: edit(path, "provenance.json", lambda x: x["subject"][0]["digest"].update(sha256="0" * 64)),
        "provenance"),
    "the provenance's commit": (
        lambda path: edit(path, "provenance.json", lambda x: definition(x)["resolvedDependencies"].pop(0)), "provenance"),
    "a byproduct": (
        lambda path: edit(path, "provenance.json", lambda x: x["predicate"]["runDetails"]["byproducts"].reverse()),
        "provenance"),
    "a stage's inputs": (
        lambda path: edit(path, "inputs.json", lambda x: x["disk"].update(size_mib=128)), "chain"),
    "a result in JUnit": (lambda path: (path / artifact.JUNIT).write_text(proven.junit(4, skipped=1)), "tests"),
    "a failure in JUnit": (
        lambda path: replace(path, artifact.JUNIT, '<skipped message="x" />', '<failure message="x" />'), "tests"),
    "the list of files": (lambda path: (path / artifact.TREE).write_text(proven.TREE + "/etc/evil\tfile\n"), "chain"),
    "a log": (lambda path: (path / "logs/x.log").write_text("another"), "files"),
    "JSON that is none": (lambda path: (path / "provenance.json").write_text("{"), "provenance"),
    "XML that is none": (lambda path: (path / artifact.JUNIT).write_text("<x"), "tests"),
    "a missing file": (lambda path: (path / "provenance.json").unlink(), "provenance"),
    "a missing log": (lambda path: (path / "logs/x.log").unlink(), "files"),
    "an extra file": (lambda path: (path / "logs/added.log").touch(), "files"),
    "a link": (lambda path: (path / "logs/link").symlink_to("/etc/hostname"), "files"),
    "no list of sums": (lambda path: (path / "SHA256SUMS").unlink(), "files"),
    "another name": (lambda path: path.rename(path.with_name("golden-1.2.4-000000000000")), "name"),
}  # fmt: skip
# Only SHA256SUMS covers these: if it is rewritten, the signatures detect it.
ONLY_SUMS = {"a log", "a missing log", "an extra file", "a link", "no list of sums"}


def load(found: Artifact) -> Artifact:
    """Load the artifact where it is now."""
    return artifact.load(next(path for path in found.path.parent.glob("golden-*") if path.suffix != ".signatures"))


@pytest.mark.parametrize("what", TAMPERING)
def test_tampering_is_caught(found: Artifact, what: str) -> None:
    change, check = TAMPERING[what]
    with proven.opened(found.path) as path:
        change(path)
    told = failed(load(found))
    assert check in told
    # Whatever it is, the sums say so too; a directory that is only called otherwise has the same files.
    assert "files" in told or what == "another name"
    with pytest.raises(VerificationFailed) as caught:
        verification.require(load(found), NO_TRUST)
    assert caught.value.exit_code == 3
    assert f"FAILED       {check}: " in caught.value.details


@pytest.mark.parametrize("what", sorted(set(TAMPERING) - ONLY_SUMS - {"another name"}))
def test_tampering_is_caught_though_the_sums_were_written_anew(found: Artifact, what: str) -> None:
    change, check = TAMPERING[what]
    with proven.opened(found.path) as path:
        change(path)
        proven.rewrite_sums(path)
    told = failed(load(found))
    assert check in told
    assert "files" not in told


@pytest.mark.parametrize("what", sorted(set(TAMPERING)))
def test_no_signature_survives_tampering(found: Artifact, what: str, keys: dict[str, Path], trust: Trust) -> None:
    sign(found, keys[ALICE])
    assert failed(found, trust) == {}
    with proven.opened(found.path) as path:
        TAMPERING[what][0](path)
        signatures = path.with_name(f"{path.name}.signatures")
    if what == "another name":
        # Whoever renames the directory also renames the directory of its signatures.
        signatures.rename(signatures.with_name("golden-1.2.4-000000000000.signatures"))
    elif what != "no list of sums":
        proven.rewrite_sums(found.path)
    assert "signatures" in failed(load(found), trust)


def test_a_manifest_of_the_first_schema_is_told_to_build_anew(found: Artifact) -> None:
    with proven.opened(found.path) as path:
        edit(path, "manifest.json", lambda content: content.update(schema=1))
    [check, *_] = verification.verify(artifact.load(found.path), NO_TRUST)
    assert check.render() == (
        "FAILED       manifest: Goldsmith 0.1.0 wrote it, without provenance: build the artifact again\n"
        "             schema 1, not 2"
    )
    with pytest.raises(VerificationFailed):
        sign(found, found.path)


# --- signatures -------------------------------------------------------------------------------------------------------


def test_several_people_sign_and_are_counted(found: Artifact, keys: dict[str, Path], trust: Trust) -> None:
    both = Trust(trust.signers, 2)
    sign(found, keys[ALICE])
    assert failed(found, trust) == {}
    assert failed(found, both) == {"signatures": ("1 of 2 required signatures are by allowed signers",)}
    sign(found, keys[BOB])
    assert failed(found, both) == {}
    policy = Policy(signers=Path("signers"), signatures=2)
    assert verification.signatures_of(found, policy, found.path.parent.parent) == (ALICE, BOB)


def test_signing_twice_changes_nothing(found: Artifact, keys: dict[str, Path]) -> None:
    first = sign(found, keys[ALICE])
    before = first.stat().st_mtime_ns
    assert sign(found, keys[ALICE]) == first
    assert first.stat().st_mtime_ns == before


def test_a_name_that_another_key_has_signed_under_is_kept(found: Artifact, keys: dict[str, Path]) -> None:
    path = sign(found, keys[ALICE])
    before = path.read_bytes()
    with pytest.raises(SpecError, match="already exists: a signature by another key"):
        sign(found, keys[BOB], ALICE)
    assert path.read_bytes() == before


def test_one_key_under_two_names_counts_once(found: Artifact, keys: dict[str, Path], tmp_path: Path) -> None:
    public = keys[ALICE].with_suffix(".pub").read_text().strip()
    (tmp_path / "signers").write_text(f"{ALICE} {public}\n{BOB} {public}\n")
    path = sign(found, keys[ALICE], ALICE)
    shutil.copyfile(path, path.with_name(f"{BOB}.sig"))
    assert failed(found, Trust(tmp_path / "signers", 2)) == {
        "signatures": ("1 of 2 required signatures are by allowed signers",)
    }


def test_two_keys_of_one_person_count_once(found: Artifact, keys: dict[str, Path], tmp_path: Path) -> None:
    lines = [f"{ALICE} {keys[name].with_suffix('.pub').read_text()}" for name in (ALICE, BOB)]
    (tmp_path / "signers").write_text("".join(lines))
    sign(found, keys[ALICE])
    sign(found, keys[BOB])
    assert "signatures" in failed(found, Trust(tmp_path / "signers", 2))


def test_a_signature_by_a_key_that_nobody_knows(found: Artifact, keys: dict[str, Path], tmp_path: Path) -> None:
    sign(found, keys[BOB])
    trust = Trust(proven.allow(tmp_path / "signers", keys[ALICE]), 1)
    assert failed(found, trust) == {
        "signatures": (
            f"{BOB}: the key is not allowed, no longer allowed, or revoked",
            "0 of 1 required signatures are by allowed signers",
        )
    }  # fmt: skip
    sign(found, keys[ALICE])
    assert failed(found, trust) == {}


def test_another_name_on_a_strangers_signature_does_not_help(found: Artifact, keys: dict[str, Path], tmp_path: Path) -> None:
    sign(found, keys[BOB], ALICE)
    assert "signatures" in failed(found, Trust(proven.allow(tmp_path / "signers", keys[ALICE]), 1))


def test_a_signature_over_another_statement(found: Artifact, keys: dict[str, Path], trust: Trust, tmp_path: Path) -> None:
    image = tmp_path / "other"
    image.write_bytes(b"another disk")
    path = sign(proven.make(tmp_path / "artifacts", image), keys[ALICE])
    place = verification.place(found)
    place.mkdir()
    shutil.copyfile(path, place / path.name)
    # Not even in addition to enough valid ones: a third party added it.
    sign(found, keys[BOB])
    assert failed(found, trust) == {"signatures": (f"{ALICE}: the signature is damaged, or of another artifact",)}


def test_a_signature_made_for_another_purpose(found: Artifact, keys: dict[str, Path], trust: Trust, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text(Statement.of(found).text)
    run.run(["ssh-keygen", "-Y", "sign", "-f", keys[ALICE], "-n", "git", text], timeout=60)
    verification.place(found).mkdir()
    shutil.copyfile(tmp_path / "text.sig", verification.place(found) / f"{ALICE}.sig")
    assert "signatures" in failed(found, trust)


@pytest.mark.parametrize(("options", "good"), [
    ('valid-before="20200101"', False), ('valid-after="20990101"', False),
    ('valid-after="20200101",valid-before="20990101"', True), ('namespaces="git"', False),
])  # fmt: skip
def test_the_options_of_allowed_signers_are_honoured(
    found: Artifact, keys: dict[str, Path], tmp_path: Path, options: str, *, good: bool
) -> None:
    sign(found, keys[ALICE])
    trust = Trust(proven.allow(tmp_path / "signers", keys[ALICE], options=options), 1)
    assert ("signatures" not in failed(found, trust)) is good


def test_a_revoked_key_does_not_count(found: Artifact, keys: dict[str, Path], trust: Trust, tmp_path: Path) -> None:
    sign(found, keys[ALICE])
    plain = keys[ALICE].with_suffix(".pub")
    krl = tmp_path / "revoked.krl"
    run.run(["ssh-keygen", "-q", "-k", "-f", krl, plain], timeout=60)
    for revoked in (plain, krl):
        assert "signatures" in failed(found, Trust(trust.signers, 1, revoked))
    assert failed(found, Trust(trust.signers, 1, keys[BOB].with_suffix(".pub"))) == {}


def test_a_file_that_decides_about_trust_must_be_there(found: Artifact, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="nowhere does not exist"):
        verification.verify(found, Trust(tmp_path / "nowhere", 1))
    with pytest.raises(SpecError, match="no allowed signers file is set"):
        template_trust.require_template(label_of(found), Trust(None, 1), where="it")


# --- templates --------------------------------------------------------------------------------------------------------


def label_of(found: Artifact, trust: Trust = NO_TRUST) -> labels.Label:
    return labels.of(found, state=State.TEMPLATE, published="2026-11-22", run="r", seal=verification.seal(found, trust))


def test_a_template_carries_who_vouches_for_it(found: Artifact, keys: dict[str, Path], trust: Trust) -> None:
    sign(found, keys[ALICE])
    sign(found, keys[BOB])
    text = label_of(found, trust).describe()
    assert f"* Statement: `{Statement.of(found).digest}`" in text
    assert f"* Signed by: `{ALICE}, {BOB}`" in text
    read = labels.parse(text)
    assert read is not None
    assert template_trust.require_template(read, Trust(trust.signers, 2), where="it") == (ALICE, BOB)
    assert len(text.encode()) < 2500


def test_a_template_without_signatures_is_refused_when_they_are_asked_for(found: Artifact, trust: Trust) -> None:
    label = label_of(found)
    assert template_trust.require_template(label, NO_TRUST, where="it") == ()
    with pytest.raises(VerificationFailed, match="on pve1 does not verify") as caught:
        template_trust.require_template(label, trust, where="golden-1.2.3 on pve1")
    assert caught.value.details == "0 of 1 required signatures are by allowed signers"
    bare = labels.of(found, state=State.TEMPLATE, published="", run="r")
    with pytest.raises(VerificationFailed) as caught:
        template_trust.require_template(bare, trust, where="it")
    assert caught.value.details == "its description has no signatures"


@pytest.mark.parametrize("changed", [
    {"digest": "0" * 64}, {"version": "9.9.9"}, {"name": "other"}, {"artifact": "golden-9.9.9-000000000000"},
    {"proof": {"sums": "0" * 64}}, {"proof": {"provenance": "0" * 64}}, {"proof": {"signatures": {ALICE: "AAAA"}}},
    {"proof": {"signatures": {"-f /etc/x": "AAAA"}}}, {"proof": {"signatures": []}},
])  # fmt: skip
def test_a_label_that_was_edited_is_refused(
    found: Artifact, keys: dict[str, Path], trust: Trust, changed: dict[str, Any]
) -> None:
    sign(found, keys[ALICE])
    label = label_of(found, trust)
    values = {**vars(label), **changed}
    if "proof" in changed:
        values["proof"] = {**label.proof, **changed["proof"]}
    with pytest.raises(VerificationFailed):
        template_trust.require_template(labels.Label(**values), trust, where="it")


def test_long_signatures_leave_room_for_the_rest_of_the_description(
    found: Artifact, keys: dict[str, Path], tmp_path: Path
) -> None:
    long = [proven.make_key(tmp_path / "long", f"rsa{number}@example.org", kind="rsa") for number in range(4)]
    for key in [*long, keys[ALICE]]:
        sign(found, key)
    signers = proven.allow(tmp_path / "signers", *long, keys[ALICE])
    seal = verification.seal(found, Trust(signers, 2))
    assert ALICE in seal.signatures
    assert 2 <= len(seal.signatures) < 5
    assert sum(len(name) + len(body) for name, body in seal.signatures.items()) <= verification.MOST_SIGNATURE_BYTES
    with pytest.raises(SpecError, match="of 5 signatures fit into a template"):
        verification.seal(found, Trust(signers, 5))


def test_a_signature_has_a_short_form(found: Artifact, keys: dict[str, Path]) -> None:
    text = sign(found, keys[ALICE]).read_text()
    assert statement.armoured(statement.short(text)) == text
    assert len(statement.short(text)) < 320
    for broken in ("", "x", text.replace("BEGIN", "START"), text.replace("SSHSIG", "?")[:50]):
        assert statement.short(broken) == ""
    assert Seal.parse({}) is None


def test_the_statement_is_the_same_for_everybody(found: Artifact) -> None:
    now = Statement.of(found)
    time.sleep(0.01)
    assert now.text == Statement.of(artifact.load(found.path)).text
    assert json.loads(now.text) == {
        "kind": "goldsmith-artifact", "schema": 1, "artifact": found.path.name, "image": now.image, "sums": now.sums,
        "provenance": now.provenance,
    }  # fmt: skip
