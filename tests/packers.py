"""Every Packer on this host, for the tests that want the real one; and a current one with plugins, compiled for them.

    nox -s packers    Packer and its plugins qemu and proxmox, from locked sources, once (needs Go, takes some minutes)

Building on a node needs the proxmox plugin 1.2.4, which the module proxy does not serve. tests/tools locks the newest that
it does: it runs the same source, with the build block of packer/proxmox/plugin but for two things that it does not know.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from build.cli import options
from build.core import files, log, run
from build.core.errors import GoldsmithError, HostError, StepFailed
from build.disk import packer
from build.publish import node_packer

TEMPLATES = Path(__file__).parents[1] / "packer"
TOOLS = TEMPLATES / "tools"
PLUGIN_TOOLS = Path(__file__).parent / "tools"
PLUGIN_MODULE = "github.com/hashicorp/packer-plugin-proxmox"
GET_CURRENT = "a current Packer and its plugins: nox -s packers   (needs Go: apt-get install --yes golang-go)"

# What the older plugin does not support in packer/proxmox/plugin/build.pkr.hcl, and the replacement that it supports.
NEWER_THAN_THE_LOCK = (
    (r'version = ">= 1\.2\.4"', 'version = ">= 1.1.1"'),
    (r"boot_iso \{.*?\n    \}", "iso_file    = var.iso_file\n    unmount_iso = true"),
    (r" *skip_convert_to_template = true\n", ""),
)


def cache() -> Path:
    """Return where compiled Packers are."""
    return options.default_cache() / "packer"


def packers() -> list[packer.Packer]:
    """Return the Packer of $PACKER, the one in PATH and the one compiled into the cache, each file once."""
    found: dict[Path, packer.Packer] = {}
    for chosen in (os.environ.get("PACKER", ""), ""):
        one = packer.find(tools=TOOLS, cache=cache(), chosen=chosen)
        if one is not None:
            found[one.path.resolve()] = one
    compiled = packer.compiled(tools=TOOLS, cache=cache())
    if compiled is not None:
        found[compiled.path.resolve()] = compiled
    return list(found.values())


def proxmox_plugins() -> Path | None:
    """Return the directory with the compiled proxmox plugin, or None."""
    directory = packer.locked_directory(tools=PLUGIN_TOOLS, cache=cache()) / "plugins"
    return directory if any((directory / node_packer.PLUGIN).glob(node_packer.PLUGIN_FILE)) else None


def with_proxmox() -> packer.Packer | None:
    """Return the compiled Packer with the compiled proxmox plugin, or None when one of them is not there."""
    found, plugins = packer.compiled(tools=TOOLS, cache=cache()), proxmox_plugins()
    return packer.Packer(found.path, found.version, plugins) if found and plugins else None


def for_the_locked_plugin(directory: Path) -> None:
    """Rewrite the build block in a workspace of build/publish/node_packer.py for the plugin of tests/tools.

    Raises StepFailed when the block has not what is replaced.
    """
    path = directory / "build.pkr.hcl"
    text = path.read_text(encoding="utf-8")
    for pattern, instead in NEWER_THAN_THE_LOCK:
        text, count = re.subn(pattern, instead, text, flags=re.DOTALL)
        if count != 1:
            raise StepFailed(f"{pattern} stands {count} times in {path}", hint="tests/packers.py expects it once")
    path.write_text(text, encoding="utf-8")


def compile_all() -> packer.Packer:
    """Compile the locked Packer and its plugins unless they are there. Raises HostError without Go, StepFailed."""
    if not packer.has_go():
        raise HostError("there is no Go here that can compile Packer", hint=packer.GET_PACKER)
    found = packer.compile_locked(tools=TOOLS, cache=cache())
    final = packer.locked_directory(tools=PLUGIN_TOOLS, cache=cache())
    with files.lock(cache() / f"{final.name}.lock", waiting="another run compiles the plugin; waiting for it"):
        if proxmox_plugins() is None:
            doing = "Compiling Packer's proxmox plugin from locked sources, once (a minute or two)"
            with log.step(doing), files.scratch(cache()) as scratch:
                _compile_plugin(scratch, found.path)
                files.commit_directory(scratch, final)
    made = with_proxmox()
    if made is None:
        raise StepFailed(f"the plugin was compiled, but {final} does not contain it")
    return made


def _compile_plugin(directory: Path, program: Path) -> None:
    """Compile the plugin, and let Packer install it below ``directory/plugins``: that writes the digest it asks for."""
    plugin, home = directory / Path(PLUGIN_MODULE).name, directory / packer.HOME
    run.run(
        ["go", "build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-o", plugin, PLUGIN_MODULE],
        cwd=PLUGIN_TOOLS, timeout=packer.COMPILE_SECONDS, contained=True,
        env={"CGO_ENABLED": "0", "GOTOOLCHAIN": "auto", "GOWORK": "off"},
        hint="the modules come through Go's own proxy settings (go env GOPROXY)",
    )  # fmt: skip
    home.mkdir()
    run.run(
        [program, "plugins", "install", "--path", plugin, node_packer.PLUGIN], timeout=packer.VALIDATE_SECONDS,
        env={**node_packer.QUIET, "HOME": str(home), "PACKER_PLUGIN_PATH": str(directory / "plugins")},
    )  # fmt: skip
    plugin.unlink()
    files.remove_tree(home)


def main(argv: Sequence[str] | None = None) -> int:
    """Compile what is not there; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.packers", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--if-none", action="store_true", help="only where there is no Packer at all, and Go is there")
    arguments = parser.parse_args(argv)
    log.configure(json_lines=False, verbose=False)
    try:
        if arguments.if_none and (packers() or not packer.has_go()):
            return 0
        found = compile_all()
    except GoldsmithError as error:
        log.error(error.render())
        return error.exit_code
    except KeyboardInterrupt:
        log.error("Interrupted. Nothing incomplete is left.")
        return 130
    log.info(f"{found.name} is {found.path}; its proxmox plugin is below {found.plugins}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
