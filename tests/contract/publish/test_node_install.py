"""A build on a node: the VM that Packer leaves becomes a template, what is refused, and a failure leaves nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from build.core import files
from build.core.errors import GoldsmithError, HostError, SpecError, StepFailed, VerificationFailed
from build.disk import packer
from build.drift import drift
from build.proxmox import client, labels, roles
from build.publish import node_install, node_packer, publish
from build.spec.cluster import Role
from tests.contract.conftest import TOKEN
from tests.contract.packer.test_packer_proxmox import Installing
from tests.contract.shipping import NAME, Bench, content
from tests.fakes import Call, Fake, Fakes
from tests.fakes.proxmox import Proxmox
from tests.packers import TEMPLATES
from tests.unit.helpers import make_spec

PLUGIN = f"{node_packer.PLUGIN}/packer-plugin-proxmox_v1.2.4_x5.0_linux_amd64"
MEDIUM = b"an installation medium"


@pytest.fixture
def proxmox_class() -> type[Proxmox]:
    return Installing


@pytest.fixture
def fake_packer(fakes: Fakes) -> Fake:
    return fakes.install("packer", "packer_proxmox.py", {"plugins": [f"/plugins/{PLUGIN}"]})


@pytest.fixture
def api(bench: Bench) -> Iterator[client.Api]:
    with client.Api(bench.settings, TOKEN) as found:
        yield found


@pytest.fixture
def job(bench: Bench, fake_packer: Fake, api: client.Api, tmp_path: Path) -> node_install.Job:
    medium = tmp_path / "installer.iso"
    medium.write_bytes(MEDIUM)
    found = node_packer.locate(tools=TEMPLATES / "tools", cache=tmp_path, chosen=str(fake_packer.path))
    return node_install.Job(
        medium=node_install.Medium(medium, files.sha256_file(medium)), packages=("nginx",), spec=make_spec(tmp_path),
        settings=bench.settings, node="pve1", api=api, tokens={Role.PUBLISHER: api}, verifier=content, packer=found,
        templates=TEMPLATES, logs=tmp_path / "logs", seconds=2,
    )  # fmt: skip


def ending(fake: Fake, how: str) -> None:
    fake.path.with_name("packer.json").write_text(f'{{"ending": "{how}"}}')


def test_what_is_installed_becomes_a_template_like_every_other(
    bench: Bench, job: node_install.Job, fake_packer: Fake
) -> None:
    seen: list[tuple[str, int, str, bool]] = []

    def verifier(subject: publish.Subject) -> None:
        machine = bench.proxmox.vm(subject.vmid)
        assert machine.status == "stopped"
        seen.append((subject.node, subject.vmid, machine.config["tags"], bool(machine.template)))

    def no_secret(call: Call) -> None:
        assert call.env["PROXMOX_USERNAME"] == TOKEN.identity
        assert call.env["SSL_CERT_FILE"] == str(bench.settings.ca)
        assert "PACKER_LOG" not in call.env
        assert TOKEN.secret not in " ".join(call.argv)

    made = node_install.build(dataclasses.replace(job, verifier=verifier))
    no_secret(fake_packer.calls()[-1])
    assert made == publish.Template("pve1", 9000, NAME, publish.Outcome.PUBLISHED)
    # The installer, and what the plugin starts at its end: never the disk.
    assert isinstance(bench.proxmox, Installing)
    assert bench.proxmox.booted == [
        ("order=ide2", f"local:iso/{NAME}-{job.medium.sha256[:12]}.iso"), ("order=ide2", "none"),
    ]  # fmt: skip
    assert seen == [("pve1", 9000, f"golden;sha256-{job.medium.sha256[:12]};v1.2.3", False)]
    built = dict(bench.proxmox.vm(9000).config)
    assert built["name"] == NAME
    assert built["scsi0"] == "local-lvm:base-9000-disk-0,discard=on,iothread=1,size=12G"
    assert bench.proxmox.media == {}
    assert not any("serial1" in key for key in built)
    # Key for key the configuration of a template that was published, but for what differs between two of the same kind.
    bench.settings = dataclasses.replace(bench.settings, vmids=(9100, 9199))
    bench.proxmox.vm(9000).name = built["name"] = "another"
    bench.publish()
    published = bench.proxmox.vm(9100).config
    own = {"name", "scsi0", "efidisk0", "ide2", "description", "tags", "smbios1", "vmgenid", "meta", "net0", "digest"}
    assert {key: str(text) for key, text in built.items() if key not in own} == {
        key: str(text) for key, text in published.items() if key not in own
    }
    assert own & set(built) == own & set(published)
    assert built["efidisk0"].startswith("local-lvm:base-9000-disk-1,")
    assert built["ide2"] == "local-lvm:vm-9000-cloudinit,media=cdrom"
    # Packer's directory is removed, and its output is kept.
    assert not [path for path in job.logs.iterdir() if path.is_dir()]
    assert "A VM was created: 9000" in (job.logs / node_install.OUTPUT).read_text()
    assert TOKEN.secret not in (job.logs / node_install.OUTPUT).read_text()


def test_what_was_built_has_not_drifted_and_has_no_artifact_to_be_compared_with(
    bench: Bench, job: node_install.Job, tmp_path: Path
) -> None:
    """Keys that the builder sets and publishing does not are removed: the lab found two such keys of the real plugin."""
    node_install.build(job)
    [found] = drift.drift(drift.Job(api=job.api, settings=bench.settings, product="golden", artifacts=tmp_path))
    assert (found.name, found.changes, found.problem) == (NAME, [], "")
    assert any("installed on the cluster" in note for note in found.notes)
    bench.proxmox.vm(9000).config["description"] += "changed"
    [found] = drift.drift(drift.Job(api=job.api, settings=bench.settings, product="golden", artifacts=tmp_path))
    assert [change.key for change in found.changes] == ["description"]


def test_the_same_medium_is_not_built_twice_and_the_label_names_it(
    bench: Bench, job: node_install.Job, fake_packer: Fake
) -> None:
    node_install.build(job)
    before, calls = bench.proxmox.inventory(), len(fake_packer.calls())
    assert node_install.build(job) == publish.Template("pve1", 9000, NAME, publish.Outcome.THERE)
    assert bench.proxmox.inventory() == before
    assert len(fake_packer.calls()) == calls
    description = bench.proxmox.vm(9000).config["description"]
    label = labels.parse(description)
    assert label is not None
    assert (label.state, label.digest, label.artifact) == (labels.State.TEMPLATE, job.medium.sha256, "")
    assert f"SHA-256 of the installation medium: `{job.medium.sha256}`" in description
    assert "on pve1, by Packer 1.16.0" in description
    assert "Artifact" not in description


def test_a_name_that_stands_for_something_else_is_refused(bench: Bench, job: node_install.Job) -> None:
    bench.publish()
    before = bench.proxmox.inventory()
    with pytest.raises(SpecError, match="is image"):
        node_install.build(job)
    assert bench.proxmox.inventory() == before


@pytest.mark.parametrize("major", [8, 9])
def test_the_privileges_of_a_publisher_are_enough(bench: Bench, job: node_install.Job, major: int) -> None:
    bench.proxmox.version = {8: "8.4.1", 9: "9.0.10"}[major]
    for grant in roles.grants(Role.PUBLISHER, bench.settings, major=major):
        bench.proxmox.entitle(TOKEN.identity, grant.path, *grant.privileges)
    assert node_install.build(job).outcome is publish.Outcome.PUBLISHED


@pytest.mark.parametrize("how", ["fail", "drop"])
def test_an_installation_that_fails_leaves_nothing(bench: Bench, job: node_install.Job, fake_packer: Fake, how: str) -> None:
    ending(fake_packer, how)
    before = bench.proxmox.inventory()
    with pytest.raises(StepFailed, match="Packer ended with status 1") as caught:
        node_install.build(job)
    assert "packer.txt" in caught.value.hint
    assert bench.proxmox.inventory() == before


def test_an_installation_that_hangs_is_ended(
    bench: Bench, job: node_install.Job, fake_packer: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending(fake_packer, "hang")
    monkeypatch.setattr(node_install, "WORK_SECONDS", 1.0)
    before = bench.proxmox.inventory()
    with pytest.raises(StepFailed, match="did not end in time"):
        node_install.build(job)
    assert bench.proxmox.inventory() == before


@pytest.mark.parametrize("error", [VerificationFailed("a test failed"), KeyboardInterrupt()])
def test_what_clones_do_not_confirm_is_taken_back(bench: Bench, job: node_install.Job, error: BaseException) -> None:
    def verifier(_subject: publish.Subject) -> None:
        raise error

    before = bench.proxmox.inventory()
    with pytest.raises(type(error)):
        node_install.build(dataclasses.replace(job, verifier=verifier))
    assert bench.proxmox.inventory() == before


@pytest.mark.parametrize("kind", ["qmstart", "qmtemplate", "imgcopy"])
def test_a_task_that_fails_leaves_nothing(bench: Bench, job: node_install.Job, kind: str) -> None:
    bench.proxmox.broken_tasks[kind] = ["unable to write: No space left on device"]
    before = bench.proxmox.inventory()
    with pytest.raises(GoldsmithError):
        node_install.build(job)
    assert bench.proxmox.inventory() == before


def test_a_storage_that_takes_no_iso_is_told_before_anything_happens(bench: Bench, job: node_install.Job) -> None:
    bench.proxmox.storages["local"]["content"] = "import"
    with pytest.raises(HostError) as caught:
        node_install.build(job)
    assert "pvesm set local --content import,iso" in caught.value.details


def test_what_a_killed_run_left_is_named_and_left_and_hidden_guests_are_passed_over(
    bench: Bench, job: node_install.Job, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.proxmox.add_vm(9000, f"{NAME}-build-0123456789abcdef")
    bench.proxmox.add_vm(9001, "hidden")
    allowed = bench.proxmox.allowed
    bench.proxmox.allowed = lambda user, path, priv: path != "/vms/9001" and allowed(user, path, priv)  # type: ignore[method-assign]
    assert node_install.build(job).vmid == 9002
    assert "qm destroy 9000" in capsys.readouterr().err
    assert bench.proxmox.vm(9000) is not None


@pytest.mark.parametrize(
    ("plan", "details"),
    [
        ({"version": "1.6.6"}, "does not support API tokens"),
        ({}, f"plugins install {node_packer.PLUGIN}"),
        ({"plugins": [f"/plugins/{PLUGIN.replace('v1.2.4', 'v1.2.3')}"]}, "no proxmox plugin 1.2.4 or later"),
    ],
)
def test_a_packer_that_cannot_is_told_what_it_lacks(
    fakes: Fakes, tmp_path: Path, plan: dict[str, object], details: str
) -> None:
    fake = fakes.install("packer", "packer_proxmox.py", plan)
    with pytest.raises(HostError) as caught:
        node_packer.locate(tools=TEMPLATES / "tools", cache=tmp_path, chosen=str(fake.path))
    assert details in caught.value.details


def test_a_plugin_of_the_user_is_found(fake_packer: Fake, tmp_path: Path) -> None:
    found = node_packer.locate(tools=TEMPLATES / "tools", cache=tmp_path)
    assert found == packer.Packer(fake_packer.path, (1, 16, 0), Path("/plugins"))
