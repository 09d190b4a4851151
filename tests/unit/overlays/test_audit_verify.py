"""golden-verify's checks: each runs on a correct machine, and on the same machine with one error."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from build.core import run
from build.spec.layers import Stack
from tests.patience import PATIENCE_SECONDS
from tests.unit.golden_modules import golden_module
from tests.unit.helpers import LAYERS, ROOT, every_layer

OVERLAYS = ROOT / "overlays"
STATUS = (
    "Name:\tnginx\nUid:\t{user}\t{user}\t{user}\t{user}\nCapPrm:\t0000000000000000\nCapEff:\t{effective}\n"
    "CapBnd:\t0000000000000400\nCapAmb:\t0000000000000000\nNoNewPrivs:\t{fixed}\nSeccomp:\t{seccomp}\n"
)
LISTENING = (
    "tcp LISTEN 0 4096 0.0.0.0:443 0.0.0.0:*\ntcp LISTEN 0 128 [::]:22 [::]:*\nudp UNCONN 0 0 127.0.0.1:323 0.0.0.0:*\n"
)


@pytest.fixture(scope="module")
def verify() -> Any:
    """The module of the image."""
    return golden_module("golden.verify")


class Machine:
    """A machine made of files in a directory and of recorded programs; replaces golden.verify.System."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.said: dict[str, tuple[int, str]] = {"systemd-detect-virt": (1, "")}
        self.running: dict[str, list[Path]] = {}
        self.units: dict[str, dict[str, str]] = {}

    def path(self, name: str) -> Path:
        return self.root / name.lstrip("/")

    def write(self, name: str, text: str, mode: int = 0o644) -> Path:
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path

    def expect(self, requests: Any) -> None:
        list(requests)

    def run(self, argv: Sequence[str]) -> tuple[int, str]:
        return next(said for name, said in self.said.items() if name in argv)

    def properties(self, unit: str, _names: Any) -> Mapping[str, str]:
        return self.units[unit]

    def processes(self, unit: str) -> list[Path]:
        return self.running.get(unit, [])


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def run_nginx(machine: Machine, **changes: object) -> None:
    values = {"user": os.getuid(), "effective": "0000000000000000", "fixed": 1, "seccomp": 2} | changes
    machine.running["nginx.service"] = [machine.write("/proc/7/status", STATUS.format(**values)).parent]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, ""),
        ({"user": 54321}, "runs as 54321"),
        ({"effective": "0000000000000002"}, "has CapEff 0x2"),
        ({"fixed": 0}, "may gain privileges"),
        ({"seccomp": 0}, "no system call filter"),
    ],
)
def test_processes(verify: Any, machine: Machine, changes: dict[str, object], problem: str) -> None:
    run_nginx(machine, **changes)
    check = {"unit": "nginx.service", "user": verify._user(os.getuid()), "at_least": 1, "bounding": 0x400}
    found = verify.processes(machine, check)
    assert problem in " ".join(found)
    assert bool(found) is bool(problem)


def test_a_service_that_does_not_run_fails(verify: Any, machine: Machine) -> None:
    assert verify.processes(machine, {"unit": "nginx.service", "user": "nginx", "at_least": 2}) != []
    assert verify.read_only(machine, {"unit": "nginx.service", "but": []}) != []


def test_a_process_that_ends_while_it_is_read_is_no_fault(verify: Any, machine: Machine, tmp_path: Path) -> None:
    """As the workers of PostgreSQL do; a service without any process that can be read is one still."""
    machine.write("/sys/module/apparmor/parameters/enabled", "Y\n")
    run_nginx(machine)
    machine.write("/proc/7/attr/current", "nginx (enforce)\n")
    machine.write("/proc/7/mountinfo", "1 1 0:1 / /etc ro,noatime shared:1 - ext4 x x\n")
    machine.running["nginx.service"] = [tmp_path / "proc/8", *machine.running["nginx.service"]]
    check = {"unit": "nginx.service", "user": verify._user(os.getuid()), "at_least": 1, "bounding": 0x400}
    assert verify.processes(machine, check) == []
    assert verify.read_only(machine, {"unit": "nginx.service", "but": []}) == []
    assert verify.confined(machine, {"units": ["nginx.service"]}) == []
    machine.running["nginx.service"] = [tmp_path / "proc/8"]
    assert verify.read_only(machine, {"unit": "nginx.service", "but": []}) == ["nginx.service has no process"]


