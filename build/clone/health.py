"""Waits until a new clone responds, and identifies it by its SSH host key and its certificate.

Both are read through the guest agent, over the API's verified TLS. The self-signed certificate of the connection is
compared with that one before anything is sent, to detect a man in the middle.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import re
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from socket import create_connection
from typing import TypeVar

from build.clone.machine import Machine
from build.core import json_text, log
from build.core.errors import GoldsmithError, StepFailed
from build.proxmox import guest_agent
from build.proxmox.client import Api, ApiError, Denied

# The certificate of the image's web server, the leaf first.
CERTIFICATE = "/etc/ssl/certs/app.pem"
# What the machine's application declares (golden/grants.py of the layer 72-deploy), and the agent's error without the file.
CONTRACT, ABSENT = "/opt/app/current/grants/contract.json", "No such file or directory"
PEM = re.compile(r"-----BEGIN CERTIFICATE-----\s+[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")
HTTPS = 443
ANSWER_SECONDS, POLL_SECONDS = 10.0, 2.0
OK, SERVER_ERROR = 200, 500


_Found = TypeVar("_Found")


class _NotYet(Exception):
    """The clone is not ready yet."""


def _state(error: Exception) -> str:
    """Return what an attempt showed; the name of a foreign exception is part of it, because its text may be empty."""
    if isinstance(error, GoldsmithError):
        return error.brief
    return str(error) if isinstance(error, _NotYet) else f"{type(error).__name__}: {error}"


@dataclass(frozen=True)
class Reached:
    """Address and identity of a clone; ``certificate`` is empty for one without a web server.

    ``page`` is the page that answered: the health check of the application, or ``/`` without an application.
    """

    address: str
    host_key: str
    certificate: str = ""
    page: str = "/"

    @property
    def fingerprint(self) -> str:
        """The host key's fingerprint, as ssh shows it at the first connection."""
        digest = hashlib.sha256(base64.b64decode(self.host_key.split()[1])).digest()
        return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"


def reach(
    api: Api, machine: Machine, name: str, *, timeout: float, fixed: tuple[str, ...] = (), web: bool = True
) -> Reached:  # fmt: skip
    """Wait for address, host key and HTTPS, all within ``timeout``; ``fixed`` are its static addresses.

    An application answers 200 at the path of its health check; a web server without one answers anything but an error of
    the server. A machine without a ``web`` server is reached when it has its host key: no other service can be asked from
    here.

    Raises StepFailed with the last state, Denied if the token may not query the guest agent.
    """
    deadline = time.monotonic() + timeout
    address = guest_agent.wait_address(api, machine.node, machine.vmid, timeout=timeout, tell=log.debug)
    if static := next((fixed_address for fixed_address in fixed if (":" in fixed_address) == (":" in address)), ""):
        if address != static and ":" not in static:
            raise StepFailed(
                f"VM {machine.vmid} on {machine.node} has the address {address} instead of {static}",
                hint=f"open its console: qm terminal {machine.vmid}",
            )
        # It may have another IPv6 address from a router advertisement.
        address = static
    log.info(f"its address is {address}")
    key = _until(deadline, machine, "its host key", lambda: guest_agent.host_key(api, machine.node, machine.vmid))
    if not web:
        return Reached(address, key)
    certificate, page = _until(
        deadline, machine, f"https://{name} at {address}", lambda: _https(api, machine, address, name)
    )
    return Reached(address, key, certificate, page)


def _until(deadline: float, machine: Machine, condition: str, query: Callable[[], _Found]) -> _Found:
    """Repeat the query until it succeeds, or the time is over."""
    while True:
        try:
            return query()
        except Denied:
            raise
        except (_NotYet, OSError, http.client.HTTPException, ApiError, StepFailed) as error:
            if isinstance(error, ApiError) and error.status == 0:
                raise
            last_state = _state(error)
        if time.monotonic() > deadline:
            raise StepFailed(
                f"VM {machine.vmid} on {machine.node} booted, and {condition} did not appear in time", details=last_state,
                hint=f"check that this host can reach it; open its console with qm terminal {machine.vmid}; wait "
                "longer with --timeout SECONDS",
            )  # fmt: skip
        log.debug(f"{condition}: {last_state}")
        time.sleep(POLL_SECONDS)


def _https(api: Api, machine: Machine, address: str, name: str) -> tuple[str, str]:
    """Request the page that shows whether the machine is healthy; return the certificate's fingerprint and the page."""
    expected, health = certificate(api, machine), health_path(api, machine)
    page = health or "/"
    # It is self-signed: it is compared byte for byte with the certificate from the guest agent, and no authority is loaded.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        create_connection((address, HTTPS), ANSWER_SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=name) as secured,
    ):
        shown = hashlib.sha256(secured.getpeercert(binary_form=True) or b"").hexdigest()
        if shown != expected:
            raise StepFailed(
                f"the certificate of {address} is not that of VM {machine.vmid}: SHA-256 {shown}, not {expected}"
            )
        connection = http.client.HTTPConnection(name)
        connection.sock = secured
        connection.request("GET", page, headers={"Host": name})
        status = connection.getresponse().status
    if status != OK if health else status >= SERVER_ERROR:
        raise _NotYet(f"{page}: HTTP status {status}")
    return expected, page


def health_path(api: Api, machine: Machine) -> str:
    """Return the path of the health check that the machine's application declares; empty without an application.

    Raises ApiError if the agent does not answer, and _NotYet for a file that is written at that moment.
    """
    try:
        text = str(api.get(f"{machine.path}/agent/file-read", file=CONTRACT).get("content", ""))
    except ApiError as error:
        if ABSENT in f"{error.brief} {error.details}":
            return ""
        raise
    try:
        return str(json_text.parse(text)["health"]["path"])
    except (ValueError, LookupError, TypeError) as error:
        raise _NotYet(f"{CONTRACT} has no path of the health check") from error


def certificate(api: Api, machine: Machine) -> str:
    """Return the SHA-256 of the clone's certificate, read through its guest agent."""
    answer = api.get(f"{machine.path}/agent/file-read", file=CERTIFICATE)
    match = PEM.search(str(answer.get("content", "")))
    if not match:
        raise _NotYet(f"{CERTIFICATE} is not written yet")
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(match[0])).hexdigest()
