"""Clients of the application's database on other machines: TLS, and a certificate of the site's authority for each.

The settings become four files in /run/golden that PostgreSQL includes or reads, its certificate and key, and a drop-in that
gives its unit a network. The method ``cert`` of pg_hba.conf verifies the chain of the client's certificate and compares its
common name with pg_ident.conf; it asks for no password.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from golden.core import pem_certificates, replace_files

TARGET = Path("/run/golden")
# Read after 10-golden.conf of the unit, whose PrivateNetwork=true it replaces.
DROP_IN = Path("/run/systemd/system/postgresql@17-main.service.d/90-database-clients.conf")
SERVER = "postgresql@17-main.service"
SETTINGS, RULES, NAMES = "postgresql-network.conf", "database-hba.conf", "database-ident.conf"
CERTIFICATE, KEY, AUTHORITY = "database-server.pem", "database-server.key", "database-clients-ca.pem"
FILES = (SETTINGS, RULES, NAMES, CERTIFICATE, KEY, AUTHORITY)
DATABASE, ROLES, MAP = "app", ("app", "app_owner"), "clients"
READABLE, FOR_GROUP = 0o644, 0o640
NETWORK = """\
# Written by golden-database-clients.service: /etc/golden/site.yaml names clients of the database.
[Service]
PrivateNetwork=false
RestrictAddressFamilies=AF_INET AF_INET6
IPAddressAllow={addresses}
"""
LISTENS = """\
# Written by golden-database-clients.service.
listen_addresses = '*'
ssl = on
ssl_min_protocol_version = 'TLSv1.3'
ssl_cert_file = '{target}/{certificate}'
ssl_key_file = '{target}/{key}'
ssl_ca_file = '{target}/{authority}'
"""

Setting = Mapping[str, Any]


def files(setting: Setting, *, target: Path = TARGET) -> dict[str, bytes]:
    """Return what the server reads, by name; nothing without clients."""
    clients = setting["clients"]
    if not clients:
        return {}
    rules = [
        f"hostssl {DATABASE} {role} {ipaddress.ip_network(client['address'])} cert map={MAP}"
        for client in clients
        for role in ROLES
    ]
    names = [f'{MAP} "{client["name"]}" {role}' for client in clients for role in ROLES]
    listens = LISTENS.format(target=target, certificate=CERTIFICATE, key=KEY, authority=AUTHORITY)
    return {
        SETTINGS: listens.encode(),
        RULES: "\n".join([*rules, ""]).encode(),
        NAMES: "\n".join([*dict.fromkeys(names), ""]).encode(),
        CERTIFICATE: pem_certificates(Path(setting["certificate"]).read_bytes()).encode(),
        KEY: Path(setting["key"]).read_bytes(),
        AUTHORITY: pem_certificates(Path(setting["authority"]).read_bytes()).encode(),
    }


def write(setting: Setting, *, target: Path = TARGET) -> bool:
    """Write what the server reads, or remove it; return True for a change."""
    wanted = files(setting, target=target)
    # The server accepts a key of root that its group can read, and no other user.
    return replace_files(target, {name: wanted.get(name) for name in FILES}, mode=FOR_GROUP)


def give_network(setting: Setting, *, drop_in: Path = DROP_IN) -> bool:
    """Give the server's unit a network for the clients, or take it away; return True for a change."""
    addresses = " ".join(dict.fromkeys(client["address"] for client in setting["clients"]))
    wanted = NETWORK.format(addresses=addresses).encode() if addresses else None
    return replace_files(drop_in.parent, {drop_in.name: wanted}, mode=READABLE)
