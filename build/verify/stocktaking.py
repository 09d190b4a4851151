"""Reads what a clone is, in one round trip, and leaves ``inventory.json`` and ``boot.svg``.

The program goes to the clone's Python over standard input, so that nothing is written there and nothing is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from build.core import files, json_text, log, records, run
from build.core.errors import CommandFailed, StepFailed
from build.verify import boot_plot, inventory

PROGRAM = "inventory_on_clone.py"
# On a machine with KVM; scaled by the accelerator.
SECONDS = 90.0
# Isolated: neither the clone's environment nor its current directory decides what is imported.
PYTHON = ("python3", "-I", "-")


def take(argv: Sequence[str], *, tests: Path, out: Path, clone: str, target: str, timeout: float) -> None:
    """Run the program of the image tests by ``argv``, which starts a Python on the clone as root; write both files.

    Raises StepFailed when the program fails, or prints what cannot be read.
    """
    program = tests / PROGRAM
    try:
        done = run.run(argv, timeout=timeout, stdin=program.read_bytes())
    except CommandFailed as error:
        raise StepFailed(
            f"the inventory of {clone} could not be read", details=error.details or error.brief,
            hint=f"{program.name} runs there as root; a clone to look at: nox -s boot -- --unverified",
        ) from error  # fmt: skip
    try:
        raw = json_text.parse(done.stdout)
    except ValueError as error:
        raise StepFailed(f"the inventory of {clone} is no JSON", details=run.tail(done.stdout[-2000:])) from error
    slowest = sorted(raw.get("seconds", {}).items(), key=lambda part: -float(part[1]))
    log.debug(f"the inventory of {clone}: " + ", ".join(f"{name} {took} s" for name, took in slowest))
    files.write_json(out / inventory.FILE, records.write(inventory.normalise(raw, clone=clone, target=target)))
    files.write_atomic(out / inventory.PLOT, boot_plot.sanitise(raw["svg"]))
