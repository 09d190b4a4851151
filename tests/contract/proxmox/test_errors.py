"""Every command, with every error of a cluster: the message names the cause in an administrator's terms.

One table for each cause: the message of each command, and its exit code. A command that is not in the table succeeds.
"""

from __future__ import annotations

import dataclasses
import http.server
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import certifi
import pytest

from build.cli import main
from build.proxmox import client
from build.publish import node_verify
from tests.contract.cloning import KEY, OPERATOR, Field
from tests.contract.conftest import TOKEN
from tests.contract.interleaving import Scene, _no_patience
from tests.contract.replacing import Ground, Machines, prepare
from tests.contract.shipping import make_artifact, write_spec
from tests.fakes.proxmox import Proxmox
from tests.patience import PATIENCE_SECONDS

__all__ = ["_no_patience"]

pytestmark = pytest.mark.usefixtures("_no_patience")

PUBLISH, CLONE, PROMOTE, REPLACE = "publish", "clone", "promote", "replace"
DRIFT, FLEET, PRUNE, HISTORY, DOCTOR = "drift", "fleet", "prune", "history", "doctor"
EVERYTHING = (PUBLISH, CLONE, PROMOTE, REPLACE, DRIFT, FLEET, PRUNE, HISTORY, DOCTOR)
# What no person should have to read.
RAW = re.compile(r"[{}]|b''|Traceback|This is a bug|errors'")
READ = ("VM.Audit", "Datastore.Audit", "Pool.Audit", "SDN.Use", "VM.GuestAgent.Audit", "VM.GuestAgent.FileRead")

Said = dict[str, tuple[int, str]]


@pytest.fixture
def proxmox_class() -> type[Proxmox]:
    return Machines


