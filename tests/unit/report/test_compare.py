"""Every difference between two artifacts is reported once; parts that cannot be compared do not count as equal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from build.artifact import find
from build.artifact.contents import columns_of, side_of, side_of_parts
from build.cli import main
from build.core.errors import SpecError, StepFailed
from build.core.project import Project
from build.report import compare_html, compare_text
from build.report.compare import Change, Section, compare
from tests.unit.artifacts import FILES, JUNIT, compared, image, make_side, manifest, parsed, parts, store
from tests.unit.inventories import inventory_of
from tests.unit.report.test_report import read

OLDER = {"inventory.json": None, "boot.svg": None}


def told(section: Section) -> list[tuple[str, str, str, str]]:
    return [(one.kind, one.name, one.before, one.after) for one in section.changes]


def one_change(key: str, **changes: Any) -> list[tuple[str, str, str, str]]:
    """Return the reported changes of a section when one part of the second inventory differs."""
    new = make_side(contents=parts(**{"inventory.json": json.dumps(inventory_of(**changes))}))
    found = compared(make_side(), new)
    others = [section.key for section in found.sections if section.changes and section.key != key]
    assert others == [], "only that part differs"
    return told(found.section(key))


def test_the_same_artifact_differs_in_nothing() -> None:
    found = compared(make_side(), make_side())
    assert not found.differs
    assert [section.key for section in found.sections if section.changes or section.missing] == []


def test_packages_are_added_removed_and_changed() -> None:
    new = make_side(manifest(packages={"nginx": "1.28-1", "age": "1.2"}))
    assert told(compared(make_side(), new).section("packages")) == [
        ("added", "age", "", "1.2"), ("removed", "apt", "3.0", ""), ("changed", "nginx", "1.26-1", "1.28-1"),
    ]  # fmt: skip


def test_changelogs_are_told_beside_packages() -> None:
    new = make_side(manifest(packages={"nginx": "1.28-1", "apt": "3.0"}))
    found = compare(make_side(), new, explain=lambda *change: (" ".join(change),))
    assert found.section("packages").changes[0].notes == ("nginx 1.26-1 1.28-1",)


UNIT = {"state": "enabled", "preset": "enabled", "exposure": 0.4}
UNITS = inventory_of()["units"]


@pytest.mark.parametrize(
    ("key", "changes", "expected"),
    [
        ("units", {"units": {**UNITS, "nginx.service": {**UNIT, "state": "disabled"}}},
         ("changed", "nginx.service", "enabled, preset enabled", "disabled, preset enabled")),
        ("exposure", {"units": {**UNITS, "nginx.service": {**UNIT, "exposure": 9.6}}},
         ("changed", "nginx.service", "0.4", "9.6")),
        ("listening", {"listening": {**inventory_of()["listening"], "tcp 0.0.0.0:4444": "nc (root)"}},
         ("added", "tcp 0.0.0.0:4444", "", "nc (root)")),
        ("privileged", {"privileged": {"/usr/bin/su": "4755 root:root"}},
         ("removed", "/usr/bin/ping", "0755 root:root cap_net_raw=ep", "")),
        ("sysctl", {"sysctl": {**inventory_of()["sysctl"], "kernel.sysrq": "1"}}, ("changed", "kernel.sysrq", "0", "1")),
        ("sysctl", {"sysctl": {**inventory_of()["sysctl"], "kernel.panic": ""}}, ("added", "kernel.panic", "", "(empty)")),
        ("modules", {"modules": {"denied": [], "loaded": ["floppy", "virtio_net"]}},
         ("changed", "floppy", "denied", "loaded")),
        ("users", {"users": {"root": {**inventory_of()["users"]["root"], "password": "empty"}}},
         ("changed", "root", "uid 0, gid 0, /root, /bin/bash, password locked",
          "uid 0, gid 0, /root, /bin/bash, password empty")),
        ("groups", {"groups": {**inventory_of()["groups"], "adm": {"gid": 4, "members": []}}},
         ("changed", "adm", "gid 4: admin", "gid 4")),
        ("mounts", {"mounts": {"/": "ext4 rw"}}, ("removed", "/run", "tmpfs mode=755,nodev,nosuid,rw", "")),
    ],
)  # fmt: skip
def test_each_part_of_the_inventory_is_compared(key: str, changes: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert expected in one_change(key, **changes)


def test_files_tell_what_differs_of_them() -> None:
    new = FILES.replace("/etc/nginx.conf\tfile\t0644\t0:0", "/etc/nginx.conf\tfile\t0640\t0:33")
    new = new.replace("usr/bin\n", "bin2\n").replace("22" * 32, "33" * 32) + f"/opt/new\tfile\t0644\t0:0\t5\t{'44' * 32}\n"
    found = compared(make_side(), make_side(contents=parts(**{"rootfs.files.tsv": new})))
    assert told(found.section("files")) == [
        ("changed", "/bin", "-> usr/bin", "-> bin2"), ("changed", "/etc/nginx.conf", "0644 0:0", "0640 0:33"),
        ("added", "/opt/new", "", "file 0644 0:0 5 bytes 444444444444"),
        ("changed", "/usr/bin/su", "222222222222", "333333333333"),
    ]  # fmt: skip
    assert ("changed", "paths", "4", "5") in told(found.section("sizes"))


def test_requirements_and_tests_are_told_by_their_worst_result() -> None:
    failed = JUNIT.replace('value="R41 R42" />\n</properties>', 'value="R41 R42" /></properties><failure message="x" />')
    found = compared(make_side(), make_side(contents=parts(**{"verification/junit.xml": failed})))
    (first, second) = found.section("requirements").changes
    assert (first.name, first.before, first.after, first.notes) == (
        "R41", "passed", "failed", ("Root does not log in <at all>",)
    )  # fmt: skip
    assert second.notes == ()
    assert told(found.section("tests")) == [("changed", "test_ssh::test_b[root]", "passed", "failed")]


def test_a_test_that_ran_on_another_clone_is_the_same_test() -> None:
    moved = JUNIT.replace('<property name="title"', '<property name="place" value="uefi" /><property name="title"')
    assert not compared(make_side(), make_side(contents=parts(**{"verification/junit.xml": moved}))).differs


def test_audit_configuration_and_sizes_are_told() -> None:
    new = make_side(manifest(
        image=image("c", bytes=336_000_000), audit={"lynis.index": {"value": 80, "shown": "80", "limit": ">= 90"}},
        inputs={**manifest()["inputs"], "spec": {"disk": {"size_mib": 20480}}, "layers": {}},
    ))  # fmt: skip
    found = compared(make_side(), new)
    assert found.section("audit").changes == (Change("lynis.index", "91 (251 tests)", "80", ("must be >= 90",)),)
    assert told(found.section("configuration")) == [
        ("changed", "disk.size_mib", "16384", "20480"), ("removed", "layer 10-base", "cdcdcdcdcdcd", ""),
    ]  # fmt: skip
    assert ("changed", "image", "335,000,000 bytes", "336,000,000 bytes") in told(found.section("sizes"))


def test_times_are_told_and_are_no_difference() -> None:
    slower = manifest(stages=[{**stage, "seconds": 9.0} for stage in manifest()["stages"]])
    slower["verification"]["boot"]["bios"]["ready"] = 99.0
    found = compared(make_side(), make_side(slower))
    assert not found.differs
    assert told(found.section("stages"))[0] == ("changed", "base", "51.2 s", "9.0 s")
    assert told(found.section("boot")) == [("changed", "clone bios, ready", "61.0 s", "99.0 s")]


def test_what_an_older_artifact_lacks_is_not_taken_for_equal() -> None:
    old = make_side(manifest(audit={}), parts(**OLDER))
    found = compared(old, make_side())
    for key in ("units", "exposure", "listening", "sysctl", "users", "groups", "modules", "mounts"):
        assert found.section(key).missing == f"no inventory.json in {old.name}"
    assert found.section("audit").missing == f"no audit in {old.name}"
    text = compare_text.text_of(found)
    assert f"Mounts: no inventory.json in {old.name}" in text
    assert "the same: " in text
    assert "Mounts" not in text.split("the same: ")[1].splitlines()[0]


def test_set_uid_files_are_compared_without_an_inventory_too() -> None:
    more = FILES + f"/usr/bin/evil\tfile\t4755\t0:0\t5\t{'44' * 32}\n"
    found = compared(make_side(contents=parts(**OLDER)), make_side(contents=parts(**{"rootfs.files.tsv": more})))
    assert told(found.section("privileged")) == [("added", "/usr/bin/evil", "", "4755 0:0")]
    assert "capabilities are not known" in found.section("privileged").title


def test_a_damaged_inventory_is_an_error() -> None:
    with pytest.raises(StepFailed, match=r"inventory\.json is no JSON"):
        compared(make_side(), make_side(contents=parts(**{"inventory.json": "{"})))


def test_an_artifact_that_is_being_put_together_is_read_as_a_stored_one(tmp_path: Path) -> None:
    (tmp_path / "files.tsv").write_text(FILES)
    made = store(tmp_path / "artifacts", manifest())
    unfinished = side_of_parts(parsed(manifest()), {**parts(), "rootfs.files.tsv": tmp_path / "files.tsv"})
    assert not compared(side_of(made), unfinished).differs
    assert side_of(made).name == unfinished.name == made.path.name


# --- as text, data and page -------------------------------------------------------------------------------------------


def many(count: int) -> Any:
    """Compare two artifacts of which the second has so many more files."""
    lines = "".join(
        f"/usr/lib/part{number % 7}/sub{number % 90}/file{number}\tfile\t0644\t0:0\t5\t{'44' * 32}\n"
        for number in range(count)
    )
    return compared(make_side(), make_side(contents=parts(**{"rootfs.files.tsv": FILES + lines})))


def test_ten_thousand_files_are_grouped() -> None:
    found = many(10_000)
    lines = compare_text.text_of(found).splitlines()
    assert len(lines) < 60
    assert any(line.split() == ["Files", "10,000", "added"] for line in lines)
    groups = compare_text.groups(found.section("files").changes)
    assert sum(len(group.changes) for group in groups) == 10_000
    assert 5 <= len(groups) <= 36
    assert all(change.name.startswith(group.path) for group in groups for change in group.changes)
    assert len(compare_text.text_of(found, whole=True).splitlines()) > 10_000


def test_few_files_are_told_each() -> None:
    text = compare_text.text_of(many(3))
    assert "+ /usr/lib/part0/sub0/file0 file 0644 0:0 5 bytes 444444444444" in text


@pytest.mark.parametrize("count", [0, 1, 2, 13, 500])
def test_groups_hold_every_change_once(count: int) -> None:
    changes = many(count).section("files").changes
    found = [change for group in compare_text.groups(changes) for change in group.changes]
    assert sorted(found, key=lambda one: one.name) == list(changes)


def test_a_path_that_is_also_a_directory_ends_the_search() -> None:
    changes = [Change("/a", "x", ""), Change("/a/b", "x", ""), Change("/a/b/c", "x", "")]
    assert sum(len(group.changes) for group in compare_text.groups(changes)) == 3


def test_data_holds_everything() -> None:
    found = many(500)
    data = json.loads(json.dumps(compare_text.data_of(found)))
    assert data["differs"] is True
    assert data["before"]["sha256"] == "ab" * 32
    assert len(data["sections"]["files"]["changes"]) == 500
    assert data["sections"]["files"]["changes"][0] == {
        "name": "/usr/lib/part0/sub0/file0", "kind": "added", "before": "",
        "after": "file 0644 0:0 5 bytes 444444444444", "notes": [],
    }  # fmt: skip


def test_the_page_escapes_and_counts() -> None:
    new = make_side(manifest(packages={"<b>evil</b>": "1 & 2"}), parts(**OLDER))
    reader = read(compare_html.page(compared(make_side(), new)))
    assert "b" not in reader.tags
    assert "<b>evil</b>" in reader.text
    assert "1 & 2" in reader.text
    assert "Packages: 1 added, 2 removed" in reader.text
    assert "Not compared: " in reader.text
    assert reader.references == []
    assert reader.headers_without_scope == 0
    assert "Nothing differs." in read(compare_html.page(compared(new, new))).text


# --- by name ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Artifacts of versions 1.0.0, 1.1.0 (twice) and another product's, below a checkout."""
    artifacts = tmp_path / "artifacts"
    store(artifacts, manifest(image=image("1"), version="1.0.0"), age=40)
    store(artifacts, manifest(image=image("2"), version="1.1.0", packages={"nginx": "1.26-1"}), age=30)
    store(artifacts, manifest(image=image("3"), version="1.1.0"), age=20)
    store(artifacts, manifest(image=image("4"), version="1.0.0", name="other"), age=10)
    return tmp_path


