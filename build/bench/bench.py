"""``bench``: measures builds on this machine, beside the installation that users would pick instead.

Everything runs in a clone of the checkout with a separate cache: nothing on the machine is used or changed. Each
part writes its figures at once; a run that is stopped keeps what it has.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import resource
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2

from build.artifact import artifact, find
from build.bench import hardening, plain_install
from build.core import files, git, json_text, log, run
from build.core.cache import RECORD
from build.core.errors import StepFailed
from build.disk import installation, packer
from build.machines import acceleration, nocloud, vm
from build.packages import apt
from build.packages.resolve import NETBOOT
from build.pipeline import build
from build.pipeline.build import Options
from build.spec import golden_yaml as specs
from build.spec import layers

BUILD_SECONDS = 7200
# How much longer than ours the plain installation may take.
PLAIN_PATIENCE = 4.0
# In this order: the baseline installation is measured right after the cold build that it is compared with.
PARTS = ("cold", "plain", "unchanged", "edit", "memory", "hardening")
# Parts that are only comparable with others of the same run.
BESIDE = {"plain": "cold"}
# An idle clone: its first AIDE database is complete, and this is the pause between two readings, in seconds.
SETTLE_UNIT = "golden-aide-first"
SETTLE_SECONDS = 1800.0
READING_SECONDS = 10.0
READINGS = 5
EDITED = Path("overlays/10-base/rootfs/etc/apt/apt.conf.d/10-golden")

_PAGE = (
    """# Benchmarks

Written by `nox -s bench`, on one machine; each figure has the commit that it was measured at. Read them as ratios:
other machines differ, and shared ones differ from themselves.

| | |
|---|---|
| date | {{ machine.date }} |
| machine | {{ machine.cpu }}, {{ machine.cores }} cores, {{ machine.memory_gib }} GiB |
| accelerator | {{ machine.accelerator }} |
| host | {{ machine.host }} |

| what | took | processor time | load of the machine meanwhile | commit |
|---|---|---|---|---|
{% for name, title in titles.items() if "seconds" in results.get(name, {}) -%}
{% with one = results[name] -%}
| {{ title }} | {{ one.seconds | seconds }} | {{ one.cpu_seconds | seconds }} | {{ one.load }} | {{ one.commit }} |
{% endwith %}
{%- endfor %}
{%- if "cold" in results %}
## The cold build, stage by stage

| stage | took | peak memory of Goldsmith's process |
|---|---|---|
{% for stage in results.cold.stages -%}
| {{ stage.stage }} | {{ stage.seconds | seconds }} | {{ stage.memory_mib }} MiB |
{% endfor %}
Clones ready after {% for name, times in results.cold.boot.items() -%}
{{ times.ready }} s ({{ name }}){{ ", " if not loop.last }}{% endfor %}.
{% endif %}
{%- if sizes %}
## The image

| what | figure | commit |
|---|---|---|
{% for size in sizes -%}
| {{ size.what }} | {{ size.figure }} | {{ size.commit }} |
{% endfor %}
{%- endif %}
{%- if beside %}
## Against a plain installation

