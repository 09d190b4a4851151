"""Ensures that only one of several concurrent runs, on any hosts, creates a VM with a given name.

Proxmox allows duplicate names, and has no reservation. So each run first creates its VM under a unique VM id, and then
looks for other VMs with that name. A run that sees none claims the name with a tag. Of runs that see each other, the
one with the lowest VM id waits until the others are gone, or one has claimed the name; the others give up. Each VM is
visible before its run looks, so two runs cannot both miss each other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from build.core.errors import StepFailed
from build.proxmox import labels

# The time that a rival may take to remove its VM after it gave up.
WAIT_SECONDS, POLL_SECONDS = 300.0, 1.0


class ConcurrentRun(StepFailed):
    """Another run is creating the same VM."""


def require(
    name: str, vmid: int, tag: str, listed: Callable[[], Iterable[Mapping[str, Any]]],
    wait: Callable[[float], None] = time.sleep,
) -> None:  # fmt: skip
    """Return when no other VM has the name; the caller then sets ``tag``, which claims it.

    Raises ConcurrentRun if another run continues with the name, StepFailed if another VM keeps the name without
    claiming it.
    """
    deadline = time.monotonic() + WAIT_SECONDS
    while rivals := [guest for guest in listed() if guest.get("name") == name and int(guest["vmid"]) != vmid]:
        ahead = [
            guest for guest in rivals
            if int(guest["vmid"]) < vmid or tag in labels.split_tags(str(guest.get("tags", "")))
        ]  # fmt: skip
        if ahead:
            raise ConcurrentRun(
                f"another run is creating {name}: VM {ahead[0]['vmid']}",
                hint="wait until it is done, then run the same command again: it finds the result of that run",
            )
        if time.monotonic() > deadline:
            raise StepFailed(
                f"another VM has the name {name}, and no run continues with it: VM {rivals[0]['vmid']}",
                hint=f"if no other host works on it: qm destroy {rivals[0]['vmid']} --purge 1; then run the same "
                "command again",
            )
        wait(POLL_SECONDS)
