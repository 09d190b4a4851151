"""Cloning on the fake cluster: the clones of each template, their configuration, and what is refused."""

from __future__ import annotations

import base64
import dataclasses
import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml

from build.cli import clone as command
from build.cli import main
from build.clone import clone, health, request
from build.core.errors import HostError, SpecError, StepFailed
from build.proxmox import labels, roles
from build.spec.cluster import Role
from tests.contract.cloning import ADDRESS, HOST_KEY, KEY, OPERATOR, Field, Guests, relabel
from tests.contract.shipping import NAME, make_artifact, write_spec
from tests.fakes.proxmox import Proxmox
from tests.lab import cloudinit


@pytest.fixture
def proxmox_class() -> type[Proxmox]:
    return Guests


# --- what is made -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["8.4.1", "9.0.10"])
def test_a_machine_is_made_with_no_more_rights_than_are_printed(field: Field, version: str) -> None:
    field.proxmox.version = version
    for grant in roles.grants(Role.OPERATOR, field.bench.settings, major=int(version[0])):
        field.proxmox.entitle(OPERATOR.identity, grant.path, *grant.privileges)
    template = dict(field.proxmox.vm(9000).config)
    made = field.clone(memory_mib=4096, cores=4, more_disk_gib=2, nameservers=("192.0.2.53", "192.0.2.54"))
    assert (made.name, made.machine.node, made.template, made.outcome) == ("web1", "pve1", NAME, clone.Outcome.CLONED)
    machine = field.proxmox.vm(made.machine.vmid)
    config = machine.config
    expected = {
        "protection": "0", "onboot": "1", "ciupgrade": "0", "ipconfig0": f"ip={ADDRESS}/24,gw=192.0.2.1",
        "nameserver": "192.0.2.53 192.0.2.54", "memory": "4096", "cores": "4", "bios": "ovmf", "agent": "1",
    }  # fmt: skip
    assert {key: str(config[key]) for key in expected} == expected
    assert config["efidisk0"].startswith(f"local-lvm:vm-{machine.vmid}-disk-")
    assert "pre-enrolled-keys=1" in config["efidisk0"]
    assert config["scsi0"].endswith("size=2112M")
    assert "args" not in config
    assert "ciuser" not in config
    assert cloudinit.status(config) == (0, "done")
    assert (machine.status, machine.template) == ("running", False)
    assert field.proxmox.pools == {"golden": {9000}, "golden-clones": {machine.vmid}}
    # The template is as it was.
    assert field.proxmox.vm(9000).config == template


def test_an_image_with_another_administrator_gets_the_one_of_golden_yaml(field: Field) -> None:
    """golden.yaml may name another administrator than when the image was built: the label names the image's own."""
    relabel(field.proxmox.vm(9000), labels.ADMINISTRATOR, "admin")
    made = field.clone(wait=False)
    config = field.proxmox.vm(made.machine.vmid).config
    assert config["ciuser"] == "keeper"
    assert field.clone(wait=False).outcome is clone.Outcome.THERE
    config["ciuser"] = "root"
    with pytest.raises(SpecError, match="other settings") as caught:
        field.clone(wait=False)
    assert "ciuser: it has root, asked for keeper" in caught.value.details


def test_it_says_where_it_comes_from(field: Field) -> None:
    made = field.clone()
    config = field.proxmox.vm(made.machine.vmid).config
    digest = make_artifact(field.bench.place).manifest.image.sha256
    assert config["tags"] == f"golden-clone;sha256-{digest[:12]};v1.2.3"
    label = labels.parse_clone(config["description"])
    assert label is not None
    assert (label.template, label.digest, label.state) == (NAME, digest, labels.CloneState.MADE)
    assert f"A full clone of **{NAME}**." in config["description"]
    # It is not a template, and is not treated as one.
    assert labels.parse(config["description"]) is None


def test_the_keys_go_through_both_encodings(field: Field) -> None:
    made = field.clone()
    stored = field.proxmox.vm(made.machine.vmid).config["sshkeys"]
    assert not set(stored) & set("+/= @:")
    assert unquote(stored) == KEY


