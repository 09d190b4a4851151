"""Signing with the real ssh-keygen and ssh-agent on a real terminal, and with a fake cosign that checks its arguments."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen  # a separate terminal, which build/core/run.py does not provide

import pytest

from build.artifact import artifact, signing, verification
from build.artifact.artifact import Artifact
from build.artifact.statement import Statement
from build.cli import main as cli_main
from build.core import run
from build.core.errors import HostError, SpecError, StepFailed
from build.machines import disk_image
from tests import proven
from tests.fakes import Fakes
from tests.patience import PATIENCE_SECONDS
from tests.unit.helpers import golden, write_spec

ALICE, BOB = "alice@example.org", "bob@example.org"
ROOT = Path(__file__).parents[3]
PASSPHRASE = "long enough"
WAIT_SECONDS = 120


@pytest.fixture
def found(tmp_path: Path) -> Artifact:
    (tmp_path / "image").write_bytes(b"the pristine disk")
    return proven.make(tmp_path / "artifacts", tmp_path / "image")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return proven.make_key(tmp_path / "keys", ALICE)


def attest(found: Artifact, *words: object) -> int:
    return cli_main.main(["attest", str(found.path), "--project", str(found.path.parent.parent), *map(str, words)])


def verify(found: Artifact, *words: object) -> int:
    return cli_main.main(["verify-artifact", str(found.path), "--project", str(found.path.parent.parent), *map(str, words)])


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An agent that ends with the test."""
    # Short: the path of a socket has a limit.
    said = run.run(["ssh-agent", "-s"], timeout=PATIENCE_SECONDS).stdout
    variables = dict(re.findall(r"(SSH_[A-Z_]+)=([^;]+);", said))
    monkeypatch.setenv("SSH_AUTH_SOCK", variables["SSH_AUTH_SOCK"])
    yield
    run.run(["ssh-agent", "-k"], timeout=PATIENCE_SECONDS, env=variables)


# --- keys ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_every_kind_of_key_signs_and_says_whose_it_is(tmp_path: Path, kind: str) -> None:
    key = proven.make_key(tmp_path / "keys", ALICE, kind=kind)
    signature = signing.sign("text\n", key)
    assert signing.key_of("text\n", signature) == signing.fingerprint(key) == signing.fingerprint(key.with_suffix(".pub"))
    assert signing.comment(key) == ALICE
    assert signing.key_of("other\n", signature) == ""
    signers = proven.allow(tmp_path / "signers", key)
    assert signing.verify("text\n", signature, "whoever", signers=signers) == signing.Signer(ALICE, signing.fingerprint(key))


