#!/usr/bin/env python3
"""An executable that acts out the file NAME.json beside it, and notes each call in NAME.calls.

Keys of the file, all optional: ``rules``, a list of objects; the first whose ``when`` (words) are all among the
arguments applies, and an object without ``when`` always does. In a rule: ``stdout``, ``stderr``, ``status``,
``sleep`` (seconds before the end), ``deaf`` (true: SIGTERM is ignored), ``write`` (path -> text, {1} {2} … for
arguments).
"""

import json
import os
import signal
import sys
import time
from pathlib import Path


def main() -> int:
    me, arguments = Path(sys.argv[0]), sys.argv[1:]
    note = {"argv": arguments, "cwd": os.getcwd(), "env": dict(os.environ), "pid": os.getpid()}  # noqa: PTH109
    with me.with_name(f"{me.name}.calls").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(note) + "\n")
    rules = json.loads(me.with_name(f"{me.name}.json").read_text(encoding="utf-8"))["rules"]
    for rule in rules:
        if set(rule.get("when", [])) <= set(arguments):
            return follow(rule, arguments)
    print(f"{me.name}: no rule for {arguments}", file=sys.stderr)
    return 99


def end(number: int, _frame: object) -> None:
    sys.exit(128 + number)


def follow(rule: dict, arguments: list[str]) -> int:  # type: ignore[type-arg]
    # A first process of a PID namespace has no default actions: without a handler SIGTERM would do nothing.
    signal.signal(signal.SIGTERM, signal.SIG_IGN if rule.get("deaf") else end)
    for path, text in rule.get("write", {}).items():
        target = Path(path.format("", *arguments))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        target.chmod(0o755)
    sys.stdout.write(rule.get("stdout", ""))
    sys.stderr.write(rule.get("stderr", ""))
    sys.stdout.flush()
    time.sleep(rule.get("sleep", 0))
    return int(rule.get("status", 0))


if __name__ == "__main__":
    sys.exit(main())
