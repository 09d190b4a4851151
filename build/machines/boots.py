"""Boots test VMs in parallel, with one thread for each; each can be used as soon as it is ready."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from build.core import log
from build.machines import nocloud, vm
from build.machines.acceleration import Accelerator


@contextmanager
def clones(
    image: Path, configs: Sequence[vm.CloneConfig], *, directory: Path, accelerator: Accelerator, identity: nocloud.Identity,
    expected_seconds: float = 0.0,
) -> Iterator[tuple[vm.Clone, ...]]:  # fmt: skip
    """Start VMs in parallel and yield them when all are ready."""
    progress = log.Progress("booting clones", expected_seconds)
    with booting(image, configs, directory=directory, accelerator=accelerator, identity=identity) as boots:
        try:
            while not boots.all_ready(0.5):
                progress.update(boots.state)
        finally:
            progress.finish()
        yield boots.clones


class Boots:
    """VMs that boot in parallel. One thread for each waits for its VM, keeps its connection, and calls ``on_ready``."""

    def __init__(
        self, started: tuple[vm.Clone, ...], identity: nocloud.Identity, on_ready: Callable[[vm.Clone, vm.Tell], None]
    ) -> None:
        self.clones = started
        self._identity, self._on_ready = identity, on_ready
        self._doing = {clone.config.name: "starting" for clone in started}
        self._problems: list[BaseException] = []
        self._ready = [threading.Event() for _ in started]
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._follow, args=(clone, ready))
            for clone, ready in zip(started, self._ready, strict=True)
        ]

    @property
    def state(self) -> str:
        """The state of each VM, in one line."""
        return ", ".join(f"{name}: {state}" for name, state in self._doing.items())

    def all_ready(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds; return True if every VM is ready. Raises the first error of any VM."""
        deadline = time.monotonic() + timeout
        for ready in self._ready:
            ready.wait(max(0.0, deadline - time.monotonic()))
        if self._problems:
            raise self._problems[0]
        return all(ready.is_set() for ready in self._ready)

    def begin(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def end(self, *, at_once: bool) -> None:
        """Close the connections; ``at_once``: end the VMs first, so that the threads stop waiting."""
        self._over.set()
        if at_once:
            for clone in self.clones:
                clone.process.terminate()
        for thread in self._threads:
            thread.join()

    def _follow(self, clone: vm.Clone, ready: threading.Event) -> None:
        def tell(what: str) -> None:
            self._doing[clone.config.name] = what

        try:
            vm.wait_ready(clone, self._identity, tell=tell)
            # The kernel ends a child with the thread that started it: this thread runs as long as the connection.
            with vm.shared_connection(clone):
                self._on_ready(clone, tell)
                tell("ready")
                ready.set()
                self._over.wait()
        except Exception as error:  # noqa: BLE001 (raised again by the thread that waits)
            self._problems.append(error)
            ready.set()


def _nothing_more(_made: vm.Clone, _tell: vm.Tell) -> None:
    """Do nothing with a VM that is ready."""


@contextmanager
def booting(
    image: Path, configs: Sequence[vm.CloneConfig], *, directory: Path, accelerator: Accelerator, identity: nocloud.Identity,
    on_ready: Callable[[vm.Clone, vm.Tell], None] = _nothing_more,
) -> Iterator[Boots]:  # fmt: skip
    """Start VMs in parallel and yield at once; a thread waits for each VM, and then calls ``on_ready``.

    A VM is ready when ``on_ready`` has returned; an exception of ``on_ready`` is an error of that VM.
    """
    with ExitStack() as stack:
        started = [
            stack.enter_context(
                vm.clone(image, config, directory=directory / config.name, accelerator=accelerator, identity=identity)
            )
            for config in configs
        ]
        boots = Boots(tuple(started), identity, on_ready)
        boots.begin()
        try:
            yield boots
        except BaseException:
            boots.end(at_once=True)
            raise
        boots.end(at_once=False)
