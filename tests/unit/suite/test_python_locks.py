"""The Python packages of the nox sessions: every set is locked with hashes, and all sets agree with the constraints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import noxfile

ROOT = Path(__file__).parents[3]
LOCKS = ROOT / noxfile.LOCKS
SETS = (*noxfile.TOOL, *noxfile.IMAGE_TESTS, *noxfile.AUDITORS, *noxfile.PROXMOX, *noxfile.CHECKS, "lock")
PIN = re.compile(
    r"(?P<name>[a-z0-9-]+)==(?P<version>[^\s;]+)(?P<marker> ; [^\\]+?)?(?P<hashes>( --hash=sha256:[0-9a-f]{64})*)"
)


def lines(path: Path) -> list[str]:
    """Return the lines of a requirements file, each continued one as one, without comments."""
    joined = re.sub(r" \\\n +", " ", path.read_text(encoding="utf-8"))
    return [line for line in joined.splitlines() if line and not line.startswith("#")]


def pins(path: Path) -> dict[str, re.Match[str]]:
    matches = [PIN.fullmatch(line) for line in lines(path)]
    assert all(matches), f"{path.name}: not NAME==VERSION: {[line for line in lines(path) if not PIN.fullmatch(line)]}"
    return {match["name"]: match for match in matches if match}


def test_every_set_has_a_list_and_a_lock() -> None:
    assert {path.name for path in LOCKS.iterdir()} == {f"{name}.{kind}" for name in SETS for kind in ("in", "txt")}


@pytest.mark.parametrize("name", SETS)
def test_a_lock_has_a_hash_for_each_package_and_the_version_of_the_constraints(name: str) -> None:
    constraints = {pin: match["version"] for pin, match in pins(ROOT / ".ci/constraints.txt").items()}
    locked = pins(LOCKS / f"{name}.txt")
    assert locked
    assert all(match["hashes"] for match in locked.values())
    assert {pin: match["version"] for pin, match in locked.items()} == {pin: constraints[pin] for pin in locked}


@pytest.mark.parametrize("name", SETS)
def test_a_lock_has_what_its_list_names(name: str) -> None:
    named = {re.sub(r"\[.*", "", line) for line in lines(LOCKS / f"{name}.in")}
    assert named <= pins(LOCKS / f"{name}.txt").keys(), "run .ci/lock"


def test_the_constraints_have_no_package_that_no_set_needs() -> None:
    assert pins(ROOT / ".ci/constraints.txt").keys() == {pin for name in SETS for pin in pins(LOCKS / f"{name}.txt")}
