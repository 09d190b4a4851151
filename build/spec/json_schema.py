"""JSON Schemas of golden.yaml, layer.yaml, golden-app.yaml and site.yaml, and reference pages, from the readers.

Editors use the schemas for completion and checks. `python -m build.spec.json_schema` writes all of them. A schema does not
have the rules that join keys (such as the mount points that must be there): only the reader checks those.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from build.core import files, image_programs
from build.core.yaml_table import DESCRIBE, Schema, Table
from build.spec import golden_yaml, layer_yaml, profiles

ROOT = Path(__file__).parents[2]
DRAFT = "https://json-schema.org/draft/2020-12/schema"
DIRECTORY = "build/spec/schemas"
PAGE = "docs/reference/golden-yaml.md"
PROFILE = "profile.yaml"
READERS: dict[str, Callable[[Table], object]] = {
    "golden.yaml": golden_yaml.read, PROFILE: golden_yaml.read, "layer.yaml": layer_yaml.read,
}  # fmt: skip
SITE, SITE_PAGE = "site.yaml", "docs/reference/site-yaml.md"
APP, APP_PAGE = "golden-app.yaml", "docs/reference/golden-app-yaml.md"

APP_HEAD = """# golden-app.yaml

The contract of an application: a file beside its `manage.py`. It declares what the application needs beyond its database,
the web server and its own files; the release is granted exactly that. Every key may be left out, and so may the file: a
project of `django-admin startproject` with settings for PostgreSQL needs none. This page is generated from the code that
reads the file, on the workstation (`nox -s bundle`, also with `--check`), when the image is built, and on the clone
([decision 21](../decisions/21-contract-of-an-application.md)). Any other key is an error.

Editors complete and check keys with the [schema](../../build/spec/schemas/golden-app.schema.json):
`# yaml-language-server: $schema=PATH/golden-app.schema.json` in the first line. Sizes have binary units (512K, 8M, 1G).

A shop with a REST interface, a queue and a mail server:

```yaml
entry: {wsgi: shop.wsgi:application, settings: shop.settings.production}
environment: {SHOP_CURRENCY: EUR}
secrets: [payment-key]                        # the file is in $CREDENTIALS_DIRECTORY/app.payment-key
processes:
  worker: {command: [celery, --app, shop, worker, --concurrency, "2"], memory: 15}
jobs:
  sessions: {command: [clearsessions], when: daily}
web:
  body: 4M
  paths:
    - {path: /api/, methods: [GET, POST, PUT, PATCH, DELETE, OPTIONS]}
    - {path: /api/pictures/, methods: [GET, PUT], body: 50M, timeout: 120}
    - {path: /accounts/login/, login: true}
  administration: [/admin, /django-admin]
  well_known: [security.txt]
media:
  kinds: [{suffixes: [mp4, m4v], type: video/mp4, send: inline}]
  private: [invoices]
database: {extensions: [pg_trgm], statement_seconds: 30}
destinations: ["smtp.example.org:587", "api.payments.example.com:443"]
health: {path: /health, pages: [/, /accounts/login/]}
```
"""

HEAD = """# golden.yaml

Every key of `golden.yaml`. This page is generated from the code that reads the file
([CONTRIBUTING](../../CONTRIBUTING.md) has the command). Any other key is an error, and so is a key that is
written twice. Sizes have binary units (512M, 5G, 1T).

Editors complete and check keys by the [schema](../../build/spec/schemas/golden.schema.json), which the first line of
the file names. Rules about several keys are checked by every command that reads the file, such as
`nox -s plan`: mount points and mount options (requirements R5 and R6), and that the partitions fit on the disk.
"""

SITE_HEAD = """# site.yaml

Every key of `/etc/golden/site.yaml`, the settings of a clone. This page is generated from the code that reads the file
([CONTRIBUTING](../../CONTRIBUTING.md) has the command). All keys are optional, and null is as if a key was left out.
Each key belongs to a layer. A key whose layer is not in the image is an error, and so is any key that is not listed here. A
value with an error counts as not given; of a table with an error nothing is used.

`golden-site --check FILE` checks a file, `golden-site --schema` prints the schema of the keys of its image, which is also
in `/usr/share/golden/site.schema.json` for editors; [this schema](../../build/spec/schemas/site.schema.json) has all keys.
`/etc/golden/site.yaml.example` shows each key. See [operations](../operations/operations.md).
"""


def path_of(name: str) -> str:
    """Return the path of a file's schema, relative to the checkout."""
    return f"{DIRECTORY}/{name.removesuffix('.yaml')}.schema.json"


