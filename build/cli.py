"""The command line: ``python -m build VERB``, behind every nox session. Errors become exit codes here and nowhere else."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from build import (
    __version__,
    accel,
    apt,
    artifact,
    audit,
    bench,
    bundle,
    clone_request,
    compare_verbs,
    doctor,
    faults,
    files,
    host,
    log,
    pipeline,
    requirements,
    workshop,
)  # fmt: skip
from build import spec as specs
from build.apt import Mirrors
from build.audit_field import AUDITORS
from build.cache import Cache
from build.errors import EXIT_INTERRUPTED, GoldsmithError, HostError
from build.faults_machines import Target
from build.project import Project

EXIT_BUG = 70
MIRROR_VARIABLES = ("GOLDSMITH_MIRROR", "GOLDSMITH_SECURITY_MIRROR", "GOLDSMITH_SNAPSHOT")


def default_cache() -> Path:
    """Return the cache directory of this user (XDG base directory specification)."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "goldsmith"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    top = argparse.ArgumentParser(
        prog="python -m build", description="Goldsmith: a hardened, verified, immutable golden Debian 13 image.",
        epilog="Exit codes: 0 done, 1 a step failed, 2 bad input or host, 3 the image failed verification, 130 interrupted.",
    )  # fmt: skip
    top.add_argument("--version", action="version", version=f"goldsmith {__version__}")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    common = _common()

    def verb(name: str, function: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=text, description=text, parents=[common])
        made.set_defaults(function=function)
        return made

    _build_options(verb("build", _build, "build and verify the image; what did not change is not made again"))
    verb("plan", _plan, "print what a build would make, and why")
    setup = verb("setup", _setup, "install the host tools that are missing, or name them")
    setup.add_argument("--tests", action="store_true", help="and what only the tests need")
    _doctor_options(verb("doctor", _doctor, "show host tools, accelerator, disk space and mirror, and what is missing"))
    lock = verb("lock", _lock, "resolve packages, installer and wheels anew and write the lock files")
    lock.add_argument("what", nargs="*", choices=["rootfs", "installer", "wheels", []], help="only these (default: all)")
    boot = verb("boot", _boot, "start a throw-away clone of the newest image; Ctrl-C ends it")
    boot.add_argument("--artifact", type=Path, metavar="DIR", help="this artifact instead of the newest")
    boot.add_argument("--unverified", action="store_true", help="the newest disk of the cache, verified or not")
    boot.add_argument("--uefi", action="store_true", help="under UEFI with Secure Boot instead of BIOS")
    for service in ("ssh", "http", "https"):
        boot.add_argument(f"--{service}-port", type=int, default=0, metavar="N", help=f"forward this port to {service}")
    container = verb("container", _container, "boot the root file system as a container and run the tests that hold there")
    container.add_argument("--layer", action="append", default=[], metavar="NN-NOUN", help="with this layer as well")
    container.add_argument("--squashfs", type=Path, metavar="FILE", help="this root file system (default: the spec's)")
    container.add_argument("--stories", type=Path, metavar="DIR", help="play the stories alone; log and JUnit go there")
    container.add_argument("--inventory", type=Path, metavar="DIR", help="write its inventory there instead of testing")
    container.add_argument("--shell", action="store_true", help="open a shell in it instead of testing")
    breaking = verb("faults", _faults, "break throw-away clones on purpose, under load, and report what each fault did")
    breaking.add_argument("fault", nargs="*", metavar="ID", help="only these, such as F04 F16 (default: all)")
    breaking.add_argument(
        "--target", type=Target, choices=list(Target), default=Target.VM,
        help="clones of the newest image, or its root file system in a container, as far as that can show (default: vm)",
    )  # fmt: skip
    breaking.add_argument("--artifact", type=Path, metavar="DIR", help="this artifact instead of the newest")
    breaking.add_argument("--unverified", action="store_true", help="the newest disk of the cache, verified or not")
    breaking.add_argument("--squashfs", type=Path, metavar="FILE", help="this root file system for the container")
    _audit_options(verb("audit", _audit, "run the field's auditors against a clone, and hold them against the ledger"))
    check = verb("check", _check, "compare an artifact's files with its SHA256SUMS")
    check.add_argument("artifact", nargs="?", type=Path, help="artifact directory (default: the newest)")
    table = verb("requirements", _requirements, "write docs/requirements.md: requirements, their tests, the results")
    table.add_argument("junit", nargs="*", type=Path, help="JUnit files with results (default: the newest artifact's)")
    _publish_options(verb("publish", _publish, "take a verified artifact to Proxmox VE as a template that clones prove"))
    clone_request.options(verb("clone", _clone, "make a machine of a published template, and wait until it answers"))
    _drift_options(verb("drift", _drift, "compare the templates on the cluster with what was published (3: changed)"))
    compare_verbs.add(verb)
    packed = verb("bundle", _bundle, "pack an application with its locked wheels for golden-deploy, and print the SHA-256")
    packed.add_argument("directory", type=Path, metavar="DIR", help="with manage.py and requirements.lock")
    packed.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the bundle to write")
    measure = verb("bench", _bench, "measure builds and a plain installation, and write docs/benchmarks.md")
    measure.add_argument("part", nargs="*", choices=[*bench.PARTS, []], help="only these (default: all)")
    return top