def test_more_in_the_bounding_set_than_allowed(verify: Any, machine: Machine) -> None:
    run_nginx(machine)
    check = {"unit": "nginx.service", "user": verify._user(os.getuid()), "at_least": 1}
    assert "CapBnd 0x400" in " ".join(verify.processes(machine, check))


@pytest.mark.parametrize(("line", "problems"), [("rw - ext4", 1), ("ro - ext4", 0), ("rw - tmpfs", 0)])
def test_read_only(verify: Any, machine: Machine, line: str, problems: int) -> None:
    options, kind = line.split(" - ")
    process = machine.write("/proc/7/mountinfo", f"1 1 0:1 / /etc {options},noatime shared:1 - {kind} x x\n").parent
    machine.running["nginx.service"] = [process]
    found = verify.read_only(machine, {"unit": "nginx.service", "but": ["/var/lib/nginx"]})
    assert len(found) == problems


@pytest.mark.parametrize(("label", "good"), [("nginx (enforce)", True), ("nginx (complain)", False), ("unconfined", False)])
def test_confined(verify: Any, machine: Machine, label: str, *, good: bool) -> None:
    with pytest.raises(verify.Skip):
        verify.confined(machine, {"units": ["nginx.service"]})
    machine.write("/sys/module/apparmor/parameters/enabled", "Y\n")
    machine.running["nginx.service"] = [machine.write("/proc/7/attr/current", f"{label}\n").parents[1]]
    assert bool(verify.confined(machine, {"units": ["nginx.service"]})) is not good


def test_secrets(verify: Any, machine: Machine) -> None:
    check = {"files": ["/etc/credstore/key"]}
    with pytest.raises(LookupError):
        verify.secrets(machine, check)
    machine.write("/etc/credstore/key", "0123456789abcdef0123\n")
    machine.write("/proc/7/cmdline", "python\0app\0")
    machine.write("/proc/7/environ", "HOME=/\0")
    assert verify.secrets(machine, check) == []
    machine.write("/proc/7/environ", "KEY=0123456789abcdef0123\0")
    assert verify.secrets(machine, check) != []


def test_access(verify: Any, machine: Machine) -> None:
    owner = f"{verify._user(os.getuid())}:{verify._group(os.getgid())}"
    key = machine.write("/etc/key", "", 0o600)
    check = {"paths": {"/etc/key": f"{owner} 600"}}
    assert verify.access(machine, check) == []
    key.chmod(0o644)
    assert verify.access(machine, check) == [f"{key} is {owner} 644"]
    key.unlink()
    assert verify.access(machine, check) == ["/etc/key is not there"]


def test_absent_and_trees(verify: Any, machine: Machine) -> None:
    file = machine.write("/var/www/a/b.css", "")
    me = verify._user(os.getuid())
    assert verify.absent(machine, {"paths": ["/var/www/**/*.py"]}) == []
    assert verify.trees(machine, {"trees": ["/var/www"], "not_of": ["nobody"], "not_mode": "022"}) == []
    file.chmod(0o666)
    assert len(verify.trees(machine, {"trees": ["/var/www"], "not_of": ["nobody"], "not_mode": "022"})) == 1
    assert len(verify.trees(machine, {"trees": ["/var/www"], "not_of": [me], "not_mode": "0"})) == 2
    code = machine.write("/var/www/a/b.py", "")
    assert verify.absent(machine, {"paths": ["/var/www/**/*.py"]}) == [str(code)]
    with pytest.raises(LookupError):
        verify.trees(machine, {"trees": ["/srv/gone"], "not_of": [], "not_mode": "0"})


