"""The installation that Goldsmith is compared with: Packer, a preseed, Debian's netboot installer, packages by apt.

Only the bench uses it. Same machine, same partitions, same list of packages, from the host's mirror over the network; no
layer is laid and nothing is verified, so the comparison favours it.
"""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import jinja2

from build import cpio, debs, preseed, run
from build.apt import Mirrors
from build.spec import Spec

NETBOOT = "usr/lib/debian-installer/images/13/amd64/text/debian-installer/amd64"
ISO_SECONDS = 300

_GRUB = """set timeout=0
menuentry install {
  linux /linux auto=true priority=critical DEBIAN_FRONTEND=text console=ttyS0 TERM=dumb net.ifnames=0 file=/preseed.cfg
  initrd /initrd.gz
}
"""

# The system log goes to the second serial port, where the disk stage watches the steps of every installation. What stays
# running must let go of debconf's descriptors, or the installer waits for it for ever.
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
d-i partman-auto/method string regular
d-i partman-partitioning/default_label string gpt
d-i partman-auto/expert_recipe string {{ recipe }}
d-i partman-partitioning/confirm_write_new_label boolean true
d-i partman/choose_partition select finish
d-i partman/confirm boolean true
d-i partman/confirm_nooverwrite boolean true
d-i partman-basicfilesystems/no_swap boolean false
d-i base-installer/kernel/image string {{ spec.kernel.package }}
d-i base-installer/install-recommends boolean false
d-i passwd/root-login boolean false
d-i passwd/user-fullname string Bench
d-i passwd/username string bench
d-i passwd/user-password-crypted password {{ password }}
d-i apt-setup/services-select multiselect updates
tasksel tasksel/first multiselect
d-i pkgsel/include string {{ packages }}
d-i pkgsel/upgrade select none
d-i pkgsel/update-policy select none
popularity-contest popularity-contest/participate boolean false
d-i grub-installer/only_debian boolean true
d-i grub-installer/bootdev string default
d-i finish-install/reboot_in_progress note
d-i debian-installer/exit/poweroff boolean true
"""


def make_medium(
    out: Path, *, spec: Spec, packages: tuple[str, ...], mirrors: Mirrors, netboot: Path, scratch: Path, log: Path
) -> None:
    """Write the medium of the plain installation to ``out``; ``netboot`` is Debian's netboot package."""
    tree = scratch / "iso"
    (tree / "boot" / "grub").mkdir(parents=True)
    for path, content in debs.extract(netboot, frozenset(f"{NETBOOT}/{name}" for name in ("linux", "initrd.gz"))).items():
        (tree / Path(path).name).write_bytes(content)
    answers = io.BytesIO()
    content = render(spec, packages=packages, mirrors=mirrors).encode()
    cpio.write({"preseed.cfg": cpio.file(content)}, answers, epoch=0)
    # The kernel unpacks archives one after the other: the answers need no change to Debian's own.
    with (tree / "initrd.gz").open("ab") as stream:
        stream.write(gzip.compress(answers.getvalue()))
    (tree / "boot" / "grub" / "grub.cfg").write_text(_GRUB)
    run.run(["grub-mkrescue", "--output", out, tree], timeout=ISO_SECONDS, log=log)


def render(spec: Spec, *, packages: tuple[str, ...], mirrors: Mirrors) -> str:
    """Return the answers of the plain installation."""
    host, _, directory = mirrors.debian.removeprefix("http://").partition("/")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)
    return environment.from_string(_PRESEED).render(
        spec=spec, host=host, directory=f"/{directory}", recipe=preseed.recipe(spec.disk), packages=" ".join(packages),
        # Of no account that lives on: the disk is thrown away. The installer insists on a well-formed hash.
        password="$6$" + "bench" + "$" + "x" * 86,
    )  # fmt: skip
