"""Settings of a cluster, tokens that stay secret, and the least privileges of each role."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from build.core.errors import SpecError
from build.core.yaml_table import Table
from build.proxmox import roles
from build.spec import cluster
from build.spec import golden_yaml as specs
from build.spec.cluster import Role

GOOD: dict[str, Any] = {
    "host": "pve.example.org", "nodes": ["pve1", "pve2"], "storage": "local-lvm", "media": "local", "pool": "golden",
}  # fmt: skip
SECRET = "01234567-89ab-cdef-0123-456789abcdef"
TEXT = f"goldsmith@pve!publisher={SECRET}"


def read(**changes: Any) -> tuple[cluster.Settings, list[str]]:
    problems: list[str] = []
    return cluster.read(Table(GOOD | changes, where="proxmox", problems=problems)), problems


def test_defaults() -> None:
    settings, problems = read()
    assert problems == []
    assert (settings.port, settings.bridge, settings.vlan, settings.vmids) == (8006, "vmbr0", 0, (9000, 9099))
    assert (settings.firmware, settings.cores, settings.memory_mib) == ("uefi", 2, 2048)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("nodes", []), ("nodes", ["-x"]), ("storage", "no spaces"), ("vmids", "9099-9000"), ("vmids", "1-2"), ("port", 0),
        ("firmware", "coreboot"), ("bridge", "a bridge"), ("vlan", 4095), ("memory", "lots"), ("tokem", "x"),
    ],
)  # fmt: skip
def test_wrong_values_are_named(key: str, value: Any) -> None:
    assert any(f"proxmox.{key}" in problem for problem in read(**{key: value})[1])


def test_a_token_of_its_own_comes_before_the_common_one(tmp_path: Path) -> None:
    environment = {"GOLDSMITH_PVE_TOKEN": TEXT, "GOLDSMITH_PVE_TOKEN_OPERATOR": TEXT.replace("publisher", "operator")}
    found = {role: cluster.token(role, secrets=tmp_path / "none", environment=environment).name for role in Role}
    assert found == dict.fromkeys(Role, "publisher") | {Role.OPERATOR: "operator"}


def test_the_secret_is_never_shown(tmp_path: Path) -> None:
    found = cluster.token(Role.PUBLISHER, secrets=tmp_path, environment={"GOLDSMITH_PVE_TOKEN": TEXT})
    assert found.secret == SECRET
    assert SECRET not in repr(found) + str(found)
    with pytest.raises(SpecError) as caught:
        cluster.token(Role.PUBLISHER, secrets=tmp_path, environment={"GOLDSMITH_PVE_TOKEN": f"goldsmith={SECRET}"})
    assert SECRET not in caught.value.render()


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_the_secrets_file_is_for_its_owner_only(tmp_path: Path) -> None:
    path = write(tmp_path / "proxmox.yaml", f"tokens: {{publisher: '{TEXT}'}}\n")
    assert cluster.token(Role.PUBLISHER, secrets=path, environment={}).secret == SECRET
    path.chmod(0o640)
    with pytest.raises(SpecError, match="read by others"):
        cluster.token(Role.PUBLISHER, secrets=path, environment={})


@pytest.mark.parametrize(
    "text", [f"tokens: {{publisher: '{SECRET}'}}", f"tokens: {{verifier: '{TEXT}'}}", f"token: '{TEXT}'"]
)
def test_problems_of_the_secrets_file_do_not_show_secrets(tmp_path: Path, text: str) -> None:
    with pytest.raises(SpecError) as caught:
        cluster.token(Role.PUBLISHER, secrets=write(tmp_path / "proxmox.yaml", text), environment={})
    assert SECRET not in caught.value.render()


def test_no_token_says_where_to_put_one(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no token for the operator") as caught:
        cluster.token(Role.OPERATOR, secrets=tmp_path / "proxmox.yaml", environment={})
    assert "GOLDSMITH_PVE_TOKEN_OPERATOR" in caught.value.hint


@pytest.mark.parametrize(
    ("major", "privilege", "other"), [(8, "VM.Monitor", "VM.GuestAgent"), (9, "VM.GuestAgent.Audit", "VM.Monitor")]
)
def test_the_agent_privilege_follows_the_version(major: int, privilege: str, other: str) -> None:
    text = "\n".join(roles.commands(read()[0], major=major))
    assert privilege in text
    assert other not in text


def test_no_role_reaches_beyond_the_pool_the_storages_and_the_bridge() -> None:
    settings = read()[0]
    for role in Role:
        for grant in roles.grants(role, settings, major=9):
            own = {"/pool/golden-clones"} if role in (Role.OPERATOR, Role.REPLACER) else {"/storage/local"}
            assert grant.path in {"/pool/golden", "/storage/local-lvm", "/sdn/zones/localnetwork/vmbr0"} | own
            assert not any(name.startswith(("Sys.", "Permissions.", "Realm.", "User.")) for name in grant.privileges)


def test_who_makes_machines_cannot_change_what_they_are_made_of() -> None:
    settings = read()[0]
    for major in (8, 9):
        grants = roles.grants(Role.OPERATOR, settings, major=major)
        assert [one.privileges for one in grants if one.path == "/pool/golden"] == [
            frozenset({"Pool.Audit", "VM.Audit", "VM.Clone"})
        ]


def test_what_is_not_granted_is_found() -> None:
    wanted = roles.grants(Role.PUBLISHER, read()[0], major=9)
    everything = {grant.path: dict.fromkeys(grant.privileges, 1) for grant in wanted}
    assert roles.missing(wanted, everything) == []
    del everything["/pool/golden"]["VM.Allocate"]
    [(grant, names)] = roles.missing(wanted, everything)
    assert (grant.path, sorted(names)) == ("/pool/golden", ["VM.Allocate"])


def test_each_privilege_has_the_call_that_needs_it() -> None:
    granted = {
        name for role in Role for major in (8, 9) for grant in roles.grants(role, read()[0], major=major)
        for name in grant.privileges
    }  # fmt: skip
    assert granted == set(roles.NEEDS)


def test_who_verifies_holds_only_what_a_call_of_its_own_needs() -> None:
    """Measured on Proxmox VE 9.2: the same calls succeed without each of these."""
    held = {name for grant in roles.grants(Role.VERIFIER, read()[0], major=9) for name in grant.privileges}
    assert not held & {"VM.Config.CDROM", "VM.Config.Network", "VM.Config.CPU", "VM.Config.Memory", "Datastore.Audit"}
    own = {name for grant in roles.grants(Role.OPERATOR, read()[0], major=9) for name in grant.privileges}
    assert not own & {"VM.Config.CDROM", "VM.Config.Cloudinit", "Datastore.Allocate"}


def test_who_publishes_makes_no_clones_and_asks_no_agent() -> None:
    for major in (8, 9):
        held = {name for grant in roles.grants(Role.PUBLISHER, read()[0], major=major) for name in grant.privileges}
        assert not {name for name in held if "GuestAgent" in name or name in {"VM.Clone", "VM.Monitor"}}


def test_commands_can_be_run_again_and_make_the_parents_of_a_pool() -> None:
    settings = dataclasses.replace(read()[0], pool="a/b", clones="a/c/d")
    lines = roles.commands(settings, major=9)
    pools = [line.rpartition("pveum pool add ")[2].split()[0] for line in lines if "pool add" in line]
    assert pools == ["a", "a/b", "a/c", "a/c/d"]
    for line in lines:
        # acl modify adds an entry, or leaves it; everything else is changed when it exists.
        again, _, first = line.partition(" 2>/dev/null || ")
        assert again.startswith("pveum acl modify ") if not first else again.replace(" modify ", " add ") == first


def test_an_entry_of_its_own_replaces_what_parents_propagate() -> None:
    wanted = roles.grants(Role.OPERATOR, read()[0], major=9)
    all_names = {name for grant in wanted for name in grant.privileges}
    assert roles.missing(wanted, {"/": dict.fromkeys(all_names, 1)}) == []
    assert roles.missing(wanted, {"/": dict.fromkeys(all_names, 0)}) != []
    assert roles.missing(wanted, {"/": dict.fromkeys(all_names, 1), "/pool/golden": {"VM.Audit": 1}}) != []


def test_where_an_image_is_published_shapes_no_stage(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "golden.yaml").read_text()
    plain, published = tmp_path / "plain.yaml", tmp_path / "published.yaml"
    plain.write_text(text)
    published.write_text(text + yaml.safe_dump({"proxmox": GOOD}))
    assert specs.load(published).proxmox == read()[0]
    assert specs.load(plain).as_inputs() == specs.load(published).as_inputs()