@pytest.fixture
def ground(field: Field, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Ground:
    """A checkout with a newer artifact than the published ones, and tokens for every role."""
    made = prepare(field)
    write_spec(field.bench.place, field.bench.settings)
    make_artifact(field.bench.place, fill=b"\2", version="1.4.0")
    monkeypatch.setenv("HOME", str(tmp_path))
    for role, token in (("PUBLISHER", TOKEN), ("VERIFIER", TOKEN), ("OPERATOR", OPERATOR), ("REPLACER", OPERATOR)):
        monkeypatch.setenv(f"GOLDSMITH_PVE_TOKEN_{role}", f"{token.identity}={token.secret}")
    monkeypatch.setattr(node_verify.NodeVerifier, "verify", lambda _self, _subject: None)
    monkeypatch.setattr(client, "LOCK_SECONDS", 0.0)
    (tmp_path / "key.pub").write_text(f"{KEY}\n")
    # There is a ledger, and a promotion before.
    assert main.main(line(made, tmp_path, PROMOTE)) == 0
    return made


def line(ground: Ground, place: Path, command: str) -> list[str]:
    """Return the command line of a command."""
    root = ground.field.bench.place
    words = {
        CLONE: ["--name", "web2", "--ip", "192.0.2.11/24,gw=192.0.2.1", "--ssh-key", str(place / "key.pub"), "--no-wait",
                "--channel", "candidate"],
        PROMOTE: ["1.2.3" if not list(root.rglob("releases.jsonl")) else "1.4.0"],
        REPLACE: ["web1", "--to", "1.3.0", "--timeout", str(PATIENCE_SECONDS)],
        PRUNE: ["--apply", "--days", "0"], HISTORY: ["--rebuild"],
        DOCTOR: ["--proxmox"],
    }.get(command, [])  # fmt: skip
    cache = ["--cache", str(place / "cache")] if command in (PUBLISH, CLONE, PROMOTE, REPLACE, DOCTOR) else []
    return [command, *words, "--project", str(root), *cache]


def published(ground: Ground) -> None:
    """Publish the newest version, which a promotion moves the channel to."""
    assert main.main(line(ground, ground.field.bench.place, PUBLISH)) == 0


def no_quorum(ground: Ground) -> None:
    ground.proxmox.lose_quorum()


def locked_by_a_backup(ground: Ground) -> None:
    for vm in ground.proxmox.vms:
        vm.lock = vm.config["lock"] = "backup"


def protected(ground: Ground) -> None:
    """The protection of the template is set again as soon as it is removed."""

    def protect(_request: object) -> None:
        for vm in ground.proxmox.vms:
            vm.config["protection"] = "1"

    ground.proxmox.on_request = protect


def no_room(ground: Ground) -> None:
    ground.proxmox.storages["local-lvm"]["avail"] = 1 << 20


def no_disks_on_the_storage(ground: Ground) -> None:
    ground.proxmox.storages["local-lvm"]["content"] = "rootdir"


def no_images_on_the_media(ground: Ground) -> None:
    ground.proxmox.storages["local"]["content"] = "iso"


def node_is_down(ground: Ground) -> None:
    ground.proxmox.set_node_offline("pve1")


def no_pools(ground: Ground) -> None:
    ground.proxmox.pools.clear()


def no_such_token(ground: Ground) -> None:
    ground.proxmox.apitokens.clear()


def may_read_alone(ground: Ground) -> None:
    for token in (TOKEN, OPERATOR):
        ground.proxmox.entitle(token.identity, "/", *READ)


def may_see_nothing(ground: Ground) -> None:
    for token in (TOKEN, OPERATOR):
        ground.proxmox.entitle(token.identity, "/pool/other", "VM.Audit")


def elsewhere(ground: Ground, **changes: object) -> None:
    write_spec(ground.field.bench.place, dataclasses.replace(ground.field.bench.settings, **changes))  # type: ignore[arg-type]


def another_authority(ground: Ground) -> None:
    elsewhere(ground, ca=Path(certifi.where()))


def nobody_listens(ground: Ground) -> None:
    elsewhere(ground, port=9)


def of_all(code: int, text: str, *commands: str) -> Said:
    return dict.fromkeys(commands or EVERYTHING, (code, text))


WRITERS = (PUBLISH, CLONE, PROMOTE, REPLACE, PRUNE)
NOT_READY = "the cluster is not ready"
TABLE: list[tuple[Callable[[Ground], None], Said]] = [
    (no_quorum, of_all(1, "the cluster has no quorum.*pvecm status", *WRITERS)),
    (locked_by_a_backup, of_all(1, "the VM is locked by a backup", CLONE, PROMOTE, PRUNE)
     | {REPLACE: (2, "lock: backup: a task is running on the VM")}),
    (protected, {PRUNE: (1, "the VM is protected.*--protection 0")}),
    (no_room, of_all(1, "not enough free space on storage local-lvm.*free space on the storage local-lvm", CLONE, REPLACE)
     | of_all(2, "storage local-lvm on pve1.*GiB free.*GiB needed", PUBLISH, DOCTOR)),
    (no_disks_on_the_storage, {REPLACE: (1, "no disks of VMs are allowed on storage local-lvm.*pvesm set local-lvm")}
     | of_all(2, "storage local-lvm on pve1.*content does not include images.*pvesm set local-lvm", PUBLISH, DOCTOR)),
    (no_images_on_the_media, of_all(2, "content does not include import.*pvesm set local --content", PUBLISH, DOCTOR)),
    (node_is_down, of_all(1, "node pve1 does not answer", CLONE, REPLACE, DRIFT) | {PROMOTE: (1, "pve1")}
     | of_all(2, "node pve1.*offline", PUBLISH, DOCTOR) | of_all(0, "node pve1 does not answer", FLEET, PRUNE)),
    (no_pools, {PUBLISH: (1, "no pool golden .*doctor -- --roles")}
     | of_all(1, "no pool golden-clones .*doctor -- --roles", CLONE, REPLACE)),
    (no_such_token, of_all(1, "does not accept the token.*neither expired nor deleted")),
    (may_read_alone, of_all(1, r"the token goldsmith@pve!operator lacks a privilege: VM\.Clone on /vms/\d+", CLONE)
     | of_all(1, r"the token goldsmith@pve!\w+ lacks a privilege: .* on /vms/\d+.*doctor", PROMOTE, REPLACE, PRUNE)
     | of_all(2, r"goldsmith@pve!publisher lacks .*VM\.Allocate.* on /pool/golden", PUBLISH, DOCTOR)),
    (may_see_nothing, of_all(2, "check the token", CLONE, REPLACE, DRIFT) | {FLEET: (0, "check the token")}
     | of_all(2, r"goldsmith@pve!publisher lacks .*VM\.Allocate.* on /pool/golden", PUBLISH, DOCTOR)),
    (another_authority, of_all(1, "the certificate of 127.0.0.1 is not trusted.*proxmox.ca")),
    (nobody_listens, of_all(1, "127.0.0.1:9 does not answer.*proxmox.host")),
]  # fmt: skip


@pytest.mark.parametrize(("arrange", "messages"), TABLE, ids=[arrange.__name__ for arrange, _ in TABLE])
def test_each_command_names_the_cause(
    ground: Ground, arrange: Callable[[Ground], None], messages: Said, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Scene(ground.proxmox)
    published(ground)
    after, book = Scene(ground.proxmox), next(ground.field.bench.place.rglob("releases.jsonl"))
    ledger = book.read_bytes()
    for command in EVERYTHING:
        (before if command == PUBLISH else after).again()
        book.write_bytes(ledger)
        with_everything(ground)
        arrange(ground)
        words = line(ground, tmp_path, command)
        capsys.readouterr()
        code = main.main(words)
        shown = capsys.readouterr()
        text = f"{shown.out}\n{shown.err}"
        assert not RAW.search(text), text
        assert ("certificate of" in text) == (arrange is another_authority), text
        if command in messages:
            expected, pattern = messages[command]
            assert re.search(pattern, text, re.DOTALL), f"{command}: {text}"
            assert code == expected, f"{command}: {text}"
        elif code not in (0, 1, 2, 3):
            pytest.fail(f"{command}: {text}")


def with_everything(ground: Ground) -> None:
    """Undo the changes of a cause that are not part of the cluster's state."""
    proxmox = ground.proxmox
    proxmox.acl, proxmox.quorate, proxmox.on_request = None, True, lambda _request: None
    proxmox.apitokens |= {TOKEN.identity: TOKEN.secret, OPERATOR.identity: OPERATOR.secret}
    proxmox.set_node_offline("pve1", offline=False)


@pytest.fixture
def plain_port() -> Iterator[int]:
    """A port where a server speaks HTTP without TLS."""

    class Silent(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Log nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_port_without_tls_is_no_bad_certificate(
    ground: Ground, plain_port: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere(ground, port=plain_port)
    for command in EVERYTHING:
        assert main.main(line(ground, tmp_path, command)) == 1
        text = capsys.readouterr().err
        assert re.search(r"no TLS connection to 127\.0\.0\.1:\d+.*8006", text, re.DOTALL), f"{command}: {text}"
        assert "certificate" not in text
