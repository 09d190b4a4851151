"""The keys of golden-app.yaml: what each means, how its value is written, and what holds without it."""

from __future__ import annotations

import ipaddress
import re

from golden.fields import Flag, Items, Key, Names, Number, Section, Size, Text, Word

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
# Suffixes of code, configuration, keys and backups: the web server answers 404 for them, unless they are declared.
CLOSED_SUFFIXES = (
    "py", "pyc", "env", "ini", "sql", "sqlite", "sqlite3", "db", "bak", "old", "orig", "save", "swp", "key", "php", "sh",
    "git",
)  # fmt: skip
# Of /.well-known/: all that the machine does not answer itself (RFC 8615).
EVERY_NAME = "*"
# Variables with a special meaning on the clone: a value of the application would break programs that use them.
RESERVED = (
    r"PATH|HOME|USER|LOGNAME|SHELL|TERM|LANG|LC_.*|LD_.*|PYTHON.*|PIP_.*|PG.*|LISTEN_.*|NOTIFY_SOCKET|INVOCATION_ID"
    r"|JOURNAL_.*|SYSTEMD_.*|CREDENTIALS_DIRECTORY|RUNTIME_DIRECTORY|DJANGO_SETTINGS_MODULE|DATABASE_ROLE|DATABASE_URL|SITE_HOSTS"
    r"|WEB_CONCURRENCY|GUNICORN_.*|GOLDEN_.*"
)
# Names that units of the application have already.
TAKEN_NAMES = ("job", "run", "web", "owner", "candidate")
EXTENSIONS = (
    "btree_gin", "btree_gist", "citext", "cube", "dict_int", "fuzzystrmatch", "hstore", "intarray", "isn", "lo", "ltree",
    "pg_trgm", "pgcrypto", "seg", "tablefunc", "tcn", "tsm_system_rows", "tsm_system_time", "unaccent", "uuid-ossp",
)  # fmt: skip

_IDENTIFIER = r"[A-Za-z_][A-Za-z0-9_]*"
_SEGMENT = r"[A-Za-z0-9._~@+-]+"
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST = rf"(?:(?=[^:]{{1,253}}:)(?:{_LABEL}\.)*{_LABEL}|\[[0-9a-f:]{{2,39}}\])"
# systemd.time(7), without time zones: shorthands, or days of the week, date and time.
_DAY = r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_PART = r"(?:\*|[0-9]{1,4}(?:\.\.[0-9]{1,4})?)(?:/[0-9]{1,2})?"
_PARTS = rf"{_PART}(?:,{_PART})*"
_DATE, _TIME = rf"(?:{_PARTS}-)?{_PARTS}[-~]{_PARTS}", rf"{_PARTS}:{_PARTS}(?::{_PARTS})?"
_DAYS = rf"{_DAY}(?:\.\.{_DAY})?(?:,{_DAY}(?:\.\.{_DAY})?)*"
CALENDAR = (
    "minutely|hourly|daily|weekly|monthly|quarterly|semiannually|yearly"
    rf"|(?:{_DAYS} )?(?:{_DATE} )?{_TIME}|(?:{_DAYS} )?{_DATE}|{_DAYS}"
)


def _path_problem(path: str) -> str:
    return "no segment of a path begins with a dot: hidden files are closed" if re.search(r"(?:^|/)\.", path) else ""


def _variable_problem(name: str) -> str:
    return f"{name} is set by the image: choose another name" if re.fullmatch(RESERVED, name) else ""


def _unit_name_problem(name: str) -> str:
    return f"the names {', '.join(TAKEN_NAMES)} are the image's: choose another name" if name in TAKEN_NAMES else ""


def _well_known_problem(name: str) -> str:
    return "the machine answers this for its own certificate: remove it" if name.startswith("acme-challenge") else ""


def _schema_problem(name: str) -> str:
    taken = re.match("pg_|public$|information_schema$", name)
    return "PostgreSQL has schemas of this name: choose another one" if taken else ""


def _secret_problem(name: str) -> str:
    return "the image has this one: it is made on each clone" if name == "secret-key" else ""


def _destination_problem(text: str) -> str:
    host, _colon, port = text.rpartition(":")
    try:
        address = ipaddress.ip_address(host.strip("[]")) if host.startswith("[") or host[-1:].isdigit() else None
    except ValueError:
        return "this is neither a host name nor an address"
    if address and (address.is_loopback or address.is_multicast or address.is_unspecified or address.is_link_local):
        return "an address of this machine or of many machines is not a destination"
    return "" if 1 <= int(port) <= 65535 else "a port is a number from 1 to 65535"


