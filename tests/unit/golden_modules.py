"""The modules of the image's golden-* commands, imported on the host as the commands import them on a clone."""

from __future__ import annotations

from types import ModuleType

from build.core import image_programs


def golden_module(name: str) -> ModuleType:
    """Return a module of the package golden, such as golden.site, as it is on a clone."""
    return image_programs.module(name)
