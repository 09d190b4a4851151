"""What the hardening costs: the same pages from the same software, once as the image runs it, once as Debian would.

Both run side by side on one disposable machine: the image's units, and beside them a second PostgreSQL cluster under
Debian's template unit, a second application server under a plain unit, and a second nginx with Debian's configuration
and unit, on other ports and sockets. A load generator inside the machine asks them in turn, so that a busy host slows
both. What limits one client is opened for both: that is a promise, not a cost.
"""

from __future__ import annotations

import re
import shlex
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from build.artifact import find
from build.audit import tools as audit_tools
from build.audit.tools import HOME
from build.core import host, log, run
from build.core.errors import HostError, StepFailed
from build.machines import acceleration, boots, nocloud, nspawn, target, vm
from build.machines.target import Target
from build.packages import lock
from build.pipeline import build
from build.pipeline.build import Options
from build.spec import golden_yaml as specs

ROUNDS = 5
SECONDS = 5
CONNECTIONS = 16
# Of the stock throughput: what the image promises.
PROMISED = 0.9
STOCK_PORT = 8443
LOAD_SECONDS = 60
SCRIPT = "stock.sh"
SETUP_SECONDS = 300
_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}
_RATE = re.compile(r"^Requests/sec:\s+([\d.]+)$", re.MULTILINE)
_LATENCY = re.compile(r"^\s+99%\s+([\d.]+)(us|ms|s|m)\s*$", re.MULTILINE)
_ERRORS = re.compile(r"^\s*(Non-2xx or 3xx responses: .*|Socket errors: .*)$", re.MULTILINE)

# The part of docs/reference/benchmarks.md.
SECTION = """
{%- if "hardening" in results %}
## What the hardening costs

The image's own services, and beside them on the same machine a second set of the same software under Debian's units and
configuration, asked in turn by {{ results.hardening.connections }} connections over TLS; medians of
{{ results.hardening.rounds }} rounds. What limits one client is opened for both.
{%- if results.hardening.place == "container" %} Measured in a container on the host's processor, because emulation would
drown the difference: AppArmor and the packet filter's share, which a container does not show, are not in it.{% endif %}

| page | hardened, requests a second | stock | hardened of stock | 99 % hardened | 99 % stock |
|---|---|---|---|---|---|
{% for page, one in results.hardening.pages.items() -%}
{% with us = one.hardened, it = one.stock, of = (100 * one.ratio) | round | int -%}
| {{ page }} | {{ us.rate }} | {{ it.rate }} | {{ of }} % | {{ us.p99 }} ms | {{ it.p99 }} ms |
{% endwith %}
{%- endfor %}
{%- endif %}"""


@dataclass(frozen=True)
class Load:
    """What one run of the load generator measured: requests in a second, and the slowest of a hundred in milliseconds."""

    rate: float
    p99: float


def read_load(text: str) -> Load:
    """Read wrk's report; raise StepFailed when a request failed, because errors are quick."""
    rate, latency, errors = _RATE.search(text), _LATENCY.search(text), _ERRORS.search(text)
    if errors or not rate or not latency:
        raise StepFailed(
            f"the load generator met errors: {errors[1]}" if errors else "the load generator measured nothing",
            details=run.tail(text),
        )
    return Load(float(rate[1]), round(float(latency[1]) * _UNITS[latency[2]], 3))


def cost(options: Options, scratch: Path) -> dict[str, Any]:
    """Measure on a clone of the newest image, or, where only emulation is left, in a container of the root file system.

    Emulation would drown the difference: there, a system call and a calculation take other times than on a processor.
    """
    spec = specs.load(options.project.spec)
    store = build.lock_resolver_for(options, spec.release).store
    auditors = options.project.root / "tests" / "audit"
    tools = audit_tools.fetch(auditors, store=store, mirrors=options.mirrors, into=scratch / "tools")
    stock = _debians_own(options, store.path, scratch / "stock")
    output = options.cache.root / "logs" / "bench-hardening.log"
    with _machine(options, spec, scratch) as place:
        place.send(tools.root, audit_tools.PARTS["load"], target=HOME, output=output)
        set_up(place, stock, auditors / SCRIPT, output=output)
        progress = log.Progress("measuring")
        pages = measure(place, output=output, tell=progress.update)
        progress.finish()
    for line in broken_promises(pages):
        log.warn(f"the hardening costs more than it may: {line}")
    return {
        "place": place.kind, "pages": pages, "promised": PROMISED, "connections": CONNECTIONS, "rounds": ROUNDS,
        "wrk": tools.versions["wrk"],
    }  # fmt: skip


