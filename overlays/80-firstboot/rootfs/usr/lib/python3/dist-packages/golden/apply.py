"""Applying changed site settings: first tried where nothing sees them, then used, and awaited until everything is up.

The trial writes the settings and the host names into a copy of /run/golden, which it mounts over the real directory in a
mount namespace that ends with it, and lets each layer try there what it makes of them (/usr/lib/golden/trial.d).
"""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from golden.core import CHECK_FAILED, SITE, Problem, run

NAMES_SERVICE = "golden-names.service"
# Two looks at a service, so far apart (seconds), find one that starts and ends again and again.
LOOKS_APART = 1.5
# As long as systemd's own limit for the start of a service: the units have begun when the wait does.
SETTLED_SECONDS = 90.0
REASON_LINES = 3
STATES = ("Id", "ActiveState", "SubState", "Result", "NRestarts")
# $1: the copy of /run/golden. What the units do with new settings before services use them; then each layer's trial of it, a
# script for sh -eu, in the order of their names.
TRIAL = r"""
mount --bind "$1" /run/golden
/usr/lib/golden/names
for trial in /usr/lib/golden/trial.d/*; do
    [ ! -e "$trial" ] || /bin/sh -eu "$trial"
done
"""


def rehearse(write: Callable[[Path], object], *, directory: Path = SITE.parent) -> None:
    """Try settings in a copy of ``directory``, into which ``write`` puts them; the machine notices nothing of it.

    Raises Problem (CHECK_FAILED) with the error of the web server, or of a part that writes for it.
    """
    with TemporaryDirectory(prefix="golden-trial-", dir=directory.parent) as name:
        copy = Path(name)
        shutil.copytree(directory, copy, dirs_exist_ok=True)
        copy.chmod(0o755)
        write(copy)
        argv = ["unshare", "--mount", "--propagation=private", "--", "/bin/sh", "-euc", TRIAL, "trial", str(copy)]
        tried = run(argv, check=False, env=_environment(NAMES_SERVICE))
    if tried.returncode:
        lines = [line.strip() for line in tried.stderr.decode(errors="replace").splitlines() if line.strip()]
        # nginx warns that its user is not root, which is meant.
        lines = [line for line in lines if "[warn]" not in line] or lines
        reason = " / ".join(lines[-REASON_LINES:]) or "the trial failed"
        raise Problem(
            f"the settings are not applied, and nothing was changed: {reason}",
            hint="correct what is named there; golden-site apply", code=CHECK_FAILED,
        )  # fmt: skip


def _environment(unit: str) -> dict[str, str]:
    """Return the variables that a unit sets for its program."""
    words = shlex.split(run(["systemctl", "show", "--property=Environment", "--value", unit]).stdout.decode())
    return dict(word.split("=", 1) for word in words if "=" in word)


def dependents(unit: str) -> list[str]:
    """Return the services that require or want a unit."""
    names = run(["systemctl", "show", "--property=RequiredBy", "--property=WantedBy", "--value", unit]).stdout.decode()
    return sorted({name for name in names.split() if name.endswith(".service")})


def enabled(units: Sequence[str]) -> set[str]:
    """Return those of the services that start with the machine."""
    if not units:
        return set()
    return {state["Id"] for state in _show(units, ("Id", "UnitFileState")) if state["UnitFileState"].startswith("enabled")}


def settle(units: Sequence[str], *, seconds: float = SETTLED_SECONDS) -> dict[str, str]:
    """Wait until every unit is up or has done its work, and stays so; return those that are not, each with its reason."""
    if not units:
        return {}
    deadline = time.monotonic() + seconds
    before: Mapping[str, str] = {}
    while True:
        states = _show(units, STATES)
        down = {state["Id"] for state in states if not _is_well(state)}
        failed = {state["Id"] for state in states if state["ActiveState"] == "failed"}
        restarts = {state["Id"]: state["NRestarts"] for state in states}
        # A unit that has failed for good stays so; the others may still be on their way.
        if (not down and restarts == before) or (down and down == failed) or time.monotonic() > deadline:
            return {unit: _reason(unit) for unit in sorted(down)}
        before = {} if down else restarts
        time.sleep(LOOKS_APART)


def _show(units: Iterable[str], properties: Sequence[str]) -> list[dict[str, str]]:
    argv = ["systemctl", "show", *(f"--property={name}" for name in properties), "--", *units]
    blocks = run(argv).stdout.decode().strip().split("\n\n")
    read = [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in blocks]
    return [{name: state.get(name, "") for name in properties} for state in read]


def _is_well(state: Mapping[str, str]) -> bool:
    """Return True for a unit that runs, or that ended well, or was skipped for a condition."""
    ended = state["ActiveState"] == "inactive" and state["Result"] in ("success", "exec-condition")
    return ended or state["ActiveState"] == "active"


def _reason(unit: str) -> str:
    """Return the last lines that a unit wrote to the journal since it was last started."""
    wanted = ["journalctl", "--boot", "--quiet", "--no-pager", "--output=cat", f"--lines={REASON_LINES}",
              f"_SYSTEMD_UNIT={unit}"]  # fmt: skip
    lines = run(wanted, check=False, timeout=60).stdout.decode(errors="replace").splitlines()
    return " / ".join(line.strip() for line in lines if line.strip()) or f"journalctl -u {unit}"
