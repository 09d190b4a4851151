"""The fresh-machine gate: makes Debian machines that had nothing but Debian, and runs there the commands of README.md.

    nox -s newcomer                                        both releases; root, and an ordinary user with sudo and without
    nox -s newcomer -- --suite trixie --user root          one release, one kind of user
    nox -s newcomer -- --user sudo --until disk            the ordinary user's build ends after the disk stage, without tests
    nox -s newcomer -- --user root --project startproject  then root deploys this foreign project on the image that was built

Root and the user with sudo run the commands of the README's first block to their ends: a verified artifact, and passing
tests. The user without sudo runs ``--plan``, ``doctor`` and ``setup --no-install``, which have to name the same missing
packages; the command that they print is then run by the administrator, after which nothing may be missing.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from build.core import files, host, log, programs, run
from build.core.errors import EXIT_INTERRUPTED, GoldsmithError, HostError, StepFailed
from tests.newcomer import machine as machines
from tests.newcomer import readme
from tests.newcomer.machine import Machine
from tests.projects.making import PROJECTS

ROOT = Path(__file__).parents[2]
TOOLS = (
    host.Tool("mmdebstrap", "mmdebstrap", "make a minimal Debian"),
    host.Tool("systemd-nspawn", "systemd-container", "boot it"),
    host.Tool("git", "git", "clone the checkout into it"),
)
USERS = ("plain", "sudo", "root")
# Read by tests/conftest.py.
TEST_SHARE = "GOLDSMITH_TEST_SHARE"
# Each machine takes about that much: a minimal Debian, the host tools, the caches of a build.
FREE_BYTES_NEEDED = 16 << 30
SUMMARY = re.compile(r"^=+ (.*\b(?:passed|failed|error)\b.* in .*) =+$", re.MULTILINE)
INSTALL = re.compile(r"(apt-get update && apt-get install --yes --no-install-recommends [a-z0-9.+ -]+)")
# nox ends with this status when its session ends with any other than 0.
NOX_FAILED = 1


@dataclass
class Step:
    """One command that was run on a machine: how long it took in seconds, and pytest's summary if it printed one."""

    machine: str
    command: str
    seconds: float
    summary: str = ""


@dataclass
class Walk:
    """What was run on one machine."""

    machine: Machine
    logs: Path
    steps: list[Step]
    _count: int = 0

    def do(self, command: str, *, expected: int = 0, user: str = "") -> str:
        """Run a command on the machine, and return its output; raise StepFailed when it ends with another status."""
        self._count += 1
        output = self.logs / f"{self._count:02d}.log"
        output.unlink(missing_ok=True)
        print(f"== {self.machine.name}, as {user or self.machine.user}: {command}", flush=True)
        begun = time.monotonic()
        status = self.machine.start(command, output, user=user)
        text = output.read_text(encoding="utf-8", errors="replace")
        summaries = SUMMARY.findall(text)
        self.steps.append(Step(self.machine.name, command, time.monotonic() - begun, summaries[-1] if summaries else ""))
        if status != expected:
            raise StepFailed(
                f"{self.machine.name}: {command!r} ended with status {status}, not {expected}", details=run.tail(text, 40),
                hint=f"the whole output is in {output}",
            )  # fmt: skip
        return text


def build_and_test(walk: Walk, commands: Sequence[str], *, until: str) -> None:
    """Run the commands of the README; with ``until`` the build ends after that stage, and the tests are left out."""
    for command in commands:
        if until and "nox -s tests" in command:
            continue
        walk.do(re.sub(r"nox -s build\b", f"nox -s build -- --until {until}", command) if until else command)
        if "nox -s build" in command:
            check_build(walk, until=until)
        if "nox -s tests" in command and not walk.steps[-1].summary:
            raise StepFailed(f"{walk.machine.name}: {command!r} ended without a summary of its tests")


def check_build(walk: Walk, *, until: str) -> None:
    """Raise StepFailed unless the build left what it promises, and started no program that its stages do not declare."""
    cache = walk.machine.cache
    records = sorted((cache / "logs" / programs.DIRECTORY).glob("*.json"))
    undeclared = {path.stem: names for path in records if (names := json.loads(path.read_text())["undeclared"])}
    if undeclared or not records:
        names = undeclared or "no record"
        raise StepFailed(f"{walk.machine.name}: stages started programs that they do not declare: {names}")
    if until:
        if not list((cache / "stages" / until).iterdir()):
            raise StepFailed(f"{walk.machine.name}: the build left no result of the stage {until}")
        return
    manifests = list(walk.machine.checkout.glob("artifacts/*/manifest.json"))
    if len(manifests) != 1:
        raise StepFailed(f"{walk.machine.name}: the build left {len(manifests)} artifacts, not one")
    manifest = json.loads(manifests[0].read_text())
    counts = manifest["verification"]
    stages = ", ".join(f"{stage['stage']} {stage['seconds']:.0f} s" for stage in manifest["stages"])
    print(f"   {manifests[0].parent.name}: {counts['passed']} tests passed on {len(counts['clones'])} clones; {stages}")
    if counts["failed"] or not counts["passed"]:
        raise StepFailed(f"{walk.machine.name}: the artifact was not verified: {counts}")


