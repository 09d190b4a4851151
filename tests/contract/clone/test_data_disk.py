"""The data disk of a clone: created once, identified by its serial number, and found by the image's own rule."""

from __future__ import annotations

import re

import pytest

from build.clone import clone, data_disk, request
from build.core.errors import GoldsmithError, SpecError
from tests.contract.cloning import Field, Guests
from tests.fakes.proxmox import Proxmox
from tests.unit.golden_modules import golden_module

CONFIG = "/nodes/pve1/qemu/101/config"


@pytest.fixture
def proxmox_class() -> type[Proxmox]:
    return Guests


def volumes(field: Field, vmid: int) -> list[str]:
    """Return the disks of a VM."""
    return sorted(name for name in field.proxmox.storages["local-lvm"]["volumes"] if name.startswith(f"vm-{vmid}-disk-"))


def test_a_clone_gets_its_data_disk(field: Field) -> None:
    boot = field.proxmox.vm(9000).config["boot"]
    config = field.proxmox.vm(field.clone(data_gib=40).machine.vmid).config
    assert re.fullmatch(r"local-lvm:vm-100-disk-\d+,discard=on,serial=golden-data,size=40G", config["scsi1"])
    assert config["boot"] == boot
    assert data_disk.site_of(config) == "web1"
    assert (data_disk.key_of(config), data_disk.size_gib(config)) == ("scsi1", 40)
    # Proxmox VE allows 20 bytes.
    assert len(data_disk.SERIAL) <= 20


def test_the_image_looks_for_what_the_clone_has() -> None:
    image = golden_module("golden.data")
    assert (image.SERIAL, image.FAMILY_MARK) == (data_disk.SERIAL, data_disk.FAMILY_MARK)
    assert image.SITE_ID.fullmatch("a" * 63)


def test_without_the_option_there_is_none(field: Field) -> None:
    config = field.proxmox.vm(field.clone().machine.vmid).config
    assert "scsi1" not in config
    assert (data_disk.site_of(config), data_disk.key_of(config), data_disk.size_gib(config)) == ("", "", 0)


def test_a_lost_answer_makes_no_second_disk(field: Field) -> None:
    def lose(_request: object) -> None:
        # The first change of the configuration is that of the settings.
        if field.proxmox.calls["PUT", CONFIG] == 2:
            field.proxmox.lost_answers.add(("PUT", CONFIG))

    field.clone(name="web2")
    expected = 1 + len(volumes(field, 100))
    field.proxmox.calls.clear()
    field.proxmox.on_request = lose
    vmid = field.clone(data_gib=40).machine.vmid
    assert not field.proxmox.lost_answers
    assert len(volumes(field, vmid)) == expected
    assert not [key for key in field.proxmox.vm(vmid).config if key.startswith("unused")]


def test_the_same_command_again_finds_it(field: Field) -> None:
    field.clone(data_gib=40)
    assert field.clone(data_gib=40).outcome is clone.Outcome.THERE
    field.proxmox.vm(100).config["scsi1"] = field.proxmox.vm(100).config["scsi1"].replace("40G", "80G")
    assert field.clone(data_gib=40).outcome is clone.Outcome.THERE
    with pytest.raises(SpecError, match="other settings") as caught:
        field.clone(data_gib=90)
    assert "data disk: it has 80 GiB, asked for 90 GiB" in caught.value.details
    with pytest.raises(SpecError, match="other settings"):
        field.clone()


def test_a_storage_without_room_for_it(field: Field) -> None:
    field.proxmox.storages["local-lvm"]["avail"] = 1 << 40
    before = field.proxmox.inventory()
    with pytest.raises(GoldsmithError, match="No space left"):
        field.clone(data_gib=16 << 10)
    assert field.proxmox.inventory() == before


@pytest.mark.parametrize(("text", "gib"), [("40G", 40), ("1T", 1024), ("2G", 2)])
def test_sizes(text: str, gib: int) -> None:
    problems: list[str] = []
    assert request._data(text, problems) == gib
    assert not problems


@pytest.mark.parametrize("text", ["1G", "40", "+40G", "17T", "40M", "0G"])
def test_sizes_that_are_refused(text: str) -> None:
    problems: list[str] = []
    request._data(text, problems)
    assert problems
    assert "--data" in problems[0]
