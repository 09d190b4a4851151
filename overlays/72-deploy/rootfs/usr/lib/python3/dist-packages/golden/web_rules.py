"""The web server's rules for an application, generated from its contract (golden-app.yaml).

Every value in them was checked by the contract's patterns: none has a character with a meaning for nginx. The site
(sites-enabled/10-app) includes the files from /run/golden/app.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from golden.contract_keys import CLOSED_SUFFIXES, EVERY_NAME
from golden.fields import size_text

Contract = Mapping[str, Any]
# Longer than what the application server waits for its worker, so that its answer arrives.
MARGIN_SECONDS = 5
# A monitor's request waits while a release takes over; a large project is imported for several seconds then.
HEALTH_SECONDS = 15
WEBSOCKET_SECONDS = 3600
# Any name that is not hidden: users' files have blanks, umlauts and brackets in theirs.
MEDIA_NAME = "[^/.][^/]*"
APPLICATION = "include /etc/nginx/snippets/application.conf;"
LOGIN_LIMITS = (
    "include /etc/nginx/snippets/limits.conf;",
    "limit_req zone=logins burst=5 nodelay;",
    "# Last: a request that another limit refuses uses no place here. Waits at most five seconds.",
    "limit_req zone=all_logins burst=15;",
)


def files(contract: Contract) -> dict[str, str]:
    """Return the files by name: locations of the site, its limits, and entries of maps at the level of http."""
    return {
        "locations.conf": "\n".join(_locations(contract)) + "\n",
        "server.conf": "".join(f"{line}\n" for line in _server(contract)),
        "machine-made.conf": "".join(_browser_methods(contract)),
        "disposition.conf": "".join(_inline(contract)),
        "websocket.conf": "".join(f'"~^{re.escape(path)}" $http_upgrade;\n' for path in contract["web"]["websockets"]),
    }


def _server(contract: Contract) -> Iterator[str]:
    yield f"client_max_body_size {_size(contract['web']['body'])};"
    yield f"large_client_header_buffers 4 {_size(contract['web']['headers'])};"


def _size(size: int) -> str:
    return size_text(size).lower()


def _browser_methods(contract: Contract) -> Iterator[str]:
    """Yield the entry for methods that pages of the application send: they are not a sign of a program."""
    declared = {method for rule in (contract["web"], *contract["web"]["paths"]) for method in rule["methods"] or ()}
    if more := sorted(declared - {"GET", "HEAD", "POST", "OPTIONS"}):
        yield f'"~^(?:{"|".join(more)}) \\S+ HTTP/(?:1\\.1|2\\.0)$" $no_browser;\n'


def _inline(contract: Contract) -> Iterator[str]:
    for kind in contract["media"]["kinds"]:
        if kind["send"] == "inline":
            yield f'"~*^/media/.+\\.(?:{_suffixes(kind)})$" "";\n'


def _suffixes(kind: Mapping[str, Any]) -> str:
    return "|".join(re.escape(suffix) for suffix in kind["suffixes"])


# --- locations --------------------------------------------------------------------------------------------------------


def _locations(contract: Contract) -> Iterator[str]:
    web = contract["web"]
    yield from _closed(web)
    yield from _media(contract["media"])
    for path in web["administration"]:
        yield from _administration(path, web)
    for number, rule in enumerate(web["paths"]):
        yield from _path(number, rule, web)
    for path in web["websockets"]:
        yield from _block(path, [*_methods(["GET"]), *_passed(path, WEBSOCKET_SECONDS)])
    own = {rule["path"] for rule in web["paths"]} | {*web["websockets"]}
    health = contract["health"]["path"]
    if health not in own and not health.endswith("/"):
        yield from _block(health, [*_methods(["GET"]), *_passed(health, HEALTH_SECONDS)])
    if "/" not in own:
        yield from _block("/", [*_methods(web["methods"]), *_passed("/", web["timeout"] + MARGIN_SECONDS)])


def _closed(web: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is never an answer: hidden files, and names of code, configuration or a backup."""
    if web["well_known"] == [EVERY_NAME]:
        yield 'location ~ "(?:^/\\.(?!well-known/)|./\\.)" { return 404; }'
    else:
        names = "|".join(re.escape(name) for name in web["well_known"])
        hidden = f"^(?!/\\.well-known/(?:{names})$).*/\\." if names else "/\\."
        yield f'location ~ "{hidden}" {{ return 404; }}'
    suffixes = [suffix for suffix in CLOSED_SUFFIXES if suffix not in web["suffixes"]]
    if suffixes:
        # Below /static/ are the files of collectstatic; /media/ has separate rules.
        yield f'location ~* "^(?!/static/|/media/).*\\.(?:{"|".join(suffixes)})$" {{ return 404; }}'


