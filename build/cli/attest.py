"""The command ``attest``: verifies an artifact, and signs it; several people can, one after the other."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from build.artifact import artifact, find, signing, verification
from build.artifact.artifact import Artifact
from build.artifact.statement import IDENTITY, Statement
from build.artifact.verification import BUNDLE, SIGNATURE, STATEMENT, Trust
from build.cli import options as common
from build.core import files, log
from build.core.errors import SpecError, VerificationFailed
from build.core.project import Project
from build.spec import golden_yaml as specs


@dataclass(frozen=True)
class Keys:
    """The keys to sign with: an SSH key and the name to sign under, and a key of cosign (a file, or an address)."""

    key: Path | None
    identity: str
    cosign: str


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``attest``."""
    common.add_project(parser)
    common.add_artifact(parser)
    parser.add_argument(
        "--key", type=Path, metavar="FILE", help="SSH key to sign with (the .pub file if the private key is in the agent)"
    )
    parser.add_argument(
        "--identity", default="", metavar="NAME", help="your name as a signer (default: as in the file of allowed signers)"
    )
    parser.add_argument("--cosign-key", default="", metavar="KEY", help="sign with cosign too: its key file, or its address")


def run(arguments: argparse.Namespace) -> int:
    """Verify and sign; print the files of the signatures."""
    project = common.project_of(arguments)
    signed = attest(
        project, chosen(project, arguments.artifact), Keys(arguments.key, arguments.identity, arguments.cosign_key)
    )
    print("\n".join(str(path) for path in signed))
    return 0


def chosen(project: Project, directory: Path | None) -> Artifact:
    """Return the artifact of a directory, or the newest one."""
    return artifact.load(directory.absolute()) if directory else find.newest(project)


def trust_of(project: Project) -> Trust:
    """Return the trust of golden.yaml; without a checkout no signer is trusted."""
    return Trust.of(specs.load(project.spec).releases, project.root) if project.spec.is_file() else verification.NO_TRUST


def attest(project: Project, found: Artifact, keys: Keys) -> list[Path]:
    """Sign an artifact that verifies; return the signatures' files. A signature that this key already made stays as it is.

    Raises VerificationFailed when the artifact does not verify, SpecError when the name is another key's, StepFailed when
    the program did not sign.
    """
    if keys.key is None and not keys.cosign:
        raise SpecError("there is nothing to sign with", hint="name your key: --key ~/.ssh/id_ed25519")
    with log.step(f"Verifying {found.path.name}", done="it verifies"):
        verification.require(found, verification.NO_TRUST)
    statement, home = Statement.of(found), verification.place(found)
    home.mkdir(exist_ok=True)
    files.write_atomic(home / STATEMENT, statement.text)
    signatures = []
    if keys.key:
        signatures.append(_sign(project, statement, home, keys.key, keys.identity))
    if keys.cosign:
        signatures.append(_cosign(home, keys.cosign))
    return signatures


def _sign(project: Project, statement: Statement, home: Path, key: Path, wanted: str) -> Path:
    mine = signing.fingerprint(key)
    for path in sorted(home.glob(f"*{SIGNATURE}")):
        if signing.key_of(statement.text, path.read_text(errors="replace")) == mine and wanted in ("", _filed(path)):
            log.info(f"{_filed(path)} has signed it already, with this key ({mine}): nothing is changed")
            return path
    if wanted:
        _require_name(wanted, f"--identity {wanted}")
        _require_free(home, wanted)
    signature = signing.sign(statement.text, key)
    identity = wanted or _identity(project, statement, signature, key)
    target = _require_free(home, identity)
    if not signing.key_of(statement.text, signature):
        raise VerificationFailed("ssh-keygen does not accept its own signature", hint=f"is {key} the key you mean?")
    files.write_atomic(target, signature)
    log.info(f"{identity} has signed it ({mine})")
    return target


def _filed(path: Path) -> str:
    return path.name.removesuffix(SIGNATURE)


def _identity(project: Project, statement: Statement, signature: str, key: Path) -> str:
    """Return the name that the allowed signers of golden.yaml have for the key, else the key's comment."""
    trust = trust_of(project)
    if trust.signers and trust.signers.is_file():
        if who := signing.verify(statement.text, signature, signing.comment(key) or "unknown", signers=trust.signers):
            return who.identity
        log.warn(f"{trust.signers} does not allow this key: the signature will not count here")
    return _require_name(signing.comment(key), f"{key}: its comment {signing.comment(key)!r}")


def _require_name(name: str, what: str) -> str:
    if not IDENTITY.fullmatch(name):
        raise SpecError(f"{what} is no name to sign under", hint="say who you are: --identity alice@example.org")
    return name


def _require_free(home: Path, identity: str) -> Path:
    target = home / f"{identity}{SIGNATURE}"
    if target.exists():
        raise SpecError(
            f"{target} already exists: a signature by another key, or of other content",
            hint=f"sign under another name (--identity), or remove it: rm {target}",
        )
    return target


def _cosign(home: Path, key: str) -> Path:
    name = Path(key).stem if "://" not in key else "key-service"
    target = home / f"{name}{BUNDLE}"
    if target.exists():
        log.info(f"{target.name} already exists: nothing is changed; remove it to sign again")
        return target
    signing.cosign_sign(home / STATEMENT, key, target)
    log.info(f"cosign has signed it with {key}")
    return target
