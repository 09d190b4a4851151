"""The plan lists the stages that will run and why; a build runs these stages and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from build.artifact import artifact
from build.core import host
from build.core.cache import Cache
from build.core.errors import HostError, StepFailed
from build.packages import lock, resolve, updates
from build.packages.apt import Mirrors, Store
from build.pipeline import build
from build.pipeline.build import Gathered, Options
from build.pipeline.host_tools import Toolset
from build.spec import inputs
from build.spec.inputs import STAGES
from tests.fakes import Fakes
from tests.unit.artifacts import committable, image, parsed
from tests.unit.helpers import DATE, entry, make_checkout, make_lock

MIRRORS = Mirrors("http://one.example/debian", "http://one.example/debian-security")


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options(make_checkout(tmp_path / "checkout"), Cache(tmp_path / "cache"), MIRRORS)


def gather(options: Options) -> Gathered:
    return build.gather(options, settle=False)


def finish(options: Options, *stages: str) -> None:
    """Let the cache hold the result of these stages."""

    def make(out: Path) -> Mapping[str, Any]:
        (out / "x").touch()
        return {}

    for stage in stages:
        options.cache.obtain(gather(options).keys[stage], make)


def publish(options: Options, key: str = "") -> Path:
    """Make an artifact of the current inputs; return its path."""
    inputs = {"archive_date": DATE, "artifact_key": key or gather(options).keys["artifact"].key}
    manifest = parsed(committable(version="1", image=image("0"), inputs=inputs))
    return artifact.commit(options.project.artifacts, contents={"image.qcow2": "x"}, manifest=manifest).path


def planned(options: Options) -> dict[str, tuple[str, str]]:
    lines = build.plan(options, gather(options))
    assert [line.stage for line in lines] == list(STAGES)
    return {line.stage: (line.action, line.reason) for line in lines}


def actions(options: Options) -> str:
    """Return the plan's actions as one sign a stage: + is made, = is taken from the cache, - is not needed."""
    return "".join({"RUN": "+", "REUSE": "=", "SKIP": "-"}[action] for action, _ in planned(options).values())


# --- plans ------------------------------------------------------------------------------------------------------------


def test_a_new_checkout_makes_everything(options: Options) -> None:
    assert planned(options) == {
        "base": ("RUN", "not cached"),
        "rootfs": ("RUN", "not cached"),
        "media": ("RUN", "not cached"),
        "disk": ("RUN", "not cached"),
        "verify": ("RUN", "not cached"),
        "artifact": ("RUN", "not in artifacts/"),
    }


def test_a_published_artifact_needs_nothing(options: Options) -> None:
    path = publish(options)
    plan = planned(options)
    assert plan["artifact"] == ("REUSE", f"artifacts/{path.name}")
    assert {plan[stage] for stage in STAGES[:-1]} == {("SKIP", "not needed: a later stage is cached")}


@pytest.mark.parametrize(
    ("here", "expected"),
    [
        ((), "++++++"),
        (("base",), "=+++++"),
        (("base", "rootfs"), "-=++++"),
        (("rootfs",), "-=++++"),
        (("rootfs", "media"), "-==+++"),
        (("rootfs", "media", "disk"), "-=-=++"),
        (("disk",), "++-=++"),
        (("rootfs", "disk", "verify"), "-=-==+"),
        (("rootfs", "verify"), "-=++=+"),
        (("disk", "verify"), "++-==+"),
    ],
)
def test_only_what_is_needed_is_made(options: Options, here: tuple[str, ...], expected: str) -> None:
    finish(options, *here)
    assert actions(options) == expected


def test_the_plan_names_what_changed(options: Options) -> None:
    finish(options, *STAGES[:-1])
    (options.project.overlays / "10-base" / "rootfs" / "etc" / "x").write_text("changed")
    plan = planned(options)
    assert plan["base"] == ("REUSE", "in the cache")
    assert plan["rootfs"] == ("RUN", "changed: overlays (/etc/x)")
    assert plan["media"] == ("RUN", "the previous stage changed")
    assert plan["artifact"] == ("RUN", "not in artifacts/")


def test_a_plan_fetches_and_writes_nothing(options: Options, only_fakes: Fakes) -> None:
    for name in ("apt-get", "apt-cache"):
        only_fakes.command(name, status=99)
    planned(options)
    assert not options.cache.root.exists()
    assert not options.project.artifacts.exists()
    assert list(only_fakes.directory.glob("*.calls")) == []


def test_a_plan_is_said_one_stage_a_line(options: Options, capsys: pytest.CaptureFixture[str]) -> None:
    build.tell_plan(build.plan(options, gather(options)))
    assert capsys.readouterr().err.splitlines()[0] == "RUN    base      not cached"


# --- locked sets ------------------------------------------------------------------------------------------------------