def test_mounts(verify: Any, machine: Machine) -> None:
    check = {"mounts": {"/var/log": ["nodev", "noexec"]}}
    machine.write("/proc/1/mountinfo", "1 1 8:1 / /var/log rw,nodev,noexec shared:1 - ext4 /dev/sda1 rw\n")
    assert verify.mounts(machine, check) == []
    machine.write("/proc/1/mountinfo", "1 1 8:1 / /var/log rw,nodev shared:1 - ext4 /dev/sda1 rw\n")
    assert verify.mounts(machine, check) == ["/var/log lacks noexec"]
    machine.write("/proc/1/mountinfo", "1 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n")
    assert verify.mounts(machine, check) == ["/var/log is not a mount point"]


def test_what_a_container_cannot_show_is_skipped(verify: Any, machine: Machine) -> None:
    check = {"check": "mounts", "title": "mounts", "ids": ["R5"], "mounts": {"/var/log": []}, "own_kernel": True}
    machine.write("/proc/1/mountinfo", "1 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n")
    assert verify.verify([check], machine)["checks"][0]["result"] == "FAIL"
    machine.said["systemd-detect-virt"] = (0, "")
    assert verify.verify([check], machine)["checks"][0]["result"] == "SKIP"


@pytest.mark.parametrize(
    ("passwd", "shadow", "problems"),
    [
        ("", "", 0),
        ("toor:x:0:0::/:/usr/sbin/nologin\n", "", 1),
        ("app:x:200:200::/:/bin/sh\n", "", 1),
        ("", "app:$y$j9T$x:1:::::: \n", 1),
        ("", "app::1::::::\n", 1),
    ],
)
def test_accounts(verify: Any, machine: Machine, passwd: str, shadow: str, problems: int) -> None:
    machine.write("/etc/passwd", f"root:x:0:0::/root:/bin/bash\nadmin:x:1000:1000::/home/admin:/bin/bash\n{passwd}")
    machine.write("/etc/shadow", f"root:*:1::::::\nadmin:!:1::::::\n{shadow}")
    assert len(verify.accounts(machine, {"shells": ["root"]})) == problems


def test_sysctl(verify: Any, machine: Machine) -> None:
    machine.write("/etc/sysctl.d/10-a.conf", "# why\nkernel.one = 1\nkernel.gone=1\n")
    machine.write("/etc/sysctl.d/20-b.conf", "-kernel.one=2\n")
    machine.said["grep"] = (2, "/proc/sys/kernel/one:2\n")
    assert verify.sysctl(machine, {"files": ["*.conf"]}) == []
    machine.said["grep"] = (0, "/proc/sys/kernel/one:1\n/proc/sys/kernel/gone:1\n")
    assert verify.sysctl(machine, {"files": ["*.conf"]}) == ["kernel.one is 1, should be 2"]
    machine.said["grep"] = (1, "Failed to start a unit\n")
    with pytest.raises(ValueError, match="Failed to start"):
        verify.sysctl(machine, {"files": ["*.conf"]})
    with pytest.raises(LookupError):
        verify.sysctl(machine, {"files": ["none*"]})


@pytest.mark.parametrize(
    ("line", "problems"),
    [("", 0), ("tcp LISTEN 0 1 0.0.0.0:5432 0.0.0.0:*\n", 1), ("udp UNCONN 0 0 *:514 *:*\n", 1),
     ("tcp LISTEN 0 1 [::1]:5432 [::]:*\n", 0), ("udp UNCONN 0 0 10.0.2.15%ens3:68 0.0.0.0:*\n", 0)],
)  # fmt: skip
def test_listeners(verify: Any, machine: Machine, line: str, problems: int) -> None:
    machine.said["ss"] = (0, LISTENING + line)
    check = {"ports": ["tcp/22", "tcp/443"], "also": ["udp/68"]}
    assert len(verify.listeners(machine, check)) == problems
    assert "tcp/80 does not listen" in verify.listeners(machine, {**check, "ports": ["tcp/22", "tcp/443", "tcp/80"]})


