#!/usr/bin/env python3
"""A Packer 1.6.6 that acts out the plan in packer.json beside it, and notes each call in packer.calls.

Keys of the plan, all optional: ``version``; ``plugins``, lines for ``plugins installed``; ``validate``, the complaint
of ``validate``; ``console``, list of [seconds to wait, text for the first serial port]; ``syslog``, text for the
second; ``ending``: "power off" (default), "fail", "hang"; ``complaint``, the output of a failing build; ``deaf``, true to
ignore SIGTERM; ``disk``, "none" to leave no disk behind; ``attempts``, a list of such plans, one for each build in
turn, the last for all further ones. Like the real one it removes its output directory when a build fails or is
cancelled.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path


def main() -> int:
    me, arguments = Path(sys.argv[0]), sys.argv[1:]
    note = {"argv": arguments, "cwd": os.getcwd(), "env": dict(os.environ), "pid": os.getpid()}  # noqa: PTH109
    with me.with_name(f"{me.name}.calls").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(note) + "\n")
    plan = json.loads(me.with_name(f"{me.name}.json").read_text(encoding="utf-8"))
    verb = arguments[0] if arguments else ""
    if verb == "version":
        print(f"Packer v{plan.get('version', '1.6.6')}")
        return 0
    if verb == "plugins":
        print("\n".join(plan.get("plugins", [])))
        return 0
    if verb == "validate":
        print(plan.get("validate", ""), file=sys.stderr)
        return 1 if "validate" in plan else 0
    if verb == "build":
        notes = me.with_name(f"{me.name}.calls").read_text(encoding="utf-8").splitlines()
        before = sum(json.loads(line)["argv"][0] == "build" for line in notes) - 1
        attempts = plan.get("attempts", [{}])
        return build({**plan, **attempts[min(before, len(attempts) - 1)]}, read_variables(arguments))
    print(f"Usage: packer [--version] [--help] <command> [<args>], not {arguments}", file=sys.stderr)
    return 127


def read_variables(arguments: list[str]) -> dict:  # type: ignore[type-arg]
    (name,) = [word.removeprefix("-var-file=") for word in arguments if word.startswith("-var-file=")]
    return json.loads(Path(name).read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def build(plan: dict, given: dict) -> int:  # type: ignore[type-arg]
    output = Path(given["output_directory"])

    def cancel(_number: int, _frame: object) -> None:
        say("Cancelling build after receiving terminated")
        fail(output, "Build was cancelled.")
        os._exit(1)

    signal.signal(signal.SIGTERM, signal.SIG_IGN if plan.get("deaf") else cancel)
    say("qemu.golden: output will be in this color.\n\n==> qemu.golden: Starting VM, booting from CD-ROM")
    output.mkdir()
    make_disk(output / given["vm_name"], given["disk_size"], plan)
    Path(given["syslog_log"]).write_text(plan.get("syslog", ""), encoding="utf-8")
    with Path(given["console_log"]).open("w", encoding="utf-8") as console:
        for seconds, text in plan.get("console", []):
            time.sleep(seconds)
            console.write(text)
            console.flush()
    ending = plan.get("ending", "power off")
    if ending == "hang":
        time.sleep(86400)
    if ending == "fail":
        return fail(output, plan.get("complaint", "Error launching VM: Qemu failed to start."))
    say("==> Builds finished. The artifacts of successful builds are:\n--> qemu.golden: VM files in directory: output")
    return 0


def make_disk(path: Path, size: str, plan: dict) -> None:  # type: ignore[type-arg]
    """Leave a disk as an installation does: with a GUID partition table, or as in the plan."""
    if plan.get("disk") == "none":
        return
    if plan.get("disk") == "empty":
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, size], check=True)
        return
    raw = path.with_suffix(".made")
    subprocess.run(["qemu-img", "create", "-q", "-f", "raw", raw, size], check=True)
    subprocess.run(["sfdisk", "--quiet", raw], input=b"label: gpt\nsize=1MiB\nsize=2MiB\n", check=True)
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, path], check=True)
    raw.unlink()


def fail(output: Path, complaint: str) -> int:
    say("==> qemu.golden: Deleting output directory...")
    shutil.rmtree(output, ignore_errors=True)
    print(f"Build 'qemu.golden' errored: {complaint}", file=sys.stderr, flush=True)
    return 1


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
