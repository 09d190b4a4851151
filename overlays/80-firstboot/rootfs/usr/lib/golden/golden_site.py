"""The site settings of a clone: what an operator may write into /etc/golden/site.yaml, checked key by key.

``check`` returns every key with a value and a list of what is wrong. A bad value never opens anything: it is as if
nothing had been given. Nothing here changes the machine.
"""

from __future__ import annotations

import ipaddress
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

LARGEST_FILE = 64 * 1024
# What Proxmox VE can tell a machine whose cloud-init drive it writes itself: smbios1's field sku, "golden:" and JSON.
HYPERVISOR = Path("/sys/class/dmi/id/product_sku")
HYPERVISOR_MARK = "golden:"
FROM_HYPERVISOR = ("admin_cidrs", "server_names")
HOST = re.compile(r"(?=.{1,253}$)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
MAIL_ADDRESS = re.compile(r"[A-Za-z0-9._%+=-]{1,64}@[A-Za-z0-9.-]{1,253}")
BACKUP_TARGET = re.compile(
    r"|scp://[A-Za-z0-9._-]+@[A-Za-z0-9.:\[\]-]+(/[A-Za-z0-9._@+-]+)+/?|rclone:[A-Za-z0-9._-]+:[^\s]*"
)
BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
SYSLOG_TLS_PORT, SUBMISSION_PORT = 6514, 587
LOG_PROTOCOLS = ("relp", "syslog")


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong in the file: where, what stands there, and what to write instead."""

    key: str
    value: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.key}: {self.value}: {self.remedy}"


class _Wrong(Exception):
    """A value that cannot be used; the text says what to write instead."""


class _Loader(yaml.SafeLoader):
    """YAML without surprises: a key that stands twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        keys = [self.construct_object(key, deep=True) for key, _value in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)


def read(path: Path) -> tuple[dict[str, Any], list[Fault]]:
    """Read and check a file; one that is not there is an empty one."""
    try:
        status = path.stat()
        if status.st_uid != 0 or status.st_mode & 0o022:
            return defaults(), [Fault(str(path), "others than root may write it", f"chown root: {path}; chmod 0600 {path}")]
        if status.st_size > LARGEST_FILE:
            return defaults(), [Fault(str(path), f"{status.st_size} bytes", f"a settings file has at most {LARGEST_FILE}")]
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return defaults(), []
    except (OSError, UnicodeDecodeError) as error:
        return defaults(), [Fault(str(path), str(error), "make it a readable text file")]
    return parse(text, name=str(path))


def collect(path: Path, *, hypervisor: Path = HYPERVISOR) -> tuple[dict[str, Any], list[Fault]]:
    """Read the file, and take from the hypervisor what the file is silent about (the keys of FROM_HYPERVISOR)."""
    settings, faults = read(path)
    try:
        text = hypervisor.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return settings, faults
    if not text.startswith(HYPERVISOR_MARK):
        return settings, faults
    told, more = parse(text.removeprefix(HYPERVISOR_MARK), name="smbios1 sku")
    for key in FROM_HYPERVISOR:
        # A key that stands in the file with a fault stays closed: the operator meant something else.
        if not settings[key] and not any(fault.key.startswith(key) for fault in faults):
            settings[key] = told[key]
    others = [
        Fault(key, "(not shown)", f"only {' and '.join(FROM_HYPERVISOR)} can be told by the hypervisor; write it to {path}")
        for key, value in told.items()
        if key not in FROM_HYPERVISOR and value != defaults()[key]
    ]
    return settings, [*faults, *more, *others]


def parse(text: str, *, name: str = "site.yaml") -> tuple[dict[str, Any], list[Fault]]:
    """Check the text of a settings file."""
    try:
        content = yaml.load(text, Loader=_Loader)  # noqa: S506 - it is a SafeLoader
    except yaml.YAMLError as error:
        return defaults(), [Fault(name, " ".join(str(error).split()), "correct the YAML; nothing of the file is used")]
    return check(content, name=name)


def defaults() -> dict[str, Any]:
    """Return the settings of a clone that is told nothing."""
    return check(None)[0]


def check(content: object, *, name: str = "site.yaml") -> tuple[dict[str, Any], list[Fault]]:
    """Return the settings, every key present, and every fault of ``content`` (the parsed file)."""
    faults: list[Fault] = []
    if content is not None and not isinstance(content, Mapping):
        faults.append(Fault(name, _shown(content), "write keys and values, such as admin_cidrs: [192.0.2.0/24]"))
    table = _Table(content if isinstance(content, Mapping) else {}, "", faults)
    certificate, alerts = table.part("certificate"), table.part("alerts")
    settings = {
        "admin_cidrs": table.items("admin_cidrs", cidr),
        "server_names": table.items("server_names", host_name),
        "certificate": {"acme": certificate.whole("acme", _acme)},
        "log_collector": table.whole("log_collector", _log_collector),
        "backup": table.whole("backup", _backup),
        "alerts": {
            "mail": alerts.whole("mail", _mail),
            "webhook": alerts.value("webhook", https_url, secret=True),
            "ca": alerts.value("ca", certificate_file),
        },
        "application": table.whole("application", _application),
        "admin_proxy": table.whole("admin_proxy", _admin_proxy) or {"client_ca": None, "cidrs": []},
    }
    for one in (table, certificate, alerts):
        one.refuse_others()
    return settings, faults


def as_json(faults: list[Fault]) -> list[dict[str, str]]:
    """Return faults as plain data."""
    return [asdict(fault) for fault in faults]


class _Table:
    """A mapping that is read key by key, and puts what is wrong onto the common list."""

    def __init__(self, content: Mapping[Any, Any], where: str, faults: list[Fault]) -> None:
        self.content, self.where, self.faults = content, where, faults
        self.known: set[str] = set()

    def complain(self, key: object, value: object, remedy: str, *, secret: bool = False) -> None:
        self.faults.append(Fault(f"{self.where}{key}", "(not shown)" if secret else _shown(value), remedy))

    def value(self, key: str, kind: Callable[[object], Any], *, default: Any = None, secret: bool = False) -> Any:
        """Return one value, or the default when there is none or a bad one."""
        self.known.add(key)
        found = self.content.get(key)
        if found is None:
            return default
        try:
            return kind(found)
        except _Wrong as wrong:
            self.complain(key, found, str(wrong), secret=secret)
            return default

    def needed(self, key: str, kind: Callable[[object], Any]) -> Any:
        """Return one value that must be there."""
        if self.content.get(key) is None:
            self.known.add(key)
            self.complain(key, None, "is needed here")
        return self.value(key, kind)

    def items(self, key: str, kind: Callable[[object], Any]) -> list[Any]:
        """Return the good ones of a list of values, each once."""
        self.known.add(key)
        found = self.content.get(key)
        if found is None:
            return []
        if not isinstance(found, list):
            self.complain(key, found, f"write a list: {key}: [...]")
            return []
        good: list[Any] = []
        for number, one in enumerate(found):
            try:
                value = kind(one)
            except _Wrong as wrong:
                self.complain(f"{key}[{number}]", one, str(wrong))
            else:
                good += [] if value in good else [value]
        return good

    def part(self, key: str) -> _Table:
        """Return the mapping under a key."""
        self.known.add(key)
        found = self.content.get(key)
        if found is not None and not isinstance(found, Mapping):
            self.complain(key, found, "write keys and values below it")
        return _Table(found if isinstance(found, Mapping) else {}, f"{self.where}{key}.", self.faults)

    def whole(self, key: str, read_part: Callable[[_Table], dict[str, Any]]) -> dict[str, Any] | None:
        """Return the mapping under a key if all of it is good: half of it would do something nobody asked for."""
        before = len(self.faults)
        part = self.part(key)
        if self.content.get(key) is None:
            return None
        found = read_part(part) if len(self.faults) == before else None
        part.refuse_others()
        return found if len(self.faults) == before else None

    def refuse_others(self) -> None:
        """Complain about the keys that nobody asked for."""
        for key, value in self.content.items():
            if key not in self.known:
                self.complain(key, value, f"there is no such key; known here: {', '.join(sorted(self.known))}", secret=True)


def _acme(part: _Table) -> dict[str, Any]:
    return {
        "directory": part.needed("directory", https_url),
        "email": part.value("email", mail_address),
        "ca": part.value("ca", certificate_file),
    }


def _log_collector(part: _Table) -> dict[str, Any]:
    host = part.needed("host", host_or_address)
    return {
        "host": host,
        "protocol": part.value("protocol", one_of(*LOG_PROTOCOLS), default=LOG_PROTOCOLS[0]),
        "port": part.value("port", number(1, 65535), default=SYSLOG_TLS_PORT),
        "ca": part.needed("ca", certificate_file),
        "peer": part.value("peer", host_or_address, default=host),
    }


def _backup(part: _Table) -> dict[str, Any]:
    return {
        "recipient": part.needed("recipient", age_recipient),
        "target": part.value("target", backup_target, default=""),
        "keep_days": part.value("keep_days", number(1, 3650), default=14),
    }


def _mail(part: _Table) -> dict[str, Any]:
    return {
        "server": part.needed("server", mail_server),
        "from": part.needed("from", mail_address),
        "to": part.needed("to", mail_address),
    }


def _application(part: _Table) -> dict[str, Any]:
    return {"bundle": part.needed("bundle", path_or_url), "sha256": part.needed("sha256", sha256)}


def _admin_proxy(part: _Table) -> dict[str, Any]:
    return {"client_ca": part.value("client_ca", certificate_file), "cidrs": part.items("cidrs", cidr)}


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise _Wrong("write a text in one line")
    return value


def cidr(value: object) -> str:
    """Return a network in its usual form; a plain address is a network of one."""
    try:
        network = ipaddress.ip_network(_text(value), strict=False)
        exact = ipaddress.ip_interface(_text(value)).ip == network.network_address
    except ValueError:
        raise _Wrong("write a network such as 192.0.2.0/24 or 2001:db8::/64") from None
    if not exact:
        raise _Wrong(f"an address within a network; write {network} if you mean all of it")
    if network.prefixlen == 0:
        raise _Wrong("this is everybody; name the networks that you mean")
    return str(network)


def host_name(value: object) -> str:
    """Return a host name in lower case."""
    name = _text(value).lower()
    if not HOST.fullmatch(name) or name.rpartition(".")[2].isdigit():
        raise _Wrong("write a host name such as www.example.org (international names as xn--...)")
    return name


def host_or_address(value: object) -> str:
    """Return a host name or an address."""
    try:
        return str(ipaddress.ip_address(_text(value)))
    except ValueError:
        return host_name(value)


def number(low: int, high: int) -> Callable[[object], int]:
    """Return what reads a whole number in a range."""

    def kind(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise _Wrong(f"write a whole number from {low} to {high}")
        return value

    return kind


def one_of(*words: str) -> Callable[[object], str]:
    """Return what reads one of some words."""

    def kind(value: object) -> str:
        if value not in words:
            raise _Wrong(f"write {' or '.join(words)}")
        return str(value)

    return kind


def mail_address(value: object) -> str:
    """Return a mail address."""
    if not MAIL_ADDRESS.fullmatch(_text(value)):
        raise _Wrong("write a mail address such as admin@example.org")
    return str(value)


def mail_server(value: object) -> str:
    """Return HOST:PORT of a mail server."""
    host, colon, port = _text(value).rpartition(":")
    if not colon or not port.isdigit():
        host, port = _text(value), str(SUBMISSION_PORT)
    if not 1 <= int(port) <= 65535:
        raise _Wrong("write HOST or HOST:PORT, such as mail.example.org:587")
    return f"{host_or_address(host)}:{port}"


def https_url(value: object) -> str:
    """Return an https URL without a user or password in it."""
    try:
        parts = urlsplit(_text(value))
        good = parts.scheme == "https" and bool(parts.hostname) and not parts.username and (parts.port or 443) > 0
    except ValueError:
        good = False
    if not good or re.search(r"\s", str(value)):
        raise _Wrong("write a URL that starts with https:// and names a host")
    return str(value)


def absolute_path(value: object) -> str:
    """Return an absolute path that says where it leads."""
    path = _text(value)
    if not re.fullmatch(r"(/[A-Za-z0-9._@+-]+)+", path) or ".." in path.split("/"):
        raise _Wrong("write an absolute path of letters, digits and ._@+- such as /etc/golden/ca.pem")
    return path


def path_or_url(value: object) -> str:
    """Return an absolute path or an https URL."""
    return https_url(value) if "://" in _text(value) else absolute_path(value)


def certificate_file(value: object) -> str:
    """Return the path of a file with certificates that can be read."""
    path = absolute_path(value)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=path)
    except OSError as error:  # SSLError is one
        reason = error.strerror or error
        raise _Wrong(f"no certificate in PEM form can be read there ({reason}); put it there first") from None
    return path


def sha256(value: object) -> str:
    """Return a SHA-256 in lower case."""
    if not re.fullmatch(r"[0-9a-fA-F]{64}", _text(value)):
        raise _Wrong("write the 64 hexadecimal digits that sha256sum prints")
    return str(value).lower()


def backup_target(value: object) -> str:
    """Return where backups go besides the local disk."""
    text = _text(value)
    if not BACKUP_TARGET.fullmatch(text):
        raise _Wrong("write scp://user@host/path or rclone:remote:path, or nothing")
    return text


def age_recipient(value: object) -> str:
    """Return age's public key, its check sum verified: with a mistyped one no backup could ever be read."""
    text = _text(value)
    if not re.fullmatch(rf"age1[{BECH32}]{{58}}", text) or not _bech32_holds(text):
        raise _Wrong("write the public key that age-keygen prints: age1 and 58 more characters")
    return text


def _bech32_holds(text: str) -> bool:
    """Return whether the check sum of BIP 173 holds."""
    prefix, _one, data = text.rpartition("1")
    values = [*(ord(one) >> 5 for one in prefix), 0, *(ord(one) & 31 for one in prefix)]
    values += [BECH32.index(one) for one in data]
    check_sum = 1
    for value in values:
        top = check_sum >> 25
        check_sum = (check_sum & 0x1FFFFFF) << 5 ^ value
        for bit, part in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            check_sum ^= part if (top >> bit) & 1 else 0
    return check_sum == 1