CALLABLE = Text(
    rf"{_IDENTIFIER}(?:\.{_IDENTIFIER})*:{_IDENTIFIER}", "write MODULE:CALLABLE, such as mysite.wsgi:application"
)
MODULE = Text(rf"{_IDENTIFIER}(?:\.{_IDENTIFIER})*", "write the name of a module, such as mysite.settings")
VARIABLE = Text(
    r"[A-Za-z_][A-Za-z0-9_]{0,63}", "write the name of an environment variable, such as SITE_TITLE", _variable_problem
)
VALUE = Text(r".{0,4096}", "write a text in one line, in quotes if YAML would read a number or a truth value")
SECRET = Text(
    r"[a-z][a-z0-9-]{0,39}", "write the name of a secret in lower-case letters, digits and hyphens", _secret_problem
)
UNIT = Text(r"[a-z][a-z0-9]{0,29}", "write a name of lower-case letters and digits", _unit_name_problem)
ARGUMENT = Text(r".{1,1024}", "write an argument as text in one line, in quotes if YAML would read a number")
COMMAND = Items(ARGUMENT, most=64, least=1, repeats=True)
PATH = Text(
    rf"/(?:{_SEGMENT}/)*(?:{_SEGMENT})?", "write a path such as /api/ (all below it) or /upload (itself)", _path_problem
)
BELOW = Text(rf"/(?:{_SEGMENT}/)+", "write a path that ends with a slash, such as /ws/", _path_problem)
ADMINISTRATION = Text(rf"(?:/{_SEGMENT})+", "write a path without a slash at the end, such as /admin", _path_problem)
CALENDAR_TEXT = Text(CALENDAR, "write an expression of systemd.time(7), such as daily, Mon *-*-* 04:00:00 or *:0/15")
DESTINATION = Text(
    rf"{_HOST}:[0-9]{{1,5}}", "write HOST:PORT, such as smtp.example.org:587 or [2001:db8::25]:465", _destination_problem
)
SUFFIX = Text(r"[a-z0-9]{1,10}(?:\.[a-z0-9]{1,10})?", "write a suffix without its dot, in lower case, such as mp4")
MEDIA_TYPE = Text(r"[a-z0-9.+-]{1,40}/[a-z0-9.+-]{1,80}", "write a media type such as video/mp4")

ENTRY = Section({
    "wsgi": Key("the WSGI callable; found beside the settings module for the usual layout", CALLABLE, default=""),
    "asgi": Key(
        "the ASGI callable, in place of wsgi; uvicorn's worker serves it: the lock has to have uvicorn and uvicorn-worker",
        CALLABLE, default="",
    ),
    "settings": Key("Django's settings module; without it the one that manage.py names", MODULE, default=""),
})  # fmt: skip

RULE = Section({
    "path": Key("all below a path that ends with a slash, otherwise the path itself", PATH, needed=True),
    "methods": Key("methods of requests; without it those of web.methods", Items(Word(METHODS), most=7, least=1)),
    "body": Key("the largest body of a request; without it that of web.body", Size("1K", "10G")),
    "timeout": Key("how long an answer may take; without it web.timeout", Number(1, 3600, "seconds")),
    "login": Key("passwords are sent here: the number of attempts is limited", Flag(), default=False),
    "ask": Key(
        "a path of the application that decides by 204, 401 or 403 about a POST before its body is read",
        Text(rf"/(?:{_SEGMENT}/)*{_SEGMENT}/?", "write a path such as /upload/allowed", _path_problem),
    ),
})  # fmt: skip

