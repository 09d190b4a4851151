"""Converts a configuration of Proxmox to the arguments of QEMU, like config_to_command of qemu-server.

What the lab does not support is refused, not ignored: a key that is neither mapped here nor without effect on the machine is
an error. Different from a node: the processor is the one that works on this host (build/machines/acceleration.py),
and disks are written without waiting for the host's own disk, because they are deleted at the end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from build.machines import vm
from build.machines.acceleration import Accelerator
from tests.lab import values
from tests.lab.values import Drive, Unknown

MONITOR, AGENT = "qmp.sock", "qga.sock"
PORTS = tuple(f"serial{number}" for number in range(4))
AGENT_PORT = "org.qemu.guest_agent.0"
# Qemu.pm and Cloudinit.pm: keys that the machine itself does not feel, or that are read elsewhere in the lab.
NOT_FELT = re.compile(
    r"name|description|tags|onboot|protection|meta|ostype|hotplug|startup|template|digest|ciuser|cipassword|cicustom|citype|"
    r"ciupgrade|sshkeys|nameserver|searchdomain|ipconfig\d+|numa|tablet|cpu|unused\d+|lock|parent|vmstate|snapstate|cpuunits|kvm"
)
# What is mapped below.
MAPPED = re.compile(
    r"bios|machine|cores|sockets|memory|balloon|scsihw|boot|agent|serial[0-3]|smbios1|vmgenid|vga|rng0|efidisk0|"
    r"(ide|sata|scsi|virtio|net)\d+"
)
CARD_MODELS = {"virtio": "virtio-net-pci", "e1000": "e1000"}
DEFAULT_MEMORY_MIB = 512


@dataclass(frozen=True)
class Place:
    """Where a machine finds its files: its own directory, the log of its console, and the file of each drive."""

    directory: Path
    console: Path
    files: Mapping[str, Path]

    def log_of(self, port: str) -> Path:
        """Return the log of a serial port; the first one's is the console."""
        return self.console if port == PORTS[0] else self.console.with_suffix(f".{port}.log")


def check(config: Mapping[str, object]) -> None:
    """Raise Unknown for a key that the lab does not know."""
    for key in sorted(config):
        if not (NOT_FELT.fullmatch(key) or MAPPED.fullmatch(key)):
            raise Unknown(f"{key}: {config[key]}: the lab does not know this key")


def tap(vmid: int, number: int) -> str:
    """Return the name of a card's tap device, as Proxmox gives it."""
    return f"tap{vmid}i{number}"


def arguments(config: Mapping[str, object], vmid: int, place: Place, accelerator: Accelerator) -> list[str]:
    """Return the command that is this machine. Raises Unknown for what the lab has not."""
    check(config)
    return [
        vm.QEMU, *_machine(config, place, accelerator), "-name", f"{config.get('name', f'VM{vmid}')}",
        "-m", str(_memory(config)), "-display", "none", "-no-user-config", "-nodefaults",
        # As on a node: what is not in the boot order is not booted.
        "-boot", "menu=on,strict=on,reboot-timeout=1000",
        *_identity(config), *_screen(config), *_balloon(config),
        *_serial(config, place), *_agent(config), *_random(config), *_drives(config, place), *_cards(config, vmid),
        # Relative to its directory: the path of a socket may have no more than 107 characters.
        "-qmp", f"unix:{MONITOR},server=on,wait=off",
    ]  # fmt: skip


def _quoted(path: Path) -> str:
    return str(path).replace(",", ",,")


def _memory(config: Mapping[str, object]) -> int:
    first, options = values.split(config.get("memory", DEFAULT_MEMORY_MIB))
    return int(first or options["current"])


def _q35(config: Mapping[str, object]) -> bool:
    kind, options = values.split(config.get("machine", "pc"))
    kind = kind or options.get("type", "pc")
    if not re.fullmatch(r"(pc|q35)|pc-(i440fx|q35)-\d+(\.\d+)*(\+pve\d+)?", kind):
        raise Unknown(f"machine: {kind}: the lab has pc and q35")
    return "q35" in kind


def _machine(config: Mapping[str, object], place: Place, accelerator: Accelerator) -> list[str]:
    cpus = int(str(config.get("cores", 1))) * int(str(config.get("sockets", 1)))
    sound = replace(accelerator, cpus=min(cpus, accelerator.cpus))
    kind = "q35" if _q35(config) else "pc"
    if config.get("bios", "seabios") == "seabios":
        return sound.arguments(kind)
    if "efidisk0" not in config or kind != "q35":
        raise Unknown("bios: ovmf: the lab wants machine: q35 and an efidisk0 with it")
    return [
        *sound.arguments(kind, "smm=on"),
        "-global", "driver=cfi.pflash01,property=secure,value=on", "-global", "ICH9-LPC.disable_s3=1",
        "-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={vm.OVMF_CODE}",
        "-drive", f"if=pflash,unit=1,format=qcow2,id=drive-efidisk0,file={_quoted(place.files['efidisk0'])}",
    ]  # fmt: skip


