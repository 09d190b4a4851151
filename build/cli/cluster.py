"""What the commands share that work on a cluster: its settings in golden.yaml, and connections with the tokens."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from build.core import files
from build.core.cache import Cache
from build.core.errors import SpecError
from build.proxmox import client
from build.spec import golden_yaml as specs
from build.spec.cluster import NoToken, Role, Settings, default_secrets, token

__all__ = ["NoToken", "connect", "nodes_of", "publishing", "settings_of"]


def settings_of(spec: specs.Spec) -> Settings:
    """Return the cluster of golden.yaml; raise SpecError when it names none."""
    if spec.proxmox is None:
        raise SpecError(
            "golden.yaml has no section proxmox",
            hint="add: proxmox: {host: ..., nodes: [...], storage: ..., media: ..., pool: ...}",
        )
    return spec.proxmox


def connect(settings: Settings, role: Role, secrets: Path | None) -> client.Api:
    """Connect with the token of a role; ``secrets`` is the file of the tokens, when it is not the usual one."""
    secret = token(role, secrets=secrets or default_secrets(os.environ), environment=os.environ)
    return client.Api(settings, secret)


def nodes_of(settings: Settings, wanted: Sequence[str]) -> tuple[str, ...]:
    """Return the nodes that are named, all without one; raise SpecError for a node that golden.yaml does not have."""
    unknown = [name for name in wanted if name not in settings.nodes]
    if unknown:
        raise SpecError(
            f"golden.yaml: proxmox.nodes has no {', '.join(unknown)}", hint=f"it has: {', '.join(settings.nodes)}"
        )
    return tuple(wanted) or settings.nodes


def publishing(stack: ExitStack, cache: Cache, settings: Settings, secrets: Path | None) -> tuple[client.Api, client.Api]:
    """Connect as publisher and verifier; no other run of this host publishes until ``stack`` is closed."""
    # Two runs of one host would take each other's machines for what a killed run left.
    stack.enter_context(files.lock(cache.root / "publish.lock", waiting="another publish is running: waiting for it"))
    publisher = stack.enter_context(connect(settings, Role.PUBLISHER, secrets))
    return publisher, stack.enter_context(connect(settings, Role.VERIFIER, secrets))
