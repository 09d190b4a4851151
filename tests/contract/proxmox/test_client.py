"""The API client against a fake Proxmox VE that checks calls by the real API's schema and returns its messages."""

from __future__ import annotations

import dataclasses
import gc
import tracemalloc
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from build.core import files
from build.proxmox import client
from build.spec import cluster
from tests.contract.shipping import settings_of

TOKEN = cluster.Token("root@pam", "publisher", "00000000-0000-0000-0000-000000000001")


@pytest.fixture(autouse=True)
def _fake_is_untidy() -> Iterator[None]:
    """The fake closes its loop while connections are open; this does not matter here."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


@pytest.fixture
def settings(fakepve_url: str, fakepve_cafile: str) -> cluster.Settings:
    """Return settings that lead to the fake."""
    url = urlsplit(fakepve_url)
    return settings_of(str(url.hostname), int(url.port or 0), fakepve_cafile)


@pytest.fixture
def api(settings: cluster.Settings, fakepve: Any) -> Iterator[client.Api]:
    fakepve.apitokens[TOKEN.identity] = TOKEN.secret
    with client.Api(settings, TOKEN) as found:
        yield found


def test_reads_with_tls_verified(api: client.Api) -> None:
    assert api.major() >= 8


def test_an_untrusted_certificate_is_refused(settings: cluster.Settings, fakepve: Any) -> None:
    with pytest.raises(client.ApiError, match="not trusted") as caught:
        client.Api(dataclasses.replace(settings, ca=None), TOKEN).get("/version")
    assert "proxmox.ca" in caught.value.hint


def test_a_wrong_token_is_told(settings: cluster.Settings, api: client.Api) -> None:
    with pytest.raises(client.ApiError, match="does not accept the token") as caught:
        client.Api(settings, dataclasses.replace(TOKEN, secret="0" * 36)).get("/nodes")
    assert TOKEN.secret not in caught.value.render()


def test_a_missing_privilege_is_named(api: client.Api, fakepve: Any) -> None:
    fakepve.fail("POST", "/nodes/pve1/qemu", 403, "Permission check failed (/vms/9000, VM.Allocate)")
    with pytest.raises(client.Denied, match=r"VM\.Allocate on /vms/9000"):
        api.post("/nodes/pve1/qemu", vmid=9000)


def test_what_the_schema_refuses_is_told_in_its_words(api: client.Api) -> None:
    with pytest.raises(client.ApiError, match="memory") as caught:
        api.post("/nodes/pve1/qemu", vmid=9000, memory="much")
    assert caught.value.status == 400


def test_nobody_there(settings: cluster.Settings) -> None:
    """Port 9 (discard) of loopback: nothing listens there."""
    with pytest.raises(client.ApiError, match="does not answer") as caught:
        client.Api(dataclasses.replace(settings, port=9), TOKEN).get("/version")
    assert caught.value.status == 0


def test_reading_survives_a_network_that_comes_back(api: client.Api, fakepve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fakepve.flaky_network(drop_rate=1.0, seed=7)
    waits: list[float] = []

    def recover(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            fakepve.flaky_network()

    monkeypatch.setattr("build.proxmox.client.time.sleep", recover)
    assert api.major() >= 8
    assert waits == [client.FIRST_WAIT_SECONDS, 2 * client.FIRST_WAIT_SECONDS]


def test_writing_is_not_repeated(api: client.Api, fakepve: Any) -> None:
    fakepve.flaky_network(drop_rate=1.0, seed=1)
    with pytest.raises(client.ApiError):
        api.post("/nodes/pve1/qemu", vmid=9000)
    assert api.calls["post"] == 1


def test_upload_streams_and_is_checked(api: client.Api, fakepve: Any, tmp_path: Path) -> None:
    """The plain fake has no content type import, and keeps the body in its memory, which is this process's too."""
    image = tmp_path / "image.qcow2"
    with image.open("wb") as stream:
        stream.truncate(48 << 20)
    told: list[int] = []
    tracemalloc.start()
    volume = api.upload(
        "pve1", "local", image, name="golden-1.iso", sha256=files.sha256_file(image), content="iso", progress=told.append
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert volume == "local:iso/golden-1.iso"
    assert told[-1] == 48 << 20
    assert told == sorted(told)
    assert "golden-1.iso" in str(api.get("/nodes/pve1/storage/local/content"))
    assert peak < 300 << 20


def test_a_failed_task_tells_its_end_and_its_log(api: client.Api, fakepve: Any) -> None:
    fakepve.add_vm(9000, "x", config={"scsi0": "local-lvm:vm-9000-disk-0"})
    fakepve.fail("POST", "/nodes/pve1/qemu/9000/status/start", error="start_failed")
    with pytest.raises(client.TaskFailed, match="qmstart on pve1 failed"):
        api.wait(api.post("/nodes/pve1/qemu/9000/status/start"))
