"""The verbs ``attest`` and ``verify-artifact``: who signs an artifact, and what is told of one that is verified."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from build import artifact, files, log, proof, signing
from build import spec as specs
from build.artifact import Artifact
from build.errors import SpecError, VerificationFailed
from build.project import Project
from build.proof import BUNDLE, SIGNATURE, STATEMENT, Trust
from build.proof_checks import Check
from build.statement import IDENTITY, Statement

ATTEST, VERIFY = "attest", "verify-artifact"


@dataclass(frozen=True)
class Keys:
    """With what somebody signs: an SSH key and the name to sign under, and a key of cosign's (a file, or an address)."""

    key: Path | None
    identity: str
    cosign: str


def add(verb: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """Add both verbs to the command line; ``verb`` makes one of name and help."""
    attest = verb(ATTEST, "sign an artifact that verifies; several people may")
    attest.add_argument("artifact", nargs="?", type=Path, metavar="DIR", help="artifact directory (default: the newest)")
    attest.add_argument("--key", type=Path, metavar="FILE", help="your SSH key; the public one if an agent has the other")
    attest.add_argument("--identity", default="", metavar="NAME", help="who you are (default: as the allowed signers say)")
    attest.add_argument("--cosign-key", default="", metavar="KEY", help="sign with cosign too: its key file, or an address")
    check = verb(VERIFY, "prove offline what an artifact is, and who vouches for it (3: it is not what it says)")
    check.add_argument("artifact", nargs="?", type=Path, metavar="DIR", help="artifact directory (default: the newest)")
    check.add_argument("--signers", type=Path, metavar="FILE", help="who may sign (default: golden.yaml's releases.signers)")
    check.add_argument("--signatures", type=int, metavar="N", help="how many must have (default: golden.yaml's, else 1)")
    check.add_argument("--revoked", type=Path, metavar="FILE", help="keys that count no longer: a list, or a KRL")
    check.add_argument("--cosign-key", default="", metavar="KEY", help="a public key of cosign's that must have signed too")


def run(project: Project, arguments: argparse.Namespace) -> tuple[str, int]:
    """Do what one of the verbs asks for; return what there is to tell, and the exit code."""
    if arguments.verb == VERIFY and (broken := _unreadable(arguments.artifact)):
        return told(Artifact(arguments.artifact, {}), [broken], as_json=arguments.json)
    found = chosen(project, arguments.artifact)
    if arguments.verb == ATTEST:
        made = attest(project, found, Keys(arguments.key, arguments.identity, arguments.cosign_key))
        return "\n".join(str(path) for path in made), 0
    checks = verify(found, trust_from(project, arguments), cosign_key=arguments.cosign_key)
    return told(found, checks, as_json=arguments.json)


def chosen(project: Project, directory: Path | None) -> Artifact:
    """Return the artifact of a directory, or the newest one."""
    return artifact.load(directory.absolute()) if directory else artifact.newest(project.artifacts)


def _unreadable(directory: Path | None) -> Check | None:
    """Return what is wrong with a directory that was an artifact once, and whose manifest cannot be read any more."""
    if directory is None or not (directory / artifact.SUMS).is_file():
        return None
    try:
        artifact.load(directory)
    except SpecError as error:
        return Check("manifest", "it says what the artifact is", (error.brief, *error.details.splitlines()))
    return None


# --- attest -----------------------------------------------------------------------------------------------------------


def attest(project: Project, found: Artifact, keys: Keys) -> list[Path]:
    """Sign an artifact that verifies; return the signatures' files. What is signed already by that key stays as it is.

    Raises VerificationFailed when the artifact does not verify, SpecError when the name is another key's, StepFailed when
    the program did not sign.
    """
    if keys.key is None and not keys.cosign:
        raise SpecError("there is nothing to sign with", hint="name your key: --key ~/.ssh/id_ed25519")
    with log.step(f"Verifying {found.path.name}", done="it is what was built and verified"):
        proof.require(found, proof.NOBODY)
    statement, home = Statement.of(found), proof.place(found)
    home.mkdir(exist_ok=True)
    files.write_atomic(home / STATEMENT, statement.text)
    made = []
    if keys.key:
        made.append(_sign(project, statement, home, keys.key, keys.identity))
    if keys.cosign:
        made.append(_cosign(home, keys.cosign))
    return made


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
        if who := signing.verify(statement.text, signature, signing.comment(key) or "nobody", signers=trust.signers):
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
            f"{target} is there already, by another key or over something else",
            hint=f"sign under another name (--identity), or remove it: rm {target}",
        )
    return target


def _cosign(home: Path, key: str) -> Path:
    name = Path(key).stem if "://" not in key else "key-service"
    target = home / f"{name}{BUNDLE}"
    if target.exists():
        log.info(f"{target.name} is there already: nothing is changed; remove it to sign anew")
        return target
    signing.cosign_sign(home / STATEMENT, key, target)
    log.info(f"cosign has signed it with {key}")
    return target


# --- verify-artifact --------------------------------------------------------------------------------------------------


def trust_of(project: Project) -> Trust:
    """Return the trust of golden.yaml; that of nobody where there is no checkout."""
    return Trust.of(specs.load(project.spec).releases, project.root) if project.spec.is_file() else proof.NOBODY


def trust_from(project: Project, arguments: argparse.Namespace) -> Trust:
    """Return whom to trust: what is said on the command line goes before golden.yaml. Raises SpecError."""
    trust = Trust(arguments.signers, 1) if arguments.signers else trust_of(project)
    if arguments.signatures is not None:
        if arguments.signatures < 1:
            raise SpecError(f"--signatures {arguments.signatures}", hint="at least one, or leave it out")
        trust = replace(trust, signatures=arguments.signatures)
    trust = replace(trust, revoked=arguments.revoked)
    trust.require_files()
    return trust


def verify(found: Artifact, trust: Trust, *, cosign_key: str = "") -> list[Check]:
    """Return every check of an artifact."""
    checks = proof.verify(found, trust)
    return [*checks, _cosign_check(found, cosign_key)] if cosign_key else checks


def _cosign_check(found: Artifact, key: str) -> Check:
    home = proof.place(found)
    # Not the statement that lies there, but what it has to be.
    with files.scratch(home.parent) as directory:
        statement = directory / STATEMENT
        statement.write_text(Statement.of(found).text, encoding="utf-8")
        good = [path.name for path in sorted(home.glob(f"*{BUNDLE}")) if signing.cosign_verify(statement, key, path)]
    return Check("cosign", f"signed by {key}", () if good else ("no bundle beside it is a signature of this key",))


def told(found: Artifact, checks: Sequence[Check], *, as_json: bool) -> tuple[str, int]:
    """Return what there is to tell, and the exit code: 3 when anything failed."""
    failed = any(check.problems for check in checks)
    code = VerificationFailed.exit_code if failed else 0
    if as_json:
        facts = [
            {"check": one.name, "status": one.status, "note": one.note, "problems": list(one.problems)} for one in checks
        ]  # fmt: skip
        return json.dumps({"artifact": found.path.name, "verifies": not failed, "checks": facts}, indent=1), code
    unasked = [one.name for one in checks if not one.asked]
    verdict = f"verifies, as far as it was asked: not {', '.join(unasked)}" if unasked else "verifies"
    last = f"{found.path}: {'does NOT verify' if failed else verdict}"
    return "\n".join([*(check.render() for check in checks), last]), code
