"""The root file system: the order of the steps, the removal of secrets and state, and a manifest of every path."""

from __future__ import annotations

import hashlib
import io
import shlex
import tarfile
from pathlib import Path
from typing import Any

import pytest

from build.core import files, run
from build.core.errors import CommandFailed, StepFailed
from build.packages.apt import Mirrors
from build.rootfs import rootfs
from tests.fakes import Fakes
from tests.patience import PATIENCE_SECONDS
from tests.unit.helpers import entry, make_lock, make_spec, read_stack, write_layer

MIRRORS = Mirrors("http://one.example/debian", "http://one.example/debian-security")
# Unpacks nothing and runs nothing: the archive it leaves is the one beside it.
MMDEBSTRAP = """#!/bin/sh
for word in "$@"; do last=$target; target=$word; done
cp {tar} "$last"
"""


def hooks(tmp_path: Path) -> list[str]:
    """Return the hooks of an image with one of everything."""
    layer = write_layer(
        tmp_path, "40-app",
        {
            "/usr/lib/sysusers.d/app.conf": "u app\n", "/usr/lib/tmpfiles.d/app.conf": "d /srv/app\n",
            "/etc/tmpfiles.d/it's.conf": "d /x\n", "/etc/x": "x",
        },
        absent=["/etc/nginx/sites-enabled/default", "/etc/it's"],
        python={"venv": "/opt/app/venv", "requirements": "requirements.lock"},
        commands=[{"run": ["sh", "-c", "echo 'a  b' >$HOME/x"], "reason": "it must reach the shell as it stands"}],
    )  # fmt: skip
    (layer / "requirements.lock").touch()
    scratch = tmp_path / "scratch dir"
    scratch.mkdir()
    return rootfs._hooks(
        scratch, spec=make_spec(tmp_path), stack=read_stack(tmp_path, "40-app"), lock=make_lock(entry("x")),
        mirrors=MIRRORS, wheelhouses={"/opt/app/venv": tmp_path / "wheel house"},
    )  # fmt: skip


def place_of(hooks: list[str], part: str) -> int:
    (found,) = [number for number, hook in enumerate(hooks) if part in hook]
    return found


# --- the order of things ----------------------------------------------------------------------------------------------


def test_things_happen_in_their_order(tmp_path: Path) -> None:
    made = hooks(tmp_path)
    order = [
        '"$1"/etc/nginx/sites-enabled/default', "sysusers.tar", "systemd-sysusers", "layers.tar", "debian.sources",
        "/etc/hostname", "systemd-tmpfiles --create", 'chroot "$1" systemctl preset-all', "systemctl --global",
        "-m venv /opt/app/venv", "--require-hashes", "pip check", "pip uninstall", "compileall", "ssh_host_",
        "/etc/machine-id", "/var/log",
    ]  # fmt: skip
    places = [place_of(made, part) for part in order]
    assert places == sorted(places)
    command = place_of(made, "'echo '")
    assert place_of(made, "compileall") < command < place_of(made, "ssh_host_"), "commands come last, before the seal"


def test_every_hook_stops_at_the_first_mistake(tmp_path: Path) -> None:
    assert [hook for hook in hooks(tmp_path) if not hook.startswith("set -eu; ")] == []


def test_every_hook_is_a_program_the_shell_can_read(tmp_path: Path) -> None:
    for hook in hooks(tmp_path):
        run.run(["sh", "-n", "-c", hook], timeout=PATIENCE_SECONDS)


def test_a_command_reaches_the_image_word_by_word(tmp_path: Path, fakes: Fakes) -> None:
    made = hooks(tmp_path)
    fake = fakes.command("chroot")
    run.run(["sh", "-c", made[place_of(made, "'echo '")], "sh", "/the root"], timeout=PATIENCE_SECONDS)
    assert fake.calls()[0].argv == ["/the root", "sh", "-c", "echo 'a  b' >$HOME/x"]


