"""The preseed file of the installer, rendered from the spec: every question is preseeded exactly once.

The partition table serves BIOS and UEFI alike: a bios_grub partition for GRUB's core image, an EFI system partition,
then the file systems of the spec with ``/`` last, so that it grows on a clone with a larger disk.
"""

from __future__ import annotations

from pathlib import Path

import jinja2

from build.core.errors import StepFailed
from build.core.run import run, which
from build.spec.golden_yaml import Disk, Partition, Spec

TEMPLATE = Path(__file__).parents[2] / "preseed" / "preseed.cfg.j2"
BIOS_GRUB_MIB = 1
# FAT32 begins at 33 MiB; shim, GRUB and the fallback loader need 10 MiB in each of two directories.
ESP_MIB = 64
CHECK_SECONDS = 60
# partman's sizes are in units of 10^6 bytes.
MIB = 1 << 20
PARTMAN_UNIT = 10**6
NO_LIMIT = -1


def render(spec: Spec) -> str:
    """Return the preseed file for ``spec``. Raises jinja2.UndefinedError if the template uses an undefined variable."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    return environment.from_string(TEMPLATE.read_text()).render(spec=spec, recipe=recipe(spec.disk))


def recipe(disk: Disk) -> str:
    """Return partman-auto's expert recipe for ``disk``: one line, partitions in their order on the disk.

    The format is debian-installer's doc/devel/partman-auto-recipe.txt: minimum size, priority, maximum size, file
    system, then its options.
    """
    entries = [
        _entry(BIOS_GRUB_MIB, BIOS_GRUB_MIB, "free", ["$iflabel{ gpt }", "method{ biosgrub }"]),
        _entry(ESP_MIB, ESP_MIB, "fat32", ["$iflabel{ gpt }", "method{ efi }", "format{ }"]),
    ]
    root_last = sorted(disk.partitions, key=lambda partition: partition.mount == "/")
    entries += [_file_system(partition, takes_rest=partition.mount == "/") for partition in root_last]
    return f"golden :: {' . '.join(entries)} ."


def _file_system(partition: Partition, *, takes_rest: bool) -> str:
    options = ["method{ format }", "format{ }", "use_filesystem{ }", f"filesystem{{ {partition.filesystem} }}"]
    options += [f"mountpoint{{ {partition.mount} }}"]
    options += [f"options/{option}{{ {option} }}" for option in partition.options if option != "defaults"]
    return _entry(partition.size_mib, NO_LIMIT if takes_rest else partition.size_mib, partition.filesystem, options)


def _entry(least_mib: int, greatest_mib: int, filesystem: str, words: list[str]) -> str:
    least = _partman_size(least_mib)
    # Only with a priority above its minimum size does a partition grow into the remaining space.
    greatest, priority = (NO_LIMIT, least * 2) if greatest_mib == NO_LIMIT else (_partman_size(greatest_mib), least)
    return f"{least} {priority} {greatest} {filesystem} {' '.join(words)}"


def _partman_size(mib: int) -> int:
    return -(-mib * MIB // PARTMAN_UNIT)


def check(text: str) -> None:
    """Check ``text`` with debconf; raise StepFailed with debconf's output if it is not a preseed file."""
    tool = which("debconf-set-selections", reason="check the preseed file")
    done = run([tool, "--checkonly"], timeout=CHECK_SECONDS, stdin=text.encode(), check=False)
    # debconf only warns about lines that it cannot parse, and exits 0.
    if done.returncode != 0 or done.stderr.strip():
        raise StepFailed(
            "the rendered preseed file is not valid",
            details=done.stderr.strip(),
            hint=f"correct {TEMPLATE.relative_to(TEMPLATE.parents[1])}",
        )