WEB = Section({
    "methods": Key("methods of requests", Items(Word(METHODS), most=7, least=1), default=["GET", "HEAD", "POST"]),
    "body": Key("the largest body of a request", Size("1K", "10G"), default=1 << 20),
    "headers": Key("the largest header of a request, such as all cookies", Size("8K", "64K"), default=8 << 10),
    "timeout": Key("how long an answer may take", Number(1, 3600, "seconds"), default=30),
    "paths": Key("rules for paths that differ", Items(RULE), default=[]),
    "websockets": Key("paths of WebSockets; they need entry.asgi", Items(BELOW), default=[]),
    "administration": Key(
        "paths that only administrators of the site settings (admin_proxy) reach, each with all below it",
        Items(ADMINISTRATION), default=["/admin", "/django-admin"],
    ),
    "well_known": Key(
        "names below /.well-known/ that the application answers, * for all",
        Items(Text(rf"\*|(?:{_SEGMENT}/)*{_SEGMENT}", "write a name such as security.txt", _well_known_problem)),
        default=[EVERY_NAME],
    ),
    "suffixes": Key(
        "suffixes that the application answers, of those that are closed", Items(Word(CLOSED_SUFFIXES)), default=[]
    ),
})  # fmt: skip

MEDIA_KIND = Section({
    "suffixes": Key("suffixes of the files", Items(SUFFIX, most=20, least=1), needed=True),
    "type": Key("the media type that is sent", MEDIA_TYPE, needed=True),
    "send": Key("a browser shows the file (inline) or saves it", Word(("attachment", "inline")), default="attachment"),
})  # fmt: skip

MEDIA = Section({
    "kinds": Key("kinds of files that are sent, besides those of the image", Items(MEDIA_KIND), default=[]),
    "private": Key(
        "directories of media that only an answer with X-Accel-Redirect: /.private/DIRECTORY/FILE sends",
        Items(Text(rf"(?:{_SEGMENT}/)*{_SEGMENT}", "write a directory below media, such as invoices", _path_problem)),
        default=[],
    ),
})  # fmt: skip

PROCESS = Section({
    "command": Key(
        "a program of the application's environment with its arguments, or manage.py and a command", COMMAND, needed=True
    ),
    "memory": Key("the share of the machine's memory that it may have", Number(1, 40, "percent"), default=20),
    "stop": Key("how long it may take to end", Number(1, 600, "seconds"), default=30),
})  # fmt: skip

JOB = Section({
    "command": Key("a management command with its arguments, without manage.py", COMMAND, needed=True),
    "when": Key("when it runs (OnCalendar of systemd.timer)", CALENDAR_TEXT, needed=True),
    "timeout": Key("how long it may run", Number(1, 86400, "seconds"), default=3600),
    "memory": Key("the share of the machine's memory that it may have", Number(1, 40, "percent"), default=20),
})  # fmt: skip

DATABASE = Section({
    "extensions": Key("extensions that are created", Items(Word(EXTENSIONS)), default=[]),
    "schemas": Key(
        "schemas besides public, which belong to the owner of the tables",
        Items(Text(r"[a-z_][a-z0-9_]{0,62}", "write the name of a schema in lower case", _schema_problem), most=200),
        default=[],
    ),
    "temporary_tables": Key("the application may create temporary tables", Flag(), default=False),
    "statement_seconds": Key("the longest statement of the application", Number(1, 3600, "seconds"), default=10),
    "migration_seconds": Key("the longest statement of a migration (0: no limit)", Number(0, 86400, "seconds"), default=0),
})  # fmt: skip

HEALTH = Section({
    "path": Key(
        "answers 200 when the application is well; the image answers /health for an application without such a page",
        PATH, default="/health",
    ),
    "pages": Key(
        "paths that have to answer with 200, or a redirect to another page; below /static/: files that collectstatic makes",
        Items(PATH), default=[],
    ),
})  # fmt: skip

CONTRACT = Section({
    "entry": Key("what the application server starts", ENTRY),
    "environment": Key("environment variables of every process; no secrets", Names(VARIABLE, VALUE, most=100), default={}),
    "secrets": Key(
        "names of secrets: the site settings name the files, and a process reads $CREDENTIALS_DIRECTORY/app.NAME",
        Items(SECRET, most=50), default=[],
    ),
    "processes": Key(
        "processes beside the application server, in the same sandbox", Names(UNIT, PROCESS, most=20), default={}
    ),
    "jobs": Key("management commands that run at certain times", Names(UNIT, JOB, most=50), default={}),
    "web": Key("what the web server passes to the application", WEB),
    "media": Key("files that users upload, below MEDIA_URL (/media/)", MEDIA),
    "database": Key("what the application may do in its database", DATABASE),
    "destinations": Key(
        "servers outside that the application may reach over TCP, and no others", Items(DESTINATION, most=50), default=[]
    ),
    "health": Key("what has to answer before a release serves", HEALTH),
})  # fmt: skip