def _debians_own(options: Options, path: Callable[[lock.Entry], Path], into: Path) -> Path:
    entry = next(listed for listed in lock.parse(options.project.rootfs_lock).entries if listed.package == "nginx-common")
    run.run(["dpkg-deb", "--extract", path(entry), into], timeout=run.LOCAL_SECONDS)
    return into


@contextmanager
def _machine(options: Options, spec: specs.Spec, scratch: Path) -> Iterator[Target]:
    accelerator = acceleration.probe(workdir=scratch, wanted=options.accelerator)
    identity = nocloud.make_identity(scratch / "identity", spec.admin.user)
    if accelerator.kind is acceleration.Kind.KVM:
        image = find.find_image(options.project, options.cache.root, directory=None, unverified=False)
        config = vm.CloneConfig("bench", vm.Firmware.BIOS)
        with boots.clones(image, [config], directory=scratch, accelerator=accelerator, identity=identity) as machines:
            yield target.of_clone(machines[0])
        return
    if not run.is_root():
        raise HostError("a container that boots systemd needs root", hint="run it as root, or on a host with KVM")
    host.ensure(host.needed((host.CONTAINER,), container=True), install=options.install)
    squashfs, _ = build.build_rootfs(options)
    with ExitStack() as stack:
        with log.step("Booting the root file system as a container"):
            root = scratch / "root"
            run.run(["unsquashfs", "-quiet", "-no-progress", "-dest", root, squashfs], timeout=nspawn.UNPACK_SECONDS)
            nspawn.plant_seed(root, identity)
            process = stack.enter_context(nspawn.boot(root, scratch / "console.log"))
            leader = nspawn.await_running(process, scratch / "console.log")
        yield target.of_container(leader)


def set_up(place: Target, stock: Path, script: Path, *, output: Path) -> None:
    """Start the second set of services with ``script``. ``stock`` holds Debian's own nginx-common, unpacked."""
    place.send(stock, ["etc/nginx", "usr/lib/systemd/system/nginx.service"], target=f"{HOME}/stock", output=output)
    text = script.read_text(encoding="utf-8").replace("@HOME@", HOME).replace("@PORT@", str(STOCK_PORT))
    place.shell(text, timeout=SETUP_SECONDS, output=output)


def addresses(place: Target) -> dict[str, dict[str, str]]:
    """Return the pages by name, and the address of each at both sets of services."""
    name = place.read("/run/golden/names").split()[0]
    static = place.shell("cd /var/www && find static -name '*.css' -path '*.????????????.css' | head -1").stdout.strip()
    if not static:
        raise StepFailed("the machine serves no style sheet with a hash in its name")
    pages = {"static file": f"/{static}", "/health": "/health", "page": "/"}
    servers = {"hardened": f"https://{name}", "stock": f"https://{name}:{STOCK_PORT}"}
    return {page: {which: server + path for which, server in servers.items()} for page, path in pages.items()}


def measure(place: Target, *, output: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """Ask both sets for each page, in turn, several times; return the medians and their ratio by page."""
    found: dict[str, Any] = {}
    for page, targets in addresses(place).items():
        loads: dict[str, list[Load]] = {which: [] for which in targets}
        for number in range(ROUNDS + 1):
            tell(f"{page}, round {number} of {ROUNDS}")
            # Whoever goes first has the caches cold: the order changes, and round 0 does not count.
            for which in sorted(targets, reverse=bool(number % 2)):
                load = _load(place, targets[which], output=output)
                loads[which] += [load] if number else []
        found[page] = summary(loads)
    return found


def summary(loads: Mapping[str, list[Load]]) -> dict[str, Any]:
    """Return the medians of both sets, and the hardened rate as a part of the stock one."""
    both = {
        which: {"rate": round(statistics.median(load.rate for load in some), 1),
                "p99": round(statistics.median(load.p99 for load in some), 2)}
        for which, some in loads.items()
    }  # fmt: skip
    # Round by round: the two of a round met the same neighbours.
    ratios = [mine.rate / other.rate for mine, other in zip(loads["hardened"], loads["stock"], strict=True)]
    return {**both, "ratio": round(statistics.median(ratios), 3)}


def _load(place: Target, address: str, *, output: Path) -> Load:
    words = ["wrk", "--threads", "2", "--connections", str(CONNECTIONS), "--duration", f"{SECONDS}s", "--latency", address]
    command = f"{audit_tools.environment()} {HOME}/usr/bin/{shlex.join(words)}"
    return read_load(place.shell(command, timeout=LOAD_SECONDS, output=output).stdout)


def broken_promises(pages: Mapping[str, Any]) -> list[str]:
    """Return the pages whose throughput is too small a part of the stock one."""
    return [f"{page}: {figures['ratio']:.0%} of stock" for page, figures in pages.items() if figures["ratio"] < PROMISED]