def test_the_site_travels_in_the_smbios_beside_a_uuid_of_its_own(field: Field) -> None:
    first, second = field.clone(), field.clone(name="web2", addresses="ip=192.0.2.11/24,gw=192.0.2.1")
    one, two = (field.smbios(made.machine.vmid) for made in (first, second))
    assert one["base64"] == "1"
    assert json.loads(base64.b64decode(one["sku"]).decode().removeprefix("golden:")) == {
        "admin_cidrs": ["192.0.2.0/24"], "server_names": ["www.example.org"],
    }  # fmt: skip
    assert len({one["uuid"], two["uuid"], field.smbios(9000).get("uuid", "")}) == 3


def test_it_is_reached_and_recognised(field: Field) -> None:
    field.site.codes[:] = [502, 503, 200]
    made = field.clone()
    assert made.reached is not None
    assert (made.reached.address, made.reached.host_key) == (ADDRESS, HOST_KEY)
    assert made.reached.fingerprint.startswith("SHA256:")
    assert field.site.asked == [("www.example.org", "/health")] * 3
    assert set(field.site.names) == {"www.example.org"}


def test_the_application_declares_its_health_check(field: Field) -> None:
    field.proxmox.health, field.site.codes[:] = "/up", [404, 200]
    made = field.clone()
    assert [path for _, path in field.site.asked] == ["/up", "/up"]
    assert command.facts_of(made, field.request, user="keeper")["url"] == "https://www.example.org/up"


def test_a_web_server_without_an_application_only_has_to_answer(field: Field) -> None:
    """The command does not wait for a page that a machine of profiles/web.yaml never has."""
    field.without_application()
    field.site.codes[:] = [502, 404]
    made = field.clone()
    assert field.site.asked == [("www.example.org", "/")] * 2
    facts = command.facts_of(made, field.request, user="keeper")
    assert facts["url"] == "https://www.example.org/"
    assert facts["certificate_sha256"]


@pytest.mark.parametrize("text", ["{", "{}", '{"health": "/up"}'])
def test_a_contract_that_is_being_written_is_read_again(field: Field, text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            type(field.proxmox), "web_files", lambda own: {health.CERTIFICATE: own.certificate, health.CONTRACT: text}
        )
        with pytest.raises(StepFailed, match="did not appear in time") as caught:
            field.clone(timeout=0.5)
    assert health.CONTRACT in caught.value.details
    assert field.site.asked == []


def test_an_image_without_a_web_server_is_reached_by_its_host_key(field: Field) -> None:
    """The command does not wait for a page that a machine of profiles/db.yaml never has."""
    field.without_web_server()
    made = field.clone()
    assert made.reached is not None
    assert (made.reached.host_key, made.reached.certificate) == (HOST_KEY, "")
    assert field.site.asked == []
    assert field.clone().outcome is clone.Outcome.THERE
    facts = command.facts_of(made, field.request, user="keeper")
    assert facts.keys() & {"url", "certificate_sha256"} == set()
    assert "the image has no web server" in command.text_of(facts)
    label = labels.parse_clone(field.proxmox.vm(made.machine.vmid).config["description"])
    assert label is not None
    assert not label.web


def test_the_label_of_an_earlier_release_has_a_web_server(field: Field) -> None:
    label = labels.parse_clone(field.proxmox.vm(field.clone().machine.vmid).config["description"])
    assert label is not None
    assert label.web
    assert '"web"' not in label.describe()
    image = labels.parse(field.proxmox.vm(9000).config["description"])
    assert image is not None
    assert dataclasses.replace(image, provenance={}).web


def test_another_certificate_is_not_spoken_to(field: Field) -> None:
    """A machine in between has another certificate than the guest agent reports: it gets no request."""
    other = base64.b64encode(b"another certificate, unless it is compared").decode()
    field.proxmox.certificate = f"-----BEGIN CERTIFICATE-----\n{other}\n-----END CERTIFICATE-----\n"
    before = field.proxmox.inventory()
    with pytest.raises(StepFailed, match="did not appear in time") as caught:
        field.clone(timeout=0.5)
    assert "is not that of VM" in caught.value.details
    assert field.site.asked == []
    assert field.proxmox.inventory() == before


