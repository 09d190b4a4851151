"""The connection to the application's database on another machine: what PgBouncer reads, and its unit's way out.

One process, with its own user, has the key of this machine and connects; the application's processes find it at the socket
at which a local server would be, and have no network, as before.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from golden.core import pem_certificates, replace_files

TARGET = Path("/run/golden")
DROP_IN = Path("/run/systemd/system/pgbouncer.service.d/90-remote-database.conf")
SERVICE = "pgbouncer.service"
SERVER, AUTHORITY = "database-server.ini", "database-ca.pem"
CERTIFICATE, KEY = "database-client.pem", "database-client.key"
FILES = (SERVER, AUTHORITY, CERTIFICATE, KEY)
FOR_GROUP, READABLE = 0o640, 0o644
LINE = "app = host={address} port={port} dbname=app\n"
NETWORK = """\
# Written by golden-remote-database.service: the database of /etc/golden/site.yaml.
[Service]
IPAddressAllow={address}
"""

Setting = Mapping[str, Any]


def files(setting: Setting | None) -> dict[str, bytes]:
    """Return what PgBouncer reads, by name; nothing without a database."""
    if not setting:
        return {}
    return {
        SERVER: LINE.format(**setting).encode(),
        AUTHORITY: pem_certificates(Path(setting["authority"]).read_bytes()).encode(),
        CERTIFICATE: pem_certificates(Path(setting["certificate"]).read_bytes()).encode(),
        KEY: Path(setting["key"]).read_bytes(),
    }


def write(setting: Setting | None, *, target: Path = TARGET) -> bool:
    """Write what PgBouncer reads, or remove it; return True for a change."""
    wanted = files(setting)
    return replace_files(target, {name: wanted.get(name) for name in FILES}, mode=FOR_GROUP)


def open_address(setting: Setting | None, *, drop_in: Path = DROP_IN) -> bool:
    """Let the unit send packets to the server, or to no address; return True for a change."""
    wanted = NETWORK.format(**setting).encode() if setting else None
    return replace_files(drop_in.parent, {drop_in.name: wanted}, mode=READABLE)