def test_certificates(verify: Any, machine: Machine) -> None:
    """Each certificate of a file is looked at; a file that a site does not have is no problem."""
    chain, gone = "/run/golden/chain.pem", "/run/golden/other.pem"
    check = {"files": [chain, gone], "days": 21}
    now = datetime(2026, 11, 30, tzinfo=UTC)
    assert verify.certificates(machine, check, now=now) == []
    machine.write(chain, "PEM")
    life = "            Not Before: {}\n            Not After : {}\n        Subject: {}\n"
    good = life.format("Dec 22 00:00:00 2025 GMT", "Dec 22 00:00:00 2026 GMT", "CN=web1")
    short = life.format("Nov  1 00:00:00 2026 GMT", "Dec 15 00:00:00 2026 GMT", "CN=of 45 days, by ACME")
    late = life.format("Dec  6 00:41:26 2025 GMT", "Dec  6 00:41:26 2026 GMT", "CN=an authority")
    machine.said[chain] = (0, good + short)
    assert verify.certificates(machine, check, now=now) == []
    machine.said[chain] = (0, good + late)
    assert verify.certificates(machine, check, now=now) == [f"{chain}: CN=an authority ends on Dec  6 00:41:26 2026 GMT"]
    for unread in ((1, "Could not read"), (0, "0: Private key")):
        machine.said[chain] = unread
        assert verify.certificates(machine, check, now=now) == [f"{chain}: no certificate can be read"]


def test_openssl_prints_what_the_check_reads(verify: Any, tmp_path: Path) -> None:
    """The real openssl, two certificates in one file."""
    key, one, both = (tmp_path / name for name in ("key.pem", "one.pem", "both.pem"))
    request = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "40"]
    run.run([*request, "-subj", "/CN=web1", "-keyout", key, "-out", one], timeout=PATIENCE_SECONDS)
    both.write_bytes(one.read_bytes() * 2)
    system = verify.System()
    assert verify.certificates(system, {"files": [str(both)], "days": 21}) == []
    later = datetime.now(UTC) + timedelta(days=35)
    found = verify.certificates(system, {"files": [str(both)], "days": 21}, now=later)
    assert len(found) == 2
    assert "CN" in found[0]
    assert "web1" in found[0]
    assert verify.certificates(system, {"files": [str(key)], "days": 21}) == [f"{key}: no certificate can be read"]


def test_programs(verify: Any, machine: Machine) -> None:
    check = {"programs": [{"run": ["sshd", "-T"], "says": ["^permitrootlogin no$"], "never": ["^gateway.*$"]}]}
    machine.said["sshd"] = (0, "port 22\npermitrootlogin no\n")
    assert verify.programs(machine, check) == []
    machine.said["sshd"] = (0, "permitrootlogin yes\ngatewayports yes\n")
    assert verify.programs(machine, check) == ["sshd does not print ^permitrootlogin no$", "sshd prints gatewayports yes"]
    machine.said["sshd"] = (255, "permitrootlogin no\nbad key\n")
    assert verify.programs(machine, check) == ["sshd ended with 255: bad key"]


def test_units_and_presets(verify: Any, machine: Machine) -> None:
    machine.units["nginx.service"] = {"ActiveState": "active"}
    assert verify.units(machine, {"units": {"nginx.service": {"ActiveState": "active"}}}) == []
    assert verify.units(machine, {"units": {"nginx.service": {"ActiveState": "active", "User": "nginx"}}}) != []
    machine.said["systemctl"] = (0, "Id=a.timer\nActiveState=active\nConditionResult=yes\nLoadState=loaded\n")
    with pytest.raises(LookupError):
        verify.presets(machine, {"kinds": ["timer"]})
    machine.write("/etc/systemd/system-preset/10-a.preset", "enable a.timer\nenable b.service\n")
    assert verify.presets(machine, {"kinds": ["timer"]}) == []
    machine.said["systemctl"] = (0, "Id=a.timer\nActiveState=inactive\nConditionResult=yes\nLoadState=not-found\n")
    assert verify.presets(machine, {"kinds": ["timer"]}) == ["a.timer is inactive (not-found)"]


