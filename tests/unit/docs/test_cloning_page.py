"""The page about cloning: its options exist, and every option of ``clone`` is on it."""

from __future__ import annotations

import argparse
import re

from build.cli import loading, main
from build.cli import options as common
from tests.unit.helpers import ROOT

PAGE = (ROOT / "docs/how-to/cloning.md").read_text(encoding="utf-8")


def offered(command: str) -> set[str]:
    """Return the options that a command has."""
    parser = argparse.ArgumentParser()
    loading.load(command).options(parser)
    common.add_log(parser)
    return set(parser._option_string_actions)


def test_its_options_exist() -> None:
    known = {option for command in main.COMMANDS for option in offered(command)}
    ours = PAGE[: PAGE.index("## Without Goldsmith")]
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", ours)) <= known


def test_every_option_of_clone_is_on_it() -> None:
    options = {option for option in offered("clone") if option.startswith("--")}
    unnamed = {option for option in options if option not in PAGE}
    assert unnamed == {"--help", "--wait", "--secrets", "--project", "--spec", "--cache", "--verbose"}
