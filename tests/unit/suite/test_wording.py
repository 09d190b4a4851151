"""Plain standard English in the code: words that the glossary replaces, in comments, docstrings, messages and names.

``DONE`` lists the packages of build/ that are checked; extend it when another package is done. Only whole words are
compared. ``ALLOWED`` has the proper uses, each with its reason: a match inside one of these phrases is not reported.
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
DONE = (
    "core", "vulnerabilities", "rootfs", "media", "machines", "disk", "proxmox", "publish", "release", "clone", "drift",
    "pipeline", "cli", "spec", "bench", "faults", "audit", "verify",
    "reproduce",
)  # fmt: skip

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
    problems = []
    for line, text in texts(source):
        plain = " ".join(re.sub(r"\n\s*#?\s*", " ", text).split())
        for phrase in ALLOWED:
            plain = plain.replace(phrase, "")
        for match in PATTERN.finditer(plain):
            terms = list(GLOSSARY.values())[int(str(match.lastgroup)[1:])]
            problems.append(f"line {line}: {match[0]!r}: write {terms}")
    return problems


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


@pytest.mark.parametrize("package", DONE)
def test_a_package_uses_standard_terms(package: str) -> None:
    modules = sorted((ROOT / "build" / package).rglob("*.py"))
    assert modules
    problems = [
        f"{path.relative_to(ROOT)}, {problem}"
        for path in modules for source in [path.read_text(encoding="utf-8")]
        for problem in (*mannered(source), *empty_names(source))
    ]  # fmt: skip
    assert problems == []


def test_every_exception_is_used() -> None:
    text = " ".join(
        " ".join(path.read_text(encoding="utf-8").split())
        for package in DONE for path in (ROOT / "build" / package).rglob("*.py")
    )  # fmt: skip
    assert [phrase for phrase in ALLOWED if phrase not in text] == []


def test_mannered_words_and_empty_names_are_found() -> None:
    source = '"""The disk is made anew."""\n# nobody holds it\nfound = [one for one in f"it bears {1} tag"]\n'
    assert [problem.split(":")[0] for problem in mannered(source)] == ["line 1", "line 2", "line 3"]
    assert len(empty_names(source)) == 2
    assert mannered('"""Another process holds the lock."""\n') == []
