"""Publishes an image to the lab, tests it with two clones there, creates an operator's clone, and prints the results.

    nox -s lab                                  the newest artifact
    nox -s lab -- --unverified --tests ssh boot the newest disk of the cache, and only these image tests
    nox -s lab -- --life artifacts/golden-0.1.0-… an older version as well: promoted, rolled back, revoked, pruned, compared
    nox -s lab -- --install                     the newest medium of the cache: Packer has it installed on the node

The commands under test are the ordinary ones (``python -m build publish``, ``clone``, ``drift``), in separate processes,
over the API's TLS. This is not Proxmox VE: see docs/reference/lab.md.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from fakepve.certs import make_cert
from fakepve.pytest_plugin import _Serving

from build.artifact import artifact, find
from build.cli.options import default_cache
from build.core import files, host, log, run
from build.core.cache import Cache
from build.core.errors import GoldsmithError
from build.core.host import Tool
from build.core.project import Project
from build.machines import acceleration, nocloud
from build.packages.apt import Mirrors
from build.pipeline import build
from build.spec.cluster import Role, Token
from tests.lab import bench, cloudinit, lease, life, network, on_node
from tests.lab.bench import ROOT, Choice
from tests.lab.cluster import Lab

MODULE = "tests.lab"
API_PORT = 8006
FAILED = 1
# The commands that read the cluster's tokens, and those that do not use the cache.
ON_CLUSTER = ("doctor", "publish", "clone", "drift", "promote", "rollback", "revoke", "restore", "prune", "history")
WITHOUT_CACHE = ("rollback", "revoke", "restore", "prune", "history", "verify-artifact")
PVE = {8: "8.4.1", 9: "9.0.10"}
TOOLS = (
    *(tool for tool in host.TOOLS if tool.package in ("qemu-system-x86", "qemu-utils", "ovmf", "seabios", "xorriso",
                                                     "openssh-client", "curl", "e2fsprogs", "fdisk", "util-linux")),
    Tool("ip", "iproute2", "make the lab's bridge"),
    Tool("unshare", "util-linux", "give the lab a separate network"),
)  # fmt: skip
CLONE_NAME, CLONE_ADDRESS = "web1", "10.99.0.101"
CLONE_SECONDS = 1800
# Emulated guests boot one after the other: see Lab.
SETTLE_SECONDS = 900.0
# The builder waits that long, whether the installer is done or not.
INSTALL_MINUTES = {acceleration.Kind.KVM: 3, acceleration.Kind.TCG: 10}
VERDICT = "THE LAB IS NO PROXMOX VE: the API is a fake, the machines behind it are real."


@dataclass
class Step:
    """One command under test: what came of it, and how long it took."""

    name: str
    status: int
    seconds: float


class Walk:
    """The commands under test, one after another."""

    def __init__(self, project: Path, cache: Path, secrets: Path) -> None:
        self.steps: list[Step] = []
        self._project = ["--project", str(project)]
        self._cache = ["--cache", str(cache)]
        self._secrets = ["--secrets", str(secrets)]

    def do(self, name: str, *words: str, expected: int = 0) -> bool:
        """Run ``python -m build`` with these arguments; return True if it ended with the status that was expected."""
        log.info(f"$ python -m build {' '.join(words)}")
        begun = time.monotonic()
        command, *rest = words
        secrets = self._secrets if command in ON_CLUSTER else []
        cache = [] if command in WITHOUT_CACHE else self._cache
        status = run.attach([sys.executable, "-m", "build", command, *rest, *secrets, *self._project, *cache])
        good = status == expected
        self.steps.append(Step(name, 0 if good else status or FAILED, time.monotonic() - begun))
        return good

    def call(self, name: str, work: Callable[[], object]) -> bool:
        """Do something here that the command line has no words for; return True if it succeeded."""
        log.info(name)
        begun, status = time.monotonic(), 0
        try:
            work()
        except GoldsmithError as error:
            log.error(error.render())
            status = error.exit_code
        self.steps.append(Step(name, status, time.monotonic() - begun))
        return status == 0

    def check(self, name: str, problems: Sequence[str]) -> None:
        """Note something that the lab itself looked at."""
        for problem in problems:
            log.warn(f"{name}: {problem}")
        self.steps.append(Step(name, 1 if problems else 0, 0.0))

    @property
    def status(self) -> int:
        """The first exit status that is not 0, or 0."""
        return next((step.status for step in self.steps if step.status), 0)


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    top = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add = top.add_argument
    add("--artifact", type=Path, metavar="DIR", help="this artifact instead of the newest")
    add("--unverified", action="store_true", help="the newest disk of the cache, verified or not")
    add("--tests", nargs="+", default=[], metavar="NAME", help="only these modules of tests/image, such as: ssh boot")
    add("--firmware", choices=["uefi", "bios"], default="uefi", help="of the template (default: %(default)s)")
    add("--pve", type=int, choices=sorted(PVE), default=9, help="the version that the fake speaks (default: %(default)s)")
    add("--accel", type=acceleration.Kind, choices=list(acceleration.Kind), help="default: kvm if a guest runs on it")
    add("--cache", type=Path, default=default_cache(), metavar="DIR", help="default: %(default)s")
    add("--life", type=Path, metavar="DIR", help="an artifact of an older version: both live a whole life")
    add("--install", action="store_true", help="have the newest medium of the cache installed on the node, by Packer")
    add("--packer", default="", metavar="PATH", help="for --install (default: the compiled one, else Debian 12's)")
    add("--install-minutes", type=int, metavar="N", help="for --install: so long the builder waits (default: 10; KVM: 3)")
    add("--no-clone", dest="clone", action="store_false", help="stop when the template is published")
    add("--verbose", action="store_true", help="say more")
    return top


def newest_disk(cache: Path) -> Path:
    """Return the newest disk of the cache."""
    options = build.Options(project=Project(ROOT), cache=Cache(cache), mirrors=Mirrors("", ""))
    return find.find_image(options.project, options.cache.root, directory=None, unverified=True)


@contextmanager
def serving(lab: Lab, directory: Path) -> Iterator[Path]:
    """Serve the cluster's API; yield the certificate to trust."""
    certificate, key, _ = make_cert(str(directory), hosts=(lab.host,))
    server = _Serving(lab, certificate, key)
    try:
        yield Path(certificate)
    finally:
        lab.close()
        server.stop()


