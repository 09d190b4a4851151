"""Goldsmith's sessions: most of them run one command of `python -m build` in an environment with pinned packages.

nox -s build            everything, from nothing to a verified image
nox -s tests            everything that needs no booted image
nox -s build -- --help  the options of a command (arguments after -- are passed on)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import nox

nox.needs_version = ">=2022.11.21"  # Debian 12's
nox.options.sessions = ["tests"]
nox.options.reuse_existing_virtualenvs = True

# Sets of Python packages: SET.in names what is needed and why, SET.txt locks it with all dependencies; .ci/lock writes them.
LOCKS = ".ci/requirements"
TOOL = ("tool",)
IMAGE_TESTS = ("image-tests",)
AUDITORS = ("auditors",)
PROXMOX = ("proxmox",)
LAB = "lab"
CHECKS = ("checks", LAB)
# The number of workers is set in tests/conftest.py; -n 0 after -- runs the tests in one process.
PARALLEL = ("--numprocesses=auto", "--dist=worksteal")
# A build that is interrupted gives its children this long to end in order.
GRACE_SECONDS = 45.0


class Command(NamedTuple):
    """A command of `python -m build`: packages beyond TOOL, its description, and options that need PROXMOX too."""

    packages: tuple[str, ...]
    description: str
    on_cluster: tuple[str, ...] = ()


# Each is a session of its name.
COMMANDS = {
    "build": Command(
        IMAGE_TESTS, "Build and verify the golden image; --plan only prints the plan, --fresh uses the newest packages.",
        on_cluster=("--on",),
    ),
    "plan": Command((), "Print which stages a build would run, and why."),
    "setup": Command((), "Install the host tools that a build needs; -- --no-install lists the missing packages instead."),
    "doctor": Command(
        (), "Check what a build needs from this host, and list what is missing; -- --proxmox checks the cluster.",
        on_cluster=("--proxmox", "--roles"),
    ),
    "lock": Command((), "Resolve packages, installer and wheels, and write the lock files; -- --check lists updates."),
    "boot": Command((), "Start a disposable test VM of the newest image, and print how to reach it."),
    "container": Command(IMAGE_TESTS, "Boot the root file system with systemd-nspawn and run the tests that apply there."),
    "long-tests": Command(IMAGE_TESTS, "Run all the long service tests over SSH on two VMs of the newest image."),
    "faults": Command(IMAGE_TESTS, "Inject faults into disposable test VMs under load: all of them, or -- F04 F16."),
    "audit": Command(AUDITORS, "Run the security scanners against a test VM, and compare the results with the baseline."),
    "check": Command((), "Compare the files of an artifact with its SHA256SUMS."),
    "attest": Command((), "Verify an artifact and sign it: -- --key ~/.ssh/id_ed25519; can be run by several signers."),
    "verify-artifact": Command((), "Verify an artifact offline: checksums, locks, SBOMs, provenance and signatures."),
    "reproduce": Command((), "Build the installer ISO of an artifact again and compare; -- --disk installs again too."),
    "vulnerabilities": Command((), "List known vulnerabilities of an artifact's packages, from Debian's security data."),
    "requirements": Command((), "Write docs/reference/requirements.md: each requirement, its tests, their newest results."),
    "publish": Command(
        (*IMAGE_TESTS, *PROXMOX), "Publish the newest artifact to Proxmox VE as a template, tested there with two clones."
    ),
    "clone": Command(
        PROXMOX, "Clone a VM from a template: -- --name web1 --ip dhcp --ssh-key FILE --admin-cidr CIDR."
    ),
    "replace": Command(
        PROXMOX, "Replace the system of machines, their data stay: -- web1 --to stable; -- web1 --undo goes back."
    ),
    "fleet": Command(PROXMOX, "Show every machine that was cloned: -- --html FILE writes one page for a wall."),
    "drift": Command(
        PROXMOX, "Compare the templates on the cluster with the published images; -- --ssh compares their disks too."
    ),
    "promote": Command(
        PROXMOX, "Move a channel to a published version, on every node: -- 1.4.0 [stable], or -- --tag v1.4.0."
    ),
    "rollback": Command(PROXMOX, "Move a channel back to its previous version: -- stable."),
    "history": Command(PROXMOX, "Print the ledger of the releases; -- --rebuild restores it from the cluster."),
    "revoke": Command(PROXMOX, "Revoke a version: -- 1.3.0 --reason TEXT."),
    "restore": Command(PROXMOX, "Undo a revocation: -- 1.3.0 --reason TEXT."),
    "prune": Command(PROXMOX, "List unused templates and why they can be deleted; -- --apply deletes them."),
    "diff": Command((), "Compare two artifacts: -- A B (directories, names, versions or digests)."),
    "notes": Command((), "Print the release notes of an artifact, in Markdown: -- VERSION."),
    "report": Command((), "Regenerate the HTML report of an artifact: -- ARTIFACT -o FILE."),
    "layer": Command((), "Write a new layer with a page, a check and a test: -- 45-redis."),
    "bundle": Command((), "Pack an application with its locked wheels for golden-deploy: -- DIR -o FILE."),
    "completion": Command(
        PROXMOX, "Print a bash completion; -- -o ~/.local/share/bash-completion/completions/nox writes it there."
    ),
    "bench": Command(IMAGE_TESTS, "Measure builds and a baseline installation (an hour): docs/reference/benchmarks.md."),
}  # fmt: skip


def install(session: nox.Session, *sets: str) -> None:
    """Install the sets as they are locked: wheels only, so that nothing of a package runs before its hash was compared."""
    requirements = [word for name in sets for word in ("--requirement", f"{LOCKS}/{name}.txt")]
    session.install("--quiet", "--disable-pip-version-check", "--require-hashes", "--only-binary=:all:", *requirements)


def run_module(session: nox.Session, module: str, *arguments: str) -> None:
    """Run a Python module with the arguments, and those after --."""
    session.run(
        "python", "-m", module, *arguments, *session.posargs,
        interrupt_timeout=GRACE_SECONDS, terminate_timeout=GRACE_SECONDS,
    )  # fmt: skip


def add_session(name: str, command: Command) -> None:
    """Make a session of a command."""

    def run(session: nox.Session) -> None:
        more = PROXMOX if set(command.on_cluster) & set(session.posargs) else ()
        install(session, *TOOL, *command.packages, *more)
        run_module(session, "build", name)

    run.__doc__ = command.description
    register: Callable[[Callable[[nox.Session], None]], object] = nox.session(name=name)
    register(run)


for name, command in COMMANDS.items():
    add_session(name, command)


@nox.session
def tests(session: nox.Session) -> None:
    """Linters, types, unit, contract and fault tests: a few minutes, no booted image."""
    install(session, *TOOL, *IMAGE_TESTS, *PROXMOX, *CHECKS)
    session.run("python", "-m", "build", "setup", "--tests")
    if "packer" not in session.posargs:  # --without packer
        session.run("python", "-m", "tests.packers", "--if-none")
    session.run("python", "-m", "pytest", *PARALLEL, *session.posargs)


@nox.session
def packers(session: nox.Session) -> None:
    """Compile a current Packer and its plugins from locked sources, once: the tests and the lab run it too then."""
    install(session, *TOOL)
    session.run("python", "-m", "tests.packers", *session.posargs)


@nox.session
def newcomer(session: nox.Session) -> None:
    """Run the README's first commands on new Debian 12 and 13 machines: as root, and as users with and without sudo."""
    install(session, *TOOL)
    run_module(session, "tests.newcomer")


@nox.session
def lab(session: nox.Session) -> None:
    """Publish, verify and clone against a fake Proxmox VE with real machines behind it: see docs/reference/lab.md."""
    install(session, *TOOL, *IMAGE_TESTS, *PROXMOX, LAB)
    run_module(session, "tests.lab")


@nox.session
def projects(session: nox.Session) -> None:
    """Take foreign Django projects (startproject, Wagtail) through their lives on the image, in containers."""
    install(session, *TOOL, *IMAGE_TESTS)
    run_module(session, "tests.projects")


@nox.session
def compositions(session: nox.Session) -> None:
    """Build the image without each of its layers in turn, and test the rest in a container: hours."""
    install(session, *TOOL, *IMAGE_TESTS)
    run_module(session, "tests.compositions")


@nox.session(name="two-machines")
def two_machines(session: nox.Session) -> None:
    """Boot the machines of profiles/app.yaml and profiles/db.yaml in containers, join them, and test the site."""
    install(session, *TOOL, *IMAGE_TESTS)
    run_module(session, "tests.two_machines")
