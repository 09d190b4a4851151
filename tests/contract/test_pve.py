"""The API client against a fake Proxmox VE that checks every call by the real API's schema and fails in its words."""

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

from build import cluster, files, pve
from tests.contract.shipping import settings_of

TOKEN = cluster.Token("root@pam", "publisher", "00000000-0000-0000-0000-000000000001")


@pytest.fixture(autouse=True)
def _fake_is_untidy() -> Iterator[None]:
    """The fake closes its loop over connections that it has not closed; that is no business of ours."""
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
def api(settings: cluster.Settings, fakepve: Any) -> Iterator[pve.Api]:
    fakepve.apitokens[TOKEN.identity] = TOKEN.secret
    with pve.Api(settings, TOKEN) as found:
        yield found


def test_reads_with_tls_verified(api: pve.Api) -> None:
    assert api.major() >= 8


def test_an_untrusted_certificate_is_refused(settings: cluster.Settings, fakepve: Any) -> None:
    with pytest.raises(pve.ApiError, match="not trusted") as caught:
        pve.Api(dataclasses.replace(settings, ca=None), TOKEN).get("/version")
    assert "proxmox.ca" in caught.value.hint


def test_a_wrong_token_is_told(settings: cluster.Settings, api: pve.Api) -> None:
    with pytest.raises(pve.ApiError, match="does not accept the token") as caught:
        pve.Api(settings, dataclasses.replace(TOKEN, secret="0" * 36)).get("/nodes")
    assert TOKEN.secret not in caught.value.render()


def test_a_missing_privilege_is_named(api: pve.Api, fakepve: Any) -> None:
    fakepve.fail("POST", "/nodes/pve1/qemu", 403, "Permission check failed (/vms/9000, VM.Allocate)")
    with pytest.raises(pve.Denied, match=r"VM\.Allocate on /vms/9000"):
        api.post("/nodes/pve1/qemu", vmid=9000)


def test_what_the_schema_refuses_is_told_in_its_words(api: pve.Api) -> None:
    with pytest.raises(pve.ApiError, match="memory") as caught:
        api.post("/nodes/pve1/qemu", vmid=9000, memory="much")
    assert caught.value.status == 400


def test_nobody_there(settings: cluster.Settings) -> None:
    """Port 9 (discard) of loopback: nothing listens there."""
    with pytest.raises(pve.ApiError, match="does not answer") as caught:
        pve.Api(dataclasses.replace(settings, port=9), TOKEN).get("/version")
    assert caught.value.status == 0


def test_reading_survives_a_network_that_comes_back(api: pve.Api, fakepve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fakepve.flaky_network(drop_rate=1.0, seed=7)
    waits: list[float] = []

    def recover(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            fakepve.flaky_network()

    monkeypatch.setattr("build.pve.time.sleep", recover)
    assert api.major() >= 8
    assert waits == [pve.FIRST_WAIT_SECONDS, 2 * pve.FIRST_WAIT_SECONDS]


def test_writing_is_not_repeated(api: pve.Api, fakepve: Any) -> None:
    fakepve.flaky_network(drop_rate=1.0, seed=1)
    with pytest.raises(pve.ApiError):
        api.post("/nodes/pve1/qemu", vmid=9000)
    assert api.calls["post"] == 1


def test_upload_streams_and_is_checked(api: pve.Api, fakepve: Any, tmp_path: Path) -> None:
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


def test_a_failed_task_tells_its_end_and_its_log(api: pve.Api, fakepve: Any) -> None:
    fakepve.add_vm(9000, "x", config={"scsi0": "local-lvm:vm-9000-disk-0"})
    fakepve.fail("POST", "/nodes/pve1/qemu/9000/status/start", error="start_failed")
    with pytest.raises(pve.TaskFailed, match="qmstart on pve1 failed"):
        api.wait(api.post("/nodes/pve1/qemu/9000/status/start"))
