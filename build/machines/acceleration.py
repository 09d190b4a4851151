"""The accelerator: detected by running a test guest, not by opening /dev/kvm.

A /dev/kvm may exist and be writable, but unusable: a nested one that interprets every instruction takes hours to boot a
kernel. So a guest of 512 bytes enters 64-bit mode with paging, as Linux does, does a fixed amount of work and ends QEMU
through its debug port. KVM is used when that succeeds in time, and otherwise rejected with the reason.
"""

from __future__ import annotations

import os
import re
import struct
import time
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from build.core import files, run
from build.core.errors import HostError
from build.core.records import Record

QEMU = "qemu-system-x86_64"
KVM_DEVICE = Path("/dev/kvm")
# The guest's work takes 0.06 s natively and 0.3 s under TCG on a 2.6 GHz EPYC; the rest is a margin for a busy host.
KVM_SURELY_SOUND_SECONDS = 1.0
KVM_DEADLINE_SECONDS = 5.0
TCG_DEADLINE_SECONDS = 60.0
MOST_KVM_CPUS = 4
MOST_TCG_CPUS = 2
# QEMU 7.2 and Linux 6.12 under TCG: see docs/decisions; 10 of 10 boots with one CPU and without cmpxchg16b.
FIRST_SOUND_TCG = (10, 0)
# "Fast string operations" are the slowest under TCG, which does them byte by byte: without them Linux clears and copies
# memory eight bytes at once.
TCG_CPU = "max,erms=off,fsrm=off"
# An installation takes about 1.5 min with KVM and 6 min or more under TCG; the rest is a margin for slow hosts.
TCG_TIMEOUT_SCALE = 10.0

PROBE_PORT = 0xF4
PROBE_VALUE = 0x10
PROBE_STATUS = PROBE_VALUE << 1 | 1
ROUNDS, PASSES = 1000, 100_000


class Kind(StrEnum):
    """The kind of acceleration."""

    KVM = "kvm"
    TCG = "tcg"


@dataclass(frozen=True)
class AcceleratorRecord(Record):
    """What a stage and the manifest note of an :class:`Accelerator`."""

    kind: str
    reason: str
    cpus: int | None = None
    cpu: str | None = None
    qemu: tuple[int, ...] | None = None
    timeout_scale: float | None = None


