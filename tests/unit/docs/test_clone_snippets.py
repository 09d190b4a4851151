"""The recipes of docs/how-to/clone-snippets.md: they parse, the shell one runs, a clone accepts them."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

from build.core import run
from build.proxmox import guest_agent
from tests.fakes import Fakes
from tests.packers import packers
from tests.unit.golden_modules import golden_module
from tests.unit.helpers import ROOT

PAGE = ROOT / "docs" / "how-to" / "clone-snippets.md"
SITE = {"admin_cidrs": ["192.0.2.0/24"], "server_names": ["www.example.org"]}
OLD = "uuid=9b72d386-92ed-408d-8e9e-337fde4a2b7b"
RUN_SECONDS = 60


def block(kind: str) -> str:
    """Return the one block of a kind on the page."""
    [found] = re.findall(rf"^```{kind}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return str(found)


def accepted(sku: str, place: Path) -> dict[str, Any]:
    """Return what a clone makes of a field of its firmware; anything it does not accept fails the test."""
    hypervisor = place / "product_sku"
    hypervisor.write_text(f"{sku}\n")
    settings, faults = golden_module("golden.site").collect(place / "site.yaml", hypervisor=hypervisor)
    assert faults == []
    return {key: settings[key] for key in SITE}


def decoded(smbios1: str) -> str:
    """Return the field ``sku`` as the machine sees it."""
    assert smbios1.startswith(f"{OLD},base64=1,sku=")
    assert len(smbios1) <= guest_agent.SMBIOS_LENGTH
    return base64.b64decode(smbios1.rpartition("sku=")[2], validate=True).decode()


def test_the_example_is_what_a_clone_accepts(tmp_path: Path) -> None:
    assert accepted(block("text").strip(), tmp_path) == SITE


def test_our_own_way_tells_the_same(tmp_path: Path) -> None:
    assert accepted(decoded(guest_agent.smbios(OLD, SITE)), tmp_path) == SITE


def test_the_recipe_for_a_node_runs(only_fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    qm = only_fakes.command("qm", {"when": ["config"], "stdout": f"name: www.example.org\nsmbios1: {OLD}\n"}, {"when": []})
    curl = only_fakes.command("curl")
    only_fakes.real("sh", "grep", "base64", "timeout", "sleep")
    run.run(["sh", "-c", block("sh")], timeout=RUN_SECONDS)
    clone, _config, inherited, told, start = [call.argv for call in qm.calls()]
    assert clone == ["clone", "9000", "200", "--name", "www.example.org", "--full", "1", "--pool", "golden-clones"]
    assert inherited[:4] == ["set", "200", "--protection", "0"]
    assert start == ["start", "200"]
    options = dict(zip(told[2::2], told[3::2], strict=True))
    assert options["--ipconfig0"] == "ip=192.0.2.10/24,gw=192.0.2.1"
    assert options["--ciupgrade"] == "0"
    assert accepted(decoded(options["--smbios1"]), tmp_path) == SITE
    [asked] = [call.argv for call in curl.calls()]
    assert asked[-3:] == ["--resolve", "www.example.org:443:192.0.2.10", "https://www.example.org/health"]


def test_the_playbook_tells_a_clone_the_same(tmp_path: Path) -> None:
    [play] = yaml.safe_load(block("yaml"))
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)
    # Ansible's own filters, by their documented meaning.
    environment.filters["to_json"] = json.dumps
    environment.filters["b64encode"] = lambda text: base64.b64encode(text.encode()).decode()
    environment.filters["regex_search"] = lambda text, pattern: re.search(pattern, text)[0]  # type: ignore[index]
    [task] = [one for one in play["tasks"] if "smbios" in one.get("community.proxmox.proxmox_kvm", {})]
    sku = environment.from_string(play["vars"]["sku"]).render(site=play["vars"]["site"])
    found = {"proxmox_vms": [{"config": {"smbios1": f"{OLD},base64=1"}}]}
    text = environment.from_string(task["community.proxmox.proxmox_kvm"]["smbios"]).render(found=found, sku=sku)
    assert accepted(decoded(text), tmp_path) == SITE
    assert {key: task["community.proxmox.proxmox_kvm"][key] for key in ("protection", "ciupgrade")} == {
        "protection": False, "ciupgrade": False,
    }  # fmt: skip


def test_the_module_tells_a_clone_the_same(tmp_path: Path) -> None:
    """The provider encodes what it is given: the text is the one that the clone reads."""
    text = block("hcl")
    assert 'sku = "golden:${jsonencode(local.site)}"' in text
    [site] = re.findall(r"^  site = \{\n(.*?)^  \}$", text, flags=re.MULTILINE | re.DOTALL)
    told = {key: json.loads(value) for key, value in re.findall(r"^ +(\w+) += (\[.*\])$", site, flags=re.MULTILINE)}
    assert accepted(f"golden:{json.dumps(told)}", tmp_path) == SITE


def test_the_module_is_well_formed(tmp_path: Path) -> None:
    found = packers()
    if not found:
        pytest.skip("there is no Packer on this host, which reads the same language; the contract tests say how to get one")
    path = tmp_path / "clone.pkr.hcl"
    path.write_text(block("hcl"), encoding="utf-8")
    done = run.run([found[0].path, "fmt", "-check", "-diff", path], timeout=RUN_SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    path.write_text(block("hcl").replace("smbios {", "smbios {{"), encoding="utf-8")
    assert run.run([found[0].path, "fmt", "-check", path], timeout=RUN_SECONDS, check=False).returncode != 0
