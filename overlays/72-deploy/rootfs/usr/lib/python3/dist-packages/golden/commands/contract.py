"""The contract of an application (golden-app.yaml): check a project's, show what the active release is granted.

The build of the image writes the grants of the included application with --write.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from golden import contract, contract_check, exposure, grants
from golden.core import CHECK_FAILED, USAGE, Problem, run, run_command
from golden.releases import Releases


def act(arguments: argparse.Namespace) -> dict[str, Any]:
    """Do what the options ask for."""
    if arguments.check:
        return {"contract": checked(arguments.check)}
    if arguments.compare:
        return compared()
    if arguments.write:
        write(arguments.write)
        return {"contract": grants.read(arguments.write)}
    name = arguments.release or Releases().current()
    granted = grants.read(Releases().path(name))
    if granted is None:
        raise Problem(f"the release {name!r} has no contract", hint="golden-deploy --list", code=USAGE)
    return {"contract": granted}


def compared() -> dict[str, Any]:
    """Compare the machine with the contract of the release that serves. Raises Problem when it has none."""
    problems = contract_check.compare(Path, _properties)
    if problems is None:
        raise Problem("the release that serves has no contract", hint="golden-deploy --list", code=USAGE)
    granted = grants.read(Releases().path(Releases().current())) or {}
    return {"ok": not problems, "release": Releases().current(), "opens": exposure.opened(granted), "problems": problems}


def _properties(unit: str, names: Iterable[str]) -> dict[str, str]:
    shown = run(["systemctl", "show", unit, *(f"--property={name}" for name in names)], check=False).stdout.decode()
    return dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)


def checked(directory: Path) -> dict[str, Any]:
    """Return the contract of a project. Raises Problem (CHECK_FAILED) with every fault."""
    values, faults = contract.load(directory)
    if faults:
        raise Problem(
            f"{contract.NAME} has {len(faults)} faults:\n" + "\n".join(f"  {fault}" for fault in faults),
            hint=f"correct {directory / contract.NAME}", code=CHECK_FAILED,
        )  # fmt: skip
    return values


def write(release: Path) -> None:
    """Write the grants of a release whose code is in place, readable for the services."""
    grants.install(checked(release / "code"), release)


def show(result: Mapping[str, Any]) -> str:
    """Return the result for people."""
    if "problems" in result:
        wrong = [f"wrong: {line}" for line in result["problems"]]
        return "\n".join([f"release {result['release']}", *result["opens"], *wrong])
    return json.dumps(result["contract"], indent=1, sort_keys=True)


def main() -> None:
    """Read the command line and do what it asks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", type=Path, metavar="DIR", help="check the contract of a project")
    what.add_argument("--compare", action="store_true", help="compare the machine with it (exit code 3: they differ)")
    what.add_argument("--write", type=Path, metavar="RELEASE", help="write the grants of a release's directory")
    what.add_argument("--release", metavar="NAME", help="show the contract of this release (default: the one that serves)")
    run_command(parser, act, show)
