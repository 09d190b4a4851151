"""The image's Python package: every layer adds modules, and each command and unit starts an existing module."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from tests.unit.golden_modules import golden_module
from tests.unit.helpers import ROOT

PACKAGE = "rootfs/usr/lib/python3/dist-packages/golden"
MODULES = sorted([*ROOT.glob(f"overlays/*/{PACKAGE}/**/*.py"), *ROOT.glob(f"overlays/*/with/*/{PACKAGE}/**/*.py")])
STARTERS = sorted(ROOT.glob("overlays/*/rootfs/usr/sbin/golden-*"))
STARTER = """\
#!/usr/bin/python3 -I
\"\"\"{name}: golden/commands/{module}.py.\"\"\"

from golden.commands.{module} import main

main()
"""
TESTS = [
    path.read_text(encoding="utf-8") for path in (ROOT / "tests/unit").rglob("test_*.py") if path.name != Path(__file__).name
]
# Parts of a module that is tested as a whole: of golden.site, of bundles and archives, and of golden-verify.
FROM_TESTED = {"golden.site_yaml", "golden.site_table", "golden.tar", "golden.web"}
# Debian's module that the ACME client calls is in the image only.
ON_THE_CLONE_ONLY = {"acme"}


def module_of(path: Path) -> str:
    """Return the dotted name of a module's file."""
    return ".".join(path.relative_to(path.parents[path.parts[::-1].index("golden")]).with_suffix("").parts)


def test_every_layer_may_add_modules() -> None:
    """An __init__.py would make Python look in one directory only; a second module of a name would hide the first."""
    assert len(MODULES) > 40
    assert not [path for path in MODULES if path.name == "__init__.py"]
    assert [name for name, times in Counter(map(module_of, MODULES)).items() if times > 1] == []


@pytest.mark.parametrize("path", [path for path in MODULES if path.parent.name != "site_keys"], ids=module_of)
def test_every_module_has_a_test(path: Path) -> None:
    """By its name in a test, as a module or as a command; keys of site.yaml are tested through golden.site."""
    name = module_of(path)
    words = [f'"{name}"', f'"{name}.', *([f'command("{path.stem}"'] if path.parent.name == "commands" else [])]
    assert any(word in text for word in words for text in TESTS) or name in FROM_TESTED, f"no test of {name}"


def test_no_program_changes_the_search_path() -> None:
    programs = [*MODULES, *STARTERS, *ROOT.glob("tests/image/*.py")]
    assert [str(path) for path in programs if "sys.path" in path.read_text(encoding="utf-8")] == []


@pytest.mark.parametrize("path", STARTERS, ids=lambda path: path.name)
def test_a_command_starts_the_module_of_its_name(path: Path) -> None:
    module = path.name.removeprefix("golden-").replace("-", "_")
    assert path.read_text(encoding="utf-8") == STARTER.format(name=path.name, module=module)
    assert path.stat().st_mode & 0o111
    assert (path.parents[3] / PACKAGE / "commands" / f"{module}.py").is_file()
    assert callable(golden_module(f"golden.commands.{module}").main)


def test_every_command_has_a_starter_or_a_unit() -> None:
    roots = [*ROOT.glob("overlays/*/rootfs"), *ROOT.glob("overlays/*/with/*/rootfs")]
    units = [path for root in roots for path in root.glob("etc/systemd/system/**/*") if path.is_file()]
    text = "\n".join(path.read_text(encoding="utf-8") for path in units)
    started = dict.fromkeys(re.findall(r"^ExecStart=/usr/bin/python3 -I -m golden\.commands\.(\w+)$", text, re.MULTILINE))
    assert text.count("golden.commands.") == len(started)
    typed = {path.name.removeprefix("golden-").replace("-", "_") for path in STARTERS}
    commands = {path.stem: path for path in MODULES if path.parent.name == "commands"}
    assert sorted([*started, *typed]) == sorted(commands)
    for name in started:
        assert '\nif __name__ == "__main__":\n    main()\n' in commands[name].read_text(encoding="utf-8")


@pytest.mark.parametrize("path", MODULES, ids=module_of)
def test_every_module_can_be_imported_on_the_build_host(path: Path) -> None:
    if path.stem not in ON_THE_CLONE_ONLY:
        assert golden_module(module_of(path)).__file__ == str(path)
