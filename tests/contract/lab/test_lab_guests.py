"""The lab's guests: QEMU's arguments and the cloud-init drive for a configuration, and the guest agent."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from build.core import run
from build.machines.acceleration import Accelerator, Kind
from build.proxmox import guest_agent
from tests.lab import cloudinit, qemu, values
from tests.lab.agent import Agent, NoAnswer, Refused, Unsupported

TCG = Accelerator(Kind.TCG, "", 1, "max,cx16=off", (7, 2), 10.0)
MAC = "BC:24:11:2C:69:EC"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIF/s62b/yG842VJ4bG1pbHnC28I53U6RtGcp1zon+1fp operator@example.org"
SITE = {"admin_cidrs": ["192.0.2.0/24", "2001:db8::/64"], "server_names": ["www.example.org"]}
PUBLISHED = {
    "name": "golden-0.1.0", "description": "text", "tags": "golden", "protection": "1", "onboot": "0",
    "meta": "creation-qemu=10.0.2", "vmgenid": "7b2a1c9e-0000-4000-8000-000000000001",
    "ostype": "l26", "cpu": "x86-64-v2-AES", "cores": "2", "memory": "2048", "agent": "1", "scsihw": "virtio-scsi-single",
    "serial0": "socket", "ide2": "local-lvm:vm-9001-cloudinit,media=cdrom", "ciupgrade": "0", "boot": "order=scsi0",
    "net0": f"virtio={MAC},bridge=vmbr0", "bios": "ovmf", "machine": "q35",
    "efidisk0": "local-lvm:vm-9001-disk-0,efitype=4m,pre-enrolled-keys=1,size=528K",
    "scsi0": "local-lvm:vm-9001-disk-1,discard=on,iothread=1,size=16G",
    "smbios1": guest_agent.smbios("uuid=2c2c8f7e-0000-4000-8000-000000000001", SITE),
    **guest_agent.cloud_init(user="keeper", default="admin", keys=KEY, addresses="ip=dhcp,ip6=auto"),
}  # fmt: skip


def argv(**changes: Any) -> list[str]:
    config = {key: value for key, value in {**PUBLISHED, **changes}.items() if value is not None}
    lab = Path("/lab")
    files = {drive.key: lab / f"{drive.key}.img" for drive in values.drives(config)} | {"efidisk0": lab / "efi.img"}
    return qemu.arguments(config, 9001, qemu.Place(lab, lab / "a,b.log", files), TCG)


def after(words: list[str], option: str) -> list[str]:
    """Return the values of an option that may occur several times."""
    return [words[number + 1] for number, word in enumerate(words) if word == option]


# --- arguments ----------------------------------------------------------------------------------------------------------


def test_a_published_machine_becomes_this_qemu() -> None:
    words = argv()
    assert after(words, "-machine") == ["type=q35,accel=tcg,smm=on"]
    assert (after(words, "-cpu"), after(words, "-smp"), after(words, "-m")) == (["max,cx16=off"], ["1"], ["2048"])
    code, variables, scsi, drive = after(words, "-drive")
    assert "readonly=on" in code
    assert code.endswith("OVMF_CODE_4M.secboot.fd")
    assert variables == "if=pflash,unit=1,format=qcow2,id=drive-efidisk0,file=/lab/efi.img"
    assert drive == "if=none,id=drive-scsi0,file=/lab/scsi0.img,format=qcow2,cache=unsafe,discard=unmap"
    assert scsi == "if=none,id=drive-ide2,file=/lab/ide2.img,format=raw,readonly=on"
    devices = after(words, "-device")
    assert "virtio-scsi-pci,id=virtioscsi0,iothread=iothread-scsi0" in devices
    assert "scsi-hd,bus=virtioscsi0.0,channel=0,scsi-id=0,lun=0,drive=drive-scsi0,id=scsi0,bootindex=100" in devices
    assert "ide-cd,bus=ide.2,unit=0,drive=drive-ide2,id=ide2" in devices
    assert f"virtio-net-pci,mac={MAC},netdev=net0,id=net0,romfile=" in devices
    assert "virtserialport,chardev=qga0,name=org.qemu.guest_agent.0" in devices
    assert "vmgenid,guid=7b2a1c9e-0000-4000-8000-000000000001" in devices
    assert after(words, "-netdev") == ["tap,id=net0,ifname=tap9001i0,script=no,downscript=no"]
    assert after(words, "-chardev") == [
        "socket,id=serial0,path=serial0.sock,server=on,wait=off,logfile=/lab/a,,b.log",
        "socket,id=qga0,path=qga.sock,server=on,wait=off",
    ]


def test_what_the_builder_makes_has_two_serial_ports_and_boots_the_medium_alone() -> None:
    """As plugin 1.1.1 leaves it before the installation: the disk is not in the order, which the firmware keeps to."""
    made = {"ide2": "local:iso/golden.iso,media=cdrom,size=231M", "boot": "order=ide2", "serial1": "socket", "agent": "0",
            "kvm": "1", "sockets": "1", "scsi0": "local-lvm:vm-9001-disk-0,cache=none,iothread=1,size=16G"}  # fmt: skip
    gone = dict.fromkeys(("bios", "machine", "efidisk0", "net0", "smbios1", "sshkeys", "ciuser", "ipconfig0"))
    words = argv(**gone, **made)
    assert after(words, "-boot") == ["menu=on,strict=on,reboot-timeout=1000"]
    assert [device for device in after(words, "-device") if "bootindex" in device] == [
        "ide-cd,bus=ide.1,unit=0,drive=drive-ide2,id=ide2,bootindex=100"
    ]
    assert [device for device in after(words, "-device") if "serial" in device] == [
        "isa-serial,chardev=serial0,index=0", "isa-serial,chardev=serial1,index=1",
    ]  # fmt: skip
    assert after(words, "-chardev")[1].endswith("logfile=/lab/a,,b.serial1.log")
    assert "-netdev" not in words


def test_the_site_reaches_the_guest_decoded_with_its_commas_doubled() -> None:
    [text] = after(argv(), "-smbios")
    kind, uuid, sku = text.replace(",,", "\0").split(",")
    assert (kind, uuid) == ("type=1", "uuid=2c2c8f7e-0000-4000-8000-000000000001")
    assert json.loads(sku.replace("\0", ",").removeprefix("sku=golden:")) == SITE


def test_smbios_that_is_not_encoded_goes_as_it_is() -> None:
    assert values.smbios("uuid=x,manufacturer=A") == "type=1,uuid=x,manufacturer=A"
    encoded = base64.b64encode(b"A, B").decode()
    assert values.smbios(f"uuid=x,base64=1,manufacturer={encoded}") == "type=1,uuid=x,manufacturer=A,, B"


def test_bios_and_the_other_controller() -> None:
    words = argv(bios=None, efidisk0=None, machine=None, scsihw="virtio-scsi-pci", scsi1="local-lvm:vm-9001-disk-2,size=1G")
    assert after(words, "-machine") == ["type=pc,accel=tcg"]
    devices = after(words, "-device")
    assert "virtio-scsi-pci,id=scsihw0" in devices
    assert "scsi-hd,bus=scsihw0.0,channel=0,scsi-id=0,lun=1,drive=drive-scsi1,id=scsi1" in devices
    assert "ide-cd,bus=ide.1,unit=0,drive=drive-ide2,id=ide2" in devices


def test_a_card_in_the_boot_order_is_known_to_the_firmware() -> None:
    devices = after(argv(boot="order=scsi0;net0"), "-device")
    assert f"virtio-net-pci,mac={MAC},netdev=net0,id=net0,bootindex=101" in devices


def test_without_an_agent_there_is_no_port_for_one() -> None:
    for agent in (None, "0", "enabled=0"):
        assert not [word for word in argv(agent=agent) if "qga" in word], agent
    assert [word for word in argv(agent="enabled=1,type=virtio") if "qga" in word]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"args": "-device x"}, "args"), ({"hostpci0": "01:00"}, "hostpci0"), ({"machine": "virt"}, "virt"),
        ({"scsihw": None}, "lsi"), ({"net0": f"virtio={MAC},bridge=vmbr0,tag=7"}, "VLAN"),
        ({"serial0": "/dev/ttyS0"}, "sockets"),
        ({"net0": f"rtl8139={MAC},bridge=vmbr0"}, "rtl8139"), ({"efidisk0": None}, "efidisk0"), ({"vga": "qxl"}, "qxl"),
    ],
)  # fmt: skip
def test_what_the_lab_does_not_know_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(values.Unknown, match=words):
        argv(**changes)


# --- the cloud-init drive -------------------------------------------------------------------------------------------------

USER_DATA = f"""#cloud-config
hostname: golden-0
manage_etc_hosts: true
fqdn: golden-0.1.0
user: keeper
ssh_authorized_keys:
  - {KEY}
