"""Whether a new machine answers, and how it is known to be that one: its SSH host key and its certificate.

Both are read through the guest agent, over the API's verified TLS. A certificate that signs itself is compared with that
one before anything is sent: a machine in between would have another.
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

from build import log, pve_guest
from build.clone_machine import Machine
from build.errors import GoldsmithError, StepFailed
from build.pve import Api, ApiError, Denied

# Where the image keeps the certificate of its web server, the leaf first.
CERTIFICATE = "/etc/ssl/certs/app.pem"
PEM = re.compile(r"-----BEGIN CERTIFICATE-----\s+[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")
HTTPS, HEALTH = 443, "/health"
ANSWER_SECONDS, POLL_SECONDS = 10.0, 2.0
OK = 200


class _NotYet(Exception):
    """The machine is not that far."""


@dataclass(frozen=True)
class Reached:
    """How a machine is reached and recognised; ``certificate`` is empty when nobody waited for HTTPS."""

    address: str
    host_key: str
    certificate: str = ""

    @property
    def fingerprint(self) -> str:
        """The host key's fingerprint, as ssh shows it at the first connection."""
        digest = hashlib.sha256(base64.b64decode(self.host_key.split()[1])).digest()
        return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"


def reach(api: Api, machine: Machine, name: str, *, timeout: float, fixed: tuple[str, ...] = ()) -> Reached:
    """Wait for address, host key and HTTPS, all within ``timeout``; ``fixed`` are the addresses that it was given.

    Raises StepFailed that says how far it came, Denied when the token may not ask the guest agent.
    """
    deadline = time.monotonic() + timeout
    address = pve_guest.wait_address(api, machine.node, machine.vmid, timeout=timeout, tell=log.debug)
    if given := next((one for one in fixed if (":" in one) == (":" in address)), ""):
        if address != given and ":" not in given:
            raise StepFailed(
                f"VM {machine.vmid} on {machine.node} has the address {address}, and was given {given}",
                hint=f"its console says more: qm terminal {machine.vmid}",
            )
        # A router may have given it one more v6 address.
        address = given
    log.info(f"its address is {address}")
    key = _until(deadline, machine, "its host key", lambda: pve_guest.host_key(api, machine.node, machine.vmid))
    certificate = _until(
        deadline, machine, f"https://{name}{HEALTH} at {address}", lambda: _https(api, machine, address, name)
    )
    return Reached(address, key, certificate)


def _until(deadline: float, machine: Machine, what: str, ask: Callable[[], str]) -> str:
    """Ask until there is an answer, or the time is over."""
    while True:
        try:
            return ask()
        except Denied:
            raise
        except (_NotYet, OSError, http.client.HTTPException, ApiError, StepFailed) as error:
            if isinstance(error, ApiError) and error.status == 0:
                raise
            seen = error.brief if isinstance(error, GoldsmithError) else f"{type(error).__name__}: {error}"
        if time.monotonic() > deadline:
            raise StepFailed(
                f"VM {machine.vmid} on {machine.node} booted, and {what} was not there in time", details=seen,
                hint=f"can this host reach it? Its console: qm terminal {machine.vmid}; more time: --timeout SECONDS",
            )  # fmt: skip
        log.debug(f"{what}: {seen}")
        time.sleep(POLL_SECONDS)


def _https(api: Api, machine: Machine, address: str, name: str) -> str:
    """Ask for the health page; return the certificate's fingerprint."""
    expected = certificate(api, machine)
    context = ssl.create_default_context()
    # It signs itself: what it has to be is known from the guest agent, byte for byte.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        create_connection((address, HTTPS), ANSWER_SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=name) as secured,
    ):
        shown = hashlib.sha256(secured.getpeercert(binary_form=True) or b"").hexdigest()
        if shown != expected:
            raise StepFailed(
                f"{address} shows another certificate than VM {machine.vmid} has: SHA-256 {shown}, not {expected}"
            )
        connection = http.client.HTTPConnection(name)
        connection.sock = secured
        connection.request("GET", HEALTH, headers={"Host": name})
        status = connection.getresponse().status
    if status != OK:
        raise _NotYet(f"it answers {status}")
    return expected


def certificate(api: Api, machine: Machine) -> str:
    """Return the SHA-256 of the machine's certificate, read through its guest agent."""
    answer = api.get(f"{machine.path}/agent/file-read", file=CERTIFICATE)
    found = PEM.search(str(answer.get("content", "")))
    if not found:
        raise _NotYet(f"{CERTIFICATE} is not written yet")
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(found[0])).hexdigest()