def look_without_rights(walk: Walk, commands: Sequence[str]) -> None:
    """Install the packages of the README as administrator, and list the other missing packages as user."""
    walk.do(readme.administrators_part(commands[0]), user="root")
    outputs = [
        walk.do("nox -s build -- --plan"),
        walk.do("nox -s doctor", expected=NOX_FAILED),
        walk.do("nox -s setup -- --no-install", expected=NOX_FAILED),
    ]
    found = [INSTALL.findall(text) for text in outputs]
    if not all(found) or len({match[-1] for match in found}) != 1:
        raise StepFailed(f"{walk.machine.name}: plan, doctor and setup name different commands", details=str(found))
    walk.do(found[0][-1], user="root")
    walk.do("nox -s setup -- --no-install")


@contextmanager
def walked(
    name: str, tar: Path, directory: Path, user: str, steps: list[Step], *, variables: Mapping[str, str], keep: bool
) -> Iterator[Walk]:  # fmt: skip
    """Yield a walk on a machine as new, with more ``variables`` in the environment of its commands.

    The machine is removed afterwards unless it failed or ``keep`` is given.
    """
    account = "root" if user == "root" else machines.USER
    with machines.running(
        name, tar, directory=directory, go_caches=tar.with_name(f"{tar.stem}-go"), project=ROOT, user=account,
        sudo=user == "sudo",
    ) as machine:  # fmt: skip
        yield Walk(replace(machine, variables={**machine.variables, **variables}), directory, steps)
    if not keep:
        files.remove_tree(directory / "root")


def walk_all(
    suites: Sequence[str], users: Sequence[str], *, until: str, projects: Sequence[str], variables: Mapping[str, str],
    directory: Path, keep: bool,
) -> None:  # fmt: skip
    """Walk through each machine, one after another, and print what was run. Raises the first failure."""
    commands = readme.commands(ROOT / "README.md")
    steps: list[Step] = []
    try:
        for suite in suites:
            tar = directory / f"{suite}.tar"
            machines.make_tree(suite, tar)
            for user in users:
                name = f"{suite}-{user}"
                with walked(name, tar, directory / name, user, steps, variables=variables, keep=keep) as walk:
                    if user == "plain":
                        look_without_rights(walk, commands)
                    elif user == "sudo":
                        build_and_test(walk, [readme.with_sudo(command) for command in commands], until=until)
                    else:
                        build_and_test(walk, commands, until="")
                        if projects:
                            walk.do(f"nox -s projects -- {' '.join(projects)}")
    finally:
        report(steps)


def report(steps: Sequence[Step]) -> None:
    """Print every command with its duration, and last the summaries of the tests."""
    print("\nThe fresh-machine gate:")
    for step in steps:
        print(f"  {step.machine:<14} {log.seconds(step.seconds):>12}  {step.command}")
    for step in steps:
        if step.summary:
            print(f"{step.machine}:\n=== {step.summary} ===")


def options() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="nox -s newcomer --", description="Run the README's first commands on Debian machines that are as new.",
        epilog="Exit codes: 0 every command ended well, 1 one did not, 2 bad input or host, 130 interrupted.",
    )  # fmt: skip
    parser.add_argument("--suite", action="append", choices=list(machines.SUITES), help="only this release (default: both)")
    parser.add_argument("--user", action="append", choices=USERS, help="only as this kind of user (default: all)")
    parser.add_argument(
        "--until", default="", choices=["", "base", "rootfs", "media", "disk", "verify"], metavar="STAGE",
        help="the build of the user with sudo ends after this stage, and runs no tests (default: all of it)",
    )  # fmt: skip
    parser.add_argument(
        "--directory", type=Path, default=Path("/var/tmp/goldsmith-newcomer"), metavar="DIR",
        help="where the machines and their logs are kept (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--project", action="append", default=[], choices=list(PROJECTS), metavar="NAME",
        help=f"root also takes this foreign project through its life on the image ({', '.join(PROJECTS)}); several times",
    )  # fmt: skip
    parser.add_argument(
        "--test-share", default="", metavar="N/M",
        help="of the tests that depend on no program of the host run part N of M only, such as 1/2 (default: all)",
    )  # fmt: skip
    parser.add_argument("--keep", action="store_true", help="keep the trees of the machines, to look at")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the gate; return the exit status."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    given = options().parse_args(argv)
    try:
        if not run.is_root():
            raise HostError("the fresh-machine gate boots containers: it needs root", hint="run it as root")
        host.ensure(TOOLS, install=True)
        given.directory.mkdir(parents=True, exist_ok=True)
        host.require_space(given.directory, FREE_BYTES_NEEDED)
        with files.lock(given.directory / ".lock", waiting="another run uses this directory; waiting for it"):
            walk_all(
                given.suite or list(machines.SUITES), given.user or list(USERS), until=given.until, projects=given.project,
                variables={TEST_SHARE: given.test_share} if given.test_share else {},
                directory=given.directory, keep=given.keep,
            )  # fmt: skip
    except GoldsmithError as error:
        log.error(error.render())
        return error.exit_code
    except KeyboardInterrupt:
        log.error("Interrupted; every machine was ended.")
        return EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
