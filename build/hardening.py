"""What the hardening costs: the same pages from the same software, once as the image runs it, once as Debian would.

Both run side by side on one throw-away machine: the image's own units, and beside them a second PostgreSQL cluster under
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

from build import accel, audit_place, audit_tools, container, host, lock, log, pipeline, run, seed, vm, workshop
from build import spec as specs
from build.audit_place import Place
from build.audit_tools import HOME
from build.errors import HostError, StepFailed
from build.pipeline import Options

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

# The part of docs/benchmarks.md.
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
    store = pipeline.locksmith_for(options, spec.release).store
    peers = options.project.root / "tests" / "peers"
    tools = audit_tools.fetch(peers, store=store, mirrors=options.mirrors, into=scratch / "tools")
    stock = _debians_own(options, store.path, scratch / "stock")
    output = options.cache.root / "logs" / "bench-hardening.log"
    with _machine(options, spec, scratch) as place:
        place.send(tools.root, audit_tools.PARTS["load"], target=HOME, output=output)
        set_up(place, stock, peers / SCRIPT, output=output)
        progress = log.Progress("measuring")
        found = measure(place, output=output, tell=progress.update)
        progress.finish()
    for line in broken_promises(found):
        log.warn(f"the hardening costs more than it may: {line}")
    return {
        "place": place.kind, "pages": found, "promised": PROMISED, "connections": CONNECTIONS, "rounds": ROUNDS,
        "wrk": tools.versions["wrk"],
    }  # fmt: skip


def _debians_own(options: Options, path: Callable[[lock.Entry], Path], into: Path) -> Path:
    entry = next(one for one in lock.parse(options.project.rootfs_lock).entries if one.package == "nginx-common")
    run.run(["dpkg-deb", "--extract", path(entry), into], timeout=60)
    return into


@contextmanager
def _machine(options: Options, spec: specs.Spec, scratch: Path) -> Iterator[Place]:
    accelerator = accel.probe(workdir=scratch, wanted=options.accelerator)
    identity = seed.make_identity(scratch / "identity", spec.admin.user)
    if accelerator.kind is accel.Kind.KVM:
        image = workshop.find_image(options, directory=None, unverified=False)
        wish = vm.Wish("bench", vm.Firmware.BIOS)
        with vm.clones(image, [wish], directory=scratch, accelerator=accelerator, identity=identity) as made:
            yield audit_place.of_clone(made[0])
        return
    if not run.is_root():
        raise HostError("a container that boots systemd needs root", hint="run it as root, or on a host with KVM")
    host.ensure(host.needed(container=True), install=options.install)
    squashfs, _ = pipeline.build_rootfs(options)
    with ExitStack() as stack:
        with log.step("Booting the root file system as a container"):
            root = scratch / "root"
            run.run(["unsquashfs", "-quiet", "-no-progress", "-dest", root, squashfs], timeout=container.UNPACK_SECONDS)
            container.plant_seed(root, identity)
            process = stack.enter_context(container.boot(root, scratch / "console.log"))
            leader = container.await_running(process, scratch / "console.log")
        yield audit_place.of_container(leader)


def set_up(place: Place, stock: Path, script: Path, *, output: Path) -> None:
    """Start the second set of services with ``script``. ``stock`` holds Debian's own nginx-common, unpacked."""
    place.send(stock, ["etc/nginx", "usr/lib/systemd/system/nginx.service"], target=f"{HOME}/stock", output=output)
    text = script.read_text(encoding="utf-8").replace("@HOME@", HOME).replace("@PORT@", str(STOCK_PORT))
    place.shell(text, timeout=SETUP_SECONDS, output=output)


def addresses(place: Place) -> dict[str, dict[str, str]]:
    """Return the pages by name, and the address of each at both sets of services."""
    name = place.read("/run/golden/names").split()[0]
    static = place.shell("cd /var/www && find static -name '*.css' -path '*.????????????.css' | head -1").stdout.strip()
    if not static:
        raise StepFailed("the machine serves no style sheet with a hash in its name")
    pages = {"static file": f"/{static}", "/health": "/health", "page": "/"}
    servers = {"hardened": f"https://{name}", "stock": f"https://{name}:{STOCK_PORT}"}
    return {page: {which: server + path for which, server in servers.items()} for page, path in pages.items()}


def measure(place: Place, *, output: Path, tell: Callable[[str], None]) -> dict[str, Any]:
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


def _load(place: Place, address: str, *, output: Path) -> Load:
    words = ["wrk", "--threads", "2", "--connections", str(CONNECTIONS), "--duration", f"{SECONDS}s", "--latency", address]
    command = f"{audit_tools.environment()} {HOME}/usr/bin/{shlex.join(words)}"
    return read_load(place.shell(command, timeout=LOAD_SECONDS, output=output).stdout)


def broken_promises(found: Mapping[str, Any]) -> list[str]:
    """Return the pages whose throughput is too small a part of the stock one."""
    return [f"{page}: {one['ratio']:.0%} of stock" for page, one in found.items() if one["ratio"] < PROMISED]
