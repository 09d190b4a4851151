"""The recipe of docs/how-to/replacing.md for a node exchanges two VMs, and rolls back after a failure."""

from __future__ import annotations

import re

import pytest
import yaml

from build.clone import data_disk
from build.core import run
from build.core.errors import CommandFailed
from tests.fakes import Fakes
from tests.unit.helpers import ROOT

PAGE = (ROOT / "docs" / "how-to" / "replacing.md").read_text(encoding="utf-8")
RUN_SECONDS = 60


def block(kind: str) -> str:
    """Return the one block of a kind on the page."""
    [found] = re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    return str(found)


def test_the_recipe_exchanges_the_machines(only_fakes: Fakes) -> None:
    qm = only_fakes.command("qm", {"when": []})
    only_fakes.command("curl")
    only_fakes.real("sh", "grep", "timeout", "sleep")
    run.run(["sh", "-c", block("sh")], timeout=RUN_SECONDS)
    calls = [call.argv for call in qm.calls()]
    assert [call[0] for call in calls] == ["set", "shutdown", "disk", "start", "set"]
    assert calls[2] == ["disk", "move", "104", "scsi1", "--target-vmid", "105", "--target-disk", "scsi1"]
    assert (calls[3], calls[4]) == (["start", "105"], ["set", "105", "--onboot", "1"])


def test_the_recipe_goes_back(only_fakes: Fakes) -> None:
    qm = only_fakes.command("qm", {"when": ["start", "105"], "status": 1}, {"when": []})
    only_fakes.command("curl")
    only_fakes.real("sh", "grep", "timeout", "sleep")
    with pytest.raises(CommandFailed):
        run.run(["sh", "-c", block("sh")], timeout=RUN_SECONDS)
    calls = [call.argv for call in qm.calls()]
    assert calls[-3] == ["disk", "move", "105", "scsi1", "--target-vmid", "104", "--target-disk", "scsi1"]
    assert calls[-1] == ["start", "104"]


def test_the_recipes_use_the_serial_number_of_the_image() -> None:
    assert f'serial       = "{data_disk.SERIAL}"' in block("hcl")
    [task] = yaml.safe_load(block("yaml"))
    assert task["community.proxmox.proxmox_disk"]["disk"] == data_disk.KEY
    assert f"serial={data_disk.SERIAL}" in block("sh")
