"""The current guests of a cluster: one list of all, and one more from each node with guests.

``/cluster/resources`` gets names, template flags and states from pvestatd of each node every ten seconds (measured on
Proxmox VE 9.2: up to 8.4 s late); tags, locks and numbers are immediate. ``/nodes/N/qemu`` is fresh. A guest of a node
that has been down for some minutes has no name in either; it is identified by its tags.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

from build.proxmox import labels
from build.proxmox.api_errors import UNREACHABLE, ApiError
from build.proxmox.client import Api, each
from build.proxmox.preflight import MOST_CONNECTIONS

# Delayed by pvestatd in the cluster's list, and immediate in the list of a node.
LATE_KEYS = ("name", "template", "status")
# The key of a guest whose node did not answer.
UNSEEN = "unseen"
# Proxmox VE 9.2 refuses the list of a node with this while one of its VMs is removed.
VANISHED = re.compile(r"Configuration file '[^']+' does not exist")
LIST_ATTEMPTS, LIST_POLL_SECONDS = 10, 0.2


def listed(api: Api) -> list[dict[str, Any]]:
    """Return every guest that the token may see; those of a node that does not answer have ``UNSEEN``. Raises ApiError."""
    guests: list[dict[str, Any]] = [dict(guest) for guest in api.get("/cluster/resources", type="vm")]
    nodes = sorted({str(guest["node"]) for guest in guests if _is_vm(guest)})
    # For one node, no separate connection is needed.
    answers = [_of_node(api, *nodes)] if len(nodes) == 1 else each(api, _of_node, nodes, most=MOST_CONNECTIONS)
    fresh = dict(zip(nodes, answers, strict=True))
    for guest in guests:
        if _is_vm(guest):
            _refresh(guest, fresh[str(guest["node"])])
    return guests


def is_named(guest: Mapping[str, Any], name: str, tags: frozenset[str]) -> bool:
    """Return True if a guest has a name, or could have it: one without a name that has all of ``tags``."""
    if "name" in guest:
        return str(guest["name"]) == name
    return tags <= labels.split_tags(str(guest.get("tags", "")))


def _is_vm(guest: Mapping[str, Any]) -> bool:
    return str(guest.get("type", "qemu")) == "qemu"


def _refresh(guest: dict[str, Any], fresh: Mapping[int, Mapping[str, Any]] | None) -> None:
    now = fresh.get(int(guest["vmid"])) if fresh is not None else None
    if now is None:
        # Migrating to another node, or on a node that does not answer: only the cluster's list is available.
        guest[UNSEEN] = fresh is None
        return
    for key in LATE_KEYS:
        guest.pop(key, None)
        if key in now:
            guest[key] = now[key]


def _of_node(api: Api, node: str) -> dict[int, Mapping[str, Any]] | None:
    """Return the guests of a node by number, or None when it does not answer."""
    try:
        return {int(guest["vmid"]): guest for guest in of_node(api, node)}
    except ApiError as error:
        if error.status in UNREACHABLE:
            return None
        raise


def of_node(api: Api, node: str) -> list[Mapping[str, Any]]:
    """Return the guests of a node; repeat the request if one was removed at that moment. Raises ApiError."""
    for attempt in range(1, LIST_ATTEMPTS + 1):
        try:
            guests: list[Mapping[str, Any]] = api.get(f"/nodes/{node}/qemu")
        except ApiError as error:
            if not VANISHED.search(error.brief) or attempt == LIST_ATTEMPTS:
                raise
            time.sleep(LIST_POLL_SECONDS)
        else:
            return guests
    raise AssertionError
