"""The preseed file: the partition table of the spec, and nothing that debconf cannot read."""

from __future__ import annotations

import re
from pathlib import Path

import jinja2
import pytest

from build.core.errors import StepFailed
from build.media import preseed
from build.spec.golden_yaml import Disk, Partition
from tests.unit.helpers import golden, make_spec

MIB, UNIT = 1 << 20, 10**6


def entries(disk: Disk) -> list[list[str]]:
    """Return the recipe's partitions as words."""
    name, _, rest = preseed.recipe(disk).partition(" :: ")
    assert name == "golden"
    assert rest.endswith(" .")
    return [entry.split() for entry in rest.removesuffix(" .").split(" . ")]


def mount_of(words: list[str]) -> str:
    return words[words.index("mountpoint{") + 1]


def test_recipe_is_exactly_this() -> None:
    disk = Disk(4096, (Partition("/", 2048, "ext4", ("noatime",)), Partition("/var", 1024, "ext4", ("defaults", "nodev"))))
    assert preseed.recipe(disk) == (
        "golden :: 2 2 2 free $iflabel{ gpt } method{ biosgrub } . "
        "68 68 68 fat32 $iflabel{ gpt } method{ efi } format{ } . "
        "1074 1074 1074 ext4 method{ format } format{ } use_filesystem{ } filesystem{ ext4 } mountpoint{ /var } "
        "options/nodev{ nodev } . "
        "2148 4296 -1 ext4 method{ format } format{ } use_filesystem{ } filesystem{ ext4 } mountpoint{ / } "
        "options/noatime{ noatime } ."
    )


def test_root_is_last_and_takes_the_rest(tmp_path: Path) -> None:
    spec = make_spec(tmp_path)
    assert spec.disk.partitions[0].mount == "/", "the spec of this test names / first"
    *others, last = entries(spec.disk)
    assert mount_of(last) == "/"
    assert last[2] == "-1"
    assert int(last[1]) > int(last[0])
    assert all(words[0] == words[1] == words[2] for words in others)


def test_the_other_file_systems_keep_their_order(tmp_path: Path) -> None:
    spec = make_spec(tmp_path)
    mounts = [mount_of(words) for words in entries(spec.disk)[2:-1]]
    assert mounts == [partition.mount for partition in spec.disk.partitions if partition.mount != "/"]


def test_every_partition_is_as_large_as_asked_for(tmp_path: Path) -> None:
    spec = make_spec(tmp_path)
    wanted = {partition.mount: partition.size_mib for partition in spec.disk.partitions}
    for words in entries(spec.disk)[2:]:
        size = int(words[0]) * UNIT
        assert wanted[mount_of(words)] * MIB <= size < wanted[mount_of(words)] * MIB + UNIT


def test_the_largest_spec_that_is_allowed_fits_the_disk(tmp_path: Path) -> None:
    """spec.py lets partitions fill the disk up to its reserve; the recipe must not need more than that."""
    spec = make_spec(tmp_path)
    needed = sum(int(words[0]) * UNIT for words in entries(spec.disk))
    in_spec = sum(partition.size_mib for partition in spec.disk.partitions) * MIB
    assert needed - in_spec < 160 * MIB


def test_options_are_those_of_the_spec(tmp_path: Path) -> None:
    spec = make_spec(tmp_path)
    by_mount = {mount_of(words): words for words in entries(spec.disk)[2:]}
    for partition in spec.disk.partitions:
        found = re.findall(r"options/(\w+)\{ (\w+) \}", " ".join(by_mount[partition.mount]))
        assert found == [(option, option) for option in partition.options]


def test_rendered_answers_are_valid(tmp_path: Path) -> None:
    spec = make_spec(tmp_path)
    text = preseed.render(spec)
    assert f"expert_recipe string {preseed.recipe(spec.disk)}\n" in text
    preseed.check(text)


def test_no_answer_is_given_twice(tmp_path: Path) -> None:
    lines = [line.split()[1] for line in preseed.render(make_spec(tmp_path)).splitlines() if line.startswith("d-i ")]
    assert len(lines) == len(set(lines)) >= 5


def test_the_installation_ends_with_power_off(tmp_path: Path) -> None:
    """Packer waits for the power-off; any other end would only be detected by a timeout."""
    assert "\nd-i debian-installer/exit/poweroff boolean true\n" in preseed.render(make_spec(tmp_path))


def test_broken_answers_are_refused_with_debconfs_words(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="not valid") as caught:
        preseed.check(preseed.render(make_spec(tmp_path)) + "d-i partman-auto/method\n")
    assert "parse error on line" in caught.value.details
    assert caught.value.hint == "correct preseed/preseed.cfg.j2"


def test_a_typing_error_in_the_template_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = tmp_path / "preseed.cfg.j2"
    template.write_text("d-i netcfg/get_hostname string {{ spec.hostnam }}\n")
    monkeypatch.setattr(preseed, "TEMPLATE", template)
    with pytest.raises(jinja2.UndefinedError, match="hostnam"):
        preseed.render(make_spec(tmp_path))


def test_names_of_the_spec_reach_the_text(tmp_path: Path) -> None:
    assert "for special 9.8.7." in preseed.render(make_spec(tmp_path, **golden(name="special", version="9.8.7")))
