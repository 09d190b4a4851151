"""Writes rsyslog's part for the collector of the site: the journal and the log files, over TLS, through a queue on disk.

Without a collector nothing is read and nothing is sent.
"""

from __future__ import annotations

import socket
import sys
import tomllib
from pathlib import Path
from typing import Any

from golden import core

# Where administrators and scanners look for it.
FORWARD = Path("/etc/rsyslog.d/76-collector.conf")
CHANGED = Path("/run/golden-logs/changed")
# What this clone shows a collector that asks who it is.
CERTIFICATE, KEY = Path("/var/lib/golden-logs/certificate.pem"), Path("/var/lib/golden-logs/key.pem")
# What is not in the journal: each layer lists its files, by their tags. A place that is not there is left out.
LISTS = Path("/usr/lib/golden/logs.d")

# The journal is read where it is: what is logged while rsyslog is down is not missed. It must not lose to a rate limit.
SOURCES = """\
module(load="imjournal" StateFile="imjournal.state" IgnorePreviousMessages="off" RateLimit.Interval="0"
       PersistStateInterval="100" FileCreateMode="0600")
module(load="imfile")
"""
FILE = """\
input(type="imfile" File="{path}" Tag="{tag}:" Facility="local6" Severity="info" PersistStateInterval="100"
      reopenOnTruncate="on")
"""
# RELP confirms each message, so that none is lost with a connection. TCP confirms nothing to the sender of plain syslog:
# what the kernel took for a peer that had just gone is lost, a few lines each time a collector ends.
# Without its own certificate omrelp connects anonymously, and checks no name.
SENDERS = {
    "relp": """\
module(load="omrelp" tls.tlslib="gnutls")
action(type="omrelp" name="collector" target="{host}" port="{port}"
       tls="on" tls.authMode="name" tls.permittedPeer=["{peer}"] tls.caCert="{ca}"
       tls.myCert="{certificate}" tls.myPrivKey="{key}"
""",
    "syslog": """\
global(DefaultNetstreamDriverCAFile="{ca}")
action(type="omfwd" name="collector" target="{host}" port="{port}" protocol="tcp" TCP_Framing="octet-counted" KeepAlive="on"
       StreamDriver="gtls" StreamDriverMode="1" StreamDriverAuthMode="x509/name" StreamDriverPermittedPeers="{peer}"
       StreamDriver.CheckExtendedKeyPurpose="on"
""",
}
# The queue outlives restarts, and the collector's absence until it is full: some million lines. All of it is on the disk,
# and taken from there line by line: rsyslog forgets those that it is trying to send when it is stopped while the collector
# is away.
QUEUE = """\
       template="RSYSLOG_SyslogProtocol23Format"
       action.resumeRetryCount="-1" action.resumeInterval="5" action.resumeIntervalMax="60"
       queue.type="Disk" queue.dequeueBatchSize="1" queue.filename="collector" queue.maxDiskSpace="512m"
       queue.maxFileSize="16m" queue.checkpointInterval="100" queue.syncQueueFiles="off")
"""


def configuration(collector: dict[str, Any] | None) -> str:
    """Return rsyslog's configuration for a collector; empty without one."""
    if collector is None:
        return ""
    files = [FILE.format(path=path, tag=tag) for tag, path in listed().items() if Path(path).parent.is_dir()]
    sender = SENDERS[collector["protocol"]].format(**collector, certificate=CERTIFICATE, key=KEY)
    return SOURCES + "".join(files) + sender + QUEUE


def listed() -> dict[str, str]:
    """Return the log files that the layers list, by their tags."""
    lists = [tomllib.loads(path.read_text(encoding="utf-8")) for path in sorted(LISTS.glob("*.toml"))]
    return {str(tag): str(path) for one in lists for tag, path in one["files"].items()}


def identify() -> None:
    """Make the certificate of this clone, signed by itself, unless there is one."""
    if CERTIFICATE.exists():
        return
    name = f"/CN={socket.gethostname()}"
    core.run([
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-days", "3650",
        "-subj", name, "-keyout", str(KEY), "-out", f"{CERTIFICATE}.new",
    ])  # fmt: skip
    Path(f"{CERTIFICATE}.new").rename(CERTIFICATE)


def write() -> None:
    """Write the file if it changes."""
    text = configuration(core.site()["log_collector"])
    if text == (FORWARD.read_text(encoding="utf-8") if FORWARD.exists() else ""):
        return
    if text:
        identify()
        core.write_whole(FORWARD, text.encode())
    else:
        FORWARD.unlink()
    CHANGED.touch()


def main() -> None:
    """Write the file; exit with the problem if there is one."""
    try:
        write()
    except core.Problem as problem:
        sys.exit(f"{problem.brief}; {problem.hint}")


if __name__ == "__main__":
    main()
