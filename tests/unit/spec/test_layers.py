"""Layers are read, checked and packed: all errors are reported at once, and the bytes are reproducible."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from build.core.errors import SpecError
from build.spec import golden_yaml as specs
from build.spec import layers
from build.spec.layer_yaml import Access, Command
from build.spec.layers import Node
from tests.unit.helpers import ALTERNATIVES, LAYERS, ROOT, every_layer, read_stack, write_layer

EPOCH = 1795140670


def problems(root: Path, *names: str) -> list[str]:
    """Return the errors of the named layers, one per line."""
    with pytest.raises(SpecError) as caught:
        read_stack(root, *names)
    assert caught.value.exit_code == 2
    return caught.value.details.splitlines()


# --- a valid layer ----------------------------------------------------------------------------------------------------


def test_a_layer_is_read_with_its_files_in_order(tmp_path: Path) -> None:
    layer = write_layer(
        tmp_path, "10-base", {"/etc/b": "two", "/etc/a": "one", "/usr/bin/x": "#!/bin/sh\n"},
        packages=["nginx", "apt"], absent=["/etc/c"],
        paths={
            "/usr/bin/x": {"mode": "0755"},
            "/etc/b": {"owner": "root", "group": "nginx", "mode": "0640", "reason": "it holds a secret"},
            "/etc": {"mode": "0700"},
        },
        commands=[{"run": ["ldconfig", "-v"], "reason": "the cache has no declaration"}],
    )  # fmt: skip
    (layer / "rootfs" / "etc" / "link").symlink_to("../usr/bin/x")
    (layer / "README.md").write_text("why\n")
    stack = read_stack(tmp_path, "10-base")
    assert [(node.path, node.kind, node.mode, node.access.group) for node in stack.nodes] == [
        ("/etc", "directory", 0o700, "root"),
        ("/etc/a", "file", 0o644, "root"),
        ("/etc/b", "file", 0o640, "nginx"),
        ("/etc/link", "link", 0o644, "root"),
        ("/usr/bin/x", "file", 0o755, "root"),
    ]
    assert stack.nodes[3].target == "../usr/bin/x"
    assert (stack.packages, stack.absent) == (("apt", "nginx"), ("/etc/c",))
    assert stack.commands == (Command(("ldconfig", "-v"), "the cache has no declaration"),)


def test_modes_of_the_checkout_mean_nothing(tmp_path: Path) -> None:
    layer = write_layer(tmp_path, "10-base", {"/etc/x": "x"})
    (layer / "rootfs" / "etc" / "x").chmod(0o777)
    (layer / "rootfs" / "etc").chmod(0o700)
    (node,) = read_stack(tmp_path, "10-base").nodes
    assert (node.mode, node.access) == (0o644, Access())


def test_python_caches_of_the_checkout_are_passed_over(tmp_path: Path) -> None:
    write_layer(tmp_path, "40-app", {"/opt/app/x.py": "", "/opt/app/__pycache__/x.pyc": b"\0"})
    assert [node.path for node in read_stack(tmp_path, "40-app").nodes] == ["/opt/app/x.py"]


def test_templates_are_rendered_with_the_spec_and_lose_the_suffix(tmp_path: Path) -> None:
    text = "host {{ spec.hostname }}\n{% if spec.admin.cidrs %}\nfrom {{ spec.admin.cidrs | join(' ') }}\n{% endif %}\n"
    write_layer(tmp_path, "10-base", {"/etc/x.conf.j2": text}, paths={"/etc/x.conf": {"mode": "0600"}})
    (node,) = read_stack(tmp_path, "10-base").nodes
    assert (node.path, node.mode) == ("/etc/x.conf", 0o600)
    assert node.content == b"host golden\nfrom 192.0.2.0/24\n"


def test_files_that_are_no_templates_are_taken_byte_by_byte(tmp_path: Path) -> None:
    content = b"\xff\0{{ spec.hostname }}\r\n"
    write_layer(tmp_path, "10-base", {"/etc/x": content})
    assert read_stack(tmp_path, "10-base").nodes[0].content == content


def test_an_environment_is_named_with_its_lock(tmp_path: Path) -> None:
    layer = write_layer(tmp_path, "40-app", python={"venv": "/opt/app/venv", "requirements": "requirements.lock"})
    (layer / "requirements.in").write_text("django\n")
    (layer / "requirements.lock").write_text("django==5\n")
    (venv,) = read_stack(tmp_path, "40-app").venvs
    assert (venv.path, venv.requirements.name) == ("/opt/app/venv", "requirements.lock")


def test_early_files_and_directories_of_a_kind_are_found(tmp_path: Path) -> None:
    early = "/etc/postgresql-common/createcluster.conf"
    write_layer(
        tmp_path, "30-db",
        {early: "create_main_cluster = false\n", "/usr/lib/sysusers.d/x.conf": "u x\n", "/etc/dpkg/dpkg.cfg.d/x":
         "# comment\n\npath-exclude=/usr/share/man/*\n  force-unsafe-io\n"},
        early=[early],
    )  # fmt: skip
    stack = read_stack(tmp_path, "30-db")
    assert [node.path for node in stack.early] == [early]
    assert [node.path for node in stack.below(layers.SYSUSERS_DIRECTORIES)] == ["/usr/lib/sysusers.d/x.conf"]
    assert stack.dpkg_options() == ("path-exclude=/usr/share/man/*", "force-unsafe-io")


def test_a_declared_replacement_hides_the_earlier_file(tmp_path: Path) -> None:
    write_layer(tmp_path, "10-base", {"/etc/x": "old", "/etc/y": "kept"})
    write_layer(tmp_path, "20-more", {"/etc/x": "new"}, replaces=["/etc/x"])
    stack = read_stack(tmp_path, "10-base", "20-more")
    assert [(node.path, node.content, node.layer) for node in stack.nodes] == [
        ("/etc/x", b"new", "20-more"),
        ("/etc/y", b"kept", "10-base"),
    ]


def test_layers_that_the_spec_does_not_name_are_not_read(tmp_path: Path) -> None:
    write_layer(tmp_path, "10-base")
    write_layer(tmp_path, "20-broken", text="about: [")
    assert [layer.name for layer in read_stack(tmp_path, "10-base").layers] == ["10-base"]


def test_every_committed_layer_is_valid() -> None:
    """Also one that golden.yaml leaves out."""
    found = [layer.name for layer in every_layer().layers]
    profile = specs.load(ROOT / "profiles/app.yaml")
    assert set(ALTERNATIVES) <= {layer.name for layer in layers.load_stack(ROOT / "overlays", profile).layers}
    assert {name for name in found if f"/{layers.PARTS}/" not in name} == set(LAYERS) - set(ALTERNATIVES)


def test_a_layer_is_left_out_with_those_that_require_it(tmp_path: Path) -> None:
    write_layer(tmp_path, "10-base")
    write_layer(tmp_path, "30-db", provides=["database"])
    write_layer(tmp_path, "40-app", requires=["database"])
    write_layer(tmp_path, "72-deploy", requires=["40-app", "10-base"])
    write_layer(tmp_path, "40-app/with/30-db")
    stack = read_stack(tmp_path, "10-base", "30-db", "40-app", "72-deploy")
    assert layers.without(stack.layers, "30-db") == ("10-base",)
    assert layers.without(stack.layers, "72-deploy") == ("10-base", "30-db", "40-app")
    assert layers.without(stack.layers, "10-base") == ("30-db", "40-app")


# --- mistakes ---------------------------------------------------------------------------------------------------------

UNKNOWN = "known are about, absent, commands, early, mounts, packages, paths, provides, python, replaces, requires, tests"
MODE = 'write the mode in octal and in quotes, such as "0640"'
LAYER = "10-base/layer.yaml"
WRONG_KEYS: list[tuple[dict[str, Any], str]] = [
    ({"files": ["/etc/x"]}, f"{LAYER}.files: ['/etc/x']: unknown key; {UNKNOWN}"),
    ({"about": "short"}, f"{LAYER}.about: 'short': say in one sentence what the layer is for"),
    ({"about": None}, f"{LAYER}.about: None: say in one sentence what the layer is for"),
    ({"packages": ["Nginx"]}, f"{LAYER}.packages: 'Nginx': write the name of a Debian package"),
    ({"absent": ["etc/x"]}, f"{LAYER}.absent: 'etc/x': write an absolute path"),
    ({"absent": ["/etc/x"]}, f"{LAYER}.absent: '/etc/x': this layer installs the path itself: remove one of the two"),
    ({"absent": ["/etc/a b"]}, f"{LAYER}.absent: '/etc/a b': write an absolute path"),
    (
        {"replaces": ["/etc/y"]},
        f"{LAYER}.replaces: '/etc/y': this layer's rootfs/ has no such path: correct or remove the entry",
    ),
    (
        {"early": ["/etc/y"]},
        f"{LAYER}.early: '/etc/y': this layer's rootfs/ has no such path: correct or remove the entry",
    ),
    (
        {"paths": {"/etc/y": {"mode": "0600"}}},
        f"{LAYER}.paths: '/etc/y': this layer's rootfs/ has no such path: correct or remove the entry",
    ),
    (
        {"paths": ["/etc/x"]},
        f"{LAYER}.paths: ['/etc/x']: write a mapping from path to {{owner, group, mode, reason}}",
    ),
    ({"tests": []}, f"{LAYER}.tests: []: name at least one test that proves the layer"),
    (
        {"tests": ["tests/image/test_y.py"]},
        f"{LAYER}.tests: 'tests/image/test_y.py': there is no such file: write the test or correct the name",
    ),
    ({"commands": {"run": ["x"]}}, f"{LAYER}.commands: {{'run': ['x']}}: write a list of {{run: [...], reason: ...}}"),
    (
        {"commands": [{"run": ["ldconfig"], "reason": "needed"}]},
        f"{LAYER}: commands[0].reason: 'needed': say why no declaration can do it",
    ),
    (
        {"commands": [{"run": "rm -rf /", "reason": "nothing else does it"}]},
        f"{LAYER}: commands[0].run: 'rm -rf /': write the command as a list of words",
    ),
    (
        {"python": {"venv": "/opt/venv", "requirements": "requirements.lock"}},
        (f"{LAYER}: python.requirements: 'requirements.lock': there is no such file beside layer.yaml: "
        "nox -s lock writes it"),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "problem"), WRONG_KEYS)
def test_a_wrong_key_is_told_with_its_remedy(tmp_path: Path, keys: dict[str, Any], problem: str) -> None:
    write_layer(tmp_path, "10-base", {"/etc/x": "x"}, **keys)
    told = problems(tmp_path, "10-base")
    assert problem in told
    assert len(told) <= 2, "and nothing beside the point"


WRONG_PATHS: list[tuple[str, str]] = [
    ("{mode: 0640}", f"mode: 416: {MODE}"),
    ("{mode: 640}", f"mode: 640: {MODE}"),
    ("{mode: 0}", f"mode: 0: {MODE}"),
    ("{mode: false}", f"mode: False: {MODE}"),
    ("{mode: ''}", f"mode: '': {MODE}"),
    ("{mode: '640'}", f"mode: '640': {MODE}"),
    ("{mode: '0o640'}", f"mode: '0o640': {MODE}"),
    ("{mode: '0648'}", f"mode: '0648': {MODE}"),
    ("{mode: u=rw}", f"mode: 'u=rw': {MODE}"),
    ("{owner: root}", "owner: {'owner': 'root'}: give owner and group together"),
    ("{group: adm}", "owner: {'group': 'adm'}: give owner and group together"),
    ("{owner: 0, group: 0}", "owner: 0: write an account name"),
    ("{owner: 'a b', group: adm}", "owner: 'a b': write an account name"),
    ("{perms: '0640'}", "perms: '0640': unknown key; known are group, mode, owner, reason"),
]


@pytest.mark.parametrize(("entry", "problem"), WRONG_PATHS)
def test_a_wrong_access_is_told_with_its_path(tmp_path: Path, entry: str, problem: str) -> None:
    text = (
        "about: A layer for the tests of layers.\ntests: [tests/image/test_x.py]\n"
        f"paths:\n  /etc/x: {entry}\n"
    )  # fmt: skip
    write_layer(tmp_path, "10-base", {"/etc/x": "x"}, text=text)
    assert f"{LAYER}: paths./etc/x.{problem}" in problems(tmp_path, "10-base")


@pytest.mark.parametrize(("text", "mode"), [("0640", 0o640), ("04755", 0o4755), ("0000", 0), ("01777", 0o1777)])
def test_modes_are_octal(tmp_path: Path, text: str, mode: int) -> None:
    write_layer(tmp_path, "10-base", {"/etc/x": "x"}, paths={"/etc/x": {"mode": text}})
    assert read_stack(tmp_path, "10-base").nodes[0].mode == mode


def test_stray_files_beside_the_description_are_problems(tmp_path: Path) -> None:
    layer = write_layer(tmp_path, "10-base")
    for name in ("file-modes", "requirements.in", "layer.yml"):
        (layer / name).touch()
    remedy = "stray file: move it below rootfs/ or remove it"
    assert problems(tmp_path, "10-base") == [
        f"10-base/file-modes: {remedy}",
        f"10-base/layer.yml: {remedy}",
        f"10-base/requirements.in: {remedy}",
    ]


def test_a_layer_that_is_not_there_is_told(tmp_path: Path) -> None:
    write_layer(tmp_path, "10-base")
    assert problems(tmp_path, "10-base", "20-gone") == [
        "golden.yaml: layers: '20-gone': there is no such directory in overlays/: correct the name; there are 10-base"
    ]


@pytest.mark.parametrize(
    ("text", "brief"),
    [
        (None, "layer.yaml does not exist: run Goldsmith in its checkout, or give the path"),
        ("about: x\nabout: y\n", "layer.yaml, line 2: duplicate key 'about': correct the YAML there"),
    ],
)
def test_a_description_that_cannot_be_read_is_told(tmp_path: Path, text: str | None, brief: str) -> None:
    layer = write_layer(tmp_path, "10-base", text=text)
    if text is None:
        (layer / "layer.yaml").unlink()
    assert problems(tmp_path, "10-base") == [f"{layer}/{brief}"]


@pytest.mark.parametrize(
    ("template", "where", "cause"),
    [
        ("{{ spec.nonsense }}", "", "has no attribute 'nonsense'"),
        ("{{ nonsense }}", "", "'nonsense' is undefined"),
        ("{{ spec.admin.pasword | default('x') }}{{ spec.admin.pasword }}", "", "has no attribute 'pasword'"),
        ("one\n{% if %}\n", ", line 2", "Expected an expression"),
    ],
)
def test_a_template_never_swallows_a_mistake(tmp_path: Path, template: str, where: str, cause: str) -> None:
    write_layer(tmp_path, "10-base", {"/etc/x.j2": template})
    (problem,) = problems(tmp_path, "10-base")
    assert problem.startswith(f"10-base/rootfs/etc/x.j2{where}: ")
    assert cause in problem
    assert problem.endswith(": correct the template")


def test_a_template_that_is_no_text_is_told(tmp_path: Path) -> None:
    write_layer(tmp_path, "10-base", {"/etc/x.j2": b"\xff"})
    (problem,) = problems(tmp_path, "10-base")
    assert "can't decode byte 0xff" in problem


def test_a_path_in_two_layers_is_a_problem(tmp_path: Path) -> None:
    write_layer(tmp_path, "10-base", {"/etc/x": "one"})
    write_layer(tmp_path, "20-more", {"/etc/x": "two"})
    assert problems(tmp_path, "10-base", "20-more") == [
        "20-more: /etc/x: 10-base installs it too: list it under replaces in the later layer, or remove one"
    ]


def test_a_replacement_of_a_replacement_is_declared_too(tmp_path: Path) -> None:
    write_layer(tmp_path, "10-base", {"/etc/x": "one"})
    write_layer(tmp_path, "20-more", {"/etc/x": "two"}, replaces=["/etc/x"])
    write_layer(tmp_path, "30-most", {"/etc/x": "three"})
    assert problems(tmp_path, "10-base", "20-more", "30-most") == [
        "30-most: /etc/x: 20-more installs it too: list it under replaces in the later layer, or remove one"
    ]


def test_a_file_and_its_template_in_one_layer_are_a_problem(tmp_path: Path) -> None:
    write_layer(tmp_path, "10-base", {"/etc/x": "one", "/etc/x.j2": "two"})
    (problem,) = problems(tmp_path, "10-base")
    assert problem.startswith("10-base: /etc/x: 10-base installs it too")


def test_a_replacement_of_nothing_is_a_problem(tmp_path: Path) -> None:
    write_layer(tmp_path, "10-base", {"/etc/x": "one"}, replaces=["/etc/x"])
    assert problems(tmp_path, "10-base") == [
        "10-base: replaces: /etc/x: no earlier layer installs it: remove the entry"
    ]  # fmt: skip


def test_the_problems_of_all_layers_are_told_at_once(tmp_path: Path) -> None:
    write_layer(tmp_path, "10-base", {"/etc/x": "one"}, packages=["A"])
    write_layer(tmp_path, "20-more", {"/etc/x": "two", "/etc/y.j2": "{{ nothing }}"}, extra=1)
    with pytest.raises(SpecError) as caught:
        read_stack(tmp_path, "10-base", "20-more", "30-gone")
    assert caught.value.render() == (
        f"{tmp_path}/overlays has 5 problems\n"
        "    golden.yaml: layers: '30-gone': there is no such directory in overlays/: correct the name; there are "
        "10-base, 20-more\n"
        "    10-base/layer.yaml.packages: 'A': write the name of a Debian package\n"
        "    20-more/rootfs/etc/y.j2: 'nothing' is undefined: correct the template\n"
        f"    20-more/layer.yaml.extra: 1: unknown key; {UNKNOWN}\n"
        "    20-more: /etc/x: 10-base installs it too: list it under replaces in the later layer, or remove one\n"
        "  -> correct overlays and run again"
    )


# --- archives and keys ------------------------------------------------------------------------------------------------


def node(path: str, kind: str = "file", **changes: object) -> Node:
    values: dict[str, object] = {"content": b"", "target": "", "access": Access(), "layer": "10-base", **changes}
    return Node(path=path, kind=kind, **values)  # type: ignore[arg-type]


def test_an_archive_has_the_same_bytes_in_any_order_and_at_any_time(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        node("/b", content=b"two"),
        node("/a", content=b"one"),
        node("/d", "directory"),
        node("/l", "link", target="a"),
    ]
    once = layers.pack(nodes, epoch=EPOCH)
    monkeypatch.setattr("time.time", lambda: 1.0)
    monkeypatch.setattr(os, "getuid", lambda: 1234)
    assert layers.pack(reversed(nodes), epoch=EPOCH) == once
    assert layers.pack(nodes, epoch=EPOCH + 1) != once


def test_an_archive_carries_names_modes_and_one_time() -> None:
    nodes = [
        node("/etc/x", content=b"one", access=Access("root", "nginx", 0o640)),
        node("/etc/d", "directory"),
        node("/etc/l", "link", target="x"),
    ]
    with tarfile.open(fileobj=io.BytesIO(layers.pack(nodes, epoch=EPOCH))) as archive:
        members = archive.getmembers()
        content = archive.extractfile("etc/x")
        assert content is not None
        assert content.read() == b"one"
    assert [(one.name, one.mode, one.uname, one.gname, one.uid, one.gid, one.mtime) for one in members] == [
        ("etc/d", 0o755, "root", "root", 0, 0, EPOCH),
        ("etc/l", 0o777, "root", "root", 0, 0, EPOCH),
        ("etc/x", 0o640, "root", "nginx", 0, 0, EPOCH),
    ]
    assert (members[0].isdir(), members[1].linkname, members[2].isreg()) == (True, "x", True)


def test_what_a_key_is_made_of_changes_with_everything_that_is_laid() -> None:
    plain = node("/x", content=b"one")
    others = [
        node("/y", content=b"one"),
        node("/x", content=b"two"),
        node("/x", "link", target="one"),
        node("/x", content=b"one", access=Access("root", "adm")),
        node("/x", content=b"one", access=Access(mode=0o600)),
    ]
    keys = [str(one.as_input()) for one in (plain, *others)]
    assert len(set(keys)) == len(keys)


def test_what_a_key_is_made_of_ignores_words_about_it(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for root, reason in ((one, "it holds a secret"), (two, "of a good reason")):
        root.mkdir()
        write_layer(root, "10-base", {"/etc/x": "x"}, paths={"/etc/x": {"mode": "0600", "reason": reason}})
    assert read_stack(one, "10-base").as_inputs() == read_stack(two, "10-base").as_inputs()


def test_a_changed_lock_of_python_packages_changes_the_key(tmp_path: Path) -> None:
    layer = write_layer(tmp_path, "40-app", python={"venv": "/opt/venv", "requirements": "requirements.lock"})
    (layer / "requirements.lock").write_text("django==5.1\n")
    before = read_stack(tmp_path, "40-app").as_inputs()
    (layer / "requirements.lock").write_text("django==5.2\n")
    assert read_stack(tmp_path, "40-app").as_inputs() != before


# --- what layers require of each other --------------------------------------------------------------------------------


def test_a_layer_that_another_one_requires_has_to_be_in_the_image(tmp_path: Path) -> None:
    write_layer(tmp_path, "10-base")
    write_layer(tmp_path, "40-app", requires=["10-base", "30-db", "database"])
    absent = "which is not in the image"
    assert problems(tmp_path, "10-base", "40-app") == [
        f"golden.yaml: layers: 40-app requires '30-db', {absent}: add it, or remove 40-app",
        f"golden.yaml: layers: 40-app requires 'database', {absent}: add a layer that provides it, or remove 40-app",
    ]


def test_what_a_layer_requires_may_be_provided_by_any(tmp_path: Path) -> None:
    write_layer(tmp_path, "30-db", provides=["database"])
    write_layer(tmp_path, "40-app", requires=["database"])
    assert [layer.name for layer in read_stack(tmp_path, "30-db", "40-app").layers] == ["30-db", "40-app"]
    write_layer(tmp_path, "31-other", provides=["database"])
    assert problems(tmp_path, "30-db", "31-other", "40-app") == [
        "golden.yaml: layers: 30-db and 31-other both provide 'database': remove one of them"
    ]


def test_a_partition_that_a_layer_needs_has_to_be_there_with_its_options(tmp_path: Path) -> None:
    write_layer(
        tmp_path, "50-web", mounts={"/srv/web": {"options": []}, "/var": {"options": ["noexec", "nodev"]}, "/home": {}}
    )
    assert problems(tmp_path, "50-web") == [
        "golden.yaml: disk.partitions: /srv/web is missing, and 50-web needs it: add it",
        "golden.yaml: disk.partitions: /var must be mounted noexec for 50-web: add it",
    ]


def test_a_part_for_another_layer_is_there_with_that_layer_only(tmp_path: Path) -> None:
    write_layer(tmp_path, "26-bans")
    write_layer(tmp_path, "30-db", provides=["database"])
    write_layer(tmp_path, "50-web", {"/etc/web": "x"})
    for name in ("26-bans", "database", "70-backup"):
        write_layer(tmp_path, f"50-web/with/{name}", {f"/etc/{name}": "x"}, packages=[f"for-{name}"])
    alone = read_stack(tmp_path, "50-web")
    assert ([node.path for node in alone.nodes], alone.packages) == (["/etc/web"], ())
    both = read_stack(tmp_path, "26-bans", "30-db", "50-web")
    assert [(node.path, node.layer) for node in both.nodes] == [
        ("/etc/26-bans", "50-web/with/26-bans"), ("/etc/database", "50-web/with/database"), ("/etc/web", "50-web"),
    ]  # fmt: skip
    assert both.packages == ("for-26-bans", "for-database")


def test_each_part_of_the_image_is_for_a_layer_or_for_what_one_provides() -> None:
    layers_here = [path for path in (ROOT / "overlays").iterdir() if path.is_dir()]
    words = {path.name for path in layers_here}
    for path in layers_here:
        words |= {*yaml.safe_load((path / "layer.yaml").read_text(encoding="utf-8")).get("provides", [])}
    assert [str(path) for path in (ROOT / "overlays").glob("*/with/*") if path.name not in words] == []
