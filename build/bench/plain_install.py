"""The installation that Goldsmith is compared with: Packer, a preseed, Debian's netboot installer, packages by apt.

Only the bench uses it. Same machine, same partitions, same list of packages, from the host's mirror over the network; no
layer is installed and nothing is verified, so the comparison favours it. The installer's own parts are in its initial RAM
file system already: a mirror seldom has all udebs that its index names, and fetching them would take more time.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import jinja2

from build.core import run
from build.media import cpio, initrd, preseed
from build.packages.apt import Mirrors
from build.packages.lock import Entry, Lock
from build.spec.golden_yaml import Spec

ISO_SECONDS = 300
COMPRESSION_LEVEL = 6
# What Debian's installer has beyond that of installer.lock: the steps from time zone to boot loader, and their needs.
UDEBS = (
    "apt-mirror-setup", "apt-setup-udeb", "bootstrap-base", "clock-setup", "debootstrap-udeb", "grub-installer",
    "grub-mount-udeb", "libbsd0-udeb", "libfuse3-4-udeb", "libmd0-udeb", "os-prober-udeb", "pkgsel", "rdate-udeb",
    "tzsetup-udeb", "user-setup-udeb",
)  # fmt: skip
# Parts of installer.lock that install from the medium.
UNUSED = ("attr-udeb", "cdrom-detect", "libattr1-udeb", "live-installer")
# Menu items that would fetch udebs.
DROPPED = ("download-installer", "media-retriever", "net-retriever")
# Conflicts with the grub-pc that grub-installer brings; the signed loader belongs to it.
BOOT_PACKAGES = frozenset({"grub-cloud-amd64", "shim-signed"})

_GRUB = """set timeout=0
menuentry install {
  linux /linux priority=critical DEBIAN_FRONTEND=text console=ttyS0 TERM=dumb net.ifnames=0
  initrd /initrd.gz
}
"""

# The system log goes to the second serial port, where the disk stage watches the steps of every installation. What stays
# running must let go of debconf's descriptors, or the installer waits for it permanently.
_PRESEED = """d-i preseed/early_command string (exec 3>&- 4>&- 5>&- 6>&- 7>&-; exec tail -n +1 -f /var/log/syslog) \\
  >/dev/ttyS1 2>&1 </dev/null &
d-i debian-installer/locale string en_US.UTF-8
d-i keyboard-configuration/xkb-keymap select us
d-i netcfg/choose_interface select auto
d-i netcfg/get_hostname string {{ spec.hostname }}
d-i netcfg/get_domain string {{ spec.domain }}
d-i hw-detect/load_firmware boolean false
d-i mirror/country string manual
d-i mirror/protocol string http
d-i mirror/http/hostname string {{ host }}
d-i mirror/http/directory string {{ directory }}
d-i mirror/http/proxy string
d-i clock-setup/utc boolean true
d-i clock-setup/ntp boolean false
d-i time/zone string {{ spec.timezone }}
d-i partman-auto/disk string /dev/vda
d-i partman-auto/method string regular
d-i partman-partitioning/default_label string gpt
d-i partman-auto/expert_recipe string {{ recipe }}
d-i partman-partitioning/confirm_write_new_label boolean true
d-i partman/choose_partition select finish
d-i partman/confirm boolean true
d-i partman/confirm_nooverwrite boolean true
d-i partman-basicfilesystems/no_swap boolean false
d-i base-installer/kernel/image string {{ spec.kernel.package }}
d-i base-installer/kernel/linux/initrd boolean true
d-i base-installer/install-recommends boolean false
d-i passwd/root-login boolean false
d-i passwd/user-fullname string Bench
d-i passwd/username string bench
d-i passwd/user-password-crypted password {{ password }}
d-i apt-setup/services-select multiselect security, updates
d-i apt-setup/security_host string {{ security_host }}
d-i pkgsel/run_tasksel boolean false
d-i pkgsel/include string {{ packages }}
d-i pkgsel/upgrade select none
d-i pkgsel/update-policy select none
popularity-contest popularity-contest/participate boolean false
d-i grub-installer/only_debian boolean true
d-i grub-installer/bootdev string /dev/vda
d-i finish-install/reboot_in_progress note
d-i debian-installer/exit/poweroff boolean true
"""


def parts(lock: Lock) -> tuple[Entry, ...]:
    """Return the files of installer.lock that the plain installation takes too; UDEBS come on top."""
    return tuple(entry for entry in lock.entries if entry.package not in UNUSED)


def make_medium(
    out: Path, *, spec: Spec, packages: tuple[str, ...], mirrors: Mirrors, netboot: Path, udebs: Iterable[Path],
    scratch: Path, log: Path,
) -> None:  # fmt: skip
    """Write the medium of the plain installation to ``out``; ``netboot`` is Debian's netboot package."""
    plan = replace(initrd.load_plan(), packages_dropped=DROPPED, files_dropped=(), modules=())
    kernel, tree = initrd.assemble(plan, netboot=netboot, udebs=udebs)
    initrd.index_modules(tree, scratch)
    tree["preseed.cfg"] = cpio.file(render(spec, packages=packages, mirrors=mirrors).encode())
    home = scratch / "iso"
    (home / "boot" / "grub").mkdir(parents=True)
    (home / "linux").write_bytes(kernel)
    with gzip.open(home / "initrd.gz", "wb", COMPRESSION_LEVEL) as stream:
        cpio.write(tree, stream, epoch=0)
    (home / "boot" / "grub" / "grub.cfg").write_text(_GRUB)
    run.run(["grub-mkrescue", "--output", out, home], timeout=ISO_SECONDS, log=log)


def render(spec: Spec, *, packages: tuple[str, ...], mirrors: Mirrors) -> str:
    """Return the answers of the plain installation."""
    host, _, directory = mirrors.debian.removeprefix("http://").partition("/")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)
    return environment.from_string(_PRESEED).render(
        spec=spec, host=host, directory=f"/{directory}", recipe=preseed.recipe(spec.disk),
        # The installer appends the directory by itself.
        security_host=mirrors.security.removeprefix("http://").removesuffix("/debian-security"),
        packages=" ".join(name for name in packages if name not in BOOT_PACKAGES),
        # Of no account that lives on: the disk is thrown away. The installer insists on a well-formed hash.
        password="$6$" + "bench" + "$" + "x" * 86,
    )  # fmt: skip
