"""Plain standard English: words that the glossary replaces, in comments, docstrings, messages, names and pages.

Only whole words are compared. ``ALLOWED`` has the proper uses, each with its reason: a match inside one of these phrases is
not reported. Text between backquotes (commands, names, output) is not checked.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = sorted(path.name for path in (ROOT / "build").iterdir() if (path / "__init__.py").is_file())
# The image's own programs, and the application: their texts are checked, their variables are not.
PROGRAMS = ("overlays/**/dist-packages/golden/**/*.py", "overlays/40-app/rootfs/**/*.py")
# The tests; this file has the words themselves.
TESTS = sorted(path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__).resolve())
# What people read: every page of docs/ and beside the code, and the files that they edit or copy.
PAGES = sorted(
    path
    for pattern in (
        "README.md",
        "CONTRIBUTING.md",
        "docs/**/*.md",
        "docs/**/*.yml",
        "packer/**/*.md",
        "overlays/README.md",
        "overlays/*/README.md",
        "tests/image/planes.md",
        "golden.yaml",
        "noxfile.py",
    )
    for path in ROOT.glob(pattern)
)

# The word or phrase (a regular expression), and the standard term.
GLOSSARY = {
    r"an?new": "again; re-create, rebuild, regenerate",
    r"nobody|somebody": "another process, the user; or the passive voice",
    r"told|tells": "print, report, list, pass, configure",
    r"says|said": "contains, prints, reports",
    r"bears?|bore": "has (a tag, a label)",
    r"vouch(es|ed)?": "sign",
    r"judges?|judged|verdicts?": "check, evaluate; result, decision",
    r"held against|hold against": "compared with",
    r"half-made": "incomplete",
    r"taken? back|takes? .{1,20} back": "rolled back, undone",
    r"taken? away|takes away": "removed",
    r"throw-?away": "disposable",
    r"passed over": "skipped",
    r"any more|for ever|by now": "no longer, permanently, now",
    r"(is|are|was) there already|(is|are) already there": "already exists",
    r"say whether": "return True if",
    r"(?<!there )is no (error|text|version|artifact|tag|entry|key|template|gateway|line)": "is not a ...",
    r"of (its|their|our) own|of ours": "separate, dedicated; Goldsmith's",
    r"name spaces?": "namespace",
    r"set-uid": "setuid",
    r"time-outs?": "timeout",
    r"aloud": "with a warning",
    r"stand(s|ing)? for": "means, is",
    r"was first|overtaken": "concurrent update",
    r"tell different stories|the same story": "disagree, agree",
    r"\w+ lies (in|below|beside)|laid|lays": "is in, installs",
    r"sealed": "pristine (disk image)",
    r"bills? of materials": "SBOM",
}
PATTERN = re.compile("|".join(f"(?P<w{i}>\\b(?:{words})\\b)" for i, words in enumerate(GLOSSARY)), re.IGNORECASE)

# Proper uses: the phrase as it is written, and why it stays.
ALLOWED = {
    '"was there already"': "the outcome of publish and clone, which --json prints: its values stay",
    '"verdict"': "a key of audit.json: formats stay",
    '"cis.judged"': "a figure of the ledger: names stay",
    '"sealed"': "a key of the file that image tests read: formats stay",
    "is not what the manifest says": "an error that image tests compare with",
    '"verdicts"': "a key of the JSON output of golden-certificate: formats stay",
    '"says"': "a key of the checks of golden-verify: formats stay",
    '"nobody"': "the name of an account: image tests run commands without privileges",
    "runuser -u nobody": "the name of an account: image tests run commands without privileges",
    '"judge"': "the name of a function of golden.certificates",
}

# Names of variables that name nothing.
EMPTY_NAMES = frozenset({"found", "one", "made", "told", "said", "given", "wanted", "begun"})


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and text of every comment and string, docstrings included; without the code in f-strings.

    Python 3.11 has one token for an f-string; since 3.12 its parts and the code between them are separate tokens.
    """
    open_strings: list[tuple[int, list[str]]] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        kind = tokenize.tok_name[token.type]
        if kind == "FSTRING_START":
            open_strings.append((token.start[0], []))
        elif kind == "FSTRING_MIDDLE":
            open_strings[-1][1].append(token.string)
        elif kind == "FSTRING_END":
            line, parts = open_strings.pop()
            yield line, " ".join(parts)
        elif kind in ("COMMENT", "STRING"):
            formatted = re.match(r"[rR]?[fF]", token.string)
            yield token.start[0], re.sub(r"\{[^{}]*\}", " ", token.string) if formatted else token.string


