"""The modules of the image's golden-* commands, imported on the host as the commands import them on a clone."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

from tests.unit.helpers import ROOT

for _place in sorted(ROOT.glob("overlays/*/rootfs/usr/lib/golden")):
    if str(_place) not in sys.path:
        # Behind everything else: no module of the image may hide one of ours.
        sys.path.append(str(_place))


def golden_module(name: str) -> ModuleType:
    """Return a module of /usr/lib/golden."""
    return importlib.import_module(name)
