"""golden.yaml: a valid file becomes a frozen value; every error in another is reported with key, value and hint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from build.core.errors import SpecError
from build.spec import golden_yaml as specs
from build.spec.golden_yaml import Kernel, Partition
from tests.unit.helpers import ROOT, golden, make_spec, write_spec


def problems(tmp_path: Path, content: dict[str, Any]) -> list[str]:
    """Return the errors of a spec, one per line."""
    with pytest.raises(SpecError) as caught:
        specs.load(write_spec(tmp_path, content))
    return caught.value.details.splitlines()


def partition(content: dict[str, Any], mount: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in content["disk"]["partitions"] if one["mount"] == mount)
    return found


# --- a valid spec -----------------------------------------------------------------------------------------------------


def test_a_valid_spec_is_read_as_it_stands(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, kernel="generic", packages=["git", "vim"], layers=["10-base", "40-app"])
    assert (spec.name, spec.version, spec.kernel, spec.disk.size_mib) == ("golden", "1.2.3", Kernel.GENERIC, 12288)
    assert spec.disk.partitions[1] == Partition("/var", 1024, "ext4", ("noatime", "nodev", "nosuid"))
    assert (spec.layers, spec.packages) == (("10-base", "40-app"), ("git", "vim"))
    assert (spec.admin.user, spec.admin.cidrs) == ("admin", ("192.0.2.0/24",))
    assert (spec.application.wsgi, spec.application.workers) == ("project.wsgi:application", 2)


def test_the_spec_cannot_be_changed(tmp_path: Path) -> None:
    spec = make_spec(tmp_path)
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.name = "other"  # type: ignore[misc]


def test_keys_with_a_default_may_be_left_out(tmp_path: Path) -> None:
    content = golden()
    for key in ("kernel", "packages", "layers"):
        del content[key]
    del content["admin"]["cidrs"]
    spec = specs.load(write_spec(tmp_path, content))
    assert (spec.kernel, spec.packages, spec.layers, spec.admin.cidrs) == (Kernel.CLOUD, (), (), ())


@pytest.mark.parametrize(
    ("kernel", "package"), [(Kernel.CLOUD, "linux-image-cloud-amd64"), (Kernel.GENERIC, "linux-image-amd64")]
)
def test_each_kernel_has_its_package(kernel: Kernel, package: str) -> None:
    assert kernel.package == package


def test_inputs_are_plain_data_that_changes_with_the_spec(tmp_path: Path) -> None:
    one, two = make_spec(tmp_path), make_spec(tmp_path, hostname="other")
    assert one.as_inputs()["disk"]["partitions"][0]["mount"] == "/"
    changed = {key for key, value in one.as_inputs().items() if two.as_inputs()[key] != value}
    assert changed == {"hostname"}


def test_the_committed_spec_is_valid() -> None:
    spec = specs.load(ROOT / "golden.yaml")
    assert set(specs.REQUIRED_OPTIONS) < {partition.mount for partition in spec.disk.partitions}


def test_a_further_layer_finds_its_place(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, layers=["10-base", "80-firstboot"])
    assert spec.with_layers(("55-waf", "10-base")).layers == ("10-base", "55-waf", "80-firstboot")
    assert spec.with_layers(()) == spec


# --- one mistake ------------------------------------------------------------------------------------------------------

KEYS = (
    "admin, application, disk, domain, extends, hostname, kernel, layers, locale, name, packages, proxmox, release, "
    "releases, timezone, version"
)
HOST = "write a DNS label: lower case letters, digits and hyphens"
NO_NAME = "there is none of this name; write one such as"
LEGACY = "Debian 13 has this name in tzdata-legacy only: write"
WRONG_VALUES = [
    ("name", "Golden", f"name: 'Golden': {HOST}"),
    ("name", "-x", f"name: '-x': {HOST}"),
    ("name", "x" * 64, f"name: '{'x' * 64}': {HOST}"),
    ("version", 1.4, "version: 1.4: write a version such as 1.4.0 or 1.4.0-rc1"),
    ("version", "1.4", "version: '1.4': write a version such as 1.4.0 or 1.4.0-rc1"),
    ("version", "1.4.0/../x", "version: '1.4.0/../x': write a version such as 1.4.0 or 1.4.0-rc1"),
    ("release", "bookworm", "release: 'bookworm': write trixie: the one Debian release that is supported"),
    ("hostname", "a.b", f"hostname: 'a.b': {HOST}"),
    ("domain", "example..org", "domain: 'example..org': write a DNS domain such as example.org, of at most 188 characters"),
    ("locale", "de_AT", "locale: 'de_AT': there is none of this name; near ones: de_AT.UTF-8"),
    ("locale", "EN-gb", "locale: 'EN-gb': there is none of this name; near ones: en_GB.UTF-8"),
    ("locale", "xx_XX.UTF-8", f"locale: 'xx_XX.UTF-8': {NO_NAME} C.UTF-8 or en_GB.UTF-8"),
    ("timezone", "../UTC", "timezone: '../UTC': there is none of this name; near ones: UTC"),
    ("timezone", "US/Eastern", f"timezone: 'US/Eastern': {LEGACY} America/New_York"),
    ("timezone", "Europe/Kiev", f"timezone: 'Europe/Kiev': {LEGACY} Europe/Kyiv"),
    ("timezone", "Mars/Phobos", f"timezone: 'Mars/Phobos': {NO_NAME} Europe/Vienna; timedatectl list-timezones lists them"),
    ("timezone", "europe/vienna", "timezone: 'europe/vienna': there is none of this name; near ones: Europe/Vienna"),
    ("kernel", "rt", "kernel: 'rt': write one of: cloud, generic"),
    ("kernel", None, "kernel: None: write one of: cloud, generic"),
    ("packages", ["Vim"], "packages: 'Vim': write the name of a Debian package"),
    ("packages", ["vim", "vim"], "packages: 'vim': duplicate entry: remove one"),
    ("packages", "vim", "packages: 'vim': write a list"),
    (
        "layers",
        ["base"],
        "layers: 'base': write the name of a directory in overlays/, NN-noun, or the path of one elsewhere",
    ),
    (
        "layers",
        ["40-app", "10-base"],
        "layers: ['40-app', '10-base']: write the layers in ascending order, in which they are installed: [10-base, 40-app]",
    ),
]


@pytest.mark.parametrize(("key", "value", "problem"), WRONG_VALUES)
def test_a_wrong_value_is_told_with_its_remedy(tmp_path: Path, key: str, value: object, problem: str) -> None:
    assert problems(tmp_path, golden(**{key: value})) == [problem]


def _unknown_top(content: dict[str, Any]) -> None:
    content["swap"] = "2G"


def _unknown_nested(content: dict[str, Any]) -> None:
    content["admin"]["password"] = "x"


def _no_name(content: dict[str, Any]) -> None:
    del content["name"]


def _root_as_admin(content: dict[str, Any]) -> None:
    content["admin"]["user"] = "root"


def _host_bits(content: dict[str, Any]) -> None:
    content["admin"]["cidrs"] = ["192.0.2.1/24"]


def _no_network(content: dict[str, Any]) -> None:
    content["admin"]["cidrs"] = ["everywhere"]


def _no_callable(content: dict[str, Any]) -> None:
    content["application"]["wsgi"] = "project.wsgi"


def _no_workers(content: dict[str, Any]) -> None:
    content["application"]["workers"] = 0


def _partitions_no_list(content: dict[str, Any]) -> None:
    content["disk"]["partitions"][0] = "/"


def _exec_logs(content: dict[str, Any]) -> None:
    partition(content, "/var/log")["options"].remove("noexec")


def _noexec_var(content: dict[str, Any]) -> None:
    partition(content, "/var")["options"].append("noexec")


def _read_only_root(content: dict[str, Any]) -> None:
    partition(content, "/")["options"].append("ro")


def _swap_option(content: dict[str, Any]) -> None:
    partition(content, "/home")["options"].append("usrquota")


def _tiny_partition(content: dict[str, Any]) -> None:
    partition(content, "/home")["size"] = "64M"


def _no_home(content: dict[str, Any]) -> None:
    content["disk"]["partitions"].remove(partition(content, "/home"))


def _two_homes(content: dict[str, Any]) -> None:
    content["disk"]["partitions"].append(dict(partition(content, "/home")))


def _relative_mount(content: dict[str, Any]) -> None:
    content["disk"]["partitions"].append({"mount": "srv", "size": "1G"})


def _xfs(content: dict[str, Any]) -> None:
    partition(content, "/home")["filesystem"] = "xfs"


def _small_disk(content: dict[str, Any]) -> None:
    content["disk"]["size"] = "10G"


MOUNTS = ["/", "/var", "/var/log", "/var/log/audit", "/var/tmp", "/home", "/var/www", "/var/cache/nginx"]
OPTIONS = "defaults, discard, lazytime, noatime, nodev, nodiratime, noexec, nosuid, relatime"
CIDR = "write a network such as 192.0.2.0/24 or 2001:db8::/32"
HOST_BITS = "has host bits set: an address within a network; write 192.0.2.0/24 if you mean all of it"
NO_NETWORK = "write a network such as 192.0.2.0/24 or 2001:db8::/64"
CALLABLE = "write module:callable as Python names them, such as MySite.wsgi:application"
MISTAKES: list[tuple[Callable[[dict[str, Any]], None], list[str]]] = [
    (
        _unknown_top,
        [
            f"swap: '2G': unknown key; known are {KEYS}",
        ],
    ),
    (_unknown_nested, ["admin.password: 'x': unknown key; known are cidrs, user"]),
    (_no_name, ["name: None: this key is missing: add it"]),
    (_root_as_admin, ["admin.user: 'root': root is never the administrator: write another name"]),
    (_host_bits, [f"admin.cidrs: '192.0.2.1/24': {HOST_BITS}"]),
    (_no_network, [f"admin.cidrs: 'everywhere': {CIDR}", f"admin.cidrs: 'everywhere': {NO_NETWORK}"]),
    (_no_callable, [f"application.wsgi: 'project.wsgi': {CALLABLE}"]),
    (_no_workers, ["application.workers: 0: write a whole number from 1 to 64"]),
    (
        _partitions_no_list,
        [
            "disk.partitions[0]: '/': write a mapping (key: value)",
            "disk.partitions[0].mount: None: this key is missing: add it",
            "disk.partitions[0].size: None: this key is missing: add it",
            f"disk.partitions: {['', *MOUNTS[1:]]}: / is missing (requirement R5): add it",
        ],
    ),
    (
        _exec_logs,
        [
            (
                "disk.partitions[2].options: ['noatime', 'nodev', 'nosuid']: /var/log must be mounted noexec "
                "(requirement R6): add it"
            )
        ],
    ),
    (
        _noexec_var,
        ["disk.partitions[1].options: 'noexec': the system cannot work with /var mounted noexec: remove it"],
    ),
    (
        _read_only_root,
        [
            f"disk.partitions[0].options: 'ro': unknown mount option; known are {OPTIONS}",
            "disk.partitions[0].options: 'ro': the system cannot work with / mounted ro: remove it",
        ],
    ),
    (
        _swap_option,
        [f"disk.partitions[5].options: 'usrquota': unknown mount option; known are {OPTIONS}"],
    ),
    (
        _tiny_partition,
        ["disk.partitions[5].size: '64M': too small for ext4 with a journal: write 128M or more"],
    ),
    (
        _no_home,
        [(f"disk.partitions: {[mount for mount in MOUNTS if mount != '/home']}: /home is missing (requirement R5): add it")],
    ),
    (_two_homes, ["disk.partitions: '/home': this mount point stands there twice: remove one"]),
    (_relative_mount, ["disk.partitions[8].mount: 'srv': write an absolute path such as /var/log"]),
    (
        _xfs,
        ["disk.partitions[5].filesystem: 'xfs': write ext4: the one file system that is supported"],
    ),
    (
        _small_disk,
        ["disk.size: '10240M': the partitions need 10416M: enlarge the disk or shrink a partition"],
    ),
]


@pytest.mark.parametrize(("spoil", "expected"), MISTAKES, ids=lambda value: getattr(value, "__name__", ""))
def test_a_mistake_is_told_with_its_remedy(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], None], expected: list[str]
) -> None:
    content = golden()
    spoil(content)
    assert problems(tmp_path, content) == expected


@pytest.mark.parametrize("mount", [mount for mount, options in specs.REQUIRED_OPTIONS.items() if options])
def test_every_hardening_option_is_demanded(tmp_path: Path, mount: str) -> None:
    for option in specs.REQUIRED_OPTIONS[mount]:
        content = golden()
        partition(content, mount)["options"].remove(option)
        (problem,) = problems(tmp_path, content)
        assert f"{mount} must be mounted {option}" in problem


# --- many mistakes ----------------------------------------------------------------------------------------------------


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    content = golden(name="X Y", release="sid", swap="1G")
    content["disk"]["size"] = "much"
    content["admin"] = {"user": "0", "cidrs": []}
    with pytest.raises(SpecError) as caught:
        specs.load(write_spec(tmp_path, content))
    assert caught.value.exit_code == 2
    assert caught.value.render() == (
        f"{tmp_path}/golden.yaml has 5 problems\n"
        f"    name: 'X Y': {HOST}\n"
        "    release: 'sid': write trixie: the one Debian release that is supported\n"
        "    disk.size: 'much': write a size such as 512M, 5G or 1T (binary units)\n"
        "    admin.user: '0': write a user name: lower case letters, digits, hyphens\n"
        f"    swap: '1G': unknown key; known are {KEYS}\n"
        "  -> correct golden.yaml and run again"
    )


def test_an_empty_file_tells_every_missing_key(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        specs.load(write_spec(tmp_path, ""))
    said = caught.value.details.splitlines()
    assert said[0] == "the file: None: write a mapping (key: value)"
    for key in ("name", "version", "release", "hostname", "domain", "locale", "timezone", "disk.size"):
        assert f"{key}: None: this key is missing: add it" in said


def test_a_key_given_twice_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"golden\.yaml, line 2: duplicate key 'name'"):
        specs.load(write_spec(tmp_path, "name: one\nname: two\n"))


@pytest.mark.parametrize(
    ("mount", "options", "reason"),
    [
        ("/etc", [], "cannot be a partition"), ("/proc", [], "cannot be a partition"), ("/run", [], "cannot be a partition"),
        ("/tmp", [], "cannot be a partition"), ("/usr", [], "cannot be a partition"), ("/boot/efi", [], "cannot be a part"),
        ("/home/../x", [], "without . and .."), ("/var/run", [], "cannot be a partition"),
        ("/opt", ["noexec"], "programs run"),
        ("/var/cache", ["noexec"], "programs run"), ("/var/lib/dpkg/info", [], "cannot be a partition"),
        ("/optional", [], "cannot be a partition"), ("/srv", ["noexec", "nodev"], ""), ("/opt/app", ["nosuid"], ""),
        ("/var/lib/postgresql", ["noexec"], ""), ("/home/data", [], ""), ("/var/backups", [], ""),
    ],
)  # fmt: skip
def test_what_can_be_a_partition(tmp_path: Path, mount: str, options: list[str], reason: str) -> None:
    content = golden()
    content["disk"]["size"] = "64G"
    content["disk"]["partitions"].append({"mount": mount, "size": "1G", "options": options})
    if not reason:
        specs.load(write_spec(tmp_path, content))
        return
    (found,) = problems(tmp_path, content)
    assert reason in found


@pytest.mark.parametrize("user", ["www-data", "nginx", "daemon", "sudo", "adm", "golden-alert", "systemd-x", "postgres"])
def test_an_administrator_has_a_name_of_his_own(tmp_path: Path, user: str) -> None:
    content = golden()
    content["admin"]["user"] = user
    assert problems(tmp_path, content) == [
        f"admin.user: {user!r}: an account or a group of the system has this name: write another one"
    ]


@pytest.mark.parametrize("wsgi", ["MySite.wsgi:application", "a.b_C1:App"])
def test_callables_with_capitals(tmp_path: Path, wsgi: str) -> None:
    content = golden()
    content["application"]["wsgi"] = wsgi
    assert specs.load(write_spec(tmp_path, content)).application.wsgi == wsgi