def test_failed_units(verify: Any, machine: Machine) -> None:
    machine.said["systemctl"] = (0, "golden-verify.service loaded failed failed Check\n")
    assert verify.failed_units(machine, {"but": ["golden-verify.service"]}) == []
    assert verify.failed_units(machine, {"but": []}) == ["golden-verify.service failed"]


def test_answers_of_the_web_server(verify: Any) -> None:
    web = verify.web_client
    wanted = {"status": 200, "headers": {"X-Frame-Options": "^DENY$"}, "no_headers": ["X-Powered-By"], "body": "ok"}
    good = web.Answer("", 200, [("X-Frame-Options", "DENY"), ("Server", "nginx")], "ok")
    assert web.judge(good, wanted) == []
    assert web.judge(web.Answer("", 200, [*good.headers, ("x-frame-options", "DENY")], "ok"), wanted) != []
    assert web.judge(web.Answer("", 200, [*good.headers, ("X-Powered-By", "x")], "ok"), wanted) != []
    assert web.judge(web.Answer("", 200, [("X-Frame-Options", "DENY"), ("Server", "nginx/1.26")], "ok"), wanted) != []
    assert web.judge(web.Answer("", 500, good.headers, "ok"), wanted) != []
    assert web.judge(web.Answer("", 200, good.headers, ""), wanted) != []
    assert web.judge(web.Answer("TimeoutError: "), wanted) != []
    assert web.judge(web.Answer("TimeoutError: "), {}) == []
    assert web.judge(good, {}) != []


def test_requests_go_out_together(verify: Any) -> None:
    asked = []

    class Asked(verify.System):  # type: ignore[misc]
        def run(self, argv: Sequence[str]) -> tuple[int, str]:
            asked.append(json.loads(argv[-1]))
            return 0, json.dumps([{"status": 404 if one["path"] == "/absent" else 200} for one in asked[-1]])

    checks = [
        {"check": "web", "title": path, "ids": ["R1"],
         "requests": [{"name": path, "ask": {"path": path}, "status": status}]}
        for path, status in (("/", 200), ("/absent", 404), ("/wrong", 404))
    ]  # fmt: skip
    result = verify.verify(checks, Asked())
    assert [one["problems"] for one in result["checks"]] == [[], [], ["/wrong: answered 200, not 404"]]
    assert len(asked) == 1
    assert sorted(one["path"] for one in asked[0]) == ["/", "/absent", "/wrong"]


def test_a_check_that_breaks_has_failed(verify: Any, machine: Machine) -> None:
    checks = [
        {"check": "accounts", "title": "no files", "ids": ["R1"], "shells": []},
        {"check": "confined", "title": "no AppArmor", "ids": ["R2"], "units": []},
    ]
    result = verify.verify(checks, machine)
    assert [one["result"] for one in result["checks"]] == ["FAIL", "SKIP"]
    assert not result["ok"]


def test_only_skipped_checks_prove_nothing(verify: Any, machine: Machine) -> None:
    checks = [{"check": "confined", "title": "no AppArmor", "ids": ["R2"], "units": []}]
    assert not verify.verify(checks, machine)["ok"]