def _build_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plan", action="store_true", help="print what would be made and why, and stop")
    parser.add_argument("--on", choices=["proxmox"], help="run the installer on a node of golden.yaml's cluster instead")
    parser.add_argument("--node", action="append", default=[], metavar="NAME", help="for --on: this node, not the first one")
    parser.add_argument("--secrets", type=Path, metavar="FILE", help="for --on: with the tokens, mode 0600")
    parser.add_argument(
        "--install-minutes", type=int, default=15, metavar="N", help="for --on: how long an installation takes at most"
    )


def _publish_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--artifact", type=Path, metavar="DIR", help="this artifact instead of the newest")
    parser.add_argument("--node", action="append", default=[], metavar="NAME", help="only this node; may be repeated")
    parser.add_argument("--secrets", type=Path, metavar="FILE", help="with the tokens, mode 0600 (see golden.yaml)")
    parser.add_argument("--ssh", action="store_true", help="for Proxmox VE before 8.4: the image over SSH, qm disk import")


def _drift_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ssh", action="store_true", help="read the disks too, on their nodes over SSH; takes minutes")
    parser.add_argument("--secrets", type=Path, metavar="FILE", help="with the tokens, mode 0600 (see golden.yaml)")


def _doctor_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--proxmox", action="store_true", help="look at the cluster of golden.yaml instead")
    parser.add_argument("--roles", action="store_true", help="print the commands that grant our tokens what they need")
    parser.add_argument("--pve", type=int, choices=[8, 9], metavar="8|9", help="for --roles: the version (default: ask)")
    parser.add_argument("--secrets", type=Path, metavar="FILE", help="with the tokens, mode 0600")


def _audit_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("auditor", nargs="*", choices=[*AUDITORS, []], help="only these (default: all)")
    parser.add_argument("--artifact", type=Path, metavar="DIR", help="this artifact instead of the newest")
    parser.add_argument("--unverified", action="store_true", help="the newest disk of the cache, verified or not")
    parser.add_argument("--context", type=Path, metavar="FILE", help="a machine that runs already")
    parser.add_argument("--update", action="store_true", help="write what was measured into the ledger")
    parser.add_argument("--lock", action="store_true", help="lock the auditors' newest packages, and stop")


def _common() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--project", type=Path, default=Path.cwd(), metavar="DIR", help="the checkout (default: here)")
    common.add_argument("--cache", type=Path, default=default_cache(), metavar="DIR", help="default: %(default)s")
    common.add_argument("--locked", action="store_true", help="take the committed locks or fail; for releases")
    common.add_argument("--no-install", dest="install", action="store_false", help="never install host tools, name them")
    common.add_argument("--accel", type=accel.Kind, choices=list(accel.Kind), help="default: kvm if a guest runs on it")
    common.add_argument("--mirror", help="Debian archive (default: the host's; also $GOLDSMITH_MIRROR)")
    common.add_argument("--security-mirror", help="security archive (default: the host's; also $GOLDSMITH_SECURITY_MIRROR)")
    common.add_argument("--snapshot", help="snapshot archive for files that left the mirror (also $GOLDSMITH_SNAPSHOT)")
    common.add_argument("--packer", default="", metavar="PATH", help="default: $PACKER, else from PATH, else compiled")
    common.add_argument("--json", action="store_true", help="log as one JSON object a line")
    common.add_argument("--verbose", action="store_true", help="say more")
    return common