def _media(media: Mapping[str, Any]) -> Iterator[str]:
    """Yield the kinds of media beyond those of the image, and the directories that only the application opens."""
    for path in media["private"]:
        yield f"location ^~ /media/{path}/ {{ return 404; }}"
        yield from _nested(f"location ^~ /.private/{path}/", ["internal;", f"alias /var/www/media/{path}/;"])
    for kind in media["kinds"]:
        # A suffix in capitals is the same kind: cameras write them.
        types = " ".join(kind["suffixes"])
        yield from _nested(f'location ~* "^/media/(?:{MEDIA_NAME}/)*{MEDIA_NAME}\\.(?:{_suffixes(kind)})$"', [
            "root /var/www;", "if (!-f $request_filename) { return 404; }",
            f"types {{ {kind['type']} {types}; }}", f"default_type {kind['type']};",
            "limit_req zone=files burst=1000 nodelay;", *_methods(["GET"]),
        ])  # fmt: skip


def _administration(path: str, web: Mapping[str, Any]) -> Iterator[str]:
    """Yield an administration page: it is closed, except for the clients that golden-proxy.service wrote."""
    # Other ways to write the name lead nowhere.
    yield f'location ~ "^{re.escape(path)}[^/A-Za-z0-9_-]" {{ return 404; }}'
    body = ["include /etc/nginx/snippets/administration.conf;", *_methods(web["methods"])]
    timeout = web["timeout"] + MARGIN_SECONDS
    yield from _nested(f"location = {path}", [*body, *_passed(path, timeout)])
    yield from _nested(f"location ^~ {path}/", [*body, *_passed(f"{path}/", timeout)])


def _path(number: int, rule: Mapping[str, Any], web: Mapping[str, Any]) -> Iterator[str]:
    """Yield a path that differs from the others; one with a question has two more locations."""
    path, question = rule["path"], f"/.ask-{number}"
    body_limit = [f"client_max_body_size {_size(rule['body'])};"] if rule["body"] else []
    lines = [*(LOGIN_LIMITS if rule["login"] else ()), *body_limit, *_methods(rule["methods"] or web["methods"])]
    if rule["ask"]:
        lines += [f"auth_request {question};", *_login_page(path, web), "include /etc/nginx/snippets/error-codes.conf;"]
        yield from _question(question, rule, body_limit)
    yield from _block(path, [*lines, *_passed(path, (rule["timeout"] or web["timeout"]) + MARGIN_SECONDS)])


def _login_page(path: str, web: Mapping[str, Any]) -> Iterator[str]:
    login = next((rule["path"] for rule in web["paths"] if rule["login"]), "")
    if login:
        yield "# As the application answers who is not logged in."
        yield f"error_page 401 =303 https://$host{login}?next={path};"


def _question(question: str, rule: Mapping[str, Any], body_limit: Sequence[str]) -> Iterator[str]:
    """Yield the location that asks the application before the body of a POST is read."""
    yield from _nested(f"location = {question}", [
        "internal;", "# The limit of the request that is asked about.", *body_limit,
        "if ($request_method != POST) { return 204; }",
        f"proxy_pass http://application{rule['ask']};",
        "proxy_method GET;", "proxy_pass_request_body off;", 'proxy_set_header Content-Length "";',
        'proxy_set_header Transfer-Encoding "";', APPLICATION,
        "# An application that does not know the question decides when it has the body.",
        "proxy_intercept_errors on;", f"error_page 404 =204 {question}-undecided;",
    ])  # fmt: skip
    pattern = f"^{re.escape(rule['path'])}" + ("" if rule["path"].endswith("/") else "(?:\\?|$)")
    yield from _nested(
        f"location = {question}-undecided",
        ["internal;", f'if ($request_uri !~ "{pattern}") {{ return 404; }}', "return 204;"],
    )


def _block(path: str, lines: Sequence[str]) -> Iterator[str]:
    """Yield a location for all below a path that ends with a slash, otherwise for the path itself."""
    yield from _nested(f"location {path}" if path.endswith("/") else f"location = {path}", lines)


def _nested(head: str, lines: Sequence[str]) -> Iterator[str]:
    yield f"{head} {{"
    yield from (f"    {line}" for line in lines)
    yield "}"


def _methods(methods: Sequence[str]) -> list[str]:
    """Return the directive that refuses other methods; GET includes HEAD there."""
    named = [method for method in methods if method != "HEAD" or "GET" not in methods]
    return [f"limit_except {' '.join(named)} {{ deny all; }}"]


def _passed(path: str, seconds: int) -> list[str]:
    """Return the directives that pass a request on under the path that nginx decided on."""
    return [f"proxy_pass http://application{path};", APPLICATION, f"proxy_read_timeout {seconds}s;"]
