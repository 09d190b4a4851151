"""application of site.yaml: what is deployed at first boot, the application's secrets, and the ceiling of its contract."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from golden.contract_keys import ADMINISTRATION, DESTINATION, METHODS, SECRET
from golden.exposure import CEILING
from golden.fields import Text, size_bytes, size_text
from golden.site_table import Fault, Key, Kind, Table, Wrong, kind, shown
from golden.site_values import PATH, https_url, number, one_of, read_secret, secret_file, text_line, unit_path

SECRET_FILE = "app-secret-"  # noqa: S105 (the beginning of a file's name)


@kind("An absolute path, or a URL that starts with https://.", pattern=f"^(?:https://.*|{PATH})$")
def path_or_url(value: object) -> str:
    """Return an absolute path or an https URL."""
    return str(https_url(value) if "://" in text_line(value) else unit_path(value))


@kind("64 hexadecimal digits.", pattern="^[0-9a-fA-F]{64}$")
def sha256(value: object) -> str:
    """Return a SHA-256 in lower case."""
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text_line(value)):
        raise Wrong("write the 64 hexadecimal digits that sha256sum prints")
    return str(value).lower()


@kind(
    "Names, each with the path of a file of root's (0600) that has the secret in one line.", type="object",
    propertyNames=SECRET.schema(), additionalProperties={"type": "string", "pattern": f"^{PATH}$"},
)  # fmt: skip
def secrets(value: object) -> dict[str, str]:
    """Return the files of secrets by the names that contracts have for them."""
    if not isinstance(value, Mapping):
        raise Wrong("write NAME: PATH, such as payment-key: /etc/golden/payment-key")
    found = {}
    for name, path in value.items():
        faults: list[Fault] = []
        SECRET.read(name, "", faults)
        if faults:
            raise Wrong(f"{shown(name)}: {faults[0].remedy}")
        try:
            found[name] = secret_file(path)
        except Wrong as wrong:
            raise Wrong(f"{name}: {wrong}") from None
    return found


@kind("A size such as 100M.", pattern="^[1-9][0-9]{0,9}[KMG]?$")
def size(value: object) -> int:
    """Return a size in bytes."""
    if size_bytes(value) < 1:
        raise Wrong("write a size such as 100M")
    return size_bytes(value)


@kind("", type="boolean")
def flag(value: object) -> bool:
    """Return true or false."""
    if not isinstance(value, bool):
        raise Wrong("write true or false")
    return value


def of_the_contract(text: Text) -> Kind:
    """Return what reads a value by the rule that the contract has for it."""

    @kind(text.remedy, pattern=text.schema()["pattern"])
    def read_text(value: object) -> str:
        faults: list[Fault] = []
        found = text.read(value, "", faults)
        if faults:
            raise Wrong(faults[0].remedy)
        return found

    return read_text


def read(site: Table, key: str) -> dict[str, Any] | None:
    """Return the setting."""
    return site.whole(key, _application, about="An application that is deployed at first boot, and what it may open.")


def _application(part: Table) -> dict[str, Any]:
    bundle = part.value("bundle", path_or_url, about="The bundle, on this disk or on a web server.")
    digest = part.value("sha256", sha256, about="The SHA-256 of the bundle, as nox -s bundle prints it.")
    for one, other in (("bundle", "sha256"), ("sha256", "bundle")):
        if part.content.get(one) is not None and part.content.get(other) is None:
            part.complain(other, None, "bundle and sha256 go together")
    files = part.value("secrets", secrets, secret=True, default={}, about="Secrets that the application's contract names.")
    allow = part.whole("allow", _allow, about="The ceiling: a release whose contract opens more is refused.")
    return {"bundle": bundle, "sha256": digest, "secrets": files, "allow": allow or {}}


def _allow(part: Table) -> dict[str, Any]:
    found = {
        "methods": part.items("methods", one_of(*METHODS), about="Methods of requests (default: all)."),
        "body": part.value("body", size, about=f"The largest body of a request (default: {size_text(CEILING['body'])})."),
        "timeout": part.value("timeout", number(1, 3600), about=f"Seconds of an answer (default: {CEILING['timeout']})."),
        "websockets": part.value("websockets", flag, about="WebSockets (default: true)."),
        "administration": part.items(
            "administration", of_the_contract(ADMINISTRATION),
            about="Paths that contracts close to all but administrators (default: /admin, /django-admin; []: none).",
        ),
        "processes": part.value("processes", number(0, 20), about=f"Processes (default: {CEILING['processes']})."),
        "jobs": part.value("jobs", number(0, 50), about=f"Jobs (default: {CEILING['jobs']})."),
        "destinations": part.items("destinations", of_the_contract(DESTINATION), about="Servers outside (default: none)."),
        "extensions": part.value("extensions", flag, about="Extensions of the database (default: true)."),
        "inline_media": part.value("inline_media", flag, about="Kinds of media that a browser shows (default: true)."),
    }  # fmt: skip
    # Only what stands in the file: the rest is the default ceiling.
    return {key: value for key, value in found.items() if part.content.get(key) is not None}


def files(application: Mapping[str, Any] | None) -> Mapping[str, bytes]:
    """Return the secrets for LoadCredential= of the application's units."""
    given = (application or {}).get("secrets", {})
    return {f"{SECRET_FILE}{name}": read_secret(path).encode() for name, path in given.items()}


def outgoing(application: Mapping[str, Any]) -> Iterable[tuple[str, str | None]]:
    """Return where golden-deploy-fetch.service gets the bundle from."""
    return [("golden-fetch", application["bundle"])]


KEY = Key(read, files, outgoing=outgoing)