chpasswd:
  expire: False
users:
  - default
"""
NETWORK = """version: 1
config:
    - type: physical
      name: eth0
      mac_address: 'bc:24:11:2c:69:ec'
      subnets:
      - type: dhcp4
      - type: ipv6_slaac
    - type: nameserver
      address:
      - '192.0.2.53'
      search:
      - 'example.org'
"""
DNS = cloudinit.Dns(("192.0.2.53",), "example.org")


def test_the_drive_says_what_proxmox_writes() -> None:
    made = cloudinit.documents(PUBLISHED, 9001, DNS)
    assert made["user-data"] == USER_DATA
    assert made["network-config"] == NETWORK
    assert made["meta-data"] == f"instance-id: {hashlib.sha1((USER_DATA + NETWORK).encode()).hexdigest()}\n"
    assert made["vendor-data"] == ""


def test_a_new_name_or_address_is_a_new_instance() -> None:
    first = cloudinit.documents(PUBLISHED, 9001, DNS)["meta-data"]
    for change in ({"name": "web1"}, {"ipconfig0": "ip=192.0.2.7/24,gw=192.0.2.1"}, {"sshkeys": "ssh-rsa%20AAAA"}):
        assert cloudinit.documents({**PUBLISHED, **change}, 9001, DNS)["meta-data"] != first
    assert cloudinit.documents({**PUBLISHED, "tags": "x", "memory": "4096"}, 9001, DNS)["meta-data"] == first


def test_fixed_addresses_and_names_of_servers() -> None:
    told = {
        "ipconfig0": "ip=192.0.2.7/26,gw=192.0.2.1,ip6=2001:db8::7/64,gw6=2001:db8::1", "nameserver": "9.9.9.9 1.1.1.1",
        "searchdomain": "example.net",
    }  # fmt: skip
    network = yaml.safe_load(cloudinit.network_config({**PUBLISHED, **told}, DNS))
    card, names = network["config"]
    assert card["subnets"] == [
        {"type": "static", "address": "192.0.2.7", "netmask": "255.255.255.192", "gateway": "192.0.2.1"},
        {"type": "static6", "address": "2001:db8::7/64", "gateway": "2001:db8::1"},
    ]
    assert names == {"type": "nameserver", "address": ["9.9.9.9", "1.1.1.1"], "search": ["example.net"]}
    assert "fqdn: web1.example.net\n" in cloudinit.user_data({**PUBLISHED, **told, "name": "web1"}, 9001)


def test_upgrades_at_first_boot_unless_they_are_refused() -> None:
    assert "package_upgrade" not in cloudinit.user_data({"ciupgrade": 0}, 100)
    for config in ({}, {"ciupgrade": "1"}):
        assert yaml.safe_load(cloudinit.user_data(config, 100))["package_upgrade"] is True
    assert yaml.safe_load(cloudinit.user_data({}, 100))["hostname"] == "VM100"


def test_root_and_a_password() -> None:
    made = yaml.safe_load(cloudinit.user_data({"ciuser": "root", "cipassword": "$6$x"}, 100))
    assert (made["disable_root"], made["password"], "users" in made) == (False, "$6$x", False)


def test_drives_that_the_lab_does_not_make() -> None:
    for change in ({"cicustom": "user=local:snippets/x.yaml"}, {"citype": "configdrive2"}):
        with pytest.raises(values.Unknown):
            cloudinit.documents({**PUBLISHED, **change}, 9001, DNS)


def test_the_drive_can_be_read_back(tmp_path: Path) -> None:
    made = cloudinit.documents(PUBLISHED, 9001, DNS)
    iso, back = tmp_path / "cloudinit.iso", tmp_path / "back"
    cloudinit.write(iso, made)
    listing = run.run(["xorriso", "-indev", iso, "-pvd_info", "-osirrox", "on", "-extract", "/", back], timeout=60)
    assert f"Volume Id    : {cloudinit.LABEL}" in listing.stdout + listing.stderr
    assert {path.name: path.read_text() for path in back.iterdir()} == made


# --- the agent ------------------------------------------------------------------------------------------------------------

INTERFACES = [
    {"name": "lo"},
    {"name": "ens18", "hardware-address": MAC.lower(), "ip-addresses": [{"ip-address": "10.99.0.15"}]},
]  # fmt: skip
HOST_KEY_FILE = b"ssh-ed25519 AAAAhost root@web1\n"


class FakeAgent:
    """A guest's agent as documented by QEMU; its requests are recorded. ``stale``: the rest of another client's answer."""

    def __init__(self, path: Path, *, stale: bytes = b"", mute: bool = False) -> None:
        self.asked: list[dict[str, Any]] = []
        self.stale, self.mute = stale, mute
        self.read = 0
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            with connection, connection.makefile("rwb") as stream:
                for line in stream:
                    if self.mute:
                        continue
                    # Only a client that follows the protocol begins so: the byte resets the agent's parser.
                    fresh, request = line.startswith(b"\xff"), json.loads(line.lstrip(b"\xff"))
                    answer = self._answer(request, fresh=fresh)
                    stream.write(answer)
                    stream.flush()

    def _answer(self, request: dict[str, Any], *, fresh: bool) -> bytes:
        name, arguments = request["execute"], request.get("arguments", {})
        if name == "guest-sync-delimited":
            assert fresh
            return self.stale + b"\xff" + json.dumps({"return": arguments["id"]}).encode() + b"\n"
        self.asked.append(request)
        return json.dumps(self._result(name, arguments)).encode() + b"\n"

    def _result(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if arguments.get("path") == "/absent":
            return {"error": {"class": "GenericError", "desc": "failed to open file '/absent'"}}
        if name == "guest-file-read":
            piece, self.read = HOST_KEY_FILE[self.read : self.read + 10], self.read + 10
            ended = self.read >= len(HOST_KEY_FILE)
            return {"return": {"count": len(piece), "buf-b64": base64.b64encode(piece).decode(), "eof": ended}}
        return {"return": {
            "guest-network-get-interfaces": INTERFACES, "guest-file-open": 1000, "guest-exec": {"pid": 77},
            "guest-exec-status": {"exited": True, "exitcode": 3, "out-data": base64.b64encode(b"hello\n").decode()},
        }.get(name, {})}  # fmt: skip

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeAgent]:
    made = FakeAgent(tmp_path / "qga.sock")
    yield made
    made.close()


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    return Agent(tmp_path / "qga.sock", patience=0.3)


def test_addresses_are_the_guests_own(fake: FakeAgent, agent: Agent) -> None:
    answer = agent.ask("network-get-interfaces", {})
    assert answer == {"result": INTERFACES}
    assert guest_agent.pick_address(answer["result"], MAC.lower()) == "10.99.0.15"
    assert agent.ask("ping", {}) == {"result": {}}


def test_what_somebody_else_was_told_is_not_taken_for_an_answer(fake: FakeAgent, agent: Agent) -> None:
    fake.stale = b'{"return": {"pid": 1}}\n' + b'\xff{"return": 12345}\n'
    assert agent.ask("network-get-interfaces", {}) == {"result": INTERFACES}


def test_a_file_is_read_in_pieces_and_closed(fake: FakeAgent, agent: Agent) -> None:
    answer = agent.ask("file-read", {"file": guest_agent.HOST_KEY})
    assert answer == {"content": HOST_KEY_FILE.decode(), "bytes-read": len(HOST_KEY_FILE)}
    assert fake.asked[0]["arguments"] == {"path": guest_agent.HOST_KEY, "mode": "r"}
    assert [request["execute"] for request in fake.asked].count("guest-file-read") == 4
    assert fake.asked[-1] == {"execute": "guest-file-close", "arguments": {"handle": 1000}}


def test_a_command_and_its_output(fake: FakeAgent, agent: Agent) -> None:
    assert agent.ask("exec", {"command": ["/bin/echo", "hello"], "input-data": "in"}) == {"pid": 77}
    assert fake.asked[0]["arguments"] == {
        "path": "/bin/echo",
        "arg": ["hello"],
        "capture-output": True,
        "input-data": base64.b64encode(b"in").decode(),
    }
    assert agent.ask("exec-status", {"pid": 77}) == {"exited": 1, "exitcode": 3, "out-data": "hello\n"}


def test_a_file_is_written(fake: FakeAgent, agent: Agent) -> None:
    agent.ask("file-write", {"file": "/tmp/x", "content": "text"})
    written = next(request for request in fake.asked if request["execute"] == "guest-file-write")
    assert base64.b64decode(written["arguments"]["buf-b64"]) == b"text"


def test_an_error_of_the_guest_is_told(fake: FakeAgent, agent: Agent) -> None:
    with pytest.raises(Refused, match="failed to open file"):
        agent.ask("file-read", {"file": "/absent"})


def test_a_silent_guest_has_no_agent(fake: FakeAgent, agent: Agent) -> None:
    fake.mute = True
    with pytest.raises(NoAnswer):
        agent.ask("ping", {})
    assert not agent.shut_down()


def test_no_guest_at_all(agent: Agent) -> None:
    with pytest.raises(NoAnswer):
        agent.ask("ping", {})


def test_what_the_lab_does_not_pass_on(agent: Agent) -> None:
    with pytest.raises(Unsupported, match="set-user-password"):
        agent.ask("set-user-password", {})
