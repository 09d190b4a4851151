"""The contract of an application, golden-app.yaml, for the checks of the bundle.

The reader is the image's own module (golden/contract.py): the workstation, the build of the image and golden-deploy read the
file by the same code.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from build.core import image_programs

_reader = image_programs.module("golden.contract")
NAME: str = _reader.NAME
# The packages that gunicorn needs to serve an ASGI callable, and those for WebSockets.
ASGI_PACKAGES, WEBSOCKET_PACKAGES = ("uvicorn", "uvicorn-worker"), ("websockets", "wsproto")


@dataclass(frozen=True)
class AppContract:
    """The declarations of an application, with defaults, and the problems of its file."""

    values: Mapping[str, Any]
    problems: tuple[str, ...]

    @property
    def callable(self) -> str:
        """The callable that the application server starts; empty: the image's default."""
        entry = self.values["entry"]
        return str(entry["asgi"] or entry["wsgi"])

    @property
    def settings(self) -> str:
        """The settings module; empty: manage.py has none."""
        return str(self.values["entry"]["settings"])

    def missing_packages(self, locked: Collection[str]) -> Iterator[str]:
        """Yield a problem for each package that the contract needs and the lock lacks."""
        if not self.values["entry"]["asgi"]:
            return
        for name in ASGI_PACKAGES:
            if name not in locked:
                yield f"{name} is missing, which entry.asgi of {NAME} needs: add it to your packages"
        if self.values["web"]["websockets"] and not {*WEBSOCKET_PACKAGES} & {*locked}:
            yield f"no package for WebSockets, which {NAME} declares: add websockets to your packages"


def read(directory: Path) -> AppContract:
    """Return the contract of the application in ``directory``; the default one if there is no file."""
    values, faults = _reader.load(directory)
    return AppContract(values, tuple(f"{NAME}: {fault}" for fault in faults))