def test_nobody_waits_if_it_is_said_so(field: Field) -> None:
    field.proxmox.silent = True
    made = field.clone(wait=False)
    assert (made.reached, made.running) == (None, True)
    assert field.proxmox.vm(made.machine.vmid).status == "running"


def test_linked(field: Field) -> None:
    made = field.clone(linked=True)
    assert "base-9000-disk-1" in field.proxmox.origins[field.proxmox.vm(made.machine.vmid).config["scsi0"].split(",")[0]]
    assert (made.linked, field.clone().linked) == (True, True)
    [call] = [body for method, path, body in field.proxmox.requests if path.endswith("/clone")]
    assert "full=0" in str(call)


def test_another_network(field: Field) -> None:
    made = field.clone(bridge="vmbr1", vlan=7, addresses=request.DHCP_CONFIG)
    mine = field.proxmox.vm(made.machine.vmid).config["net0"]
    assert mine.endswith(",bridge=vmbr1,tag=7")
    assert mine.split(",")[0] != field.proxmox.vm(9000).config["net0"].split(",")[0]


def test_another_storage(field: Field) -> None:
    field.proxmox.storages["fast"] = {"type": "lvmthin", "content": "images", "active": 1, "avail": 1 << 40, "files": set()}
    made = field.clone(storage="fast")
    assert field.proxmox.vm(made.machine.vmid).config["scsi0"].startswith("fast:")


# --- which template -----------------------------------------------------------------------------------------------------


def publish_version(field: Field, version: str, **changes: Any) -> int:
    """Publish another version; return its number."""
    found = make_artifact(field.bench.place, fill=version.encode(), version=version, **changes)
    [made] = field.bench.publish(found)
    return made.vmid


def test_the_newest_of_the_channel_is_taken(field: Field) -> None:
    publish_version(field, "1.9.0")
    newest = publish_version(field, "1.10.0")
    publish_version(field, "1.10.0-rc1")
    made = field.clone()
    assert made.template == "golden-1.10.0"
    assert field.proxmox.calls["POST", f"/nodes/pve1/qemu/{newest}/clone"] == 1
    assert field.clone(name="web2", template="golden-1.9.0", addresses="ip=dhcp,ip6=auto").template == "golden-1.9.0"


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"channel": "stable"}, "in the channel stable"), ({"template": "golden-9.9.9"}, "called golden-9.9.9")],
)
def test_a_template_that_is_not_there(field: Field, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words) as caught:
        field.clone(**changes)
    assert NAME in caught.value.details
    assert caught.value.exit_code == 2
    assert [method for method, _ in field.proxmox.calls if method != "GET"] == []


def test_without_any_template(field: Field) -> None:
    field.proxmox.vms.clear()
    with pytest.raises(SpecError, match="no template of golden") as caught:
        field.clone()
    assert "nox -s publish" in caught.value.hint


def test_a_template_that_was_changed_is_refused(field: Field) -> None:
    field.proxmox.vm(9000).config["description"] = "mine now"
    with pytest.raises(SpecError, match="not as published") as caught:
        field.clone()
    assert "drift" in caught.value.hint


def test_two_images_of_one_name_are_refused(field: Field) -> None:
    field.proxmox.add_vm(9050, NAME, template=True, config={"tags": "golden;candidate;v1.2.3;sha256-000000000000"})
    with pytest.raises(SpecError, match="of different images"):
        field.clone()


# --- several nodes ------------------------------------------------------------------------------------------------------


def test_a_template_of_the_wanted_node_is_taken(field: Field) -> None:
    field.bench.with_nodes("pve1", "pve2")
    field.bench.publish()
    made = field.clone(node="pve2")
    assert made.machine.node == "pve2"
    assert sum(count for (_, path), count in field.proxmox.calls.items() if path == "/nodes/pve2/qemu/9001/clone") == 1


def test_a_shared_template_is_cloned_to_another_node(field: Field) -> None:
    field.proxmox.add_node("pve2")
    field.proxmox.storages["local-lvm"]["shared"] = 1
    made = field.clone(node="pve2")
    assert made.machine.node == "pve2"
    assert field.proxmox.vm(made.machine.vmid).node == "pve2"
    assert field.clone(node="pve2").outcome is clone.Outcome.THERE


