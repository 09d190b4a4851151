"""The application of this machine, whose database and media a backup has; a database server has no application."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Protocol

from golden.core import CHECK_FAILED, Problem
from golden.postgres import Server

# The part of this layer for the layer of an application.
MODULE = "golden.application_data"
NO_MEDIA = Path("/var/lib/golden-restore/no-media")


class Application(Protocol):
    """What a module has that backs up and restores the data of an application beside its database.

    ``MEDIA`` is the tree of its uploads, ``FRESH`` the place on the same file system where one is restored.
    """

    @property
    def MEDIA(self) -> Path: ...  # noqa: N802 (a constant of a module)

    @property
    def FRESH(self) -> Path: ...  # noqa: N802 (as above)

    def release(self) -> str:
        """Return the name of the release that serves; empty without one."""

    def newer(self, server: Server, database: str, restored: str) -> bool:
        """Return True if the migrations of a database differ from those of the restored one."""

    def adopt(self, media: Path) -> None:
        """Give a restored tree the owner and the modes that uploads have."""

    def stop(self) -> None:
        """Stop the application."""

    def start(self) -> None:
        """Start it again after a failure, without a check."""

    def bring_up(self, *, newer: bool) -> None:
        """Start it on what was restored; raise Problem, with it stopped, when it is not healthy."""


def application() -> Application | None:
    """Return the module of this machine's application, or None on a machine that has only the database."""
    if importlib.util.find_spec(MODULE) is None:
        return None
    module: Application = importlib.import_module(MODULE)
    return module


def require_no_media(files: int) -> None:
    """Raise Problem (CHECK_FAILED) for a backup with media on a machine without an application."""
    if files:
        raise Problem(
            f"the backup has {files} media files, and this machine has no application to give them to",
            hint="restore it on a clone of an image with the application", code=CHECK_FAILED,
        )  # fmt: skip
