"""A Proxmox VE cluster for every contract test: see tests/fakes/proxmox.py."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakepve.pytest_plugin import _Serving

from build import cluster, pve
from tests.contract.shipping import Bench, settings_of
from tests.fakes.proxmox import Proxmox

HOST = "127.0.0.1"
TOKEN = cluster.Token("goldsmith@pve", "publisher", "00000000-0000-0000-0000-000000000001")


@pytest.fixture
def proxmox_class() -> type[Proxmox]:
    """The kind of cluster: a test module may have one of its own, with machines that boot."""
    return Proxmox


@pytest.fixture
def proxmox(tmp_path: Path, fakepve_cafile: str, proxmox_class: type[Proxmox]) -> Iterator[Proxmox]:
    """A cluster of one node, pve1, that accepts TOKEN and has the pool golden; tasks take no time."""
    made = proxmox_class(tmp_path / "proxmox", host=HOST, port=0)
    made.apitokens[TOKEN.identity] = TOKEN.secret
    made.pools["golden"] = set()
    serving = _Serving(made, fakepve_cafile, str(Path(fakepve_cafile).with_suffix(".key")))
    try:
        yield made
    finally:
        serving.stop()
        with warnings.catch_warnings():
            # The fake closes its loop over connections that it has not closed; that is no business of ours.
            warnings.simplefilter("ignore")
            gc.collect()


@pytest.fixture
def quick_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask more often: the fake's tasks take no time."""
    monkeypatch.setattr(pve, "FIRST_WAIT_SECONDS", 0.02)
    monkeypatch.setattr(pve, "LONGEST_WAIT_SECONDS", 0.2)


@pytest.fixture
def settings(proxmox: Proxmox, fakepve_cafile: str) -> cluster.Settings:
    """Settings that lead to the cluster."""
    return settings_of(HOST, proxmox.port, fakepve_cafile)


@pytest.fixture
def bench(proxmox: Proxmox, settings: cluster.Settings, tmp_path: Path, quick_polls: None) -> Bench:
    """A bench to publish from."""
    return Bench(proxmox, settings, tmp_path / "line", TOKEN)