Packer with a preseed, Debian's netboot installer, debootstrap and apt inside the guest: the same packages (but Debian's
usual grub-pc) on the same partitions, from the same mirror, nothing configured and nothing verified:
{{ results.plain.seconds | seconds }}. Ours took {{ results.cold.unverified | seconds }} to the same point (base to disk),
{{ part(results.cold.unverified) }} of it, and {{ results.cold.seconds | seconds }} with downloads, two clones and tests,
{{ part(results.cold.seconds) }} of it. By processor time, the whole build took {{ "%.2f" | format(results.cold.cpu_seconds /
results.plain.cpu_seconds) }} of it.
{% endif %}"""
    + hardening.SECTION
)

_TITLES = {
    "cold": "cold build with verification, empty caches, downloads included",
    "unchanged": "unchanged rerun",
    "edit": "rebuild with verification after an overlay edit",
    "plain": "plain Packer + preseed installation of the same packages",
    "memory": "memory in use on an idle clone",
    "hardening": "throughput beside the same software under Debian's units and configuration",
}

RESULTS, PAGE = Path("tests/results/benchmarks.json"), Path("docs/reference/benchmarks.md")


def run_all(options: Options, parts: tuple[str, ...]) -> None:
    """Measure the named parts (see PARTS) and write docs/reference/benchmarks.md and tests/results/benchmarks.json.

    The plain installation is measured together with the cold build: figures of two runs have no ratio.
    """
    parts = (*parts, *(other for part, other in BESIDE.items() if part in parts))
    started = datetime.now(UTC).isoformat(timespec="seconds")
    store, page = options.project.root / RESULTS, options.project.root / PAGE
    known: dict[str, Any] = json_text.parse(store.read_text())["results"] if store.exists() else {}
    # Figures of an older form cannot be compared with new ones.
    results = {part: figures for part, figures in known.items() if {"cpu_seconds", "commit"} <= set(figures)}
    with files.scratch(options.cache.root / "bench") as scratch:
        checkout = scratch / "checkout"
        run.run(["git", "clone", "--quiet", "--local", options.project.root, checkout], timeout=120)
        measures: dict[str, Callable[[], Mapping[str, Any]]] = {
            "cold": lambda: _build(checkout, scratch, options), "unchanged": lambda: _build(checkout, scratch, options),
            "edit": lambda: _edit(checkout, scratch, options), "plain": lambda: _plain(options, scratch),
            "memory": lambda: _memory(checkout, scratch, options), "hardening": lambda: hardening.cost(options, scratch),
        }  # fmt: skip
        for part in PARTS:
            if part in parts:
                with log.step(f"Measuring: {_TITLES[part]}"):
                    results[part] = _with_cost(measures[part]) | {"commit": _commit(options.project.root), "run": started}
                machine = describe_machine(options, scratch)
                files.write_json(store, {"machine": machine, "results": results})
                files.write_atomic(page, render(machine, results))
    log.info(f"written: {PAGE}, {RESULTS}")


def _with_cost(measure: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """Return what was measured, with the processor time of all programs that ran for it, in seconds, and the load meanwhile.

    Emulation is bound to the processor: on a machine that others use too, processor time is the figure that holds.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    measured = dict(measure())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return measured | {"cpu_seconds": round(spent, 1), "load": round(os.getloadavg()[2], 1)}


def _build(checkout: Path, scratch: Path, options: Options) -> Mapping[str, Any]:
    """Run one build in the checkout and return its duration and the facts of its artifact."""
    cache = scratch / "cache"
    started = time.monotonic()
    run.run(
        [sys.executable, "-m", "build", "build", "--cache", cache, "--mirror", options.mirrors.debian,
         "--security-mirror", options.mirrors.security, *(["--packer", options.packer] if options.packer else [])],
        cwd=checkout, timeout=BUILD_SECONDS, log=options.cache.root / "logs" / "bench.log",
    )  # fmt: skip
    took = round(time.monotonic() - started, 1)
    built = artifact.newest(checkout / "artifacts")
    stages = [
        {"stage": record["stage"], "seconds": record["seconds"], "memory_mib": record["memory_mib"]}
        for path in sorted((cache / "stages").glob(f"*/*/{RECORD}"), key=lambda path: path.stat().st_mtime)
        for record in [json_text.parse(path.read_text())]
    ]
    before_verification = sum(stage["seconds"] for stage in stages if stage["stage"] in ("base", "rootfs", "media", "disk"))
    return {
        "seconds": took, "stages": stages, "unverified": round(before_verification, 1),
        "image_bytes": built.manifest.image.bytes, "boot": built.manifest.verification.boot,
    }  # fmt: skip