def test_pip_installs_only_locked_wheels_and_leaves_itself_out(tmp_path: Path) -> None:
    made = hooks(tmp_path)
    install = made[place_of(made, "--require-hashes")]
    assert {"--no-index", "--no-compile", "--requirement"} <= set(shlex.split(install))
    assert "pip uninstall --quiet --yes pip" in made[place_of(made, "pip uninstall")]
    staged = made[place_of(made, ".whl")]
    assert shlex.quote(str(tmp_path / "wheel house")) in staged


def test_an_image_without_temporary_files_creates_none(tmp_path: Path) -> None:
    write_layer(tmp_path, "10-base", {"/etc/x": "x"})
    made = rootfs._hooks(
        tmp_path, spec=make_spec(tmp_path), stack=read_stack(tmp_path, "10-base"), lock=make_lock(entry("x")),
        mirrors=MIRRORS, wheelhouses={},
    )  # fmt: skip
    assert not any("systemd-tmpfiles" in hook or "venv" in hook for hook in made)


def test_the_images_archives_are_the_hosts_and_bound_to_the_keyring() -> None:
    keyring = "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    assert rootfs.deb822(MIRRORS, "trixie") == (
        "Types: deb\nURIs: http://one.example/debian\nSuites: trixie trixie-updates\nComponents: main\n"
        f"{keyring}\n"
        "Types: deb\nURIs: http://one.example/debian-security\nSuites: trixie-security\nComponents: main\n"
        f"{keyring}"
    )


# --- the seal ---------------------------------------------------------------------------------------------------------

SECRETS = (
    "etc/ssh/ssh_host_ed25519_key", "etc/ssh/ssh_host_rsa_key.pub", "etc/ssl/private/ssl-cert-snakeoil.key",
    "var/lib/systemd/random-seed", "var/lib/systemd/credential.secret", "etc/shadow-", "root/.bash_history",
    "var/lib/cloud/instance/user-data.txt", "var/lib/dbus/machine-id", "var/log/dpkg.log", "var/log/apt/history.log",
    "var/tmp/left", "etc/apt/sources.list", "var/lib/dpkg/status-old",
)  # fmt: skip
KEPT = ("etc/ssh/sshd_config", "etc/shadow", "var/lib/dpkg/status", "etc/apt/sources.list.d/debian.sources")