def refresh(options: Options) -> None:
    """Set up a set of packages that an earlier build has refreshed."""
    resolver = build.lock_resolver_for(options, "trixie")
    request = gather(options).inputs.rootfs_lock.request
    kept = resolver._kept(options.project.rootfs_lock, request)
    kept.parent.mkdir(parents=True)
    kept.write_text(make_lock(entry("nginx", b"newer", version="2.0-1"), request=request).render("Refreshed."))


def test_a_refreshed_set_is_planned_with(options: Options) -> None:
    before = gather(options)
    refresh(options)
    after = gather(options)
    assert before.changes == ()
    assert after.changes == ("nginx 1.0-1 -> 2.0-1",)
    assert before.keys["base"] != after.keys["base"]


def test_locked_plans_with_the_committed_set_alone(options: Options) -> None:
    before = gather(options)
    refresh(options)
    locked = Options(options.project, options.cache, MIRRORS, locked=True)
    assert gather(locked).keys == before.keys
    publish(options)  # of the refreshed set
    assert planned(locked)["artifact"] == ("RUN", "not in artifacts/")


# --- builds -----------------------------------------------------------------------------------------------------------


def test_what_is_built_already_is_returned_and_nothing_is_asked_of_the_host(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = publish(options)

    def never(*_words: object, **_options: object) -> None:
        raise AssertionError("the host is not needed")

    monkeypatch.setattr(host, "ensure", never)
    assert build.build(options).path == path


def test_an_unchanged_build_fetches_no_lists(
    options: Options, only_fakes: Fakes, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(options)
    for name in ("apt-get", "apt-cache"):
        only_fakes.command(name, status=99)
    build.build(options)
    assert f"NOTE   updates   not checked: {updates.NOT_KEPT}\n" in capsys.readouterr().err
    assert list(only_fakes.directory.glob("*.calls")) == []


def test_missing_tools_stop_a_build_before_anything_is_fetched(
    options: Options, only_fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_fakes.packer()
    locked = Options(options.project, options.cache, MIRRORS, install=False)
    monkeypatch.setattr(Store, "fetch", lambda *_words: pytest.fail("nothing may be fetched yet"))
    with pytest.raises(HostError, match="Debian packages are missing on this host"):
        build.build(locked)


def test_too_little_space_stops_a_build_before_anything_is_fetched(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Toolset, "bring", lambda *_words, **_options: None)
    monkeypatch.setattr(host, "free_bytes", lambda _path: 1 << 30)
    monkeypatch.setattr(Store, "fetch", lambda *_words: pytest.fail("nothing may be fetched yet"))
    with pytest.raises(HostError, match=r"has 1\.0 GiB free; a build needs 12 GiB"):
        build.build(options)


def test_an_artifact_of_the_refreshed_set_is_found(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its stages may have left the cache long ago."""
    monkeypatch.setattr(host, "require_space", lambda _path: None)
    monkeypatch.setattr(Toolset, "bring", lambda *_words, **_options: None)
    newer = make_lock(entry("nginx", b"newer", version="2.0-1"), request="x")
    settled = resolve.Settled(newer, ("nginx 1.0-1 -> 2.0-1",))
    monkeypatch.setattr(resolve.LockResolver, "settle_rootfs", lambda *_words, **_options: settled)
    monkeypatch.setattr(
        resolve.LockResolver, "settle_installer",
        lambda _self, path, **_options: resolve.Settled(lock.parse(path)),
    )  # fmt: skip
    path = publish(options, key=build.gather(options, settle=True).keys["artifact"].key)
    assert build.build(options).path == path


def test_a_result_that_vanishes_meanwhile_is_told(options: Options) -> None:
    line = build._Line(options, gather(options), None)
    with pytest.raises(StepFailed) as caught:
        line.result("rootfs")
    assert caught.value.render() == (
        f"stage rootfs {gather(options).keys['rootfs'].key} vanished from the cache\n  -> run the build again"
    )


def test_logs_of_a_stage_begin_empty_and_outlive_it(options: Options) -> None:
    line = build._Line(options, gather(options), None)
    first = line._logs("disk")
    (first / "console.log").write_text("old")
    second = line._logs("disk")
    assert second == first
    assert list(second.iterdir()) == []
    assert not second.is_relative_to(options.cache.root / "stages")


def test_the_order_of_the_line_is_the_order_of_its_needs() -> None:
    for stage, needs in inputs.NEEDS.items():
        for needed in needs:
            assert STAGES.index(needed) < STAGES.index(stage)


def test_a_build_that_ends_early_plans_no_later_stage(options: Options) -> None:
    lines = {line.stage: line for line in build.plan(options, gather(options), "media")}
    assert [lines[stage].action for stage in STAGES] == ["RUN", "RUN", "RUN", "SKIP", "SKIP", "SKIP"]
    assert lines["disk"].reason == "the build ends with media"