def _mirrors(arguments: argparse.Namespace) -> Mirrors:
    given = (arguments.mirror, arguments.security_mirror, arguments.snapshot)
    debian, security, snapshot = (
        value or os.environ.get(name, "") for value, name in zip(given, MIRROR_VARIABLES, strict=True)
    )
    own = Mirrors(debian, security) if debian and security else _host_mirrors(install=arguments.install)
    return Mirrors((debian or own.debian).rstrip("/"), (security or own.security).rstrip("/"), snapshot.rstrip("/"))


def _host_mirrors(*, install: bool) -> Mirrors:
    try:
        return apt.host_mirrors()
    except HostError:
        # A new machine's apt knows its sources' names only after the first update.
        if not install or not host.update_lists():
            raise
        return apt.host_mirrors()


def _options(arguments: argparse.Namespace) -> pipeline.Options:
    return pipeline.Options(
        project=Project(arguments.project.resolve()), cache=Cache(arguments.cache.resolve()), mirrors=_mirrors(arguments),
        locked=arguments.locked, install=arguments.install, accelerator=arguments.accel,
        packer=arguments.packer or os.environ.get("PACKER", ""),
    )  # fmt: skip


def _build(arguments: argparse.Namespace) -> int:
    if arguments.plan:
        return _plan(arguments)
    if arguments.on:
        return _build_on_proxmox(arguments)
    made = pipeline.build(_options(arguments))
    counts = made.manifest["verification"]
    log.info(f"Verified: {counts['passed']} tests passed on {len(counts['clones'])} clones.")
    print(made.path)
    return 0


def _build_on_proxmox(arguments: argparse.Namespace) -> int:
    from build import ship  # noqa: PLC0415 (it needs packages that the other verbs do without)

    options = _options(arguments)
    ship.settings_of(specs.load(options.project.spec))
    medium, spec = pipeline.build_media(options)
    made = ship.build_on(
        options.project, options.cache, medium=medium, spec=spec, nodes=arguments.node, secrets=arguments.secrets,
        packer=options.packer, minutes=arguments.install_minutes,
    )  # fmt: skip
    print(f"{made.node}/{made.vmid} {made.name}")
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    options = _options(arguments)
    for line in pipeline.plan(options, pipeline.gather(options, settle=False)):
        print(f"{line.action:<5}  {line.stage:<8}  {line.reason}")
    return 0


def _setup(arguments: argparse.Namespace) -> int:
    options = _options(arguments)
    tools = host.needed() + ((host.BROWSER,) if arguments.tests else ())
    host.ensure(tools, install=options.install, extra_packages=pipeline.packer_package(options))
    log.info("Every host tool is here.")
    return 0


def _publish(arguments: argparse.Namespace) -> int:
    from build import ship  # noqa: PLC0415 (it needs packages that the other verbs do without)

    made = ship.ship(
        Project(arguments.project.resolve()), Cache(arguments.cache.resolve()), directory=arguments.artifact,
        nodes=arguments.node, secrets=arguments.secrets, over_ssh=arguments.ssh,
    )  # fmt: skip
    for one in made:
        print(f"{one.node}/{one.vmid} {one.name}")
    return 0


def _clone(arguments: argparse.Namespace) -> int:
    from build import clone_verb  # noqa: PLC0415 (it needs packages that the other verbs do without)

    project, cache = Project(arguments.project.resolve()), Cache(arguments.cache.resolve())
    request = clone_request.read(arguments)
    print(clone_verb.run(project, cache, request, secrets=arguments.secrets, as_json=arguments.json))
    return 0


def _drift(arguments: argparse.Namespace) -> int:
    from build import drift_verb  # noqa: PLC0415 (it needs packages that the other verbs do without)

    project, cache = Project(arguments.project.resolve()), Cache(arguments.cache.resolve())
    text, code = drift_verb.run(
        project, cache, secrets=arguments.secrets, over_ssh=arguments.ssh, as_json=arguments.json
    )  # fmt: skip
    print(text)
    return code


def _cluster_doctor(arguments: argparse.Namespace) -> int:
    from build import ship  # noqa: PLC0415 (it needs packages that the other verbs do without)

    project = Project(arguments.project.resolve())
    if arguments.roles:
        major = arguments.pve or ship.major(project, secrets=arguments.secrets)
        print("\n".join(ship.grants(project, major=major)))
        return 0
    return doctor.report_cluster(ship.look(project, secrets=arguments.secrets))