def schema(name: str) -> Schema:
    """Return the JSON Schema (draft 2020-12) of one of the FILES. A profile inherits what it does not have."""
    if name == APP:
        described: Schema = image_programs.module("golden.contract").schema()
        return described
    if name == SITE:
        return _site_schema()
    table = Table(DESCRIBE, where="", problems=[])
    READERS[name](table)
    whole = {"$schema": DRAFT, "title": name, **table.schema()}
    return {**_without_required(whole), "required": [profiles.EXTENDS, *profiles.OWN]} if name == PROFILE else whole


def _without_required(table: Schema) -> Schema:
    """Return the schema of a table in which every key may be left out; entries of lists are whole."""
    properties = {
        key: _without_required(value) if value.get("properties") else value for key, value in table["properties"].items()
    }
    return {key: value for key, value in table.items() if key != "required"} | {"properties": properties}


def _site_schema() -> Schema:
    site = image_programs.module("golden.site")
    found: Schema = site.schema()
    for key, value in found["properties"].items():
        layer = image_programs.layer_of(image_programs.module(f"golden.site_keys.{key}"))
        value["description"] += f" Layer: {layer}."
    return found


def page() -> str:
    """Return the reference page of golden.yaml (Markdown)."""
    return HEAD + "".join(_section("", schema("golden.yaml")))


def app_page() -> str:
    """Return the reference page of golden-app.yaml (Markdown)."""
    return APP_HEAD + "".join(_section("", schema(APP)))


def site_page() -> str:
    """Return the reference page of site.yaml (Markdown)."""
    return SITE_HEAD + "".join(_section("", schema(SITE)))


def _section(prefix: str, table: Schema) -> Iterator[str]:
    if prefix:
        yield f"\n## {prefix}\n"
        yield f"\n{table['description']}\n" if "description" in table else ""
    yield "\n| key | value | without it | meaning |\n|---|---|---|---|\n"
    required = table.get("required", [])
    nested: list[tuple[str, Schema]] = []
    for key, value in table["properties"].items():
        inner = _table_in(value)
        if inner is not None:
            below = "[]" if "array" in _types(value) else "" if inner is value else ".NAME"
            nested.append((f"{prefix}.{key}".strip(".") + below, inner))
        absent = "error" if key in required else _default(value)
        yield f"| `{key}` | {_value(value)} | {absent} | {_meaning(value)} |\n"
    for name, inner in nested:
        yield from _section(name, inner)


def _table_in(value: Schema) -> Schema | None:
    """Return the schema of the tables that a key has below it, if it has any."""
    tables = (value.get("items"), value.get("additionalProperties"), value)
    return next((table for table in tables if isinstance(table, dict) and table.get("properties")), None)


def _default(value: Schema) -> str:
    """Return what holds without a key."""
    default = value.get("default")
    if default in (None, "", [], {}, False):
        return "-"
    return f"`{' '.join(default)}`" if isinstance(default, list) else f"`{default}`"


def _value(value: Schema) -> str:
    """Return in words what may be written."""
    kinds = [kind for kind in _types(value) if kind != "null"]
    if "enum" in value:
        return " or ".join(f"`{word}`" for word in value["enum"] if word is not None)
    if kinds == ["integer"]:
        return f"whole number, {value['minimum']} to {value['maximum']}"
    if "array" in kinds:
        what = "list of tables" if _table_in(value) else f"list: {_entry(value['items'])}"
        return f"text, or {what}" if "string" in kinds else what
    if "object" in kinds:
        return _table(value)
    return {"boolean": "true or false", "number": "number"}.get(kinds[0], "text")


def _entry(value: Schema) -> str:
    """Return in words what an entry of a list is; of many words they are all listed."""
    return ", ".join(f"`{word}`" for word in value["enum"]) if "enum" in value else _value(value)


def _table(value: Schema) -> str:
    inner = _table_in(value)
    if inner is not None:
        return "table" if inner is value else "tables by their names"
    return f"table: name and {_value(value['additionalProperties'])}"


def _types(value: Schema) -> list[str]:
    """Return the JSON types that a value may have."""
    return value["type"] if isinstance(value["type"], list) else [value["type"]]


def _meaning(value: Schema) -> str:
    """Return what the key is for, and for a list how to write an entry."""
    text: str = value.get("description", "")
    entry: str = "" if _table_in(value) else value.get("items", {}).get("description", "")
    return (f"{text} Entries: {entry.rstrip('.')}." if entry else text).replace("|", "\\|")


def write(root: Path = ROOT) -> None:
    """Write the schemas and the pages into a checkout."""
    for name in FILES:
        files.write_atomic(root / path_of(name), json.dumps(schema(name), indent=2) + "\n")
    for path, content in PAGES.items():
        files.write_atomic(root / path, content())


FILES = (*READERS, APP, SITE)
PAGES = {PAGE: page, APP_PAGE: app_page, SITE_PAGE: site_page}


if __name__ == "__main__":
    write()
