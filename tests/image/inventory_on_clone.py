"""Runs on a clone as root, from standard input: collects the inventory of the clone and prints it as one JSON object.

The host does the rest (build/verify/inventory.py): on an emulated clone every read is slow, so nothing is read twice. This
is not a test, and it needs only Python's standard library and the programs of the image. It does not print passwords.
"""

from __future__ import annotations

import grp
import json
import os
import pwd
import re
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

ANALYZE_SECONDS = 900
# Files are inspected here and on the partitions of the disk; the root file system of a container may be of any type.
PLACES = {"/"}
ON_DISK = {"ext2", "ext3", "ext4", "xfs", "btrfs", "vfat"}
LISTENING = {"tcp": "0A", "tcp6": "0A", "udp": "07", "udp6": "07"}
EXPOSURE = re.compile(r"Overall exposure level for (\S+): ([0-9.]+)")
# A masked unit cannot be computed, an alias is another one, and a transient one is of the moment.
COUNTED = {"enabled", "enabled-runtime", "disabled", "static", "indirect", "generated", "linked", "linked-runtime"}
INSTANCE = "x"
MODPROBE = ("/etc/modprobe.d", "/run/modprobe.d", "/usr/local/lib/modprobe.d", "/usr/lib/modprobe.d")


def say(*words: str, **environment: str) -> str:
    """Return the output of a command; if it fails, exit with its error message."""
    # The service manager of an emulated clone takes longer than 25 s, the default timeout of its clients.
    environment = {
        "PATH": f"{os.defpath}:/usr/sbin", "LC_ALL": "C.UTF-8", "SYSTEMD_BUS_TIMEOUT": str(ANALYZE_SECONDS), **environment,
    }  # fmt: skip
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=ANALYZE_SECONDS, check=False, stdin=subprocess.DEVNULL,
        env=environment,
    )  # fmt: skip
    if done.returncode != 0:
        sys.exit(f"{' '.join(words)} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def read(path: str) -> str | None:
    """Return the text of a small file, or None if it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return None


def sockets() -> list[list[str]]:
    """Return the listening sockets: protocol, address as the kernel writes it, number of its inode."""
    found: list[list[str]] = []
    for protocol, state in LISTENING.items():
        for line in (read(f"/proc/net/{protocol}") or "").splitlines()[1:]:
            words = line.split()
            if words[3] == state:
                found.append([protocol, words[1], words[9]])
    for line in (read("/proc/net/unix") or "").splitlines()[1:]:
        words = line.split(maxsplit=7)
        # 00010000: it accepts connections (__SO_ACCEPTCON of linux/net.h).
        if len(words) == 8 and int(words[3], 16) & 0x10000:
            found.append(["unix", words[7], words[6]])
    return found


def holders(inodes: set[str]) -> dict[str, list[list[str]]]:
    """Return the processes that hold each socket: inode -> [[process, user], ...]."""
    found: dict[str, list[list[str]]] = {}
    for number in filter(str.isdigit, os.listdir("/proc")):
        try:
            links = {link(f"/proc/{number}/fd/{name}") for name in os.listdir(f"/proc/{number}/fd")}
            owner = os.stat(f"/proc/{number}").st_uid
        except OSError:
            continue  # the process has ended
        name = (read(f"/proc/{number}/comm") or "").strip()
        for inode in {target[8:-1] for target in links if target.startswith("socket:[")} & inodes:
            found.setdefault(inode, []).append([name, user_name(owner)])
    return found


def link(path: str) -> str:
    """Return the target of a link, or an empty string if it no longer exists: processes close files meanwhile."""
    try:
        return os.readlink(path)
    except OSError:
        return ""


def user_name(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def mounts() -> list[list[str]]:
    """Return the mounts: [target, type, source, options of the mount, options of the file system]."""
    found = []
    for line in (read("/proc/self/mountinfo") or "").splitlines():
        first, _, last = line.partition(" - ")
        words, rest = first.split(), last.split(maxsplit=2)
        target = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), words[4])
        found.append([target, rest[0], rest[1], words[5], rest[2]])
    return found


def privileged(mounted: list[list[str]]) -> list[list[str]]:
    """Return files that give privileges to their callers: [path, mode, user, group, capabilities in hexadecimal].

    find inspects every file: a loop in Python takes five times as long on an emulated clone.
    """
    places = PLACES | {one[0] for one in mounted if one[1] in ON_DISK and os.path.isdir(one[0])}
    printed = say(
        "find", *sorted(places), "-xdev", "-ignore_readdir_race", "-type", "f", "-perm", "/6111",
        "-printf", r"%p\0%m\0%u\0%g\0",
    )  # fmt: skip
    words = printed.split("\0")
    found = {}
    for path, mode, user, group in zip(words[0::4], words[1::4], words[2::4], words[3::4]):  # noqa: B905 (a last end)
        mark = capabilities(path)
        if mark or int(mode, 8) & 0o6000:
            found[path] = [path, f"{int(mode, 8):04o}", user, group, mark]
    return list(found.values())


def capabilities(path: str) -> str:
    try:
        return os.getxattr(path, "security.capability", follow_symlinks=False).hex()
    except OSError:
        return ""


def sysctl() -> dict[str, str]:
    """Return every kernel setting that can be read, by its name with dots; a dot in a part of a name becomes a slash."""
    found = {}
    for directory, _, names in os.walk("/proc/sys"):
        for name in names:
            path = f"{directory}/{name}"
            # Reading these makes the kernel act, or returns a secret or a random number.
            if name in ("stable_secret", "tcp_fastopen_key", "uuid", "boot_id", "compact_memory", "drop_caches"):
                continue
            text = read(path)
            if text is not None:
                found[path[len("/proc/sys/") :].translate({ord("/"): ".", ord("."): "/"})] = text.strip()
    return found


def accounts() -> tuple[dict[str, object], dict[str, object]]:
    """Return users and groups; for passwords only whether one is set."""
    lines = [line.split(":") for line in (read("/etc/shadow") or "").splitlines() if ":" in line]
    shadow = {words[0]: words[1] for words in lines}
    users: dict[str, object] = {}
    for one in pwd.getpwall():
        word = shadow.get(one.pw_name, "")
        # shadow(5): an empty field means that no password is needed; a field that starts with ! or * locks the account.
        state = "empty" if word == "" else "locked" if word[0] in "!*" else "set"
        users[one.pw_name] = {
            "uid": one.pw_uid, "gid": one.pw_gid, "home": one.pw_dir, "shell": one.pw_shell, "password": state,
        }  # fmt: skip
    return users, {one.gr_name: {"gid": one.gr_gid, "members": sorted(one.gr_mem)} for one in grp.getgrall()}


def exposure(unit_files: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return how exposed each service is, by systemd's rules: [{unit, exposure}]; for a template, of an instance of it.

    Computed from the unit files: to ask the service manager for the properties of the loaded services takes five times as
    long. The result of ``systemd-analyze`` for several units is text, also with ``--json``.
    """
    services = [row["unit_file"] for row in unit_files if row["unit_file"].endswith(".service") and row["state"] in COUNTED]
    places = say("systemctl", "show", "--property=UnitPath", "--value").split()
    instances = {name.replace("@.", f"@{INSTANCE}."): name for name in services}
    printed = say(
        "systemd-analyze", "security", "--offline=true", "--no-pager", *instances, SYSTEMD_UNIT_PATH=":".join(places)
    )
    return [{"unit": instances[unit], "exposure": level} for unit, level in re.findall(EXPOSURE, printed)]


def modules() -> dict[str, list[str]]:
    """Return the loaded kernel modules, and those that modprobe.d denies."""
    denied: set[str] = set()
    for directory in MODPROBE:
        for name in sorted(os.listdir(directory)) if os.path.isdir(directory) else []:
            for line in (read(f"{directory}/{name}") or "").splitlines():
                words = line.split()
                never = len(words) > 2 and words[0] == "install" and words[2].endswith(("/false", "/true"))
                if never or (len(words) == 2 and words[0] == "blacklist"):
                    denied.add(words[1])
    loaded = [line.split()[0] for line in (read("/proc/modules") or "").splitlines()]
    return {"denied": sorted(denied), "loaded": sorted(loaded)}


def main() -> None:
    """Print the inventory, and in ``seconds`` how long each part took."""
    took: dict[str, float] = {}
    found: dict[str, Any] = {}

    def timed(name: str, read_part: Callable[[], object]) -> object:
        begun = time.monotonic()
        part = read_part()
        took[name] = round(time.monotonic() - begun, 1)
        return part

    mounted, listening = mounts(), sockets()
    users, groups = accounts()
    inodes = {one[2] for one in listening}
    parts: dict[str, Callable[[], object]] = {
        "unit_files": lambda: json.loads(say("systemctl", "list-unit-files", "--no-pager", "--output=json")),
        "exposure": lambda: exposure(found["unit_files"]),
        "holders": lambda: holders(inodes),
        "privileged": lambda: privileged(mounted),
        "sysctl": sysctl,
        "modules": modules,
        "interfaces": lambda: sorted(os.listdir("/sys/class/net")),
        "startup": lambda: say("systemd-analyze", "time"),
        "svg": lambda: say("systemd-analyze", "plot"),
    }
    for name, part in parts.items():
        found[name] = timed(name, part)
    json.dump(
        {**found, "sockets": listening, "users": users, "groups": groups, "mounts": mounted, "seconds": took}, sys.stdout
    )


if __name__ == "__main__":
    main()