def test_a_template_that_the_node_cannot_reach(field: Field) -> None:
    field.proxmox.add_node("pve2")
    with pytest.raises(SpecError, match="local-lvm is not shared") as caught:
        field.clone(node="pve2")
    assert "nox -s publish -- --node pve2" in caught.value.hint


# --- existing clones ----------------------------------------------------------------------------------------------------


def test_the_same_words_again_change_nothing(field: Field, capsys: pytest.CaptureFixture[str]) -> None:
    first = field.clone()
    before = field.proxmox.inventory()
    field.proxmox.calls.clear()
    again = field.clone()
    assert (again.outcome, again.machine, again.reached) == (clone.Outcome.THERE, first.machine, first.reached)
    assert {method for method, _ in field.proxmox.calls} == {"GET"}
    assert field.proxmox.inventory() == before
    assert "already exists" in capsys.readouterr().err


def test_proxmox_may_order_its_values_otherwise(field: Field) -> None:
    made = field.clone()
    config = field.proxmox.vm(made.machine.vmid).config
    config["smbios1"] = ",".join(sorted(config["smbios1"].split(","), reverse=True))
    assert field.clone().outcome is clone.Outcome.THERE


def test_a_stopped_one_is_not_started(field: Field) -> None:
    made = field.clone()
    field.proxmox.vm(made.machine.vmid).status = "stopped"
    again = field.clone()
    assert (again.outcome, again.running, again.reached) == (clone.Outcome.THERE, False, None)


def test_other_settings_are_refused(field: Field) -> None:
    field.clone()
    with pytest.raises(SpecError, match="with other settings") as caught:
        field.clone(addresses="ip=192.0.2.99/24", memory_mib=1024)
    assert "ipconfig0: it has ip=192.0.2.10/24,gw=192.0.2.1, asked for ip=192.0.2.99/24" in caught.value.details
    assert "memory: it has 2048, asked for 1024" in caught.value.details


def test_a_clone_of_another_version_is_refused(field: Field) -> None:
    field.clone()
    publish_version(field, "1.3.0")
    with pytest.raises(SpecError, match=f"a clone of {NAME} and not of golden-1.3.0") as caught:
        field.clone()
    assert f"--template {NAME}" in caught.value.hint


@pytest.mark.parametrize("name", ["web1", NAME])
def test_a_name_that_is_taken(field: Field, name: str) -> None:
    field.proxmox.add_vm(300, "web1", config={"description": "another team's"})
    before = field.proxmox.inventory()
    with pytest.raises(SpecError, match=f"the name {name} is taken") as caught:
        field.clone(name=name)
    assert "--name" in caught.value.hint
    assert field.proxmox.inventory() == before


def test_on_another_node_it_is_not_made_again(field: Field) -> None:
    field.clone()
    field.proxmox.add_node("pve2")
    field.proxmox.storages["local-lvm"]["shared"] = 1
    with pytest.raises(SpecError, match="already exists, on pve1"):
        field.clone(node="pve2")


# --- scale --------------------------------------------------------------------------------------------------------------


def test_ten_thousand_guests_cost_no_more_calls(field: Field) -> None:
    field.clone(more_disk_gib=1)
    few = field.requests()
    for number in range(10_000):
        field.proxmox.add_vm(10_000 + number, f"guest-{number}", config={"tags": "golden-clone;v1.2.3"})
    field.proxmox.calls.clear()
    field.clone(name="web2", addresses="ip=192.0.2.11/24", more_disk_gib=1)
    assert field.requests() == few
    assert few <= 25, field.proxmox.calls


# --- from the command line ----------------------------------------------------------------------------------------------


