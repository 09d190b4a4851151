"""The pages for operators: their commands and options exist, and their user data is what the image accepts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.unit.golden_modules import golden_module
from tests.unit.helpers import ROOT

PAGES = ("docs/operations/operations.md", "docs/operations/incident.md")
COMMANDS = {
    path.name: Path(str(golden_module(f"golden.commands.{path.name.removeprefix('golden-').replace('-', '_')}").__file__))
    for path in ROOT.glob("overlays/*/rootfs/usr/sbin/golden-*")
}


def shown_commands(page: str) -> list[list[str]]:
    """Return the words of every golden-* command in a console block."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL)
    lines = [line[2:].split("#")[0] for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    parts = [part.strip().removeprefix("sudo ") for line in lines for part in re.split(r"&&|;|\|", line)]
    return [part.split() for part in parts if part.startswith("golden-")]


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_options_exist(page: str) -> None:
    shown = shown_commands(page)
    assert len(shown) > 3
    for name, *words in shown:
        assert name in COMMANDS, f"{page}: there is no {name}"
        source = COMMANDS[name].read_text(encoding="utf-8")
        missing = [word for word in words if word.startswith("--") and f'"{word}"' not in source]
        assert not missing, f"{page}: {name} has no {missing}"


@pytest.mark.parametrize("page", PAGES)
def test_every_command_that_is_named_exists(page: str) -> None:
    named = set(re.findall(r"`(?:sudo )?(golden-[a-z]+)[ `]", (ROOT / page).read_text(encoding="utf-8")))
    assert named <= set(COMMANDS)


def test_user_data_sets_everything_and_is_accepted() -> None:
    text = (ROOT / "docs/operations/operations.md").read_text(encoding="utf-8")
    found = re.search(r"```yaml\n(#cloud-config.*?)```", text, flags=re.DOTALL)
    assert found
    files = {one["path"]: one["content"] for one in yaml.safe_load(found[1])["write_files"]}
    settings, faults = golden_module("golden.site").parse(files["/etc/golden/site.yaml"])
    # The files that it names are on the clone, not here.
    assert {fault.key for fault in faults} == {"log_collector.ca", "admin_proxy.client_ca"}
    assert "/etc/golden/site-ca.pem" in files
    # Every key of the full image.
    assert set(yaml.safe_load(files["/etc/golden/site.yaml"])) == set(settings) - {"sites", "database", "database_clients"}
