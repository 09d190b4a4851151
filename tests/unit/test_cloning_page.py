"""The page about cloning: its options exist, and every option of ``clone`` is on it."""

from __future__ import annotations

import argparse
import re

from build import cli, clone_request
from tests.unit.helpers import ROOT

PAGE = (ROOT / "docs/cloning.md").read_text(encoding="utf-8")


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
