"""The data disk of a clone: its lists, its copies, what is refused, and a power failure at every step."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.unit.golden_modules import golden_module
from tests.unit.helpers import ROOT

golden = golden_module("golden.core")
kept_module = golden_module("golden.kept")
data = golden_module("golden.data")
command = golden_module("golden.commands.data")

LISTS = sorted(ROOT.glob("overlays/*/rootfs/usr/lib/golden/data.d/*.toml"))
KEPT = kept_module.Kept(
    directories=(
        kept_module.Directory("/etc/golden", replace=("site.yaml.example",)),
        kept_module.Directory("/opt/app", replace=("releases/image",)),
        kept_module.Directory("/var/lib/aide", set_aside=("aide.db",)),
        kept_module.Directory("/var/www", merge=("static",)),
    ),
    files=("/etc/ssl/app.key", "/etc/ssl/app.pem"), versions={"postgresql": 17},
)  # fmt: skip


class PowerCut(Exception):
    """The machine lost its power."""


class Bench:
    """A machine and its disk, as directories: mkfs empties the disk, mount shows it, each program may be a power failure."""

    def __init__(self, place: Path) -> None:
        self.backing, self.place = place / "backing", place
        self.backing.mkdir()
        self.kind = self.label = ""
        self.steps, self.cut_at = 0, 0
        self.size, self.resized, self.checked = 4096000, 0, False
        self.bound: list[tuple[str, str]] = []
        self.system("one")

    def system(self, name: str) -> None:
        """Start another system, which the image of that name has just made."""
        self.name, self.root = name, self.place / name
        if not self.root.exists():
            for path, content in {
                "etc/golden/site.yaml.example": name, "opt/app/releases/image/code": name, "var/lib/aide/aide.db": name,
                f"var/www/static/{name}.css": name, "etc/ssl/app.key": name, "etc/ssl/app.pem": name,
            }.items():  # fmt: skip
                (self.root / path).parent.mkdir(parents=True, exist_ok=True)
                (self.root / path).write_text(content)
        (self.root / "machine-id").write_text(f"{name}\n")
        self.own = self.root / "own-site"
        self.unplug()

    def unplug(self) -> None:
        """End the system: nothing is mounted."""
        mounted = self.place / "mounted"
        if mounted.is_symlink():
            mounted.unlink()
        self.bound.clear()

    def step(self) -> None:
        """Count a step, or lose the power at it."""
        self.steps += 1
        if self.steps == self.cut_at:
            raise PowerCut

    def run(self, argv: Sequence[Any], **_options: Any) -> subprocess.CompletedProcess[bytes]:
        """Do what a program of the system would do."""
        words = [str(word) for word in argv]
        mounted = self.place / "mounted"
        done = subprocess.CompletedProcess[bytes](words, 0, b"", b"")
        if words[0] == "blkid":
            text = f"TYPE={self.kind}\nLABEL={self.label}\n"
            return subprocess.CompletedProcess(words, 0 if self.kind else 2, text.encode() if self.kind else b"", b"")
        self.step()
        if words[0] in ("dumpe2fs", "blockdev", "resize2fs", "e2fsck"):
            self.measure(words, done)
        elif words[0] == "mkfs.ext4":
            subprocess.run(["rm", "-rf", self.backing], check=True)
            self.backing.mkdir()
            self.kind, self.label = "ext4", words[words.index("-L") + 1]
        elif words[0] == "tune2fs":
            self.label = words[words.index("-L") + 1]
        elif words[0] == "mount" and "bind" in words[2].split(","):
            self.bound.append((words[-2], words[-1]))
        elif words[0] == "mount" and "remount" not in words[2]:
            mounted.rmdir()
            mounted.symlink_to(self.backing)
        elif words[0] == "umount":
            mounted.unlink(missing_ok=True)
        elif words[0] == "cp":
            subprocess.run(words, check=True)
        self.step()
        return done

    def measure(self, words: list[str], done: subprocess.CompletedProcess[bytes]) -> None:
        """Answer for the programs that measure, check and enlarge a file system of 1000 blocks."""
        if words[0] == "dumpe2fs":
            done.stdout = b"Block count:              1000\nBlock size:               4096\n"
        elif words[0] == "blockdev":
            done.stdout = str(self.size).encode()
        elif words[0] == "e2fsck":
            self.checked = "-f" in words
        else:
            assert not (self.place / "mounted").is_symlink()
            assert self.checked
            self.resized += 1

    def attach(self, *, expected: str = "") -> dict[str, Any]:
        """Do what the unit does at the start of the machine."""
        disk = data.probe(Path("/dev/bench"))
        store = kept_module.Store(self.place / "mounted", root=self.root)
        marker: dict[str, Any] = data.attach(KEPT, store, disk, own=self.own, expected=expected)
        return marker


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A machine with a blank disk."""
    made = Bench(tmp_path)
    monkeypatch.setattr(golden, "run", made.run)
    monkeypatch.setattr(kept_module, "flush", lambda _path: made.step())
    whole = golden.write_whole

    def write(path: Path, content: bytes, **options: Any) -> None:
        made.step()
        whole(path, content, **options)
        made.step()

    monkeypatch.setattr(golden, "write_whole", write)
    plain = data.new_marker
    monkeypatch.setattr(
        data, "new_marker", lambda site, kept: plain(site, kept, machine_id=made.root / "machine-id")
    )  # fmt: skip
    return made


