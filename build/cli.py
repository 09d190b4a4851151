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
    proof_verbs,
    release_request,
    reproduce_verb,
    requirements,
    updates_verb,
    vulnerabilities_verb,
    words,
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


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    top = argparse.ArgumentParser(
        prog="python -m build", description="Goldsmith: a hardened, verified, immutable golden Debian 13 image.",
        epilog="Exit codes: 0 done, 1 a step failed, 2 bad input or host, 3 the image failed verification, 130 interrupted.",
    )  # fmt: skip
    top.add_argument("--version", action="version", version=f"goldsmith {__version__}")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    common = words.common()

    def verb(name: str, function: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=text, description=text, parents=[common])
        made.set_defaults(function=function)
        return made

    words.build(verb("build", _build, "build and verify the image; what did not change is not made again"))
    verb("plan", _plan, "print what a build would make, and why")
    setup = verb("setup", _setup, "install the host tools that are missing, or name them")
    setup.add_argument("--tests", action="store_true", help="and what only the tests need")
    words.doctor(verb("doctor", _doctor, "show host tools, accelerator, disk space and mirror, and what is missing"))
    updates_verb.options(verb("lock", _lock, "resolve packages, installer and wheels anew and write the lock files"))
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
    words.audit(verb("audit", _audit, "run the field's auditors against a clone, and hold them against the ledger"))
    check = verb("check", _check, "compare an artifact's files with its SHA256SUMS")
    check.add_argument("artifact", nargs="?", type=Path, help="artifact directory (default: the newest)")
    proof_verbs.add(lambda name, text: verb(name, _prove, text))
    reproduce_verb.options(verb(
        "reproduce", lambda given: _tell(reproduce_verb.run(_options(given), given)),
        "build an artifact's medium (--disk: its disk) again, and compare (3: it differs)",
    ))  # fmt: skip
    vulnerabilities_verb.options(verb(
        "vulnerabilities", lambda given: _tell(vulnerabilities_verb.run(given)),
        "name known vulnerabilities of an artifact's packages (3: some have a fix)",
    ))  # fmt: skip
    table = verb("requirements", _requirements, "write docs/requirements.md: requirements, their tests, the results")
    table.add_argument("junit", nargs="*", type=Path, help="JUnit files with results (default: the newest artifact's)")
    words.publish(verb("publish", _publish, "take a verified artifact to Proxmox VE as a template that clones prove"))
    clone_request.options(verb("clone", _clone, "make a machine of a published template, and wait until it answers"))
    words.drift(verb("drift", _drift, "compare the templates on the cluster with what was published (3: changed)"))
    for name, text in release_request.VERBS.items():
        release_request.options(verb(name, _release, text), name)
    compare_verbs.add(verb)
    packed = verb("bundle", _bundle, "pack an application with its locked wheels for golden-deploy, and print the SHA-256")
    packed.add_argument("directory", type=Path, metavar="DIR", help="with manage.py and requirements.lock")
    packed.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the bundle to write")
    measure = verb("bench", _bench, "measure builds and a plain installation, and write docs/benchmarks.md")
    measure.add_argument("part", nargs="*", choices=[*bench.PARTS, []], help="only these (default: all)")
    return top


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


def _tell(told: tuple[str, int]) -> int:
    print(told[0], end="\n" if told[0] else "")
    return told[1]


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
    return _tell(
        drift_verb.run(project, cache, secrets=arguments.secrets, over_ssh=arguments.ssh, as_json=arguments.json)
    )


def _release(arguments: argparse.Namespace) -> int:
    from build import release_verbs  # noqa: PLC0415 (it needs packages that the other verbs do without)

    def key() -> str:
        return pipeline.gather(_options(arguments), settle=False).keys["artifact"].key

    text, code = release_verbs.run(Project(arguments.project.resolve()), release_request.read(arguments), key=key)
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
    updates_verb.fit(arguments)
    if arguments.check:
        return _tell(updates_verb.run(_options(arguments), arguments))
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


def _prove(arguments: argparse.Namespace) -> int:
    text, code = proof_verbs.run(Project(arguments.project.resolve()), arguments)
    print(text)
    return code


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