def _identity(config: Mapping[str, object]) -> Iterator[str]:
    if "smbios1" in config:
        yield from ("-smbios", values.smbios(str(config["smbios1"])))
    if "vmgenid" in config:
        yield from ("-device", f"vmgenid,guid={config['vmgenid']}")


def _screen(config: Mapping[str, object]) -> Iterator[str]:
    kind = values.split(config.get("vga", "std"))[0] or "std"
    if kind == "std":
        yield from ("-device", "VGA,id=vga")
    elif kind not in ("none", "serial0"):
        raise Unknown(f"vga: {kind}: the lab has std, serial0 and none")


def _balloon(config: Mapping[str, object]) -> Iterator[str]:
    if str(config.get("balloon", "")) != "0":
        yield from ("-device", "virtio-balloon-pci,id=balloon0")


def _serial(config: Mapping[str, object], place: Place) -> Iterator[str]:
    for number, port in enumerate(PORTS):
        if port not in config:
            continue
        if config[port] != "socket":
            raise Unknown(f"{port}: {config[port]}: the lab has sockets only")
        log = _quoted(place.log_of(port))
        yield from ("-chardev", f"socket,id={port},path={port}.sock,server=on,wait=off,logfile={log}")
        yield from ("-device", f"isa-serial,chardev={port},index={number}")


def _agent(config: Mapping[str, object]) -> Iterator[str]:
    if values.flag(config, "agent"):
        yield from ("-chardev", f"socket,id=qga0,path={AGENT},server=on,wait=off")
        yield from ("-device", "virtio-serial-pci,id=qga0", "-device", f"virtserialport,chardev=qga0,name={AGENT_PORT}")


def _random(config: Mapping[str, object]) -> Iterator[str]:
    if "rng0" in config:
        source = values.split(config["rng0"])[1].get("source", "/dev/urandom")
        yield from ("-object", f"rng-random,id=rng0,filename={source}", "-device", "virtio-rng-pci,rng=rng0")


def _drives(config: Mapping[str, object], place: Place) -> Iterator[str]:
    controller, indices, found = str(config.get("scsihw", "")), values.boot_indices(config), values.drives(config)
    scsi = [drive for drive in found if drive.bus == "scsi"]
    if scsi and controller not in ("virtio-scsi-pci", "virtio-scsi-single"):
        raise Unknown(f"scsihw: {controller or 'lsi'}: the lab has virtio-scsi-pci and virtio-scsi-single")
    if scsi and controller == "virtio-scsi-pci":
        yield from ("-device", "virtio-scsi-pci,id=scsihw0")
    if any(drive.bus == "sata" for drive in found):
        yield from ("-device", "ahci,id=ahci0")
    for drive in found:
        if controller == "virtio-scsi-single" and drive.bus == "scsi":
            yield from _own_controller(drive)
        device = _device(drive, q35=_q35(config), single=controller == "virtio-scsi-single")
        index = f",bootindex={indices[drive.key]}" if drive.key in indices else ""
        if drive.empty:
            yield from ("-device", f"{device},id={drive.key}{index}")
            continue
        kind = "raw,readonly=on" if drive.cdrom else "qcow2,cache=unsafe"
        discard = ",discard=unmap" if drive.options.get("discard") == "on" else ""
        path = _quoted(place.files[drive.key])
        yield from ("-drive", f"if=none,id=drive-{drive.key},file={path},format={kind}{discard}")
        yield from ("-device", f"{device},drive=drive-{drive.key},id={drive.key}{index}")


def _own_controller(drive: Drive) -> Iterator[str]:
    thread = ""
    if drive.options.get("iothread") == "1":
        yield from ("-object", f"iothread,id=iothread-{drive.key}")
        thread = f",iothread=iothread-{drive.key}"
    yield from ("-device", f"virtio-scsi-pci,id=virtioscsi{drive.number}{thread}")


def _device(drive: Drive, *, q35: bool, single: bool) -> str:
    kind = "cd" if drive.cdrom else "hd"
    if drive.bus == "virtio":
        return "virtio-blk-pci"
    if drive.bus == "scsi":
        bus, lun = (f"virtioscsi{drive.number}.0", 0) if single else ("scsihw0.0", drive.number)
        return f"scsi-{kind},bus={bus},channel=0,scsi-id=0,lun={lun}"
    if drive.bus == "sata":
        return f"ide-{kind},bus=ahci0.{drive.number}"
    port, unit = (drive.number, 0) if q35 else divmod(drive.number, 2)
    return f"ide-{kind},bus=ide.{port},unit={unit}"


def _cards(config: Mapping[str, object], vmid: int) -> Iterator[str]:
    indices = values.boot_indices(config)
    for card in values.cards(config):
        name = f"net{card.number}"
        if card.model not in CARD_MODELS:
            raise Unknown(f"{name}: {card.model}: the lab has {' and '.join(CARD_MODELS)}")
        # Without a place in the boot order the firmware need not know the card.
        boot = f"bootindex={indices[name]}" if name in indices else "romfile="
        yield from ("-netdev", f"tap,id={name},ifname={tap(vmid, card.number)},script=no,downscript=no")
        yield from ("-device", f"{CARD_MODELS[card.model]},mac={card.mac},netdev={name},id={name},{boot}")
