"""Publishing to Proxmox VE before 8.4: the image over SSH, with verified host keys, and ``qm disk import`` on the node."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import paramiko
import pytest

from build.core.errors import GoldsmithError
from build.publish import publish, ssh_import
from tests.contract.shipping import DISK_MIB, NAME, Bench
from tests.fakes.sshd import HOST, Node

IMPORTED = "local-lvm:vm-9000-disk-7"


@pytest.fixture
def node(bench: Bench, tmp_path: Path) -> Iterator[Node]:
    """The node pve1, version 8.2, where ``qm disk import`` adds an unused disk."""
    bench.proxmox.version = "8.2.4"
    key = paramiko.ECDSAKey.generate()
    key.write_private_key_file(str(tmp_path / "id_ecdsa"))

    def commands(argv: list[str]) -> tuple[int, str]:
        if argv[:3] != ["qm", "disk", "import"]:
            return 127, f"{argv[0]}: command not found"
        machine = bench.proxmox.vm(int(argv[3]))
        machine.config["unused0"] = IMPORTED
        size = {"size": DISK_MIB << 20, "content": "images", "format": "raw", "vmid": machine.vmid}
        bench.proxmox.storages[argv[5]].setdefault("volumes", {})[IMPORTED.split(":")[1]] = size
        return 0, "unused0: successfully imported disk\n"

    made = Node(tmp_path / "node", key.get_base64(), commands)
    (tmp_path / "ssh_config").write_text(
        f"Host pve1\n HostName {HOST}\n Port {made.port}\n IdentityFile {tmp_path / 'id_ecdsa'}\n"
    )
    (tmp_path / "known_hosts").write_text(f"[{HOST}]:{made.port} {made.host_key.get_name()} {made.host_key.get_base64()}\n")
    yield made
    made.close()


def send(bench: Bench, tmp_path: Path) -> list[publish.Template]:
    ssh = ssh_import.Ssh(config=tmp_path / "ssh_config", known_hosts=tmp_path / "known_hosts")
    return bench.publish(media=lambda api: ssh_import.OverSsh(api, bench.settings, ssh), over_ssh=True)


def test_an_old_cluster_gets_the_same_template(bench: Bench, node: Node, tmp_path: Path) -> None:
    [made] = send(bench, tmp_path)
    assert (made.outcome, made.name) == (publish.Outcome.PUBLISHED, NAME)
    config = bench.proxmox.vm(9000).config
    assert config["scsi0"].startswith("local-lvm:")
    assert "discard=on" in config["scsi0"]
    assert config["boot"] == "order=scsi0"
    assert int(config["protection"]) == 1
    assert [call[0] for call in node.calls] == ["sha256sum", "mv", "qm", "rm"]
    assert [path for path in node.root.rglob("*") if path.is_file()] == []


def test_an_unknown_host_key_is_refused(bench: Bench, node: Node, tmp_path: Path) -> None:
    (tmp_path / "known_hosts").write_text("")
    before = bench.proxmox.inventory()
    with pytest.raises(GoldsmithError, match="cannot be reached over SSH") as caught:
        send(bench, tmp_path)
    assert "known_hosts" in caught.value.hint
    assert bench.proxmox.inventory() == before
    assert node.calls == []


def test_another_host_key_is_refused(bench: Bench, node: Node, tmp_path: Path) -> None:
    other = paramiko.ECDSAKey.generate()
    (tmp_path / "known_hosts").write_text(f"[{HOST}]:{node.port} {other.get_name()} {other.get_base64()}\n")
    with pytest.raises(GoldsmithError, match="differs from the known one"):
        send(bench, tmp_path)
    assert bench.proxmox.vms == []


def test_a_connection_that_breaks_is_told_once(
    bench: Bench, node: Node, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A node that closes the connection before its banner, as OpenSSH does after failed logins: no traceback of paramiko."""
    with socket.create_server((HOST, 0)) as server:
        port = server.getsockname()[1]
        config = tmp_path / "ssh_config"
        config.write_text(config.read_text().replace(f"Port {node.port}", f"Port {port}"))

        def close() -> None:
            server.accept()[0].close()

        closing = threading.Thread(target=close)
        closing.start()
        with pytest.raises(GoldsmithError, match=r"cannot be reached over SSH|connection to pve1 failed"):
            send(bench, tmp_path)
        closing.join()
    assert [record.name for record in caplog.records if record.name.startswith("paramiko")] == []


def test_an_import_that_fails_leaves_nothing(bench: Bench, node: Node, tmp_path: Path) -> None:
    before = bench.proxmox.inventory()
    node.commands = lambda _argv: (1, "no space left on device")
    with pytest.raises(GoldsmithError, match="qm disk import failed with status 1") as caught:
        send(bench, tmp_path)
    assert "no space left" in caught.value.details
    assert bench.proxmox.inventory() == before
    assert [path for path in node.root.rglob("*") if path.is_file()] == []


def test_what_a_killed_run_sent_is_used(bench: Bench, node: Node, tmp_path: Path) -> None:
    keep = node.run
    node.run = lambda argv: (0, "") if argv[0] == "rm" else keep(argv)  # type: ignore[method-assign]
    send(bench, tmp_path)
    [sent] = [path for path in node.root.rglob("*") if path.is_file()]
    bench.proxmox.vms.clear()
    node.calls.clear()
    send(bench, tmp_path)
    assert sent.exists()
    assert [call[0] for call in node.calls] == ["qm"]


def test_without_the_way_the_remedy_is_named(bench: Bench, node: Node) -> None:
    with pytest.raises(GoldsmithError) as caught:
        bench.publish()
    assert "--ssh" in caught.value.details
