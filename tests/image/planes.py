"""The arrows of tests/image/planes.md: parsed, so that tests can compare them with the image."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).with_name("planes.md")
DIAGRAM = re.compile(r"```mermaid\nflowchart LR\n(.*?)```", re.DOTALL)
NODE = re.compile(r" {4}(\w+)(\(\[[^\]]+\]\)|\[\([^)]+\)\]|\[[^\]]+\])")
ARROW = re.compile(r' {4}(\w+) -->\|"(\S+) ([^"]+)"\| (\w+)')


@dataclass(frozen=True)
class Arrow:
    """``source`` may act on ``target``; ``enforcer`` (a path, or a unit) contains the rule ``words``."""

    source: str
    target: str
    enforcer: str
    words: str

    @property
    def check(self) -> str:
        """A shell command that succeeds if the rule is present."""
        quoted = "'" + self.words.replace("'", "'\\''") + "'"
        shown = f"cat {self.enforcer}" if self.enforcer.startswith("/") else f"systemctl cat {self.enforcer}"
        return f"{shown} | grep -qF -- {quoted}"


def diagrams() -> list[tuple[set[str], list[Arrow], list[str]]]:
    """Return for each diagram its nodes, its arrows, and the lines that are neither."""
    found = []
    for block in DIAGRAM.findall(PAGE.read_text(encoding="utf-8")):
        nodes, arrows, rest = set(), [], []
        for line in block.splitlines():
            if node := NODE.fullmatch(line):
                nodes.add(node[1])
            elif arrow := ARROW.fullmatch(line):
                arrows.append(Arrow(arrow[1], arrow[4], arrow[2], arrow[3]))
            else:
                rest.append(line)
        found.append((nodes, arrows, rest))
    return found
