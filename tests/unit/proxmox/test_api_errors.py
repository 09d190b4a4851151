"""Messages of Proxmox VE, and the cause and the hint that the user reads: see tests/data/pve for their origin."""

from __future__ import annotations

import ssl
from typing import Any

import proxmoxer
import pytest
import requests
import urllib3

from build.core.errors import GoldsmithError
from build.proxmox import api_errors
from build.spec.cluster import Token
from tests.contract.shipping import settings_of

TOKEN = Token("goldsmith@pve", "publisher", "00000000-0000-0000-0000-000000000001")
SETTINGS = settings_of("pve.example.org", 8006, "/nowhere.pem")

CAUSES = [
    ("cluster not ready - no quorum?", "the cluster has no quorum", "lost its quorum"),
    ("unable to open file '/etc/pve/nodes/pve1/qemu-server/9000.conf.tmp.77' - Permission denied",
     "the cluster has no quorum", "lost its quorum"),
    ("can't remove VM 9000 - protection mode enabled", "the VM is protected", "--protection 0"),
    ("VM is locked (backup)", "the VM is locked by a backup", "another task holds"),
    ("VM is locked (snapshot-delete)", "the VM is locked by the removal of a snapshot", "another task holds"),
    ("VM is locked (other)", "the VM is locked by other", "another task holds"),
    ("can't lock file '/var/lock/qemu-server/lock-9000.conf' - got timeout", "configuration is locked", "another task"),
    ("unable to write to storage 'local-lvm': No space left on device", "not enough free space on storage local-lvm",
     "storage local-lvm"),
    ("cp: error writing '/x': No space left on device", "not enough free space", "free space"),
    ("checksum mismatch: got 'a' != expect 'b'", "damaged", "damaged during transfer"),
    ("checksum missmatch (file change by other user?)", "changed at the same time", "run the same command again"),
    ("checksum mismatch (file change by other user?)", "changed at the same time", "run the same command again"),
    ("detected modified configuration - file changed by other user? Try again.", "changed at the same time", "again"),
    ("Parameter verification failed. storage: storage 'nfs1' does not support vm images",
     "no disks of VMs are allowed on storage nfs1", "pvesm set nfs1 --content"),
    ("something else", "", ""),
]  # fmt: skip


@pytest.mark.parametrize(("text", "name", "hint"), CAUSES)
def test_the_cause_is_the_administrators(text: str, name: str, hint: str) -> None:
    found, advice = api_errors.cause(text)
    assert name in found
    assert hint in advice
    assert bool(found) == bool(name)
    assert ("damaged" in advice) == ("got 'a'" in text)


REFUSALS = [
    (proxmoxer.ResourceException(400, "Bad Request", "Parameter verification failed.", errors={"memory": "no\nnumber"}),
     "Proxmox refused: Parameter verification failed. memory: no number (POST /x)"),
    (proxmoxer.ResourceException(500, "Internal Server Error", "", errors={"errors": b""}),
     "Proxmox refused: Internal Server Error (POST /x)"),
    (proxmoxer.ResourceException(502, "Bad Gateway", "Bad gateway", errors={"errors": b"<html>"}),
     "Proxmox refused: Bad gateway (POST /x)"),
    (proxmoxer.ResourceException(403, "Forbidden", "Permission check failed (/vms/9000, VM.Clone)", errors={"errors": b""}),
     "the token goldsmith@pve!publisher lacks a privilege: VM.Clone on /vms/9000 (POST /x)"),
    (proxmoxer.ResourceException(403, "Forbidden", "Permission check failed (/vms/9, VM.Audit|VM.Clone)", errors={}),
     "the token goldsmith@pve!publisher lacks a privilege: VM.Audit or VM.Clone on /vms/9 (POST /x)"),
    (proxmoxer.ResourceException(403, "Forbidden", "Permission check failed (pool 'golden' does not exist)", errors={}),
     "Proxmox has no pool golden (POST /x)"),
    (proxmoxer.ResourceException(595, "No route to host", "", errors={}), "node of the cluster does not answer (POST /x)"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "expected"), REFUSALS, ids=lambda value: str(value)[:30])
def test_no_dictionary_reaches_a_person(error: Exception, expected: str) -> None:
    found = api_errors.refused(error, TOKEN, "POST /x")
    assert found.brief == expected
    assert not set(found.render()) & set("{}")
    assert TOKEN.secret not in found.render()


def raised(error: BaseException) -> GoldsmithError:
    with pytest.raises(GoldsmithError) as caught, api_errors.translated(SETTINGS, TOKEN, "post", "/x"):
        raise error
    return caught.value


def wrapped(reason: Exception) -> Any:
    """As requests hands over what urllib3 raised."""
    pool = urllib3.HTTPSConnectionPool("pve.example.org", 8006)
    return requests.exceptions.SSLError(urllib3.exceptions.MaxRetryError(pool, "/x", urllib3.exceptions.SSLError(reason)))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (wrapped(ssl.SSLCertVerificationError(1, "self-signed certificate")), "is not trusted"),
        (wrapped(ssl.SSLEOFError(8, "EOF occurred in violation of protocol")), "closed the connection"),
        (requests.exceptions.ConnectionError(
            urllib3.exceptions.ProtocolError("Connection aborted.", BrokenPipeError(32, "Broken pipe"))),
         "closed the connection"),
        (wrapped(ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number")), "no TLS connection"),
        (requests.exceptions.ConnectTimeout("timed out"), "does not answer"),
    ],
    ids=["certificate", "end of file", "broken pipe", "no TLS", "timeout"],
)  # fmt: skip
def test_only_a_certificate_that_was_checked_is_called_a_bad_one(error: BaseException, expected: str) -> None:
    found = raised(error)
    assert expected in found.brief
    assert ("certificate" in found.render()) == (expected == "is not trusted")
    assert isinstance(found, api_errors.ApiError)
    assert found.status == api_errors.NO_ANSWER