@pytest.mark.parametrize("word", ["1.0.1", "golden-1.1.0-333333333333", "3333333", "PATH"])
def test_an_artifact_is_found_by_what_people_call_it(root: Path, word: str) -> None:
    store(root / "artifacts", manifest(image=image("5"), version="1.0.1"), age=5)
    digit = "5" if word == "1.0.1" else "3"
    word = str(root / "artifacts" / "golden-1.1.0-333333333333") if word == "PATH" else word
    assert find.find(Project(root), word).manifest.image.sha256 == digit * 64


def test_a_version_that_several_artifacts_have_is_no_name(root: Path) -> None:
    with pytest.raises(SpecError) as caught:
        find.find(Project(root), "v1.1.0")
    assert caught.value.render() == (
        "v1.1.0 matches 2 artifacts\n    golden-1.1.0-222222222222\n    golden-1.1.0-333333333333\n"
        "  -> use one of these names"
    )


def test_a_version_is_one_of_the_spec_if_that_has_it(root: Path) -> None:
    for name, digit in (("golden", "1"), ("other", "4")):
        (root / f"{name}.yaml").write_text(f"name: {name}\n")
        assert find.find(Project(root, root / f"{name}.yaml"), "1.0.0").manifest.image.sha256 == digit * 64
    with pytest.raises(SpecError, match=r"1\.0\.0 matches 2 artifacts"):
        find.find(Project(root, root / "none.yaml"), "1.0.0")