def _doctor(arguments: argparse.Namespace) -> int:
    if arguments.proxmox or arguments.roles:
        return _cluster_doctor(arguments)
    return doctor.report(
        project=Project(arguments.project.resolve()), cache=arguments.cache.resolve(),
        packer_choice=arguments.packer or os.environ.get("PACKER", ""), mirrors=lambda: _mirrors(arguments),
    )  # fmt: skip


def _lock(arguments: argparse.Namespace) -> int:
    return workshop.write_locks(_options(arguments), arguments.what or ["rootfs", "installer", "wheels"])


def _boot(arguments: argparse.Namespace) -> int:
    ports = {name: getattr(arguments, f"{name}_port") for name in ("ssh", "http", "https")}
    return workshop.boot(
        _options(arguments), directory=arguments.artifact, unverified=arguments.unverified, uefi=arguments.uefi, ports=ports
    )


def _container(arguments: argparse.Namespace) -> int:
    options = dataclasses.replace(_options(arguments), layers=tuple(arguments.layer))
    return workshop.container(
        options, squashfs=arguments.squashfs, stories=arguments.stories, inventory=arguments.inventory,
        shell=arguments.shell,
    )  # fmt: skip


def _faults(arguments: argparse.Namespace) -> int:
    return faults.run_faults(
        _options(arguments), arguments.fault, target=arguments.target, directory=arguments.artifact,
        unverified=arguments.unverified, squashfs=arguments.squashfs,
    )  # fmt: skip


def _audit(arguments: argparse.Namespace) -> int:
    if arguments.lock:
        return audit.write_locks(_options(arguments))
    wanted = audit.Wanted(
        tuple(arguments.auditor) or tuple(AUDITORS), arguments.artifact, unverified=arguments.unverified,
        context=arguments.context, update=arguments.update,
    )  # fmt: skip
    return audit.audit(_options(arguments), wanted)


def _check(arguments: argparse.Namespace) -> int:
    project = Project(arguments.project.resolve())
    found = artifact.load(arguments.artifact) if arguments.artifact else artifact.newest(project.artifacts)
    problems = artifact.check(found.path)
    for problem in problems:
        log.warn(problem)
    print(f"{found.path}: {'changed' if problems else 'whole'}")
    return 1 if problems else 0


def _requirements(arguments: argparse.Namespace) -> int:
    project = Project(arguments.project.resolve())
    made = artifact.newest(project.artifacts)
    junit = arguments.junit or [made.path / "verification" / "junit.xml"]
    files.write_json(
        project.root / requirements.RESULTS, {"source": f"`{made.path.name}`", "results": requirements.results(junit)}
    )
    page = requirements.page(project.root)
    files.write_atomic(project.root / requirements.PAGE, page)
    missing = page.count("**nothing yet**")
    log.info(f"written: {requirements.PAGE}; {missing} without a test" if missing else f"written: {requirements.PAGE}")
    return 0


def _bundle(arguments: argparse.Namespace) -> int:
    print(bundle.make(arguments.directory, arguments.output, cache=arguments.cache.resolve()))
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    return bench.run_all(_options(arguments), tuple(arguments.part) or bench.PARTS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit code."""
    # Files of the cache are read by mapped users when Goldsmith is not root, and by people.
    os.umask(0o022)
    # CI and service managers end a job with TERM: the same orderly end as Ctrl-C.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    arguments = parser().parse_args(argv)
    log.configure(json_lines=arguments.json, verbose=arguments.verbose)
    try:
        code: int = arguments.function(arguments)
    except GoldsmithError as error:
        log.error(error.render())
        return error.exit_code
    except KeyboardInterrupt:
        log.error("Interrupted. What was finished is kept; run the same command again to continue.")
        return EXIT_INTERRUPTED
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return _defect()
        log.error(f"{error.strerror}: {error.filename or arguments.cache}\n  -> free some space, or --cache DIRECTORY")
        return HostError.exit_code
    except Exception:  # noqa: BLE001 (the last door: whatever comes here is a defect, and says so)
        return _defect()
    return code


def _defect() -> int:
    traceback.print_exc()
    log.error("This is a defect of Goldsmith. Please report it with the text above.")
    return EXIT_BUG


if __name__ == "__main__":
    sys.exit(main())
