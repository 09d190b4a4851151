"""The committed schemas match the readers: they accept the committed files, and refuse what a reader refuses."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from build.core import image_programs, run
from build.core.yaml_table import DESCRIBE, Table
from build.spec import json_schema

ROOT = Path(__file__).parents[3]
PROFILES = sorted((ROOT / "profiles").glob("*.yaml"))
LAYERS = sorted((ROOT / "overlays").glob("**/layer.yaml"))
CHECK_SECONDS = 60
REFRESH = "run python -m build.spec.json_schema"
GOLDEN: dict[str, Any] = yaml.safe_load((ROOT / "golden.yaml").read_text(encoding="utf-8"))
CLUSTER = {"host": "pve", "nodes": ["pve1"], "storage": "local", "media": "local", "pool": "golden"}
EXAMPLE = ROOT / "overlays/80-firstboot/rootfs/etc/golden/site.yaml.example"
RECIPIENT = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"
ACME = {"directory": "https://ca.example.org", "email": None}
LAYER: dict[str, Any] = {"about": "A layer for a test.", "tests": ["tests/image/test_x.py"]}

# Errors that do not depend on other keys: reader and schema both refuse them.
WRONG_GOLDEN: dict[str, dict[str, Any]] = {
    "unknown key": {"colour": "x"}, "name": {"name": "Golden"}, "number for a text": {"version": 1},
    "missing key": {"name": None}, "word": {"kernel": "fast"}, "list": {"layers": "10-base"},
    "twice": {"packages": ["vim", "vim"]}, "size": {"disk": GOLDEN["disk"] | {"size": "16"}},
    "no partitions": {"disk": {"size": "16G"}},
    "unknown key of a table": {"admin": GOLDEN["admin"] | {"shell": "sh"}},
    "mount option": {"disk": {"size": "16G", "partitions": [{"mount": "/", "size": "5G", "options": ["fast"]}]}},
    "too many workers": {"application": GOLDEN["application"] | {"workers": 65}},
    "no nodes": {"proxmox": CLUSTER | {"nodes": []}}, "vlan": {"proxmox": CLUSTER | {"vlan": 0}},
    "a cluster without a pool": {"proxmox": {key: CLUSTER[key] for key in CLUSTER if key != "pool"}},
    "soak": {"releases": {"soak": "1w"}}, "metric": {"releases": {"audit": {"at_most": {"lynis": "high"}}}},
    "path": {"releases": {"ledger": "../releases.jsonl"}},
}  # fmt: skip
WRONG_LAYER: dict[str, dict[str, Any]] = {
    "unknown key": {"extra": 1}, "no tests": {"tests": []}, "about": {"about": "short"},
    "mode": {"paths": {"/etc/x": {"mode": 640}}}, "unknown key of a path": {"paths": {"/etc/x": {"user": "root"}}},
    "command": {"commands": [{"run": "true", "reason": "it is only a test"}]}, "reason": {"commands": [{"run": ["true"]}]},
    "lock": {"python": {"venv": "/opt/venv", "requirements": "requirements.txt"}},
}  # fmt: skip
# What the reader of the settings accepts, in every spelling; and what it refuses whatever files the clone has.
GOOD_SITE: dict[str, dict[str, Any]] = {
    "nothing": {}, "nothing of each": dict.fromkeys(json_schema.schema("site.yaml")["properties"]),
    "an address": {"admin_cidrs": ["10.1.2.3", "2001:db8::/32"]}, "capitals": {"server_names": ["WWW.Example.Org"]},
    "one address of mail": {"alerts": {"mail": {"server": "[2001:db8::25]:465", "from": "a@b.c", "to": "d@e.f"}}},
    "no target": {"backup": {"recipient": RECIPIENT, "target": "", "signers": []}}, "acme": {"certificate": {"acme": ACME}},
    "no administrators": {"admin_proxy": {"client_ca": None, "cidrs": []}},
}  # fmt: skip
WRONG_SITE: dict[str, dict[str, Any]] = {
    "unknown key": {"server_name": "x.example.org"}, "no list": {"admin_cidrs": "10.0.0.0/24"},
    "no recipient": {"backup": {}}, "days": {"backup": {"recipient": RECIPIENT, "keep_days": 0}},
    "target": {"backup": {"recipient": RECIPIENT, "target": "ftp://x"}},
    "protocol": {"log_collector": {"host": "a", "ca": "/etc/golden/ca.pem", "protocol": "udp"}},
    "http": {"alerts": {"webhook": "http://example.org/x"}}, "hash": {"application": {"bundle": "/srv/x", "sha256": "12"}},
    "unknown key of a table": {"certificate": {"acme": ACME | {"mail": "x"}}},
    "tls": {"alerts": {"mail": {"server": "x", "from": "a@b.c", "to": "d@e.f", "tls": "none"}}},
}  # fmt: skip


def check(schema: str, *paths: Path) -> dict[str, Any]:
    done = run.run(
        [sys.executable, "-m", "check_jsonschema", "--output-format", "json", "--schemafile",
         ROOT / json_schema.path_of(schema), *paths], timeout=CHECK_SECONDS, check=False,
    )  # fmt: skip
    report: dict[str, Any] = json.loads(done.stdout)
    assert (report["status"] == "ok") == (done.returncode == 0)
    return report


def refused(schema: str, contents: dict[str, dict[str, Any]], directory: Path) -> set[str]:
    """Return the names of the contents that the schema refuses."""
    paths = {}
    for number, (name, content) in enumerate(contents.items()):
        paths[str(directory / f"{number}.yaml")] = name
        (directory / f"{number}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    report = check(schema, *map(Path, paths))
    return {paths[error["filename"]] for error in report.get("errors", [])}


def changed(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in (base | changes).items() if value is not None}


@pytest.mark.parametrize("name", json_schema.FILES)
def test_the_checked_in_schema_is_what_the_reader_reads(name: str) -> None:
    written = json.loads((ROOT / json_schema.path_of(name)).read_text(encoding="utf-8"))
    assert written == json_schema.schema(name), REFRESH


@pytest.mark.parametrize("path", json_schema.PAGES)
def test_the_reference_page_is_what_the_reader_reads(path: str) -> None:
    assert (ROOT / path).read_text(encoding="utf-8") == json_schema.PAGES[path](), REFRESH


def test_what_is_written_is_what_is_compared(tmp_path: Path) -> None:
    json_schema.write(tmp_path)
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {*json_schema.PAGES, *map(json_schema.path_of, json_schema.FILES)}
    assert written >= {str(path.relative_to(ROOT)) for path in (ROOT / json_schema.DIRECTORY).iterdir()}
    assert all((tmp_path / name).read_bytes() == (ROOT / name).read_bytes() for name in written), REFRESH


def test_the_schemas_are_schemas() -> None:
    paths = [ROOT / json_schema.path_of(name) for name in json_schema.FILES]
    run.run([sys.executable, "-m", "check_jsonschema", "--check-metaschema", *paths], timeout=CHECK_SECONDS)


@pytest.mark.parametrize("name", json_schema.READERS)
def test_a_file_with_content_is_read_by_the_same_keys(name: str) -> None:
    table = Table({}, where="", problems=[])
    json_schema.READERS[name](table)
    assert table.known == json_schema.schema(name)["properties"].keys()


def test_describing_reads_no_value_and_needs_none() -> None:
    table = Table(DESCRIBE, where="", problems=[])
    rows = table.rows("rows", "write a list", about="rows")
    assert [row.describes for row in rows] == [True]
    assert table.section("section") is not None
    assert Table({}, where="", problems=[]).section("section") is None


def test_the_committed_files_satisfy_their_schemas() -> None:
    assert check("golden.yaml", ROOT / "golden.yaml")["status"] == "ok"
    assert check(json_schema.PROFILE, *PROFILES)["status"] == "ok"
    assert check("layer.yaml", *LAYERS)["status"] == "ok"


def test_a_profile_needs_what_it_extends_and_its_own_name(tmp_path: Path) -> None:
    good: dict[str, Any] = {"extends": "../golden.yaml", "name": "golden-x", "admin": {"user": "operator"}}
    wrong: dict[str, dict[str, Any]] = {
        "no name": {"extends": "../golden.yaml"}, "no base": {"name": "golden-x"}, "unknown key": {**good, "colour": "x"},
        "entry that is not whole": {**good, "disk": {"partitions": [{"mount": "/"}]}},
    }  # fmt: skip
    assert refused(json_schema.PROFILE, {"good": good, **wrong}, tmp_path) == wrong.keys()


def test_the_files_name_their_schemas_for_editors() -> None:
    for path in [ROOT / "golden.yaml", *PROFILES, *LAYERS]:
        line = path.read_text(encoding="utf-8").splitlines()[0]
        named = path.parent / line.removeprefix("# yaml-language-server: $schema=")
        assert named.resolve() == ROOT / json_schema.path_of(json_schema.PROFILE if path in PROFILES else path.name), path


def test_reader_and_schema_refuse_the_same_values_of_golden_yaml(tmp_path: Path) -> None:
    contents = {name: changed(GOLDEN, changes) for name, changes in WRONG_GOLDEN.items()}
    for name, content in contents.items():
        table = Table(content, where="", problems=[])
        json_schema.READERS["golden.yaml"](table)
        assert table.problems, name
    assert refused("golden.yaml", contents, tmp_path) == contents.keys()


def test_reader_and_schema_accept_the_sections_that_the_committed_file_does_not_have(tmp_path: Path) -> None:
    releases = {"channels": ["stable", "edge"], "soak": "24h", "audit": {"at_most": {"lynis": 3}}, "signers": "docs/signers"}
    content = changed(GOLDEN, {"proxmox": CLUSTER | {"memory": "4G", "vlan": 7, "cores": 4}, "releases": releases})
    table = Table(content, where="", problems=[])
    json_schema.READERS["golden.yaml"](table)
    assert table.problems == []
    assert refused("golden.yaml", {"all sections": content}, tmp_path) == set()


def test_reader_and_schema_refuse_the_same_values_of_a_layer(tmp_path: Path) -> None:
    contents = {name: changed(LAYER, changes) for name, changes in WRONG_LAYER.items()}
    for name, content in contents.items():
        table = Table(content, where="", problems=[])
        json_schema.READERS["layer.yaml"](table)
        table.finish()
        assert table.problems, name
    assert refused("layer.yaml", contents, tmp_path) == contents.keys()
    assert refused("layer.yaml", {"good": LAYER}, tmp_path) == set()


def test_the_schema_of_site_yaml_takes_what_its_reader_takes(tmp_path: Path) -> None:
    site = image_programs.module("golden.site")
    assert {name: site.check(content)[1] for name, content in GOOD_SITE.items()} == {name: [] for name in GOOD_SITE}
    assert refused("site.yaml", GOOD_SITE, tmp_path) == set()
    (tmp_path / "example.yaml").write_bytes(EXAMPLE.read_bytes())
    assert check("site.yaml", tmp_path / "example.yaml")["status"] == "ok"


def test_the_schema_of_site_yaml_refuses_what_its_reader_refuses(tmp_path: Path) -> None:
    site = image_programs.module("golden.site")
    assert {name for name, content in WRONG_SITE.items() if site.check(content)[1]} == set(WRONG_SITE)
    assert refused("site.yaml", WRONG_SITE, tmp_path) == set(WRONG_SITE)


def test_the_example_of_site_yaml_names_the_schema_of_its_image() -> None:
    """The build of the root file system writes that schema: it has the keys of the layers of the image."""
    named = EXAMPLE.read_text(encoding="utf-8").splitlines()[0].removeprefix("# yaml-language-server: $schema=")
    target = os.path.normpath(f"/etc/golden/{named}")
    commands = yaml.safe_load((ROOT / "overlays/80-firstboot/layer.yaml").read_text(encoding="utf-8"))["commands"]
    assert any(f"golden-site --schema >{target}" in command["run"][-1] for command in commands)