def test_the_newest_artifact_is_one_of_the_spec(root: Path) -> None:
    (root / "golden.yaml").write_text("name: golden\n")
    assert find.newest(Project(root)).path.name == "golden-1.1.0-333333333333"
    (root / "web.yaml").write_text("name: golden-web\n")
    with pytest.raises(SpecError, match="there is no artifact of golden-web"):
        find.newest(Project(root, root / "web.yaml"))


def test_an_unknown_name_tells_the_known_ones(root: Path) -> None:
    with pytest.raises(SpecError, match=r"there is no artifact 9\.9") as caught:
        find.find(Project(root), "9.9")
    assert "golden-1.0.0-111111111111" in caught.value.details
    with pytest.raises(SpecError, match="there is no artifact"):
        find.find(Project(root / "nowhere"), "9.9")


def test_a_release_is_compared_with_the_last_of_another_version(root: Path) -> None:
    before = find.earlier(root / "artifacts", "golden", "3" * 64)
    assert [one.manifest.image.sha256[0] for one in before] == ["1", "2"]
    found = find.previous(before, "1.1.0")
    assert found is not None
    assert found.manifest.version == "1.0.0"
    again = find.previous(before[1:], "1.1.0")
    assert again is not None
    assert again.manifest.image.sha256[0] == "2", "a rebuild of the first version has nothing else"
    assert find.previous([], "1.1.0") is None


