"""The command line: ``python -m build COMMAND``, behind every nox session.

Only here, the name of a command becomes its module, and errors become exit codes.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
import traceback
from collections.abc import Sequence

from build import __version__
from build.cli import loading
from build.cli import options as common
from build.core import log
from build.core.errors import EXIT_INTERRUPTED, GoldsmithError, HostError

EXIT_BUG = 70

# Every command, with its help; the module of that name is imported when the command is called.
COMMANDS = {
    "build": "build and verify the image; completed stages are reused",
    "plan": "print which stages a build would run, and why",
    "setup": "install the host tools that a build needs",
    "doctor": "check host tools, accelerator, disk space, mirrors (--proxmox: the cluster), and list what is missing",
    "lock": "resolve packages, installer and wheels, and write the lock files",
    "boot": "start a disposable test VM of the newest image; Ctrl-C ends it",
    "long-tests": "run all the long service tests over SSH on two VMs of an image",
    "container": "boot the root file system with systemd-nspawn and run the tests that apply there",
    "faults": "inject faults into disposable test VMs under load, and report the result of each",
    "audit": "run the security scanners against a test VM and compare the results with the baseline",
    "check": "compare the files of an artifact with its SHA256SUMS",
    "attest": "verify an artifact and sign it; can be run by several signers",
    "verify-artifact": "verify an artifact offline: checksums, provenance and signatures (exit 3: verification failed)",
    "reproduce": "build the installer ISO of an artifact again (--disk: its disk too) and compare (exit 3: it differs)",
    "vulnerabilities": "list known vulnerabilities of the packages of an artifact (exit 3: some have a fix)",
    "requirements": "write docs/reference/requirements.md: requirements, their tests, the results",
    "publish": "publish a verified artifact to Proxmox VE as a template and test it there with two clones",
    "clone": "clone a VM from a published template and wait until it is reachable",
    "replace": "replace the system of machines with a data disk by a newer template's; --undo goes back",
    "fleet": "show every machine: template, channel, checks, backup, certificate; --html FILE for a wall",
    "drift": "compare the templates on the cluster with the published images (exit 3: changed)",
    "promote": "move a channel to a published version, on every node, if the gates of golden.yaml allow it",
    "rollback": "move a channel back to its previous version",
    "history": "print the ledger: who moved which channel, when and why; --rebuild restores it from the cluster",
    "revoke": "revoke a version: it can no longer be promoted, cloned or published",
    "restore": "undo a revocation",
    "prune": "list unused templates and why they can be deleted; --apply deletes them",
    "diff": "compare two artifacts: packages, files, units, sockets, test results and more",
    "notes": "print the release notes of an artifact, in Markdown",
    "report": "regenerate the report of an artifact: one HTML page, with the trend until now",
    "layer": "write a new layer: layer.yaml, a page, a check of golden-verify, an image test",
    "bundle": "pack an application with its locked wheels for golden-deploy, and print the SHA-256",
    "bench": "measure builds and a baseline installation, and write docs/reference/benchmarks.md",
    "completion": "print a bash completion for the sessions of nox and the options of each command",
}


def parser(command: str = "") -> argparse.ArgumentParser:
    """Return the parser of the command line; only the command that is named has its options."""
    top = argparse.ArgumentParser(
        prog="python -m build", description="Goldsmith: a hardened, verified, immutable golden Debian 13 image.",
        epilog="Exit codes: 0 done, 1 a step failed, 2 bad input or host, 3 the image failed verification, 130 interrupted.",
    )  # fmt: skip
    top.add_argument("--version", action="version", version=f"goldsmith {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        own = commands.add_parser(name, help=text, description=text)
        if name == command:
            loading.load(name).options(own)
            common.add_log(own)
    return top


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line, as argparse does: SystemExit for a wrong one."""
    # The first argument that is no option: the options before it (--help, --version) have no values.
    command = next((argument for argument in argv if not argument.startswith("-")), "")
    return parser(command).parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    # Files of the cache are read by mapped users when Goldsmith is not root, and by people.
    os.umask(0o022)
    # CI and service managers end a job with TERM: the same orderly end as Ctrl-C.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    arguments = parse(sys.argv[1:] if argv is None else argv)
    log.configure(json_lines=arguments.log_json, verbose=arguments.verbose)
    try:
        return loading.load(arguments.command).run(arguments)
    except GoldsmithError as error:
        log.error(error.render())
        return error.exit_code
    except KeyboardInterrupt:
        log.error("Interrupted. Completed stages are cached; run the same command again to continue.")
        return EXIT_INTERRUPTED
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return _bug()
        return _full_disk(error, arguments)
    except Exception:  # noqa: BLE001 (whatever arrives here is a bug, and is reported as one)
        return _bug()


def _full_disk(error: OSError, arguments: argparse.Namespace) -> int:
    cache = vars(arguments).get("cache", "")
    hint = "free some space, or --cache DIRECTORY" if cache else "free some space"
    log.error(f"{error.strerror}: {error.filename or cache}\n  -> {hint}")
    return HostError.exit_code


def _bug() -> int:
    traceback.print_exc()
    log.error("This is a bug in Goldsmith. Please report it with the text above.")
    return EXIT_BUG


if __name__ == "__main__":
    sys.exit(main())
