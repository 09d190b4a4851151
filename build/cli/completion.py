"""The command ``completion``: prints a bash completion for ``nox -s COMMAND -- OPTION``, made from the commands' parsers."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from build.cli import loading, main
from build.cli import options as common
from build.core import files
from build.core.errors import SpecError

NOXFILE = "noxfile.py"
# A session that is no command: nox registers the function by its name.
SESSION = re.compile(r"^@nox\.session\ndef (\w+)\(", re.MULTILINE)
# Metavariables whose values are paths.
FILE_NAMES, DIRECTORY_NAMES = frozenset({"FILE", "PATH", "ISO"}), frozenset({"DIR", "DIRECTORY"})
FILES, DIRECTORIES = "files", "directories"

SCRIPT = r"""# bash completion for nox in a checkout of Goldsmith: nox -s completion. Elsewhere nox completes its own words.
_goldsmith() {
    local current=$2 previous=$3 session='' after='' index words='' paths=''
    if ! [[ -f golden.yaml && -f noxfile.py ]]; then
        if declare -F _python_argcomplete >/dev/null; then _python_argcomplete "$@"; fi
        return
    fi
    COMPREPLY=()
    for ((index = 1; index < COMP_CWORD; index++)); do
        case ${COMP_WORDS[index]} in
            --) after=yes; break ;;
            -s|-e|--session|--sessions) session=${COMP_WORDS[index + 1]} ;;
        esac
    done
    if [[ -z $after ]]; then
        case $previous in
            -s|-e|--session|--sessions) words='@SESSIONS@' ;;
            *) words='-s -l --' ;;
        esac
    else
        case "$session $previous" in
@VALUES@
            *)
                case $session in
@OPTIONS@
                esac
                ;;
        esac
    fi
    if [[ -n $paths && $current != -* ]]; then words=$paths; fi
    case $words in
        @files) mapfile -t COMPREPLY < <(compgen -f -- "$current"); compopt -o filenames 2>/dev/null ;;
        @directories) mapfile -t COMPREPLY < <(compgen -d -- "$current"); compopt -o filenames 2>/dev/null ;;
        *) mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current") ;;
    esac
}
complete -F _goldsmith nox
"""


@dataclass(frozen=True)
class Words:
    """The words of a command: its options and the choices of its arguments, and the values of each option with a value.

    The values are words, or one of ``FILES`` and ``DIRECTORIES``; empty if they are free text. ``paths`` is one of the two
    for a command with a path as its argument.
    """

    offered: tuple[str, ...]
    values: Mapping[str, str]
    paths: str = ""


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``completion``."""
    common.add_project(parser)
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE",
        help="write it to FILE, such as ~/.local/share/bash-completion/completions/nox (default: print it)",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Print the script, or write it to a file.

    Raises SpecError when noxfile.py of the checkout cannot be read, or the file cannot be written.
    """
    script = render({name: words_of(name) for name in main.COMMANDS}, other_sessions(common.project_of(arguments).root))
    if not arguments.output:
        print(script, end="")
        return 0
    target = arguments.output.expanduser()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(target, script)
    except OSError as error:
        raise SpecError(f"--output: {target} cannot be written: {error.strerror}", hint="name another file") from error
    print(f"{target}\nNew shells complete nox -s COMMAND -- OPTION with it.")
    return 0


def other_sessions(root: Path) -> list[str]:
    """Return the sessions of noxfile.py that are no commands; raise SpecError if it cannot be read."""
    path = root / NOXFILE
    try:
        return SESSION.findall(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}", hint="--project DIR names a checkout") from error


def words_of(command: str) -> Words:
    """Return the words of a command, from its parser."""
    parser = argparse.ArgumentParser(add_help=False)
    loading.load(command).options(parser)
    common.add_log(parser)
    offered, paths = ["--help"], ""
    values: dict[str, str] = {}
    for action in parser._actions:  # noqa: SLF001 (argparse has no other list of them)
        offered += action.option_strings or _choices(action)
        if not action.option_strings and not action.choices:
            paths = paths or _values(action)
        elif action.nargs != 0:
            values |= dict.fromkeys(action.option_strings, _values(action))
    return Words(tuple(offered), values, paths)


def _choices(action: argparse.Action) -> list[str]:
    # An optional argument with several values has an empty list among its choices.
    return [str(choice) for choice in action.choices or () if choice]


def _values(action: argparse.Action) -> str:
    if action.choices:
        return " ".join(_choices(action))
    name = action.metavar if isinstance(action.metavar, str) else ""
    if name in DIRECTORY_NAMES:
        return DIRECTORIES
    return FILES if name in FILE_NAMES or action.type is Path else ""


def render(commands: Mapping[str, Words], others: Iterable[str]) -> str:
    """Return the script for the commands, and the names of the other sessions."""
    indent, deeper = " " * 12, " " * 20
    values = [
        f"{indent}{shlex.quote(f'{name} {option}')}) words={shlex.quote(_word(words))} ;;"
        for name, command in commands.items() for option, words in command.values.items()
    ]  # fmt: skip
    offered = [
        f"{deeper}{name}) words={shlex.quote(' '.join(command.offered))} paths={_word(command.paths)} ;;"
        for name, command in commands.items()
    ]
    return (
        SCRIPT.replace("@SESSIONS@", " ".join(sorted({*commands, *others})))
        .replace("@VALUES@", "\n".join(values))
        .replace("@OPTIONS@", "\n".join(offered))
    )


def _word(values: str) -> str:
    return f"@{values}" if values in (FILES, DIRECTORIES) else values