def mannered(source: str) -> list[str]:
    """Return the uses of words in the glossary, one a line, with the standard term."""
    problems: list[str] = []
    # Most modules have none: they need no tokens.
    if not PATTERN.search(" ".join(re.sub(r"\n\s*#?\s*", " ", source).split())):
        return problems
    for line, text in texts(source):
        problems += mannered_words(line, " ".join(re.sub(r"``[^`]+``|\n\s*#?\s*", " ", text).split()))
    return problems


def mannered_words(line: int, text: str) -> list[str]:
    """Return the uses of words in the glossary in a text, one a line, with the standard term."""
    for phrase in ALLOWED:
        text = text.replace(phrase, "")
    return [
        f"line {line}: {match[0]!r}: write {list(GLOSSARY.values())[int(str(match.lastgroup)[1:])]}"
        for match in PATTERN.finditer(text)
    ]


def mannered_page(text: str) -> list[str]:
    """Return the uses of words in the glossary in a page, without text between backquotes."""
    lines = re.sub(r"`[^`\n]+`", "`", text).splitlines()
    return [problem for number, line in enumerate(lines, 1) for problem in mannered_words(number, line)]


def empty_names(source: str) -> list[str]:
    """Return the assignments to names that name nothing, one a line."""
    tree = ast.parse(source)
    # The fields of a class may be keys of a file format, of JSON output, or arguments.
    fields = {id(node.target) for node in ast.walk(tree) if isinstance(node, ast.AnnAssign)}
    return [
        f"line {node.lineno}: the variable {node.id} names nothing: name the thing"
        for node in ast.walk(tree)
        if isinstance(node, ast.Name)
        and isinstance(node.ctx, ast.Store)
        and node.id in EMPTY_NAMES
        and id(node) not in fields
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_uses_standard_terms(package: str) -> None:
    modules = sorted((ROOT / "build" / package).rglob("*.py"))
    assert modules
    problems = [
        f"{path.relative_to(ROOT)}, {problem}"
        for path in modules for source in [path.read_text(encoding="utf-8")]
        for problem in (*mannered(source), *empty_names(source))
    ]  # fmt: skip
    assert problems == []


def programs() -> list[Path]:
    """Return the modules of the image's own programs that are checked."""
    return sorted({path for pattern in PROGRAMS for path in ROOT.glob(pattern)})


def test_the_programs_of_the_image_use_standard_terms() -> None:
    assert programs()
    problems = [
        f"{path.relative_to(ROOT)}, {problem}"
        for path in programs() for problem in mannered(path.read_text(encoding="utf-8"))
    ]  # fmt: skip
    assert problems == []


@pytest.mark.parametrize("module", TESTS, ids=lambda path: str(path.relative_to(ROOT / "tests")))
def test_a_module_of_the_tests_uses_standard_terms(module: Path) -> None:
    assert mannered(module.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_uses_standard_terms(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert (mannered(text) if page.suffix == ".py" else mannered_page(text)) == []


def test_every_exception_is_used() -> None:
    modules = [*(ROOT / "build").rglob("*.py"), *programs(), *TESTS, *PAGES]
    text = " ".join(" ".join(path.read_text(encoding="utf-8").split()) for path in modules)
    assert [phrase for phrase in ALLOWED if phrase not in text] == []


def test_mannered_words_and_empty_names_are_found() -> None:
    source = '"""The disk is made anew."""\n# nobody holds it\nfound = [one for one in f"it bears {1} tag"]\n'
    assert [problem.split(":")[0] for problem in mannered(source)] == ["line 1", "line 2", "line 3"]
    assert len(empty_names(source)) == 2
    assert mannered('"""Another process holds the lock."""\n') == []
    assert mannered_page("The disk is laid.\nIt prints `told`.\n") == ["line 1: 'laid': write is in, installs"]