def test_the_agent_signs_with_the_key_that_it_holds(
    tmp_path: Path, found: Artifact, key: Path, agent: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run.run(["ssh-add", "-q", key], timeout=PATIENCE_SECONDS, env={"SSH_AUTH_SOCK": os.environ["SSH_AUTH_SOCK"]})
    key.unlink()
    assert attest(found, "--key", key.with_suffix(".pub")) == 0
    assert verify(found, "--signers", proven.allow(tmp_path / "signers", key)) == 0
    # Without the agent there is nothing to sign with: the public key alone is not enough.
    os.environ.pop("SSH_AUTH_SOCK")
    (verification.place(found) / f"{ALICE}.sig").unlink()
    assert attest(found, "--key", key.with_suffix(".pub")) == 1
    assert "ssh-keygen did not sign" in capsys.readouterr().err


def test_a_passphrase_without_a_terminal_is_told(tmp_path: Path) -> None:
    key = proven.make_key(tmp_path / "keys", ALICE, passphrase=PASSPHRASE)
    with pytest.raises(StepFailed) as caught:
        signing.sign("text\n", key)
    assert caught.value.hint == "a key with a passphrase needs a terminal, or must be in the agent: ssh-add"


def test_a_passphrase_is_asked_for_on_the_terminal(tmp_path: Path, found: Artifact) -> None:
    key = proven.make_key(tmp_path / "keys", ALICE, passphrase=PASSPHRASE)
    main, side = pty.openpty()
    # The first terminal that a session opens controls it, and is where ssh-keygen asks.
    words = [str(found.path), "--key", str(key), "--project", str(tmp_path)]
    argv = ["setsid", "--ctty", "--wait", sys.executable, "-m", "build", "attest", *words]
    with Popen(argv, cwd=ROOT, stdin=side, stdout=side, stderr=side) as process:
        os.close(side)
        said = b""
        try:
            while select.select([main], [], [], WAIT_SECONDS)[0]:
                said += os.read(main, 4096)
                if said.endswith(b": ") and b"passphrase" in said.splitlines()[-1]:
                    os.write(main, f"{PASSPHRASE}\n".encode())
        except OSError:
            pass  # the other end is closed
        assert process.wait(WAIT_SECONDS) == 0, said.decode()
    os.close(main)
    assert PASSPHRASE.encode() not in said
    assert verify(found, "--signers", proven.allow(tmp_path / "signers", key)) == 0


def test_what_is_no_key_is_told(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("no key")
    for path in (tmp_path / "key", tmp_path / "nowhere"):
        with pytest.raises(SpecError, match="is not an SSH key"):
            signing.fingerprint(path)


# --- signers ------------------------------------------------------------------------------------------------------------


def test_the_name_is_that_of_the_allowed_signers_else_the_keys_comment(
    found: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = proven.make_key(tmp_path / "keys", "a laptop")
    assert attest(found, "--key", key) == 2
    assert "its comment 'a laptop' is no name to sign under" in capsys.readouterr().err
    write_spec(tmp_path, golden(releases={"signers": "signers"}))
    (tmp_path / "signers").write_text(f"{ALICE} {key.with_suffix('.pub').read_text()}")
    assert attest(found, "--key", key) == 0
    assert capsys.readouterr().out == f"{verification.place(found)}/{ALICE}.sig\n"
    # golden.yaml lists the signers that count, unless an option overrides it.
    assert verify(found) == 0
    assert f"signatures: 1 of 1 needed: {ALICE}" in capsys.readouterr().out
    assert verify(found, "--signatures", 2) == 3


@pytest.mark.parametrize("name", ["../x", "-x", "a b", "x/y", ""])
def test_a_name_that_is_no_file_name_is_refused(found: Artifact, tmp_path: Path, name: str) -> None:
    key = proven.make_key(tmp_path / "keys", "key", kind="ed25519")
    run.run(["ssh-keygen", "-q", "-c", "-C", "", "-f", key], timeout=PATIENCE_SECONDS)
    assert attest(found, "--key", key, f"--identity={name}") == 2
    assert list(verification.place(found).glob("*.sig")) == []


def test_what_does_not_verify_is_not_signed(found: Artifact, key: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with proven.opened(found.path) as path:
        (path / "logs/x.log").write_text("other")
    assert attest(found, "--key", key) == 3
    assert "logs/x.log: changed" in capsys.readouterr().err
    assert not verification.place(found).exists()


def test_nothing_to_sign_with_is_told(found: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    assert attest(found) == 2
    assert "name your key: --key" in capsys.readouterr().err


# --- verifying ----------------------------------------------------------------------------------------------------------


def test_the_answer_for_programs(found: Artifact, key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    attest(found, "--key", key)
    capsys.readouterr()
    assert verify(found, "--json", "--signers", proven.allow(tmp_path / "signers", key)) == 0
    good = json.loads(capsys.readouterr().out)
    assert (good["artifact"], good["verifies"]) == (found.path.name, True)
    assert {one["status"] for one in good["checks"]} == {"ok"}
    assert verify(found, "--json", "--signers", proven.allow(tmp_path / "none")) == 3
    bad = json.loads(capsys.readouterr().out)
    assert [one["check"] for one in bad["checks"] if one["status"] == "FAILED"] == ["signatures"]
    assert bad["verifies"] is False


def test_what_was_not_asked_does_not_look_like_an_answer(found: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(found) == 0
    said = capsys.readouterr().out
    assert "not checked  signatures: " in said
    assert said.endswith("verifies; not checked: signatures\n")


@pytest.mark.parametrize("damage", ["{", "[]", '{"schema": 2}', '{"schema": 9}', ""])
def test_an_artifact_whose_manifest_is_damaged_fails(
    found: Artifact, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with proven.opened(found.path) as path:
        (path / "manifest.json").write_text(damage)
        if not damage:
            (path / "manifest.json").unlink()
    assert verify(found) == 3
    assert capsys.readouterr().out.startswith("FAILED       manifest: ")


def test_bad_words_are_told(found: Artifact, tmp_path: Path) -> None:
    assert verify(found, "--signers", tmp_path / "nowhere") == 2
    assert verify(found, "--signatures", 1) == 2
    assert verify(found, "--signatures", 0, "--signers", found.path / "SHA256SUMS") == 2
    (tmp_path / "empty").mkdir()
    assert cli_main.main(["verify-artifact", str(tmp_path / "empty")]) == 2


def test_everything_can_be_done_by_hand(found: Artifact, key: Path, tmp_path: Path) -> None:
    """The commands of docs/how-to/proof.md work: sha256sum, jq and ssh-keygen are enough."""
    attest(found, "--key", key)
    signers = proven.allow(tmp_path / "signers", key)
    page = (ROOT / "docs" / "how-to" / "proof.md").read_text(encoding="utf-8")
    [script] = re.findall(r"```sh\n(# by hand\n.*?)```", page, re.DOTALL)
    variables = {"DIR": str(found.path), "SIGNERS": str(signers), "WHO": ALICE}
    done = run.run(["sh", "-euc", script], timeout=60, env=variables)
    assert f'Good "goldsmith-artifact" signature for {ALICE}' in done.stdout
    with proven.opened(found.path) as path:
        (path / disk_image.IMAGE).write_bytes(b"another disk")
    assert run.run(["sh", "-euc", script], timeout=60, env=variables, check=False).returncode != 0
    proven.rewrite_sums(found.path)
    assert run.run(["sh", "-euc", script], timeout=60, env=variables, check=False).returncode != 0


# --- cosign -------------------------------------------------------------------------------------------------------------


def test_cosign_signs_and_verifies_without_asking_a_service(
    found: Artifact, fakes: Fakes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cosign = fakes.install("cosign", "cosign.py", {})
    for name in ("team.key", "team.pub"):
        (tmp_path / name).write_text("one key pair")
    (tmp_path / "other.pub").write_text("another key pair")
    assert attest(found, "--cosign-key", tmp_path / "team.key") == 0
    bundle = verification.place(found) / "team.sigstore.json"
    assert capsys.readouterr().out == f"{bundle}\n"
    assert attest(found, "--cosign-key", tmp_path / "team.key") == 0
    assert len(cosign.calls()) == 1
    assert verify(found, "--cosign-key", tmp_path / "team.pub") == 0
    assert verify(found, "--cosign-key", tmp_path / "other.pub") == 3
    # The signature is checked against the expected statement, not against the stored file.
    image = tmp_path / "image2"
    image.write_bytes(b"another disk")
    other = proven.make(tmp_path / "artifacts", image)
    shutil.copytree(verification.place(found), verification.place(other))
    assert verify(other, "--cosign-key", tmp_path / "team.pub") == 3


@pytest.mark.skipif(shutil.which("cosign") is None, reason="the host has no cosign")
def test_cosign_itself_signs_and_verifies_without_a_network(
    found: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the host has cosign 3.0.4 or later: the same with the real program, without access to any network."""
    monkeypatch.setenv("COSIGN_PASSWORD", "a password")
    (tmp_path / "bin").mkdir()
    program = shutil.which("cosign")
    (tmp_path / "bin" / "cosign").write_text(f'#!/bin/sh\nexec unshare --user --map-root-user --net {program} "$@"\n')
    (tmp_path / "bin" / "cosign").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    for name in ("team", "other"):
        argv = ["cosign", "generate-key-pair", "--output-key-prefix", str(tmp_path / name)]
        run.run(argv, timeout=60, env={"COSIGN_PASSWORD": "a password"})
    assert attest(found, "--cosign-key", tmp_path / "team.key") == 0
    assert verify(found, "--cosign-key", tmp_path / "team.pub") == 0
    assert verify(found, "--cosign-key", tmp_path / "other.pub") == 3


def test_cosign_that_fails_or_is_missing_is_told(
    found: Artifact, fakes: Fakes, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes.install("cosign", "cosign.py", {})
    assert attest(found, "--cosign-key", tmp_path / "nowhere.key") == 1
    assert "reading key" in capsys.readouterr().err
    (fakes.directory / "cosign").unlink()
    monkeypatch.setattr(run, "search_path", lambda: str(fakes.directory))
    with pytest.raises(HostError, match="cosign is not installed"):
        signing.cosign_verify(tmp_path / "x", "k", tmp_path / "y")


def test_the_statement_lies_beside_the_signatures(found: Artifact, key: Path) -> None:
    attest(found, "--key", key)
    assert (verification.place(found) / "statement.json").read_text() == Statement.of(found).text
    assert artifact.committed(found.path.parent) == [found.path]