# --- the verbs --------------------------------------------------------------------------------------------------------


def run(root: Path, *words: str) -> int:
    return main.main([words[0], "--project", str(root), "--cache", str(root / "cache"), *words[1:]])


def test_diff_tells_two_artifacts(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(root, "diff", "golden-1.0.0-111111111111", "2222222") == 0
    assert "- apt 3.0" in capsys.readouterr().out


def test_the_exit_code_says_whether_something_differs(root: Path) -> None:
    assert run(root, "diff", "--exit-code", "1111111", "2222222") == 1
    assert run(root, "diff", "--exit-code", "1111111", "1111111") == 0
    assert run(root, "diff", "--exit-code", "1111111", "9.9.9") == 2


def test_diff_without_words_compares_the_newest_with_the_one_before(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store(root / "artifacts", manifest(image=image("6"), version="2.0.0"), age=1)
    assert run(root, "diff") == 0
    assert capsys.readouterr().out.startswith("golden-1.1.0-333333333333 ")
    assert run(root, "diff", "--json", "1111111", "2222222") == 0
    assert json.loads(capsys.readouterr().out)["sections"]["packages"]["changes"][0]["name"] == "apt"


def test_a_first_artifact_has_nothing_before_it(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(root, "diff") == 2, "the newest is the other product's only one"
    assert "there is no artifact before other-1.0.0-444444444444" in capsys.readouterr().err


def test_pages_are_written_where_they_are_asked_for(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(root, "diff", "1111111", "2222222", "--html", str(root / "diff.html")) == 0
    assert "Packages: 1 removed" in (root / "diff.html").read_text()
    assert run(root, "report", "3333333", "-o", str(root / "report.html")) == 0
    assert capsys.readouterr().out == f"{root}/report.html\n"
    assert "golden-1.0.0-111111111111" in (root / "report.html").read_text()


def test_an_artifact_is_never_written_to(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inside = root / "artifacts" / "golden-1.1.0-333333333333" / "verification" / "report.html"
    assert run(root, "report", "3333333", "-o", str(inside)) == 2
    assert "is immutable" in capsys.readouterr().err
    assert not inside.exists()


def test_requirements_of_the_checkout_lend_their_texts(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "tests").mkdir()
    (root / "tests" / "requirements.yaml").write_text('R41: {section: ssh, text: "Root does not log in at all"}\n')
    passed = JUNIT.replace("R41 R42", "R42")
    store(root / "artifacts", manifest(image=image("7"), version="3.0.0"), parts(**{"verification/junit.xml": passed}))
    assert run(root, "diff", "3333333", "3.0.0") == 0
    assert "- R41 passed\n      Root does not log in at all" in capsys.readouterr().out


def test_a_tab_in_a_link_is_part_of_its_target() -> None:
    text = "# path\ttype\n/etc/x\tlink\t0777\t0:0\t0\tone\ttwo\n"
    assert columns_of(text) == {"/etc/x": ("link", "0777", "0:0", "0", "one\ttwo")}
