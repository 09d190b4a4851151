#!/usr/bin/env python3
"""A fake QEMU that follows the plan in NAME.json beside it, and records each call in NAME.calls.

Keys of the plan, all optional: ``version``; ``kvm`` and ``tcg``, the exit status of the accelerator's probe;
``guests``, clone name -> list of plans, one for each start in turn, the last for all further ones. In a guest's plan:
``console``, list of [seconds to wait, text for the serial port]; ``ending``: "stay" (default) or an exit status;
``complaint``, its output on standard error at its end; ``monitor``: "deaf" to make no socket at all.
A guest serves QMP on its socket and answers ``info usernet`` like the real one.
"""

import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

PORTS = {22: 40022, 80: 40080, 443: 40443}
GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 22}}, "capabilities": []}}


def main() -> int:
    me, arguments = Path(sys.argv[0]), sys.argv[1:]
    note = {"argv": arguments, "cwd": os.getcwd(), "env": dict(os.environ), "pid": os.getpid()}  # noqa: PTH109
    with me.with_name(f"{me.name}.calls").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(note) + "\n")
    plan = json.loads(me.with_name(f"{me.name}.json").read_text(encoding="utf-8"))
    if arguments == ["--version"]:
        print(f"QEMU emulator version {plan.get('version', '7.2.22')} (Debian)")
        return 0
    if any("isa-debug-exit" in word for word in arguments):
        machine = arguments[arguments.index("-machine") + 1]
        return int(plan.get("kvm", 1) if "accel=kvm" in machine else plan.get("tcg", 33))
    name = arguments[arguments.index("-name") + 1]
    notes = me.with_name(f"{me.name}.calls").read_text(encoding="utf-8").splitlines()
    before = sum(["-name", name] == json.loads(line)["argv"][i : i + 2] for line in notes for i in range(60)) - 1
    attempts = plan.get("guests", {}).get(name, [{}])
    return act(attempts[min(before, len(attempts) - 1)], arguments)


def act(guest: dict, arguments: list[str]) -> int:  # type: ignore[type-arg]
    # A first process of a PID namespace has no default actions: without a handler SIGTERM would do nothing.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if guest.get("monitor") != "deaf":
        where = arguments[arguments.index("-qmp") + 1].removeprefix("unix:").split(",")[0]
        server = socket.socket(socket.AF_UNIX)
        server.bind(where)
        server.listen()
        threading.Thread(target=serve, args=(server,), daemon=True).start()
    console = Path(arguments[arguments.index("-serial") + 1].removeprefix("file:"))
    with console.open("w", encoding="utf-8") as stream:
        for seconds, text in guest.get("console", []):
            time.sleep(seconds)
            stream.write(text)
            stream.flush()
    ending = guest.get("ending", "stay")
    if ending == "stay":
        time.sleep(86400)
    print(guest.get("complaint", ""), file=sys.stderr)
    return int(ending)


def serve(server: socket.socket) -> None:
    while True:
        connection, _ = server.accept()
        with connection, connection.makefile("rw", encoding="utf-8") as stream:
            say(stream, GREETING)
            for line in stream:
                request = json.loads(line)
                say(stream, {"timestamp": {}, "event": "NIC_RX_FILTER_CHANGED"})
                say(stream, {"return": usernet() if request["execute"] == "human-monitor-command" else {}})


def say(stream, answer: dict) -> None:  # type: ignore[type-arg, no-untyped-def]
    stream.write(json.dumps(answer) + "\n")
    stream.flush()


def usernet() -> str:
    head = "Hub -1 (net):\r\n  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n"
    lines = [
        f"  TCP[HOST_FORWARD]  {10 + number}       127.0.0.1 {host}       10.0.2.15 {guest:>5}     0     0\r\n"
        for number, (guest, host) in enumerate(PORTS.items())
    ]
    return head + "".join(lines) + "  UDP[120 sec]  20       10.0.2.15 68        10.0.2.2    67     0     0\r\n"


if __name__ == "__main__":
    sys.exit(main())
