"""Fixtures for tests of clones: a cluster whose machines boot, and a bench with a published template."""

from __future__ import annotations

import dataclasses
import http.server
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fakepve.model import PveError

from build.artifact.verification import NO_TRUST, Trust
from build.clone import clone, health
from build.clone.request import Request
from build.proxmox import client, guest_agent, labels
from build.spec.cluster import Token
from tests.contract.shipping import Bench
from tests.fakes.proxmox import Proxmox
from tests.patience import PATIENCE_SECONDS

OPERATOR = Token("goldsmith@pve", "operator", "00000000-0000-0000-0000-000000000003")
HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKeyOfThisVeryMachineAndOfNoOther00000000000"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIF/s62b/yG842VJ4bG1pbHnC28I53U6RtGcp1zon+1fp op+erator@site:1"
ADDRESS = "192.0.2.10"
REQUEST = Request(
    name="web1", addresses=f"ip={ADDRESS}/24,gw=192.0.2.1", keys=KEY, admin_cidrs=("192.0.2.0/24",),
    server_names=("www.example.org",), timeout=PATIENCE_SECONDS,
)  # fmt: skip


class Files(dict[str, str]):
    """Files of a machine. A file that is not there is an error of the guest agent, as on a node."""

    def get(self, path: str, default: Any = None) -> Any:
        if path not in self:
            reason = f"failed to open file '{path}' (mode: 'r'): No such file or directory"
            raise PveError(500, f"Agent error: {reason}")
        return super().get(path, default)


class Guests(Proxmox):
    """Machines that boot: their agent answers as soon as they run, with the address that they were given."""

    certificate = ""
    # The path of the health check that the application declares; empty for an image without an application.
    health = "/health"
    silent = False

    async def started(self, vm: Any) -> None:
        given = str(vm.config.get("ipconfig0", ""))
        address = given.partition("ip=")[2].partition("/")[0] if "/" in given else ADDRESS
        mine = {"hardware-address": guest_agent.mac(vm.config).upper(), "ip-addresses": [{"ip-address": address}]}
        files = Files({guest_agent.HOST_KEY: f"{HOST_KEY} root@{vm.name}\n"})
        files |= {path: text for path, text in self.web_files().items() if text}
        vm.agent = None if self.silent else {"interfaces": [mine], "files": files}

    def web_files(self) -> dict[str, str]:
        """Return the files of the web server and of the application; empty texts for what the image does not have."""
        contract = json.dumps({"health": {"path": self.health}}) if self.health else ""
        return {health.CERTIFICATE: self.certificate, health.CONTRACT: contract}


class _Site(http.server.BaseHTTPRequestHandler):
    """The web server of a machine: its health page, and its requests."""

    def do_GET(self) -> None:
        self.server.asked.append((self.headers["Host"], self.path))  # type: ignore[attr-defined]
        codes: list[int] = self.server.codes  # type: ignore[attr-defined]
        self.send_response(codes.pop(0) if len(codes) > 1 else codes[0])
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


@dataclasses.dataclass
class Site:
    """A machine's web server on the loopback interface; ``codes`` are its answers, the last one is repeated."""

    port: int
    certificate: str
    asked: list[tuple[str, str]]
    codes: list[int]
    names: list[str]


@contextmanager
def web_server(certificate: Path) -> Iterator[Site]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Site)
    site = Site(server.server_address[1], certificate.read_text(), [], [200], [])
    server.asked, server.codes = site.asked, site.codes  # type: ignore[attr-defined]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    context.sni_callback = lambda _socket, name, _context: site.names.append(str(name))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def relabel(vm: Any, title: str, text: str) -> None:
    """Let the label of a template have another text under a title of its image."""
    description = vm.config["description"]
    label = labels.parse(description)
    assert label is not None
    changed = dataclasses.replace(label, provenance={**label.provenance, title: text})
    vm.config["description"] = labels.relabel(description, changed)


@dataclasses.dataclass
class Field:
    """A cluster with a published template, and an operator."""

    bench: Bench
    site: Site
    request: Request = REQUEST

    @property
    def proxmox(self) -> Guests:
        assert isinstance(self.bench.proxmox, Guests)
        return self.bench.proxmox

    def clone(self, trust: Trust = NO_TRUST, **changes: Any) -> clone.Made:
        with client.Api(self.bench.settings, OPERATOR) as api:
            request = dataclasses.replace(self.request, **changes)
            return clone.clone(clone.Job(api, self.bench.settings, request, "golden", "keeper", trust))

    def without_web_server(self) -> None:
        """Let every template be one of an image without a web server, which answers no request."""
        for vm in self.proxmox.vms:
            if vm.template:
                relabel(vm, labels.WEB_SERVER, labels.NO_WEB_SERVER)
        self.proxmox.certificate, self.proxmox.health, self.site.codes[:] = "", "", [404]

    def without_application(self) -> None:
        """Let every machine be one of an image with a web server alone, which has no page."""
        self.proxmox.health, self.site.codes[:] = "", [404]

    def smbios(self, vmid: int) -> dict[str, str]:
        parts = (part.partition("=") for part in self.proxmox.vm(vmid).config["smbios1"].split(","))
        return {key: value for key, _, value in parts}

    def requests(self) -> int:
        return self.proxmox.calls.total()


def state_of(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)
    return found