@dataclass(frozen=True)
class Accelerator:
    """Settings of QEMU for VMs on this host; the same for Packer's VM and for the test VMs.

    ``cpu`` is QEMU's -cpu value, ``cpus`` the number of virtual CPUs, ``qemu`` QEMU's version. Timeouts for KVM are
    multiplied by ``timeout_scale``. ``reason`` is text for the user: why KVM is or is not used.
    """

    kind: Kind
    reason: str
    cpus: int
    cpu: str
    qemu: tuple[int, int]
    timeout_scale: float

    def shared(self, guests: int) -> Accelerator:
        """Return the accelerator for one of several VMs that run in parallel.

        An emulated CPU uses a whole host CPU, even while it waits for another one. So all VMs together have at most as
        many CPUs as the host.
        """
        if self.kind is Kind.KVM:
            return self
        return replace(self, cpus=max(1, min(self.cpus, usable_cpus() // guests)))

    def record(self) -> AcceleratorRecord:
        """Return it as a stage and the manifest note it."""
        return AcceleratorRecord(
            self.kind.value, self.reason, cpus=self.cpus, cpu=self.cpu, qemu=self.qemu, timeout_scale=self.timeout_scale
        )

    def machine(self, kind: str = "pc", *options: str) -> str:
        """Return QEMU's -machine value, as Packer composes it from type and accelerator."""
        return ",".join((f"type={kind}", f"accel={self.kind}", *options))

    def arguments(self, kind: str = "pc", *options: str) -> list[str]:
        """Return the arguments of QEMU for a VM of machine type ``kind`` with this accelerator."""
        return ["-machine", self.machine(kind, *options), "-cpu", self.cpu, "-smp", str(self.cpus)]


@dataclass(frozen=True)
class Trial:
    """One run of the test guest: its duration, and the reason of a failure (empty on success)."""

    seconds: float
    failure: str = ""


def probe(*, workdir: Path, wanted: Kind | None = None, device: Path = KVM_DEVICE) -> Accelerator:
    """Return the accelerator to use; takes under a second, or about 5 s when KVM hangs.

    ``workdir`` holds the test guest's disk meanwhile. ``wanted`` requests one kind. Raises HostError if QEMU is missing
    or cannot run the test guest, and if KVM was requested and cannot.
    """
    qemu = qemu_version()
    if wanted is Kind.TCG:
        return require(tcg(qemu, reason="TCG was requested"), workdir=workdir)[0]
    trial = try_kvm(kvm(qemu), workdir=workdir, device=device)
    if not trial.failure and (wanted is Kind.KVM or trial.seconds <= KVM_SURELY_SOUND_SECONDS):
        return kvm(qemu)
    if wanted is Kind.KVM:
        raise HostError(
            f"KVM was requested and cannot be used: {trial.failure}",
            hint="choose another host, or omit the option: without KVM a build only takes longer",
        )
    fallback, seconds = require(tcg(qemu, reason=f"KVM cannot be used: {trial.failure}"), workdir=workdir)
    if trial.failure:
        return fallback
    if trial.seconds <= seconds:
        return kvm(qemu)
    return replace(fallback, reason=f"KVM took {trial.seconds:.1f} s for work that takes {seconds:.1f} s without it")


def require(accelerator: Accelerator, *, workdir: Path) -> tuple[Accelerator, float]:
    """Return ``accelerator`` and the run time of its test guest in seconds; raise HostError if it cannot run one."""
    trial = try_guest(accelerator, workdir=workdir, deadline=TCG_DEADLINE_SECONDS)
    if trial.failure:
        raise HostError(
            f"{QEMU} cannot run a guest of 512 bytes: {trial.failure}",
            details=accelerator.reason,
            hint="apt-get install --reinstall qemu-system-x86 seabios   (as root)",
        )
    return accelerator, trial.seconds


def kvm(qemu: tuple[int, int]) -> Accelerator:
    """Return the accelerator of a host whose KVM works."""
    reason = "KVM ran a guest in time"
    return Accelerator(Kind.KVM, reason, min(usable_cpus(), MOST_KVM_CPUS), "host", qemu, 1.0)


def tcg(qemu: tuple[int, int], *, reason: str) -> Accelerator:
    """Return the accelerator of a host without KVM: with the flags with which Linux boots reliably."""
    if qemu < FIRST_SOUND_TCG:
        return Accelerator(Kind.TCG, reason, 1, f"{TCG_CPU},cx16=off", qemu, TCG_TIMEOUT_SCALE)
    return Accelerator(Kind.TCG, reason, min(usable_cpus(), MOST_TCG_CPUS), TCG_CPU, qemu, TCG_TIMEOUT_SCALE)


def usable_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def qemu_version() -> tuple[int, int]:
    """Return QEMU's version, major and minor. Raises HostError if it is not installed."""
    tool = run.which(QEMU, reason="run the installer and the test VMs")
    text = run.run([tool, "--version"], timeout=run.LOCAL_SECONDS).stdout
    match = re.search(r"version (\d+)\.(\d+)", text)
    if match is None:
        raise HostError(f"{tool} does not print its version: {text.strip()[:80]!r}")
    return int(match[1]), int(match[2])


def refuse_device(device: Path) -> str:
    """Return the reason why ``device`` cannot be opened, or an empty string."""
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return f"there is no {device}"
    except OSError as error:
        return f"{device} cannot be opened: {error.strerror} (members of the group kvm may)"
    return ""


def try_kvm(accelerator: Accelerator, *, workdir: Path, device: Path) -> Trial:
    """Run the test guest with KVM, if the device can be opened."""
    refusal = refuse_device(device)
    return Trial(0.0, refusal) if refusal else try_guest(accelerator, workdir=workdir, deadline=KVM_DEADLINE_SECONDS)


def try_guest(accelerator: Accelerator, *, workdir: Path, deadline: float) -> Trial:
    """Run the test guest for at most ``deadline`` seconds."""
    with files.scratch(workdir) as scratch:
        disk = scratch / "probe.img"
        disk.write_bytes(boot_sector())
        log = scratch / "qemu.log"
        started = time.monotonic()
        with run.spawn(probe_argv(accelerator, disk.name), cwd=scratch, log=log) as qemu:
            status = qemu.wait(deadline)
        seconds = time.monotonic() - started
        last_line = run.tail(log.read_text(errors="replace"), 1)
    if status is None:
        return Trial(seconds, f"a guest of 512 bytes did not finish its 0.1 s of work within {deadline:.0f} s")
    if status != PROBE_STATUS:
        return Trial(seconds, f"QEMU ended after {seconds:.1f} s: {last_line or f'status {status}, without output'}")
    return Trial(seconds)


def probe_argv(accelerator: Accelerator, disk: str) -> list[str]:
    """Return the QEMU command of the test guest: one CPU, no devices except the disk and the debug port."""
    return [
        QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-m", "16",
        "-machine", accelerator.machine(), "-cpu", accelerator.cpu,
        "-drive", f"file={disk},format=raw,if=ide",
        "-device", f"isa-debug-exit,iobase={PROBE_PORT:#x},iosize=1",
    ]  # fmt: skip


def boot_sector() -> bytes:
    """Return the guest: a boot sector (loaded at 0x7c00 in real mode) that enters long mode and works.

    Page tables are at 0x1000 (PML4), 0x2000 (directory pointers) and 0x3000 (directory): 1 GiB mapped to itself with 2
    MiB pages. The work accesses memory through them, and exits to the hypervisor by CPUID once a round. Encodings:
    Intel SDM volume 2; the switch to long mode: volume 3A, "Initializing IA-32e Mode".
    """
    setup = b"".join(
        (
            b"\xfa\xfc",  # cli; cld
            b"\x31\xc0\x8e\xd8\x8e\xc0\x8e\xd0",  # xor ax, ax; mov ds, ax; mov es, ax; mov ss, ax
            b"\xbf\x00\x10\xb9\x00\x18\xf3\xab",  # mov di, 0x1000; mov cx, 0x1800; rep stosw: empty tables
            b"\xc7\x06\x00\x10\x03\x20",  # mov word [0x1000], 0x2003: present, writable
            b"\xc7\x06\x00\x20\x03\x30",  # mov word [0x2000], 0x3003
            b"\xbf\x00\x30\xb9\x00\x02",  # mov di, 0x3000; mov cx, 512
            b"\x66\xb8\x83\x00\x00\x00",  # mov eax, 0x83: present, writable, 2 MiB
            b"\x66\x89\x05",  # 1: mov [di], eax
            b"\x66\x05\x00\x00\x20\x00",  # add eax, 0x200000
            b"\x83\xc7\x08",  # add di, 8
            b"\xe2\xf2",  # loop 1b
            b"\x66\xb8\x00\x10\x00\x00\x0f\x22\xd8",  # mov eax, 0x1000; mov cr3, eax
            b"\x0f\x20\xe0\x0c\x20\x0f\x22\xe0",  # mov eax, cr4; or al, 0x20 (PAE); mov cr4, eax
            b"\x66\xb9\x80\x00\x00\xc0",  # mov ecx, 0xc0000080 (EFER)
            b"\x0f\x32\x0d\x00\x01\x0f\x30",  # rdmsr; or ax, 0x100 (LME); wrmsr
        )
    )
    load_table = b"\x0f\x01\x16"  # lgdt [address]
    switch = b"\x0f\x20\xc0\x66\x0d\x01\x00\x00\x80\x0f\x22\xc0"  # mov eax, cr0; or eax, 0x80000001 (PG, PE); mov cr0, eax
    far_jump = b"\xea"  # jmp 8:address
    work = b"".join(
        (
            b"\xbe" + struct.pack("<I", ROUNDS),  # mov esi, ROUNDS
            b"\xb9" + struct.pack("<I", PASSES),  # 2: mov ecx, PASSES
            b"\x89\xc8\x25\xf8\xff\x0f\x00",  # 3: mov eax, ecx; and eax, 0xffff8
            b"\x48\x01\x88\x00\x00\x10\x00",  # add [rax + 0x100000], rcx
            b"\xff\xc9\x75\xee",  # dec ecx; jnz 3b
            b"\x31\xc0\x0f\xa2",  # xor eax, eax; cpuid
            b"\xff\xce\x75\xe1",  # dec esi; jnz 2b
            b"\xb0" + bytes([PROBE_VALUE]),  # mov al, PROBE_VALUE
            b"\xe6" + bytes([PROBE_PORT]),  # out PROBE_PORT, al
            b"\xf4\xeb\xfd",  # 4: hlt; jmp 4b
        )
    )
    entry = 0x7C00 + len(setup) + len(load_table) + 2 + len(switch) + len(far_jump) + 4
    table = entry + len(work)
    descriptors = struct.pack("<QQ", 0, 0x00209A0000000000)  # none; 64-bit code, ring 0
    code = b"".join(
        (
            setup,
            load_table + struct.pack("<H", table + len(descriptors)),
            switch,
            far_jump + struct.pack("<HH", entry, 8),
            work,
            descriptors,
            struct.pack("<HI", len(descriptors) - 1, table),
        )
    )
    return code.ljust(510, b"\0") + b"\x55\xaa"
