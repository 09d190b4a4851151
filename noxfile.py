"""Goldsmith's sessions. Each is `python -m build VERB` in an environment with pinned packages.

nox -s build            everything, from nothing to a verified image
nox -s tests            everything that needs no booted image
nox -s build -- --help  the options of a verb (words after -- are passed on)
"""

from __future__ import annotations

import nox

nox.needs_version = ">=2022.11.21"  # Debian 12's
nox.options.sessions = ["tests"]
nox.options.reuse_existing_virtualenvs = True

CONSTRAINTS = ".ci/constraints.txt"
TOOL = ("jinja2", "pyyaml")
IMAGE_TESTS = ("pytest", "pytest-testinfra", "pytest-xdist")
AUDITORS = ("ssh-audit",)
PROXMOX = ("proxmoxer", "paramiko", "requests-toolbelt")
LAB = "fakepve[crypto]"
CHECKS = ("check-jsonschema", "mypy", "ruff", "types-pyyaml", "types-requests", "nox", LAB)
# A build that is interrupted gives its children this long to end in order.
GRACE_SECONDS = 45.0


def install(session: nox.Session, *packages: str) -> None:
    """Install the packages at the versions of the constraints file."""
    session.install("--quiet", "--disable-pip-version-check", "--constraint", CONSTRAINTS, *packages)


def goldsmith(session: nox.Session, verb: str) -> None:
    """Run one verb of the command line."""
    session.run(
        "python", "-m", "build", verb, *session.posargs,
        interrupt_timeout=GRACE_SECONDS, terminate_timeout=GRACE_SECONDS,
    )  # fmt: skip


@nox.session
def build(session: nox.Session) -> None:
    """Build and verify the golden image; --plan only says what would be made, --on proxmox installs on a node."""
    install(session, *TOOL, *IMAGE_TESTS, *(PROXMOX if "--on" in session.posargs else ()))
    goldsmith(session, "build")


@nox.session
def tests(session: nox.Session) -> None:
    """Linters, types, unit, contract and fault tests: a few minutes, no booted image."""
    install(session, *TOOL, *IMAGE_TESTS, *PROXMOX, *CHECKS)
    session.run("python", "-m", "build", "setup", "--tests")
    if "packer" not in session.posargs:  # --without packer
        session.run("python", "-m", "tests.packers", "--if-none")
    session.run("python", "-m", "pytest", *(session.posargs or ["tests/unit", "tests/contract", "tests/faults"]))


@nox.session
def packers(session: nox.Session) -> None:
    """Compile a current Packer and its plugins from locked sources, once: the tests and the lab run it too then."""
    install(session, *TOOL)
    session.run("python", "-m", "tests.packers", *session.posargs)


@nox.session
def doctor(session: nox.Session) -> None:
    """Show what a build needs from this host, and what is missing; -- --proxmox looks at the cluster."""
    install(session, *TOOL, *(PROXMOX if {"--proxmox", "--roles"} & set(session.posargs) else ()))
    goldsmith(session, "doctor")


@nox.session
def lock(session: nox.Session) -> None:
    """Resolve packages, installer and wheels anew and write the lock files."""
    install(session, *TOOL)
    goldsmith(session, "lock")


@nox.session
def boot(session: nox.Session) -> None:
    """Start a throw-away clone of the newest image and say how to reach it."""
    install(session, *TOOL)
    goldsmith(session, "boot")


@nox.session
def container(session: nox.Session) -> None:
    """Boot the root file system as a container and run the tests that hold there."""
    install(session, *TOOL, *IMAGE_TESTS)
    goldsmith(session, "container")


@nox.session
def faults(session: nox.Session) -> None:
    """Break throw-away clones on purpose, with load running: all faults, or -- F04 F16; --target container is quicker."""
    install(session, *TOOL, *IMAGE_TESTS)
    goldsmith(session, "faults")


@nox.session
def audit(session: nox.Session) -> None:
    """Run the field's auditors against a clone of the newest image, and compare with tests/peers/ledger.json."""
    install(session, *TOOL, *AUDITORS)
    goldsmith(session, "audit")


@nox.session
def check(session: nox.Session) -> None:
    """Compare an artifact with its SHA256SUMS."""
    install(session, *TOOL)
    goldsmith(session, "check")


@nox.session
def attest(session: nox.Session) -> None:
    """Sign an artifact that verifies: -- --key ~/.ssh/id_ed25519; several people may, one after the other."""
    install(session, *TOOL)
    goldsmith(session, "attest")


