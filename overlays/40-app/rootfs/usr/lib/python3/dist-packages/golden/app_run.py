"""Runs a management command of the application: as its user, in the service's sandbox and environment.

Each command is a transient unit ``application-run-NUMBER`` (``application-owner-NUMBER`` as the owner of the tables). Its
sandbox, environment and credentials come from the drop-ins of that prefix, which the application server has as well.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import BinaryIO

PYTHON = "/opt/app/current/venv/bin/python"
CHUNK = 64 * 1024


def argv(words: Sequence[str], *, owner: bool = False, terminal: bool = False) -> list[str]:
    """Return the command line that runs ``manage.py`` with these words and ends with its exit code."""
    unit = f"application-{'owner' if owner else 'run'}-{os.getpid()}"
    return [
        "systemd-run", "--quiet", "--collect", "--wait", "--service-type=exec", f"--unit={unit}",
        f"--description=Management command {words[0]}", "--pty" if terminal else "--pipe", "--expand-environment=no",
        "--", PYTHON, "manage.py", *words,
    ]  # fmt: skip


def run(words: Sequence[str], *, owner: bool = False) -> int:
    """Run a command with this process's terminal, or its input and output; return the exit code."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        return subprocess.run(argv(words, owner=owner, terminal=True), check=False).returncode
    # AppArmor checks open files again for the command, and refuses files of the caller: pipes go between. With `2>&1` there
    # is one pipe for both outputs, so that their order and their lines are kept.
    one = os.path.samestat(os.fstat(sys.stdout.fileno()), os.fstat(sys.stderr.fileno()))
    process = subprocess.Popen(
        argv(words, owner=owner),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if one else subprocess.PIPE,
    )
    assert process.stdin is not None
    # A command that reads nothing ends while the caller's input is still open.
    threading.Thread(target=_copy, args=(sys.stdin.buffer, process.stdin), kwargs={"end": True}, daemon=True).start()
    outputs = [
        threading.Thread(target=_copy, args=(source, target))
        for source, target in ((process.stdout, sys.stdout.buffer), (process.stderr, sys.stderr.buffer))
        if source is not None
    ]
    for thread in outputs:
        thread.start()
    code = process.wait()
    for thread in outputs:
        thread.join()
    return code


def _copy(source: BinaryIO, target: BinaryIO, *, end: bool = False) -> None:
    """Copy until the source ends; with ``end`` close the target then."""
    try:
        while data := os.read(source.fileno(), CHUNK):
            target.write(data)
            target.flush()
        if end:
            target.close()
    except BrokenPipeError:
        # The other side needs no more.
        return
