"""The image tests as a program: the real ones can be started as a build starts them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from build.core import run
from build.verify import image_tests
from tests.patience import PATIENCE_SECONDS
from tests.unit.helpers import ROOT


@pytest.mark.parametrize("place", ["image", "faults"])
def test_the_real_tests_need_no_plugin(place: str, tmp_path: Path) -> None:
    """They are started without the plugins that happen to be installed; in a container, without pytest-xdist too."""
    context = tmp_path / "context.json"
    context.write_text(json.dumps({"spec": {}}))
    command = [sys.executable, "-m", "pytest", "--collect-only", "--quiet", "-p", "no:cacheprovider", f"tests/{place}"]
    done = run.run([*command, "--context", context], cwd=ROOT, env=image_tests.ENVIRONMENT, timeout=PATIENCE_SECONDS)
    assert "tests collected" in done.stdout