def disk_files(bench: Bench) -> dict[str, str]:
    """Return the files on the disk."""
    return {str(path.relative_to(bench.backing)): path.read_text() for path in bench.backing.rglob("*") if path.is_file()}


def test_the_lists_of_the_layers_are_valid(tmp_path: Path) -> None:
    for path in LISTS:
        (tmp_path / path.name).write_bytes(path.read_bytes())
        assert path.stem == path.parents[5].name
    kept = kept_module.read(tmp_path)
    assert {"/var/lib/postgresql", "/etc/golden", "/var/www", "/opt/app"} <= {entry.path for entry in kept.directories}
    assert kept.versions == {"postgresql": 17}


def test_the_path_unit_watches_every_file_that_is_kept(tmp_path: Path) -> None:
    for path in LISTS:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    drop_ins = ROOT.glob("overlays/*/rootfs/etc/systemd/system/golden-data-save.path.d/*.conf")
    watched = {line for text in drop_ins for line in re.findall(r"(?m)^PathChanged=(.+)$", text.read_text())}
    assert watched == set(kept_module.read(tmp_path).files)


def test_the_version_of_the_database_is_that_of_the_packages() -> None:
    layer = ROOT / "overlays/30-postgresql"
    version = re.search(r"postgresql = (\d+)", (layer / "rootfs/usr/lib/golden/data.d/30-postgresql.toml").read_text())
    assert version
    assert f"- postgresql-{version[1]}\n" in (layer / "layer.yaml").read_text()


def test_mistakes_in_a_list_are_all_named(tmp_path: Path) -> None:
    (tmp_path / "50-x.toml").write_text(
        'other = 1\n[versions]\nx = "a"\n[[directory]]\npath = "relative"\noptions = ["suid"]\nkind = 1\n'
    )
    (tmp_path / "60-y.toml").write_text("not toml")
    (tmp_path / "70-z.toml").write_text('[[directory]]\npath = "/a"\n[[directory]]\npath = "/a"\n')
    with pytest.raises(golden.Problem) as caught:
        kept_module.read(tmp_path)
    for part in ("other", "versions: x", "'relative'", "options: suid", "kind: not a key", "60-y.toml", "/a is"):
        assert part in caught.value.brief


def test_a_blank_disk_gets_everything(bench: Bench) -> None:
    marker = bench.attach(expected="web1-0123")
    assert (bench.label, marker["site"], bench.own.read_text()) == ("golden-data", "web1-0123", "web1-0123\n")
    files = disk_files(bench)
    assert files["kept/opt/app/releases/image/code"] == "one"
    assert files["files/etc/ssl/app.key"] == "one"
    assert [target for _source, target in bench.bound] == [str(bench.root) + entry.path for entry in KEPT.directories]


def test_a_new_system_takes_the_data_and_brings_its_own_code(bench: Bench) -> None:
    bench.attach()
    (bench.backing / "kept/etc/golden/site.yaml").write_text("ours")
    bench.system("two")
    bench.attach()
    files = disk_files(bench)
    assert files["kept/etc/golden/site.yaml"] == "ours"
    assert files["kept/etc/golden/site.yaml.example"] == "two"
    assert files["kept/opt/app/releases/image/code"] == "two"
    assert {"kept/var/www/static/one.css", "kept/var/www/static/two.css", "kept/var/lib/aide/aide.db.former"} <= files.keys()
    assert "kept/var/lib/aide/aide.db" not in files
    assert (bench.root / "etc/ssl/app.key").read_text() == (bench.root / "etc/ssl/app.pem").read_text() == "one"


def test_a_disk_that_was_enlarged_is_used_in_full(bench: Bench) -> None:
    bench.attach()
    bench.unplug()
    bench.attach()
    assert bench.resized == 0
    bench.unplug()
    bench.size *= 2
    bench.attach()
    assert bench.resized == 1


def test_the_old_system_takes_the_disk_back(bench: Bench) -> None:
    bench.attach()
    bench.system("two")
    bench.attach()
    (bench.root / "etc/ssl/app.key").write_text("renewed")
    (bench.root / "etc/ssl/app.pem").write_text("renewed")
    bench.unplug()
    bench.attach()
    bench.system("one")
    bench.attach()
    assert (bench.root / "etc/ssl/app.key").read_text() == "renewed"
    assert disk_files(bench)["kept/opt/app/releases/image/code"] == "one"


