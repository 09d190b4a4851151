"""golden-app: why a management command of the application failed."""

from __future__ import annotations

import pytest

from tests.unit.golden_modules import golden_module

managing = golden_module("golden.manage")


@pytest.mark.parametrize(
    ("output", "brief", "foreign"),
    [
        ("Unknown command: 'account'\nType 'manage.py help' for usage.\n", "has no command 'account'", True),
        ("Unknown command: 'account'. Did you mean x?\nType 'manage.py help' for usage.", "this application has no", True),
        ("CommandError: there is no account bob\n", "there is no account bob", False),
        ("warning\nCommandError: first\nmore about it", "first", False),
        ("usage: manage.py account [-h]\nmanage.py account: error: unrecognized arguments: -x", "unrecogn", True),
        ("Traceback (most recent call last):\n  File x\nKeyError: 'SECRET'\n", "KeyError: 'SECRET'", False),
        ("\n", "the application's command account failed without output", False),
    ],
)
def test_reason(output: str, brief: str, foreign: bool) -> None:  # noqa: FBT001
    found, hint = managing.reason(output, "account")
    assert brief in found
    assert "Type 'manage.py" not in found
    assert (hint == managing.FOREIGN) is foreign
