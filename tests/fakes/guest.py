"""A guest that a test can afford: a medium that speaks on both serial ports, waits, and powers off or hangs.

It is real machine code on a real ISO, so that a real Packer and a real QEMU go through a whole build in seconds.
"""

from __future__ import annotations

import struct
from pathlib import Path

from build.core import run

COM1, COM2 = 0x3F8, 0x2F8
LOAD_ADDRESS = 0x7C00
BOOT_IMAGE_BYTES = 2048
TICKS_PER_SECOND = 18.2
# Packer 1.6 and later wait forever for a QEMU that ended with status 0 within the first two seconds.
LIVELY_SECONDS = 3.0


def _print(port: int, address: int) -> bytes:
    return b"".join(
        (
            b"\xbe" + struct.pack("<H", address),  # mov si, address
            b"\xba" + struct.pack("<H", port),  # mov dx, port
            b"\xac",  # 1: lodsb
            b"\x84\xc0",  # test al, al
            b"\x74\x03",  # jz 2f
            b"\xee",  # out dx, al
            b"\xeb\xf8",  # jmp 1b; 2:
        )
    )


def _code(*, ticks: int, power_off: bool, texts: tuple[int, int]) -> bytes:
    ending = (
        b"\xb8\x00\x20"  # mov ax, 0x2000: sleep enable, type 0 (S5)
        b"\xba\x04\x06\xef"  # mov dx, 0x604; out dx, ax: q35, and pc since QEMU 2.0
    )
    return b"".join(
        (
            b"\xfc\x31\xc0\x8e\xd8",  # cld; xor ax, ax; mov ds, ax
            _print(COM1, texts[0]),
            _print(COM2, texts[1]),
            b"\xfb",  # sti
            b"\xb9" + struct.pack("<H", ticks),  # mov cx, ticks
            b"\xf4",  # 3: hlt: until the next timer interrupt
            b"\xe2\xfd",  # loop 3b
            ending if power_off else b"",
            b"\xf4\xeb\xfd",  # 4: hlt; jmp 4b
        )
    )


def boot_image(*, console: str, syslog: str = "", seconds: float = LIVELY_SECONDS, power_off: bool = True) -> bytes:
    """Return the boot image: ``console`` goes to the first serial port, ``syslog`` to the second."""
    ticks = max(1, round(seconds * TICKS_PER_SECOND))
    size = len(_code(ticks=ticks, power_off=power_off, texts=(0, 0)))
    first, second = (text.encode("ascii") + b"\0" for text in (console, syslog))
    at = LOAD_ADDRESS + size
    image = _code(ticks=ticks, power_off=power_off, texts=(at, at + len(first))) + first + second
    assert len(image) <= BOOT_IMAGE_BYTES, "the texts do not fit into the boot image"
    return image.ljust(BOOT_IMAGE_BYTES, b"\0")


def medium(
    directory: Path, *, console: str, syslog: str = "", seconds: float = LIVELY_SECONDS, power_off: bool = True
) -> Path:
    """Write ``medium.iso`` into ``directory`` and return its path."""
    tree = directory / "medium"
    tree.mkdir(parents=True)
    (tree / "boot.img").write_bytes(boot_image(console=console, syslog=syslog, seconds=seconds, power_off=power_off))
    iso = directory / "medium.iso"
    run.run(
        [
            "xorriso",
            "-as",
            "mkisofs",
            "-quiet",
            "-b",
            "boot.img",
            "-no-emul-boot",
            "-boot-load-size",
            "4",
            "-o",
            iso,
            tree,
        ],
        timeout=60,
    )
    return iso
