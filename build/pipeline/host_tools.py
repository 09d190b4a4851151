"""The host tools of the stages of a build, installed before the first stage starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from build.core import files, host, log, run
from build.disk import packer
from build.machines import acceleration


@dataclass(frozen=True)
class Toolset:
    """The tools of the stages that will run.

    ``cache`` is the cache directory, ``packer_sources`` the Go module of the locked Packer, ``chosen_packer`` the value of
    $PACKER, ``wanted`` the accelerator that the user chose.
    """

    stages: tuple[str, ...]
    cache: Path
    packer_sources: Path
    chosen_packer: str = ""
    wanted: acceleration.Kind | None = None

    def tools(self) -> tuple[host.Tool, ...]:
        """Return the required tools, as far as known before a test guest has run.

        The accelerator decides whether a container runs the long service tests: its tool is included if KVM is
        certainly not used. Raises HostError if the chosen Packer cannot be used.
        """
        tools = host.needed((host.LOCKS, host.CONTAINER, *self.stages), container=self._surely_container())
        missing = self._missing_packer()
        return (*tools, missing) if missing else tools

    def bring(self, *, install: bool, probed: acceleration.Accelerator | None = None) -> acceleration.Accelerator | None:
        """Install missing tools; return the accelerator for the VMs of the stages, None if they start no VM.

        Raises HostError with the missing packages if they cannot be installed.
        """
        host.ensure(self.tools(), install=install)
        if not {*host.GUESTS} & {*self.stages}:
            return probed
        accelerator = probed or self._probe()
        if "verify" in self.stages and plays_stories(accelerator):
            host.ensure(host.needed((host.CONTAINER,), container=True), install=install)
        return accelerator

    def _surely_container(self) -> bool:
        if "verify" not in self.stages or not run.is_root():
            return False
        if self.wanted:
            return self.wanted is acceleration.Kind.TCG
        return bool(acceleration.refuse_device(acceleration.KVM_DEVICE))

    def _missing_packer(self) -> host.Tool | None:
        if "disk" not in self.stages:
            return None
        return packer.missing_tool(tools=self.packer_sources, cache=self.cache / "packer", chosen=self.chosen_packer)

    def _probe(self) -> acceleration.Accelerator:
        with log.step("Probing the accelerator"), files.scratch(self.cache / "probe") as scratch:
            accelerator = acceleration.probe(workdir=scratch, wanted=self.wanted)
            log.info(f"{accelerator.kind}: {accelerator.reason}")
            return accelerator


def plays_stories(accelerator: acceleration.Accelerator) -> bool:
    """Return True if a container runs the long service tests: if that is faster than in a VM, and possible."""
    return accelerator.kind is acceleration.Kind.TCG and run.is_root()


def missing_lines(tools: Sequence[host.Tool]) -> str:
    """Return the missing packages with their reasons and the command that installs them; empty if none is missing."""
    packages = host.missing_packages(tools)
    if not packages:
        return ""
    return f"Missing on this host:\n{host.reasons(tools)}\nInstall them, as root:\n    {host.install_command(packages)}"
