"""A project with WebSockets and a worker: declared in its golden-app.yaml, each in the sandbox of the application."""

from __future__ import annotations

import json
import time

from testinfra.host import Host

from tests.image.remote import seconds

from .conftest import Browser

# Opens a WebSocket (RFC 6455), sends a text, prints the text that comes back.
SOCKET = r"""
import base64, os, socket, ssl, struct, sys
name = sys.argv[1]
context = ssl.create_default_context(cafile="/etc/ssl/certs/app.pem")
plain = socket.create_connection(("127.0.0.1", 443), timeout=20 * int(os.environ["PACE"]))
connection = context.wrap_socket(plain, server_hostname=name)
key = base64.b64encode(os.urandom(16)).decode()
head = ("GET /ws/echo/ HTTP/1.1", "Host: " + name, "Origin: https://" + name, "Upgrade: websocket", "Connection: Upgrade",
        "Sec-WebSocket-Key: " + key, "Sec-WebSocket-Version: 13", "", "")
connection.sendall("\r\n".join(head).encode())
stream = connection.makefile("rb")
print(stream.readline().decode().strip())
while stream.readline().strip():
    pass
text, mask = b"hello", os.urandom(4)
connection.sendall(bytes([0x81, 0x80 | len(text)]) + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(text)))
first, length = stream.read(2)
print(stream.read(length & 127).decode())
"""


def test_web_socket(host: Host, name: str) -> None:
    """A WebSocket is opened through nginx, and answers"""
    lines = host.check_output("python3 -c %s %s", SOCKET, name).splitlines()
    assert lines == ["HTTP/1.1 101 Switching Protocols", "heard hello"]


def test_worker(host: Host, page: Browser) -> None:
    """What a page puts into the queue is done by the worker"""
    assert page.get("/order?title=from-the-queue").status == 200
    deadline = time.monotonic() + seconds(host, 30)
    while "from-the-queue" not in (text := page.get("/done").body):
        assert time.monotonic() < deadline, text + host.check_output("journalctl -b -n 40 -u 'application-*'")
        time.sleep(1)
    assert json.loads(text)["orders"].count("from-the-queue") == 1


def test_worker_has_the_sandbox_of_the_application(host: Host) -> None:
    """The worker runs as the application's user, without a network"""
    shown = host.check_output("systemctl show -p User -p PrivateNetwork -p ActiveState application-worker.service")
    assert set(shown.splitlines()) == {"User=gunicorn", "PrivateNetwork=yes", "ActiveState=active"}
