"""Pending updates of a build's locks: checked when something is built, otherwise the result of the last check."""

from __future__ import annotations

from pathlib import Path

from build.core import host, programs
from build.packages import updates
from build.packages.lock import Lock
from build.packages.updates import PendingUpdates
from build.spec import layers
from build.spec.golden_yaml import Spec
from build.spec.inputs import Inputs
from build.spec.layers import Stack


def question(lock: Lock, spec: Spec, stack: Stack) -> updates.Question:
    """Return the request that the root file system's lock must match."""
    return updates.Question(lock, layers.request_digest(spec, stack), layers.requested_packages(spec, stack))


def look(inputs: Inputs, cache: Path) -> PendingUpdates:
    """Check with new package lists; return what the manifest contains (:func:`build.packages.updates.at_build`)."""
    with programs.recorded(host.UPDATES, cache / "logs"):
        return updates.at_build(*_asked(inputs, cache))


def known(inputs: Inputs, cache: Path) -> PendingUpdates:
    """Return the facts of the last check, without network (:func:`build.packages.updates.at_plan`)."""
    return updates.at_plan(*_asked(inputs, cache))


def _asked(inputs: Inputs, cache: Path) -> tuple[updates.Place, updates.Question, Lock]:
    place = updates.Place(cache / "apt", inputs.mirrors, inputs.rootfs_lock.release, quick=True)
    return place, question(inputs.rootfs_lock, inputs.spec, inputs.stack), inputs.installer_lock
