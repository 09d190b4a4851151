"""An error message has three parts, and the class of the error determines the exit code."""

from __future__ import annotations

import pytest

from build.core.errors import CommandFailed, GoldsmithError, HostError, SpecError, StepFailed, VerificationFailed


def test_brief_alone_is_one_line() -> None:
    assert GoldsmithError("the disk is square").render() == "the disk is square"


def test_details_are_indented_and_the_hint_comes_last() -> None:
    error = StepFailed("it failed", details="first\nsecond\n", hint="do this")
    assert error.render() == "it failed\n    first\n    second\n  -> do this"
    assert str(error) == "it failed"


@pytest.mark.parametrize(
    ("kind", "code"), [(GoldsmithError, 1), (StepFailed, 1), (SpecError, 2), (HostError, 2), (VerificationFailed, 3)]
)
def test_exit_codes(kind: type[GoldsmithError], code: int) -> None:
    assert kind("x").exit_code == code


def test_a_failed_command_is_a_failed_step_that_tells_its_status() -> None:
    error = CommandFailed("tar failed with status 2", returncode=2, details="no space", hint="look")
    assert isinstance(error, StepFailed)
    assert (error.exit_code, error.returncode, error.details, error.hint) == (1, 2, "no space", "look")