@pytest.fixture
def checkout(field: Field, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "checkout"
    root.mkdir()
    write_spec(root, field.bench.settings)
    (root / "key.pub").write_text(f"{KEY}\n")
    monkeypatch.setenv("GOLDSMITH_PVE_TOKEN_OPERATOR", f"{OPERATOR.identity}={OPERATOR.secret}")
    return root


def run(checkout: Path, *words: str) -> int:
    return main.main([
        "clone", "--project", str(checkout), "--cache", str(checkout.parent / "cache"), "--name", "web1",
        "--ip", f"{ADDRESS}/24,gw=192.0.2.1", "--ssh-key", str(checkout / "key.pub"), "--admin-cidr", "192.0.2.0/24",
        "--server-name", "www.example.org", *words,
    ])  # fmt: skip


def test_it_tells_what_it_did_and_how_to_reach_it(field: Field, checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(checkout) == 0
    out, err = capsys.readouterr()
    vmid = next(vm.vmid for vm in field.proxmox.vms if vm.name == "web1")
    assert f"web1 is VM {vmid} on pve1: it was made" in out
    assert f"ssh          ssh admin@{ADDRESS}\n" in out
    assert "host key     SHA256:" in out
    assert "https        https://www.example.org/health answers at" in out
    assert "no authority has signed for it" in out
    assert OPERATOR.secret not in out + err
    assert run(checkout, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["vmid"], facts["outcome"], facts["address"]) == (vmid, "was there already", ADDRESS)
    assert facts["known_hosts"] == f"{ADDRESS} {HOST_KEY}"


def test_nobody_may_log_in(field: Field, checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = yaml.safe_load((checkout / "golden.yaml").read_text())
    spec["admin"]["cidrs"] = []
    (checkout / "golden.yaml").write_text(yaml.safe_dump(spec))
    words = ["--name", "web1", "--ip", "dhcp", "--ssh-key", str(checkout / "key.pub"), "--no-wait"]
    assert main.main(["clone", "--project", str(checkout), "--cache", str(checkout.parent / "cache"), *words]) == 0
    assert "no network may reach SSH on it" in capsys.readouterr().err


def test_without_waiting_it_says_so(field: Field, checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(checkout, "--no-wait") == 0
    assert "it was not waited for" in capsys.readouterr().out


def test_bad_words_are_told_all_at_once_and_nobody_is_asked(
    field: Field, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(checkout, "--disk", "20G", "--admin-cidr", "192.0.2.1/24", "--linked", "--storage", "fast") == 2
    said = capsys.readouterr().err
    for words in ("--disk: '20G'", "'192.0.2.1/24': has host bits set", "--storage: a linked clone"):
        assert words in said
    assert field.requests() == 0


def test_only_the_operators_token_is_used(field: Field, checkout: Path) -> None:
    field.proxmox.apitokens = {OPERATOR.identity: OPERATOR.secret}
    assert run(checkout) == 0


def test_the_settings_name_a_pool_of_their_own(field: Field) -> None:
    assert field.bench.settings.clones == "golden-clones"
    field.bench.settings = dataclasses.replace(field.bench.settings, clones="golden")
    made = field.clone()
    assert field.proxmox.pools["golden"] == {9000, made.machine.vmid}


def test_a_site_that_is_too_long_is_refused_before_anything_is_made(field: Field) -> None:
    with pytest.raises(HostError, match="Proxmox allows 512"):
        field.clone(server_names=tuple(f"www{number}.example.org" for number in range(40)))
    assert field.requests() == 0


# --- what the cluster's list shows ten seconds late ---------------------------------------------------------------------


def test_the_same_words_within_ten_seconds_make_one_machine(field: Field) -> None:
    field.proxmox.clock = lambda: 0.0
    field.proxmox.broadcast()
    first = field.clone()
    assert field.clone().outcome is clone.Outcome.THERE
    assert [vm.vmid for vm in field.proxmox.vms if vm.name == "web1"] == [first.machine.vmid]


def test_a_name_that_a_node_which_is_down_may_have_is_not_given_again(field: Field) -> None:
    """After some minutes the cluster no longer has the names of its guests; measured on two nodes of Proxmox VE 9.2."""
    field.clone()
    field.proxmox.add_node("pve2")
    field.proxmox.vm(100).node = "pve2"
    field.proxmox.set_node_offline("pve2")
    field.proxmox.forgotten.add("pve2")
    with pytest.raises(StepFailed, match="one of them may be web1") as caught:
        field.clone()
    assert "pve2/100" in caught.value.details
    assert len(field.proxmox.vms) == 2
