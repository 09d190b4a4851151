"""The command ``verify-artifact``: verifies an artifact offline: checksums, provenance and signatures."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from build.artifact import artifact, signing, verification
from build.artifact.artifact import Artifact
from build.artifact.checks import Check
from build.artifact.statement import Statement
from build.artifact.verification import BUNDLE, STATEMENT, Trust
from build.cli import options as common
from build.cli.attest import chosen, trust_of
from build.core import files
from build.core.errors import SpecError, VerificationFailed
from build.core.project import Project


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``verify-artifact``."""
    common.add_project(parser)
    common.add_artifact(parser)
    parser.add_argument(
        "--signers", type=Path, metavar="FILE", help="allowed signers (default: releases.signers of golden.yaml)"
    )
    parser.add_argument(
        "--signatures", type=int, metavar="N", help="how many have to sign (default: that of golden.yaml, else 1)"
    )
    parser.add_argument(
        "--revoked", type=Path, metavar="FILE", help="revoked keys: a list of public keys, or an OpenSSH KRL"
    )
    parser.add_argument("--cosign-key", default="", metavar="KEY", help="public key of cosign that must have signed too")
    common.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Verify; print one line for each check, and return 3 when one failed."""
    if broken := _unreadable(arguments.artifact):
        text, code = result_of(arguments.artifact, [broken], as_json=arguments.json)
    else:
        project = common.project_of(arguments)
        subject = chosen(project, arguments.artifact)
        checks = verify(subject, trust_from(project, arguments), cosign_key=arguments.cosign_key)
        text, code = result_of(subject.path, checks, as_json=arguments.json)
    print(text)
    return code


def _unreadable(directory: Path | None) -> Check | None:
    """Return the failed check of an artifact's directory whose manifest cannot be read; None for other directories."""
    if directory is None or not (directory / artifact.SUMS).is_file():
        return None
    try:
        artifact.load(directory)
    except SpecError as error:
        return Check("manifest", "it describes the artifact", (error.brief, *error.details.splitlines()))
    return None


def trust_from(project: Project, arguments: argparse.Namespace) -> Trust:
    """Return whom to trust: the command line goes before golden.yaml. Raises SpecError."""
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
    checks = verification.verify(found, trust)
    return [*checks, _cosign_check(found, cosign_key)] if cosign_key else checks


def _cosign_check(found: Artifact, key: str) -> Check:
    home = verification.place(found)
    # The statement is computed: the stored one may have been changed.
    with files.scratch(home.parent) as directory:
        statement = directory / STATEMENT
        statement.write_text(Statement.of(found).text, encoding="utf-8")
        good = [path.name for path in sorted(home.glob(f"*{BUNDLE}")) if signing.cosign_verify(statement, key, path)]
    return Check("cosign", f"signed by {key}", () if good else ("no bundle beside it is a signature of this key",))


def result_of(path: Path, checks: Sequence[Check], *, as_json: bool) -> tuple[str, int]:
    """Return the result as text, and the exit code: 3 when a check failed."""
    failed = any(check.problems for check in checks)
    code = VerificationFailed.exit_code if failed else 0
    if as_json:
        facts = [
            {"check": check.name, "status": check.status, "note": check.note, "problems": list(check.problems)}
            for check in checks
        ]  # fmt: skip
        return json.dumps({"artifact": path.name, "verifies": not failed, "checks": facts}, indent=1), code
    skipped = [check.name for check in checks if not check.checked]
    result = f"verifies; not checked: {', '.join(skipped)}" if skipped else "verifies"
    last = f"{path}: {'does NOT verify' if failed else result}"
    return "\n".join([*(check.render() for check in checks), last]), code
