"""The modules of the image's Python package ``golden``, imported from the layers of this checkout (decision 20)."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

OVERLAYS = Path(__file__).parents[2] / "overlays"
PACKAGES = "rootfs/usr/lib/python3/dist-packages"


def module(name: str) -> ModuleType:
    """Import a module such as golden.site as the image's programs import it on a clone, with the modules of all layers."""
    for directory in sorted([*OVERLAYS.glob(f"*/{PACKAGES}"), *OVERLAYS.glob(f"*/with/*/{PACKAGES}")]):
        if str(directory) not in sys.path:
            # Behind everything else: no module of the image may hide one of Goldsmith.
            sys.path.append(str(directory))
    return importlib.import_module(name)


def layer_of(found: ModuleType) -> str:
    """Return the layer that a module of the image is in, such as 70-backup."""
    return Path(str(found.__file__)).relative_to(OVERLAYS).parts[0]