def walk(lab: Lab, project: Path, cache: Path, secrets: Path, *, clone: bool) -> Walk:
    """Publish, publish again, clone, look for drift; then look at what is left."""
    made = Walk(project, cache, secrets)
    if made.do("the cluster is ready", "doctor", "--proxmox") and made.do("publish, two clones verified", "publish"):
        made.do("publish again: nothing to do", "publish")
        if clone:
            made.do("an operator's clone answers HTTPS", "clone", *_machine(cache))
        made.do("no template has changed", "drift")
    _look_back(made, lab)
    return made


def walk_of_life(lab: Lab, project: Project, cache: Path, secrets: Path, *, first: str, second: str) -> Walk:
    """Take two artifacts of the project through a whole life: see tests/lab/life.py."""
    made = Walk(project.root, cache, secrets)
    older, newer = (artifact.load(project.artifacts / name) for name in (first, second))
    life.different(older, newer)
    if made.do("the cluster is ready", "doctor", "--proxmox"):
        life.live(made, lab, older, newer, machine=_machine(cache))
    life.compare(made, older, newer, cache / "life")
    _look_back(made, lab)
    return made


def walk_of_an_installation(
    lab: on_node.Node, project: Project, cache: Path, secrets: Path, choice: Choice, *, tokens: Mapping[Role, Token],
    equipment: on_node.Equipment, minutes: int, clone: bool,
) -> Walk:  # fmt: skip
    """Have the medium installed on the node, clone what was installed, look for drift; then look at what is left."""
    made = Walk(project.root, cache, secrets)
    medium, logs = choice.medium, cache / "logs"
    assert medium is not None

    def install() -> None:
        on_node.install(
            project, equipment, medium, tokens=tokens, scratch=cache / "clones", logs=logs, seconds=minutes * 60,
            tests=choice.tests,
        )  # fmt: skip

    if made.do("the cluster is ready", "doctor", "--proxmox"):
        whole = made.call(f"{equipment.packer.name} has {medium.name} installed", install)
        for vmid in lab.kept:
            off = lab.powered_off.get(vmid)
            made.check("the installer powered its machine off", [] if off else ["it was shut down from outside"])
            log.info(f"the installer took {off:.0f} s" if off else "the installer did not end")
        if equipment.serial_ports:
            spoken = [path for path in (logs / "machines").glob(f"*{on_node.UNFINISHED}*.log") if path.stat().st_size]
            made.check("both serial ports of the installer speak", [] if len(spoken) >= 2 else [f"only {spoken}"])
        if whole and clone:
            made.do("an operator's clone answers HTTPS", "clone", *_machine(cache))
        if whole:
            made.do("no template has changed", "drift")
    _look_back(made, lab)
    return made