def _edit(checkout: Path, scratch: Path, options: Options) -> Mapping[str, Any]:
    """Build after an edit. What an edit leaves alone is there: from the cold build, else from the user's own cache."""
    if not (scratch / "cache").exists():
        _share(options.cache.root, scratch / "cache")
    edited = checkout / EDITED
    edited.write_text(f"{edited.read_text()}// edited by the bench\n")
    return _build(checkout, scratch, options)


def _share(own: Path, target: Path) -> None:
    """Give a new cache the downloads and the bases of another one, by links: neither is ever written again."""
    for name in ("files", "wheels", "stages/base"):
        if (own / name).is_dir():
            # Locks, whose names begin with a dot, are each cache's own.
            shutil.copytree(own / name, target / name, copy_function=os.link, ignore=shutil.ignore_patterns(".*"))


def _plain(options: Options, scratch: Path) -> Mapping[str, Any]:
    """Install the same packages the plain way, and return how long Packer took."""
    spec = specs.load(options.project.spec)
    stack = layers.load_stack(options.project.overlays, spec)
    netboot, udebs = _plain_installer(options, spec.release, scratch)
    medium, logs = scratch / "plain.iso", options.cache.root / "logs" / "bench-plain"
    logs.mkdir(parents=True, exist_ok=True)
    (scratch / "plain").mkdir()
    plain_install.make_medium(
        medium, spec=spec, packages=layers.requested_packages(spec, stack), mirrors=options.mirrors, netboot=netboot,
        udebs=udebs, scratch=scratch / "plain", log=logs / "medium.log",
    )  # fmt: skip
    chosen_packer = packer.locate(
        tools=options.project.packer / "tools", cache=options.cache.root / "packer", chosen=options.packer
    )
    accelerator = acceleration.probe(workdir=scratch, wanted=options.accelerator)
    accelerator = dataclasses.replace(accelerator, timeout_scale=accelerator.timeout_scale * PLAIN_PATIENCE)
    facts = installation.make_disk(
        iso=medium, spec=spec, packer=chosen_packer, templates=options.project.packer, out=scratch / "plain", logs=logs,
        accelerator=accelerator, expected=0.0, network=True, strict=False,
    )  # fmt: skip
    # The steps are those of the attempt that succeeded: a panic under emulation is not the plain way's fault.
    return {"seconds": round(sum(facts.steps.values()), 1), "steps": facts.steps, "image_bytes": facts.image_bytes}


def _plain_installer(options: Options, release: str, scratch: Path) -> tuple[Path, list[Path]]:
    """Return Debian's netboot package and the udebs of the plain installation; raise StepFailed when one is missing."""
    resolver = build.lock_resolver_for(options, release)
    entries = plain_install.parts(resolver.settle_installer(options.project.installer_lock, locked=False).lock)
    with apt.private_apt(scratch, options.mirrors, release, components=apt.WITH_UDEBS) as archive:
        more = archive.locate(plain_install.UDEBS)
    if gone := resolver.store.fetch(more, options.mirrors):
        raise StepFailed(
            "the mirror lacks installer components of the plain way", details="\n".join(entry.filename for entry in gone),
            hint="use another mirror, or leave out the part plain",
        )  # fmt: skip
    netboot = next(entry for entry in entries if entry.package == NETBOOT)
    return resolver.store.path(netboot), [resolver.store.path(entry) for entry in (*entries, *more) if entry is not netboot]