def test_the_seal_removes_what_makes_clones_alike(tmp_path: Path) -> None:
    root = tmp_path / "the root"
    for name in (*SECRETS, *KEPT, "etc/machine-id"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("a secret")
    for hook in rootfs._seal_hooks():
        run.run(["sh", "-c", hook, "sh", root], timeout=PATIENCE_SECONDS)
    assert [name for name in SECRETS if (root / name).exists()] == []
    assert [name for name in KEPT if not (root / name).exists()] == []
    assert (root / "etc/machine-id").read_text() == ""
    assert (root / "etc/machine-id").stat().st_mode & 0o777 == 0o444
    assert (root / "var/log/apt").is_dir(), "directories of logs stay"


def test_the_seal_does_not_mind_what_is_not_there(tmp_path: Path) -> None:
    for name in ("etc", "var/log", "var/tmp"):
        (tmp_path / name).mkdir(parents=True)
    for hook in rootfs._seal_hooks():
        run.run(["sh", "-c", hook, "sh", tmp_path], timeout=PATIENCE_SECONDS)


# --- archive, manifest and squashfs -----------------------------------------------------------------------------------


def member(name: str, kind: bytes = tarfile.REGTYPE, content: bytes = b"", **values: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(content)
    for key, value in {"mtime": 1795140670, **values}.items():
        setattr(info, key, value)
    return info, content


def write_tar(path: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        for info, content in (
            member("./", tarfile.DIRTYPE, mode=0o755),
            member("./etc/", tarfile.DIRTYPE, mode=0o755),
            member("./etc/shadow", content=b"root:*:\n", mode=0o640, gid=42),
            member("./etc/link", tarfile.SYMTYPE, linkname="../shadow", mode=0o777),
            member("./usr/bin/su", content=b"elf", mode=0o4755),
            member("./usr/bin/su2", tarfile.LNKTYPE, linkname="./usr/bin/su", mode=0o4755),
            member("./dev/null", tarfile.CHRTYPE, mode=0o666),
            member("./etc/two\nlines", content=b"x", mode=0o644),
        ):
            archive.addfile(info, io.BytesIO(content))
    return path


def test_the_manifest_names_every_path(tmp_path: Path) -> None:
    def sha(content: bytes) -> str:
        return hashlib.sha256(content).hexdigest()

    count = rootfs._write_manifest(write_tar(tmp_path / "x.tar"), tmp_path / "files.tsv")
    head, *lines = (tmp_path / "files.tsv").read_text().splitlines()
    assert head == "# path\ttype\tmode\tuid:gid\tbytes\tsha256 or target"
    assert count == len(lines) == 8
    assert lines == [
        "/\tdirectory\t0755\t0:0\t0\t",
        "/dev/null\tother\t0666\t0:0\t0\t",
        "/etc\tdirectory\t0755\t0:0\t0\t",
        "/etc/link\tlink\t0777\t0:0\t0\t../shadow",
        f"/etc/shadow\tfile\t0640\t0:42\t8\t{sha(b'root:*:' + chr(10).encode())}",
        f"/etc/two\\nlines\tfile\t0644\t0:0\t1\t{sha(b'x')}",
        f"/usr/bin/su\tfile\t4755\t0:0\t3\t{sha(b'elf')}",
        "/usr/bin/su2\thardlink\t4755\t0:0\t0\t/usr/bin/su",
    ]


def make(tmp_path: Path, name: str) -> tuple[Path, rootfs.RootfsFacts]:
    out = tmp_path / "cache" / name
    out.mkdir(parents=True)
    facts = rootfs.make_rootfs(
        out, base=tmp_path, spec=make_spec(tmp_path), stack=read_stack(tmp_path), lock=make_lock(entry("x")),
        mirrors=MIRRORS, wheelhouses={}, log_file=tmp_path / f"{name}.log",
    )  # fmt: skip
    return out, facts


def fake_mmdebstrap(fakes: Fakes, tmp_path: Path) -> None:
    program = fakes.directory / "mmdebstrap"
    program.write_text(MMDEBSTRAP.format(tar=write_tar(tmp_path / "x.tar")))
    program.chmod(0o755)
    (tmp_path / "overlays").mkdir()


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path, fakes: Fakes) -> None:
    """With the real mksquashfs, a moment apart."""
    fake_mmdebstrap(fakes, tmp_path)
    (one, facts), (two, again) = make(tmp_path, "one"), make(tmp_path, "two")
    assert facts == again
    assert facts.paths == 8
    assert (one / rootfs.SQUASHFS).read_bytes() == (two / rootfs.SQUASHFS).read_bytes()
    assert facts.squashfs_sha256 == files.sha256_file(one / rootfs.SQUASHFS)
    assert (one / rootfs.MANIFEST).read_bytes() == (two / rootfs.MANIFEST).read_bytes()
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [".scratch.lock", "one", "two"]


def test_a_failed_mmdebstrap_is_told(tmp_path: Path, fakes: Fakes) -> None:
    (tmp_path / "overlays").mkdir()
    fakes.command("mmdebstrap", stderr="E: customize-hook failed\n", status=1)
    with pytest.raises(StepFailed) as caught:
        make(tmp_path, "one")
    assert caught.value.brief == "mmdebstrap failed to create the root file system"
    assert (caught.value.details, caught.value.hint) == (
        "E: customize-hook failed",
        f"the whole output is in {tmp_path}/one.log",
    )


def test_a_failed_mksquashfs_is_told_and_leaves_no_scratch(tmp_path: Path, fakes: Fakes) -> None:
    fake_mmdebstrap(fakes, tmp_path)
    fakes.command("mksquashfs", stderr="FATAL ERROR: No space left on device\n", status=1)
    with pytest.raises(CommandFailed) as caught:
        make(tmp_path, "one")
    assert "FATAL ERROR: No space left on device" in caught.value.details
    assert not list((tmp_path / "cache").glob(".scratch-*"))