def until_done(bench: Bench, begin: Callable[[], object], done: Callable[[], object]) -> int:
    """Cut the power at each step of ``begin`` in turn, start again, and check with ``done``; return the number of steps."""
    for cut in range(1, 500):
        begin()
        bench.steps, bench.cut_at = 0, cut
        try:
            bench.attach()
        except PowerCut:
            bench.cut_at = 0
            bench.unplug()
            bench.attach()
            done()
        else:
            done()
            return cut
    raise AssertionError("it never ends")


def test_a_power_cut_at_any_step_of_the_first_start(bench: Bench) -> None:
    def begin() -> None:
        bench.cut_at = 0
        bench.kind = bench.label = ""
        bench.own.unlink(missing_ok=True)
        bench.unplug()

    def done() -> None:
        assert bench.label == "golden-data"
        assert disk_files(bench)["kept/opt/app/releases/image/code"] == "one"
        assert disk_files(bench)["files/etc/ssl/app.pem"] == "one"
        assert len(bench.bound) == len(KEPT.directories)

    assert until_done(bench, begin, done) > 30


def test_a_power_cut_at_any_step_of_another_system(bench: Bench, tmp_path: Path) -> None:
    bench.attach()
    (bench.backing / "kept/etc/golden/site.yaml").write_text("ours")
    saved = tmp_path / "saved"
    subprocess.run(["cp", "-a", bench.backing, saved], check=True)

    def begin() -> None:
        bench.cut_at = 0
        subprocess.run(["rm", "-rf", bench.backing, tmp_path / "two"], check=True)
        subprocess.run(["cp", "-a", saved, bench.backing], check=True)
        bench.label = "golden-data"
        bench.system("two")

    def done() -> None:
        files = disk_files(bench)
        assert files["kept/etc/golden/site.yaml"] == "ours"
        assert files["kept/opt/app/releases/image/code"] == "two"
        assert {"kept/var/www/static/one.css", "kept/var/www/static/two.css"} <= files.keys()
        assert (bench.root / "etc/ssl/app.key").read_text() == "one"
        assert json.loads(files["site.json"])["system"] == "two"
        assert not [name for name in files if ".golden-" in name]

    assert until_done(bench, begin, done) > 30


def test_a_power_cut_while_files_are_saved_leaves_one_set(bench: Bench) -> None:
    bench.attach()
    store = kept_module.Store(bench.place / "mounted", root=bench.root)
    for cut in range(1, 20):
        for name in ("app.key", "app.pem"):
            (bench.root / "etc/ssl" / name).write_text(f"new {cut}")
        bench.steps, bench.cut_at = 0, cut
        try:
            store.save(KEPT)
        except PowerCut:
            pair = {(store.files / "etc/ssl" / name).read_text() for name in ("app.key", "app.pem")}
            assert len(pair) == 1
        else:
            break
        finally:
            bench.cut_at = 0
    assert cut > 1
    assert not store.save(KEPT)


@pytest.mark.parametrize(("change", "named"), [
    ({"site": "other"}, "belongs to the site other"), ({"layout": 2}, "has the layout 2"),
    ({"versions": {"postgresql": 18}}, "postgresql 18, which is newer"),
    ({"versions": {"postgresql": 16}}, "postgresql 16, which is older"),
])  # fmt: skip
def test_a_disk_that_does_not_fit_is_refused(bench: Bench, change: dict[str, Any], named: str) -> None:
    bench.attach()
    marker = json.loads((bench.backing / "site.json").read_text())
    (bench.backing / "site.json").write_text(json.dumps(marker | change))
    bench.unplug()
    before = disk_files(bench)
    with pytest.raises(golden.Problem, match=named):
        bench.attach()
    assert disk_files(bench) == before
    assert not (bench.place / "mounted").exists()
    assert not bench.bound


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"layout": "1", "site": "x", "system": "y"}'])
def test_a_damaged_marker_is_refused(bench: Bench, content: str | None) -> None:
    bench.attach()
    bench.unplug()
    (bench.backing / "site.json").unlink()
    if content is not None:
        (bench.backing / "site.json").write_text(content)
    with pytest.raises(golden.Problem, match=r"site\.json"):
        bench.attach()
    assert disk_files(bench)["kept/opt/app/releases/image/code"] == "one"


@pytest.mark.parametrize(("kind", "label"), [("xfs", ""), ("gpt", ""), ("ext4", "backup"), ("LVM2_member", "")])
def test_a_disk_with_something_else_on_it_is_refused(bench: Bench, kind: str, label: str) -> None:
    bench.kind, bench.label = kind, label
    with pytest.raises(golden.Problem, match=kind):
        bench.attach()
    assert (bench.kind, bench.label, bench.steps) == (kind, label, 0)


