"""A Proxmox VE cluster for every contract test: see tests/fakes/proxmox.py."""

from __future__ import annotations

import gc
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from aiohttp import web_app
from fakepve.pytest_plugin import _Serving

from build.clone import health, machine
from build.proxmox import client, guest_agent
from build.publish import heartbeat
from build.spec import cluster
from tests.contract.cloning import OPERATOR, Field, Guests, web_server
from tests.contract.shipping import Bench, settings_of
from tests.fakes.proxmox import Proxmox

HOST = "127.0.0.1"
TOKEN = cluster.Token("goldsmith@pve", "publisher", "00000000-0000-0000-0000-000000000001")


@pytest.fixture
def proxmox_class() -> type[Proxmox]:
    """The class of the cluster: a test module may override it, for example with machines that boot."""
    return Proxmox


@pytest.fixture
def proxmox(tmp_path: Path, fakepve_cafile: str, proxmox_class: type[Proxmox]) -> Iterator[Proxmox]:
    """A cluster of one node, pve1, with Goldsmith's tokens and pools; tasks take no time."""
    made = proxmox_class(tmp_path / "proxmox", host=HOST, port=0)
    made.apitokens[TOKEN.identity] = TOKEN.secret
    made.apitokens[OPERATOR.identity] = OPERATOR.secret
    made.pools |= {"golden": set(), "golden-clones": set()}
    with served(made, fakepve_cafile):
        yield made


@contextmanager
def served(made: Proxmox, cafile: str) -> Iterator[None]:
    """Serve the API of a cluster; its connections are gone on leaving the block."""
    serving = _Serving(made, cafile, str(Path(cafile).with_suffix(".key")))
    try:
        yield
    finally:
        serving.stop()
        with warnings.catch_warnings():
            # The fake closes its loop while connections are open; this does not matter here.
            warnings.simplefilter("ignore")
            # aiohttp keeps the handlers of every application, and each collection looked at those of all tests before.
            web_app._cached_build_middleware.cache_clear()
            gc.collect()


@pytest.fixture
def quick_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Poll more often: the fake's tasks take no time."""
    monkeypatch.setattr(client, "FIRST_WAIT_SECONDS", 0.02)
    monkeypatch.setattr(client, "LONGEST_WAIT_SECONDS", 0.2)
    monkeypatch.setattr(heartbeat, "WATCH_SECONDS", 0.05)


@pytest.fixture
def settings(proxmox: Proxmox, fakepve_cafile: str) -> cluster.Settings:
    """Settings that lead to the cluster."""
    return settings_of(HOST, proxmox.port, fakepve_cafile)


@pytest.fixture
def bench(proxmox: Proxmox, settings: cluster.Settings, tmp_path: Path, quick_polls: None) -> Bench:
    """A bench to publish from."""
    return Bench(proxmox, settings, tmp_path / "line", TOKEN)


@pytest.fixture
def field(bench: Bench, fakepve_cafile: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Field]:
    """A published template whose clones boot, and an operator; the module's ``proxmox_class`` is Guests, or more."""
    for module in (machine, health, guest_agent):
        monkeypatch.setattr(module, "POLL_SECONDS", 0.02)
    with web_server(Path(fakepve_cafile)) as site:

        def connect(_address: tuple[str, int], timeout: float) -> socket.socket:
            return socket.create_connection((HOST, site.port), timeout)

        monkeypatch.setattr(health, "create_connection", connect)
        assert isinstance(bench.proxmox, Guests)
        bench.proxmox.certificate = site.certificate
        bench.publish()
        bench.proxmox.calls.clear()
        yield Field(bench, site)
