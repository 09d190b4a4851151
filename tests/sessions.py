"""What the sessions outside of `python -m build` share: their errors and exit codes, and what a container needs."""

from __future__ import annotations

from collections.abc import Callable

from build.core import host, log, run
from build.core.errors import EXIT_INTERRUPTED, GoldsmithError, HostError


def exit_code(act: Callable[[], int]) -> int:
    """Return the exit code of what a session does; an error is shown, and has its own."""
    try:
        return act()
    except GoldsmithError as error:
        log.error(error.render())
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def need_container(*, install: bool) -> None:
    """Raise HostError unless this host can boot a container; missing packages are installed if that is allowed."""
    if not run.is_root():
        raise HostError("a container that boots systemd needs root", hint="run it as root")
    host.ensure(host.needed((host.CONTAINER,), container=True), install=install)