@nox.session(name="verify-artifact")
def verify_artifact(session: nox.Session) -> None:
    """Prove offline what an artifact is: digests, locks, bills, provenance, results, and who signed it."""
    install(session, *TOOL)
    goldsmith(session, "verify-artifact")


@nox.session
def bundle(session: nox.Session) -> None:
    """Pack an application with its locked wheels for golden-deploy: nox -s bundle -- DIR -o FILE."""
    install(session, *TOOL)
    goldsmith(session, "bundle")


@nox.session
def bench(session: nox.Session) -> None:
    """Measure builds and a plain installation, and write docs/benchmarks.md (an hour or more)."""
    install(session, *TOOL, *IMAGE_TESTS)
    goldsmith(session, "bench")


@nox.session
def publish(session: nox.Session) -> None:
    """Take the newest artifact to the Proxmox VE of golden.yaml, verify clones there, make it a protected template."""
    install(session, *TOOL, *IMAGE_TESTS, *PROXMOX)
    goldsmith(session, "publish")


@nox.session
def lab(session: nox.Session) -> None:
    """Publish, verify and clone against a fake Proxmox VE with real machines behind it: see docs/lab.md."""
    install(session, *TOOL, *IMAGE_TESTS, *PROXMOX, LAB)
    session.run(
        "python", "-m", "tests.lab", *session.posargs, interrupt_timeout=GRACE_SECONDS, terminate_timeout=GRACE_SECONDS
    )


@nox.session
def clone(session: nox.Session) -> None:
    """Make an operator's machine of a published template: -- --name web1 --ip dhcp --ssh-key FILE --admin-cidr CIDR."""
    install(session, *TOOL, *PROXMOX)
    goldsmith(session, "clone")


@nox.session
def drift(session: nox.Session) -> None:
    """Compare the templates on the cluster with what was published; -- --ssh reads their disks too."""
    install(session, *TOOL, *PROXMOX)
    goldsmith(session, "drift")


@nox.session
def reproduce(session: nox.Session) -> None:
    """Build an artifact's medium again and compare; -- --disk installs anew too (docs/reproducing.md)."""
    install(session, *TOOL)
    goldsmith(session, "reproduce")


@nox.session
def vulnerabilities(session: nox.Session) -> None:
    """Name the known vulnerabilities of an artifact's packages, from Debian's security data (docs/vulnerabilities.md)."""
    install(session, *TOOL)
    goldsmith(session, "vulnerabilities")


@nox.session
def promote(session: nox.Session) -> None:
    """Point a channel at a published version, on every node: -- 1.4.0 [stable], or -- --tag v1.4.0."""
    install(session, *TOOL, *PROXMOX)
    goldsmith(session, "promote")


@nox.session
def rollback(session: nox.Session) -> None:
    """Point a channel at what it pointed at before: -- stable."""
    install(session, *TOOL, *PROXMOX)
    goldsmith(session, "rollback")


@nox.session
def history(session: nox.Session) -> None:
    """Show who pointed which channel where, when and why; -- --rebuild makes the ledger anew from the cluster."""
    install(session, *TOOL, *PROXMOX)
    goldsmith(session, "history")


@nox.session
def revoke(session: nox.Session) -> None:
    """Take a version out of use: -- 1.3.0 --reason TEXT."""
    install(session, *TOOL, *PROXMOX)
    goldsmith(session, "revoke")


@nox.session
def restore(session: nox.Session) -> None:
    """Take a revocation back: -- 1.3.0 --reason TEXT."""
    install(session, *TOOL, *PROXMOX)
    goldsmith(session, "restore")


@nox.session
def prune(session: nox.Session) -> None:
    """Show which templates nobody needs any more, and why; -- --apply removes them."""
    install(session, *TOOL, *PROXMOX)
    goldsmith(session, "prune")


@nox.session
def diff(session: nox.Session) -> None:
    """Compare two artifacts: -- A B (directories, names, versions or digests); --json, --html FILE, --exit-code."""
    install(session, *TOOL)
    goldsmith(session, "diff")


@nox.session
def notes(session: nox.Session) -> None:
    """Print the release note of an artifact, made from what differs from the one before: -- VERSION."""
    install(session, *TOOL)
    goldsmith(session, "notes")


@nox.session
def report(session: nox.Session) -> None:
    """Write the report of an artifact anew, one HTML page with what is stored now: -- ARTIFACT -o FILE."""
    install(session, *TOOL)
    goldsmith(session, "report")


@nox.session
def requirements(session: nox.Session) -> None:
    """Write docs/requirements.md: each requirement, the tests that prove it, their newest results."""
    install(session, *TOOL)
    goldsmith(session, "requirements")