def _look_back(made: Walk, lab: Lab) -> None:
    made.check("the templates' disks are as they were made", lab.changed_templates())
    made.check("no machine is left over", [vm.name for vm in lab.vms if not vm.template and vm.name != CLONE_NAME])


def _machine(cache: Path) -> list[str]:
    """Return the options of the operator's machine."""
    identity = nocloud.make_identity(cache / "operator", "admin")
    return [
        "--name", CLONE_NAME, "--ip", f"{CLONE_ADDRESS}/24,gw={network.GATEWAY}",
        "--ssh-key", str(identity.key.with_suffix(".pub")), "--admin-cidr", f"{network.HOST}/32",
        "--timeout", str(CLONE_SECONDS),
    ]  # fmt: skip


def summary(made: Walk, lab: Lab, logs: Path) -> str:
    """Return the text that is printed at the end."""
    lines = ["", VERDICT, ""]
    for step in made.steps:
        result = "good" if step.status == 0 else f"failed ({step.status})"
        took = f"{step.seconds:7.1f} s" if step.seconds else ""
        lines.append(f"  {step.name:<44} {result:<12} {took}".rstrip())
    lines.append("")
    for vm in lab.vms:
        state = "template" if vm.template else vm.status
        lines.append(f"  {vm.node}/{vm.vmid} {vm.name}: {state}, tags: {vm.config.get('tags', 'none')}")
    calls = sum(lab.calls.values())
    lines += [f"  {calls} calls of the API", f"  consoles, QEMU's words, the tests' own: {logs}", ""]
    return "\n".join(lines)


def lab_run(arguments: argparse.Namespace) -> int:
    """Set everything up, walk, and take everything down."""
    host.ensure(TOOLS, install=False)
    root = arguments.cache.resolve() / "lab"
    choice = Choice(
        artifact=arguments.artifact, disk=newest_disk(arguments.cache) if arguments.unverified else None,
        tests=tuple(arguments.tests), firmware=arguments.firmware, older=arguments.life,
        medium=on_node.newest_medium(arguments.cache) if arguments.install else None,
    )  # fmt: skip
    found = on_node.find_packer(arguments.packer) if arguments.install else None
    logs = root / "logs"
    with ExitStack() as stack:
        directory = stack.enter_context(files.scratch(root))
        accelerator = acceleration.probe(workdir=directory, wanted=arguments.accel)
        log.info(f"{VERDICT} {accelerator.kind}: {accelerator.reason}")
        wires = stack.enter_context(network.bridged(directory))
        log.debug(f"the bridge gives addresses: {lease.ask()}")
        lab = (on_node.Node if found else Lab)(
            directory / "pve", accelerator=accelerator, wires=wires, dns=cloudinit.Dns((network.NAMES,)),
            logs=logs / "machines", settle_seconds=SETTLE_SECONDS if accelerator.kind is acceleration.Kind.TCG else 0.0,
            host=network.HOST, port=API_PORT,
        )  # fmt: skip
        lab.version, lab.time_scale = PVE[arguments.pve], 1.0
        ca = stack.enter_context(serving(lab, directory))
        with log.step("Setting up the lab", done="the lab is ready"):
            project = bench.write_project(directory / "project", choice, host=lab.host, port=lab.port, ca=ca)
            tokens = bench.admit(lab, bench.settings_of(project))
            bench.write_secrets(directory / "secrets.yaml", tokens)
        secrets = directory / "secrets.yaml"
        if arguments.life:
            newer = next(path.name for path in project.artifacts.iterdir() if path.name != arguments.life.name)
            made = walk_of_life(lab, project, root, secrets, first=arguments.life.name, second=newer)
        elif found and isinstance(lab, on_node.Node):
            equipment = on_node.equip(found, lab, bench.settings_of(project), directory)
            made = walk_of_an_installation(
                lab, project, root, secrets, choice, tokens=tokens, equipment=equipment, clone=arguments.clone,
                minutes=arguments.install_minutes or INSTALL_MINUTES[accelerator.kind],
            )  # fmt: skip
        else:
            made = walk(lab, project.root, root, secrets, clone=arguments.clone)
        print(summary(made, lab, logs), flush=True)
    return made.status


def main(argv: Sequence[str] | None = None) -> int:
    """Run the lab; return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = parser().parse_args(words)
    network.enter(MODULE, words)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    log.configure(json_lines=False, verbose=arguments.verbose)
    os.chdir(ROOT)
    try:
        return lab_run(arguments)
    except GoldsmithError as error:
        log.error(error.render())
        return error.exit_code
    except KeyboardInterrupt:
        log.error("Interrupted. Every machine of the lab is gone.")
        return 130


if __name__ == "__main__":
    sys.exit(main())
