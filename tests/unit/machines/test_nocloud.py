"""The first-boot configuration of a clone, and the connection to it: only with a key generated for this run."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from build.core import run
from build.machines import nocloud
from build.machines.nocloud import Identity
from tests.patience import PATIENCE_SECONDS


@pytest.fixture
def identity(tmp_path: Path) -> Identity:
    return nocloud.make_identity(tmp_path / "identity", "admin")


def read_back(iso: Path, directory: Path) -> dict[str, str]:
    """Return the files of an ISO by name."""
    directory.mkdir()
    run.run(["xorriso", "-osirrox", "on", "-indev", iso, "-extract", "/", directory], timeout=60)
    return {path.name: path.read_text() for path in directory.rglob("*") if path.is_file()}


def test_a_key_is_made_once_and_for_the_administrator(identity: Identity, tmp_path: Path) -> None:
    assert identity.public.startswith("ssh-ed25519 ")
    assert identity.key.stat().st_mode & 0o777 == 0o600
    assert nocloud.make_identity(tmp_path / "identity", "admin").public == identity.public
    assert nocloud.make_identity(tmp_path / "other", "admin").public != identity.public


def test_the_seed_is_what_cloud_init_looks_for(identity: Identity, tmp_path: Path) -> None:
    iso = nocloud.write(tmp_path / "clone", "bios", identity)
    said = run.run(["xorriso", "-indev", iso, "-pvd_info"], timeout=60)
    assert "Volume Id    : cidata" in said.stdout + said.stderr
    found = read_back(iso, tmp_path / "back")
    assert sorted(found) == ["meta-data", "user-data"]
    assert found["user-data"].splitlines()[0] == "#cloud-config"
    assert yaml.safe_load(found["user-data"]) == {"hostname": "bios", "ssh_authorized_keys": [identity.public]}
    meta = yaml.safe_load(found["meta-data"])
    assert meta["local-hostname"] == "bios"


def test_the_seed_names_the_networks_of_administrators(identity: Identity) -> None:
    config = yaml.safe_load(nocloud.documents("bios", identity, admin_cidrs=["192.0.2.0/24", "2001:db8::/64"])["user-data"])
    (written,) = config["write_files"]
    assert (written["path"], written["permissions"]) == ("/etc/golden/site.yaml", "0600")
    assert yaml.safe_load(written["content"]) == {"admin_cidrs": ["192.0.2.0/24", "2001:db8::/64"]}


def test_every_start_is_an_instance_of_its_own(identity: Identity, tmp_path: Path) -> None:
    seen = set()
    for number in range(2):
        iso = nocloud.write(tmp_path / "clone", "bios", identity)
        seen.add(yaml.safe_load(read_back(iso, tmp_path / f"back{number}")["meta-data"])["instance-id"])
    assert len(seen) == 2


def test_the_connection_accepts_the_clones_keys_and_no_others(identity: Identity, tmp_path: Path) -> None:
    keys = ["ssh-ed25519 AAAA", "ssh-rsa BBBB"]
    path = nocloud.write_ssh_config(tmp_path, alias="goldsmith-bios", port=2222, host_keys=keys, identity=identity)
    assert path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "known_hosts").read_text() == "goldsmith-bios ssh-ed25519 AAAA\ngoldsmith-bios ssh-rsa BBBB\n"
    # The real ssh prints the configuration that it would use.
    said = run.run(["ssh", "-G", "-F", path, "goldsmith-bios"], timeout=PATIENCE_SECONDS).stdout
    options = dict(line.split(" ", 1) for line in said.splitlines())
    expected = {
        "hostname": "127.0.0.1", "port": "2222", "user": "admin", "identityfile": str(identity.key),
        "stricthostkeychecking": "true", "userknownhostsfile": str(tmp_path / "known_hosts"),
        "globalknownhostsfile": "/dev/null", "batchmode": "yes", "passwordauthentication": "no",
        "identitiesonly": "yes", "hostkeyalias": "goldsmith-bios",
    }  # fmt: skip
    assert {key: options[key] for key in expected} == expected
    assert len(options["controlpath"]) < 90, "paths of sockets are short"