def test_a_layer_brings_a_kind_of_check(verify: Any, machine: Machine) -> None:
    assert verify.kind("accounts") is verify.accounts
    find = golden_module("golden.verify_kinds.contract").find
    assert verify.kind("contract") is find
    with pytest.raises(verify.Skip, match="no contract"):
        find(machine, {})
    result = verify.verify([{"check": "gone", "title": "a layer that is gone", "ids": ["R1"]}], machine)
    assert result["checks"][0]["problems"] == [
        "the check could not be made: ValueError: no layer has the kind of check 'gone'"
    ]


# --- the parts of the layers ------------------------------------------------------------------------------------------


def write_part(directory: Path, name: str, *entries: Mapping[str, Any]) -> None:
    (directory / f"{name}.yaml").write_text(yaml.safe_dump([dict(entry) for entry in entries]))


CHECK = {"name": "ports", "check": "listeners", "title": "Ports", "ids": ["R3"], "ports": ["tcp/22"]}


def test_parts_are_one_list(tmp_path: Path) -> None:
    write_part(tmp_path, "10-base", CHECK, {"check": "accounts", "title": "Accounts", "ids": ["R1"], "paths": {"/a": "x"}})
    write_part(tmp_path, "50-web", {"adds_to": "ports", "ids": ["R10", "R3"], "ports": ["tcp/80"], "also": ["udp/68"]})
    write_part(tmp_path, "05-late", {"adds_to": "ports", "paths": {"/b": "y"}}, {"adds_to": "ports", "paths": {"/b": "y"}})
    ports, accounts = golden_module("golden.check_list").read(tmp_path)
    assert ports == CHECK | {
        "ids": ["R3", "R10"], "ports": ["tcp/22", "tcp/80"], "also": ["udp/68"], "paths": {"/b": "y"},
    }  # fmt: skip
    assert accounts["title"] == "Accounts"


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ([{"check": "units", "title": "x"}], "entry 1: ids missing"),
        ([CHECK, CHECK], "entry 2: name: 'ports': another check has this name"),
        ([CHECK, {"adds_to": "port", "ports": []}], "entry 2: adds_to: 'port': no check has this name"),
        ([CHECK, {"adds_to": "ports", "title": "x"}], "title: 'x': only lists and mappings can be added"),
        ([CHECK | {"paths": {"/a": 1}}, {"adds_to": "ports", "paths": {"/a": 2}}], "'/a': the check has another value"),
        (["x"], "10-base.yaml is not a list of checks"),
        ("[", "10-base.yaml: while parsing"),
        ([], "has no check"),
    ],
)
def test_a_wrong_part_is_refused(tmp_path: Path, entries: Any, problem: str) -> None:
    (tmp_path / "10-base.yaml").write_text(entries if isinstance(entries, str) else yaml.safe_dump(entries))
    with pytest.raises(golden_module("golden.core").Problem) as caught:
        golden_module("golden.check_list").read(tmp_path)
    assert problem in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert caught.value.hint


def parts_of(stack: Stack, directory: Path) -> Path:
    """Write the parts of an image with these layers."""
    for node in stack.below(["/usr/lib/golden/verify.d/"]):
        (directory / Path(node.path).name).write_bytes(node.content)
    return directory


def test_the_list_of_checks_is_sound(verify: Any, tmp_path: Path) -> None:
    checks = golden_module("golden.check_list").read(parts_of(every_layer(), tmp_path))
    kinds = {module.stem for module in OVERLAYS.glob("**/golden/verify_kinds/*.py")}
    assert {check["check"] for check in checks} == {*verify.KINDS, *kinds}, "a kind without a check, or a check of no kind"
    assert all(callable(verify.kind(check["check"])) for check in checks)
    assert len({check["title"] for check in checks}) == len(checks)
    assert all(check["ids"] and all(name.startswith("R") for name in check["ids"]) for check in checks)


@pytest.mark.parametrize("name", [name for name in LAYERS if name not in ("10-base", "80-firstboot")])
def test_the_checks_of_the_other_layers_fit_without_one(tmp_path: Path, name: str) -> None:
    assert golden_module("golden.check_list").read(parts_of(every_layer(without=name), tmp_path))
