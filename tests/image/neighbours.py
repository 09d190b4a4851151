"""Other machines, simulated inside a clone: how a stranger and an administrator see it from the network.

A network namespace with addresses of both is connected to the clone by a virtual cable (veth). ``play`` runs a scene
there; when it ends, with or without an error, the cable is removed, the isolation of an incident is ended, and the
administrators' networks are restored.
"""

from __future__ import annotations

import json
from typing import Any

from testinfra.host import Host

STRANGER, ADMINISTRATOR = "198.51.100.2", "203.0.113.2"

STAGE = r"""
import contextlib, errno, json, os, pwd, select, socket, subprocess, sys, time

PLACE, CABLE, PLUG = "golden-probe", "gprobe0", "gprobe1"
# Addresses for documentation, this machine's and the other's.
HERE = {"stranger": "198.51.100.1", "admin": "203.0.113.1", "stranger6": "2001:db8:77::1", "admin6": "2001:db8:78::1"}
THERE = {"stranger": "198.51.100.2", "admin": "203.0.113.2", "stranger6": "2001:db8:77::2", "admin6": "2001:db8:78::2"}
PACE = int(os.environ["PACE"])
# Timeout for the response to a packet that is dropped: on the virtual cable a response takes milliseconds at full speed.
SECONDS = max(2, PACE / 3)

def run(*argv):
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

def clean():
    for argv in (["golden-firewall", "release"], ["systemctl", "reload", "golden-firewall"], ["ip", "link", "delete", CABLE],
                 ["ip", "netns", "delete", PLACE]):
        subprocess.run(argv, check=False, stdin=subprocess.DEVNULL, capture_output=True)

def make():
    run("ip", "netns", "add", PLACE)
    run("ip", "link", "add", CABLE, "type", "veth", "peer", "name", PLUG, "netns", PLACE)
    for name in HERE:
        length = "64" if ":" in HERE[name] else "24"
        extra = ["nodad"] if ":" in HERE[name] else []
        run("ip", "address", "add", HERE[name] + "/" + length, "dev", CABLE, *extra)
        run("ip", "-n", PLACE, "address", "add", THERE[name] + "/" + length, "dev", PLUG, *extra)
    run("ip", "link", "set", CABLE, "up")
    run("ip", "-n", PLACE, "link", "set", PLUG, "up")
    run("nft", "add element inet golden admin_inet4 { %s }; add element inet golden admin_inet6 { %s }"
        % (THERE["admin"], THERE["admin6"]))

@contextlib.contextmanager
def there():
    home, away = os.open("/proc/self/ns/net", os.O_RDONLY), os.open("/run/netns/" + PLACE, os.O_RDONLY)
    try:
        os.setns(away, os.CLONE_NEWNET)
        yield
    finally:
        os.setns(home, os.CLONE_NEWNET)
        os.close(home)
        os.close(away)

def begin(source, target, port):
    one = socket.socket(socket.AF_INET6 if ":" in target else socket.AF_INET, socket.SOCK_STREAM)
    one.setblocking(False)
    if source:
        one.bind((source, 0))
    one.connect_ex((target, port))
    return one

def outcomes(sockets, seconds):
    found = {}
    waiting = {one.fileno(): index for index, one in enumerate(sockets)}
    poll = select.poll()
    for number in waiting:
        poll.register(number, select.POLLOUT)
    end = time.monotonic() + seconds
    while waiting and time.monotonic() < end:
        for number, _ in poll.poll(200):
            poll.unregister(number)
            index = waiting.pop(number)
            error = sockets[index].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            found[index] = {0: "open", errno.ECONNREFUSED: "refused"}.get(error, "rejected")
    return [found.get(index, "silent") for index in range(len(sockets))]

def ask(**questions):
    asked = [(who, port) for who, ports in questions.items() for port in ports]
    with there():
        sockets = [begin(THERE[who], HERE[who], port) for who, port in asked]
    words = outcomes(sockets, SECONDS)
    results = {who: {} for who in questions}
    for (who, port), word in zip(asked, words):
        results[who][str(port)] = word
    return results, words, sockets

def close(sockets):
    for one in sockets:
        one.close()
"""

CURTAIN = r"""
questions, facts = json.loads(sys.argv[1]), {}
if os.path.exists("/run/netns/" + PLACE):
    clean()
try:
    make()
    scene(questions, facts)
finally:
    clean()
print(json.dumps(facts))
"""


def play(host: Host, scene: str, questions: dict[str, Any]) -> dict[str, Any]:
    """Run ``scene`` on the clone as root: Python that defines ``scene(questions, facts)``; return its facts."""
    output = host.check_output("timeout $((60 * PACE)) python3 -c %s %s", STAGE + scene + CURTAIN, json.dumps(questions))
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found
