"""What a contract opens, compared with that of another release and with the site's ceiling (application.allow)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from golden.contract_keys import METHODS
from golden.fields import size_text

Contract = Mapping[str, Any]
# Of site.yaml without application.allow. Destinations are the network's: none without an administrator's word.
CEILING: dict[str, Any] = {
    "methods": list(METHODS), "body": 100 << 20, "timeout": 300, "websockets": True,
    "administration": ["/admin", "/django-admin"], "processes": 4, "jobs": 20, "destinations": [], "extensions": True,
    "inline_media": True,
}  # fmt: skip


def opened(contract: Contract) -> list[str]:
    """Return all that a contract opens, one line each, in an order that does not depend on the file."""
    web, media, database = contract["web"], contract["media"], contract["database"]
    lines = [
        f"web: {_rule('/', web)}",
        *(f"web: {_rule(rule['path'], {**web, **_declared(rule)})}" for rule in web["paths"]),
        *(f"web: WebSocket {path}" for path in web["websockets"]),
        f"web: headers up to {size_text(web['headers'])}",
        *(f"web: /.well-known/{name}" for name in web["well_known"]),
        *(f"web: paths that end with .{suffix}" for suffix in web["suffixes"]),
        *(f"web: {path} is closed to all but administrators" for path in web["administration"]),
        *(f"media: .{suffix} as {kind['type']}, {kind['send']}" for kind in media["kinds"] for suffix in kind["suffixes"]),
        *(f"media: {path}/ only by the application" for path in media["private"]),
        *(f"secret: {name}" for name in contract["secrets"]),
        *(f"process: {name}: {' '.join(entry['command'])}" for name, entry in contract["processes"].items()),
        *(f"job: {name}: {' '.join(entry['command'])}, {entry['when']}" for name, entry in contract["jobs"].items()),
        *(f"destination: {destination}" for destination in contract["destinations"]),
        *(f"database: extension {name}" for name in database["extensions"]),
        *(f"database: schema {name}" for name in database["schemas"]),
        *(["database: temporary tables"] if database["temporary_tables"] else []),
        f"database: statements up to {database['statement_seconds']} s",
    ]
    return sorted(lines)


def _rule(path: str, rule: Mapping[str, Any]) -> str:
    methods = ", ".join(method for method in METHODS if method in rule["methods"])
    text = f"{path} {methods}; body {size_text(rule['body'])}; {rule['timeout']} s"
    return f"{text}; log-ins" if rule.get("login") else text


def _declared(rule: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in rule.items() if value}


def difference(before: Contract | None, after: Contract) -> list[str]:
    """Return what a release opens more (``+``) and less (``-``) than the one before; without one: all of it."""
    old, new = opened(before) if before else [], opened(after)
    lines = [(line, "-") for line in old if line not in new] + [(line, "+") for line in new if line not in old]
    return [f"{sign} {line}" for line, sign in sorted(lines)]


def beyond(contract: Contract, allow: Mapping[str, Any]) -> list[str]:
    """Return what a contract opens beyond the ceiling, each with the line of site.yaml that would allow it."""
    ceiling = {**CEILING, **allow}
    return [*_web_beyond(contract["web"], ceiling), *_others_beyond(contract, ceiling)]


def _web_beyond(web: Mapping[str, Any], allow: Mapping[str, Any]) -> Iterator[str]:
    rules = [web, *web["paths"]]
    methods = {method for rule in rules for method in rule["methods"] or ()}
    if more := [method for method in METHODS if method in methods and method not in allow["methods"]]:
        yield _line("methods", more, f"methods: [{', '.join([*allow['methods'], *more])}]")
    body, timeout = (max(rule[key] or 0 for rule in rules) for key in ("body", "timeout"))
    if body > allow["body"]:
        yield _line("body", [size_text(body)], f"body: {size_text(body)}")
    if timeout > allow["timeout"]:
        yield _line("timeout", [f"{timeout} s"], f"timeout: {timeout}")
    if web["websockets"] and not allow["websockets"]:
        yield _line("websockets", web["websockets"], "websockets: true")
    if missing := [path for path in allow["administration"] if path not in web["administration"]]:
        kept = [path for path in allow["administration"] if path not in missing]
        yield _line("administration open to everybody", missing, f"administration: [{', '.join(kept)}]")


def _others_beyond(contract: Contract, allow: Mapping[str, Any]) -> Iterator[str]:
    for key in ("processes", "jobs"):
        if len(contract[key]) > allow[key]:
            yield _line(key, [str(len(contract[key]))], f"{key}: {len(contract[key])}")
    if more := [name for name in contract["destinations"] if name not in allow["destinations"]]:
        quoted = ", ".join(f'"{name}"' for name in [*allow["destinations"], *more])
        yield _line("destinations", more, f"destinations: [{quoted}]")
    if contract["database"]["extensions"] and not allow["extensions"]:
        yield _line("database extensions", contract["database"]["extensions"], "extensions: true")
    inline = [kind["type"] for kind in contract["media"]["kinds"] if kind["send"] == "inline"]
    if inline and not allow["inline_media"]:
        yield _line("media shown inline", inline, "inline_media: true")


def _line(what: str, values: Sequence[str], remedy: str) -> str:
    return f"{what}: {', '.join(values)} (application.allow of /etc/golden/site.yaml: {remedy})"
