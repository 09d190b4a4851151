#!/usr/bin/env python3
"""A fake tool that makes a file by the rules in NAME.json beside it, and records each call in NAME.calls.

The first of ``rules`` whose ``when`` (words) are all among the arguments applies. Keys of a rule, all optional: ``to``,
the number of the argument that names the file; ``copy``, what it becomes a copy of; ``drain``, true to read standard
input to its end first; ``stderr``; ``status``; ``sleep``, seconds before the end.
"""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path


def main() -> int:
    me, arguments = Path(sys.argv[0]), sys.argv[1:]
    # A first process of a PID namespace has no default actions: without a handler SIGTERM would do nothing.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
    with me.with_name(f"{me.name}.calls").open("a", encoding="utf-8") as stream:
        note = {"argv": arguments, "cwd": os.getcwd(), "env": dict(os.environ), "pid": os.getpid()}  # noqa: PTH109
        stream.write(json.dumps(note) + "\n")
    rules = json.loads(me.with_name(f"{me.name}.json").read_text(encoding="utf-8"))["rules"]
    for rule in rules:
        if set(rule.get("when", [])) <= set(arguments):
            return follow(rule, arguments)
    return 99


def follow(rule: dict, arguments: list[str]) -> int:  # type: ignore[type-arg]
    if rule.get("drain"):
        while sys.stdin.buffer.read(1 << 20):
            pass
    sys.stderr.write(rule.get("stderr", ""))
    sys.stderr.flush()
    time.sleep(rule.get("sleep", 0))
    if "copy" in rule:
        shutil.copyfile(rule["copy"], arguments[rule["to"]])
    return int(rule.get("status", 0))


if __name__ == "__main__":
    sys.exit(main())
