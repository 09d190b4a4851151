"""Runs on a clone as root, from standard input: reads what the clone is, once, and prints it as one JSON object.

The host does the rest (build/inventory.py): a clone may be emulated, so every fact costs, and nothing is read twice. It is
no test, and takes no package of the host's: Python's standard library and what the image has. Passwords are not told.
"""

from __future__ import annotations

import grp
import json
import os
import pwd
import re
import stat
import subprocess
import sys

ANALYZE_SECONDS = 900
# Files are looked at here, and on the partitions of the disk; a container has its root file system on anything.
PLACES = {"/"}
ON_DISK = {"ext2", "ext3", "ext4", "xfs", "btrfs", "vfat"}
LISTENING = {"tcp": "0A", "tcp6": "0A", "udp": "07", "udp6": "07"}
MODPROBE = ("/etc/modprobe.d", "/run/modprobe.d", "/usr/local/lib/modprobe.d", "/usr/lib/modprobe.d")


def say(*words: str) -> str:
    """Return what a command says; a command that fails ends this program, with its words."""
    environment = {"PATH": f"{os.defpath}:/usr/sbin", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=ANALYZE_SECONDS, check=False, stdin=subprocess.DEVNULL,
        env=environment,
    )  # fmt: skip
    if done.returncode != 0:
        sys.exit(f"{' '.join(words)} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def read(path: str) -> str | None:
    """Return a small file's text, or nothing when it cannot be read."""
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
    """Return who holds each socket: inode -> [[process, user], ...]."""
    found: dict[str, list[list[str]]] = {}
    for number in filter(str.isdigit, os.listdir("/proc")):
        try:
            links = {link(f"/proc/{number}/fd/{name}") for name in os.listdir(f"/proc/{number}/fd")}
            owner = os.stat(f"/proc/{number}").st_uid
        except OSError:
            continue  # it ended meanwhile
        name = (read(f"/proc/{number}/comm") or "").strip()
        for inode in {target[8:-1] for target in links if target.startswith("socket:[")} & inodes:
            found.setdefault(inode, []).append([name, user_name(owner)])
    return found


def link(path: str) -> str:
    """Return a link's target, or nothing when it is gone: processes close files while they are looked at."""
    try:
        return os.readlink(path)
    except OSError:
        return ""


def user_name(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def group_name(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def mounts() -> list[list[str]]:
    """Return what is mounted where: [target, type, source, options of the mount, options of the file system]."""
    found = []
    for line in (read("/proc/self/mountinfo") or "").splitlines():
        first, _, last = line.partition(" - ")
        words, rest = first.split(), last.split(maxsplit=2)
        target = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), words[4])
        found.append([target, rest[0], rest[1], words[5], rest[2]])
    return found


def privileged(mounted: list[list[str]]) -> list[list[str]]:
    """Return files that give rights to who runs them: [path, mode, user, group, capabilities in hexadecimal]."""
    places = PLACES | {one[0] for one in mounted if one[1] in ON_DISK and os.path.isdir(one[0])}
    devices = {os.lstat(place).st_dev for place in places}
    found: list[list[str]] = []
    todo = sorted(places)
    seen = set(todo)
    while todo:
        with os.scandir(todo.pop()) as entries:
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                except OSError:
                    continue
                if stat.S_ISDIR(status.st_mode):
                    if status.st_dev in devices and entry.path not in seen:
                        seen.add(entry.path)
                        todo.append(entry.path)
                elif stat.S_ISREG(status.st_mode) and status.st_mode & 0o6111:
                    mark = capabilities(entry.path)
                    if mark or status.st_mode & 0o6000:
                        mode = f"{stat.S_IMODE(status.st_mode):04o}"
                        found.append([entry.path, mode, user_name(status.st_uid), group_name(status.st_gid), mark])
    return found


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
            # Reading these asks the kernel to do something, or takes a secret or a number out of it.
            if name in ("stable_secret", "tcp_fastopen_key", "uuid", "boot_id", "compact_memory", "drop_caches"):
                continue
            text = read(path)
            if text is not None:
                found[path[len("/proc/sys/"):].translate({ord("/"): ".", ord("."): "/"})] = text.strip()
    return found


def accounts() -> tuple[dict[str, object], dict[str, object]]:
    """Return users and groups; of a password only whether there is one."""
    lines = [line.split(":") for line in (read("/etc/shadow") or "").splitlines() if ":" in line]
    shadow = {words[0]: words[1] for words in lines}
    users: dict[str, object] = {}
    for one in pwd.getpwall():
        word = shadow.get(one.pw_name, "")
        # shadow(5): nothing is no password; what no hash can be (with ! or * in front) lets nobody in.
        state = "empty" if word == "" else "locked" if word[0] in "!*" else "set"
        users[one.pw_name] = {
            "uid": one.pw_uid, "gid": one.pw_gid, "home": one.pw_dir, "shell": one.pw_shell, "password": state,
        }  # fmt: skip
    return users, {one.gr_name: {"gid": one.gr_gid, "members": sorted(one.gr_mem)} for one in grp.getgrall()}


def modules() -> dict[str, list[str]]:
    """Return the loaded kernel modules, and the lines of modprobe.d that keep one away."""
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
    """Print the inventory."""
    mounted, listening = mounts(), sockets()
    users, groups = accounts()
    json.dump(
        {
            "unit_files": json.loads(say("systemctl", "list-unit-files", "--no-pager", "--output=json")),
            "exposure": json.loads(say("systemd-analyze", "security", "--no-pager", "--json=short")),
            "sockets": listening,
            "holders": holders({one[2] for one in listening}),
            "privileged": privileged(mounted),
            "sysctl": sysctl(),
            "users": users,
            "groups": groups,
            "modules": modules(),
            "mounts": mounted,
            "interfaces": sorted(os.listdir("/sys/class/net")),
            "startup": say("systemd-analyze", "time"),
            "svg": say("systemd-analyze", "plot"),
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