def test_a_blank_disk_in_place_of_the_sites_is_refused(bench: Bench) -> None:
    bench.attach(expected="web1")
    bench.unplug()
    bench.kind = bench.label = ""
    with pytest.raises(golden.Problem, match="the data disk of the site web1 is missing"):
        bench.attach()
    assert bench.kind == ""


def test_a_disk_without_room_is_refused_with_numbers(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_module, "_size", lambda _path: 1 << 50)
    with pytest.raises(golden.Problem, match=r"MiB free, and \d+ MiB have to be copied"):
        bench.attach()
    assert bench.label == "golden-new"


def test_two_disks_of_the_serial_number_are_refused(tmp_path: Path) -> None:
    for name in ("scsi-0QEMU_QEMU_HARDDISK_golden-data", "virtio-golden-data"):
        (tmp_path / f"real-{name}").touch()
        (tmp_path / name).symlink_to(tmp_path / f"real-{name}")
    with pytest.raises(golden.Problem, match="several disks"):
        data.find(wait=0, links=tmp_path)
    (tmp_path / "virtio-golden-data").unlink()
    (tmp_path / "scsi-0QEMU_QEMU_HARDDISK_golden-data-part1").symlink_to(tmp_path)
    assert data.find(wait=0, links=tmp_path) == tmp_path / "real-scsi-0QEMU_QEMU_HARDDISK_golden-data"


@pytest.mark.parametrize(("text", "site"), [("golden-data:web1-01ab\n", "web1-01ab"), ("Virtual Machine", ""), (None, "")])
def test_the_site_in_the_smbios(tmp_path: Path, text: str | None, site: str) -> None:
    path = tmp_path / "product_family"
    if text is not None:
        path.write_text(text)
    assert data.expected_site(path) == site


def test_a_wrong_site_in_the_smbios_is_named(tmp_path: Path) -> None:
    (tmp_path / "family").write_text("golden-data:../x")
    with pytest.raises(golden.Problem, match="family"):
        data.expected_site(tmp_path / "family")


def test_owners_whose_numbers_were_exchanged_keep_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeated at every file, as after a power cut: no owner is exchanged twice."""
    owners = {tmp_path / name: [uid, gid] for name, uid, gid in (("a", 101, 101), ("b", 102, 102), ("c", 0, 102))}
    for path in owners:
        path.touch()
    real = Path.lstat
    calls = {"left": 0}

    def lstat(path: Path) -> os.stat_result:
        status = list(real(path))
        if path in owners:
            status[4:6] = owners[path]
        return os.stat_result(status)

    def chown(path: Path, uid: int, gid: int, **_options: Any) -> None:
        calls["left"] -= 1
        if calls["left"] == 0:
            raise PowerCut
        owners[path] = [uid, gid]

    monkeypatch.setattr(Path, "lstat", lstat)
    monkeypatch.setattr(os, "chown", chown)
    change = kept_module.changes({"users": {"x": 101, "y": 102}, "groups": {"x": 101, "y": 102, "gone": 7}},
                                 {"users": {"x": 102, "y": 101}, "groups": {"x": 102, "y": 101}})  # fmt: skip
    assert change == {"users": {"101": 102, "102": 101}, "groups": {"101": 102, "102": 101}}
    for step in (kept_module.shift(change), kept_module.settle):
        calls["left"] = 2
        with pytest.raises(PowerCut):
            kept_module.chown([tmp_path], step)
        kept_module.chown([tmp_path], step)
    assert list(owners.values()) == [[102, 102], [101, 101], [0, 101]]


def test_a_disk_that_comes_while_the_services_run_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is used from the next start; after a refusal at this start the unit may try again."""
    for name in ("STARTED", "REFUSED"):
        monkeypatch.setattr(command, name, tmp_path / name.lower())
    monkeypatch.setattr(command, "RUN", tmp_path)
    monkeypatch.setattr(data, "MOUNTED", tmp_path / "disk")
    for name, value in (("expected_site", "web1"), ("own_site", "")):
        monkeypatch.setattr(data, name, lambda value=value: value)
    monkeypatch.setattr(data, "find", lambda **_options: None)
    (tmp_path / "started").touch()
    assert "next start" in command.attach()["reason"]
    (tmp_path / "started").unlink()
    with pytest.raises(golden.Problem, match="the data disk of the site web1 is missing"):
        command.attach()
    (tmp_path / "started").touch()
    with pytest.raises(golden.Problem, match="missing"):
        command.attach()
    assert "web1 is missing" in command.status()["reason"]
    assert not command.status()["ok"]