def _memory(checkout: Path, scratch: Path, options: Options) -> Mapping[str, Any]:
    """Boot a clone, wait until it is idle, and return the median of its memory in use and the total, in MiB.

    The image is that of this run's last build, or else the newest artifact of the project.
    """
    built = checkout / "artifacts"
    image = artifact.newest(built).image if artifact.committed(built) else find.newest(options.project).image
    spec = specs.load(options.project.spec)
    identity = nocloud.make_identity(scratch / "identity", spec.admin.user)
    accelerator = acceleration.probe(workdir=scratch, wanted=options.accelerator)
    config = vm.CloneConfig("memory", vm.Firmware.BIOS)
    with vm.clone(image, config, directory=scratch / "memory", accelerator=accelerator, identity=identity) as clone:
        vm.wait_ready(clone, identity)
        _await_idle(clone)
        readings = []
        for _ in range(READINGS):
            time.sleep(READING_SECONDS)
            readings.append(memory_in_use(clone.execute("cat /proc/meminfo").stdout))
    return {"used_mib": round(statistics.median(used for used, _ in readings)), "total_mib": readings[0][1]}


def _await_idle(clone: vm.Clone) -> None:
    deadline = time.monotonic() + SETTLE_SECONDS * clone.accelerator.timeout_scale
    while clone.execute(f"systemctl --quiet is-active {SETTLE_UNIT}", check=False).returncode == 0:
        if time.monotonic() > deadline:
            raise StepFailed(f"the clone is not idle: {SETTLE_UNIT} is still active", details=run.tail(clone.console_text()))
        time.sleep(READING_SECONDS)


def memory_in_use(text: str) -> tuple[int, int]:
    """Return the memory that is in use and the total, in MiB, from /proc/meminfo: page cache counts as free.

    Raises StepFailed when the text names neither.
    """
    sizes = {line.partition(":")[0]: line.split()[1] for line in text.splitlines() if len(line.split()) > 1}
    try:
        total, available = int(sizes["MemTotal"]), int(sizes["MemAvailable"])
    except (KeyError, ValueError) as error:
        raise StepFailed("the clone's /proc/meminfo has no MemTotal or MemAvailable", details=run.tail(text)) from error
    return (total - available) // 1024, total // 1024


def _commit(root: Path) -> str:
    return git.ask(root, "rev-parse", "--short=12", "HEAD") or ""


def describe_machine(options: Options, scratch: Path) -> dict[str, Any]:
    """Return what the figures have to be read with; the load stands with each of them."""
    cpu = next(
        (line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    accelerator = acceleration.probe(workdir=scratch, wanted=options.accelerator)
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
    system = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"), "cpu": cpu, "cores": acceleration.usable_cpus(),
        "memory_gib": round(memory),
        "accelerator": f"{accelerator.kind}, QEMU {accelerator.qemu[0]}.{accelerator.qemu[1]}, {accelerator.cpus} CPUs",
        "host": system.get("PRETTY_NAME", "").strip('"'),
    }  # fmt: skip


def render(machine: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """Return docs/reference/benchmarks.md."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False, trim_blocks=False)
    environment.filters["seconds"] = log.seconds

    def part(seconds: float) -> str:
        return f"{seconds / results['plain']['seconds']:.2f}"

    return environment.from_string(_PAGE).render(
        machine=machine, results=results, titles=_TITLES, part=part, sizes=_sizes(results), beside=_beside(results)
    )


def _beside(results: Mapping[str, Any]) -> bool:
    """Return True if the cold build and the plain installation were measured in the same run."""
    runs = [results.get(part, {}).get("run", "") for part in ("cold", "plain")]
    return bool(runs[0]) and runs[0] == runs[1]


def _sizes(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the rows of the table of sizes, of what has been measured."""
    rows: dict[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {
        "cold": ("size of the image, compressed", lambda one: f"{one['image_bytes'] / 1e6:.0f} MB"),
        "plain": ("size of the plain installation's image, compressed", lambda one: f"{one['image_bytes'] / 1e6:.0f} MB"),
        "memory": ("memory in use on an idle clone", lambda one: f"{one['used_mib']} of {one['total_mib']} MiB"),
    }
    return [
        {"what": what, "figure": figure(results[part]), "commit": results[part]["commit"]}
        for part, (what, figure) in rows.items() if part in results
    ]  # fmt: skip
