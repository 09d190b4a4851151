"""The page about cloning: its options exist, and what it shows for other tools says what ``clone`` itself would say."""

from __future__ import annotations

import argparse
import base64
import importlib
import json
import re
import sys
import uuid
from types import ModuleType
from typing import Any

import jinja2
import pytest
import yaml

from build import cli, clone_machine, clone_request, pve_guest, run
from build.clone_request import Request
from tests.fakes import Fakes
from tests.unit.helpers import ROOT

PAGE = (ROOT / "docs/cloning.md").read_text(encoding="utf-8")
SITE = {"admin_cidrs": ["192.0.2.0/24"], "server_names": ["www.example.org"]}


def block(language: str) -> str:
    found: list[str] = re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)
    return found[0]


@pytest.fixture
def golden_site() -> ModuleType:
    """The image's own reader of site settings."""
    sys.path.insert(0, str(ROOT / "overlays/80-firstboot/rootfs/usr/lib/golden"))
    try:
        return importlib.import_module("golden_site")
    finally:
        sys.path.pop(0)


def told(golden_site: ModuleType, text: str) -> dict[str, Any]:
    """Return what the image makes of an SMBIOS field."""
    assert text.startswith(golden_site.HYPERVISOR_MARK)
    settings, faults = golden_site.parse(text.removeprefix(golden_site.HYPERVISOR_MARK))
    assert faults == []
    return {key: settings[key] for key in golden_site.FROM_HYPERVISOR}


def sku(value: str) -> str:
    parts = dict(part.partition("=")[::2] for part in value.split(","))
    assert parts["base64"] == "1"
    assert str(uuid.UUID(parts["uuid"])) == parts["uuid"]
    return base64.b64decode(parts["sku"]).decode()


def test_its_options_exist() -> None:
    (verbs,) = [action for action in cli.parser()._actions if isinstance(action, argparse._SubParsersAction)]
    known = {option for verb in verbs.choices.values() for option in verb._option_string_actions}
    ours = PAGE[: PAGE.index("## Without Goldsmith")]
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", ours)) <= known


def test_every_option_of_clone_is_on_it() -> None:
    parser = argparse.ArgumentParser()
    clone_request.options(parser)
    options = {option for option in parser._option_string_actions if option.startswith("--")}
    unnamed = {option for option in options if option not in PAGE}
    assert unnamed == {"--help", "--wait", "--secrets"}


def test_the_clone_by_qm_is_told_what_clone_would_tell(fakes: Fakes, golden_site: ModuleType) -> None:
    fakes.command("pvesh", stdout="104\n")
    qm = fakes.command("qm")
    run.run(["bash", "-eu", "-c", block("sh")], timeout=60)
    clone, settings, smbios, start = (call.argv for call in qm.calls())
    assert clone == ["clone", "9000", "104", "--name", "web1", "--full", "1", "--pool", "golden-clones"]
    assert start == ["start", "104"]
    pairs = dict(zip(settings[2::2], settings[3::2], strict=True))
    request = Request(name="web1", addresses="ip=192.0.2.10/24,gw=192.0.2.1", keys="")
    wanted = clone_machine.wanted({}, request, user="admin")
    said = {key: pairs[f"--{key}"] for key in wanted if key not in ("sshkeys", "smbios1")}
    assert said == {key: str(wanted[key]) for key in said}
    assert said.keys() == {"protection", "onboot", "ciuser", "ipconfig0", "ciupgrade"}
    assert smbios[:3] == ["set", "104", "--smbios1"]
    assert told(golden_site, sku(smbios[3])) == SITE


def test_the_playbook_tells_the_site(golden_site: ModuleType) -> None:
    [play] = yaml.safe_load(block("yaml"))
    _clone, settings, _start = (task["community.proxmox.proxmox_kvm"] for task in play["tasks"])
    environment = jinja2.Environment(autoescape=False)
    # As Ansible has them.
    environment.filters |= {
        "to_json": json.dumps, "b64encode": lambda text: base64.b64encode(text.encode()).decode(),
        "to_uuid": lambda text: str(uuid.uuid5(uuid.NAMESPACE_DNS, text)),
    }  # fmt: skip
    value = environment.from_string(settings["smbios"]).render(site=play["vars"]["site"])
    assert told(golden_site, sku(value)) == SITE
    assert (settings["protection"], settings["onboot"], settings["ciupgrade"]) == (False, True, False)


def test_the_resource_tells_the_site(golden_site: ModuleType) -> None:
    found = re.search(r'sku = "golden:\$\{jsonencode\((.*)\)\}"', block("hcl"))
    assert found
    text = re.sub(r"(\w+) =", r'"\1":', found[1])
    assert told(golden_site, f"golden:{text}") == SITE


def test_clone_itself_tells_the_site(golden_site: ModuleType) -> None:
    assert told(golden_site, sku(pve_guest.smbios(f"uuid={uuid.uuid4()}", SITE))) == SITE
